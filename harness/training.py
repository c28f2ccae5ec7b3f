"""The one training loop: every trained method, whatever its loss, runs through `train`.

    with seeded(ctx.seed, ctx.device):
        network = MyNetwork()
    result = train(network, self.training, batches, step, ctx=ctx, validate=validate)

A method gives three functions, and the loop owns the rest: optimiser, schedule, clipping, weight averaging,
mixed precision, selection, curves and checkpoints.

    batches(rng, size)             a batch of CPU tensors, drawn with the numpy generator `rng`
    step(module, batch, generator) the loss to minimise, or a dict of losses whose "loss" is minimised
    validate(module)               a score of the module in eval mode; higher is better

Adversarial training passes a dict of steps, one for each player: see `train`.

All randomness of iteration i comes from (seed, i). So a checkpoint needs no generator state, and a training
that was killed and resumed ends, on a CPU, with the same bits as one that was not.

Within a group of ranks (`harness.distributed`) N of them train one model, each on its own device. All keep the same
weights: gradients are averaged before an update, so N ranks with batches of B do what one does with a batch of N × B,
up to the order of sums. Each computes its own share of a batch: what a step draws, and statistics of a batch
(batch normalisation), are each rank's own. Rank 0 validates, logs and writes. The module is never wrapped, so a step
may reach its submodules.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import distributed
from harness.api import Context, MethodError
from harness.checkpoints import read_checkpoint as read_checkpoint
from harness.checkpoints import write_checkpoint as write_checkpoint
from harness.optimisation import TrainingSettings as TrainingSettings
from harness.optimisation import learning_rate_at as learning_rate_at
from harness.optimisation import optimizer_of, precision_of

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Batches = Callable[[np.random.Generator, int], Any]
Step = Callable[[nn.Module, Any, torch.Generator], "Tensor | Mapping[str, Tensor]"]
Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    state_dict: the selected weights and buffers on the CPU, each tensor once; `load_weights` puts them back.
    score:      their validation score; None without validation.
    iteration:  number of updates after which they were taken.
    resumed_at: number of updates that a checkpoint had already done; 0 for a training in one go.

    The same on all ranks of a group.
    """

    state_dict: Weights
    score: float | None
    iteration: int
    resumed_at: int


def train(
    module: nn.Module,
    settings: TrainingSettings,
    batches: Batches,
    step: Step | Mapping[str, Step | Mapping[str, Step]],
    *,
    ctx: Context,
    validate: Validate | None = None,
    name: str = "train",
    rates: Mapping[str, float] | None = None,
) -> TrainResult:
    """Train `module` in place; it ends on `ctx.device` with the selected weights.

    batches:  (rng, batch_size) → tensors, or tuples, lists and dicts of them; moved to the device here.
              All draws must come from `rng`. It must not count its own calls: a resumed training skips some.
    step:     (module, batch, generator) → loss, or a dict with "loss" whose other entries are only logged.
              `generator` is on the device. With a dict of steps {player: step}, each iteration runs all in
              order; each has its own optimiser over the submodule `module.<player>` and leaves all other
              parameters alone. A player given {turn: step} moves once for each, with its one optimiser.
              What must survive from one iteration to the next belongs in a buffer.
    validate: (module in eval mode, no gradients) → score, higher is better. Without it the last weights
              are kept. With averaging (`ema`) it sees the averaged weights. `patience` validations in a row
              without a new best end the training.
    name:     of the checkpoint and the curves; set it where one stage trains several modules.
    rates:    factors of the learning rate by submodule, such as {"generator.mapping": 0.01}; 1 for all others.

    The module's train and eval modes are left as the caller set them, so a frozen part may stay in eval.
    A checkpoint of the same training in `ctx.scratch` is resumed; one that is damaged or belongs to other
    settings is ignored with a warning in the log. Raises MethodError, naming the iteration, when a loss or a
    validation score is not finite.

    Within a group of N ranks, all of which call this with the same arguments:

    - All draw the same batch of N × batch_size, and each takes its own batch_size in turn. A batch that is anything
      but tensors of N × batch_size along their first dimension is not divided: then each rank draws one of
      batch_size, with its rank added to the seed. So are a step's draws, from `generator` and torch's own.
    - Losses are means over ranks. `validate` and `ctx.log` are called, and checkpoints read and written, on rank 0.
    - Layers see their own rank's share alone: batch normalisation normalises each batch_size by itself, as it does
      without a group, and its running statistics are averaged before they are validated, saved or returned. All other
      buffers are each rank's own, saved and resumed as such; what is returned are those of rank 0.
    - A step must change parameters through its loss alone. Raises MethodError when ranks come to differ.
    """
    module.to(ctx.device)
    players = step if isinstance(step, Mapping) else {"": step}
    steps = {player: turns if isinstance(turns, Mapping) else {"": turns} for player, turns in players.items()}
    return _Loop(module, settings, batches, steps, ctx, validate, name, rates or {}).run()


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Torch's global generators seeded inside, and as before outside. Build networks in it."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.startswith("cuda") else []):
        _seed_torch(seed, device)
        yield


def weights_of(module: nn.Module) -> Weights:
    """Copies on the CPU of all parameters and saved buffers: a state dict in which shared tensors come once."""
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in _tensors(module).items()}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor | np.ndarray]) -> None:
    """Put what `weights_of` gave, or its numpy arrays, into a module of the same architecture.

    Raises MethodError when a name or a shape differs.
    """
    own = _tensors(module)
    if differing := sorted(own.keys() ^ weights.keys()):
        raise MethodError(f"the weights are of another network: {differing[0]!r} is only on one side")
    with torch.no_grad():
        for key, tensor in own.items():
            value = weights[key]
            if tuple(value.shape) != tuple(tensor.shape):
                raise MethodError(f"weight {key!r} has shape {tuple(value.shape)}, the network {tuple(tensor.shape)}")
            tensor.copy_(value if isinstance(value, Tensor) else torch.tensor(value))


class _Loop:
    """One training: its moving parts, and how they advance, are saved and come back."""

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingSettings,
        batches: Batches,
        steps: Mapping[str, Mapping[str, Step]],
        ctx: Context,
        validate: Validate | None,
        name: str,
        rates: Mapping[str, float],
    ):
        self.module, self.settings, self.batches, self.steps = module, settings, batches, steps
        self.ctx, self.validate, self.name, self.rates = ctx, validate, name, rates
        self.group = distributed.group()
        if self.group.size > 1:
            load_weights(module, self.group.share(weights_of(module)))
        self.path = ctx.scratch / f"{name}.checkpoint"
        factors = {id(p): factor for path, factor in rates.items() for p in module.get_submodule(path).parameters()}
        self.optimizers = {player: optimizer_of(module.get_submodule(player), settings, factors) for player in steps}
        self.precision = precision_of(settings, ctx.device)
        # fp16 underflows without a scaled loss; bf16 has the range of float32.
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision is torch.float16)
        self.average = weights_of(module) if settings.ema is not None else None
        if self.average is not None:
            self.average = {key: tensor.to(ctx.device) for key, tensor in self.average.items()}
        self.best: Weights = {}
        self.best_score: float | None = None
        self.best_iteration = 0
        self.score: float | None = None
        self.highest: float | None = None
        self.vain = 0  # validations since the highest
        self.curves: list[list[Any]] = []
        self.pending: list[dict[str, Tensor]] = []
        self.recent: list[dict[str, float]] = []
        self.done = 0

    def run(self) -> TrainResult:
        self._resume()
        resumed_at = self.done
        settings = self.settings
        with seeded(self.ctx.seed, self.ctx.device):
            while not self._ended():
                self._iterate()
                last = self.done == settings.iterations
                if last or self.done % settings.log_interval == 0:
                    self._log_losses()
                if self.validate is not None and (last or self.done % settings.validate_every == 0):
                    self._validate(self.validate)
                    self.vain = self.group.share(self.vain)
                if self._ended() and self.recent:
                    self._log_losses()
                if self._ended() or self.done % settings.checkpoint_every == 0:
                    self._save()
        return self._select(resumed_at)

    def _ended(self) -> bool:
        """Whether all iterations are done, or `patience` is lost."""
        patience = self.settings.patience
        return self.done >= self.settings.iterations or (patience is not None and self.vain >= patience)

    # ---------------------------------------------------------------------------------- one iteration

    def _iterate(self) -> None:
        """Draw a batch, give every player its turn, follow with the average."""
        rng = np.random.default_rng([self.ctx.seed, self.done])
        draw = int(rng.integers(2**62)) + self.group.rank
        _seed_torch(draw, self.ctx.device)
        generator = torch.Generator(self.ctx.device).manual_seed(draw)
        batch = _to_device(self._draw(rng), self.ctx.device)
        losses: dict[str, Tensor] = {}
        for player, turns in self.steps.items():
            for turn, step in turns.items():
                for key, value in self._turn(player, step, batch, generator).items():
                    losses["/".join(filter(None, (player, turn, key)))] = value.detach()
        self.pending.append(losses)
        self._follow()
        self.done += 1

    def _draw(self, rng: np.random.Generator) -> Any:
        """This rank's batch: its part of the group's, or one of its own where that cannot be divided."""
        rank, ranks, size = self.group.rank, self.group.size, self.settings.batch_size
        if ranks == 1:
            return self.batches(rng, size)
        whole = self.batches(rng, ranks * size)
        if distributed.divides(whole, ranks * size):
            return distributed.part(whole, slice(rank * size, (rank + 1) * size))
        own = np.random.default_rng([self.ctx.seed, self.done, *([rank] if rank else [])])
        own.integers(2**62)  # as `_iterate` has, so that rank 0 draws what it would alone
        return self.batches(own, size)

    def _turn(self, player: str, step: Step, batch: Any, generator: torch.Generator) -> Mapping[str, Tensor]:
        optimizer = self.optimizers[player]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(self.settings, self.done) * group["factor"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        with self._others_frozen(player):
            with self._autocast():
                losses = step(self.module, batch, generator)
            named = {"loss": losses} if isinstance(losses, Tensor) else losses
            if "loss" not in named:
                raise MethodError(f'{self.name}: a step returned {sorted(named)}, but no entry "loss" to minimise')
            self.scaler.scale(named["loss"]).backward()
        self.group.average_gradients(parameters)
        self.scaler.unscale_(optimizer)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return named

    @contextmanager
    def _others_frozen(self, player: str) -> Iterator[None]:
        """No gradients for the other players' parameters, which spares the work and keeps theirs clean."""
        others = [
            p
            for other, optimizer in self.optimizers.items()
            if other != player
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def _autocast(self) -> torch.autocast:
        on = self.precision is not None
        return torch.autocast("cuda" if on else "cpu", dtype=self.precision, enabled=on)

    @torch.no_grad()
    def _follow(self) -> None:
        """Average parameters with decay `ema`; copy buffers, whose running statistics are averages already."""
        if self.average is None or self.settings.ema is None:
            return
        for key, parameter in self.module.named_parameters():
            self.average[key].lerp_(parameter, 1 - self.settings.ema)
        self._follow_buffers()

    def _follow_buffers(self) -> None:
        if self.average is not None:
            for key, buffer in _buffers(self.module).items():
                self.average[key].copy_(buffer)

    # ------------------------------------------------------------------------- curves and validation

    def _fetch_losses(self) -> None:
        """Pending losses as floats, means over ranks; all at once, since each would stall a GPU in every iteration."""
        own = [{key: float(value) for key, value in losses.items()} for losses in self.pending]
        first, self.pending = self.done - len(own), []
        for offset, everyone in enumerate(zip(*self.group.gather(own), strict=True)):
            losses = _means(everyone)
            self.recent.append(losses)
            for key, value in losses.items():
                if key.rpartition("/")[2] == "loss" and not math.isfinite(value):
                    raise MethodError(
                        f"{self.name}: the {key} became {value} at iteration {first + offset + 1} of "
                        f"{self.settings.iterations}; lower learning_rate, or set clip_norm or warmup"
                    )

    def _log_losses(self) -> None:
        """Mean losses since the last point, and the learning rate of the last update."""
        self._fetch_losses()
        self._compare()
        for key in self.recent[-1]:
            self._log(key, float(np.mean([losses[key] for losses in self.recent if key in losses])))
        self._log("learning_rate", learning_rate_at(self.settings, self.done - 1))
        self.recent = []

    def _log(self, key: str, value: float) -> None:
        if self.group.leads:
            curve = key if self.name == "train" else f"{self.name}/{key}"
            self.curves.append([curve, self.done, value])
            self.ctx.log(curve, self.done, value)

    def _validate(self, validate: Validate) -> None:
        self._fetch_losses()
        self._join_statistics()
        if not self.group.leads:
            return
        with self._averaged(), _evaluating(self.module), torch.no_grad():
            score = float(validate(self.module))
            if not math.isfinite(score):
                raise MethodError(f"{self.name}: the validation score became {score} at iteration {self.done}")
            self.score = score
            better = self.highest is None or score > self.highest
            self.highest, self.vain = (score, 0) if better else (self.highest, self.vain + 1)
            if self.settings.select == "best" and (self.best_score is None or score > self.best_score):
                self.best, self.best_score, self.best_iteration = weights_of(self.module), score, self.done
        self._log("validation", score)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The module with averaged weights, if there are any."""
        if self.average is None:
            yield
            return
        own = {key: tensor.detach().clone() for key, tensor in _tensors(self.module).items()}
        load_weights(self.module, self.average)
        try:
            yield
        finally:
            load_weights(self.module, own)

    def _select(self, resumed_at: int) -> TrainResult:
        """Leave the selected weights in the module and return them."""
        found: tuple[Weights, float | None, int] = self.best, self.best_score, self.best_iteration
        if not self.best:
            if self.average is not None:
                load_weights(self.module, self.average)
            found = weights_of(self.module), self.score, self.done
        weights, score, iteration = self.group.share(found)
        load_weights(self.module, weights)
        return TrainResult(weights, score, iteration, resumed_at)

    # ----------------------------------------------------------------------------------- between ranks

    def _join_statistics(self) -> None:
        """Average running statistics over ranks. When, and how often, makes no difference to what they become."""
        buffers = _buffers(self.module)
        self.group.average([buffers[key] for key in buffers if _is_statistic(key)])
        self._follow_buffers()

    def _own_buffers(self) -> Weights:
        """Buffers in which ranks differ."""
        return {k: b.detach().to("cpu", copy=True) for k, b in _buffers(self.module).items() if not _is_statistic(k)}

    def _compare(self) -> None:
        """Raises MethodError where ranks have other weights, which averaging gradients cannot mend."""
        if self.group.size == 1:
            return
        norms = torch.stack([p.detach().float().norm() for p in self.module.parameters()]).tolist()
        by_parameter = zip(*self.group.gather(norms), strict=True)
        for (key, _), values in zip(self.module.named_parameters(), by_parameter, strict=True):
            if max(values) - min(values) > 1e-3 * max(values):
                raise MethodError(
                    f"{self.name}: {key!r} differs between workers at iteration {self.done}; a step may change weights "
                    "through its loss alone, so layers that take theirs from a first batch must do so before training"
                )

    # ------------------------------------------------------------------------------------ checkpoints

    def _identity(self) -> str:
        """What must agree before a checkpoint is resumed."""
        shapes = {key: [str(t.dtype), *t.shape] for key, t in _tensors(self.module).items()}
        parts = [self.settings.model_dump(mode="json"), self.ctx.seed, list(self.steps), shapes, dict(self.rates)]
        parts.append(self.group.size)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _save(self) -> None:
        self._fetch_losses()
        self._join_statistics()
        buffers = self.group.gather(self._own_buffers()) if self.group.size > 1 else []
        if not self.group.leads:
            return
        write_checkpoint(
            self.path,
            {
                "identity": self._identity(),
                "done": self.done,
                "module": weights_of(self.module),
                "buffers": buffers,
                "optimizers": {player: optimizer.state_dict() for player, optimizer in self.optimizers.items()},
                "scaler": self.scaler.state_dict(),
                "average": self.average,
                "best": self.best,
                "best_score": self.best_score,
                "best_iteration": self.best_iteration,
                "score": self.score,
                "highest": self.highest,
                "vain": self.vain,
                "curves": self.curves,
                "recent": self.recent,
            },
        )

    def _resume(self) -> None:
        saved = self.group.share(self._read() if self.group.leads else None)
        if saved is None:
            return
        load_weights(self.module, saved["module"])
        if saved["buffers"]:
            for key, buffer in _buffers(self.module).items():
                if key in saved["buffers"][self.group.rank]:
                    buffer.copy_(saved["buffers"][self.group.rank][key])
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][player])
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if saved["average"] is not None:
            self.average = {key: tensor.to(self.ctx.device) for key, tensor in saved["average"].items()}
            self._follow_buffers()
        self.done, self.score, self.recent = saved["done"], saved["score"], saved["recent"]
        self.highest, self.vain = saved["highest"], saved["vain"]
        self.best, self.best_score = saved["best"], saved["best_score"]
        self.best_iteration, self.curves = saved["best_iteration"], saved["curves"]
        if self.group.leads:
            for curve, iteration, value in self.curves:  # the killed attempt took its points with it
                self.ctx.log(curve, iteration, value)

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint, if there is one of this training."""
        saved = read_checkpoint(self.path)
        if saved is not None and saved["identity"] != self._identity():
            logger.warning("%s belongs to other settings; training starts afresh", self.path)
            return None
        return saved


def _tensors(module: nn.Module) -> Weights:
    """The module's own parameters and saved buffers by name, shared ones once."""
    return {**dict(module.named_parameters()), **_buffers(module)}


def _buffers(module: nn.Module) -> Weights:
    """The module's saved buffers by name, shared ones once."""
    saved = module.state_dict(keep_vars=True).keys()
    return {key: tensor for key, tensor in module.named_buffers() if key in saved}


def _is_statistic(key: str) -> bool:
    """Whether a buffer holds a running mean or variance, of which ranks take the mean."""
    return key.rpartition(".")[2] in ("running_mean", "running_var")


def _seed_torch(seed: int, device: str) -> None:
    # torch.manual_seed also queues a seed, with a stack trace, for every GPU that is not yet started.
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(seed)


def _to_device(batch: Any, device: str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_to_device(value, device) for value in batch)
    return batch


def _means(everyone: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Of each loss the mean over the ranks that have it."""
    found: dict[str, list[float]] = {}
    for losses in everyone:
        for key, value in losses.items():
            found.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in found.items()}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; each submodule's own mode afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode

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

Several GPUs later: gradients are complete at one line of `_Loop._turn`, batches are drawn at one line of
`_Loop._iterate`, and only `_Loop.run` validates, logs and writes. Averaging gradients over ranks at the first,
adding the rank to the seed at the second and keeping the third to rank 0 is all that it takes. The module is
never wrapped, so a step may reach its submodules.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Context, MethodError, Settings, hyper

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Batches = Callable[[np.random.Generator, int], Any]
Step = Callable[[nn.Module, Any, torch.Generator], "Tensor | Mapping[str, Tensor]"]
Validate = Callable[[nn.Module], float]


class TrainingSettings(Settings):
    """Hyper-parameters of a training.

    A method with a published schedule subclasses this and overrides the defaults. An instance with other
    values would not do: a YAML that sets one entry of the group would set all others back to these.
    """

    iterations: int = hyper(1000, "number of optimiser updates", origin="ours", ge=1)
    batch_size: int = hyper(16, "samples in a batch", origin="ours", ge=1)

    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adam", "update rule", origin="ours")
    learning_rate: float = hyper(1e-3, "learning rate after warmup", origin="ours", ge=0)
    betas: tuple[float, float] = hyper((0.9, 0.999), "moments of adam and adamw", origin="torch default")
    momentum: float = hyper(0.9, "momentum of sgd", origin="ours", ge=0, lt=1)
    weight_decay: float = hyper(0.0, "L2 penalty (adam, sgd) or decoupled decay (adamw)", origin="ours", ge=0)

    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("constant", "course of the rate", origin="ours")
    step_every: int = hyper(500, "step: iterations between two drops", origin="ours", ge=1)
    step_factor: float = hyper(0.5, "step: factor of a drop", origin="ours", gt=0, le=1)
    cosine_final: float = hyper(0.0, "cosine: final rate as a fraction of the first", origin="ours", ge=0, le=1)
    linear_from: float = hyper(
        0.5, "linear: fraction of the iterations at the full rate, which then falls to 0", origin="ours", ge=0, lt=1
    )
    warmup: int = hyper(0, "iterations of linear rise to the learning rate", origin="ours", ge=0)
    clip_norm: float | None = hyper(None, "largest L2 norm of the gradient; null: no limit", origin="ours", gt=0)

    ema: float | None = hyper(
        None, "decay of the moving average of weights that is validated and kept; null: none", origin="ours", gt=0, lt=1
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "auto", "mixed precision on a GPU; auto: bf16 where the GPU has it, else fp16", origin="ours"
    )

    validate_every: int = hyper(100, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper(
        "best", "weights that are kept: of the best validation, or the last", origin="ours"
    )
    checkpoint_every: int = hyper(250, "iterations between two checkpoints", origin="ours", ge=1)
    log_every: int | None = hyper(
        None, "iterations between two points of the loss curve; null: a hundred points", origin="ours", ge=1
    )

    @property
    def log_interval(self) -> int:
        return self.log_every or max(1, self.iterations // 100)


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves.

    state_dict: the selected weights and buffers on the CPU, each tensor once; `load_weights` puts them back.
    score:      their validation score; None without validation.
    iteration:  number of updates after which they were taken.
    resumed_at: number of updates that a checkpoint had already done; 0 for a training in one go.
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
              are kept. With averaging (`ema`) it sees the averaged weights.
    name:     of the checkpoint and the curves; set it where one stage trains several modules.
    rates:    factors of the learning rate by submodule, such as {"generator.mapping": 0.01}; 1 for all others.

    The module's train and eval modes are left as the caller set them, so a frozen part may stay in eval.
    A checkpoint of the same training in `ctx.scratch` is resumed; one that is damaged or belongs to other
    settings is ignored with a warning in the log. Raises MethodError, naming the iteration, when a loss or a
    validation score is not finite.
    """
    module.to(ctx.device)
    players = step if isinstance(step, Mapping) else {"": step}
    steps = {player: turns if isinstance(turns, Mapping) else {"": turns} for player, turns in players.items()}
    return _Loop(module, settings, batches, steps, ctx, validate, name, rates or {}).run()


def learning_rate_at(settings: TrainingSettings, iteration: int) -> float:
    """Learning rate of the update with this 0-based index.

    Warmup rises linearly and reaches the full rate at index `warmup - 1`. Drops of "step" are counted from
    index 0; "cosine" runs from the end of warmup to the last index, where it is rate × `cosine_final`; "linear"
    is full until `linear_from` and would be 0 just after the last index, so that no update is void.
    """
    rate = settings.learning_rate
    if settings.schedule == "step":
        rate *= settings.step_factor ** (iteration // settings.step_every)
    elif settings.schedule == "cosine":
        span = max(1, settings.iterations - 1 - settings.warmup)
        progress = min(1.0, max(0, iteration - settings.warmup) / span)
        floor = settings.cosine_final
        rate *= floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "linear":
        decay = settings.iterations * (1 - settings.linear_from)
        rate *= min(1.0, max(0.0, (settings.iterations - iteration) / decay))
    return rate * min(1.0, (iteration + 1) / settings.warmup) if settings.warmup else rate


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
        self.path = ctx.scratch / f"{name}.checkpoint"
        factors = {id(p): factor for path, factor in rates.items() for p in module.get_submodule(path).parameters()}
        self.optimizers = {player: _optimizer(module.get_submodule(player), settings, factors) for player in steps}
        self.precision = _precision(settings, ctx.device)
        # fp16 underflows without a scaled loss; bf16 has the range of float32.
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision is torch.float16)
        self.average = weights_of(module) if settings.ema is not None else None
        if self.average is not None:
            self.average = {key: tensor.to(ctx.device) for key, tensor in self.average.items()}
        self.best: Weights = {}
        self.best_score: float | None = None
        self.best_iteration = 0
        self.score: float | None = None
        self.curves: list[list[Any]] = []
        self.pending: list[dict[str, float | Tensor]] = []
        self.done = 0

    def run(self) -> TrainResult:
        self._resume()
        resumed_at = self.done
        settings = self.settings
        with seeded(self.ctx.seed, self.ctx.device):
            while self.done < settings.iterations:
                self._iterate()
                last = self.done == settings.iterations
                if last or self.done % settings.log_interval == 0:
                    self._log_losses()
                if self.validate is not None and (last or self.done % settings.validate_every == 0):
                    self._validate(self.validate)
                if last or self.done % settings.checkpoint_every == 0:
                    self._save()
        return self._select(resumed_at)

    # ---------------------------------------------------------------------------------- one iteration

    def _iterate(self) -> None:
        """Draw a batch, give every player its turn, follow with the average."""
        rng = np.random.default_rng([self.ctx.seed, self.done])
        draw = int(rng.integers(2**62))
        _seed_torch(draw, self.ctx.device)
        generator = torch.Generator(self.ctx.device).manual_seed(draw)
        batch = _to_device(self.batches(rng, self.settings.batch_size), self.ctx.device)
        losses: dict[str, float | Tensor] = {}
        for player, turns in self.steps.items():
            for turn, step in turns.items():
                for key, value in self._turn(player, step, batch, generator).items():
                    losses["/".join(filter(None, (player, turn, key)))] = value.detach()
        self.pending.append(losses)
        self._follow()
        self.done += 1

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
        self.scaler.unscale_(optimizer)  # gradients are complete: the place to average them over ranks
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
        parameters = dict(self.module.named_parameters())
        for key, tensor in _tensors(self.module).items():
            if key in parameters:
                self.average[key].lerp_(tensor, 1 - self.settings.ema)
            else:
                self.average[key].copy_(tensor)

    # ------------------------------------------------------------------------- curves and validation

    def _fetch_losses(self) -> None:
        """Pending losses as floats; all at once, since fetching each would stall a GPU in every iteration."""
        first = self.done - len(self.pending)
        for offset, losses in enumerate(self.pending):
            for key, value in losses.items():
                losses[key] = float(value)
                if key.rpartition("/")[2] == "loss" and not math.isfinite(losses[key]):
                    raise MethodError(
                        f"{self.name}: the {key} became {losses[key]} at iteration {first + offset + 1} of "
                        f"{self.settings.iterations}; lower learning_rate, or set clip_norm or warmup"
                    )

    def _log_losses(self) -> None:
        """Mean losses since the last point, and the learning rate of the last update."""
        self._fetch_losses()
        for key in self.pending[-1]:
            self._log(key, float(np.mean([losses[key] for losses in self.pending if key in losses])))
        self._log("learning_rate", learning_rate_at(self.settings, self.done - 1))
        self.pending = []

    def _log(self, key: str, value: float) -> None:
        curve = key if self.name == "train" else f"{self.name}/{key}"
        self.curves.append([curve, self.done, value])
        self.ctx.log(curve, self.done, value)

    def _validate(self, validate: Validate) -> None:
        self._fetch_losses()
        with self._averaged(), _evaluating(self.module), torch.no_grad():
            score = float(validate(self.module))
            if not math.isfinite(score):
                raise MethodError(f"{self.name}: the validation score became {score} at iteration {self.done}")
            self.score = score
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
        if self.best:
            load_weights(self.module, self.best)
            return TrainResult(self.best, self.best_score, self.best_iteration, resumed_at)
        if self.average is not None:
            load_weights(self.module, self.average)
        return TrainResult(weights_of(self.module), self.score, self.done, resumed_at)

    # ------------------------------------------------------------------------------------ checkpoints

    def _identity(self) -> str:
        """What must agree before a checkpoint is resumed."""
        shapes = {key: [str(t.dtype), *t.shape] for key, t in _tensors(self.module).items()}
        parts = [self.settings.model_dump(mode="json"), self.ctx.seed, list(self.steps), shapes, dict(self.rates)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _save(self) -> None:
        self._fetch_losses()
        write_checkpoint(
            self.path,
            {
                "identity": self._identity(),
                "done": self.done,
                "module": weights_of(self.module),
                "optimizers": {player: optimizer.state_dict() for player, optimizer in self.optimizers.items()},
                "scaler": self.scaler.state_dict(),
                "average": self.average,
                "best": self.best,
                "best_score": self.best_score,
                "best_iteration": self.best_iteration,
                "score": self.score,
                "curves": self.curves,
                "pending": self.pending,
            },
        )

    def _resume(self) -> None:
        saved = read_checkpoint(self.path)
        if saved is None:
            return
        if saved["identity"] != self._identity():
            logger.warning("%s belongs to other settings; training starts afresh", self.path)
            return
        load_weights(self.module, saved["module"])
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][player])
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if saved["average"] is not None:
            self.average = {key: tensor.to(self.ctx.device) for key, tensor in saved["average"].items()}
        self.done, self.score, self.pending = saved["done"], saved["score"], saved["pending"]
        self.best, self.best_score = saved["best"], saved["best_score"]
        self.best_iteration, self.curves = saved["best_iteration"], saved["curves"]
        for curve, iteration, value in self.curves:  # the killed attempt took its points with it
            self.ctx.log(curve, iteration, value)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that a kill at any moment leaves the old file or the new one.

    The file is what torch.save wrote, then its SHA-256 (torch itself does not notice a flipped bit).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w+b") as file:
        torch.save(dict(content), file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote, on the CPU; None, with a warning in the log, where that is not there whole."""
    if not path.exists():
        return None
    content = path.read_bytes()
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body).digest() != digest:
        logger.warning("%s is damaged; training starts afresh", path)
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def _tensors(module: nn.Module) -> Weights:
    """The module's own parameters and saved buffers by name, shared ones once."""
    saved = module.state_dict(keep_vars=True).keys()
    buffers = {key: tensor for key, tensor in module.named_buffers() if key in saved}
    return {**dict(module.named_parameters()), **buffers}


def _optimizer(module: nn.Module, settings: TrainingSettings, factors: Mapping[int, float]) -> torch.optim.Optimizer:
    """The update rule over the module's parameters, in groups of one factor of the rate; `factors` are by id."""
    groups: dict[float, list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault(factors.get(id(p), 1.0), []).append(p)
    parameters = [{"params": members, "factor": factor} for factor, members in groups.items()]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=settings.betas, weight_decay=decay)
    return torch.optim.Adam(parameters, lr=rate, betas=settings.betas, weight_decay=decay)


def _precision(settings: TrainingSettings, device: str) -> torch.dtype | None:
    """The lower precision to compute in; None for plain float32, which is what a CPU always gets."""
    if not device.startswith("cuda") or settings.amp == "off":
        return None
    if settings.amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if settings.amp == "bf16" else torch.float16


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

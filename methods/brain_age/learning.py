"""What the networks on slices share: their schedule in passes, ages, seeds, and how they are applied."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Context, MethodError, Settings, State, hyper
from harness.brain_age import AgeTraining, VolumeScan
from harness.training import TrainingSettings, TrainResult, load_weights, seeded, train
from methods.brain_age.augmentation import Augmentation

Network = TypeVar("Network", bound=nn.Module)


class PassTraining(TrainingSettings):
    """Optimisation that is told in passes over the training samples; a method overrides the defaults.

    in_passes: fields of the schedule that are counted in passes too, where `epochs` is.
    """

    in_passes: ClassVar[tuple[str, ...]] = ()

    epochs: int | None = hyper(
        50,
        "passes over the training samples, with a validation after each; null: `iterations` and `validate_every` "
        "count, and lengths that are told in passes are iterations",
        origin="ours",
        ge=1,
    )
    batch_size: int = hyper(16, "samples in a batch; also of prediction", origin="ours", ge=2)  # batch norm needs two

    def over(self, samples: int) -> Self:
        """The same with passes over so many samples as iterations."""
        if self.epochs is None:
            return self
        each = math.ceil(samples / self.batch_size)
        lengths = {name: each * getattr(self, name) for name in self.in_passes}
        return self.model_copy(update={"iterations": self.epochs * each, "validate_every": each, **lengths})


class AgeHead(nn.Linear):
    """A linear unit that computes in float32 whatever the precision around it: bf16 tells 38 weeks to a quarter."""

    def __init__(self, features: int, bias: float = 0.0):
        super().__init__(features, 1)
        nn.init.xavier_uniform_(self.weight)
        nn.init.constant_(self.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] to values [B]."""
        return (features.float() * self.weight[0]).sum(1) + self.bias


def known_ages(ages: np.ndarray, scans: Sequence[VolumeScan], split: str) -> np.ndarray:
    """`ages` as float64 [scans]. Raises MethodError where there is none, or one is not a number."""
    values = np.asarray(ages, np.float64)
    if not len(values):
        raise MethodError(f"there is no {split} scan; give that split more subjects")
    if (unknown := ~np.isfinite(values)).any():
        first = scans[int(unknown.argmax())].id
        raise MethodError(
            f"the ages of {int(unknown.sum())} {split} scans are unknown, first {first}; leave these scans out"
        )
    return values


def ages_to_learn(data: AgeTraining) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation ages, float64. Raises MethodError where one is unknown or nothing can be learnt."""
    ages = known_ages(data.ages, data.train.scans, "training")
    validation_ages = known_ages(data.validation_ages, data.validation.scans, "validation")
    if not ages.std() > 0:
        raise MethodError(f"all {len(ages)} training scans have the same age; there is nothing to learn")
    return ages, validation_ages


def scan_generator(scan: VolumeScan, seed: int) -> np.random.Generator:
    """A generator for a scan, the same whatever other scans there are."""
    digest = hashlib.sha256(f"{seed}/{scan.site}/{scan.id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def own_context(ctx: Context, number: int) -> Context:
    """The context with a seed of its own for one of several networks that one fit trains."""
    return replace(ctx, seed=int(np.random.default_rng([ctx.seed, number]).integers(2**62)))


Labelled = tuple[np.ndarray, np.ndarray]
"""Slices of scans [scans, C, H, W], float16, and ages [scans]."""


def learnt(
    build: Callable[[float], nn.Module],
    training: Labelled,
    validation: Labelled,
    settings: PassTraining,
    augmentation: Augmentation,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    error: Callable[[np.ndarray, np.ndarray], float],
    ctx: Context,
    name: str,
) -> TrainResult:
    """A network trained from one sample for each scan; scans are drawn with replacement.

    build: from the mean age of training. loss: of outputs [B, ...] and ages [B]. error: of the outputs of all
    validation scans, float64 [scans, ...], and their ages; its least chooses the weights.
    """
    pixels, ages = training
    with seeded(ctx.seed, ctx.device):
        network = build(float(ages.mean()))

    def batches(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(len(ages), size=size)
        return samples(pixels[chosen]), torch.from_numpy(ages[chosen].astype(np.float32))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        return loss(module(augmentation.random(batch[0], generator)), batch[1])

    def validate(module: nn.Module) -> float:
        return -error(applied(module, validation[0], settings.batch_size, ctx.device), validation[1])

    return train(network, settings.over(len(ages)), batches, step, ctx=ctx, validate=validate, name=name)


def samples(pixels: np.ndarray) -> Tensor:
    """float16 [B, C, H, W] as kept, as a float32 tensor."""
    return torch.from_numpy(pixels.astype(np.float32))


def batches_of(count: int, size: int) -> Iterator[slice]:
    """Slices of 0..count in turn, each `size` long but the last."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@torch.inference_mode()
def applied(network: nn.Module, pixels: np.ndarray, batch_size: int, device: str) -> np.ndarray:
    """What a network in eval mode says of samples [N, C, H, W], float64 [N, ...]."""
    outputs = [network(samples(pixels[b]).to(device)).cpu().numpy() for b in batches_of(len(pixels), batch_size)]
    return np.concatenate(outputs).astype(np.float64)


def kept(result: TrainResult, prefix: str) -> State:
    """Weights as "PREFIX.NAME"."""
    return {f"{prefix}.{key}": tensor for key, tensor in result.state_dict.items()}


def enter(state: State, result: TrainResult, prefix: str) -> None:
    """Add a network to the state of a fit that trains several: weights, and score and iteration beside the others."""
    state |= kept(result, prefix)
    state["score"] = [*state.get("score", []), result.score]
    state["iteration"] = [*state.get("iteration", []), result.iteration]


def restored(network: Network, state: State, prefix: str, device: str) -> Network:
    """The network with the weights that `kept` named, frozen and in eval mode, on the device."""
    head = f"{prefix}."
    load_weights(network, {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)})
    return network.eval().requires_grad_(False).to(device)


def departures(settings: Settings) -> tuple[str, ...]:
    """One phrase that names the fields with another value than the published one, () where there is none.

    Fields whose default is ours are left out: nothing is published about them.
    """
    changed = [name for name, field in _published(settings, "") if field]
    return (f"not as published: {', '.join(changed)}",) if changed else ()


def _published(settings: Settings, path: str) -> Iterator[tuple[str, bool]]:
    """Names of the fields with a published default, those of groups included, and whether the value differs."""
    for name, field in type(settings).model_fields.items():
        value, default = getattr(settings, name), field.get_default(call_default_factory=True)
        if isinstance(value, Settings):
            yield from _published(value, f"{path}{name}.")
        else:
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, Mapping) else {}
            if not str(extra.get("origin", "")).startswith("ours"):
                yield f"{path}{name}", value != default

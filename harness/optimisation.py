"""How weights are updated: the hyper-parameters that every training has, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from harness.api import Settings, hyper


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

    schedule: Literal["constant", "step", "cosine", "linear", "inverse_time"] = hyper(
        "constant", "course of the rate", origin="ours"
    )
    step_every: int = hyper(500, "step: iterations between two drops", origin="ours", ge=1)
    step_factor: float = hyper(0.5, "step: factor of a drop", origin="ours", gt=0, le=1)
    step_drops: int | None = hyper(None, "step: most drops; null: no limit", origin="ours", ge=1)
    cosine_final: float = hyper(0.0, "cosine: final rate as a fraction of the first", origin="ours", ge=0, le=1)
    cosine_stretch: float = hyper(
        1.0, "cosine: length of the whole curve over that of the training, which ends on its way", origin="ours", ge=1
    )
    linear_from: float = hyper(
        0.5, "linear: fraction of the iterations at the full rate, which then falls to 0", origin="ours", ge=0, lt=1
    )
    inverse_decay: float = hyper(
        1e-3, "inverse_time: the rate is divided by 1 + this × the number of decays so far", origin="ours", ge=0
    )
    inverse_every: int = hyper(1, "inverse_time: iterations between two decays", origin="ours", ge=1)
    inverse_after: int = hyper(
        0, "inverse_time: iterations at the full rate, during which decays are counted", origin="ours", ge=0
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
    patience: int | None = hyper(
        None, "validations in a row without a new best after which training ends; null: never", origin="ours", ge=1
    )
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


def learning_rate_at(settings: TrainingSettings, iteration: int) -> float:
    """Learning rate of the update with this 0-based index.

    Warmup rises linearly and reaches the full rate at index `warmup - 1`. Drops of "step" are counted from
    index 0; "cosine" runs from the end of warmup to the last index, where it is rate × `cosine_final` unless
    stretched; "linear" is full until `linear_from` and would be 0 just after the last index, so that no update is void;
    "inverse_time" counts its decays from index 0, so the rate drops at once where `inverse_after` ends.
    """
    rate = settings.learning_rate
    if settings.schedule == "step":
        drops = iteration // settings.step_every
        rate *= settings.step_factor ** (drops if settings.step_drops is None else min(drops, settings.step_drops))
    elif settings.schedule == "cosine":
        span = max(1, settings.iterations - 1 - settings.warmup)
        progress = min(1.0, max(0, iteration - settings.warmup) / span) / settings.cosine_stretch
        floor = settings.cosine_final
        rate *= floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    elif settings.schedule == "linear":
        decay = settings.iterations * (1 - settings.linear_from)
        rate *= min(1.0, max(0.0, (settings.iterations - iteration) / decay))
    elif settings.schedule == "inverse_time" and iteration >= settings.inverse_after:
        rate /= 1 + settings.inverse_decay * (iteration // settings.inverse_every)
    return rate * min(1.0, (iteration + 1) / settings.warmup) if settings.warmup else rate


def optimizer_of(module: nn.Module, settings: TrainingSettings, factors: Mapping[int, float]) -> torch.optim.Optimizer:
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


def precision_of(settings: TrainingSettings, device: str) -> torch.dtype | None:
    """The lower precision to compute in; None for plain float32, which is what a CPU always gets."""
    if not device.startswith("cuda") or settings.amp == "off":
        return None
    if settings.amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if settings.amp == "bf16" else torch.float16

"""Adaptation to a target: the harmoniser learns until its output is likely under the frozen flow of the source."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import torch

from harness.api import Context, ImageSet, MethodError
from harness.training import Weights, load_weights, read_checkpoint, seeded, weights_of, write_checkpoint
from methods.harmonization.harmonizing_flows.flow import SliceFlow
from methods.harmonization.harmonizing_flows.harmonizer_net import HarmonizerNet, harmonized
from methods.harmonization.harmonizing_flows.learning import mean_bpd
from methods.harmonization.harmonizing_flows.settings import Adaptation
from methods.harmonization.harmonizing_flows.slices import Crops

EPOCH_DRAWS = 3  # a stream of random numbers beside those of `learning`


@dataclass(frozen=True)
class Trajectory:
    """The harmoniser after each epoch, and the mean bits per dimension of the target it then makes; 0: before any."""

    weights: tuple[Weights, ...]
    bpd: tuple[float, ...]


def adapt_harmonizer(
    network: HarmonizerNet,
    flow: SliceFlow,
    images: ImageSet,
    crops: Crops,
    settings: Adaptation,
    source_bpd: float,
    ctx: Context,
) -> Trajectory:
    """Minimise the mean bits per dimension of harmonised random windows, `max_epochs` times over the slices.

    The network ends as after the last epoch. Curves "bpd" (target) and "source_bpd" have a point for each epoch.
    Each epoch is kept in `ctx.scratch`; a run that was killed goes on after the last and ends with the same bits.
    Raises MethodError where the bits per dimension are not finite.
    """
    network.to(ctx.device).train()
    flow.to(ctx.device).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    identity = _identity(settings, crops, images, ctx)
    weights, curve = [], []
    with seeded(ctx.seed, ctx.device):
        for epoch in range(settings.max_epochs + 1):
            path = ctx.scratch / f"epoch-{epoch}.checkpoint"
            saved = read_checkpoint(path)
            if saved is not None and saved["identity"] == identity:
                load_weights(network, saved["weights"])
                optimizer.load_state_dict(saved["optimizer"])
                after, bpd = saved["weights"], saved["bpd"]
            else:
                if epoch:
                    _learn(network, flow, images, crops, settings, optimizer, epoch, ctx)
                after, bpd = weights_of(network), mean_bpd(flow, images, crops, settings.batch_size, ctx, network)
                _check_finite(bpd, epoch)
                content = {"identity": identity, "weights": after, "optimizer": optimizer.state_dict(), "bpd": bpd}
                write_checkpoint(path, content)
            weights.append(after)
            curve.append(bpd)
            ctx.log("bpd", epoch, bpd)
            ctx.log("source_bpd", epoch, source_bpd)
    return Trajectory(tuple(weights), tuple(curve))


def _learn(
    network: HarmonizerNet,
    flow: SliceFlow,
    images: ImageSet,
    crops: Crops,
    settings: Adaptation,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    ctx: Context,
) -> None:
    """One pass over the slices in random order, in batches of nearly equal size."""
    rng = np.random.default_rng([ctx.seed, EPOCH_DRAWS, epoch])
    generator = torch.Generator(ctx.device).manual_seed(int(rng.integers(2**62)))
    batches = math.ceil(len(images) / settings.batch_size)
    for index in np.array_split(rng.permutation(len(images)), batches):
        pixels, mask = crops.random(images, np.sort(index), rng)
        bpd = flow(harmonized(network, pixels.to(ctx.device), mask.to(ctx.device)), generator).mean()
        optimizer.zero_grad(set_to_none=True)
        bpd.backward()
        optimizer.step()


def _identity(settings: Adaptation, crops: Crops, images: ImageSet, ctx: Context) -> str:
    """What must agree before an epoch is taken over from an earlier attempt, beside the place of its file."""
    parts = [settings.model_dump(mode="json"), crops.size, crops.shift, crops.multiple, len(images), ctx.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_finite(bpd: float, epoch: int) -> None:
    if not math.isfinite(bpd):
        raise MethodError(
            f"harmonizing_flows: the target's bits per dimension became {bpd} in epoch {epoch}; lower "
            "adaptation.learning_rate"
        )

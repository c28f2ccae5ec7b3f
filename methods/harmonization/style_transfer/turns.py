"""Training in which a player moves several times in an iteration, with one optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.api import Context
from harness.training import Batches, Step, TrainingSettings, TrainResult, _Loop


def train_by_turns(
    module: nn.Module,
    settings: TrainingSettings,
    batches: Batches,
    steps: Mapping[str, Mapping[str, Step]],
    *,
    ctx: Context,
    rates: Mapping[str, float],
) -> TrainResult:
    """`harness.training.train` with steps {player: {turn: step}}.

    In each iteration a player takes its turns in order, on one batch, before the next player moves. Curves are named
    "player/turn/loss".
    """
    module.to(ctx.device)
    return _Turns(module, settings, batches, steps, ctx, rates).run()


class _Turns(_Loop):
    """The training loop, in which what it takes for a player's turn is all turns of the player."""

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingSettings,
        batches: Batches,
        steps: Mapping[str, Mapping[str, Step]],
        ctx: Context,
        rates: Mapping[str, float],
    ):
        first = {player: next(iter(turns.values())) for player, turns in steps.items()}
        super().__init__(module, settings, batches, first, ctx, None, "train", rates)
        self.turns = steps

    def _turn(self, player: str, batch: Any, generator: torch.Generator) -> Mapping[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for turn, step in self.turns[player].items():
            self.steps = {**self.steps, player: step}
            for key, value in super()._turn(player, batch, generator).items():
                losses[f"{turn}/{key}"] = value
        return losses

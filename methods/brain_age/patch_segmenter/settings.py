"""How the segmenter is trained, in passes over the patches."""

from __future__ import annotations

from typing import Literal, Self

from harness.api import hyper
from harness.training import TrainingSettings

THESIS = "thesis ch. 6"
CODE = "authors' code"


class PatchTraining(TrainingSettings):
    """Adam at 0.01 for 100 passes over the patches; from the 21st on at a quarter of that.

    The thesis has 0.001, halved every 20 passes (`learning_rate: 0.001, step_factor: 0.5, step_drops: null`), and
    batches of 32 patches of 64³.
    """

    epochs: float | None = hyper(
        100,
        "passes over the training patches, with a validation after each; null: `iterations`, `step_every` and "
        "`validate_every` count",
        origin=CODE,
        gt=0,
    )
    drop_epochs: float = hyper(20, "step: passes between two drops, where `epochs` is set", origin=CODE, gt=0)
    iterations: int = hyper(20_000, "updates, where `epochs` is null", origin="ours", ge=1)
    batch_size: int = hyper(8, "patches in a batch", origin=f"{CODE}; 32 of 64³ in the {THESIS}", ge=1)
    learning_rate: float = hyper(
        1e-2, "learning rate of the first updates", origin=f"{CODE}; 1e-3 in the {THESIS}", ge=0
    )
    betas: tuple[float, float] = hyper((0.9, 0.99), "moments of adam", origin=CODE)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("step", "course of the rate", origin=CODE)
    step_factor: float = hyper(0.25, "step: factor of a drop", origin=f"{CODE}; 0.5 in the {THESIS}", gt=0, le=1)
    step_drops: int | None = hyper(
        1, "step: most drops; null: no limit", origin=f"{CODE}; no limit in the {THESIS}", ge=1
    )
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin=CODE)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "auto", "mixed precision on a GPU", origin="ours; the code computes in float32"
    )
    checkpoint_every: int = hyper(500, "iterations between two checkpoints", origin="ours", ge=1)

    def over(self, patches: int) -> Self:
        """The same with passes over so many patches as iterations."""
        if self.epochs is None:
            return self
        epoch = patches / self.batch_size
        lengths = {"iterations": self.epochs, "step_every": self.drop_epochs, "validate_every": 1}
        return self.model_copy(update={name: max(1, round(n * epoch)) for name, n in lengths.items()})

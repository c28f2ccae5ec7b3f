"""Synthetic material for the conformance checks: two sites of one anatomy in different contrast, and a task model.

Small, made in milliseconds, the same each time. Nothing here is meant to be realistic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api import AgeSet, Augment, Context, ImageSet, LabelSet, Scan, State, TaskData, TaskHandle, TaskModel

if TYPE_CHECKING:
    import torch

SIZE = 64  # pixels a side: five halvings of a U-Net leave 2
SLICES = 4  # a scan
NAMES = ("background", "csf", "grey", "white")
SOURCE_LEVELS = (40, 110, 180)  # grey levels of csf, grey and white matter
TARGET_LEVELS = (80, 120, 150)
UNUSED = ("1.num_batches_tracked",)  # batch normalisation reads it only without a momentum


@dataclass(frozen=True)
class Material:
    """Three splits of the source site, two of the target site. Pixels are uint8."""

    source: ImageSet
    source_labels: LabelSet
    validation: ImageSet
    validation_labels: LabelSet
    target: ImageSet
    test: ImageSet

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by a readable name, such as "source.pixels"."""
        found = {}
        for entry in fields(self):
            part = getattr(self, entry.name)
            for name in ("labels",) if isinstance(part, LabelSet) else ("pixels", "mask"):
                found[f"{entry.name}.{name}"] = getattr(part, name)
        return found

    def locked(self) -> Material:
        """Itself, its arrays made read-only as those of a run are."""
        for array in self.arrays().values():
            array.flags.writeable = False
        return self

    @property
    def task_data(self) -> TaskData:
        return TaskData(self.source, self.source_labels, self.validation, self.validation_labels)

    @property
    def age_data(self) -> TaskData:
        """The same images without ages, and the ages apart."""
        parts = [(ageless(images), _ages(images.scans)) for images in (self.source, self.validation)]
        return TaskData(*parts[0], *parts[1])


def make_material() -> Material:
    """New, writable arrays of the same values at each call."""
    source, source_labels = _split("a", "train", 4, SOURCE_LEVELS, seed=1)
    validation, validation_labels = _split("a", "validation", 2, SOURCE_LEVELS, seed=2)
    target, _ = _split("b", "train", 3, TARGET_LEVELS, seed=3)
    test, _ = _split("b", "test", 3, TARGET_LEVELS, seed=4)
    return Material(source, source_labels, validation, validation_labels, target, test)


def _ages(scans: tuple[Scan, ...]) -> AgeSet:
    return AgeSet(np.array([scan.age for scan in scans], np.float64), scans)


def ageless(images: ImageSet) -> ImageSet:
    """The images as a task that predicts age is handed them."""
    return replace(images, scans=tuple(replace(scan, age=None) for scan in images.scans))


def _split(site: str, split: str, n: int, levels: tuple[int, ...], seed: int) -> tuple[ImageSet, LabelSet]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([_anatomy(rng) for _ in range(n)])
    shading = np.linspace(0.95, 1.05, SIZE)  # along columns: a bias field
    noisy = np.array((0, *levels))[labels] * shading + rng.normal(0, 4, labels.shape)
    mask = labels > 0
    pixels = np.where(mask, np.clip(noisy, 1, 255), 0).astype(np.uint8)
    scans = tuple(
        Scan(
            id=f"{site}-{split}-{i}",
            subject=f"{site}-{split}-{i}",
            site=site,
            start=i * SLICES,
            stop=(i + 1) * SLICES,
            spacing=(3.0, 1.0, 1.0),
            age=float(rng.integers(20, 70)),
            sex="F" if i % 2 else "M",
        )
        for i in range(n)
    )
    return ImageSet(pixels, mask, scans), LabelSet(labels, NAMES, scans)


def _anatomy(rng: np.random.Generator) -> np.ndarray:
    """Labels uint8 [SLICES, SIZE, SIZE] of nested ellipses that vary from person to person."""
    height, width = rng.uniform(24, 29, 2)
    offset = np.arange(SIZE) - (SIZE - 1) / 2
    labels = np.zeros((SLICES, SIZE, SIZE), np.uint8)
    for i, shrink in enumerate(np.linspace(1.0, 0.8, SLICES)):
        radius = np.hypot(offset[:, None] / (height * shrink), offset / (width * shrink))
        for label, edge in ((1, 1.0), (2, 0.85), (3, 0.55)):
            labels[i][radius < edge] = label
    return labels


class ToyTask(TaskModel):
    """A segmenter of two convolutions with batch normalisation, for the checks of adapters only."""

    id = "toy_task"
    reference = "ours"

    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        """A few steps, so that predictions are neither random nor certain."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(ctx.seed)
            network = _layers(data.n_labels).train()
        pixels = torch.from_numpy(data.images.floats())[:, None]
        labels = torch.from_numpy(data.labels.labels.astype(np.int64))
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(pixels), labels).backward()
            optimizer.step()
        state = network.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state.items() if name not in UNUSED}

    def network(self, state: State) -> torch.nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            network = _layers(len(state["3.bias"]))
        network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
        return network.eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = self.network(state)(torch.from_numpy(images.floats())[:, None])
        return logits.argmax(1).numpy().astype(np.uint8)


def _layers(n_labels: int) -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, n_labels, 3, padding=1)
    )


def make_task() -> TaskHandle:
    """`ToyTask` trained on the source; its state is a new copy of the same values at each call."""
    return TaskHandle(ToyTask(), {name: array.copy() for name, array in _trained().items()}, "cpu")


@lru_cache(maxsize=1)
def _trained() -> State:
    ctx = Context(seed=0, device="cpu", scratch=Path(), log=lambda *_: None)  # writes nothing
    return ToyTask().train(make_material().task_data, ctx)


# --------------------------------------------------------------------------------------------- anomalies


@dataclass(frozen=True)
class AnomalyMaterial:
    """Healthy slices of two splits of one site, and slices of its third split with a bright or a dark disc each."""

    images: ImageSet
    validation: ImageSet
    test: ImageSet

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by a readable name, such as "test.pixels"."""
        return {
            f"{entry.name}.{name}": getattr(getattr(self, entry.name), name)
            for entry in fields(self)
            for name in ("pixels", "mask")
        }

    def locked(self) -> AnomalyMaterial:
        """Itself, its arrays made read-only as those of a run are."""
        for array in self.arrays().values():
            array.flags.writeable = False
        return self


def make_anomaly_material() -> AnomalyMaterial:
    """New, writable arrays of the same values at each call."""
    images, validation, test = (
        _contrast(_split("a", split, n, SOURCE_LEVELS, seed)[0], "FLAIR")
        for split, n, seed in (("train", 4, 1), ("validation", 2, 2), ("test", 3, 5))
    )
    rng = np.random.default_rng(6)
    offset = np.arange(SIZE) - (SIZE - 1) / 2
    for i, pixels in enumerate(test.pixels):
        row, column = rng.uniform(-9, 9, 2)
        disc = np.hypot(offset[:, None] - row, offset - column) < rng.uniform(3, 5)
        pixels[disc & test.mask[i]] = 20 if i % 4 == 3 else 245
    return AnomalyMaterial(images, validation, test)


def without_brain(images: ImageSet) -> ImageSet:
    """A single empty slice of the same size."""
    shape = (1, *images.pixels.shape[1:])
    scan = replace(images.scans[0], id="empty", subject="empty", start=0, stop=1)
    return ImageSet(np.zeros(shape, images.pixels.dtype), np.zeros(shape, bool), (scan,))


def _contrast(images: ImageSet, modality: str) -> ImageSet:
    return replace(images, scans=tuple(replace(scan, modality=modality) for scan in images.scans))

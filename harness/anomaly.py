"""What an author of an anomaly detector imports beside `harness.api`: the families, and the data they are handed.

A detector learns from images without lesions and maps how abnormal each pixel of other images is. It is never handed
a label of any split: labels choose healthy slices while the data is prepared, and score the maps, both outside it.

    from harness.anomaly import AnomalyDetector, AnomalyMaps, NormalData
    from harness.api import Context, ImageSet, State, hyper

    class MeanImage(AnomalyDetector):
        \"\"\"Distance to the mean of the healthy slices.\"\"\"

        id = "mean_image"
        reference = "ours"

        def fit(self, data: NormalData, ctx: Context) -> State:
            return {"mean": data.images.floats().mean(0)}

        def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
            return AnomalyMaps(np.abs(images.floats() - state["mean"]))

What several methods learn alike (an autoencoder, a diffusion model) is a `Component`: a field of each method that uses
it. Equal components on equal data are learnt once in a benchmark, whoever asks for them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from harness.api import AccessDenied, Context, ImageSet, Method, Settings, State, hyper


@dataclass(frozen=True, eq=False)
class NormalData:
    """What is learnt from: slices without a lesion. Neither labels nor test images can be reached from here.

    images:     training slices. validation: slices of other subjects, for model selection and for thresholds.
    components: name → state of each of the learner's `components`.
    """

    images: ImageSet
    validation: ImageSet
    components: Mapping[str, State] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> None:
        """Never handed over."""
        raise AccessDenied("labels are never handed to an anomaly detector")


@dataclass(frozen=True, eq=False)
class AnomalyMaps:
    """What a detector says of an image set of N slices.

    maps:           [N, H, W], finite numbers, the higher the more abnormal; any range, the same for all slices. Set to
                    0 outside the brain mask by the harness, so maps must not be negative inside it.
    reconstruction: [N, H, W] in [0, 1], what the method takes for the healthy image; None where it has none.
    image_scores:   [N], finite; None takes the largest value of each slice's map.
    """

    maps: np.ndarray
    reconstruction: np.ndarray | None = None
    image_scores: np.ndarray | None = None


class Processing(Settings):
    """What is done to maps after a method, in the order of the fields; lengths are in pixels of slices of 128 × 128.

    They are scaled to the slices at hand: lengths by their side over 128, areas by its square. All zero: nothing.
    """

    erode: int = hyper(0, "pixels by which the mask is eroded, with a cross; maps are 0 outside", origin="ours", ge=0)
    median: int = hyper(0, "side of a median filter within a slice; 0 or 1: none", origin="ours", ge=0)
    smooth: float = hyper(0.0, "standard deviation of a Gaussian filter", origin="ours", ge=0)
    smallest: int = hyper(
        0, "connected regions of at most so many pixels are removed, at every threshold alike", origin="ours", ge=0
    )


class _Learner(Method, ABC):
    """What detectors and components share."""

    def components(self) -> Mapping[str, Component]:
        """What must be learnt before, by name: usually the fields that are components."""
        return {}

    def files(self) -> tuple[str, ...]:
        """Files, or folders of them, that these settings have it read.

        Their contents count, wherever they lie, and a run does not start without them.
        """
        return ()

    def all_files(self) -> tuple[str, ...]:
        """Its own files and those of all its components, theirs included."""
        of_components = (path for component in self.components().values() for path in component.all_files())
        return tuple(dict.fromkeys((*self.files(), *of_components)))


class Component(_Learner, ABC):
    """Something that is learnt from healthy slices and used by several methods; a field of theirs.

    All its fields count: two components that differ in one are learnt apart.
    """

    family: ClassVar[str] = "component"

    @abstractmethod
    def fit(self, data: NormalData, ctx: Context) -> State:
        """Learn from healthy slices."""


class AnomalyDetector(_Learner, ABC):
    """Maps how abnormal each pixel is, having learnt from healthy slices only.

    late_fields: fields that only `detect` and `illustrate` read: changing one learns nothing anew.
    """

    family: ClassVar[str] = "detector"
    late_fields: ClassVar[tuple[str, ...]] = ()

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Learn what no component does. Left out by methods that have nothing of their own to learn."""
        raise NotImplementedError

    def has_fit(self) -> bool:
        """Whether `fit` is called."""
        return type(self).fit is not AnomalyDetector.fit

    @abstractmethod
    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        """Maps of images that may hold lesions.

        state: what `fit` returned, and entry E of component C as "C.E" (see `part`). A slice's map must depend on that
        slice alone: draw what is random from `slice_generators`, and normalise over no other slice. Networks that are
        called here are marked with `harness.cost.counted`.
        """

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """Pictures of how the method came to its maps: caption → [N, H, W] in [0, 1], in the order to be shown.

        Called with a few slices that were chosen outside, for the report; nothing of it is scored.
        """
        return {}

    def published_processing(self) -> Processing:
        """What the publication does to its maps before it scores them, as far as `detect` leaves it out."""
        return Processing()

    def deviations(self) -> tuple[str, ...]:
        """Where these settings depart from the publication, a phrase each; shown with the row."""
        return ()


def part(state: State, name: str) -> State:
    """The entries of one component in the state that `detect` is handed: "C.E" as "E"."""
    head = f"{name}."
    return {entry.removeprefix(head): value for entry, value in state.items() if entry.startswith(head)}


def slice_generators(images: ImageSet, seed: int) -> Iterator[np.random.Generator]:
    """A generator for each slice, the same whatever other slices are in the set."""
    for scan in images.scans:
        for offset in range(scan.stop - scan.start):
            digest = hashlib.sha256(f"{seed}/{scan.site}/{scan.id}/{offset}".encode()).digest()
            yield np.random.default_rng(int.from_bytes(digest[:8], "big"))

"""All that a plugin author imports: method families, their traits, and the data they are handed.

A method is one class in one module. Its pydantic fields are its hyper-parameters, with the published values
as defaults; its class attributes are its card and its traits. Traits are enforced, not declared: the plan
wires a stage's inputs from them, and what was not wired cannot be reached from the objects below.

    from harness.api import ApplyData, Context, FitData, Harmonizer, State, hyper

    class MeanShift(Harmonizer):
        \"\"\"Shift every scan to the mean brain intensity of the source site.\"\"\"

        id = "mean_shift"
        reference = "ours"
        source_free, task_agnostic, unknown_domains = True, True, True
        strength: float = hyper(1.0, "fraction of the shift that is applied", origin="ours", ge=0, le=1)

        def fit(self, data: FitData, ctx: Context) -> State: ...
        def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch

State = dict[str, Any]
"""What a fit leaves: names to numpy arrays, torch tensors, or JSON values. Saved as safetensors + JSON."""


class AccessDenied(Exception):
    """A method asked for data that its traits, or the protocol, withhold from it."""


class MethodError(Exception):
    """A method broke its contract: wrong shape, wrong range, or values that are not finite."""


# ---------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Scan:
    """One scan inside an `ImageSet`: which slices are its own, and what is known of the person.

    `spacing` is in mm along (slice, row, column). `age` is in years, None where unknown.
    """

    id: str
    subject: str
    site: str
    start: int
    stop: int
    spacing: tuple[float, float, float]
    age: float | None = None
    sex: Literal["F", "M"] | None = None

    @property
    def slices(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class ImageSet:
    """Slices of one site and split, scan after scan.

    pixels: [N, H, W], uint8 (grey levels 0..255) or float32 in [0, 1]; often memory-mapped and read-only.
    mask:   [N, H, W] bool, the brain. Pixels outside it are exactly 0.
    scans:  in order; together their slices cover 0..N.
    """

    pixels: np.ndarray
    mask: np.ndarray
    scans: tuple[Scan, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def floats(self, index: Any = slice(None)) -> np.ndarray:
        """Pixels[index] as a new float32 array in [0, 1]."""
        chosen = np.asarray(self.pixels[index])
        if chosen.dtype == np.uint8:
            return chosen.astype(np.float32) / np.float32(255)
        return chosen.astype(np.float32)

    def volumes(self) -> Iterator[tuple[Scan, np.ndarray, np.ndarray]]:
        """(scan, float32 [n, H, W] in [0, 1], bool mask [n, H, W]) for each scan in turn."""
        for scan in self.scans:
            yield scan, self.floats(scan.slices), np.asarray(self.mask[scan.slices])

    def with_pixels(self, pixels: np.ndarray) -> ImageSet:
        """The same scans and masks with other pixels of the same shape."""
        return replace(self, pixels=pixels)


@dataclass(frozen=True)
class LabelSet:
    """Labels of an `ImageSet`: labels [N, H, W] uint8, 0 = background; `names[i]` names label i."""

    labels: np.ndarray
    names: tuple[str, ...]
    scans: tuple[Scan, ...]


@dataclass(frozen=True)
class Context:
    """What a method may know of its run.

    seed: derived from the cell's identity, so it never depends on what else is in the benchmark.
    device: "cpu" or "cuda"; the only device a method may use.
    scratch: a folder that survives a kill and is handed to the next attempt; checkpoints go there.
    log: `ctx.log("loss", step, value)` keeps a point of a curve, for MLflow and the report.
    """

    seed: int
    device: str
    scratch: Path
    log: Callable[[str, int, float], None]

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@dataclass(frozen=True)
class _Granted:
    """Inputs of a method's stage. Reading one that was not granted raises `AccessDenied`, which says why."""

    granted: Mapping[str, Any] = field(repr=False)
    reasons: Mapping[str, str] = field(default_factory=dict, repr=False)

    def _get(self, name: str) -> Any:
        if name not in self.granted:
            raise AccessDenied(self.reasons.get(name, f"{name} is not handed to this stage"))
        return self.granted[name]

    @property
    def labels(self) -> LabelSet:
        """Never granted: labels belong to task training and to scoring, outside the methods."""
        raise AccessDenied("labels are never handed to a harmonisation or adaptation method")


class FitData(_Granted):
    """What `fit` may read, wired from the method's traits."""

    @property
    def source(self) -> ImageSet:
        """Training images of the source site. Withheld from a source-free method that fits on the target."""
        return self._get("source")

    @property
    def target(self) -> ImageSet:
        """Training images of the target site. Only where `unknown_domains` is False."""
        return self._get("target")


class ApplyData(_Granted):
    """What `harmonize` and `adapt` may read, wired from the method's traits."""

    @property
    def target(self) -> ImageSet:
        """The test images to harmonise or predict, without labels."""
        return self._get("target")

    @property
    def source(self) -> ImageSet:
        """Training images of the source site as references. Only where `source_free` is False."""
        return self._get("source")

    @property
    def task(self) -> TaskHandle:
        """The trained task model. Only where `task_agnostic` is False."""
        return self._get("task")


@dataclass(frozen=True)
class TaskData:
    """Inputs of task training: source images and labels, and the validation split of the same site."""

    images: ImageSet
    labels: LabelSet
    validation_images: ImageSet
    validation_labels: LabelSet

    @property
    def n_labels(self) -> int:
        """Number of labels, background included."""
        return len(self.labels.names)


@dataclass(frozen=True)
class TaskHandle:
    """A trained task model in the hands of a test-time adapter."""

    model: TaskModel
    state: State
    device: str

    def network(self) -> torch.nn.Module:
        """A fresh copy of the trained network on the device: [B, 1, H, W] in [0, 1] to logits [B, C, H, W]."""
        return self.model.network(self.state).to(self.device)


# ------------------------------------------------------------------------------------------- methods


def hyper(default: Any, doc: str, *, origin: str, **constraints: Any) -> Any:
    """A hyper-parameter: its default, what it means, and where the default comes from.

    `origin` names the paper's equation, table or section, the public code, or "ours". `constraints` are
    pydantic's (`ge`, `gt`, `le`, `lt`, `min_length` ...). A mutable default is copied for each instance.
    """
    if isinstance(default, list | dict | set | BaseModel):
        return Field(
            default_factory=lambda: default.model_copy() if isinstance(default, BaseModel) else default.copy(),
            description=doc,
            json_schema_extra={"origin": origin},
            **constraints,
        )
    return Field(default, description=doc, json_schema_extra={"origin": origin}, **constraints)


class Settings(BaseModel):
    """Base of every group of hyper-parameters: frozen, unknown keys refused, defaults checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Method(Settings, ABC):
    """Base of every plugin. Subclass a family below, never this class."""

    id: ClassVar[str]
    family: ClassVar[str]
    reference: ClassVar[str]
    notes: ClassVar[str] = ""
    """What is reconstructed or our choice; printed on the card."""

    @classmethod
    def example(cls) -> Self:
        """Settings for the conformance checks: seconds on 64 × 64 slices. Heavy methods override this."""
        return cls()


class Adaptive(Method, ABC):
    """What harmonisers and adapters share: three traits, and an optional fit before any test image is seen.

    source_free:     no source image is needed once the method has left the source site.
    task_agnostic:   works without labels and without the task model.
    unknown_domains: works on a site never seen before; `fit` sees no image of the target.
    """

    source_free: ClassVar[bool]
    task_agnostic: ClassVar[bool]
    unknown_domains: ClassVar[bool]

    def fit(self, data: FitData, ctx: Context) -> State:
        """Learn from training images. Left out by methods that learn nothing beforehand.

        Runs once per source where `unknown_domains`, else once per (source, target).
        """
        raise NotImplementedError

    @classmethod
    def has_fit(cls) -> bool:
        return cls.fit is not Adaptive.fit


class Harmonizer(Adaptive, ABC):
    """Maps images of a target site to the look of the source site."""

    family: ClassVar[str] = "harmonizer"
    task_agnostic: ClassVar[bool] = True

    @abstractmethod
    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """`data.target` in source intensities: float32 [N, H, W] in [0, 1], finite.

        Whatever is written outside the brain mask is set to 0 by the harness. `state` is what `fit` returned,
        {} where the method has no fit.
        """


class TestTimeAdapter(Adaptive, ABC):
    """Adapts the trained task model to the target's test images, without labels, and predicts."""

    __test__: ClassVar[bool] = False  # the name starts with "Test": keep pytest from collecting it
    family: ClassVar[str] = "adapter"
    task_agnostic: ClassVar[bool] = False

    @abstractmethod
    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Predicted labels of `data.target`: uint8 [N, H, W], each in 0..C-1."""


class TaskModel(Method, ABC):
    """The model of the downstream task, trained on raw source images and shared by all methods."""

    family: ClassVar[str] = "task"

    @abstractmethod
    def train(self, data: TaskData, ctx: Context) -> State:
        """Train on the source site; select on its validation split."""

    @abstractmethod
    def network(self, state: State) -> torch.nn.Module:
        """The trained network on the CPU: [B, 1, H, W] float32 in [0, 1] to logits [B, C, H, W]."""

    @abstractmethod
    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        """Predicted labels, uint8 [N, H, W]."""


Family = Harmonizer | TestTimeAdapter | TaskModel

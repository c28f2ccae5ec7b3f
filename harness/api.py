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

    `spacing` is in mm along (slice, row, column). `age` is in the data set's unit (years; weeks of postmenstrual
    age for newborns), None where unknown, and in benchmarks whose task is to predict it. `modality` is the data set's
    word for the contrast, such as "T1w" or "FLAIR"; "" where it does not say.
    """

    id: str
    subject: str
    site: str
    start: int
    stop: int
    spacing: tuple[float, float, float]
    age: float | None = None
    sex: Literal["F", "M"] | None = None
    modality: str = ""

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

    def per_scan(self, values: np.ndarray) -> np.ndarray:
        """Mean over each scan's slices of `values` [N], float64 [number of scans]."""
        return np.array([np.asarray(values[scan.slices], np.float64).mean() for scan in self.scans])


@dataclass(frozen=True)
class LabelSet:
    """Labels of an `ImageSet`: labels [N, H, W] uint8, 0 = background; `names[i]` names label i."""

    labels: np.ndarray
    names: tuple[str, ...]
    scans: tuple[Scan, ...]


@dataclass(frozen=True)
class AgeSet:
    """Ages of an `ImageSet`'s scans: ages [number of scans] float64, in the data set's unit."""

    ages: np.ndarray
    scans: tuple[Scan, ...]


Outcome = Literal["labels", "age"]
"""What a task model predicts: a label for each pixel, or an age for each scan."""


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
    def validation(self) -> ImageSet:
        """Validation images of the source site. Only where the method `validates`."""
        return self._get("validation")

    @property
    def target(self) -> ImageSet:
        """Training images of the target site. Only where `unknown_domains` is False."""
        return self._get("target")

    @property
    def sites(self) -> Mapping[str, ImageSet]:
        """Training images of every site by its name. Only where `fit_scope` is "sites"."""
        return self._get("sites")


class ApplyData(_Granted):
    """What `harmonize` and `adapt` may read, wired from the method's traits."""

    @property
    def target(self) -> ImageSet:
        """The images to harmonise, predict or adapt to, without labels: the target's test split, except in
        `Harmonizer.adapt` where the method's `adaptation_split` is "train"."""
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
    """Inputs of task training: source images and what is to be predicted, and the validation split of the same site."""

    images: ImageSet
    reference: LabelSet | AgeSet
    validation_images: ImageSet
    validation_reference: LabelSet | AgeSet

    @property
    def labels(self) -> LabelSet:
        """Labels of `images`. Raises AccessDenied in an age benchmark."""
        return _labels(self.reference)

    @property
    def validation_labels(self) -> LabelSet:
        return _labels(self.validation_reference)

    @property
    def ages(self) -> np.ndarray:
        """Ages of the scans of `images`, [number of scans]. Raises AccessDenied in a segmentation benchmark."""
        return _ages(self.reference)

    @property
    def validation_ages(self) -> np.ndarray:
        return _ages(self.validation_reference)

    @property
    def n_labels(self) -> int:
        """Number of labels, background included."""
        return len(self.labels.names)


def _labels(reference: LabelSet | AgeSet) -> LabelSet:
    if isinstance(reference, AgeSet):
        raise AccessDenied("the task is to predict age: there are no labels")
    return reference


def _ages(reference: LabelSet | AgeSet) -> np.ndarray:
    if isinstance(reference, LabelSet):
        raise AccessDenied("the task is segmentation: ages are not handed over")
    return reference.ages


@dataclass(frozen=True)
class TaskHandle:
    """A trained task model in the hands of a method that may use it."""

    model: TaskModel
    state: State
    device: str

    @property
    def outcome(self) -> Outcome:
        return self.model.outcome

    def network(self) -> torch.nn.Module:
        """A fresh copy of the trained network on the device, in eval mode; see `TaskModel.network`."""
        return self.model.network(self.state).to(self.device)


Augment = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor | None", "torch.Generator"],
    "tuple[torch.Tensor, torch.Tensor | None]",
]
"""(pixels, mask, labels, generator) → (pixels, labels); see `Generalizer.augment`."""


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

    Further class attributes, each with a default that suits most methods:

    outcomes:    kinds of task the method works with.
    validates:   `fit` is also handed the source's validation images.
    fit_scope:   what one fit serves, where it sees target images: a "direction" (source, target), an unordered
                 "pair" of sites (whose roles `source` and `target` are then arbitrary: tell sites apart by their
                 scans' `site`), or all "sites" of the benchmark at once.
    late_fields: fields that only `harmonize` or `TestTimeAdapter.adapt` read: changing one fits nothing anew.
    """

    source_free: ClassVar[bool]
    task_agnostic: ClassVar[bool]
    unknown_domains: ClassVar[bool]
    outcomes: ClassVar[tuple[Outcome, ...]] = ("labels", "age")
    validates: ClassVar[bool] = False
    fit_scope: ClassVar[Literal["direction", "pair", "sites"]] = "direction"
    late_fields: ClassVar[tuple[str, ...]] = ()

    def fit(self, data: FitData, ctx: Context) -> State:
        """Learn from training images. Left out by methods that learn nothing beforehand.

        Runs once per source where `unknown_domains`, else once per `fit_scope`.
        """
        raise NotImplementedError

    def fit_parts(self) -> Mapping[str, tuple[str, ...]]:
        """Parts that are learnt apart from each other: name → the fields that part depends on.

        A method that has parts writes `fit_part` in place of `fit`. Each part is a stage of its own, handed the
        fields it names and no others, so rows that differ elsewhere share it. In the state that later steps see,
        part P's entry E is called "P.E".
        """
        return {}

    def fit_part(self, part: str, data: FitData, ctx: Context) -> State:
        """Learn one part; see `fit_parts`. Fields that the part does not name have their defaults."""
        raise NotImplementedError

    def has_fit(self) -> bool:
        """Whether anything is learnt before test images are seen."""
        return bool(self.fit_parts()) or type(self).fit is not Adaptive.fit

    def supports(self, outcome: Outcome) -> bool:
        """Whether these settings work with a task of this kind."""
        return outcome in self.outcomes

    def uses_task(self) -> bool:
        """Whether the trained task model is needed. A setting that answers True costs the trait task_agnostic."""
        return not self.task_agnostic


class Harmonizer(Adaptive, ABC):
    """Maps images of a target site to the look of the source site.

    A method that adapts to the target before it harmonises, step by step, also writes `adapt`, `steps` and `at`.
    The harness then scores every step, so that rules which end the adaptation can be compared.
    """

    family: ClassVar[str] = "harmonizer"
    task_agnostic: ClassVar[bool] = True

    @abstractmethod
    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """`data.target` in source intensities: float32 [N, H, W] in [0, 1], finite.

        Whatever is written outside the brain mask is set to 0 by the harness. `state` is what `adapt` returned,
        else what `fit` returned, {} where the method has neither.
        """

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> State:
        """Adapt to unlabelled images of the target; returns the whole state that `harmonize` needs."""
        raise NotImplementedError

    def adapts(self) -> bool:
        """Whether `adapt` is called."""
        return type(self).adapt is not Harmonizer.adapt

    def adaptation_split(self) -> Literal["train", "test"]:
        """Which images of the target `adapt` is handed. "test" is transductive: they are those to harmonise."""
        return "test"

    def steps(self, state: State) -> tuple[int, ...]:
        """Steps of the adaptation that can be harmonised with, the first before any update; () without a choice."""
        return ()

    def at(self, state: State, step: int) -> State:
        """The state with which `harmonize` shows the given one of `steps`."""
        raise NotImplementedError

    def is_oracle(self) -> bool:
        """Whether the step is to be chosen by the target's labels: an upper bound, never ranked."""
        return False


class TestTimeAdapter(Adaptive, ABC):
    """Adapts the trained task model to the target's test images, without labels, and predicts."""

    __test__: ClassVar[bool] = False  # the name starts with "Test": keep pytest from collecting it
    family: ClassVar[str] = "adapter"
    task_agnostic: ClassVar[bool] = False

    @abstractmethod
    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Predictions of `data.target`, as `TaskModel.predict` gives them for `data.task.outcome`."""


class Generalizer(Method, ABC):
    """Changes how the task model is trained on the source, so that it works elsewhere as it is."""

    family: ClassVar[str] = "generalizer"
    source_free: ClassVar[bool] = True
    task_agnostic: ClassVar[bool] = False
    unknown_domains: ClassVar[bool] = True
    outcomes: ClassVar[tuple[Outcome, ...]] = ("labels", "age")

    def supports(self, outcome: Outcome) -> bool:
        """Whether these settings work with a task of this kind."""
        return outcome in self.outcomes

    @abstractmethod
    def augment(
        self, pixels: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A training batch, augmented in place of the task model's own augmentation.

        pixels [B, 1, H, W] float32 in [0, 1]; mask [B, H, W] bool, the brain, outside of which pixels are 0;
        labels [B, H, W] uint8, or None where the task is age. All draws come from `generator`, on the device of
        the pixels. Returns pixels in [0, 1] with background 0, and the labels moved alike.
        """


class TaskModel(Method, ABC):
    """The model of the downstream task, trained on raw source images and shared by all methods.

    outcome: "labels" (segmentation) or "age".
    """

    family: ClassVar[str] = "task"
    outcome: ClassVar[Outcome] = "labels"

    @abstractmethod
    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        """Train on the source site; select on its validation split, which is never augmented.

        `augment` replaces the model's own augmentation of training batches.
        """

    @abstractmethod
    def network(self, state: State) -> torch.nn.Module:
        """The trained network on the CPU: slices [B, 1, H, W] float32 in [0, 1] to logits [B, C, H, W], or to
        ages [B] in the data set's unit."""

    @abstractmethod
    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        """Predicted labels, uint8 [N, H, W], or ages, float64 [number of scans]."""


Family = Harmonizer | TestTimeAdapter | Generalizer | TaskModel

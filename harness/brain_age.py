"""What an author of a brain-age method imports beside `harness.api`: the families, and the data they are handed.

An age estimator reads whole volumes, or a table of features, one row a scan, or nothing, and predicts ages. Ages are
handed to `fit`, for training and validation scans only, and never with the scans themselves. A volume segmenter learns
regions from volumes and their label maps; features of what it finds feed estimators that read tables.

    from harness.api import Context, State
    from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining

    class MeanAge(AgeEstimator):
        \"\"\"The mean age of the training scans, whoever is asked about.\"\"\"

        id = "mean_age"
        reference = "ours"
        reads = "nothing"

        def fit(self, data: AgeTraining, ctx: Context) -> State:
            return {"mean": float(data.ages.mean())}

        def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
            return AgePredictions(np.full(len(data.scans), state["mean"]))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from harness.api import AccessDenied, Context, Method, State

RELATIONAL_VOLUME = "relational volume"
SURFACE_RATIO = "surface ratio"
"""Families of features that are computed from label maps; tables of a data set may bring any others."""


@dataclass(frozen=True)
class VolumeScan:
    """One scan of a `VolumeSet`. Its age is not here.

    shape: voxels [X, Y, Z] as stored, cropped to the brain and a margin. start: place of the first of them in the file
    (canonical orientation: x to the right, y anterior, z superior). whole: shape of the file. spacing: mm
    along x, y, z. Shape and spacing are 0 where no volume is handed over.
    birth_age: in the data set's unit, None where unknown.
    """

    id: str
    subject: str
    site: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    start: tuple[int, int, int] = (0, 0, 0)
    whole: tuple[int, int, int] | None = None
    sex: Literal["F", "M"] | None = None
    birth_age: float | None = None
    modality: str = ""


@dataclass(frozen=True, eq=False)
class Volume:
    """image: float32 [X, Y, Z] in 0..1, exactly 0 outside the brain. mask: bool [X, Y, Z], the brain."""

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class VolumeSet:
    """Volumes of many scans, each read from disk when it is asked for: `set[i]` is a `Volume`, sizes may differ."""

    scans: tuple[VolumeScan, ...]
    read: Callable[[int], Volume] = field(repr=False)

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Volume:
        return self.read(range(len(self.scans))[index])

    def __iter__(self) -> Iterator[Volume]:
        return (self.read(index) for index in range(len(self.scans)))

    def take(self, indices: Sequence[int]) -> VolumeSet:
        """Some of the scans, in the order given."""
        places = [int(i) for i in indices]
        return VolumeSet(tuple(self.scans[i] for i in places), lambda index: self.read(places[index]))


@dataclass(frozen=True, eq=False)
class RegionSet:
    """Label maps of the scans of a `VolumeSet`: `set[i]` is uint8 [X, Y, Z] on that volume's voxels, 0 = background.

    names[i] names label i. ignored: labels that are no region, such as what lies outside the head.
    """

    scans: tuple[VolumeScan, ...]
    names: tuple[str, ...]
    read: Callable[[int], np.ndarray] = field(repr=False)
    ignored: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(range(len(self.scans))[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read(index) for index in range(len(self.scans)))

    def take(self, indices: Sequence[int]) -> RegionSet:
        """Some of the scans, in the order given."""
        places = [int(i) for i in indices]
        return replace(self, scans=tuple(self.scans[i] for i in places), read=lambda index: self.read(places[index]))


@dataclass(frozen=True)
class Column:
    """One feature. family: what is measured, such as "surface ratio". region: of what, such as "brainstem".

    label: the region's value in label maps, None where it has none there.
    """

    family: str
    region: str
    label: int | None = None

    @property
    def name(self) -> str:
        return f"{self.family} of {self.region}"


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """values: float64 [scans, columns]; nan where a feature is undefined, as the surface of an absent region is."""

    values: np.ndarray
    columns: tuple[Column, ...]
    scans: tuple[VolumeScan, ...]

    def __len__(self) -> int:
        return len(self.scans)

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the columns, each once, in their order."""
        return tuple(dict.fromkeys(column.family for column in self.columns))

    def only(self, families: Sequence[str]) -> FeatureTable:
        """The columns of these families, one family after the other as they are named."""
        kept = [i for family in families for i, column in enumerate(self.columns) if column.family == family]
        return FeatureTable(self.values[:, kept], tuple(self.columns[i] for i in kept), self.scans)

    def take(self, indices: Sequence[int]) -> FeatureTable:
        """Some of the scans, in the order given."""
        rows = [int(i) for i in indices]
        return FeatureTable(self.values[rows], self.columns, tuple(self.scans[i] for i in rows))

    def with_values(self, values: np.ndarray) -> FeatureTable:
        """The same scans and columns with other values of the same shape."""
        return replace(self, values=values)


# ------------------------------------------------------------------------------------------ what is handed over


@dataclass(frozen=True, eq=False)
class AgeInputs:
    """Scans whose age is asked for, and what the estimator reads of them: volumes, features, or neither."""

    granted_volumes: VolumeSet | None = field(default=None, repr=False)
    granted_features: FeatureTable | None = field(default=None, repr=False)
    granted_scans: tuple[VolumeScan, ...] = field(default=(), repr=False)
    """Who was scanned, for an estimator that reads nothing."""

    @property
    def scans(self) -> tuple[VolumeScan, ...]:
        granted = self.granted_features if self.granted_volumes is None else self.granted_volumes
        return self.granted_scans if granted is None else granted.scans

    @property
    def volumes(self) -> VolumeSet:
        """Raises AccessDenied for an estimator that reads features, or nothing."""
        if self.granted_volumes is None:
            raise AccessDenied(f'this estimator reads {self._read}; set `reads = "volumes"` to be handed volumes')
        return self.granted_volumes

    @property
    def features(self) -> FeatureTable:
        """Raises AccessDenied for an estimator that reads volumes, or nothing."""
        if self.granted_features is None:
            raise AccessDenied(f'this estimator reads {self._read}; set `reads = "features"` to be handed features')
        return self.granted_features

    @property
    def _read(self) -> str:
        if self.granted_volumes is not None:
            return "volumes"
        return "nothing" if self.granted_features is None else "features"

    @property
    def labels(self) -> None:
        """Never handed over."""
        raise AccessDenied("label maps are never handed to an age estimator")


@dataclass(frozen=True, eq=False)
class AgeTraining:
    """What is learnt from. ages: float64 [scans of train], in the data set's unit; validation_ages likewise.

    Validation scans are of other people, for the choice of settings and of weights.
    """

    train: AgeInputs
    ages: np.ndarray
    validation: AgeInputs
    validation_ages: np.ndarray


@dataclass(frozen=True, eq=False)
class AgePredictions:
    """ages: float64 [scans]. sds: the estimator's own standard deviation of each, None where it has none."""

    ages: np.ndarray
    sds: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class SegmentationTraining:
    """Volumes and their label maps, and those of other people for the choice of weights."""

    volumes: VolumeSet
    regions: RegionSet
    validation_volumes: VolumeSet
    validation_regions: RegionSet


# ---------------------------------------------------------------------------------------------------- families


class VolumeSegmenter(Method, ABC):
    """Learns label maps of volumes. A field of the estimators that use it: equal ones are trained once in a benchmark.

    late_fields: fields that only `segment` reads: changing one trains nothing anew.
    """

    family: ClassVar[str] = "volume_segmenter"
    late_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fit(self, data: SegmentationTraining, ctx: Context) -> State:
        """Train."""

    @abstractmethod
    def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
        """Label maps of the volumes in turn, uint8 [X, Y, Z] each, 0 outside the brain; labels as in training."""


class AgeEstimator(Method, ABC):
    """Predicts the age of each scan.

    reads:       "volumes"; or "features": then `wanted` says which, and `segmenter` of whose label maps; or "nothing":
                 then it is told who was scanned, and any data will do.
    late_fields: fields that only `predict` reads: changing one fits nothing anew.
    """

    family: ClassVar[str] = "age_estimator"
    reads: ClassVar[Literal["volumes", "features", "nothing"]] = "volumes"
    late_fields: ClassVar[tuple[str, ...]] = ()

    def wanted(self) -> tuple[str, ...]:
        """Families of features that are read, in the order of the columns."""
        return ()

    def segmenter(self) -> VolumeSegmenter | None:
        """Who makes the label maps that features are of; None: the data set's own label maps, or tables."""
        return None

    @abstractmethod
    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """Learn from scans of known age."""

    @abstractmethod
    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        """Ages of other scans. A scan's must depend on that scan alone."""

    def chosen(self, state: State) -> tuple[str, ...] | None:
        """Names of the columns (`Column.name`) that a fitted estimator reads; None: all it is handed."""
        return None

    def alone(self, family: str) -> AgeEstimator | None:
        """The estimator by which the importance of this family's features is measured; None: it has none.

        It is fitted on that family only, then each column is permuted in turn.
        """
        return None

    def learns_from_validation(self) -> bool:
        """Whether the ages that are predicted are fitted to validation scans too: errors on those then say nothing."""
        return False

    def deviations(self) -> tuple[str, ...]:
        """Where these settings depart from the publication, a phrase each; shown with the row."""
        return ()

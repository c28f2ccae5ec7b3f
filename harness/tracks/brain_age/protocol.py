"""What a benchmark of brain ages asks for, what that means for its data and rows, and how its stages are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.api import Method
from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO, AgeEstimator, VolumeSegmenter
from harness.data.dataset import Dataset
from harness.data.feature_table import FeatureTableDataset
from harness.data.schema import Part
from harness.tracks.base import Row
from harness.tracks.brain_age.subsets import Subset, nested

STAGES = "harness.tracks.brain_age.stages"
MEASURED = (RELATIONAL_VOLUME, SURFACE_RATIO)
"""Families that are measured on label maps; all others come with the data."""

ERRORS = ("mae", "error_sd", "rmse", "mse", "r2", "r2_pearson")
SEGMENTATION = ("dsc",)


@dataclass(frozen=True)
class Protocol:
    """The choices of a benchmark file that shape the stages; see `BrainAgeSpec`. sizes: None is all scans."""

    train: str
    tests: tuple[str, ...]
    sizes: tuple[int | None, ...]
    validation_share: float
    metrics: tuple[str, ...]
    repeats: int
    unit: str
    validated: frozenset[str] = frozenset()
    """Rows whose cells also end in "validation": the errors on the scans that a search may choose by.

    Their importance is left out: it costs many times a fit, and most of them are not chosen.
    """

    @property
    def largest(self) -> int | None:
        """The size whose importance and features are shown: all scans, else the largest number."""
        return None if None in self.sizes else max(size for size in self.sizes if size is not None)


def source_of(size: int | None) -> str:
    """What the cells call a training size."""
    return "all" if size is None else f"{size} scans"


def subset_of(dataset: Dataset, protocol: Protocol, size: int | None, seed: int) -> Subset | None:
    """Who is learnt from where a size is asked for. Without the data: nobody, so that plans can be printed."""
    if size is None:
        return None
    site = protocol.train
    pool = (*dataset.scans(site, "train"), *dataset.scans(site, "validation"))
    return nested(pool, size, protocol.validation_share, seed) if pool else Subset((), ())


def chosen(size: int | None, subset: Subset | None) -> dict[str, Any]:
    """Parameters of a stage that learns from the subset of a size; none where it learns from all."""
    if subset is None:
        return {}
    return {"size": size, "train": list(subset.train), "validation": list(subset.validation)}


# ------------------------------------------------------------------------------------------- rows and their data


def tables_of(dataset: Dataset, site: str) -> dict[str, str]:
    """Families that the data of a site bring → the kind of source they come from: table, surfaces or side tables."""
    from harness.data.nifti import NiftiDataset
    from harness.data.surfaces import FAMILIES

    if isinstance(dataset, FeatureTableDataset):
        return dict.fromkeys(dataset.families, "table")
    found: dict[str, str] = {}
    if isinstance(dataset, NiftiDataset):
        entry = dataset.card.sites[dataset.card.scanned(site)]
        if entry.surfaces is not None:
            found |= dict.fromkeys(FAMILIES.values(), "surfaces")
        found |= dict.fromkeys(entry.tables, "side tables")
    return found


def measures(dataset: Dataset, row: Row, site: str) -> bool:
    """Whether a row reads features that are measured on label maps of the site's scans."""
    estimator, known = estimator_of(row), tables_of(dataset, site)
    return estimator.reads == "features" and any(f in MEASURED and f not in known for f in estimator.wanted())


def segmenter_of(dataset: Dataset, row: Row, site: str) -> VolumeSegmenter | None:
    """Who makes the label maps of the site that a row's features are measured on; None: nobody, they are there."""
    return estimator_of(row).segmenter() if measures(dataset, row, site) else None


def estimator_of(row: Row) -> AgeEstimator:
    """The method of a row, which `resolve` lets only be an estimator."""
    method: Method = row.method
    assert isinstance(method, AgeEstimator)
    return method


# ------------------------------------------------------------------------------------------- names of stages


def whose(site: str, split: Part) -> str:
    """Which scans a title means: those of test unless it says so."""
    return site if split == "test" else f"{site} {split}"


def sized(size: int | None) -> str:
    return "" if size is None else f" ({size} scans)"


def replicate(seed: int) -> str:
    return f" #{seed}" if seed else ""

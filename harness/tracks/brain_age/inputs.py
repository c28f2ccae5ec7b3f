"""What a method is handed, put together from the artifacts of the stages that its own stage needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.api import MethodError
from harness.brain_age import (
    AgeEstimator,
    AgeInputs,
    AgeTraining,
    Column,
    FeatureTable,
    RegionSet,
    VolumeScan,
    VolumeSet,
)
from harness.data import volume_sets
from harness.data.feature_table import load_features, scans_of
from harness.engine.worker import StageRun


def folders_of(run: StageRun, kind: str, split: str) -> list[Path]:
    """Inputs such as "volumes.train.0", in order."""
    head = f"{kind}.{split}."
    numbered = [(int(name.removeprefix(head)), path) for name, path in run.inputs.items() if name.startswith(head)]
    return [path for _, path in sorted(numbered)]


def split_sets(run: StageRun) -> tuple[dict[str, VolumeSet], dict[str, RegionSet]]:
    """Volumes and regions that are learnt from, by split: all, or a subset of both together."""
    splits = ("train", "validation")
    volumes, regions = {}, {}
    for split in splits:
        among = splits if split in run.params else (split,)
        every = volume_sets.load_volumes(*(folder for s in among for folder in folders_of(run, "volumes", s)))
        maps = volume_sets.load_regions(*(folder for s in among for folder in folders_of(run, "regions", s)))
        wanted = run.params.get(split, [scan.id for scan in every.scans])
        volumes[split] = every.take(places_of(every.scans, wanted))
        regions[split] = maps.take(places_of(maps.scans, wanted))
    return volumes, regions


def age_training(run: StageRun, method: AgeEstimator) -> AgeTraining:
    """What an estimator learns from: the splits as they are, or the subset that the plan chose of both together."""
    splits, parts, ages = ("train", "validation"), [], []
    for split in splits:
        among, wanted = (splits, run.params[split]) if split in run.params else ((split,), None)
        parts.append(age_inputs(run, method, among, wanted))
        ages.append(ages_of(run, among, parts[-1].scans))
    return AgeTraining(parts[0], ages[0], parts[1], ages[1])


def of_family(data: AgeTraining, family: str) -> AgeTraining:
    """The same scans with the features of one family."""
    train, validation = (
        AgeInputs(granted_features=part.features.only((family,))) for part in (data.train, data.validation)
    )
    return AgeTraining(train, data.ages, validation, data.validation_ages)


def age_inputs(
    run: StageRun, method: AgeEstimator, splits: Sequence[str], wanted: Sequence[str] | None = None
) -> AgeInputs:
    """Scans of one split or of several together, as the method reads them. wanted: ids of those that are kept."""
    kind = "scans" if method.reads == "nothing" else method.reads
    folders = [folder for split in splits for folder in folders_of(run, kind, split)]
    if method.reads == "features":
        table = joined([load_features(folder) for folder in folders], wanted)
        return AgeInputs(granted_features=table.only(method.wanted()))
    if method.reads == "volumes":
        volumes = volume_sets.load_volumes(*folders)
        return AgeInputs(volumes if wanted is None else volumes.take(places_of(volumes.scans, wanted)))
    rows = [row for folder in folders for row in json.loads((folder / "scans.json").read_text())]
    scans = scans_of(rows)
    return AgeInputs(
        granted_scans=scans if wanted is None else tuple(scans[place] for place in places_of(scans, wanted))
    )


def ages_of(run: StageRun, splits: Sequence[str], scans: Sequence[VolumeScan]) -> np.ndarray:
    known: dict[str, float] = {}
    for split in splits:
        known |= json.loads((run.inputs[f"ages.{split}"] / "ages.json").read_text())
    return np.array([known[scan.id] for scan in scans], np.float64)


def places_of(scans: Sequence[VolumeScan], wanted: Iterable[str]) -> list[int]:
    known = {scan.id: i for i, scan in enumerate(scans)}
    return [known[name] for name in wanted]


def joined(tables: Sequence[FeatureTable], wanted: Sequence[str] | None = None) -> FeatureTable:
    """Chunks of one table under each other, tables of other columns side by side.

    wanted: ids of the scans that are kept, in this order; None: those of the first table, of which all others must be
    too. Raises MethodError where a table lacks some.
    """
    kinds: dict[tuple[Column, ...], list[FeatureTable]] = {}
    for table in tables:
        kinds.setdefault(table.columns, []).append(table)
    wide = [_stacked(chunks) for chunks in kinds.values()]
    ids = [scan.id for scan in wide[0].scans] if wanted is None else list(wanted)
    parts = []
    for table in wide:
        have = {scan.id for scan in table.scans}
        if not have.issuperset(ids) or (wanted is None and len(have) > len(ids)):
            first, other = (", ".join(each.families) for each in (wide[0], table))
            raise MethodError(f"features are not of the same scans ({first}; {other}); measure the same ones of all")
        parts.append(table.take(places_of(table.scans, ids)))
    columns = tuple(column for part in parts for column in part.columns)
    return FeatureTable(np.concatenate([part.values for part in parts], axis=1), columns, parts[0].scans)


def _stacked(chunks: Sequence[FeatureTable]) -> FeatureTable:
    """Tables of the same columns under each other."""
    values = np.concatenate([chunk.values for chunk in chunks])
    return FeatureTable(values, chunks[0].columns, tuple(scan for chunk in chunks for scan in chunk.scans))

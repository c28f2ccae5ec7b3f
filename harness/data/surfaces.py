"""Features of cortical surfaces: means and spreads of sulcal depth, thickness and curvature over parcels.

How published work turned vertices into features is not said. Ours: for each parcel of each hemisphere the mean and the
standard deviation (over vertices, not divided by n - 1), of curvature also the mean of its absolute value, for in the
mean of curvature gyri and sulci cancel; and the same means over the whole hemisphere. The medial wall is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.brain_age import Column, FeatureTable
from harness.data import layout
from harness.data.feature_table import featured, save_features, who_of
from harness.data.fingerprint import fingerprints
from harness.data.imagefile import BadImage
from harness.data.layout import ScanFiles
from harness.data.nifti import NiftiDataset
from harness.data.schema import MAPS, Part, Surfaces
from harness.data.surface_files import SIDES, Bools, Floats, Ints, OnSurface, Side, read_surface
from harness.engine.plan import Stage, canonical
from harness.engine.worker import StageRun
from harness.problems import Problem
from harness.untrusted import is_folder, plain

SULCAL_DEPTH, CORTICAL_THICKNESS, CURVATURE = "sulcal depth", "cortical thickness", "curvature"
FAMILIES = {"sulc": SULCAL_DEPTH, "thickness": CORTICAL_THICKNESS, "curv": CURVATURE}
"""Role of a map → the family of its features."""

Named = dict[str, dict[int, str]]
"""Side → value of a label → name of the parcel."""

Located = dict[str, str]
"""Role and side, as "sulc left" → path below the data root."""

Finding = tuple[str, str]
"""(path below the root, what is wrong and what to do)"""


def surface_stage(dataset: NiftiDataset, site: str, split: Part) -> Stage:
    """The stage that leaves a feature table of the cortical surfaces of a site and split, its rows as `scans` has them.

    Raises ValueError for an unknown site or split, or a site whose card names no surfaces.
    """
    dataset._known(site, split)
    surfaces = _surfaces(dataset, site)
    scans = dataset.scans(site, split)
    absent = dataset.root is None or not is_folder(dataset.root)
    found = {} if absent else {scan.id: _located(dataset, site, scan)[0] for scan in scans}
    paths = {path: dataset.root / path for files in found.values() for path in files.values()} if dataset.root else {}
    hashes = fingerprints(paths.values(), dataset.cache)
    contents = {scan: {role: hashes[paths[path]] for role, path in files.items()} for scan, files in found.items()}
    return Stage(
        kind="features",
        title=f"surface features {site} {split}",
        fn="harness.data.surfaces:surface_features",
        params={
            **who_of(dataset, site, split),
            "maps": [role for role in MAPS if getattr(surfaces, role)],
            "wall": surfaces.wall,
            "parcels": {} if absent else parcels_of(dataset, site),
        },
        resources="prepare",
        data="absent" if absent else hashlib.sha256(canonical(contents).encode()).hexdigest(),
        local={} if absent else {"root": str(Path(str(dataset.root)).absolute()), "files": found},
    )


def parcels_of(dataset: NiftiDataset, site: str) -> Named:
    """Names of the parcels of each hemisphere, as the site's first scan that can be read has them; {} without parcels.

    One scan speaks for the site, so that the columns of every split are the same. The audit holds the others to it.
    """
    surfaces = _surfaces(dataset, site)
    root = dataset.root
    if surfaces.parcels is None or root is None:
        return {}
    for scan in dataset.scans(site):
        files, _ = _located(dataset, site, scan)
        try:
            read = {side: read_surface(root / files[f"parcels {side}"], side).names for side in SIDES}
        except (KeyError, OSError, BadImage):
            continue
        return {side: _kept(names, surfaces.skip) for side, names in read.items()}
    return {}


def audit_surfaces(dataset: NiftiDataset, site: str) -> list[Problem]:
    """Everything wrong with the surfaces of a site's scans: a line for each file, told all at once."""
    root = dataset.root
    assert root is not None
    surfaces = _surfaces(dataset, site)
    names = parcels_of(dataset, site)
    maps = [role for role in MAPS if getattr(surfaces, role)]
    problems: list[Problem] = []
    for scan in dataset.scans(site):
        files, missing = _located(dataset, site, scan)
        problems += missing
        if missing:
            continue
        for side in SIDES:
            _, findings = _hemisphere(root, files, side, maps, surfaces.wall, names.get(side, {}))
            problems += [Problem(plain(str(root / path)), plain(what)) for path, what in findings]
    return problems


def _surfaces(dataset: NiftiDataset, site: str) -> Surfaces:
    surfaces = dataset.card.sites[dataset.card.scanned(site)].surfaces
    if surfaces is None:
        raise ValueError(f"{site} has no surfaces; name them in the card (sites.{site}.surfaces)")
    return surfaces


def _located(dataset: NiftiDataset, site: str, scan: ScanFiles) -> tuple[Located, list[Problem]]:
    """The files of a scan's surfaces, and what is missing or twice there."""
    entry = dataset.card.sites[dataset.card.scanned(site)]
    surfaces, root = entry.surfaces, dataset.root
    assert surfaces is not None
    assert root is not None
    assert entry.image is not None
    match = layout._regex(entry.image).fullmatch(scan.image)
    values = match.groupdict() if match else {}
    found: Located = {}
    problems: list[Problem] = []
    for role in (*MAPS, "parcels", "medial_wall"):
        pattern = getattr(surfaces, role)
        for side, hemi in zip(SIDES, surfaces.hemispheres, strict=True):
            if pattern is None:
                continue
            one = pattern.replace("{hemi}", hemi)
            given = {name: value for name, value in values.items() if name in layout.fields_of(one)}
            before = len(problems)
            paths = [path for path, _ in layout._matches(root, one, problems, given)]
            if len(paths) == 1 and len(problems) == before:
                found[f"{role} {side}"] = paths[0]
            elif len(problems) == before:
                what = f"{len(paths)} files match; make the pattern narrower" if paths else "no such file; add it"
                where = plain(str(root / layout._filled(one, given)))
                problems.append(Problem(where, f"{what} (surfaces.{role} of {scan.image}), or exclude {scan.name!r}"))
    return found, list(dict.fromkeys(problems))


def _kept(names: Mapping[int, str], skip: Sequence[str]) -> dict[int, str]:
    """Parcels: labels above 0, for 0 and -1 mark vertices that lie in none."""
    return {value: name for value, name in sorted(names.items()) if value > 0 and name not in skip}


# ---------------------------------------------------------------------------------------- one hemisphere


@dataclass(frozen=True, eq=False)
class _Hemisphere:
    """maps: role → float64 [vertices]. cortex: bool [vertices]. parcels: int64 [vertices], 0 in none."""

    maps: dict[str, Floats]
    cortex: Bools
    parcels: Ints


def _hemisphere(
    root: Path, files: Located, side: Side, maps: Sequence[str], wall: int, names: Mapping[int, str]
) -> tuple[_Hemisphere | None, list[Finding]]:
    """What the files say of a hemisphere; None, and what is wrong, where it cannot be used."""
    read: dict[str, OnSurface] = {}
    findings: list[Finding] = []
    for role in (*maps, "parcels", "medial_wall"):
        path = files.get(f"{role} {side}")
        if path is None:
            continue
        try:
            read[role] = read_surface(root / path, side)
        except FileNotFoundError:
            findings.append((path, "no such file; add it, or exclude the scan"))
        except BadImage as error:
            findings.append((path, f"the {side} {role} cannot be read ({error}); copy or export it again"))
    if findings:
        return None, findings
    first = maps[0]
    for role, one in read.items():
        if len(one.values) != len(read[first].values):
            what = f"has {len(one.values):,} vertices, {files[f'{first} {side}']} has {len(read[first].values):,}"
            findings.append((files[f"{role} {side}"], f"{what}; they must be of one surface"))
    if findings:
        return None, findings
    cortex = np.logical_and.reduce([one.there for one in read.values()])
    if "medial_wall" in read:
        mask = read["medial_wall"].values > 0.5
        cortex &= mask if wall == 0 else ~mask
        share = float(cortex.mean())
        if share < 0.5:
            what = f"leaves {100 * share:.0f} % of the {side} vertices as cortex"
            todo = f"write wall: {1 - wall} if that is its value on the medial wall, or mend the mask"
            return None, [(files[f"medial_wall {side}"], f"{what}; {todo}")]
    for role in maps:
        bad = int(np.count_nonzero(~np.isfinite(read[role].values[cortex])))
        if bad:
            findings.append(
                (files[f"{role} {side}"], f"{bad} vertices are NaN or infinite; mend it, or exclude the scan")
            )
    parcels = np.zeros(len(cortex), np.int64)
    if "parcels" in read:
        findings += _parcels(files[f"parcels {side}"], read["parcels"], cortex, names)
        parcels = np.where(cortex, np.nan_to_num(read["parcels"].values), 0).astype(np.int64)
    if findings:
        return None, findings
    return _Hemisphere({role: read[role].values for role in maps}, cortex, parcels), []


def _parcels(path: str, parcels: OnSurface, cortex: Bools, names: Mapping[int, str]) -> Iterator[Finding]:
    values = parcels.values[cortex]
    if not (np.isfinite(values) & (values == np.rint(values))).all():
        yield path, "parcels are not whole numbers; resample them by nearest neighbour"
        return
    unknown = sorted({int(value) for value in np.unique(values) if value > 0} - set(parcels.names))
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        yield path, f"parcels {shown} have no name in the file; export it with its label table"
    differ = sorted(value for value, name in names.items() if parcels.names.get(value) != name)
    if differ:
        here = parcels.names.get(differ[0])
        what = f"parcel {differ[0]} is {here!r} here, {names[differ[0]]!r} in the site's first scan" if here else ""
        yield path, f"{what or f'lacks the parcel {names[differ[0]]!r} of the site'}; export all scans with one atlas"


# -------------------------------------------------------------------------------------------- features


def columns_of(maps: Sequence[str], parcels: Mapping[str, Mapping[int, str]]) -> tuple[Column, ...]:
    """The features in their order: by map, hemisphere, and parcel."""
    found: list[Column] = []
    for role in maps:
        for side in SIDES:
            places = [f"{side} hemisphere", *(f"{side} {name}" for name in parcels.get(side, {}).values())]
            for index, place in enumerate(places):
                found.append(Column(FAMILIES[role], place))
                found += [Column(FAMILIES[role], f"{place}, SD")] if index else []
                found += [Column(FAMILIES[role], f"{place}, absolute")] if role == "curv" else []
    return tuple(found)


def _values(hemisphere: _Hemisphere, role: str, parcels: Iterable[int]) -> list[float]:
    """The features of one map in the order of `columns_of`; nan for a parcel without a vertex."""
    values, cortex = hemisphere.maps[role], hemisphere.cortex
    found: list[float] = []
    for index, inside in enumerate([cortex, *(cortex & (hemisphere.parcels == parcel) for parcel in parcels)]):
        of: npt.NDArray[np.float64] = values[inside]
        found.append(float(of.mean()) if len(of) else np.nan)
        if index:
            found.append(float(of.std()) if len(of) else np.nan)
        if role == "curv":
            found.append(float(np.abs(of).mean()) if len(of) else np.nan)
    return found


def surface_features(run: StageRun) -> None:
    """Stage function: features of the cortical surfaces of one site and split; leaves a feature table."""
    params, root = run.params, Path(run.local["root"])
    parcels = {side: {int(value): name for value, name in names.items()} for side, names in params["parcels"].items()}
    columns = columns_of(params["maps"], parcels)
    rows: list[list[float]] = []
    for name, *_ in params["people"]:
        sides: dict[str, _Hemisphere] = {}
        for side in SIDES:
            found, findings = _hemisphere(
                root, run.local["files"][name], side, params["maps"], params["wall"], parcels.get(side, {})
            )
            if found is None:
                raise ValueError(f"{findings[0][0]}: {findings[0][1]}")
            sides[side] = found
        rows.append(
            [v for role in params["maps"] for side in SIDES for v in _values(sides[side], role, parcels.get(side, ()))]
        )
    scans = featured(params)
    save_features(run.out, FeatureTable(np.array(rows).reshape(len(scans), len(columns)), columns, scans))

"""What one value of a dataset card says of another: `cross_check` names the exact place of each contradiction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.data import layout
from harness.data.schema import (
    IDENTITY,
    LONGEST_NAME,
    MAPS,
    MOST_SCANS,
    MOST_SLICES,
    NAME,
    Card,
    FeatureFile,
    FeatureTableCard,
    LabelTable,
    NiftiCard,
    NiftiSite,
    PhantomCard,
    PhantomSite,
    PngCard,
    SubjectsTable,
    Surfaces,
    TableSite,
    Volumes,
    id_range,
)
from harness.problems import did_you_mean
from harness.yamlfile import Where


def cross_check(card: Card) -> Iterator[tuple[Where, str]]:
    """(where, what) for each value that contradicts another."""
    import re

    for name in card.sites:
        if not re.fullmatch(NAME, name):
            yield ("sites", name), f"{name!r} is no name for a site; use letters, digits, _ . and -"
        elif len(name) > LONGEST_NAME:
            yield ("sites", name), f"the name of a site has at most {LONGEST_NAME} characters, this has {len(name)}"
    total = sum(card.split.fractions)
    if abs(total - 1) > 1e-6:
        yield ("split",), f"train, validation and test sum to {total:g}; make them sum to 1"
    yield from _check_amounts(card)
    if card.slices.at is not None and card.slices.range != (0.0, 1.0):
        yield ("slices", "at"), "at and range both say which slices are used; drop one (range: [0, 1])"
    if card.split.by == "scan" and card.split.file is None and not isinstance(card, FeatureTableCard):
        yield ("split", "by"), "only a file can list scans; write split: {file: split.yaml, by: scan}, or drop by"
    if card.labels is not None:
        yield from _check_labels(card.labels)
    if card.volumes is not None:
        yield from _check_volumes(card, card.volumes)
    if isinstance(card, PhantomCard):
        yield from _check_phantom(card)
        return
    if isinstance(card, FeatureTableCard):
        yield from _check_tables(card)
        return
    if isinstance(card, PngCard):
        yield from _check_pngs(card)
    for name, site in card.sites.items():
        yield from _check_site(card, name, site)


def _check_amounts(card: Card) -> Iterator[tuple[Where, str]]:
    """Numbers that would take hours or all memory to plan with."""
    asked: list[tuple[Where, int | None]] = [(("scans",), card.scans)]
    asked += [(("sites", name, "scans"), site.scans) for name, site in card.sites.items() if site]
    for at, scans in asked:
        if scans is not None and scans > MOST_SCANS:
            yield at, f"scans is {scans}; at most {MOST_SCANS} of a site can be asked for"
    if card.slices.count != "all" and card.slices.count > MOST_SLICES:
        yield ("slices", "count"), f"slices.count is {card.slices.count}; no head has more than {MOST_SLICES}"


def _check_labels(table: LabelTable) -> Iterator[tuple[Where, str]]:
    for index, name in enumerate(table.names):
        if name in table.names[:index]:
            yield ("labels", "names", index), f"{name!r} is listed twice"
    for grouping, entries in table.groupings.items():
        at: Where = ("labels", "groupings", grouping)
        if grouping == IDENTITY:
            yield at, "identity always exists and cannot be replaced; choose another name"
        for key, name in entries.items():
            try:
                id_range(key)
            except ValueError:
                yield (*at, key), f"{key!r} is neither an id nor a range such as 1000-1035"
            if name not in table.names:
                yield (*at, key), f"{name!r} is no label{did_you_mean(name, table.names)}"

    for index, name in enumerate(table.ignored):
        here: Where = ("labels", "ignored", index)
        if name not in table.names:
            yield here, f"{name!r} is no label{did_you_mean(name, table.names)}"
        elif name == table.names[0]:
            yield here, f"{name!r} is the background, which is never a region; leave it out"


def _check_volumes(card: Card, whole: Volumes) -> Iterator[tuple[Where, str]]:
    if isinstance(card, PhantomCard):
        if card.population != "neonatal":
            yield ("volumes",), "only newborns are simulated as whole volumes; write population: neonatal, or drop it"
    elif not isinstance(card, NiftiCard) or isinstance(card, PngCard):
        yield ("volumes",), f"a card of kind {card.kind} has no whole volumes; write slices, or kind: nifti"
    elif whole.voxel_mm is not None:
        yield ("volumes", "voxel_mm"), "volumes keep the voxels of their files; drop voxel_mm, it is the phantom's"


def _check_phantom(card: PhantomCard) -> Iterator[tuple[Where, str]]:
    from harness.phantom.geometry import FIELD_MM

    slices, newborns = card.slices, card.population == "neonatal"
    if slices.plane == "sagittal":
        yield ("slices", "plane"), "the phantom is cut coronally or axially; write plane: coronal, or plane: axial"
    else:
        seen, needed = slices.size * (slices.pixel_mm or 1.0), FIELD_MM[card.population, slices.plane]
        if seen < needed:
            yield ("slices", "size"), f"size × pixel_mm is {seen:g} mm; a brain needs {needed:g} mm or more"
    contrasts, unit = (("T1w", "T2w"), "weeks") if newborns else (("T1w",), "years")
    if card.slices.at is not None:
        yield ("slices", "at"), "the phantom has no voxels to count; write range: [first, last], as fractions"
    if card.intensity.percentile is None:
        yield ("intensity",), "a phantom's images have no grey levels of their own; write {percentile: 99.5}, or max"
    if not card.lesions:
        for name, entry in card.sites.items():
            for field in sorted((entry.model_fields_set if entry else set()) - {"scans"}):
                yield ("sites", name, field), f"{field} goes with patients; write lesions: true in the card, or drop it"
    if card.lesions:
        yield from _check_patients(card)
    elif card.modality not in contrasts:
        what = f"the {card.population} phantom has no {card.modality!r}; write {' or '.join(contrasts)}"
        yield ("modality",), what
    if card.age_unit != unit:
        yield ("age_unit",), f"ages of the {card.population} phantom are in {unit}; write age_unit: {unit}"
    if card.anatomies is not None and newborns:
        yield ("anatomies",), "label maps are of adults; drop anatomies, or write population: adult"
    if card.anatomies is not None:
        trouble = layout.path_trouble(card.anatomies)
        if trouble:
            yield ("anatomies",), trouble


def _check_patients(card: PhantomCard) -> Iterator[tuple[Where, str]]:
    from harness.phantom.scanners import CONTRASTS

    if card.population != "adult":
        yield ("lesions",), "lesions grow in adults only; write population: adult"
    if card.anatomies is not None:
        yield ("anatomies",), "lesions grow in the simulated people only; drop anatomies, or lesions"
    diseases: dict[str, tuple[str, str]] = {}
    for name, entry in card.sites.items():
        site = entry or PhantomSite()
        contrast = site.modality or card.modality
        if contrast not in CONTRASTS:
            at = ("sites", name, "modality") if site.modality else ("sites", name)
            yield at, f"the phantom has no contrast {contrast!r}; give modality: {', '.join(CONTRASTS)}"
        first, disease = diseases.setdefault(site.cohort or name, (name, site.disease))
        if disease != site.disease:
            what = f"{first} has the same people, and disease {disease}; write the same, or another cohort"
            yield ("sites", name, "disease"), what


def _check_pngs(card: PngCard) -> Iterator[tuple[Where, str]]:
    if card.slices.pixel_mm is not None:
        what = "PNG slices are never resampled; drop pixel_mm, and set spacing: to the size of a pixel"
        yield ("slices", "pixel_mm"), what
    if card.slices.at is not None:
        yield ("slices", "at"), "PNG slices are chosen by their names; write the pattern narrower, or use range"


def _check_site(card: NiftiCard, name: str, site: NiftiSite) -> Iterator[tuple[Where, str]]:
    at: Where = ("sites", name)
    if site.of is not None:
        yield from _check_copy(card, name, site)
        return
    if site.image is None:
        yield at, "image is missing; give a path pattern, or `of:` another site"
        return
    fields = layout.fields_of(site.image)
    known = (*layout.FIELDS, "slice") if isinstance(card, PngCard) else layout.FIELDS
    for role in ("image", "label", "mask"):
        pattern = getattr(site, role)
        if pattern is None:
            continue
        trouble = layout.pattern_trouble(pattern, known)
        if trouble is None and role != "image" and not layout.fields_of(pattern) <= fields:
            trouble = f"uses fields that image does not have; it has {', '.join(sorted(fields)) or 'none'}"
        if trouble is None and role == "image" and not fields & {"scan", "subject"}:
            trouble = "names no {scan} or {subject}; without one, scans cannot be told apart"
        if trouble:
            yield (*at, role), f"{role}: {trouble}"
    if site.subjects is not None:
        yield from _check_table((*at, "subjects"), site.subjects, fields)
    if site.surfaces is not None:
        yield from _check_surfaces((*at, "surfaces"), site.surfaces, fields)
    for family, table in site.tables.items():
        yield from _check_feature_file((*at, "tables", family), table, fields)
    if site.healthy and not card.lesions:
        yield (*at, "healthy"), "healthy says that nobody has a lesion; write lesions: true in the card, or drop it"
    if site.healthy and site.label is not None:
        yield (*at, "healthy"), "a healthy site needs no label; drop label, or healthy"
    if site.label is not None:
        if card.labels is None:
            yield (*at, "label"), "the card has no labels table; add labels: and name the groups"
        elif site.grouping != IDENTITY and site.grouping not in card.labels.groupings:
            groupings = [IDENTITY, *card.labels.groupings]
            yield (*at, "grouping"), f"unknown grouping {site.grouping!r}{did_you_mean(site.grouping, groupings)}"
    yield from _check_twice(at, site.same_subject)


def _check_table(at: Where, table: SubjectsTable, fields: set[str]) -> Iterator[tuple[Where, str]]:
    for name, text in (("file", table.file), ("key", table.key)):
        trouble = layout.pattern_trouble(text) if name == "file" and text else None
        if trouble is None and text is not None and not layout.fields_of(text) <= fields:
            trouble = f"{text!r} uses fields that image does not have; it has {', '.join(sorted(fields)) or 'none'}"
        if trouble is None and text is not None and "*" in text:
            trouble = f"{text!r} has a *; write out the {name}"
        if trouble:
            yield at, f"subjects: {trouble}"
    if table.ages is not None and not table.ages[0] <= table.ages[1]:
        yield (*at, "ages"), f"write [youngest, oldest]; got {list(table.ages)}"
    if table.people is not None:
        yield from _check_table((*at, "people"), table.people, fields)


def _check_surfaces(at: Where, surfaces: Surfaces, fields: set[str]) -> Iterator[tuple[Where, str]]:
    if not any(getattr(surfaces, role) for role in MAPS):
        yield at, f"names no map to compute features from; give {', '.join(MAPS)}, or one of them"
    for role in (*MAPS, "parcels", "medial_wall"):
        pattern = getattr(surfaces, role)
        if pattern is None:
            continue
        trouble = layout.pattern_trouble(pattern, (*layout.FIELDS, "hemi"))
        if trouble is None and not layout.fields_of(pattern) <= fields | {"hemi"}:
            trouble = f"uses fields that image does not have; it has {', '.join(sorted(fields)) or 'none'}"
        if trouble is None and ("hemi" in layout.fields_of(pattern)) != pattern.endswith(".gii"):
            trouble = f"{pattern!r}: a .gii file is of one hemisphere, {{hemi}}; a CIFTI file, .nii, holds both"
        if trouble:
            yield (*at, role), f"{role}: {trouble}"


def _check_feature_file(at: Where, table: FeatureFile, fields: set[str]) -> Iterator[tuple[Where, str]]:
    trouble = layout.path_trouble(table.file)
    if trouble:
        yield (*at, "file"), trouble
    if table.key is not None and not layout.fields_of(table.key) <= fields:
        what = f"{table.key!r} uses fields that image does not have; it has {', '.join(sorted(fields)) or 'none'}"
        yield (*at, "key"), what
    yield from _check_stars(at, table.columns)


def _check_stars(at: Where, columns: Sequence[str]) -> Iterator[tuple[Where, str]]:
    for index, column in enumerate(columns):
        if column.count("*") > 1:
            yield (*at, "columns", index), f"{column!r} has more than one *; one stands for the region"


def _check_copy(card: NiftiCard, name: str, site: NiftiSite) -> Iterator[tuple[Where, str]]:
    at: Where = ("sites", name)
    base = card.sites.get(site.of or "")
    if base is None:
        others = [other for other in card.sites if other != name]
        yield (*at, "of"), f"unknown site {site.of!r}{did_you_mean(site.of or '', others)}"
    elif base.of is not None:
        yield (*at, "of"), f"{site.of} is itself a copy; write of: {base.of}"
    for field in sorted(site.model_fields_set - {"of", "shift"}):
        yield (*at, field), f"{field} comes from {site.of}; only shift: goes with of:"
    if site.shift is None:
        yield at, f"is an unchanged copy of {site.of}; add shift: and say what changes"


def _check_twice(at: Where, groups: Sequence[Sequence[str]]) -> Iterator[tuple[Where, str]]:
    seen: set[str] = set()
    for i, group in enumerate(groups):
        for j, scan in enumerate(group):
            if scan in seen:
                what = f"scan {scan!r} is listed twice; put all scans of a person in one list"
                yield (*at, "same_subject", i, j), what
            seen.add(scan)


def _check_tables(card: FeatureTableCard) -> Iterator[tuple[Where, str]]:
    from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO

    known = (RELATIONAL_VOLUME, SURFACE_RATIO)
    for name, family in card.families.items():
        meant = next((one for one in known if name != one and _alike(name, one)), None)
        if meant is not None:
            yield ("families", name), f"{name!r} is read as a family of its own; if {meant!r} is meant, write it so"
        yield from _check_stars(("families", name), family.columns)
        regions = family.regions()
        twice = next((region for i, region in enumerate(regions) if region in regions[:i]), None)
        if twice is not None:
            yield ("families", name, "of"), f"{twice!r} is listed twice; name every region once"
    if card.swap and not set(known) <= set(card.families):
        yield ("swap",), f"swap exchanges {known[0]!r} and {known[1]!r}; name both families, or drop it"
    for field in ("slices", "lesions"):
        if field in card.model_fields_set:
            yield (field,), f"{field} is for images, and a table has none; drop it"
    for name, site in card.sites.items():
        yield from _check_table_files(card, ("sites", name), site)


def _alike(name: str, other: str) -> bool:
    from difflib import SequenceMatcher

    return SequenceMatcher(None, name.lower().replace("_", " "), other).ratio() > 0.85


def _check_table_files(card: FeatureTableCard, at: Where, site: TableSite) -> Iterator[tuple[Where, str]]:
    if (site.file is None) == (not site.files):
        yield at, "name its table, file: features.csv, or one for each side, files: {train: ..., test: ...}"
        return
    for side, path in site.tables():
        trouble = layout.path_trouble(path)
        if trouble:
            yield (*at, "files", side) if side else (*at, "file"), trouble
    if card.split.file is not None and card.sides == "table":
        if site.files or "split" in card.columns.model_fields_set:
            where: Where = (*at, "files") if site.files else ("columns", "split")
            yield where, "table and split file both say who is on which side; write sides: card to heed the file"
    elif card.sides == "card" and card.split.by == "scan" and card.split.file is None:
        yield ("split", "by"), "by: scan needs a split file, or sides: table; write one of them, or drop by"
    if site.ages is not None and not site.ages[0] <= site.ages[1]:
        yield (*at, "ages"), f"write [youngest, oldest]; got {list(site.ages)}"

"""What a dataset card may say: the models behind datasets/*.yaml. Reading and merging cards is in card.py.

The models check the shape of each value; `cross_check` checks what one value says of another, and names the exact
place of each mistake. Importing this module needs pydantic and YAML only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from harness.api import Settings
from harness.data import layout
from harness.problems import Problem, did_you_mean
from harness.yamlfile import Document, Where

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Part = Split | Literal["all"]
"""A side of the split, or everybody: what a cohort that is only tested on is used as."""
Choice = Literal["all", "healthy", "lesions", "largest"]
CHOICES: tuple[Choice, ...] = ("all", "healthy", "lesions", "largest")
"""Slices: all that the card cuts, those without a lesion, those with one, of each scan the one with the largest."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
IDENTITY = "identity"

MOST_VOXELS = 2**29
"""Voxels of one volume: two GiB as float32, which is what an image is held in. Whole heads at 0.3 mm stay below it."""

SplitBy = Literal["subject", "scan"]

MOST_SCANS, MOST_SLICES, LONGEST_NAME = 10_000, 4096, 64
"""Scans that a card can ask for at a site, slices of a scan, and characters of a site's name."""


class Terse(Settings):
    """Leaves fields out of its JSON that hold their default: what cards learn to say changes no card that is silent."""

    unsaid: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _where_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = handler(self)
        for name in self.unsaid:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                said.pop(name, None)
        return said


def _count(value: Any) -> int | Literal["all"]:
    """A plain function in place of a union: one mistake gives one message."""
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"must be a whole number above 0, or all; got {value!r}")


def _fractions(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError("must be two fractions of the brain's extent, 0 <= first < second <= 1")
    return value


def _first_last(value: tuple[int, int] | None) -> tuple[int, int] | None:
    if value is not None and not 0 <= value[0] <= value[1]:
        raise ValueError("must be [first, last], two voxel indices, 0 <= first <= last")
    return value


class Slices(Settings):
    """How slices are cut from a volume in closest-canonical RAS.

    plane:    coronal (posterior to anterior), axial (inferior to superior) or sagittal (left to right).
              Row 0 is superior (axial: anterior), column 0 is left (sagittal: posterior).
    size:     rows = columns; slices are cropped or padded to it about the middle of the brain.
    pixel_mm: in-plane pixel; null keeps the voxels as they are (never resampled).
    count:    slices per scan, evenly spread over `range`; `all` keeps every slice.
    range:    part of the brain's extent across the slices that is used, as fractions.
    at:       [first, last] of the slices that are used, in voxels of the file from inferior (coronal: posterior,
              sagittal: left), both included; in place of `range`.
    """

    plane: Literal["coronal", "axial", "sagittal"] = "coronal"
    size: int = Field(256, ge=16, le=1024)
    pixel_mm: float | None = Field(None, ge=0.1, le=10)
    count: Annotated[int | Literal["all"], PlainValidator(_count)] = "all"
    range: Annotated[tuple[float, float], AfterValidator(_fractions)] = (0.0, 1.0)
    at: Annotated[tuple[int, int] | None, AfterValidator(_first_last)] = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`at` only where it is used: cards that do not know it keep their stages' keys."""
        said: dict[str, Any] = handler(self)
        if self.at is None:
            said.pop("at", None)
        return said


class Volumes(Settings):
    """Scans are kept whole, in closest-canonical RAS and cropped to the brain, beside what `slices` says of cutting.

    voxel_mm: edge of the phantom's voxels; null: 0.5, as released. Files are never resampled.
    margin:   voxels that are kept about the brain's box, as far as the file goes.
    chunk:    scans that are prepared together, as one artifact.
    """

    voxel_mm: float | None = Field(None, ge=0.3, le=5)
    margin: int = Field(2, ge=0, le=64)
    chunk: int = Field(16, ge=1, le=1000)


class Intensity(Settings):
    """How grey levels 0..255 are made: the given percentile of the brain's voxels becomes 255.

    Written as `{percentile: 99.5}`, as `max` (percentile 100), or as `none` for files that are 8-bit already.
    """

    percentile: float | None = Field(99.5, ge=50, le=100)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        words = {"max": {"percentile": 100.0}, "none": {"percentile": None}}
        if isinstance(value, str):
            if value not in words:
                raise ValueError(f"write {{percentile: 99.5}}, max or none; got {value!r}")
            return words[value]
        return value


class SplitRule(Terse):
    """Which subjects are trained on: fractions by count, or a file that lists them.

    by: what the file lists. With `scan` a person's scans may be on several sides, as in some published splits; how many
    people are is then reported (`Dataset.shared_subjects`).
    """

    unsaid = ("by",)

    train: float = Field(0.60, gt=0, lt=1)
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.25, gt=0, lt=1)
    seed: int = 0
    file: str | None = None
    by: SplitBy = "subject"

    @property
    def fractions(self) -> tuple[float, float, float]:
        return self.train, self.validation, self.test


class LabelTable(Terse):
    """Label names in order of their value, background first; and how other numberings map to them.

    groupings: name → {id or "low-high" range: label name}. A single id counts before a range that holds it. Ids
    that a grouping does not mention are reported by the audit. `identity` always exists: label i is i.
    ignored: labels that are no region of the brain, such as what lies outside the head. Only whole volumes heed it.
    """

    unsaid = ("ignored",)

    names: list[str] = Field(min_length=2, max_length=255)
    groupings: dict[str, dict[int | str, str]] = Field(default_factory=dict)
    ignored: list[str] = Field(default_factory=list)

    @property
    def ignored_values(self) -> list[int]:
        """Values of the ignored labels."""
        return [self.names.index(name) for name in self.ignored]

    def ranges(self, grouping: str) -> list[tuple[int, int, int]]:
        """(lowest id, highest id, label) for each entry; single ids last, so that later entries count."""
        if grouping == IDENTITY:
            return [(i, i, i) for i in range(len(self.names))]
        found = [(*_ids(key), self.names.index(name)) for key, name in self.groupings[grouping].items()]
        return sorted(found, key=lambda entry: (entry[0] - entry[1], entry))


def _ids(key: int | str) -> tuple[int, int]:
    """Lowest and highest id of a grouping's key. Raises ValueError if it is neither an id nor a range."""
    low, dash, high = str(key).partition("-")
    first, last = int(low), int(high if dash else low)
    if not 0 <= first <= last:
        raise ValueError(key)
    return first, last


class SubjectsTable(Terse):
    """A CSV or TSV file below the data root, one row per scan; the fields name its columns.

    `scan` must exist; a scan is looked up by its name, else by its subject's. The other columns may be missing.
    Ages are in the card's `age_unit`, `sex` is F or M. Written as a plain path, it has the columns named here.

    file:  may hold fields of the image pattern, where everybody has a table: sub-{subject}/sub-{subject}_sessions.tsv.
    key:   what the column `scan` holds, where it is neither the scan's nor the subject's name: "Caltech_{scan}".
    sexes: how the table writes them, as {"1": M, "2": F}.
    only:  column → values; scans with another value are left out. "" is an empty cell.
    ages:  [youngest, oldest]; scans of other or unknown ages are left out.
    people: another table, for what this one does not say: one has a row for each visit, one for each person.
    """

    unsaid = ("birth_age", "people")

    file: str
    scan: str = "scan"
    subject: str = "subject"
    age: str = "age"
    sex: str = "sex"
    birth_age: str = "birth_age"
    key: str | None = None
    sexes: dict[str, Literal["F", "M"]] = Field(default_factory=dict)
    only: dict[str, list[str]] = Field(default_factory=dict)
    ages: tuple[float, float] | None = None
    people: SubjectsTable | None = None

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class Bias(Settings):
    """A smooth multiplicative field: its largest deviation from 1 in the brain, and its smoothness in mm."""

    amplitude: float = Field(ge=0, le=2)
    sigma_mm: float = Field(40.0, ge=10, le=200)


def _curve(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    inputs = [x for x, _ in points]
    if len(points) < 2 or inputs != sorted(set(inputs)) or (inputs[0], inputs[-1]) != (0, 1):
        raise ValueError("must be [[0, y], ..., [1, y]] with inputs that rise from 0 to 1")
    return points


class Shift(Settings):
    """A declared, simulated change of acquisition, applied to real scans; always shown as simulated.

    Applied to brain intensities in 0..1 in this order: `curve` (piecewise linear through [input, output]
    points), `gamma` (x to the power gamma), `bias`, `blur_mm` (Gaussian, full width at half maximum), `noise`
    (Rician; SD in each channel as a fraction of full scale). Seeded per scan.
    """

    curve: Annotated[list[tuple[float, float]], AfterValidator(_curve)] | None = None
    gamma: float = Field(1.0, ge=0.2, le=5)
    bias: Bias | None = None
    blur_mm: float = Field(0.0, ge=0, le=20)
    noise: float = Field(0.0, ge=0, le=0.5)
    seed: int = 0

    def describe(self) -> str:
        """In words, for tables: 'simulated: gamma 1.6, bias ±25 %'."""
        parts = ["contrast curve"] if self.curve else []
        parts += [f"gamma {self.gamma:g}"] if self.gamma != 1 else []
        parts += [f"bias ±{100 * self.bias.amplitude:g} %"] if self.bias else []
        parts += [f"blur {self.blur_mm:g} mm"] if self.blur_mm else []
        parts += [f"noise {100 * self.noise:g} %"] if self.noise else []
        return f"simulated: {', '.join(parts) or 'no change'}"


MAPS = ("sulc", "thickness", "curv")
"""Maps on cortical surfaces that features are computed from."""


class Surfaces(Settings):
    """Maps on the cortical surfaces of each scan, a number a vertex, which features of parcels are computed from.

    Path patterns have the fields of the site's `image`, and {hemi} where each hemisphere has a file: GIFTI (.gii), or
    CIFTI (.nii) with both in one.

    sulc, thickness, curv: sulcal depth, cortical thickness and mean curvature; at least one of them.
    parcels:     labels of the vertices, named in the file; without them there are features of hemispheres only.
    medial_wall: a mask whose value is `wall` where there is no cortex.
    hemispheres: what {hemi} stands for, left first. skip: names of parcels to leave out.
    """

    sulc: str | None = None
    thickness: str | None = None
    curv: str | None = None
    parcels: str | None = None
    medial_wall: str | None = None
    wall: Literal[0, 1] = 0
    hemispheres: tuple[str, str] = ("L", "R")
    skip: list[str] = Field(default_factory=list)


class FeatureFile(Settings):
    """A table of one family of features below the data root, CSV, TSV or Parquet, with a row for each scan of a site.

    Written as a plain path, it has a column `scan`, and all others are features.

    scan:    the column that names the scan, or its subject. key: what that holds where it is neither:
             "sub-{subject}_ses-{session}".
    columns: names of features' columns, with `*` for the region.
    """

    file: str
    scan: str = "scan"
    key: str | None = None
    columns: list[str] = Field(default_factory=lambda: ["*"], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"file": value}
        if isinstance(value, dict) and isinstance(value.get("columns"), str):
            return {**value, "columns": [value["columns"]]}
        return value


class NiftiSite(Terse):
    """One site of real scans.

    image, label, mask: path patterns below the data root with the fields {scan}, or {subject} and {session}; `*`
                matches any part of one name. The brain is where the mask is above 0.5 (so a stripped image serves),
                without one where the image is above 0.
    grouping:   which of the label table's groupings reads the label files.
    subjects:   table of who was scanned. same_subject: lists of scans of one person.
    exclude:    scans to leave out. scans: at most so many (whole subjects, chosen by hash).
    cohort:     sites with one cohort share subjects' names; default: the site alone.
    modality:   of this site's scans, where it is not the card's.
    healthy:    nobody here has a lesion: no labels are needed. Only where the card's labels are `lesions`.
    of, shift:  `of: OTHER` takes OTHER's scans; `shift` changes them. See `Shift`.
    surfaces:   maps on the cortex of each scan, for features of its parcels.
    tables:     family → table of features that somebody has computed from the scans.
    """

    unsaid = ("surfaces", "tables")

    image: str | None = None
    label: str | None = None
    mask: str | None = None
    grouping: str = IDENTITY
    subjects: SubjectsTable | None = None
    same_subject: list[list[str]] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    scans: int | None = Field(None, ge=3)
    cohort: str | None = None
    modality: str | None = None
    healthy: bool = False
    of: str | None = None
    shift: Shift | None = None
    surfaces: Surfaces | None = None
    tables: dict[str, FeatureFile] = Field(default_factory=dict)


class PhantomSite(Settings):
    """One site of the phantom. scans: how many; null takes the paper's number.

    The others go with a card's `lesions: true`:
    disease:  what its people have: none, stroke, tumour, wmh (hyperintense white matter), or mixed (one of the three).
    cohort:   sites with one cohort image the same people, with the same lesions; default: the site alone.
    modality: T1w, T1CE, T2w or FLAIR, where it is not the card's.
    scanner:  whose protocol images them: BRATS, IXI, ATLAS or one of the seven adult sites; default BRATS.
    """

    scans: int | None = Field(None, ge=3)
    disease: Literal["none", "stroke", "tumour", "wmh", "mixed"] = "none"
    cohort: str | None = None
    modality: str | None = None
    scanner: str | None = None


class BaseCard(Terse):
    """What every card has.

    access tells how to get the data. age_unit: of every age of the data set; years of life, or weeks of
    postmenstrual age. scans: at most so many scans per site (whole subjects, chosen by hash). modality: T1w, T1CE, T2w,
    FLAIR, or any other word. lesions: the labels are lesions; any value above 0 is one. volumes: scans are also wanted
    whole.
    """

    unsaid = ("volumes",)

    id: str = Field(pattern=NAME)
    name: str
    simulated: bool
    modality: str
    age_unit: Literal["years", "weeks"] = "years"
    reference: str
    licence: str
    access: str
    notes: str = ""
    labels: LabelTable | None = None
    lesions: bool = False
    slices: Slices = Slices()
    volumes: Volumes | None = None
    split: SplitRule = SplitRule()
    scans: int | None = Field(None, ge=3)

    _source: Document = PrivateAttr(default_factory=lambda: Document("card", {}))
    _split_file: str | None = PrivateAttr(default=None)

    @property
    def split_file(self) -> str | None:
        """Path of the split file, resolved against the file that names it."""
        return self._split_file

    def problem(self, loc: Where, what: str) -> Problem:
        """A problem at the place of a field: in the card, or in the benchmark file that overrides it."""
        return self._source.problem(loc, what)


class PhantomCard(BaseCard):
    """Simulated scans; see harness/phantom.

    population: adults, T1w; or newborns, T1w or T2w by `modality`, with ages in weeks. With `lesions`, sites of adults
    say which disease their people have and at which contrast they are imaged. With `volumes`, newborns are those of
    harness/phantom/newborn_volume.py, and have no slices.
    intensity: the percentile of the brain, over the slices that are cut, that becomes white.
    anatomies: folder below the data root with label maps (15 groups, 1 mm) of real people, in place of the
    deformed template; each is then a subject scanned at every site.
    """

    kind: Literal["phantom"]
    simulated: Literal[True]
    population: Literal["adult", "neonatal"] = "adult"
    sites: dict[str, PhantomSite | None] = Field(min_length=1)
    seed: int = 0
    intensity: Intensity = Intensity()
    anatomies: str | None = None


Millimetres = Annotated[float, Field(ge=0.05, le=20)]


class NiftiCard(BaseCard):
    """Scans in NIfTI, Analyze or MGH files. most_voxels: of one volume; files that claim more are not opened."""

    kind: Literal["nifti", "png"]  # a PngCard narrows it
    sites: dict[str, NiftiSite] = Field(min_length=1)
    intensity: Intensity = Intensity()
    most_voxels: int = Field(MOST_VOXELS, ge=1, le=2**40)

    def scanned(self, site: str) -> str:
        """The site whose files `site` uses: itself, or the one it is `of`."""
        return self.sites[site].of or site


class PngCard(NiftiCard):
    """Slices in PNG or JPEG files, 8 or 16 bits of grey. A site's patterns may have the field {slice}.

    slices.plane says how they lie, row 0 superior (axial: anterior), column 0 left (sagittal: posterior); `at` and
    `pixel_mm` do not apply, as nothing is resampled. spacing: mm along (slice, row, column).
    """

    kind: Literal["png"]
    intensity: Intensity = Intensity(percentile=None)
    spacing: tuple[Millimetres, Millimetres, Millimetres] = (1.0, 1.0, 1.0)


class TableColumns(Settings):
    """Columns of a feature table that are no features, by their names in its first row.

    scan:      the scan's name; or several columns filled into a pattern, as "{sub}_{ses}".
    subject:   the person; null: everybody was scanned once. age and birth_age are in the card's `age_unit`.
    split:     train, validation or test.
    sexes:     how the table writes them, as {"1": M, "2": F}, where the first letter is neither F nor M.

    sex, birth_age and split may be missing from the table unless the card names them.
    """

    scan: str = "scan"
    subject: str | None = "subject"
    age: str = "age"
    sex: str | None = "sex"
    birth_age: str | None = "birth_age"
    split: str | None = "split"
    sexes: dict[str, Literal["F", "M"]] = Field(default_factory=dict)

    def named(self, role: str) -> bool:
        """Whether the table must have the column of a role."""
        return role in ("scan", "subject", "age") or role in self.model_fields_set


class FeatureFamily(Settings):
    """Where a feature table holds one family of features, such as relational volumes.

    columns:   names of columns, one a feature; `*` stands for the region: its name, or its number in `labels`.
               Written as a plain word or a list.
    column:    one column, whose cells hold a dictionary or a list of numbers each.
    of:        regions of such a list in their order, or those that a dictionary must have: names, labels, or ranges of
               labels such as 1-83.
    """

    columns: list[str] = Field(default_factory=list)
    column: str | None = None
    of: list[int | str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"columns": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value

    @model_validator(mode="after")
    def _one(self) -> FeatureFamily:
        if bool(self.columns) == (self.column is not None):
            raise ValueError("name its columns, as rv_* or a list, or one column: with dictionaries, not both")
        if self.of and self.column is None:
            raise ValueError("of: goes with column:, whose cells hold many numbers; drop it")
        return self

    def regions(self) -> list[str]:
        """`of`, ranges written out."""
        found: list[str] = []
        for entry in self.of:
            low, dash, high = str(entry).partition("-")
            if dash and low.isdecimal() and high.isdecimal():
                first, last = _ids(entry)
                found += map(str, range(first, last + 1))
            else:
                found.append(str(entry))
        return found


class TableSite(Settings):
    """One site of a feature table.

    file:    the table below the data root, CSV, TSV or Parquet, a row per scan. files: one for each side of the split.
    only:    column → values; rows with another value are left out: tables of several sites have a column for it.
    ages:    [youngest, oldest]; scans of other ages are left out.
    exclude: scans to leave out. scans: at most so many (whole subjects, chosen by hash).
    cohort:  sites with one cohort share subjects' names; default: the site alone.
    """

    file: str | None = None
    files: dict[Split, str] = Field(default_factory=dict)
    only: dict[str, list[str]] = Field(default_factory=dict)
    ages: tuple[float, float] | None = None
    exclude: list[str] = Field(default_factory=list)
    scans: int | None = Field(None, ge=3)
    cohort: str | None = None
    modality: str | None = None

    def tables(self) -> list[tuple[Split | None, str]]:
        """(side, file): the side that a file's rows are on, None where the file is for all."""
        found: list[tuple[Split | None, str]] = [(side, self.files[side]) for side in SPLITS if side in self.files]
        return found or [(None, self.file or "")]


class FeatureTableCard(BaseCard):
    """Features of scans that somebody else has computed: no images, a table with a row per scan.

    sides: who says who is trained on: the "table", by a file for each side or by a column, and by `split` where it has
           neither; or the "card", by `split` alone.
    swap:  the file names relational volumes "surface ratios" and the other way round; they are exchanged when read.
    """

    kind: Literal["table"]
    sites: dict[str, TableSite] = Field(min_length=1)
    columns: TableColumns = TableColumns()
    families: dict[str, FeatureFamily] = Field(min_length=1)
    sides: Literal["table", "card"] = "table"
    swap: bool = False


Card = PhantomCard | NiftiCard | PngCard | FeatureTableCard
KINDS: dict[str, type[Card]] = {"phantom": PhantomCard, "nifti": NiftiCard, "png": PngCard, "table": FeatureTableCard}


# ----------------------------------------------------------------------------------------- cross-checks


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
                _ids(key)
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

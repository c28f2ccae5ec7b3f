"""What a dataset card may say: the models behind datasets/*.yaml. Reading and merging cards is in card.py.

The models check the shape of each value; what one value says of another is checked in card_checks.py. Importing this
module needs pydantic and YAML only.
"""

from __future__ import annotations

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
from harness.problems import Problem
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
        found = [(*id_range(key), self.names.index(name)) for key, name in self.groupings[grouping].items()]
        return sorted(found, key=lambda entry: (entry[0] - entry[1], entry))


def id_range(key: int | str) -> tuple[int, int]:
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
                first, last = id_range(entry)
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

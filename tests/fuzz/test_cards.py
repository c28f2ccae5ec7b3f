"""Damaged cards, label tables and split files are read, or refused in lines that name a place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mutants import BATCH, SECONDS, Tally, fuzz
from reliability import note

from harness import yamlfile
from harness.data.card import NiftiCard, load_card, read_card
from harness.data.dataset import open_dataset
from harness.data.schema import Split
from harness.data.splits import as_document
from harness.problems import UserError

pytestmark = pytest.mark.timeout(SECONDS + 600)

REPO = Path(__file__).resolve().parents[2]
CARDS = [file.read_text() for file in sorted((REPO / "datasets").glob("*.yaml"))]
TABLES = [file.read_text() for file in sorted((REPO / "datasets" / "labels").glob("*.yaml"))]
SMALL = """\
id: small
name: Small
kind: nifti
simulated: false
modality: T1w
reference: ours
licence: none
access: none
labels: {names: [background, left], groupings: {coarse: {0: background, 5-9: left}}}
slices: {plane: coronal, size: 32, count: 4}
sites:
  A:
    image: a/{scan}_T1w.nii
    label: a/{scan}_seg.nii
    mask: a/{scan}_*w.nii
    subjects: {file: people.csv, key: "sub-{scan}", only: {group: ["1"]}, ages: [20, 60]}
    same_subject: [[s0, s1]]
    exclude: [s2]
  B: {image: "{subject}/{session}/x_{subject}.nii", subjects: "{subject}/visits.tsv", cohort: A}
  C: {of: A, shift: {gamma: 2, curve: [[0, 0], [1, 1]], bias: {amplitude: 0.3}}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files where the small card looks for them. What they hold is none of a card's business."""
    folder = tmp_path / "data"
    for name in [f"a/s{i}_{kind}.nii" for i in range(4) for kind in ("T1w", "seg")]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "people.csv").write_text("scan,age,sex,group\n" + "".join(f"sub-s{i},{30 + i},F,1\n" for i in range(4)))
    for i in range(2):
        (folder / f"p{i}" / "v1").mkdir(parents=True)
        (folder / f"p{i}" / "v1" / f"x_p{i}.nii").write_bytes(b"x")
        (folder / f"p{i}" / "visits.tsv").write_text("scan\tage\nv1\t40\n")
    return folder


def test_damaged_cards(root: Path, tmp_path: Path) -> None:
    tally = Tally()
    path = tmp_path / "card.yaml"
    shutil.copytree(REPO / "datasets" / "labels", tmp_path / "labels")

    def load() -> None:
        dataset = open_dataset(read_card(path), root, tmp_path / "cache")
        if isinstance(dataset.card, NiftiCard):
            # What is wrong with files and tables is told by the audit; here only where they lie is looked at.
            found = [problem for site in dataset.sites for problem in dataset.layout(site).problems]
            if found:
                raise UserError(found)
        for site in dataset.sites:
            dataset.images(site, "test")
        json.dumps(dataset.summary(), allow_nan=False)

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        tally.take(load)

    path.write_text(SMALL)
    load()  # undamaged, it has no problems
    seconds = fuzz(one, [*CARDS, *[SMALL] * 8])
    assert tally.inputs >= BATCH
    assert tally.read
    assert tally.refused
    note("fuzzed data set cards", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")


def test_damaged_label_tables(tmp_path: Path) -> None:
    tally = Tally()
    table = SMALL[SMALL.index("labels:") : SMALL.index("slices:")]
    (tmp_path / "card.yaml").write_text(SMALL.replace(table, "labels: t.yaml\n"))

    def one(raw: bytes) -> None:
        (tmp_path / "t.yaml").write_bytes(raw)
        tally.take(lambda: read_card(tmp_path / "card.yaml"))

    seconds = fuzz(one, [*TABLES, "names: [a, b]\ngroupings: {coarse: {1: a, 2-3: b, 7: b}}\n"])
    assert tally.inputs >= BATCH
    assert tally.read
    note("fuzzed data set cards", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")


OVERRIDES = [
    "data: {card: card.yaml, with: {scans: 5, slices: {size: 64, pixel_mm: 2.0, count: 3, range: [0.2, 0.8]}}}",
    "data: {card: card.yaml, with: {labels: {names: [background, right], groupings: {fine: {3-4: right}}}}}",
    "data: {card: card.yaml, with: {sites: {A: {mask: null, exclude: [s0]}, D: {of: A, shift: {noise: 0.1}}}}}",
    "data: {card: phantom_neonatal_t2, with: {seed: 3, split: {train: 0.5, validation: 0.25, test: 0.25}, scans: 9}}",
    "data: {card: phantom_adult_t1, with: {sites: {KKI: {scans: 4}}, labels: adult15, anatomies: maps}}",
]


def test_damaged_overrides(tmp_path: Path) -> None:
    tally = Tally()
    (tmp_path / "card.yaml").write_text(SMALL)
    path = tmp_path / "benchmark.yaml"

    def load() -> None:
        document = yamlfile.read(path)
        section = document.data.get("data")
        if isinstance(section, dict):
            load_card(document, section)

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        tally.take(load)

    seconds = fuzz(one, OVERRIDES)
    assert tally.inputs >= BATCH
    assert tally.read
    note("fuzzed data set cards", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")


def test_damaged_split_files(root: Path, tmp_path: Path) -> None:
    tally = Tally()
    (tmp_path / "card.yaml").write_text(SMALL + "split: {file: split.json}\n")

    def one(raw: bytes) -> None:
        (tmp_path / "split.json").write_bytes(raw)
        tally.take(
            lambda: open_dataset(read_card(tmp_path / "card.yaml"), root, tmp_path / "cache").images("A", "test")
        )

    sides: dict[str, Split] = {"A-s0": "train", "A-s1": "train", "A-s3": "validation", "B-p0": "test"}
    seconds = fuzz(one, [json.dumps(as_document(sides), indent=1), "train: [A-s0, b]\nvalidation: [c]\ntest: [d]\n"])
    assert tally.inputs >= BATCH
    assert tally.read
    note("fuzzed data set cards", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")

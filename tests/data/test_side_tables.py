"""Tables of features beside images: rows found by scans' names, columns by patterns, mistakes told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import write_scan

from harness.brain_age import RELATIONAL_VOLUME, Column
from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.feature_table import load_features
from harness.data.nifti import NiftiDataset
from harness.data.side_tables import audit_side_tables, side_table_stage
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

SITE_MORE = """\
    tables:
      cortical thickness: {file: stats/thickness.tsv, scan: measure, columns: ["lh_*", "rh_*"]}
      relational volume: stats/rv.csv
"""


def write_tables(root: Path, n: int = 6) -> dict[str, list[float]]:
    """Rows in another order than the scans; gives each scan's values in the order of the columns that are expected."""
    rng = np.random.default_rng(3)
    (root / "stats").mkdir(parents=True, exist_ok=True)
    values = {f"s{i}": [*rng.uniform(1, 3, 3).tolist(), *rng.dirichlet([1, 2]).tolist()] for i in range(n)}
    thick = "\n".join(f"{name}\t{v[2]}\t{v[1]}\t{v[0]}\t1500000" for name, v in reversed(values.items()))
    (root / "stats" / "thickness.tsv").write_text(f"measure\trh_z\tlh_b\tlh_a\teTIV\n{thick}\n")
    shares = "\n".join(f"{name},{v[4]},{v[3]}" for name, v in values.items())
    (root / "stats" / "rv.csv").write_text(f"scan,right,left\n{shares}\n")
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        write_scan(tmp_path / "data", f"s{index}")
    return tmp_path / "data"


Opened = Callable[..., NiftiDataset]


def told(dataset: NiftiDataset) -> list[str]:
    return [str(problem) for problem in audit_side_tables(dataset, "A")]


def test_rows_follow_the_scans(opened: Opened, root: Path, run_stage: RunStage) -> None:
    values = write_tables(root)
    dataset = opened()
    assert told(dataset) == []
    table = load_features(run_stage(side_table_stage(dataset, "A", "train")))
    assert [scan.id for scan in table.scans] == [scan.id for scan in dataset.scans("A", "train")]
    assert table.columns == (
        *(Column("cortical thickness", region) for region in ("a", "b", "z")),
        Column(RELATIONAL_VOLUME, "left", 1),
        Column(RELATIONAL_VOLUME, "right", 2),
    )
    np.testing.assert_array_equal(table.values, [values[scan.id.removeprefix("A-")] for scan in table.scans])


def test_a_key_says_how_the_table_calls_a_scan(opened: Opened, root: Path, run_stage: RunStage) -> None:
    write_tables(root)
    expected = load_features(run_stage(side_table_stage(opened(), "A", "all")))
    path = root / "stats" / "thickness.tsv"
    path.write_text(path.read_text().replace("\ns", "\nsub-s"))
    assert "has no row 's0', for A-s0 (and 5 more like it); add it, or exclude the scan" in told(opened())[0]
    dataset = opened(("scan: measure", 'scan: measure, key: "sub-{scan}"'))
    assert told(dataset) == []
    table = load_features(run_stage(side_table_stage(dataset, "A", "all")))
    np.testing.assert_array_equal(table.values, expected.values)


def test_only_the_rows_of_a_split_count(opened: Opened, root: Path) -> None:
    values = write_tables(root)
    before = {split: side_table_stage(opened(), "A", split).key for split in ("train", "test")}
    test = opened().scans("A", "test")[0].name
    path = root / "stats" / "thickness.tsv"
    path.write_text(path.read_text().replace(str(values[test][0]), "1.25"))
    after = {split: side_table_stage(opened(), "A", split).key for split in ("train", "test")}
    assert [before[split] == after[split] for split in before] == [True, False]


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("thickness.tsv", ("s3\t", "s9\t"), "thickness.tsv: has no row 's3', for A-s3"),
        ("thickness.tsv", ("s3\t", "s2\t"), "thickness.tsv:5: 's2' again, first at"),
        ("thickness.tsv", ("measure", "subject"), "has no column 'measure'"),
        ("thickness.tsv", ("rh_z", "right_z"), "has no column 'rh_*'; mend tables.cortical thickness.columns"),
        ("thickness.tsv", ("rh_z", "rh_a"), "'lh_a' and 'rh_a' both hold the cortical thickness of a"),
        ("rv.csv", ("s3,", "s3,x"), "rv.csv:5: relational volume of right: 'x"),
        ("rv.csv", ("s3,", "s3,-"), "rv.csv:5: relational volume of right is not in 0..1"),
        ("rv.csv", ("s3,", "s3,,"), "the table cannot be read"),
        ("rv.csv", ("right", "12"), "label 12 is not in the label table"),
    ],
)
def test_a_mistake_is_one_line(opened: Opened, root: Path, file: str, change: tuple[str, str], what: str) -> None:
    write_tables(root)
    path = root / "stats" / file
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    problems = told(opened())
    assert any(what in problem for problem in problems)
    assert all("\n" not in problem for problem in problems)


def test_an_empty_cell_is_a_mistake_where_a_volume_is_meant(opened: Opened, root: Path) -> None:
    values = write_tables(root)
    path = root / "stats" / "rv.csv"
    path.write_text(path.read_text().replace(str(values["s3"][4]), "n/a"))
    (problem,) = told(opened())
    assert problem.startswith(f"{root}/stats/rv.csv:5: relational volume of right is empty; write 0")


def test_a_missing_table_and_a_missing_site(opened: Opened, root: Path, card_file: Callable[..., Path]) -> None:
    assert ["no such table; add it" in problem for problem in told(opened())] == [True, True]
    bare: Any = open_dataset(read_card(card_file()), root)
    with pytest.raises(ValueError, match="A has no tables of features"):
        side_table_stage(bare, "A", "train")
    absent: Any = open_dataset(opened().card, None)
    assert side_table_stage(absent, "A", "train").params["digest"] == "absent"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("stats/rv.csv", "../rv.csv"), "leaves the data root"),
        (('"lh_*"', '"*h_*"'), "has more than one *"),
        (("scan: measure", 'scan: measure, key: "{subject}"'), "uses fields that image does not have"),
    ],
)
def test_a_card_that_contradicts_itself(opened: Opened, change: tuple[str, str], what: str) -> None:
    with pytest.raises(UserError) as error:
        opened(change)
    assert what in str(error.value)

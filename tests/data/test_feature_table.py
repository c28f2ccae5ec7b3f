"""Tables of ready-made features: what is read from which layout, what the audit says, what the stages leave."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO, Column, FeatureTable, VolumeScan
from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.feature_table import FeatureTableDataset, load_features, save_features
from harness.data.schema import SPLITS
from harness.data.table_file import BadTable, numbers, read_table
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

CARD = """\
id: tiny_table
name: Tiny
kind: table
simulated: false
modality: features
age_unit: weeks
reference: ours
licence: none
access: ask a friend
labels:
  names: [background, left, right, stem]
families:
  relational volume: rv_*
  surface ratio: svr_*
split: {train: 0.5, validation: 0.25, test: 0.25}
sites:
  A:
    file: features.csv
"""


def people(n: int = 12) -> list[dict[str, Any]]:
    """Rows of scans with three regions: shares that sum to 1, ratios that do not, ages that neither follows."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        volumes = rng.dirichlet([4, 5, 6])
        ratios = rng.uniform(0.2, 0.9, 3)
        rows.append(
            {
                "scan": f"s{i:02}",
                "subject": f"p{i:02}",
                "age": round(30 + float(rng.uniform(0, 14)), 3),
                "sex": "FM"[i % 2],
                **{f"rv_{k + 1}": float(volumes[k]) for k in range(3)},
                **{f"svr_{k + 1}": float(ratios[k]) for k in range(3)},
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], separator: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_csv(tmp_path / "data" / "features.csv", people())
    return tmp_path / "data"


@pytest.fixture
def opened(tmp_path: Path, root: Path) -> Callable[..., FeatureTableDataset]:
    """Open the tiny card with replacements (old, new); rows, if given, are written first."""

    def make(*replacements: tuple[str, str], rows: Sequence[Mapping[str, Any]] | None = None) -> FeatureTableDataset:
        text = CARD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "card.yaml"
        path.write_text(text)
        if rows is not None:
            write_csv(root / "features.csv", rows)
        dataset = open_dataset(read_card(path), root, tmp_path / "cache")
        assert isinstance(dataset, FeatureTableDataset)
        return dataset

    return make


Opened = Callable[..., FeatureTableDataset]


def told(dataset: FeatureTableDataset) -> list[str]:
    return [str(problem) for problem in dataset.audit(dataset.sites)]


def refused(make: Callable[[], Any]) -> list[str]:
    with pytest.raises(UserError) as error:
        make()
    return [str(problem) for problem in error.value.problems]


# --------------------------------------------------------------------------------------- what is read


def test_a_table_of_plain_columns(opened: Opened, run_stage: RunStage) -> None:
    dataset = opened()
    assert told(dataset) == []
    assert [len(dataset.scans("A", split)) for split in SPLITS] == [6, 3, 3]
    rows = {f"A-{row['scan']}": row for row in people()}
    for scan in dataset.scans("A"):
        row = rows[scan.id]
        assert (scan.subject, scan.age, scan.sex, scan.birth_age) == (
            f"A-{row['subject']}",
            row["age"],
            row["sex"],
            None,
        )
    folder = run_stage(dataset.features("A", "train"))
    table = load_features(folder)
    assert table.columns == tuple(
        Column(family, name, label)
        for family in (RELATIONAL_VOLUME, SURFACE_RATIO)
        for label, name in ((1, "left"), (2, "right"), (3, "stem"))
    )
    assert [scan.id for scan in table.scans] == [scan.id for scan in dataset.scans("A", "train")]
    expected = [[rows[s.id][f"{kind}_{k}"] for kind in ("rv", "svr") for k in (1, 2, 3)] for s in table.scans]
    np.testing.assert_array_equal(table.values, np.array(expected))
    np.testing.assert_allclose(table.only([RELATIONAL_VOLUME]).values.sum(axis=1), 1)


def test_no_artifact_holds_an_age(opened: Opened, run_stage: RunStage) -> None:
    dataset = opened(rows=[{**row, "age": 31.0625 + i / 8} for i, row in enumerate(people())])
    stage = dataset.features("A", "all")
    folder = run_stage(stage)
    held = "".join(path.read_text() for path in folder.glob("*.json")) + json.dumps(stage.params)
    assert not any(str(scan.age) in held for scan in dataset.scans("A"))
    assert "age" not in {key for row in json.loads((folder / "features.json").read_text())["scans"] for key in row}


def test_the_order_of_rows_and_columns_does_not_matter(opened: Opened) -> None:
    before = opened().features("A", "train").key
    mixed = [dict(sorted(row.items(), reverse=True)) for row in reversed(people())]
    assert opened(rows=mixed).features("A", "train").key == before


def test_a_value_of_one_side_makes_that_side_anew(opened: Opened) -> None:
    before = {split: opened().features("A", split).key for split in SPLITS}
    test = opened().scans("A", "test")[0].name
    changed = [{**row, "svr_1": 0.111} if row["scan"] == test else row for row in people()]
    after = {split: opened(rows=changed).features("A", split).key for split in SPLITS}
    assert [before[split] == after[split] for split in SPLITS] == [True, True, False]


def test_a_table_that_changes_between_plan_and_run_is_refused(opened: Opened, root: Path, run_stage: RunStage) -> None:
    stage = opened().features("A", "all")
    write_csv(root / "features.csv", [{**row, "svr_1": 0.5} for row in people()])
    with pytest.raises(ValueError, match="has changed since the run was planned"):
        run_stage(stage)
    write_csv(root / "features.csv", people()[1:])
    with pytest.raises(ValueError, match="has no scan 's00' any more"):
        run_stage(stage)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_every_format_reads_alike(opened: Opened, root: Path, ending: str) -> None:
    expected = opened().table("A")
    if ending == "parquet":
        pl.DataFrame(people()).write_parquet(root / "other.parquet")
    else:
        write_csv(root / f"other.{ending}", people(), "\t" if ending == "tsv" else ",")
    table = opened(("features.csv", f"other.{ending}")).table("A")
    assert table.problems == ()
    assert table.columns == expected.columns
    np.testing.assert_array_equal(table.values, expected.values)
    assert [s.age for s in table.scans] == [s.age for s in expected.scans]


def test_regions_are_named_by_what_the_star_stands_for(opened: Opened) -> None:
    rows = [{k.replace("rv_1", "rv_left").replace("_3", "_cortex"): v for k, v in row.items()} for row in people()]
    regions = [(c.region, c.label) for c in opened(rows=rows).table("A").columns]
    assert regions[:3] == [("left", 1), ("right", 2), ("cortex", None)]
    unnamed = opened(("labels:\n  names: [background, left, right, stem]\n", ""), rows=people())
    assert [(c.region, c.label) for c in unnamed.table("A").columns][:2] == [("label 1", 1), ("label 2", 2)]


def test_a_list_of_columns_keeps_its_order(opened: Opened) -> None:
    dataset = opened(("surface ratio: svr_*", "thickness: [svr_3, svr_1]"))
    assert [c.name for c in dataset.table("A").columns[3:]] == ["thickness of svr_3", "thickness of svr_1"]
    assert dataset.families == (RELATIONAL_VOLUME, "thickness")


def test_what_says_who_was_scanned_is_no_feature(opened: Opened) -> None:
    rows = [{**{k: v for k, v in row.items() if not k.startswith("svr")}, "split": "train"} for row in people()]
    dataset = opened(("surface ratio: svr_*", 'other: "*"'), rows=rows)
    assert {c.region for c in dataset.table("A").columns if c.family == "other"} == {"rv_1", "rv_2", "rv_3"}


def test_one_table_of_several_sites(opened: Opened) -> None:
    rows = [{**row, "centre": "XY"[i % 2]} for i, row in enumerate(people())]
    dataset = opened(
        ("file: features.csv", "file: features.csv\n    only: {centre: [X]}\n    exclude: [s02]"), rows=rows
    )
    assert [scan.name for scan in dataset.scans("A")] == ["s00", "s04", "s06", "s08", "s10"]
    assert told(dataset) == []


def test_limits_take_whole_subjects(opened: Opened) -> None:
    rows = [{**row, "subject": f"p{i // 2}"} for i, row in enumerate(people())]
    scans = opened(("split: {train", "scans: 5\nsplit: {train"), rows=rows).scans("A")
    assert len(scans) == 4
    assert all(sum(s.subject == scan.subject for s in scans) == 2 for scan in scans)


def test_a_table_has_no_images(opened: Opened) -> None:
    dataset = opened()
    (line,) = refused(lambda: dataset.images("A", "train"))
    assert "card.yaml:3:" in line
    assert "tiny_table is a table of features: it has no images and no labels; take it in track brain_age" in line
    for make in (dataset.labels, dataset.volumes, dataset.regions):
        with pytest.raises(ValueError, match=r"tiny_table|no labels"):
            make("A", "train")
    with pytest.raises(ValueError, match="no site 'B'"):
        dataset.features("B", "train")
    assert dataset.aged("A")
    assert dataset.summary()["features"] == {RELATIONAL_VOLUME: 3, SURFACE_RATIO: 3}


def test_planning_needs_no_data(opened: Opened, root: Path, tmp_path: Path) -> None:
    here = opened().features("A", "train")
    card = read_card(tmp_path / "card.yaml")
    for folder in (None, tmp_path / "nowhere"):
        absent = open_dataset(card, folder)
        assert isinstance(absent, FeatureTableDataset)
        assert absent.features("A", "train").key != here.key
        assert absent.scans("A") == ()
        assert "To get the data: ask a friend" in absent.missing()[0]
        assert [p.what for p in absent.audit(["A"])] == absent.missing()


def test_artifacts_come_back_as_they_were(tmp_path: Path) -> None:
    scans = (
        VolumeScan("a", "p", "A", (4, 5, 6), (0.5, 0.5, 0.5), (1, 2, 3), (9, 9, 9), "F", 28.5, "T2w"),
        VolumeScan("b", "q", "A", (0, 0, 0), (0.0, 0.0, 0.0)),
    )
    columns = (Column("volume", "x", 3), Column("thickness", "left y"))
    values = np.array([[0.1, np.nan], [1 / 3, -2]])
    save_features(tmp_path, FeatureTable(values, columns, scans))
    table = load_features(tmp_path)
    assert (table.scans, table.columns) == (scans, columns)
    np.testing.assert_array_equal(table.values, values)
    with pytest.raises(ValueError, match="2 scans with 2 features"):
        save_features(tmp_path, FeatureTable(values[:1], columns, scans))


# ------------------------------------------------------------------------------- the published layout


PUBLISHED = """\
columns: {scan: "{sub}_{ses}", subject: sub, age: scan_age, birth_age: birth_age, sex: gender}
families:
  relational volume: {column: seg_relational_volume, of: [1-2, 3]}
  surface ratio: {column: seg_surface_to_volume_ratio, of: [1-2, 3]}
"""
PLAIN = "families:\n  relational volume: rv_*\n  surface ratio: svr_*\n"
FILES = "files: {train: train.csv, validation: val.csv, test: test.csv}"
BY_SCAN = ("split: {train: 0.5, validation: 0.25, test: 0.25}", "split: {by: scan}")
SWAP = ("split: {", "swap: true\nsplit: {")


def write_published(root: Path, swapped: bool = True) -> list[dict[str, Any]]:
    """Three files with a dictionary in a cell, the index pandas writes, and two visits of p00 on two sides."""
    made = []
    for i, row in enumerate(people()):
        packed = [{k: row[f"{kind}_{k}"] for k in (1, 2, 3)} for kind in ("rv", "svr")]
        volumes, ratios = reversed(packed) if swapped else packed
        made.append(
            {
                "": i,
                "sub": "p00" if i == 11 else row["subject"],
                "ses": 7200 + i,
                "gender": "Male" if row["sex"] == "M" else "Female",
                "birth_age": 29.5,
                "scan_age": row["age"],
                "seg_relational_volume": str(volumes),
                "seg_surface_to_volume_ratio": str(ratios),
            }
        )
    for name, rows in (("train", made[:6]), ("val", made[6:9]), ("test", made[9:])):
        write_csv(root / f"{name}.csv", rows)
    return made


def test_the_published_layout(opened: Opened, root: Path, run_stage: RunStage) -> None:
    write_published(root)
    dataset = opened((PLAIN, PUBLISHED), ("file: features.csv", FILES), BY_SCAN, SWAP)
    assert told(dataset) == []
    assert [[s.name for s in dataset.scans("A", split)][:2] for split in SPLITS] == [
        ["p00_7200", "p01_7201"],
        ["p06_7206", "p07_7207"],
        ["p00_7211", "p09_7209"],
    ]
    first = dataset.scans("A", "train")[0]
    assert (first.id, first.subject, first.sex, first.birth_age) == ("A-p00_7200", "A-p00", "F", 29.5)
    table = load_features(run_stage(dataset.features("A", "train")))
    expected = [[row[f"{kind}_{k}"] for kind in ("rv", "svr") for k in (1, 2, 3)] for row in people()[:6]]
    np.testing.assert_array_equal(table.values, np.array(expected))
    assert table.columns[0] == Column(RELATIONAL_VOLUME, "left", 1)
    assert dataset.shared_subjects() == {"A-p00": ("train", "test")}
    by_scan, swap = dataset.warnings()
    assert "people on several of its sides: 1; scans of test" in by_scan
    assert "validation too: 1; errors" in by_scan
    assert "the wrong way round; they are exchanged (swap: true)" in swap
    assert dataset.summary()["warnings"] == [by_scan, swap]
    assert "A-p00" not in dataset.subjects()


def test_swapped_columns_are_refused_with_both_ways_out(opened: Opened, root: Path) -> None:
    write_published(root)
    (problem,) = told(opened((PLAIN, PUBLISHED), ("file: features.csv", FILES), BY_SCAN))
    assert "the surface ratios to 1: the table names the two the wrong way round." in problem
    assert "Write swap: true" in problem
    assert "or mend the columns under families" in problem


def test_a_swap_of_columns_that_are_right_is_refused(opened: Opened, root: Path) -> None:
    write_published(root, swapped=False)
    card = [(PLAIN, PUBLISHED), ("file: features.csv", FILES), BY_SCAN]
    assert told(opened(*card)) == []
    (problem,) = told(opened(*card, SWAP))
    assert "the table names them rightly; drop swap" in problem


def test_a_person_on_two_sides_of_a_split_by_subject_is_a_leak(opened: Opened, root: Path) -> None:
    write_published(root)
    card = [(PLAIN, PUBLISHED), ("file: features.csv", FILES), SWAP]
    (problem,) = told(opened(*card))
    assert f"subject 'A-p00' is in train ({root}/train.csv:2) and in test ({root}/test.csv:4)" in problem
    assert "write split: {by: scan}" in problem
    anew = opened(*card, ("swap: true", "swap: true\nsides: card"))
    assert told(anew) == []
    assert anew.shared_subjects() == {}
    sides = {scan.id: split for split in SPLITS for scan in anew.scans("A", split)}
    assert sides["A-p00_7200"] == sides["A-p00_7211"]


def test_lists_need_their_regions_named(opened: Opened, root: Path) -> None:
    made = write_published(root, swapped=False)
    for row in made:
        for name in ("seg_relational_volume", "seg_surface_to_volume_ratio"):
            row[name] = row[name].replace("{", "[").replace("}", "]").replace("1: ", "").replace("2: ", "")
            row[name] = row[name].replace("3: ", "")
    write_csv(root / "features.csv", made)
    dataset = opened((PLAIN, PUBLISHED))
    assert told(dataset) == []
    np.testing.assert_array_equal(dataset.table("A").values[1], [people()[11][f"rv_{k}"] for k in (1, 2, 3)] + [
        people()[11][f"svr_{k}"] for k in (1, 2, 3)
    ])  # fmt: skip
    lost = told(opened((PLAIN, PUBLISHED.replace(", of: [1-2, 3]", ""))))
    assert "seg_relational_volume holds lists; name their regions in order" in lost[0]
    wrong = told(opened((PLAIN, PUBLISHED.replace("[1-2, 3]", "[1-2]"))))
    assert "holds 3 numbers, of: names 2 regions (and 11 more like it)" in wrong[0]


def test_dictionaries_may_name_their_regions_themselves(opened: Opened, root: Path) -> None:
    made = write_published(root, swapped=False)
    write_csv(root / "features.csv", made)
    own = PUBLISHED.replace(", of: [1-2, 3]", "")
    assert told(opened((PLAIN, own))) == []
    made[4]["seg_relational_volume"] = "{1: 0.5, 2: 0.5}"
    made[5]["seg_surface_to_volume_ratio"] = "{1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1}"
    write_csv(root / "features.csv", made)
    first, second = told(opened((PLAIN, own)))
    assert first.startswith(f"{root}/features.csv:6: 'seg_relational_volume' lacks 3; export the same of every scan")
    assert second.startswith(f"{root}/features.csv:7: 'seg_surface_to_volume_ratio' has also 4;")


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("{1: 0.5, 2: nan}", {"1": 0.5, "2": None}),
        ('{"1": 0.5, "2": NaN}', {"1": 0.5}),
        ("{'left': 0.5, 'right': 1e-3}", {"left": 0.5, "right": 0.001}),
        ("[0.5, 1]", [0.5, 1]),
        ("(0.5, -1)", [0.5, -1]),
    ],
)
def test_literals_that_are_read(text: str, entries: Any) -> None:
    found = numbers(text)
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if value is None or value == value}
    assert found == entries


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "{1: __import__('os')}",
        "{1: [2]}",
        "{1: 0.5",
        "0.5",
        "-" * 100_000 + "1",
        "[" + "1," * 2**20 + "]",
        "{1: 0.5, '1': 0.2}",
        "{1: np.float64(0.5)}",
    ],
)
def test_literals_that_are_not(text: str) -> None:
    with pytest.raises(ValueError):
        numbers(text)


# ------------------------------------------------------------------------------------------- the audit


def changed(index: int, **cells: Any) -> list[dict[str, Any]]:
    return [{**row, **cells} if i == index else row for i, row in enumerate(people())]


@pytest.mark.parametrize(
    ("rows", "line", "what"),
    [
        (changed(2, age=""), 4, "age is missing; fill it in, or exclude the scan"),
        (changed(2, age="young"), 4, "age: 'young' is no number; write it in weeks"),
        (changed(2, age=281), 4, "age 281 is no age in weeks; ages lie in 15 to 150 weeks: mend it, or set age_unit"),
        (changed(2, age="inf"), 4, "age inf is no age in weeks"),
        (changed(2, sex="X"), 4, "sex 'X' is neither F nor M"),
        (changed(2, scan="s00"), 4, "scan 's00' again, first at "),
        (changed(2, scan=""), 4, "the scan has no name"),
        (changed(2, subject=""), 4, "scan 's02' has no subject"),
        (
            [{**row, "birth_age": 46 if i == 2 else 28} for i, row in enumerate(people())],
            4,
            "birth age 46 is after the",
        ),
        ([{**row, "birth_age": 3 if i == 2 else ""} for i, row in enumerate(people())], 4, "birth age 3 is no age in"),
        (changed(2, rv_1="inf"), 4, "relational volume of left is infinite"),
        (changed(2, svr_2="-inf"), 4, "surface ratio of right is infinite"),
        (changed(2, rv_1=""), 4, "relational volume of left is empty; write 0 where the region is absent"),
        (changed(2, svr_2="0,5"), 4, "surface ratio of right: '0,5' is no number"),
        (changed(2, svr_2="1.5"), 4, "surface ratio of right is not in 0..1 (1.5); it is a share"),
        (changed(2, rv_1=0.9), 4, "relational volumes sum to 1."),
    ],
)
def test_a_bad_row_is_one_line(opened: Opened, root: Path, rows: Any, line: int, what: str) -> None:
    (problem,) = told(opened(rows=rows))
    assert problem.startswith(f"{root}/features.csv:{line}: {what}")


def test_an_absent_surface_is_no_mistake(opened: Opened, run_stage: RunStage) -> None:
    for empty in ("", "NaN", "n/a"):
        dataset = opened(rows=changed(2, svr_2=empty))
        assert told(dataset) == []
    table = load_features(run_stage(dataset.features("A", "all")))
    assert np.argwhere(np.isnan(table.values)).tolist() == [[2, 4]]


def test_other_families_have_no_holes_and_no_limits(opened: Opened) -> None:
    other = ("surface ratio: svr_*", "thickness: svr_*")
    assert told(opened(other, rows=changed(2, svr_2=-7))) == []
    (problem,) = told(opened(other, rows=changed(2, svr_2="")))
    assert "thickness of right is empty; fill it in, or exclude the scan" in problem


def test_alike_problems_share_a_line(opened: Opened, root: Path) -> None:
    problem = told(opened(rows=[{**row, "age": ""} for row in people()]))[0]
    assert problem.startswith(f"{root}/features.csv:2: age is missing (and 11 more like it)")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("families:", "columns: {age: aeg}\nfamilies:"), "has no column 'aeg'; did you mean age?; set columns.age"),
        (("families:", "columns: {sex: gender}\nfamilies:"), "has no column 'gender'"),
        (("families:", 'columns: {scan: "{sub}_{scan}"}\nfamilies:'), "has no column 'sub'"),
        (("rv_*", "vr_*"), "has no column 'vr_*'; mend families.relational volume in the card"),
        (("rv_*", "[rv_1, rv_9]"), "has no column 'rv_9'; did you mean rv_"),
        (("rv_*", "[age, rv_1]"), "'age' says who was scanned and is no feature"),
        (("rv_*", '["rv_*", "r*_1"]'), "'rv_1' is named by two patterns"),
        (("rv_*", '["rv_*", "svr_*"]'), "two columns hold the relational volume of left"),
        (("stem]", "]"), "label 3 is not in the label table, which ends at 2"),
        (("features.csv", "lost.csv"), "no such table; add it"),
        (("features.csv", "features.xlsx"), "is none of .csv, .tsv, .parquet"),
        (("file: features.csv", "file: features.csv\n    exclude: [s99]"), "exclude: there is no scan 's99'"),
        (("file: features.csv", "file: features.csv\n    ages: [1, 2]"), "no row of its table is left"),
        (("split: {train: 0.5, validation: 0.25, test: 0.25}", "split: {by: scan}"), "A says nowhere on which side"),
    ],
)
def test_a_card_that_does_not_fit_its_table(opened: Opened, change: tuple[str, str], what: str) -> None:
    assert what in told(opened(change))[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("relational volume", "relational_volume"), "if 'relational volume' is meant, write it so"),
        (("surface ratio", "surface ratios"), "if 'surface ratio' is meant, write it so"),
        (("rv_*", "rv_*_*"), "has more than one *"),
        (("rv_*", "{column: x, columns: [y]}"), "name its columns, as rv_* or a list, or one column:"),
        (("rv_*", "{columns: [y], of: [1]}"), "of: goes with column:"),
        (("rv_*", "{column: x, of: [1-3, 2]}"), "'2' is listed twice"),
        (("  surface ratio: svr_*\n", "swap: true\n"), "swap exchanges"),
        (("file: features.csv", "scans: 3"), "name its table"),
        (("features.csv", "../features.csv"), "leaves the data root"),
        (("file: features.csv", "file: a.csv\n    files: {test: b.csv}"), "name its table"),
        (("split: {train", "slices: {size: 32}\nsplit: {train"), "slices is for images"),
        (("split: {train", "lesions: true\nsplit: {train"), "lesions is for images"),
        (("split: {train", "volumes: {}\nsplit: {train"), "a card of kind table has no whole volumes"),
        (("split: {train: 0.5", "sides: card\nsplit: {by: scan, train: 0.5"), "by: scan needs a split file"),
    ],
)
def test_a_card_that_contradicts_itself(opened: Opened, change: tuple[str, str], what: str) -> None:
    (problem, *_) = refused(lambda: opened(change))
    assert what in problem
    assert "card.yaml:" in problem


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"scan,age\n", "the table has no rows"),
        (b"scan,age\n,\n\n", "the table has no rows"),
        (b"scan,scan\na,b\n", "has two columns 'scan'; rename one"),
        (b"scan;subject;age\na;b;30\n", "its columns are parted by ';'"),
        (b"scan,age\n\xff\xfe,2\n", "save it as UTF-8 text"),
        (b"scan,age\na,2,3\n", "the table cannot be read"),
        (b'scan,age\n"a,2\nb,3\n', "the table cannot be read"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadTable, match=what):
        read_table(tmp_path, "t.csv")


def test_rows_are_numbered_as_a_spreadsheet_shows_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfscan, age \na,30\n\n  b , NaN\n")
    table = read_table(tmp_path, "t.csv")
    assert table.cells == {"scan": ["a", "b"], "age": ["30", None]}
    assert table.place(1) == f"{tmp_path}/t.csv:4"


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pl.DataFrame(people()).write_parquet(tmp_path / "good.parquet")
    good = (tmp_path / "good.parquet").read_bytes()
    rng = np.random.default_rng(0)
    spoilt = [good[: len(good) // 2], b"PAR1", good[:-40] + bytes(36) + b"PAR1"]
    for _ in range(40):
        noisy = bytearray(good)
        for place in rng.integers(0, len(good), 8):
            noisy[place] = int(rng.integers(256))
        spoilt.append(bytes(noisy))
    refused = lines = 0
    for content in spoilt:
        (tmp_path / "bad.parquet").write_bytes(content)
        try:
            read_table(tmp_path, "bad.parquet")
        except BadTable as error:
            refused += 1
            lines += str(error).count("\n")
    assert refused >= 3  # some bytes do not matter
    assert lines == 0
    capfd.readouterr()  # a panic of the reader tells of itself there


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "link.csv").symlink_to(root / "features.csv")
    with pytest.raises(BadTable, match="is a link out of the data root"):
        read_table(root / "sub", "link.csv")


def test_files_of_different_features_are_refused(opened: Opened, root: Path) -> None:
    rows = people()
    write_csv(root / "train.csv", rows[:6])
    write_csv(root / "val.csv", rows[6:9])
    write_csv(root / "test.csv", [{k: v for k, v in row.items() if k != "svr_3"} for row in rows[9:]])
    problem = told(opened(("file: features.csv", FILES)))[0]
    assert problem.startswith(
        f"{root}/test.csv: has other features than {root}/train.csv: it lacks surface ratio of stem"
    )


def test_sites_of_different_features_are_refused(opened: Opened, root: Path) -> None:
    write_csv(root / "b.csv", [{**row, "rv_4": 0.0} for row in people()])
    more = opened(
        ("stem]", "stem, other]"), ("  A:\n    file: features.csv\n", "  A: {file: features.csv}\n  B: {file: b.csv}\n")
    )
    (problem,) = told(more)
    assert "B has other features than A: it has also relational volume of other" in problem
    assert [str(p) for p in more.audit(["A"])] == []


def test_a_column_of_sides(opened: Opened) -> None:
    rows = [{**row, "split": SPLITS[i % 3]} for i, row in enumerate(people())]
    dataset = opened(rows=rows)
    assert told(dataset) == []
    assert [scan.name for scan in dataset.scans("A", "validation")] == ["s01", "s04", "s07", "s10"]
    assert dataset.subjects()["A-p02"] == "test"
    problem = told(opened(rows=[{**row, "split": "val"} if i == 3 else row for i, row in enumerate(rows)]))[0]
    assert "split 'val' is none of train, validation, test" in problem
    assert [len(opened(("split: {", "sides: card\nsplit: {"), rows=rows).scans("A", s)) for s in SPLITS] == [6, 3, 3]


def test_a_split_file_is_heeded(opened: Opened, tmp_path: Path) -> None:
    sides = {"train": ["A-p00", "A-p01"], "validation": ["A-p02"], "test": [f"A-p{i:02}" for i in range(3, 12)]}
    (tmp_path / "split.json").write_text(json.dumps(sides))
    dataset = opened(("split: {", "split: {file: split.json, "))
    assert told(dataset) == []
    assert [len(dataset.scans("A", split)) for split in SPLITS] == [2, 1, 9]
    sides["test"].pop()
    (tmp_path / "split.json").write_text(json.dumps(sides))
    assert "subject 'A-p11' of A is on no side" in told(opened(("split: {", "split: {file: split.json, ")))[0]


# ------------------------------------------------------------------------------------------- warnings


def test_odd_features_are_told(opened: Opened) -> None:
    assert opened().warnings() == ()
    rows = [{**row, "x_flat": 3, "x_copy": row["svr_1"], "x_days": row["age"] * 7 + 1} for row in people()]
    dataset = opened(("families:", "families:\n  extra: x_*"), rows=rows)
    assert told(dataset) == []
    flat, copy, days = dataset.warnings()
    assert flat == "A: extra of flat: the same for every scan"
    assert copy == "A: surface ratio of left: the same as another feature, scan by scan"
    assert days == "A: extra of days: age itself in other units; no feature should be"


# ---------------------------------------------------------------------------------------------- cards


def test_the_generic_card_reads_a_table_as_it_stands(tmp_path: Path, root: Path) -> None:
    dataset = open_dataset(read_card("feature_table"), root, tmp_path / "cache")
    assert [str(problem) for problem in dataset.audit(dataset.sites)] == []
    assert len(dataset.scans("SITE_A")) == 12


def test_the_card_of_the_published_tables(tmp_path: Path, run_stage: RunStage) -> None:
    rng = np.random.default_rng(1)
    labels = [i for i in range(1, 88) if i != 84]
    made = []
    for i in range(12):
        volumes, ratios = rng.dirichlet(np.ones(86)), rng.uniform(0.3, 0.9, 86)
        made.append(
            {
                "": i,
                "sub": f"CC{i:05}",
                "ses": 100 + i,
                "gender": ("Male", "Female")[i % 2],
                "birth_age": 30,
                "scan_age": 35 + i / 2,
                "head_circumference": 33,
                "birth_weight": 2,
                "seg87_relational_volume": str(dict(zip(labels, ratios.tolist(), strict=True))),
                "seg87_surface_to_volume_ratio": str(dict(zip(labels, volumes.tolist(), strict=True))),
            }
        )
    for name, rows in (("train", made[:6]), ("val", made[6:9]), ("test", made[9:])):
        write_csv(tmp_path / f"DHCP_{name}_nn-UNet_extracted_features.csv", rows)
    dataset = open_dataset(read_card("dhcp_features"), tmp_path, tmp_path / "cache")
    assert isinstance(dataset, FeatureTableDataset)
    assert told(dataset) == []
    table = load_features(run_stage(dataset.features("DHCP", "test")))
    assert table.values.shape == (3, 172)
    np.testing.assert_allclose(table.values[:, :86].sum(axis=1), 1)
    regions = read_card("dhcp").labels
    assert regions is not None
    assert [(c.label, c.region) for c in table.columns[82:85]] == [(k, regions.names[k]) for k in (83, 85, 86)]


def test_a_large_table_is_read_in_seconds(tmp_path: Path, opened: Opened, root: Path) -> None:
    rng = np.random.default_rng(2)
    n, k = 2000, 86
    volumes, ratios = rng.dirichlet(np.ones(k), n), rng.uniform(0.2, 0.9, (n, k))
    frame = {"scan": [f"s{i}" for i in range(n)], "subject": [f"p{i}" for i in range(n)], "age": rng.uniform(30, 44, n)}
    frame |= {f"rv_{j + 1}": volumes[:, j] for j in range(k)} | {f"svr_{j + 1}": ratios[:, j] for j in range(k)}
    pl.DataFrame(frame).write_csv(root / "features.csv")
    dataset = opened(("labels:\n  names: [background, left, right, stem]\n", ""))
    started = time.perf_counter()
    assert told(dataset) == []
    assert time.perf_counter() - started < 30
    assert dataset.table("A").values.shape == (n, 2 * k)

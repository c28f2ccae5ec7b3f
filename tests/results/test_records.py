"""The long table: schema, writing, and every step from records to means."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.metrics.catalogue import METRICS, ranked
from harness.problems import UserError
from harness.results import aggregate, exhibits, records, runinfo
from harness.results.records import InvalidRecords, to_frame


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, harness.results, harness.results.tracking, harness.results.runinfo, harness.metrics.catalogue;"
        "print([m for m in ('mlflow', 'matplotlib', 'polars', 'scipy', 'torch', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_records_survive_the_disk(folder: Path, toy: Any) -> None:
    table = records.read(folder)
    assert table.schema == records.SCHEMA
    assert len(table) == len(toy.all_records())
    assert not list(folder.glob(".*")), "a temporary file was left behind"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"metric": "dice"}, "unknown metric"),
        ({"status": "fine"}, "unknown status"),
        ({"value": None}, "without a finite one"),
        ({"value": math.inf}, "without a finite one"),
        ({"status": "failed"}, "a value beside a status that has none"),
        ({}, "the same row twice"),
    ],
)
def test_records_that_break_a_rule_are_refused(toy: Any, change: dict[str, Any], rule: str) -> None:
    row = toy.table_of("good", "A", "B")[0]
    with pytest.raises(InvalidRecords, match=rule):
        to_frame([row, replace(row, **change)])


def test_a_refused_write_leaves_the_old_file(build: Callable[..., Path]) -> None:
    folder = build(with_exhibits=False)
    before = records.read(folder)
    with pytest.raises(InvalidRecords):
        records.write(folder, before.with_columns(metric=pl.lit("dice")))
    assert records.read(folder).equals(before)


def test_damaged_or_absent_files_are_user_errors(build: Callable[..., Path], tmp_path: Path) -> None:
    folder = build()
    for name, read in {
        "records.parquet": records.read,
        "run.json": runinfo.read,
        "curves.parquet": exhibits.read_curves,
        "histograms.parquet": exhibits.read_histograms,
        "panels.npz": exhibits.read_panels,
    }.items():
        (folder / name).write_bytes(b"PAR1 half a file")
        with pytest.raises(UserError, match="writes it anew"):
            read(folder)
    for read in (records.read, runinfo.read):
        with pytest.raises(UserError):
            read(tmp_path)
    assert exhibits.read_curves(tmp_path).is_empty()
    assert exhibits.read_histograms(tmp_path).is_empty()
    assert exhibits.read_panels(tmp_path) == ()


def test_panels_survive_the_disk(folder: Path) -> None:
    good, adapter = exhibits.read_panels(folder)
    assert (good.method, good.subject, good.slice) == ("good", "B0", 4)
    assert good.prediction is not None
    assert good.label is not None
    assert (good.prediction == good.label).all()
    assert adapter.harmonised is None


def test_no_value_keeps_the_first_line_of_the_error(toy: Any) -> None:
    found = toy.table_of("broken", "A", "B")
    assert {r.metric for r in found} == set(toy.metrics)
    assert {r.note for r in found} == {"ValueError: the <b>loss</b> is nan at step 3"}
    assert {(r.status, r.value) for r in found} == {("failed", None)}


def test_means_go_labels_subjects_cells_pairs(folder: Path, toy: Any) -> None:
    table = records.read(folder)
    subject = aggregate.subject_values(table).filter(method="good", source="A", target="B", metric="dsc", subject="B0")
    assert subject["value"].to_list() == pytest.approx([0.80 - 0.03 - 0.02])
    pair = aggregate.pair_means(table).filter(method="good", source="A", target="B", metric="dsc")
    assert pair["value"].to_list() == pytest.approx([0.77])
    found = aggregate.method_means(table).filter(method="good", metric="dsc").row(0, named=True)
    assert found["mean"] == pytest.approx(0.80)
    assert found["sd"] == pytest.approx(0.01 * math.sqrt(28 / 6)), "population SD over the six pairs"
    assert (found["pairs"], found["seed_sd"]) == (6, None)
    assert aggregate.in_domain_means(table).filter(metric="dsc").rows() == [("none", "dsc", pytest.approx(0.95))]


def test_missing_structures_are_summed_over_labels(folder: Path) -> None:
    found = aggregate.method_means(records.read(folder)).filter(method="none", metric="hd95_missing")
    assert found["mean"].to_list() == pytest.approx([0.25]), "one structure in one of four subjects"


def test_repeated_scans_of_a_subject_count_once(toy: Any) -> None:
    rows = [r for r in toy.table_of("none", "A", "B") if r.metric == "hd95_missing"]
    twice = [replace(r, note=f"scan {number}") for r in rows for number in (1, 2)]
    assert aggregate.cell_means(to_frame(twice))["value"].to_list() == pytest.approx([0.25])


def test_seeds_are_averaged_within_a_pair(toy: Any) -> None:
    rows = [r for seed in (0, 1, 2) for s, t in toy.pairs for r in toy.table_of("good", s, t, seed)]
    found = aggregate.method_means(to_frame(rows)).filter(metric="dsc").row(0, named=True)
    assert found["mean"] == pytest.approx(0.801)
    assert found["sd"] == pytest.approx(0.01 * math.sqrt(28 / 6))
    assert found["seed_sd"] == pytest.approx(0.001 * math.sqrt(2 / 3))
    assert found["pairs"] == 6


def test_coverage_counts_every_gap(folder: Path) -> None:
    found = {(r.pop("method"), r.pop("metric")): r for r in aggregate.coverage(records.read(folder)).to_dicts()}
    broken = found["broken", "dsc"]
    assert (broken["expected"], broken["scored"], broken["failed"], broken["blocked"]) == (6, 4, 1, 1)
    assert found["none", "hd95"]["penalised"] == 6
    assert ("adapter", "wasserstein") not in found, "not applicable is no gap"


def test_a_cell_that_only_others_have_is_absent(toy: Any) -> None:
    rows = [r for s, t in toy.pairs for m in ("good", "worse") if (m, s, t) != ("worse", "A", "B")
            for r in toy.table_of(m, s, t)]  # fmt: skip
    table = to_frame(rows)
    worse = aggregate.coverage(table).filter(method="worse", metric="dsc").row(0, named=True)
    assert (worse["expected"], worse["scored"], worse["absent"]) == (6, 5, 1)
    (failure,) = aggregate.failures(table)
    assert (failure.method, failure.state, failure.source, failure.target) == ("worse", "absent", "A", "B")


def test_failures_with_one_cause_are_one_group(toy: Any) -> None:
    rows = [r for seed in (0, 1) for t in ("B", "C") for r in toy.table_of("broken", "A", t, seed)]
    failures = aggregate.failures(to_frame(rows))
    assert [(f.state, f.target, f.seed) for f in failures] == [
        ("failed", "B", 0),
        ("failed", "B", 1),
        ("blocked", "C", 0),
        ("blocked", "C", 1),
    ]
    assert [(g.state, g.cells) for g in aggregate.grouped(failures)] == [("failed", ("A→B",)), ("blocked", ("A→C",))]


def test_matrix_says_what_became_of_each_cell(folder: Path, toy: Any) -> None:
    table = records.read(folder)
    broken = aggregate.matrix(table, "broken", "dsc", toy.sites)
    assert broken.states == (("", "failed", "blocked"), ("scored", "", "scored"), ("scored", "scored", ""))
    assert math.isnan(broken.values[0, 1])
    assert broken.values[1, 0] == pytest.approx(0.89)
    baseline = aggregate.matrix(table, "none", "dsc", toy.sites)
    assert baseline.values.diagonal() == pytest.approx([0.95] * 3)


def test_a_cell_that_failed_for_one_seed_is_partial(toy: Any) -> None:
    rows = toy.table_of("good", "A", "B") + records.no_value("failed", "x", ["dsc"], **toy.cell("good", "A", "B", 1))
    found = aggregate.matrix(to_frame(rows), "good", "dsc", toy.sites)
    assert found.states == (("partial",),)
    assert found.values[0, 0] == pytest.approx(0.77)


def test_variants_are_ranked_only_without_what_they_vary() -> None:
    assert ranked(["dsc", "hd95", "hd95_pooled", "hd95_missing"]) == ("dsc", "hd95")
    assert ranked(["dsc", "hd95_unit"]) == ("dsc", "hd95_unit")


def test_values_are_shown_in_the_unit_of_the_field() -> None:
    assert METRICS["dsc"].text(0.8312) == "83.12"
    assert METRICS["dsc"].heading == "DSC %"
    assert METRICS["dsc"].text(-0.00001) == "0.00", "no minus zero"
    assert METRICS["hd95"].text(None) == "–"

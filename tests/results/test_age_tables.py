"""Tables of brain ages: every number is that of the records, or follows from the predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from age_results import (
    AGES,
    ERROR,
    FACTORS,
    ODD,
    OFFSETS,
    PEOPLE,
    SD,
    SEEDS,
    info_of,
    predicted,
    predictions_of,
    sex_of,
    table_of,
    write_exhibits,
    write_folder,
)

from harness.metrics import regression
from harness.metrics.catalogue import METRICS, ranked
from harness.metrics.regression_intervals import Cases, scores_of
from harness.problems import UserError
from harness.results import age_entries, ages, leaderboard, records
from harness.results.age_groups import age_bins
from harness.results.age_tables import AgeTables
from harness.results.ages import AtlasSlice, Prediction


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> AgeTables:
    found = leaderboard.build(write_folder(tmp_path_factory.mktemp("home") / "ages")).ages
    assert found is not None
    return found


def errors(method: str, source: str = "all") -> np.ndarray:
    """Signed errors, [seeds, scans]."""
    return np.stack([predicted(method, source, seed) - AGES for seed in SEEDS])


# ------------------------------------------------------------------------------------------- files


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = predictions_of(info_of())
    ages.write_predictions(tmp_path, rows)
    ages.write_warnings(tmp_path, ["one", "<b>two</b>"])
    write_exhibits(tmp_path)
    found = ages.read(tmp_path)
    assert [Prediction(**row) for row in found.predictions.iter_rows(named=True)] == rows
    assert found.warnings == ("one", "<b>two</b>")
    importance = ages.read_importance(tmp_path)
    assert importance.filter(family="surface ratio")["mean"].to_list() == [0.2, 0.8, -0.01]
    correlations = ages.read_correlations(tmp_path)
    assert correlations.select("r", "label", "chosen").rows() == [(0.91, 1, True), (None, None, True)]
    assert ages.read_feature_values(tmp_path)["value"].null_count() == 1
    slices = ages.read_atlas(tmp_path)
    assert [each.plane for each in slices] == ["sagittal", "coronal", "axial"]
    assert slices[0].spacing == (0.5, 1.0)
    assert slices[0].labels.dtype == np.uint8
    assert slices[0].image.max() == 0.5


def test_a_folder_without_them_has_none(tmp_path: Path) -> None:
    found = ages.read(tmp_path)
    assert found.predictions.is_empty()
    assert found.warnings == ()
    for read in (ages.read_importance, ages.read_correlations, ages.read_feature_values):
        assert read(tmp_path).is_empty()
    assert ages.read_atlas(tmp_path) == ()


@pytest.mark.parametrize("name", [ages.PREDICTIONS, ages.WARNINGS, "atlas.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    ages.write_atlas(tmp_path, [AtlasSlice("axial", np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8), (1, 1))])
    (tmp_path / name).write_text("no such thing")
    with pytest.raises(UserError, match=name):
        _ = ages.read(tmp_path), ages.read_atlas(tmp_path)


def test_columns_that_lack_are_named(tmp_path: Path) -> None:
    records.write_parquet(tmp_path / ages.PREDICTIONS, ages.NONE.predictions.drop("sex", "sd"))
    with pytest.raises(UserError, match="lacks the columns sex, sd"):
        ages.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({}, "twice"), ({"scan": "x", "predicted": np.nan}, "not finite"), ({"scan": "x", "sd": np.inf}, "not finite")],
)
def test_predictions_that_cannot_be_scored_are_refused(tmp_path: Path, change: dict[str, float], message: str) -> None:
    rows = predictions_of(info_of())
    with pytest.raises(ValueError, match=message):
        ages.write_predictions(tmp_path, [*rows, replace(rows[0], **change)])


# ------------------------------------------------------------------------------------------- groups


def test_intervals_of_weeks_are_those_of_print() -> None:
    bins = age_bins([29.3, 30.9, 31.0, 36.9, 45.0, 45.1], "weeks")
    assert [each.name for each in bins] == ["29–31", "31–33", "35–37", "45–47"], "without those that have no scan"
    assert [each.name for each in age_bins([28.5, 33.0], "weeks")] == ["27–29", "33–35"]
    assert age_bins([29.5, 30.5], "weeks") == ()
    assert age_bins([], "weeks") == ()


def test_intervals_of_years_hold_equally_many_scans(tables: AgeTables) -> None:
    found = np.random.default_rng(0).uniform(18, 88, 500)
    bins = age_bins(found.tolist(), "years")
    counts = [sum(each.low <= age < each.high or (each.last and age == each.high) for age in found) for each in bins]
    assert sum(counts) == 500
    assert max(counts) - min(counts) <= 4, "ends are rounded to 0.1"
    assert len(age_bins(found[:25].tolist(), "years")) == 2
    assert age_bins(found[:19].tolist(), "years") == ()
    assert age_bins([20.0] * 100, "years") == ()


def test_sources_run_from_the_largest() -> None:
    found = age_entries.ordered_sources(["20 scans", "odd", "all", "100 scans", "b"], ("b", "odd"))
    assert found == ("all", "100 scans", "20 scans", "b", "odd")


# ------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("source", ["all", "20 scans"])
@pytest.mark.parametrize("method", ["good", ODD])
def test_values_are_means_over_seeds_of_every_scan(tables: AgeTables, method: str, source: str) -> None:
    own = errors(method, source)
    mae = tables.entry("mae", method, source)
    assert mae is not None
    assert mae.value == pytest.approx(np.abs(own).mean()), "a person with two scans counts twice"
    assert mae.sd == pytest.approx(np.abs(own).std(axis=1).mean())
    assert mae.seed_sd == pytest.approx(np.abs(own).mean(axis=1).std())
    assert (mae.scans, mae.people, mae.expected, mae.scored) == (14, 12, 2, 2)
    for metric in ("rmse", "r2", "r2_pearson"):
        entry = tables.entry(metric, method, source)
        by_seed = [getattr(regression, metric)(AGES, predicted(method, source, seed)) for seed in SEEDS]
        assert entry is not None
        assert entry.value == pytest.approx(np.mean(by_seed))
        assert entry.low is not None
        assert entry.low < entry.value < entry.high
    bias = tables.entry("bias", method, source)
    assert bias is not None
    assert bias.value == pytest.approx(own.mean())


def test_intervals_are_those_of_people(tables: AgeTables) -> None:
    cases = [Cases(PEOPLE, AGES, predicted("good", "all", seed)) for seed in SEEDS]
    for metric, known in scores_of([cases]).items():
        if metric != "error_sd":
            entry = tables.entry(metric, "good")
            assert entry is not None
            assert (entry.low, entry.high) == (pytest.approx(known.low), pytest.approx(known.high)), metric


def test_groups_are_of_their_scans(tables: AgeTables) -> None:
    for sex in ("F", "M"):
        inside = np.array([sex_of(place) == sex for place in range(len(AGES))])
        entry = tables.entry("mae", "good", kind="sex", group=sex)
        assert entry is not None
        assert entry.value == pytest.approx(np.abs(errors("good")[:, inside]).mean())
        assert entry.scans == inside.sum()
    assert [each.name for each in tables.bins] == ["31–33", "33–35", "35–37", "37–39", "39–41", "41–43", "43–45"]
    entry = tables.entry("bias", ODD, kind="age", group="33–35")
    assert entry is not None
    assert entry.value == pytest.approx((OFFSETS[2] + OFFSETS[3]) / 2 + 0.05)
    assert (entry.scans, entry.people) == (2, 1)
    assert entry.low is None, "of one person"
    assert tables.counted("sex", "F") == "7 scans of 6 people"
    assert tables.counted("age", "43–45") == "2 scans"
    assert tables.counted() == "14 scans of 12 people"


def test_coverage_is_the_share_within_the_methods_own_intervals(tables: AgeTables) -> None:
    entry = tables.entry("coverage", "good")
    assert entry is not None
    assert entry.value == pytest.approx((np.abs(errors("good")) <= 1.96 * SD).mean())
    assert tables.entry("coverage", ODD) is None, "it has no SD"
    wide = tables.entry("coverage", "good", "20 scans")
    assert wide is not None
    assert wide.text == f"{100 * (np.abs(errors('good', '20 scans')) <= 1.96 * SD).mean():.0f}"


def test_gaps_are_the_largest_and_the_smallest_of_the_first_seed(tables: AgeTables) -> None:
    own = [gap for gap in tables.gaps if gap.method == ODD]
    order = np.argsort(-np.abs(OFFSETS), kind="stable")
    assert [gap.place for gap in own] == [1, 2, 3, 4, 5, 12, 13, 14]
    assert own[0].scan == f"s{order[0]}"
    assert own[-1].scan == "s11"
    assert [abs(gap.gap) for gap in own[:5]] == pytest.approx(np.abs(OFFSETS)[order][:5])
    assert own[0].subject == PEOPLE[order[0]]


def test_gaps_and_undefined_values_show_where_they_are(tables: AgeTables) -> None:
    broken = tables.entry("mae", "broken", "20 scans")
    assert broken is not None
    assert broken.value == pytest.approx(np.abs(errors("broken", "20 scans")[0]).mean())
    assert (broken.complete, broken.state, broken.note) == (False, "failed", ERROR)
    assert broken.text.endswith("†")
    lost = tables.entry("mae", "lost", kind="sex", group="F")
    assert lost is not None
    assert lost.text == "failed"
    constant = tables.entry("r2_pearson", "floor")
    assert constant is not None
    assert (constant.text, constant.value) == ("–", None), "nothing to measure is no failure"
    assert tables.best("mae") == {"good"}
    assert tables.best("bias") == frozenset()
    assert "lost" not in tables.gap_methods


def test_sites_are_averaged_and_shown_apart(tmp_path: Path) -> None:
    sites = ("DHCP", "V2LP")
    info = info_of(sites=("all", *sites))
    rows, predictions = table_of(info, sites=sites), predictions_of(info, sites)
    found = leaderboard.build(write_folder(tmp_path, rows, predictions=predictions, sites=("all", *sites))).ages
    assert found is not None
    own = [errors("good"), errors("good") + 0.2]
    whole = found.entry("mae", "good")
    assert whole is not None
    assert whole.value == pytest.approx(np.mean([np.abs(each).mean() for each in own]))
    for site, known in zip(sites, own, strict=True):
        entry = found.entry("mae", "good", kind="site", group=site)
        assert entry is not None
        assert entry.value == pytest.approx(np.abs(known).mean())
        assert entry.low is not None
        assert entry.low < entry.value < entry.high
    assert found.counted() == "28 scans of 24 people"


def test_without_predictions_the_records_remain(tmp_path: Path) -> None:
    board = leaderboard.build(write_folder(tmp_path, predictions=[]))
    assert board.ages is not None
    assert (board.ages.bins, board.ages.sexes, board.ages.gaps) == ((), (), ())
    entry = board.ages.entry("mae", "good")
    assert entry is not None
    assert entry.value == pytest.approx(np.abs(errors("good")).mean())
    assert entry.low is not None, "people have records of their own"
    assert board.ages.counted() == ""


# ------------------------------------------------------------------------------------------- the leaderboard


def test_the_leaderboard_is_of_the_largest_source(tmp_path: Path) -> None:
    board = leaderboard.build(write_folder(tmp_path))
    assert [row.method for row in board.rows] == ["good", ODD, "broken", "floor", "lost"]
    row = board.rows[0]
    own = np.abs(errors("good"))
    score = row.scores["mae"]
    assert score.text == f"{own.mean():.2f} ± {own.std(axis=1).mean():.2f}"
    assert score.seed_sd == pytest.approx(own.mean(axis=1).std())
    assert (row.scores["mae"].expected, row.cells) == (2, 4), "cells of all sources"
    broken = next(row for row in board.rows if row.method == "broken")
    assert broken.scores["mae"].complete
    assert broken.failed_cells == 1
    assert board.failed_cells == 5
    assert board.ranks is not None
    assert board.ranks.metrics == ("mae", "rmse")
    assert {c.metric for c in board.comparisons} == {"mae"}, (
        "only one has a DSC, and a value of a site separates nothing"
    )
    assert board.comparisons[0].subjects == 12
    assert board.notes[:3] == (
        "scored: DHCP (14 scans of 12 people)",
        "trained on: all scans; shown apart: 20 scans",
        "MAE ± population SD of the absolute errors of the scans; of other metrics ± is the population SD over seeds",
    )
    assert "95 % intervals: BCa bootstrap over people" in board.notes
    assert not [note for note in board.notes if "fewer cells" in note and "floor" in note]
    assert "error_sd" not in board.score_metrics


def test_json_has_every_entry(tmp_path: Path) -> None:
    board = leaderboard.build(write_folder(tmp_path, with_exhibits=True))
    found = json.loads(json.dumps(board.as_json(), allow_nan=False))
    assert found["sources"] == ["all", "20 scans"]
    assert found["warnings"] == ["<i>2</i> people are on both sides of the split"]
    own = [e for e in found["ages"] if (e["method"], e["metric"], e["source"], e["kind"]) == ("good", "mae", "all", "")]
    assert [e["value"] for e in own] == [pytest.approx(np.abs(errors("good")).mean())]
    assert len(found["gaps"]) == 8 * len(FACTORS)


def test_errors_are_called_by_the_unit_of_ages(tmp_path: Path) -> None:
    older = predictions_of(info_of(), unit="years")
    board = leaderboard.build(write_folder(tmp_path, predictions=older))
    assert board.metric("mae").heading == "MAE years"
    assert board.metric("mse").unit == "years²"
    assert board.metric("r2").heading == "R²"
    assert METRICS["mae"].heading == "MAE weeks"
    assert not [note for note in board.notes if "read years" in note]


def test_one_quantity_enters_ranks_once() -> None:
    assert ranked(["mae", "rmse", "r2", "r2_pearson", "error_sd", "dsc"]) == ("mae", "rmse", "dsc")
    assert ranked(["mae", "r2", "error_sd"]) == ("mae", "r2")

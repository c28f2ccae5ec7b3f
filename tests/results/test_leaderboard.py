"""Order, marks, ranks, tests and intervals, and how they are printed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.results import leaderboard, records, runinfo, significance, terminal
from harness.results.leaderboard import Leaderboard
from harness.results.records import no_value, to_frame


@pytest.fixture(scope="module")
def board(folder: Path) -> Leaderboard:
    return leaderboard.build(folder)


def printed(board: Leaderboard, width: int = 100) -> str:
    out = io.StringIO()
    terminal.show(board, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def test_complete_rows_come_first_and_the_best_is_one_of_them(board: Leaderboard) -> None:
    assert [row.method for row in board.rows] == [
        "good",
        "adapter",
        "<script>alert(1)</script>",
        "worse",
        "none",
        "broken",
    ]
    assert board.best("dsc") == {"good"}, "the highest mean is over four of six cells only"
    broken = board.rows[-1].scores["dsc"]
    assert broken.mean == pytest.approx(0.9125)
    assert not broken.complete
    assert broken.text == "91.25 ± 1.48†"
    assert (board.rows[-1].failed_cells, board.rows[-1].cells, board.failed_cells) == (2, 6, 2)


def test_a_metric_that_does_not_apply_is_a_dash_not_a_failure(board: Leaderboard) -> None:
    adapter = next(row for row in board.rows if row.method == "adapter")
    assert adapter.scores["wasserstein"].text == "–"
    assert adapter.failed_cells == 0


def test_in_domain_is_apart_from_the_means(board: Leaderboard) -> None:
    baseline = next(row for row in board.rows if row.method == "none")
    assert baseline.scores["dsc"].in_domain == pytest.approx(0.95)
    assert baseline.scores["dsc"].mean == pytest.approx(0.60)
    assert "in-domain DSC % (source = target): none 95.00" in printed(board)


def test_ranks_are_over_complete_settings(board: Leaderboard) -> None:
    ranks = board.ranks
    assert ranks is not None
    assert ranks.metrics == ("dsc", "hd95"), "missing structures are part of HD95"
    assert ranks.without == ("wasserstein",), "the adapter returns no images"
    assert ranks.notes[0].endswith("10 settings dropped, in which some method has no value (all of wasserstein)")
    assert (ranks.settings, ranks.dropped) == (8, 10)
    assert {row.method: row.mean_rank for row in board.rows} == {
        "broken": 1,
        "good": 2,
        "adapter": 3,
        "<script>alert(1)</script>": 4,
        "worse": 5,
        "none": 6,
    }
    # Of 18 settings, `broken` precedes it in 12.
    assert ranks.available_ranks["good"] == pytest.approx((12 * 2 + 6 * 1) / 18)
    assert ranks.p is not None
    assert ranks.p < 0.0001
    assert ranks.critical_difference == pytest.approx(2.850 * (6 * 7 / (6 * 8)) ** 0.5, abs=1e-3), "Demšar, table 5a"


def test_a_benchmark_says_which_metrics_count_in_ranks(folder: Path) -> None:
    info, table = runinfo.read(folder), records.read(folder)
    ranks = leaderboard.build_from(info.model_copy(update={"rank_metrics": ("dsc",)}), table).ranks
    assert ranks is not None
    assert (ranks.metrics, ranks.without, ranks.settings, ranks.dropped) == (("dsc",), (), 4, 2)


def test_groups_are_maximal_runs_within_the_critical_difference(board: Leaderboard) -> None:
    assert board.ranks is not None
    # CD is 2.67 and neighbours are one rank apart.
    assert board.ranks.groups == (
        ("broken", "good", "adapter"),
        ("good", "adapter", "<script>alert(1)</script>"),
        ("adapter", "<script>alert(1)</script>", "worse"),
        ("<script>alert(1)</script>", "worse", "none"),
    )


def test_comparisons_pair_cases_and_count_the_unmatched(board: Leaderboard) -> None:
    found = {(c.kind, c.method): c for c in board.comparisons if c.metric == "dsc"}
    assert set(found) == {("best", m) for m in ("adapter", "<script>alert(1)</script>", "worse", "none", "broken")} | {
        ("baseline", m) for m in ("good", "adapter", "<script>alert(1)</script>", "worse", "broken")
    }
    good = found["baseline", "good"]
    assert (good.reference, good.cases, good.subjects, good.unmatched, good.family) == ("none", 24, 12, 0, 5)
    assert good.difference == pytest.approx(0.2)
    assert (good.low, good.high) == (pytest.approx(0.2), pytest.approx(0.2)), "the same difference everywhere"
    assert good.separated
    broken = found["baseline", "broken"]
    assert (broken.cases, broken.unmatched) == (16, 8)
    assert broken.p is not None
    assert broken.adjusted is not None
    assert broken.adjusted >= broken.p


def test_few_cases_cannot_reach_significance(board: Leaderboard) -> None:
    sites = [c for c in board.comparisons if c.metric == "wasserstein" and c.kind == "baseline"]
    assert {c.cases for c in sites} == {6, 4}
    assert not any(c.reachable or c.separated for c in sites), "Holm over four tests with six pairs is 0.125 at best"
    assert all(c.low is None for c in sites)


def test_an_interval_holds_the_mean_and_ignores_differences_between_sites(toy: Any) -> None:
    rows = [r for s, t in toy.pairs for r in toy.table_of("good", s, t) if r.metric == "dsc"]
    low, high = significance.intervals(to_frame(rows))["good", "dsc"]
    assert low < 0.80 < high
    # Sites 30 points apart, subjects as before: the interval is as wide as before.
    apart = [replace(r, value=(r.value or 0) + {"A": -0.3, "B": 0.0, "C": 0.3}[r.target] / 2) for r in rows]
    low_apart, high_apart = significance.intervals(to_frame(apart))["good", "dsc"]
    assert high_apart - low_apart == pytest.approx(high - low)
    # Twelve subjects with a population SD of 0.0158: about ± 1.96 standard errors.
    assert high - low == pytest.approx(2 * 1.96 * 0.0158 / 12**0.5, rel=0.1)


def test_a_subject_keeps_its_cells_together(toy: Any) -> None:
    """Copying every cell under another source adds cases, but no subjects: the interval must not shrink."""
    rows = [r for r in toy.table_of("good", "A", "B") if r.metric == "dsc"]
    low, high = significance.intervals(to_frame(rows))["good", "dsc"]
    both = rows + [replace(r, source="C") for r in rows]
    assert significance.intervals(to_frame(both))["good", "dsc"] == (pytest.approx(low), pytest.approx(high))


def test_the_table_fits_and_shows_every_gap(board: Leaderboard) -> None:
    text = printed(board)
    assert max(map(len, text.splitlines())) <= 100
    for part in ("SIMULATED", "80.00 ± 2.16", "91.25 ± 1.48†", "2/6", "SF", "✓", "failed  broken  A→B", "blocked"):
        assert part in text
    assert "ValueError: the <b>loss</b> is nan at step 3" in text
    narrow = printed(board, width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "not shown for want of room" in narrow.replace("\n", " ")


def test_csv_has_every_number(board: Leaderboard) -> None:
    rows = list(csv.DictReader(io.StringIO(terminal.to_csv(board))))
    assert float(rows[0]["dsc_mean"]) == pytest.approx(0.8)
    assert rows[-1]["method"] == "broken"
    assert (rows[-1]["dsc_scored"], rows[-1]["dsc_expected"], rows[-1]["failed_cells"]) == ("4", "6", "2")
    assert rows[1]["wasserstein_mean"] == ""


def test_markdown_shows_names_as_they_are(board: Leaderboard) -> None:
    text = terminal.to_markdown(board)
    assert "\\<script\\>alert(1)" in text
    assert "**80.00 ± 2.16**" in text
    assert "nan at step 3" in text


def test_json_holds_plain_values(board: Leaderboard) -> None:
    found = json.loads(json.dumps(board.as_json(), allow_nan=False))
    assert found["rows"][0]["scores"]["dsc"]["mean"] == pytest.approx(0.8)


def test_nothing_but_failures_is_still_a_leaderboard(build: Callable[..., Path], toy: Any) -> None:
    rows = [r for s, t in toy.pairs for r in no_value("failed", "boom", toy.metrics, **toy.cell("broken", s, t))]
    board = leaderboard.build(build(rows, with_exhibits=False))
    assert board.ranks is None
    assert board.comparisons == ()
    broken = next(row for row in board.rows if row.method == "broken")
    assert broken.scores["dsc"].text == "failed"
    assert "failed  broken  A→B, A→C, B→A and 3 more: boom" in printed(board)


def test_a_method_without_any_record_is_still_listed(build: Callable[..., Path], toy: Any) -> None:
    rows = [r for s, t in toy.pairs for r in toy.table_of("good", s, t)]
    board = leaderboard.build(build(rows, with_exhibits=False))
    assert {row.method for row in board.rows} == set(toy.bases)

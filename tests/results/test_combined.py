"""One ranking over several benchmarks, checked against the published tables' own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from harness.cli import app
from harness.problems import UserError
from harness.results import combined, html, leaderboard, published
from harness.results.combined import Combined, Setting

TABLE = tiny.REPO / "benchmarks/paper/published.csv"


@pytest.fixture(scope="module")
def printed() -> Combined:
    """The ten settings of the published tables without Wasserstein distance; only methods that are in all."""
    with TABLE.open(newline="") as file:
        found_rows = list(csv.DictReader(file))
    rows = [
        row
        for row in found_rows
        if row["method"] != "none"
        and row["metric"] in ("dsc", "hd95", "mae", "mse")
        and not row["setting"].startswith("dHCP")  # those are of another track
    ]
    settings = tuple(Setting(*pair) for pair in dict.fromkeys((row["setting"], row["metric"]) for row in rows))
    found = {(row["method"], row["setting"], row["metric"]): float(row["mean"]) for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    values = {m: tuple(found.get((m, s.benchmark, s.metric)) for s in settings) for m in methods}
    harmonisers = {m: v for m, v in values.items() if m not in ("aue", "bigaug", "tent", "sar")}
    return combined.of(settings, harmonisers)


def test_published_ranks_are_reproduced(printed: Combined) -> None:
    assert len(printed.settings) == 10
    assert printed.ranks is not None
    assert printed.ranks.mean_ranks == pytest.approx(
        {
            "harmonizing_flows": 1.0,
            "cycle_gan": 2.5,
            "style_transfer": 4.2,
            "combat": 4.25,
            "histogram_matching": 5.15,
            "blind_harmony": 5.95,
            "imunity": 6.3,
            "ssimh": 6.65,
        }
    )
    assert printed.ranks.statistic == pytest.approx(44.757, abs=5e-4)
    assert printed.ranks.p == pytest.approx(1.5e-7, rel=0.05)
    assert printed.ranks.critical_difference == pytest.approx(3.320, abs=5e-4)
    assert printed.order[0] == "harmonizing_flows"


def test_who_lacks_a_setting_is_ranked_where_it_is() -> None:
    settings = (Setting("a", "dsc"), Setting("b", "dsc"))
    found = combined.of(settings, {"x": (0.5, 0.6), "y": (0.7, 0.5), "z": (0.9, None)})
    assert found.ranks is not None
    assert set(found.ranks.mean_ranks) == {"x", "y"}
    assert found.available["z"] == 1.0
    assert found.order[-1] == "z"
    assert any("not in every setting" in note and "z" in note for note in found.notes)
    assert found.best(0) == {"z"}
    assert found.best(1) == {"x"}


def test_from_results_folders(build: Callable[..., Path], tmp_path: Path) -> None:
    found = combined.build([build(), build(benchmark="other", rank_metrics=("dsc",))])
    assert [(s.benchmark, s.metric) for s in found.settings] == [
        ("toy", "dsc"), ("toy", "hd95"), ("toy", "wasserstein"), ("other", "dsc"),
    ]  # fmt: skip
    assert found.values["good"][0] == pytest.approx(0.80)
    assert found.values["adapter"][2] is None, "predictions have no histogram"
    assert "broken" not in found.values, "its means are over fewer pairs than those of the others"
    assert found.simulated == ("toy", "other")
    page = html.write_combined(found, tmp_path / "page.html").read_text()
    assert "Simulated data" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_one_benchmark_twice_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="toy is named twice"):
        combined.build([folder, folder])


class TestPublished:
    def test_the_table_that_comes_along(self) -> None:
        table = published.read(published.table_path("paper"))
        assert len(table) == 259
        flows = next(e for e in table if e.method == "harmonizing_flows" and e.metric == "dsc" and "adult" in e.setting)
        assert (flows.mean, flows.sd) == (0.829, 0.023)
        typo = next(e for e in table if e.method == "bigaug" and e.metric == "hd95" and e.setting.endswith("T1-w"))
        assert typo.sd is None
        assert "53.9" in typo.note

    def test_beside(self, build: Callable[..., Path], tmp_path: Path) -> None:
        folder = build(published="adult cross-site segmentation")
        board = leaderboard.build(folder)
        found = {(b.method, b.metric): b for b in published.beside(board, published.read(TABLE))}
        assert found["none", "dsc"].theirs == 0.363
        assert found["none", "dsc"].difference == pytest.approx(0.60 - 0.363)
        assert found["none", "dsc"].texts == ("60.00", "36.30 ± 4.80", "+23.70")
        assert "simulated" in published.caution(board)
        page = html.write_report(folder, tmp_path / "report.html", published.read(TABLE)).read_text()
        assert "Published numbers" in page
        assert "36.30 ± 4.80" in page

    @pytest.mark.parametrize(
        ("setting", "message"), [("", "names no published setting"), ("adult cross-site", "the table has no setting")]
    )
    def test_unknown_settings(self, build: Callable[..., Path], setting: str, message: str) -> None:
        board = leaderboard.build(build(published=setting))
        with pytest.raises(UserError, match=message):
            published.beside(board, published.read(TABLE))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("method,setting\n", r"x.csv:1: lacks the columns metric"),
            ("method,setting,metric,mean,sd,unit,note\nnone,a,dcs,1,,,\n", r"x.csv:2: unknown metric 'dcs'.*dsc"),
            ("method,setting,metric,mean,sd,unit,note\nnone,a,dsc,high,,,\n", r"x.csv:2: 'high' .* are no numbers"),
        ],
    )
    def test_bad_tables(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            published.read(tmp_path / "x.csv")

    def test_no_such_table(self) -> None:
        with pytest.raises(UserError, match="no such table"):
            published.table_path("nowhere.csv")


@pytest.mark.parametrize("name", ["store", "sweeps", "a/b", "..", "mine"])
def test_a_combined_report_takes_nobodys_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    done = CliRunner().invoke(app, ["report", "a", "b", "--name", name, "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert f"--name: {name!r} is reserved, the name of a benchmark, or of no folder" in done.stderr

"""Every command answers in words and, with --json, in one JSON document on stdout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from harness.cli import app
from harness.conformance import check_method

COMMANDS = ("run", "plan", "explain", "leaderboard", "report", "methods", "datasets", "prepare", "check", "sync", "ui")


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in (*COMMANDS, "doctor"))
    code = "import harness.cli, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "mlflow", "monai", "numpy", "polars", "pydantic"} & set(loaded)


def answer(*arguments: str | Path) -> dict[str, object]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_lists_and_cards(tmp_path: Path) -> None:
    listed = answer("methods")["methods"]
    assert isinstance(listed, list)
    assert {"none", "histogram_matching", "combat", "tent", "segmenter_2d"} <= {row["id"] for row in listed}
    card = answer("methods", "tent")
    assert card["components"] == {}
    assert answer("methods", "mad_ad")["components"] == {"denoiser": "mad_ad_denoiser"}
    assert answer("methods", "regional_regression")["components"] == {"segmentation": "patch_segmenter"}
    assert card["traits"] == {"source_free": True, "task_agnostic": False, "unknown_domains": True}
    assert isinstance(card["fields"], list)
    assert all(row["description"] and row["origin"] for row in card["fields"])
    sets = answer("datasets")["datasets"]
    assert isinstance(sets, list)
    assert all(row["error"] is None for row in sets)
    assert answer("datasets", "phantom_adult_t1")["simulated"] is True


@pytest.mark.parametrize(
    "command", [["methods"], ["methods", "combat"], ["methods", "2dtta"], ["datasets"], ["datasets", "oasis1_malf"]]
)
def test_words_for_people(command: list[str]) -> None:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 3


def test_doctor_looks_at_everything(tmp_path: Path) -> None:
    found = answer("doctor", "--home", tmp_path)
    assert found["ok"] is True
    assert isinstance(found["findings"], list)
    assert {"python", "torch", "store", "tracking", "embedded data"} <= {row["name"] for row in found["findings"]}


def test_plan_and_explain_before_any_run(tmp_path: Path) -> None:
    file = tiny.write(tmp_path)
    planned = answer("plan", file, "--home", tmp_path / "runs")
    assert planned["trainings_saved"] == 4
    assert planned["kinds"]["train"] == {"total": 2, "cached": 0, "todo": 2}  # type: ignore[index]
    assert not (tmp_path / "runs" / "store").exists(), "a plan writes no store"
    explained = answer("explain", "train segmenter_2d KKI", file, "--home", tmp_path / "runs")
    assert explained["stages"][0]["verdict"] == "would run: it never ran with this store"  # type: ignore[index]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["methods", "tentt"], "unknown method 'tentt'; did you mean tent?"),
        (["check", "combatt"], "did you mean combat?"),
        (["datasets", "phantom"], "unknown dataset card 'phantom'"),
        (["leaderboard", "nothing"], "no results of 'nothing' here"),
        (["report"], "no results here yet"),
        (["explain", "x"], "nothing has run here yet"),
    ],
)
def test_mistakes_are_one_line(command: list[str], message: str, tmp_path: Path) -> None:
    flags = [] if command[0] in ("methods", "datasets", "check") else ["--home", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, *flags])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_method_in_contributing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (tiny.REPO / "CONTRIBUTING.md").read_text()
    source = re.search(r"```python\n(.*?)```", text, re.S)
    assert source is not None
    assert len(source.group(1).splitlines()) <= 40
    (tmp_path / "mean_shift.py").write_text(source.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    import mean_shift

    failed = [result for result in check_method(mean_shift.MeanShift) if not result.passed]
    assert failed == []

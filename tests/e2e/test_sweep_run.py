"""Sweeps through the command line: shared stages, second run, early stopping, failures, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import yaml

PLUGIN = '''
import time
import numpy as np
from harness.api import ApplyData, Context, Harmonizer, State, hyper

class Shade(Harmonizer):
    """Multiplies all images; a negative factor is beyond it."""

    id = "shade"
    reference = "tests"
    source_free, task_agnostic, unknown_domains = True, True, True
    factor: float = hyper(1.0, "of the pixels", origin="tests")
    pause: float = hyper(0.0, "seconds", origin="tests")

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        if self.factor < 0:
            raise RuntimeError("cannot shade below black")
        time.sleep(self.pause)
        return np.clip(data.target.floats() * self.factor, 0, 1)
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A third-party package with an entry point, on PYTHONPATH as an installed one would be."""
    root = tmp_path_factory.mktemp("site")
    (root / "shade_plugin.py").write_text(PLUGIN)
    info = root / "shade_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shade-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[harness.methods]\nshade = shade_plugin:Shade\n")
    return os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])


def write(folder: Path, **sweep: Any) -> None:
    document = {"sweep": "search", "base": "tiny.yaml", **sweep}
    (folder / "search.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> dict[str, Any]:
    """The sweep's answer; fails with its stderr unless it exits with `code` and has one."""
    done = tiny.harness("sweep", "search.yaml", "-j", "2", *arguments, "--json", cwd=folder, **environment)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    answers = json.loads(done.stdout)["sweeps"]
    assert len(answers) == 1, done.stderr
    answer: dict[str, Any] = answers[0]
    return answer


def records(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "runs" / "search" / "records.parquet")


def artifacts(folder: Path) -> dict[str, int]:
    """Key of every artifact → when it was made."""
    objects = (folder / "runs" / "store" / "objects").glob("*/*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in objects}


def titles(folder: Path) -> list[str]:
    objects = (folder / "runs" / "store" / "objects").glob("*/*/manifest.json")
    return [json.loads(path.read_text())["title"] for path in objects]


def mean_of(table: pl.DataFrame, method: str, metric: str) -> float:
    """By hand: structures, subjects, then source–target pairs."""
    rows = table.filter(
        pl.col("method") == method, pl.col("metric") == metric, pl.col("status") == "ok",
        pl.col("source") != pl.col("target"),
    )  # fmt: skip
    subjects = rows.group_by("source", "target", "subject").agg(pl.col("value").mean())
    return float(subjects.group_by("source", "target").agg(pl.col("value").mean())["value"].mean())  # type: ignore


def test_trials_share_trainings_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    """Three trials and the kept row on two slots: one training per site, all rows, the best as counted by hand."""
    tiny.write(tmp_path, methods={"none": None, "tent": {"batch_size": 4}}, metrics=["dsc"])
    rates = [0.0001, 0.02, 0.1]
    space = {"learning_rate": {"grid": rates}, "steps": {"grid": [2]}}
    write(tmp_path, method="tent", space=space, objective={"metric": "dsc"}, concurrent=4)
    planned = run(tmp_path, "--plan")
    assert len(planned["trials"]) == 3
    assert planned["alone"] > planned["stages"] == planned["todo"]
    assert not artifacts(tmp_path)

    answer = run(tmp_path)
    assert (answer["failed"], answer["blocked"]) == (0, 0)
    assert answer["executed"] == planned["stages"]
    made = titles(tmp_path)
    assert len(made) == len(set(made)) == planned["stages"], "nothing was made twice"
    assert sum(title.startswith("train") for title in made) == 2

    table = records(tmp_path)
    names = [trial["name"] for trial in answer["trials"]]
    assert names == [f"tent learning_rate={rate} steps=2" for rate in rates]
    assert set(table["method"]) == {"none", *names}
    assert {trial["state"] for trial in answer["trials"]} == {"finished"}
    for trial in answer["trials"]:
        assert trial["objective"] == pytest.approx(mean_of(table, trial["name"], "dsc"), rel=1e-12)
    assert answer["best"] == max(names, key=lambda name: mean_of(table, name, "dsc"))
    info = json.loads((tmp_path / "runs" / "search" / "run.json").read_text())
    assert info["sweep"]["trials"] == answer["trials"]
    assert info["sweep"]["space"]["learning_rate"] == {"type": "grid", "values": rates, "low": None, "high": None}

    before, report = artifacts(tmp_path), tmp_path / "runs" / "search" / "report.html"
    written = report.stat().st_mtime_ns
    started = time.monotonic()
    again = run(tmp_path)
    assert (again["executed"], again["best"], again["trials"]) == (0, answer["best"], answer["trials"])
    assert time.monotonic() - started < 60, "nothing but imports and a look at the store"
    assert artifacts(tmp_path) == before
    assert report.stat().st_mtime_ns == written


@pytest.mark.slow
def test_bad_trials_are_stopped_and_a_failing_one_fails_alone(tmp_path: Path, plugin: str) -> None:
    tiny.write(tmp_path, methods={"none": None}, metrics=["wasserstein"])
    factors = [1.0, 0.1, 0.2, 0.9, -1.0]
    write(
        tmp_path, method="shade", space={"factor": {"grid": factors}}, objective={"metric": "wasserstein"},
        scheduler={"asha": None}, concurrent=1,
    )  # fmt: skip
    answer = run(tmp_path, "--tracking", "none", code=1, PYTHONPATH=plugin)
    states = {trial["config"]["factor"]: trial["state"] for trial in answer["trials"]}
    assert states == {1.0: "finished", 0.1: "stopped", 0.2: "stopped", 0.9: "finished", -1.0: "failed"}
    assert answer["objective"] == {"metric": "wasserstein", "mode": "min", "split": "test"}
    assert answer["best"] in ("shade factor=1.0", "shade factor=0.9")
    assert (answer["failed"], answer["blocked"]) == (2, 2), "the applies of one trial, and their scores"
    assert not any(title.startswith("apply shade factor=0.1 KKI→") for title in titles(tmp_path))

    table = records(tmp_path)
    stopped = table.filter(pl.col("method") == "shade factor=0.1", pl.col("source") == "KKI")
    assert set(stopped["status"]) == {"blocked"}
    assert set(stopped["note"]) == {"stopped early by ASHA after 1 of 2 rungs"}
    assert set(table.filter(pl.col("method") == "shade factor=0.1", pl.col("source") == "CALTECH")["status"]) == {"ok"}
    failed = table.filter(pl.col("method") == "shade factor=-1.0")
    assert all("cannot shade below black" in note for note in failed["note"])

    before = artifacts(tmp_path)
    again = run(tmp_path, "--tracking", "none", code=1, PYTHONPATH=plugin)
    assert (again["executed"], again["failed"], again["trials"]) == (0, 2, answer["trials"])
    assert artifacts(tmp_path) == before, "what was stopped stays stopped"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_goes_on_where_it_ended(tmp_path: Path, plugin: str, number: signal.Signals) -> None:
    """The driver ends in the middle, with trials waiting for a slot; the same command does the rest."""
    tiny.write(tmp_path, methods={"none": None}, metrics=["wasserstein"])
    space = {"factor": {"grid": [0.5, 0.6, 0.7, 0.8, 0.9]}, "pause": {"grid": [1.0]}}
    write(tmp_path, method="shade", space=space, objective={"metric": "wasserstein"})
    command = [sys.executable, "-m", "harness", "sweep", "search.yaml", "-j", "2", "--tracking", "none"]
    environment = tiny.environment(PYTHONPATH=plugin)
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "runs" / "sweeps"
    deadline = time.monotonic() + 240
    while not any('"end"' in path.read_text() for path in journal.glob("*/trials.jsonl")):
        assert driver.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(number)
    _, log = driver.communicate(timeout=120)
    if number != signal.SIGKILL:
        assert driver.returncode == 130, log
        assert "continue with the same command" in log
        assert "Traceback" not in log
    time.sleep(3)  # orphaned workers end within two seconds
    assert not records_exist(tmp_path)
    kept = artifacts(tmp_path)
    assert not all(f"apply shade factor={f} pause=1.0 KKI→CALTECH" in titles(tmp_path) for f in space["factor"]["grid"])

    answer = run(tmp_path, "--tracking", "none", PYTHONPATH=plugin)
    assert {trial["state"] for trial in answer["trials"]} == {"finished"}
    again = artifacts(tmp_path)
    assert {key: again[key] for key in kept} == kept, "what had finished was not made again"
    assert answer["executed"] == len(again) - len(kept) > 0
    table = records(tmp_path)
    for trial in answer["trials"]:
        assert trial["objective"] == pytest.approx(mean_of(table, trial["name"], "wasserstein"), rel=1e-12)
    assert not list((tmp_path / "runs" / "store" / "leases").iterdir())


def records_exist(folder: Path) -> bool:
    return (folder / "runs" / "search" / "records.parquet").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hundred_trials_with_more_slots_asked_for_than_there_are(tmp_path: Path, plugin: str) -> None:
    """Scheduling at size: 100 trials, 30 at a time on two CPUs, halving early, the driver killed in the middle."""
    tiny.write(tmp_path, methods={"none": None, "shade": None}, metrics=["dsc"])
    factors = [round(0.5 + i / 200, 3) for i in range(100)]
    scheduler = {"asha": {"grace": 1, "reduction": 4}}
    write(
        tmp_path, method="shade", space={"factor": {"grid": factors}}, objective={"metric": "dsc"},
        concurrent=30, scheduler=scheduler,
    )  # fmt: skip
    command = [sys.executable, "-m", "harness", "sweep", "search.yaml", "-j", "2", "--tracking", "none"]
    environment = tiny.environment(PYTHONPATH=plugin)
    driver = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(artifacts(tmp_path)) < 80:
        assert driver.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)
    before = artifacts(tmp_path)

    answer = run(tmp_path, "--tracking", "none", PYTHONPATH=plugin)
    assert (answer["failed"], answer["interrupted"]) == (0, False)
    states = [trial["state"] for trial in answer["trials"]]
    assert len(states) == 100
    assert set(states) == {"finished", "stopped"}
    assert states.count("stopped") >= 50, "three of four trials are beaten at the first rung"
    after = artifacts(tmp_path)
    assert {key: after[key] for key in before} == before, "what had finished ran again"
    made = titles(tmp_path)
    assert len(made) == len(set(made)), "nothing was made twice"

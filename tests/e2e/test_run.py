"""The main job through the command line: first run, second run, one change, failures, kills."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import mischief
import polars as pl
import psutil
import pytest
import tiny


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A third-party package with an entry point, on PYTHONPATH as an installed one would be."""
    return mischief.install(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny benchmark has run once, with MLflow."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.write(folder)
    answer = tiny.run_json("run", "tiny.yaml", "-j", "2", cwd=folder)
    assert answer["failed"] == answer["blocked"] == 0
    assert answer["executed"] > 20
    records(folder).write_parquet(folder / "undisturbed.parquet")
    return folder


def records(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "runs" / "tiny" / "records.parquet")


def test_a_run_leaves_records_report_and_leaderboard(finished: Path) -> None:
    table = records(finished)
    assert set(table["method"]) == {"none", "histogram_matching"}
    off = table.filter(pl.col("source") != pl.col("target"), pl.col("metric") == "dsc", pl.col("status") == "ok")
    assert set(off.select("source", "target").unique().rows()) == {("CALTECH", "KKI"), ("KKI", "CALTECH")}
    assert set(table["metric"]) == {"dsc", "hd95", "wasserstein", "psnr"}
    page = (finished / "runs" / "tiny" / "report.html").read_text()
    assert "simulated" in page.lower()
    assert "http://" not in page.replace("http://www.w3.org", "")
    shown = tiny.harness("leaderboard", cwd=finished)
    assert "histogram_matching" in shown.stdout


def test_a_second_run_does_nothing(finished: Path) -> None:
    started = time.monotonic()
    answer = tiny.run_json("run", "tiny.yaml", cwd=finished)
    assert (answer["executed"], answer["failed"]) == (0, 0)
    assert answer["cached"] > 20
    assert time.monotonic() - started < 20


def test_one_field_reruns_only_that_method(finished: Path) -> None:
    change = ["--set", "methods.histogram_matching.percentiles=[5, 50, 95]"]
    planned = tiny.run_json("plan", "tiny.yaml", *change, cwd=finished)
    todo = [stage["title"] for stage in planned["stages"] if stage["state"] == "todo"]
    assert todo
    assert all("histogram_matching" in title for title in todo)
    explained = tiny.run_json("explain", "fit histogram_matching KKI", "tiny.yaml", *change, cwd=finished)
    assert any("percentiles" in line for line in explained["stages"][0]["changes"]["parameters"])
    answer = tiny.run_json("run", "tiny.yaml", *change, "--tracking", "none", cwd=finished)
    assert sorted(answer["executed_stages"]) == sorted(todo)
    tiny.run_json("run", "tiny.yaml", "--tracking", "none", cwd=finished)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_holds_the_leaderboard(finished: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'leaderboard'")
    assert {run.info.run_name for run in runs} == {"none", "histogram_matching"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "RuntimeError: no idea what these images are"),
        ("nan", "NaN"),
        ("shape", "shape"),
        ("range", "must lie in [0, 1]"),
        ("source", "source_free"),
        ("labels", "labels are never handed to"),
    ],
)
def test_a_bad_method_fails_its_own_cells_only(finished: Path, plugin: str, how: str, message: str) -> None:
    tiny.write(finished, methods={"none": None, "mischief": {"how": how}})
    answer = tiny.run_json("run", "tiny.yaml", "--tracking", "none", cwd=finished, code=1, PYTHONPATH=plugin)
    tiny.write(finished)
    assert answer["failed"] == 2, "one apply stage for each target"
    assert {f["stage"].split()[1] for f in answer["failures"] if f["status"] == "failed"} == {"mischief"}
    assert all(message in f["error"] for f in answer["failures"])
    table = records(finished)
    bad = table.filter(pl.col("method") == "mischief")
    assert set(bad["status"]) <= {"failed", "blocked"}
    assert message in bad["note"][0]
    assert set(table.filter(pl.col("method") == "none", pl.col("metric") == "dsc")["status"]) <= {"ok", "empty"}


def test_a_plugin_is_listed_checked_and_run(finished: Path, plugin: str) -> None:
    listed = tiny.run_json("methods", cwd=finished, PYTHONPATH=plugin)["methods"]
    assert {"mischief-plugin 0.1"} == {row["origin"] for row in listed if row["id"] == "mischief"}
    assert tiny.run_json("check", "mischief", cwd=finished, PYTHONPATH=plugin)["passed"]
    tiny.write(finished, methods={"none": None, "mischief": None})
    answer = tiny.run_json("run", "tiny.yaml", "--tracking", "none", cwd=finished, PYTHONPATH=plugin)
    tiny.write(finished)
    assert answer["failed"] == 0


def test_a_killed_worker_changes_nothing(finished: Path, plugin: str) -> None:
    tiny.write(finished, methods={"none": None, "mischief": {"how": "die once"}})
    answer = tiny.run_json("run", "tiny.yaml", "--tracking", "none", cwd=finished, PYTHONPATH=plugin)
    tiny.write(finished)
    assert answer["failed"] == answer["blocked"] == 0
    table = records(finished).filter(pl.col("metric") == "dsc", pl.col("source") != pl.col("target"))
    values = {name: table.filter(pl.col("method") == name).drop("method") for name in ("none", "mischief")}
    assert values["none"].equals(values["mischief"]), "the plugin returns images as they are, whatever happened to it"


def test_a_killed_driver_is_resumed(finished: Path, tmp_path: Path) -> None:
    """SIGKILL the driver while stages run; the next run does the rest and ends with the same records."""
    tiny.write(tmp_path)
    command = [sys.executable, "-m", "harness", "run", "tiny.yaml", "-j", "2", "--tracking", "none"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=tiny.environment(), stderr=subprocess.DEVNULL)
    objects = tmp_path / "runs" / "store" / "objects"
    deadline = time.monotonic() + 240
    while len(list(objects.glob("*/*/manifest.json"))) < 6:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # orphaned workers end within two seconds
    kept = {p.parent.name: p.stat().st_mtime_ns for p in objects.glob("*/*/manifest.json")}
    answer = tiny.run_json("run", "tiny.yaml", "--tracking", "none", cwd=tmp_path)
    assert answer["failed"] == 0
    assert answer["cached"] == len(kept)
    assert answer["executed"] > 0
    again = {p.parent.name: p.stat().st_mtime_ns for p in objects.glob("*/*/manifest.json")}
    assert {key: again[key] for key in kept} == kept, "what had finished was not made again"
    assert records(tmp_path).equals(pl.read_parquet(finished / "undisturbed.parquet"))


def test_a_killed_worker_process_is_survived(finished: Path, tmp_path: Path) -> None:
    """SIGKILL a real worker while it trains; the run finishes with the records of an undisturbed one."""
    tiny.write(tmp_path)
    command = [sys.executable, "-m", "harness", "run", "tiny.yaml", "-j", "2", "--tracking", "none"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    victim = None
    while victim is None:
        assert driver.poll() is None, "the run ended before a worker could be killed"
        assert time.monotonic() < deadline
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::train"):
                    victim = process
            except psutil.Error:
                continue
        time.sleep(0.02)
    victim.kill()
    _, log = driver.communicate(timeout=400)
    assert driver.returncode == 0, log
    assert "trying again" in log
    assert records(tmp_path).equals(pl.read_parquet(finished / "undisturbed.parquet"))

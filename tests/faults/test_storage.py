"""Disks that are full, and bytes that are not what they were; MLflow's server and database out of reach."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator

import pytest
from lab import Lab, finish, line
from mlflow_server import TrackingServer

Check = Callable[..., None]
QUIET = ("--tracking", "none")


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Lab]:
    """The store on a filesystem of 1 MiB, about half of what it needs."""
    lab.store.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(lab.store)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield lab
    subprocess.run(["umount", "--lazy", str(lab.store)], check=True)


def test_the_disk_of_the_store_is_full(small_disk: Lab, survived: Check) -> None:
    answer, log = small_disk.run(*QUIET, code=1)
    told = line(log, "no space left on the disk")
    assert answer["failed"] == answer["blocked"] == 0, "a full disk is nobody's failure"
    before = small_disk.finished()
    subprocess.run(["mount", "-o", "remount,size=256m", str(small_disk.store)], check=True)
    small_disk.run(*QUIET)
    survived("the store's disk is full", small_disk, told, before)


def test_a_file_of_the_store_is_truncated(complete: Lab, survived: Check) -> None:
    victim = complete.largest("train")
    before = complete.finished()
    victim.write_bytes(victim.read_bytes()[:100])
    answer, log = complete.run(*QUIET)
    told = line(log, "corrupt, set aside", "bytes instead of")
    survived("a file of the store is truncated", complete, told, before, tuple(answer["executed_stages"]))
    assert len(answer["executed_stages"]) == 1


def test_a_bit_of_the_store_flips(complete: Lab, survived: Check) -> None:
    victim = complete.largest("predict")
    before = complete.finished()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    answer, log = complete.run(*QUIET)
    told = line(log, "corrupt, set aside", "fails its checksum")
    survived("a bit of the store flips", complete, told, before, tuple(answer["executed_stages"]))
    assert len(answer["executed_stages"]) == 1


def test_a_bit_flips_that_leaves_no_trace_outside(trained: Lab, survived: Check) -> None:
    """As a disk does it: size, time and inode stay, so only the worker that reads the file can notice."""
    import tiny

    tiny.run_json("plan", "tiny.yaml", cwd=trained.folder, PYTHONPATH=trained.plugin)
    assert (trained.store / "verified.json").is_file()
    victim = trained.largest("train")
    look, before = victim.stat(), trained.finished()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(look.st_atime_ns, look.st_mtime_ns))
    answer, log = trained.run(*QUIET)
    told = line(log, "corrupt, set aside", "fails its checksum", "making it again")
    again = [title for title in answer["executed_stages"] if title.startswith("train")]
    assert len(again) == 1
    survived("a bit of the store flips", trained, told, before, tuple(again))


def test_mlflows_server_goes_down(trained: Lab, survived: Check) -> None:
    server = TrackingServer(trained.folder)
    server.start()
    try:
        run = trained.start("--tracking", server.uri)
        trained.await_finished(len(trained.finished()) + 2, run)
        before = trained.finished()
        server.kill()
        answer, log = finish(run)
        told = line(log, "warning", "sync")
        assert answer["warnings"]
        server.start()
        _sync(trained, server.uri)
        import mlflow

        client = mlflow.MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        rows = client.search_runs([experiment.experiment_id], "tags.kind = 'leaderboard'")
        assert {run.info.run_name for run in rows} == {"none", "histogram_matching", "mischief"}
    finally:
        server.kill()
    survived("MLflow's server goes down", trained, told, before)


def test_mlflows_database_is_locked(undisturbed: Lab, complete: Lab, survived: Check) -> None:
    """By somebody else, from before the run ends until after it."""
    database = complete.folder / "runs" / "mlflow.db"
    shutil.copy(undisturbed.folder / "runs" / "mlflow.db", database)
    before = complete.finished()
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        answer, log = complete.run()
    finally:
        lock.rollback()
        lock.close()
    told = line(log, "warning", "sync")
    assert answer["warnings"]
    _sync(complete, f"sqlite:///{database}")
    survived("MLflow's database is locked", complete, told, before)


def _sync(lab: Lab, uri: str) -> None:
    import tiny

    answer = tiny.run_json("sync", "--tracking", uri, cwd=lab.folder, PYTHONPATH=lab.plugin)
    assert answer["synced"] == 1, answer

"""Stages of several workers, with real Ray Train: results, kills, errors, and what is given back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from training_stages import weights

from harness.engine import parallel
from harness.engine.executor import Execution, Progress
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.resources import ResourceClasses, Resources
from harness.engine.store import LocalStore, open_store
from harness.engine.worker import Job, Outcome, run_job

pytestmark = pytest.mark.usefixtures("ray_session")

TRAINING = {
    "iterations": 30,
    "batch_size": 4,
    "learning_rate": 0.01,
    "clip_norm": 0.5,
    "ema": 0.9,
    "schedule": "cosine",
    "validate_every": 10,
    "checkpoint_every": 10,
    "log_every": 5,
}


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str, *, bad: bool = False) -> None:
        self.lines.append(text)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    found = open_store(str(tmp_path / "store"))
    assert isinstance(found, LocalStore)
    return found


def stage(title: str, workers: int, *, training: Mapping[str, Any] | None = None, **local: Any) -> Stage:
    params = {"training": {**TRAINING, **(training or {})}}
    fn = "training_stages:learn"
    return Stage("train", title, fn, params, resources="train", seed=5, local=local, workers=workers)


def execute(store: LocalStore, stage: Stage, limit_minutes: float | None = None) -> tuple[Execution, list[str]]:
    plan = Plan.of("toy", [Cell("m", "A", "B", 0, {"x": stage})])
    notes = Notes()
    classes = ResourceClasses(train=Resources(workers=2, limit_minutes=limit_minutes))
    execution = Execution(plan, store, classes, notes)
    execution.run()
    return execution, notes.lines


def job(stage: Stage, store: LocalStore, **changes: Any) -> Job:
    return Job(
        key=stage.key,
        kind=stage.kind,
        title=stage.title,
        fn=stage.fn,
        params=stage.params,
        inputs={},
        code=stage.code,
        components=stage.components,
        seed=stage.seed or 0,
        local=stage.local,
        store=store.url,
        run="test",
        workers=stage.workers,
        protected=(store.url,),
        **changes,
    )


def alone(store: LocalStore) -> Path:
    """The artifact of one worker that has twice the batch."""
    single = stage("alone", 1, training={"batch_size": 8})
    assert run_job(job(single, store)) == Outcome(ok=True, seconds=pytest.approx(0, abs=60))
    return store.read(single.key)


def assert_same(first: Path, second: Path) -> None:
    for key, tensor in weights(first).items():
        torch.testing.assert_close(tensor, weights(second)[key], rtol=1e-4, atol=1e-5)
    found = [json.loads((folder / "curves.json").read_text()) for folder in (first, second)]
    assert [point[:2] for point in found[0]] == [point[:2] for point in found[1]]
    assert [point[2] for point in found[0]] == pytest.approx([point[2] for point in found[1]], rel=1e-3)


def cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0))


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def test_two_workers_leave_what_one_leaves_with_twice_the_batch(store: LocalStore, tmp_path: Path) -> None:
    both = stage("both", 2, folder=str(tmp_path))
    execution, _ = execute(store, both)
    assert execution.summary.executed_titles == ["both"], execution.summary.failures
    assert_same(alone(store), store.read(both.key))
    notes = sorted((tmp_path / "notes.txt").read_text().splitlines())
    assert [note[:6] for note in notes] == ["0 of 2", "1 of 2"]
    assert len({note.split(",")[1] for note in notes}) == 2
    # only rank 0 wrote to the store, and nothing is left of either but the artifact
    assert [str(tmp_path) in note for note in notes] == [True, False]
    aside = [Path(part.split()[1]) for part in notes[1].split(", ")[2:]]
    assert not any(path.exists() for path in aside)
    assert list((store.root / "scratch").iterdir()) == []
    assert not any(path.is_file() for path in (store.root / "tmp").rglob("*"))
    manifest = store.manifest(both.key)
    assert manifest is not None
    assert manifest.components["workers"] == 2
    wait_for(lambda: cpus() == 2)


def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(store: LocalStore, tmp_path: Path) -> None:
    killed = stage("killed", 2, kill=17, folder=str(tmp_path))
    execution, lines = execute(store, killed)
    assert execution.summary.executed_titles == ["killed"], lines
    assert (tmp_path / "killed").exists()
    assert lines == []  # within one attempt
    assert json.loads((store.read(killed.key) / "result.json").read_text())["resumed_at"] == 10
    assert_same(alone(store), store.read(killed.key))
    assert len((tmp_path / "notes.txt").read_text().splitlines()) == 4


def test_an_error_of_one_worker_is_the_stages_own(store: LocalStore, tmp_path: Path) -> None:
    bad = stage("bad", 2, raises=3, folder=str(tmp_path))
    execution, _ = execute(store, bad)
    failure = execution.summary.failures[bad.key]
    assert failure.error == "Peculiar: something odd at the second worker"
    assert "in _misbehave" in failure.trace
    assert len((tmp_path / "notes.txt").read_text().splitlines()) == 2  # not tried again
    wait_for(lambda: cpus() == 2)


@pytest.mark.slow
def test_what_a_lost_group_held_can_be_given_back(store: LocalStore, tmp_path: Path) -> None:
    """The process that started it is ended, as by a time limit; Ray keeps the reservation."""
    import ray

    stuck = stage("stuck", 2, wait=2, folder=str(tmp_path))
    ref = ray.remote(num_cpus=0, max_retries=0)(run_job).remote(job(stuck, store))
    notes = tmp_path / "notes.txt"
    wait_for(lambda: notes.exists() and len(notes.read_text().splitlines()) == 2)
    ray.cancel(ref, force=True)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(ref)
    parallel.free(store.url, "of another stage")
    time.sleep(1)
    assert cpus() == 0
    parallel.free(store.url, stuck.key)
    wait_for(lambda: cpus() == 2)


@pytest.mark.slow
def test_a_group_that_takes_too_long_is_ended_and_tried_again(store: LocalStore, tmp_path: Path) -> None:
    slow = stage("slow", 2, wait=17, folder=str(tmp_path))
    execution, lines = execute(store, slow, limit_minutes=0.25)
    assert execution.summary.executed_titles == ["slow"], execution.summary.failures
    assert lines == ["slow: took longer than its limit of 0.25 min and was ended, trying again"]
    assert json.loads((store.read(slow.key) / "result.json").read_text())["resumed_at"] == 10


def test_the_key_knows_the_number_of_workers_where_there_are_several() -> None:
    one = stage("t", 1)
    assert "workers" not in one.components
    assert replace(one, workers=2).key != one.key


@pytest.mark.slow
def test_a_group_whose_starter_is_killed_is_tried_again(store: LocalStore, tmp_path: Path) -> None:
    """The workers end with the process that started them; what Ray reserved for them must not stay so."""
    orphaned = stage("orphaned", 2, wait=17, folder=str(tmp_path))

    def kill() -> None:
        wait_for(lambda: (tmp_path / "waited").exists(), 120)
        for process in psutil.process_iter(["cmdline"]):
            if "ray::orphaned" in (process.info["cmdline"] or ()):
                process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    execution, lines = execute(store, orphaned)
    killer.join()
    assert lines == ["orphaned: its worker died (WorkerCrashedError), trying again"]
    assert execution.summary.executed_titles == ["orphaned"]
    assert json.loads((store.read(orphaned.key) / "result.json").read_text())["resumed_at"] == 10
    wait_for(lambda: cpus() == 2)

"""Workers that are killed, starved or hang, and nodes that go away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from lab import Lab, finish, line, starved, worker
from nodes import AUTH, Nodes, bare_python

Check = Callable[..., None]
QUIET = ("--tracking", "none")


def test_a_worker_is_killed(lab: Lab, survived: Check) -> None:
    run = lab.start(*QUIET)
    victim = worker(run, "train")
    before = lab.finished()
    victim.kill()
    _, log = finish(run)
    survived("a worker is killed", lab, line(log, "train", "its worker died", "trying again"), before)


def test_a_worker_runs_out_of_memory(trained: Lab, survived: Check) -> None:
    trained.write("leak once")
    before = trained.finished()
    _, log = trained.run(*QUIET, **starved())
    survived("a worker runs out of memory", trained, line(log, "out of memory", "trying again"), before)


def test_a_worker_hangs(trained: Lab, survived: Check) -> None:
    trained.write("hang once", resources={"apply": {"limit_minutes": 0.5}})
    before = trained.finished()
    _, log = trained.run(*QUIET)
    survived("a worker hangs", trained, line(log, "mischief", "longer than its limit of 0.5 min"), before)


@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_node_is_lost(lab: Lab, survived: Check, tmp_path: Path, with_inputs: bool) -> None:
    """The head runs nothing; one of the two others goes away while it trains."""
    ruined: list[str] = []
    with Nodes([{"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}], bare_python(tmp_path / "bare")) as nodes:
        run = lab.start(*QUIET, "--address", nodes.address, **AUTH)
        nodes.await_work(1, "train")
        before = lab.finished()
        nodes.kill(1)
        if with_inputs:  # as if the lost node's disk had held them; both are still to be read
            for path in (lab.artifact("images"), lab.artifact("labels")):
                ruined.append(json.loads((path / "manifest.json").read_text())["title"])
                shutil.rmtree(path)
        _, log = finish(run)
    told = line(log, "node was lost")
    if with_inputs:
        told = line(log, "corrupt, set aside", "is missing", "making it again")
    survived("a node is lost with the inputs it held" if with_inputs else "a node is lost", lab, told, before, ruined)


def test_ray_itself_is_killed(lab: Lab, survived: Check) -> None:
    """All of Ray's own processes of the session; the driver lives, says so and ends. The next run goes on."""
    run = lab.start(*QUIET)
    lab.await_finished(10, run)
    for process in psutil.Process(run.pid).children(recursive=True):
        if any(name in process.name() for name in ("gcs_server", "raylet")):
            process.kill()
    _, log = finish(run, code=1)
    before = lab.finished()
    told = line(log, "the Ray session was lost")
    lab.run(*QUIET)
    survived("Ray's own processes are killed", lab, told, before)

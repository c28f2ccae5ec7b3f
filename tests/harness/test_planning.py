"""What `harness plan` says of time and workers, and that a progress costs little however many stages there are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from harness import planning, progress
from harness.engine.executor import Execution
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.resources import ResourceClasses
from harness.engine.store import open_store
from harness.home import Home
from harness.spec import load


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {"none": None, "histogram_matching": None, "combat": None, "tent": None}
    return tiny.write(tmp_path_factory.mktemp("planning"), methods=methods, seeds=[0, 1])


def shown(view: planning.Overview) -> str:
    console = Console(file=io.StringIO(), width=120)
    planning.show(view, console, stages=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_estimate_is_one_line_unless_workers_are_asked_for(file: Path) -> None:
    view = planning.overview(file, [], Home.of(file.parent / "runs"), None, None)
    assert view.scaling == []
    text = shown(view)
    assert "worker-hours" not in text
    assert text.splitlines()[-1].startswith("about ")


def test_workers_show_where_more_stop_helping(file: Path) -> None:
    view = planning.overview(file, [], Home.of(file.parent / "runs"), None, 64)
    assert [replay.workers for replay in view.scaling] == [1, 2, 4, 8, 16, 32, 64]
    times = [replay.seconds for replay in view.scaling]
    assert times == sorted(times, reverse=True)
    assert view.seconds == times[-1] >= view.path
    text = shown(view)
    assert "about" in text
    assert "gain less than 5 %; the longest chain of stages takes" in text
    rows = view.as_json()["scaling"]
    assert rows[0].keys() == {"workers", "seconds", "busy", "efficiency", "worker_hours"}
    assert rows[0]["efficiency"] > rows[-1]["efficiency"] > 0


def test_classes_that_ask_for_more_need_more_workers(file: Path) -> None:
    home = Home.of(file.parent / "runs")
    plain = planning.overview(file, [], home, None, 4)
    greedy = planning.overview(file, ["resources.train.cpus=4"], home, None, 4)
    assert greedy.seconds > plain.seconds


def test_cells_share_the_objects_of_their_stages(file: Path) -> None:
    """Equal keys would do for correctness; shared objects keep a plan of 1e5 stages within a few hundred MB."""
    plan = load(file, cache=file.parent / "cache").plan
    for kind in ("images", "labels", "train", "fit"):
        needed = [n for s in plan.stages for n in s.needs.values() if n.kind == kind]
        assert len({id(stage) for stage in needed}) == len({stage.key for stage in needed}), kind


def test_a_live_progress_looks_at_all_stages_now_and_then_only(tmp_path: Path) -> None:
    stages = [Stage("score", f"s{i}", "toy_stages:add", {"i": i}) for i in range(300)]
    plan = Plan.of("toy", [Cell("m", "A", s.title, 0, {"x": s}) for s in stages])
    execution = Execution(plan, open_store(str(tmp_path / "store")), ResourceClasses())
    for stage in stages:
        execution.state[stage.key] = "pending"
    execution._rank()
    live = progress.LiveProgress(Console(file=io.StringIO(), force_terminal=True, width=100))
    live.start(execution)
    try:
        assert live.live is not None
        live.update(execution)
        first = live.live.get_renderable()
        live.update(execution)
        assert live.live.get_renderable() is first, "a moment later it is shown as it was"
        live.next = 0.0
        live.update(execution)
        assert live.live.get_renderable() is not first
    finally:
        live.finish(execution)


def test_the_time_left_is_that_of_open_stages(tmp_path: Path) -> None:
    first = Stage("score", "first", "toy_stages:add", {"i": 0})
    last = Stage("score", "last", "toy_stages:add", {"i": 1}, {"n": first})
    plan = Plan.of("toy", [Cell("m", "A", "B", 0, {"x": last})])
    execution = Execution(plan, open_store(str(tmp_path / "store")), ResourceClasses())
    assert progress.remaining(execution) == 0.0
    execution.history.add(first, 10.0)
    for stage in plan.stages:
        execution.state[stage.key] = "pending"
    execution._rank()
    assert progress.remaining(execution) == pytest.approx(20.0), "one after the other, however many workers"
    execution.state[first.key] = "done"
    assert progress.remaining(execution) == pytest.approx(10.0)


def test_many_running_stages_are_named_briefly(tmp_path: Path) -> None:
    stages = [Stage("score", f"s{i}", "toy_stages:add", {"i": i}) for i in range(9)]
    plan = Plan.of("toy", [Cell("m", "A", s.title, 0, {"x": s}) for s in stages])
    execution = Execution(plan, open_store(str(tmp_path / "store")), ResourceClasses())
    execution.running.update(enumerate(stages[:2]))
    assert progress.in_flight(execution) == "s0, s1"
    execution.running.update(enumerate(stages))
    assert progress.in_flight(execution) == "s0, s1, s2, s3, 5 more"

"""What stages ask for against what clusters have."""

from __future__ import annotations

import pytest

from harness.engine.resources import Ask, Capacity, Resources, Usage

LAPTOP = Capacity(({"CPU": 2.0, "memory": 8 * 2.0**30},))
CLUSTER = Capacity(({"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}))
GROWS = Capacity(({"CPU": 4.0},), (({"CPU": 8.0, "GPU": 4.0}, 3),))


def test_gpus_count_only_where_there_are_any_or_may_be() -> None:
    wanted = Resources(cpus=2, gpus=0.5)
    assert LAPTOP.ask(wanted).each == {"CPU": 2}
    assert CLUSTER.ask(wanted).each == {"CPU": 2, "GPU": 0.5}
    assert GROWS.ask(wanted).each == {"CPU": 2, "GPU": 0.5}


@pytest.mark.parametrize(
    ("capacity", "wanted", "workers", "why"),
    [
        (LAPTOP, Resources(cpus=2, memory_gib=8), 1, ""),
        (LAPTOP, Resources(cpus=3), 1, "asks for 3 CPU, the largest node has 2 CPU"),
        (LAPTOP, Resources(memory_gib=9), 1, "asks for 9 GiB memory, the largest node has 8 GiB memory"),
        (CLUSTER, Resources(cpus=10), 1, "asks for 10 CPU, the largest node has 8 CPU"),
        (CLUSTER, Resources(cpus=8, gpus=2), 2, ""),
        (CLUSTER, Resources(cpus=8, gpus=2), 3, "asks for 3 workers, the cluster has room for 2"),
        (CLUSTER, Resources(cpus=1, gpus=0.6), 5, "asks for 5 workers, the cluster has room for 4"),
        (GROWS, Resources(cpus=8, gpus=4), 3, ""),
        (GROWS, Resources(cpus=8, gpus=8), 1, "asks for 8 GPU, the largest node has 4 GPU"),
        (Capacity(({"CPU": 16.0}, {"CPU": 1.0, "GPU": 1.0})), Resources(cpus=8, gpus=1), 1, "which no node has"),
    ],
)  # fmt: skip
def test_what_no_node_can_ever_run_is_told(capacity: Capacity, wanted: Resources, workers: int, why: str) -> None:
    told = capacity.impossible(capacity.ask(wanted, workers=workers))
    assert told.startswith(why) or why in told
    assert bool(told) == bool(why)


def test_no_more_is_submitted_than_can_ever_run() -> None:
    usage, half = Usage(), Ask({"CPU": 1, "GPU": 0.5})
    room = 0
    while usage.fits(half, CLUSTER):
        usage.take(half)
        room += 1
    assert room == 8
    usage.give_back(half)
    assert usage.fits(half, CLUSTER)
    assert not usage.fits(Ask({"CPU": 1, "GPU": 0.5}, workers=2), CLUSTER)


def test_several_workers_are_started_by_a_task_that_takes_nothing() -> None:
    ask = Ask({"CPU": 4, "GPU": 1, "memory": 2.5 * 2**30}, workers=3)
    assert ask.options() == {"num_cpus": 0}
    assert ask.total == {"CPU": 12, "GPU": 3, "memory": 7.5 * 2**30}
    assert Ask(ask.each).options() == {"num_cpus": 4, "num_gpus": 1, "memory": int(2.5 * 2**30)}

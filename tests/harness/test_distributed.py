"""What ranks exchange: averages, values, failures. Two real processes that talk over gloo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import Pair
from torch import nn

from harness import distributed
from harness.distributed import ALONE, Abandoned, Ranks, WorkerLost


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.close()


def test_a_process_by_itself_is_a_group_of_one() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 3.0])
    group = distributed.group()
    assert group is ALONE
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    group.average_gradients([weight])
    group.average([weight])
    assert weight.grad.tolist() == [1, 3]
    assert (group.share("x"), group.gather("x"), group.settle(True, "x")) == ("x", ["x"], ["x"])


def gradients() -> list[list[float] | None]:
    """Gradients on both ranks, on rank 1 only, on none, and of double precision."""
    group = distributed.group()
    shapes = [(2, 2), (1,), (3,), (1,)]
    parameters = [
        nn.Parameter(torch.zeros(shape, dtype=torch.float64 if i == 3 else None)) for i, shape in enumerate(shapes)
    ]
    parameters[0].grad = torch.full((2, 2), 1.0 + 2 * group.rank).to(memory_format=torch.contiguous_format).t()
    parameters[0].grad[0, 1] = 7.0
    if group.rank == 1:
        parameters[1].grad = torch.tensor([5.0])
    parameters[3].grad = torch.tensor([1e-12 if group.rank else 1.0], dtype=torch.float64)
    group.average_gradients(parameters)
    return [None if p.grad is None else p.grad.flatten().tolist() for p in parameters]


def test_gradients_become_their_means(pair: Pair) -> None:
    first, second = pair.run(gradients)
    assert first == second
    assert first[0] == [2.0, 7.0, 2.0, 2.0]
    assert first[1] == [2.5]
    assert first[2] is None
    assert first[3] == [(1.0 + 1e-12) / 2]


def exchanges() -> dict[str, Any]:
    group = distributed.group()
    own = torch.tensor([float(group.rank)])
    group.average([own])
    return {
        "group": (type(group), group.rank, group.size, group.leads),
        "average": own.item(),
        "shared": group.share({"weights": torch.arange(3) + group.rank, "step": (group.rank, None, "x", 0.5)}),
        "gathered": group.gather([group.rank, torch.tensor(group.rank)]),
        "settled": group.settle(True, group.rank),
    }


def test_values_are_shared_and_gathered(pair: Pair) -> None:
    first, second = pair.run(exchanges)
    assert [first["group"], second["group"]] == [(Ranks, 0, 2, True), (Ranks, 1, 2, False)]
    for seen in (first, second):
        assert seen["average"] == 0.5
        assert seen["shared"]["weights"].tolist() == [0, 1, 2]
        assert seen["shared"]["step"] == (0, None, "x", 0.5)
        assert seen["gathered"] == [[0, torch.tensor(0)], [1, torch.tensor(1)]]
        assert seen["settled"] == [0, 1]


def exchange(kind: str) -> None:
    group, weight = distributed.group(), nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    calls = {
        "check": group.check,
        "average": lambda: group.average([weight]),
        "gradients": lambda: group.average_gradients([weight]),
        "share": lambda: group.share(1),
        "gather": lambda: group.gather(1),
    }
    calls[kind]()


def fail_at(kind: str) -> tuple[str, list[str]]:
    """Rank 1 fails by itself, while rank 0 comes to an exchange."""
    group = distributed.group()
    try:
        group.check()
        if group.rank == 1:
            raise ValueError("mine")
        exchange(kind)
        exchange(kind)
        why = "nothing"
    except (ValueError, Abandoned) as error:
        why = type(error).__name__
    return why, group.settle(False, why)


@pytest.mark.parametrize("kind", ["check", "average", "gradients", "share", "gather"])
def test_nobody_waits_for_a_rank_that_failed(kind: str, pair: Pair) -> None:
    everyone = ["Abandoned", "ValueError"]
    assert pair.run(fail_at, kind, timeout=30) == [("Abandoned", everyone), ("ValueError", everyone)]


def part_ways() -> list[str]:
    group = distributed.group()
    with pytest.raises(Abandoned) as caught:
        exchange("share" if group.rank else "gradients")
    with pytest.raises(Abandoned):  # and it stays so
        group.check()
    return group.settle(False, str(caught.value))


def test_ranks_that_go_different_ways_are_told(pair: Pair) -> None:
    first, second = pair.run(part_ways, timeout=30)
    assert first == second
    assert all("went different ways" in why for why in first)


def lose_one() -> str:
    group = distributed.group()
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        group.check()
    except WorkerLost as error:
        return str(error)
    return "nothing"


def test_a_dead_rank_is_noticed_at_once() -> None:
    own = Pair()
    try:
        own.send(lose_one)
        assert own.answer(0, timeout=60) not in ("", "nothing")
    finally:
        own.close()


def test_what_can_be_divided_between_ranks() -> None:
    def batch(**changes: Any) -> dict[str, Any]:
        return {"x": torch.arange(12).reshape(6, 2), "pair": (torch.arange(6), [torch.zeros(6, 1)]), **changes}

    assert distributed.divides(batch(), 6)
    part = distributed.part(batch(), slice(2, 4))
    assert part["x"].tolist() == [[4, 5], [6, 7]]
    assert (part["pair"][0].tolist(), type(part["pair"]), type(part["pair"][1])) == ([2, 3], tuple, list)
    others: list[Any] = [torch.zeros(5), torch.tensor(6.0), 6, None, "six", ["a"] * 6, []]
    for other in others:
        assert not distributed.divides(batch(other=other), 6)
    assert not distributed.divides(None, 6)
    assert distributed.divides(torch.zeros(6), 6)

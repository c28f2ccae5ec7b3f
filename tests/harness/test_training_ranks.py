"""The training loop on two ranks: the same as one process with twice the batch. Real processes that talk over gloo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Pair
from torch import Tensor, nn

from harness import distributed
from harness.api import ApplyData, Context, FitData, MethodError
from harness.training import TrainingSettings, seeded, train, weights_of

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Sums in another order, carried through tens of updates of Adam."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.close()


# ------------------------------------------------------------------------------- what is trained


def settings(**changes: Any) -> TrainingSettings:
    defaults: dict[str, Any] = {
        "iterations": 40,
        "batch_size": 4,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "warmup": 3,
        "clip_norm": 0.5,
        "ema": 0.9,
        "validate_every": 7,
        "checkpoint_every": 6,
        "log_every": 5,
    }
    return TrainingSettings(**{**defaults, **changes})


def network() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(4, 16), nn.GroupNorm(4, 16), nn.Tanh(), nn.Linear(16, 1))


def draw(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
    x = rng.normal(size=(size, 4)).astype(np.float32)
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(np.sin(x).sum(1, keepdims=True))}


def undivided(rng: np.random.Generator, size: int) -> dict[str, Any]:
    return {**draw(rng, size), "name": "a batch that is more than tensors"}


def error(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    wrong = module(batch["x"]) - batch["y"]
    return {"loss": wrong.square().mean(), "absolute": wrong.abs().mean()}


def score(module: nn.Module) -> float:
    batch = draw(np.random.default_rng(99), 64)
    return -float(error(module, batch, torch.Generator())["loss"])


def generate(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    return -module.get_submodule("critic")(module.get_submodule("generator")(batch["x"])).mean()


def criticise(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    critic, fake = module.get_submodule("critic"), module.get_submodule("generator")(batch["x"])
    return {"loss": (critic(fake) - critic(batch["y"].expand(-1, 4))).tanh().mean()}


def players() -> nn.ModuleDict:
    with seeded(0):
        return nn.ModuleDict({"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})


def learn(
    scratch: Path,
    *,
    make: Callable[[], nn.Module] = network,
    batches: Any = draw,
    step: Any = error,
    validate: Any = score,
    **changes: Any,
) -> dict[str, Any]:
    """A training in plain values, as this process sees it: in a group or alone."""
    curve: list[tuple[str, int, float]] = []
    ctx = Context(3, "cpu", scratch / str(distributed.group().rank), lambda *point: curve.append(point))
    module = make()
    result = train(module, settings(**changes), batches, step, ctx=ctx, validate=validate)
    return {
        "weights": result.state_dict,
        "module": weights_of(module),
        "result": (result.score, result.iteration, result.resumed_at),
        "curve": curve,
        "files": sorted(path.name for path in ctx.scratch.glob("*")),
    }


def on_ranks(pair: Pair, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
    first, second = pair.run(partial(learn, *arguments, **named))
    for key in first["weights"]:
        assert torch.equal(first["weights"][key], second["weights"][key])
        assert torch.equal(first["module"][key], second["module"][key])
    assert first["result"] == second["result"]
    assert (second["curve"], second["files"]) == ([], [])
    return [first, second]


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for key in first["weights"]:
        torch.testing.assert_close(first["weights"][key], second["weights"][key], **CLOSE)
    assert first["result"][1:] == second["result"][1:]
    assert first["result"][0] == pytest.approx(second["result"][0], rel=1e-4)
    assert [point[:2] for point in first["curve"]] == [point[:2] for point in second["curve"]]
    assert [point[2] for point in first["curve"]] == pytest.approx([point[2] for point in second["curve"]], rel=1e-3)


# ------------------------------------------------------------------------------- the same result


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_two_ranks_do_what_one_does_with_twice_the_batch(optimizer: str, pair: Pair, tmp_path: Path) -> None:
    alone = learn(tmp_path / "alone", batch_size=8, optimizer=optimizer)
    both = on_ranks(pair, tmp_path / "both", batch_size=4, optimizer=optimizer)[0]
    assert_same(alone, both)
    assert both["files"] == ["train.checkpoint"]
    # and clearly not what one does with the same batch
    smaller = learn(tmp_path / "smaller", batch_size=4, optimizer=optimizer)
    moved = [(smaller["weights"][key] - both["weights"][key]).abs().max() for key in both["weights"]]
    assert max(moved) > 100 * CLOSE["atol"]


def test_the_last_weights_without_validation(pair: Pair, tmp_path: Path) -> None:
    alone = learn(tmp_path / "alone", batch_size=8, validate=None, ema=None, select="last")["weights"]
    both = on_ranks(pair, tmp_path / "both", validate=None, ema=None, select="last")[0]["weights"]
    for key in alone:
        torch.testing.assert_close(alone[key], both[key], **CLOSE)


def test_patience_is_lost_on_all_ranks_at_once(pair: Pair, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"patience": 1, "learning_rate": 0.05, "schedule": "constant", "ema": None}
    alone = learn(tmp_path / "alone", batch_size=8, **changes)
    assert (alone["result"][1], max(step for _, step, _ in alone["curve"])) == (7, 14)
    assert_same(alone, on_ranks(pair, tmp_path / "both", **changes)[0])


def test_two_players(pair: Pair, tmp_path: Path) -> None:
    same = {"make": players, "step": {"generator": generate, "critic": criticise}, "validate": None, "ema": None}
    alone = learn(tmp_path / "alone", batch_size=8, **same)
    both = on_ranks(pair, tmp_path / "both", **same)[0]
    for key in alone["weights"]:
        torch.testing.assert_close(alone["weights"][key], both["weights"][key], **CLOSE)
    assert [p[:2] for p in alone["curve"]] == [p[:2] for p in both["curve"]]


def harmonizer(batch_size: int, scratch: Path) -> Tensor:
    """All weights of a harmoniser of harmonizing_flows, trained on small discs."""
    from discs import SOURCE, VALIDATION

    from methods.harmonization.harmonizing_flows.method import HarmonizingFlows

    values = HarmonizingFlows.example().model_dump()
    values["harmonizer"]["training"]["batch_size"] = batch_size
    ctx = Context(0, "cpu", scratch / str(distributed.group().rank), lambda *_: None)
    data = FitData({"source": SOURCE, "validation": VALIDATION})
    state = HarmonizingFlows.model_validate(values).fit_part("harmonizer", data, ctx)
    return torch.cat([value.flatten() for key, value in sorted(state.items()) if key.startswith("weights.")])


def gan(batch_size: int, scratch: Path) -> Tensor:
    """What a small CycleGAN makes of a site, soon after its start: players that compete amplify every rounding.

    Its weights would tell nothing: biases before a normalisation move at random. It has no history of fakes, from
    which each rank would draw its own.
    """
    from discs import SOURCE, TARGET

    from methods.harmonization.cycle_gan.method import CycleGAN

    values = CycleGAN.example().model_dump() | {"history": 0, "crop": None}
    values["training"] |= {"batch_size": batch_size, "iterations": 2, "learning_rate": 2e-3}
    method = CycleGAN.model_validate(values)
    target = replace(TARGET, scans=tuple(replace(scan, site="B") for scan in TARGET.scans))
    ctx = Context(0, "cpu", scratch / str(distributed.group().rank), lambda *_: None)
    state = method.fit(FitData({"source": SOURCE, "target": target}), ctx)
    return torch.from_numpy(method.harmonize(state, ApplyData({"target": target}), ctx))


@pytest.mark.parametrize("outcome", [harmonizer, gan])
def test_methods_know_nothing_of_it(outcome: Callable[[int, Path], Tensor], pair: Pair, tmp_path: Path) -> None:
    alone, smaller = outcome(4, tmp_path / "alone"), outcome(2, tmp_path / "smaller")
    first, second = pair.run(outcome, 2, tmp_path / "both")
    assert torch.equal(first, second)
    assert (first - alone).abs().max() < 1e-2 * (smaller - alone).abs().max()


def segmenter(batch_size: int, scratch: Path) -> tuple[float, Tensor]:
    """Score and weights of a small segmenter, whose batches are normalised and augmented within its step."""
    from harness._conformance_data import make_material
    from methods.tasks.segmenter_2d import Segmenter2d

    values = Segmenter2d.example().model_dump()
    values["training"]["batch_size"] = batch_size
    ctx = Context(0, "cpu", scratch / str(distributed.group().rank), lambda *_: None)
    state = Segmenter2d.model_validate(values).train(make_material().task_data, ctx)
    return state["score"], torch.cat([v.flatten() for k, v in sorted(state.items()) if k.startswith("network.")])


def test_a_segmenter_learns_on_two_ranks_as_it_does_on_one(pair: Pair, tmp_path: Path) -> None:
    """Not the same weights, since each rank normalises and augments its own share; the same kind of result."""
    alone = segmenter(8, tmp_path / "alone")[0]
    first, second = pair.run(segmenter, 4, tmp_path / "both")
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert first[0] > 0.9 * alone > 0.4


# ------------------------------------------------------------------------------- each rank's own


def drawn(scratch: Path, batches: Any) -> list[list[float]]:
    """The first entries of a rank's batches, and what its steps draw."""
    seen: list[list[float]] = []

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        noise = torch.rand(1, generator=generator), torch.rand(1)
        seen.append([len(batch["x"]), float(batch["x"][0, 0]), float(noise[0]), float(noise[1])])
        return error(module, batch, generator)["loss"]

    learn(scratch, batches=batches, step=step, iterations=3)
    return seen


def test_batches_that_cannot_be_divided_are_drawn_by_each_rank(pair: Pair, tmp_path: Path) -> None:
    alone = drawn(tmp_path / "alone", undivided)
    first, second = pair.run(drawn, tmp_path / "both", undivided)
    assert first == alone
    assert [row[0] for row in second] == [4, 4, 4]
    assert all(mine[i] != other[i] for mine, other in zip(first, second, strict=True) for i in (1, 2, 3))


def test_batches_that_can_be_divided_are_parts_of_one(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.run(drawn, tmp_path / "both", draw)
    for i, (mine, other) in enumerate(zip(first, second, strict=True)):
        rng = np.random.default_rng([3, i])
        rng.integers(2**62)
        whole = draw(rng, 8)["x"]
        assert (mine[:2], other[:2]) == ([4, float(whole[0, 0])], [4, float(whole[4, 0])])
        assert mine[2] != other[2]


def normalised() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def test_running_statistics_are_means_over_ranks(pair: Pair, tmp_path: Path) -> None:
    """After one update of nothing they are those of the shares of the batch, averaged."""
    still = {"make": normalised, "iterations": 1, "learning_rate": 0.0, "ema": None, "warmup": 0}
    both = on_ranks(pair, tmp_path / "both", **still)[0]["weights"]
    rng = np.random.default_rng([3, 0])
    rng.integers(2**62)
    hidden = normalised()[0](draw(rng, 8)["x"]).detach()
    shares = hidden[:4], hidden[4:]
    mean, var = (sum(f(share) for share in shares) / 2 for f in (lambda s: s.mean(0), lambda s: s.var(0)))
    torch.testing.assert_close(both["1.running_mean"], 0.1 * mean)
    torch.testing.assert_close(both["1.running_var"], 0.9 + 0.1 * var)


class Memory(nn.Module):
    """Keeps what it saw last, as a buffer; half of a prediction is made of it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.linear(0.5 * (x + self.seen)) if self.training else self.linear(x)
        if self.training:
            self.seen.copy_(x)
        return answer


def remembering() -> nn.Module:
    with seeded(0):
        return Memory()


class Killed(Exception):
    """Stands for a kill: nothing of the loop's own clean-up may matter."""


def killed_at(iteration: int, scratch: Path, make: Any) -> None:
    calls = iter(range(iteration))

    def mortal(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if next(calls, None) is None:
            raise Killed
        return error(module, batch, generator)

    with pytest.raises(Killed):
        learn(scratch, make=make, step=mortal)


@pytest.mark.parametrize("make", [network, normalised, remembering])
@pytest.mark.parametrize("kill_at", [3, 20])
def test_a_killed_training_resumes_to_the_same_bits(kill_at: int, make: Any, pair: Pair, tmp_path: Path) -> None:
    """Also with running statistics and buffers in which ranks differ."""
    whole = on_ranks(pair, tmp_path / "whole", make=make)[0]
    pair.run(killed_at, kill_at, tmp_path / "killed", make)
    resumed = on_ranks(pair, tmp_path / "killed", make=make)[0]
    assert resumed["result"] == (*whole["result"][:2], kill_at // 6 * 6)
    assert all(torch.equal(resumed["weights"][key], whole["weights"][key]) for key in whole["weights"])
    assert resumed["curve"] == whole["curve"]


def test_a_checkpoint_of_another_number_of_workers_is_ignored(pair: Pair, tmp_path: Path) -> None:
    learn(tmp_path, batch_size=4)  # as rank 0 would
    assert on_ranks(pair, tmp_path, batch_size=4)[0]["result"][2] == 0


# ------------------------------------------------------------------------------- failures


def failing(scratch: Path, **named: Any) -> list[str]:
    group = distributed.group()
    try:
        learn(scratch, **named)
        why = "nothing"
    except (MethodError, distributed.Abandoned) as caught:
        why = f"{type(caught).__name__}: {caught}"
    return group.settle(False, why)


def breaks_on_one_rank(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    loss = error(module, batch, generator)["loss"]
    return loss * float("nan") if distributed.group().rank == 1 else loss


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_alike(pair: Pair, tmp_path: Path) -> None:
    for everyone in pair.run(partial(failing, tmp_path, step=breaks_on_one_rank), timeout=60):
        assert len(set(everyone)) == 1
        assert "the loss became nan at iteration 1 of 40" in everyone[0]


def raises_on_one_rank(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    if distributed.group().rank == 1:
        raise MethodError("rank 1 does not like its share")
    return error(module, batch, generator)["loss"]


def not_finite(module: nn.Module) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        (
            {"step": raises_on_one_rank},
            ["Abandoned: another worker failed", "MethodError: rank 1 does not like its share"],
        ),
        (
            {"validate": not_finite},
            [
                "MethodError: train: the validation score became nan at iteration 7",
                "Abandoned: another worker failed",
            ],
        ),
    ],
    ids=["a step of rank 1", "validation"],
)
def test_an_error_of_one_rank_ends_all(named: dict[str, Any], ends: list[str], pair: Pair, tmp_path: Path) -> None:
    assert pair.run(partial(failing, tmp_path, **named), timeout=60) == [ends, ends]


def meddles(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Sets a weight from its batch, as layers do that initialise themselves."""
    with torch.no_grad():
        first = next(module.parameters())
        if not hasattr(module, "meddled"):
            module.meddled = True
            first.mul_(batch["x"].std())
    return error(module, batch, generator)["loss"]


def test_weights_that_come_to_differ_are_an_error(pair: Pair, tmp_path: Path) -> None:
    for everyone in pair.run(partial(failing, tmp_path, step=meddles), timeout=60):
        assert len(set(everyone)) == 1
        assert "train: '0.weight' differs between workers at iteration 5" in everyone[0]

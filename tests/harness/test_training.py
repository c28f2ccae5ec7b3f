"""The training loop: schedules, averaging, selection, resuming, errors."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.api import Context, MethodError
from harness.training import (
    TrainingSettings,
    TrainResult,
    learning_rate_at,
    load_weights,
    read_checkpoint,
    seeded,
    train,
    weights_of,
    write_checkpoint,
)

Curve = list[tuple[str, int, float]]


def context(scratch: Path, seed: int = 3, curve: Curve | None = None) -> Context:
    points: Curve = [] if curve is None else curve
    return Context(seed, "cpu", scratch, lambda name, step, value: points.append((name, step, value)))


def small_network(seed: int = 0) -> nn.Module:
    """All that a checkpoint has to carry: weights, running statistics, an integer buffer, a use of dropout."""
    with seeded(seed):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def regression_batches(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
    x = rng.normal(size=(size, 4)).astype(np.float32)
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(x.sum(1, keepdims=True))}


def noisy_step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    x = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)
    error = nn.functional.mse_loss(module(x), batch["y"])
    return {"loss": error, "root": error.sqrt()}


def minus_error(module: nn.Module) -> float:
    batch = regression_batches(np.random.default_rng(99), 64)
    return -float(nn.functional.mse_loss(module(batch["x"]), batch["y"]).detach())


def settings(**changes: Any) -> TrainingSettings:
    defaults: dict[str, Any] = {
        "iterations": 40,
        "batch_size": 8,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "ema": 0.9,
        "validate_every": 7,
        "checkpoint_every": 6,
        "log_every": 5,
    }
    return TrainingSettings(**{**defaults, **changes})


def run(scratch: Path, seed: int = 3, curve: Curve | None = None, **changes: Any) -> TrainResult:
    module = small_network()
    ctx = context(scratch, seed, curve)
    return train(module, settings(**changes), regression_batches, noisy_step, ctx=ctx, validate=minus_error)


def same_bits(first: TrainResult, second: TrainResult) -> bool:
    assert first.state_dict.keys() == second.state_dict.keys()
    return all(torch.equal(first.state_dict[key], second.state_dict[key]) for key in first.state_dict)


class Killed(Exception):
    """Stands for a kill inside one process: nothing of the loop's own clean-up may matter."""


def run_until(kill_at: int, scratch: Path, **changes: Any) -> None:
    calls = 0

    def mortal_step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > kill_at:
            raise Killed
        return noisy_step(module, batch, generator)

    with pytest.raises(Killed):
        train(
            small_network(),
            settings(**changes),
            regression_batches,
            mortal_step,
            ctx=context(scratch),
            validate=minus_error,
        )


# ------------------------------------------------------------------------------------------ schedules


def test_step_schedule_is_the_published_one() -> None:
    published = TrainingSettings(iterations=5000, learning_rate=1e-3, schedule="step", step_every=500, step_factor=0.5)
    rates = [learning_rate_at(published, i) for i in (0, 499, 500, 999, 1000, 4999)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 1e-3 / 512])


def test_a_stretched_cosine_ends_on_its_way() -> None:
    short = TrainingSettings(iterations=51, learning_rate=1.0, schedule="cosine", cosine_stretch=2.0)
    whole = TrainingSettings(iterations=101, learning_rate=1.0, schedule="cosine")
    assert [learning_rate_at(short, i) for i in range(51)] == pytest.approx(
        [learning_rate_at(whole, i) for i in range(51)]
    )
    assert learning_rate_at(short, 50) == pytest.approx(0.5)


def test_cosine_schedule_starts_after_warmup_and_ends_at_its_final_fraction() -> None:
    s = TrainingSettings(iterations=111, learning_rate=1.0, schedule="cosine", cosine_final=0.2, warmup=10)
    rates = [learning_rate_at(s, i) for i in (0, 4, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2])


def test_linear_schedule_holds_then_falls_towards_zero_after_the_last_update() -> None:
    s = TrainingSettings(iterations=100, learning_rate=1.0, schedule="linear", linear_from=0.5)
    assert [learning_rate_at(s, i) for i in (0, 49, 50, 75, 99)] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.02])
    falling = TrainingSettings(iterations=4, learning_rate=1.0, schedule="linear", linear_from=0)
    assert [learning_rate_at(falling, i) for i in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_inverse_time_decays_in_every_iteration_or_in_steps_after_a_while() -> None:
    each = TrainingSettings(learning_rate=0.1, schedule="inverse_time", inverse_decay=1e-3)
    assert [learning_rate_at(each, i) for i in (0, 1, 1000, 9000)] == pytest.approx([0.1, 0.1 / 1.001, 0.05, 0.01])
    steps = each.model_copy(update={"inverse_decay": 0.05, "inverse_every": 10, "inverse_after": 200})
    rates = [learning_rate_at(steps, i) for i in (0, 199, 200, 209, 210, 400)]
    assert rates == pytest.approx([0.1, 0.1, 0.1 / 2, 0.1 / 2, 0.1 / 2.05, 0.1 / 3])


def test_constant_schedule_and_warmup_longer_than_the_training() -> None:
    assert learning_rate_at(TrainingSettings(learning_rate=0.3), 777) == 0.3
    long = TrainingSettings(iterations=5, learning_rate=1.0, schedule="cosine", warmup=100)
    assert [learning_rate_at(long, i) for i in range(5)] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


def test_the_optimiser_follows_the_schedule(tmp_path: Path) -> None:
    """Plain gradient descent on a loss of slope 1 moves by exactly the sum of the rates."""
    weight = nn.Linear(1, 1, bias=False)
    start = weight.weight.item()
    s = TrainingSettings(
        iterations=6, optimizer="sgd", momentum=0, learning_rate=1.0, schedule="step", step_every=2, warmup=2
    )
    train(weight, s, lambda rng, size: None, lambda m, b, g: m.weight.sum(), ctx=context(tmp_path))
    assert start - weight.weight.item() == pytest.approx(0.5 + 1 + 0.5 + 0.5 + 0.25 + 0.25)


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    weight = nn.Linear(4, 1, bias=False)
    start = weight.weight.detach().clone()
    s = TrainingSettings(iterations=1, optimizer="sgd", learning_rate=1.0, clip_norm=0.5)
    train(weight, s, lambda rng, size: None, lambda m, b, g: 100 * m.weight.sum(), ctx=context(tmp_path))
    assert (weight.weight - start).norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimiser_learns(optimizer: str, tmp_path: Path) -> None:
    before = minus_error(small_network().eval())
    result = run(tmp_path, optimizer=optimizer, iterations=150, ema=None, weight_decay=1e-4)
    assert result.score is not None
    assert result.score > before + 1


# -------------------------------------------------------------------------- averaging and selection


def test_moving_average_equals_its_closed_form(tmp_path: Path) -> None:
    """With w_k = w_0 − k, the average after n updates is d^n w_0 + (1 − d) Σ_k d^(n−k) w_k."""
    weight = nn.Linear(1, 1, bias=False)
    start, decay, n = weight.weight.item(), 0.8, 12
    s = TrainingSettings(iterations=n, optimizer="sgd", momentum=0, learning_rate=1.0, ema=decay)
    train(weight, s, lambda rng, size: None, lambda m, b, g: m.weight.sum(), ctx=context(tmp_path))
    expected = decay**n * start + (1 - decay) * sum(decay ** (n - k) * (start - k) for k in range(1, n + 1))
    assert weight.weight.item() == pytest.approx(expected, rel=1e-5)


def descend_then_validate(tmp_path: Path, scores: list[float], **changes: Any) -> tuple[TrainResult, float]:
    """Weight 0 falls by 1 in each update; the k-th validation gives scores[k]."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    given = iter(scores)
    s = TrainingSettings(
        **{"iterations": 6, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "validate_every": 2, **changes}
    )
    result = train(
        weight,
        s,
        lambda rng, size: None,
        lambda m, b, g: m.weight.sum(),
        ctx=context(tmp_path),
        validate=lambda module: next(given),
    )
    assert result.state_dict["weight"].item() == weight.weight.item()
    return result, weight.weight.item()


def test_the_best_validation_is_kept_and_the_earlier_of_two_equals(tmp_path: Path) -> None:
    result, weight = descend_then_validate(tmp_path, [0.2, 0.9, 0.9])
    assert (result.score, result.iteration, weight) == (0.9, 4, -4)


def test_the_last_weights_are_kept_on_request(tmp_path: Path) -> None:
    result, weight = descend_then_validate(tmp_path, [0.2, 0.9, 0.5], select="last")
    assert (result.score, result.iteration, weight) == (0.5, 6, -6)


@pytest.mark.parametrize(
    ("scores", "ends", "best"),
    [
        ([0.5, 0.4, 0.5, 0.9], 6, 2),  # an equal score is no new best
        ([0.1, 0.0, 0.2, 0.1, 0.1, 0.9], 10, 6),
        ([0.1, 0.2, 0.3, 0.2], 8, 6),  # the last iteration comes first
    ],
)
@pytest.mark.parametrize("select", ["best", "last"])
def test_patience_ends_a_training(tmp_path: Path, scores: list[float], ends: int, best: int, select: str) -> None:
    result, weight = descend_then_validate(tmp_path, scores, select=select, patience=2, iterations=2 * len(scores))
    kept = best if select == "best" else ends
    assert (result.iteration, weight) == (kept, -kept)
    assert result.score == scores[kept // 2 - 1]


def test_without_validation_patience_is_never_lost(tmp_path: Path) -> None:
    module = small_network()
    result = train(module, settings(patience=1), regression_batches, noisy_step, ctx=context(tmp_path))
    assert result.iteration == 40


@pytest.mark.parametrize("kill_at", [13, 20])
def test_patience_survives_a_kill_and_an_end_is_an_end(kill_at: int, tmp_path: Path) -> None:
    # So high a rate that the second validation is not better than the first, nor the third.
    changes: dict[str, Any] = {"patience": 2, "learning_rate": 1.0, "schedule": "constant", "ema": None}
    whole: Curve = []
    uninterrupted = run(tmp_path / "whole", curve=whole, **changes)
    assert max(step for _, step, _ in whole) == 21
    assert [step for name, step, _ in whole if name == "loss"] == [5, 10, 15, 20, 21]
    run_until(kill_at, tmp_path / "killed", **changes)
    rest: Curve = []
    resumed = run(tmp_path / "killed", curve=rest, **changes)
    assert resumed.resumed_at == kill_at // 6 * 6
    assert same_bits(resumed, uninterrupted)
    assert rest == whole
    again = run(tmp_path / "killed", **changes)
    assert again.resumed_at == 21
    assert same_bits(again, uninterrupted)


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    module = small_network()
    result = train(module, settings(ema=None), regression_batches, noisy_step, ctx=context(tmp_path))
    assert (result.score, result.iteration) == (None, 40)
    assert torch.equal(result.state_dict["0.weight"], module.state_dict()["0.weight"])


def test_validation_sees_eval_mode_and_leaves_every_mode_as_it_was(tmp_path: Path) -> None:
    module = small_network()
    module[1].eval()  # a frozen part
    modes: list[bool] = []

    def validate(m: nn.Module) -> float:
        modes.append(m.training or torch.is_grad_enabled())
        return 0.0

    train(module, settings(), regression_batches, noisy_step, ctx=context(tmp_path), validate=validate)
    assert modes == [False] * 6
    assert module.training
    assert module[0].training
    assert not module[1].training


# ------------------------------------------------------------------------------------ determinism


def test_same_seed_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    assert same_bits(run(tmp_path / "a"), run(tmp_path / "b"))
    assert not same_bits(run(tmp_path / "a"), run(tmp_path / "c", seed=4))


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(tmp_path)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("kill_at", [3, 6, 20, 39])
@pytest.mark.parametrize("select", ["best", "last"])
def test_resumed_training_ends_with_the_same_bits_and_curves(kill_at: int, select: str, tmp_path: Path) -> None:
    whole: Curve = []
    uninterrupted = run(tmp_path / "whole", curve=whole, select=select)
    run_until(kill_at, tmp_path / "killed", select=select)
    rest: Curve = []
    resumed = run(tmp_path / "killed", curve=rest, select=select)
    assert resumed.resumed_at == kill_at // 6 * 6
    assert (resumed.score, resumed.iteration) == (uninterrupted.score, uninterrupted.iteration)
    assert same_bits(resumed, uninterrupted)
    assert rest == whole


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path)
    assert again.resumed_at == 40
    assert same_bits(first, again)


def test_a_training_killed_with_signal_9_resumes_to_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "victim.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import test_training as t\n"
        "from pathlib import Path\n"
        "def slow(*a):\n"
        "    time.sleep(0.05)\n"
        "    return t.noisy_step(*a)\n"
        "t.train(t.small_network(), t.settings(), t.regression_batches, slow,\n"
        "        ctx=t.context(Path(sys.argv[1])), validate=t.minus_error)\n"
    )
    scratch = tmp_path / "scratch"
    victim = subprocess.Popen([sys.executable, script, scratch], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while not (scratch / "train.checkpoint").exists():
            assert victim.poll() is None, "the victim ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
    resumed = run(scratch)
    assert 0 < resumed.resumed_at < 40
    assert same_bits(resumed, run(tmp_path / "whole"))


# ------------------------------------------------------------------------------------ checkpoints


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "garbage": lambda content: b"not a checkpoint" * 9,
    "truncated": lambda content: content[: len(content) // 2],
    "flipped bit": flip_a_bit,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_ignored_with_a_note(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_until(20, tmp_path)
    path = tmp_path / "train.checkpoint"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING, "harness.training"):
        result = run(tmp_path)
    assert "damaged" in caplog.text
    assert result.resumed_at == 0
    assert same_bits(result, run(tmp_path / "whole"))


def test_a_checkpoint_of_other_settings_is_ignored_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_until(20, tmp_path)
    with caplog.at_level(logging.WARNING, "harness.training"):
        result = run(tmp_path, learning_rate=0.02)
    assert "other settings" in caplog.text
    assert result.resumed_at == 0


def test_an_unfinished_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    write_checkpoint(path, {"done": 1, "weights": torch.arange(3)})
    path.with_name("x.checkpoint.tmp").write_bytes(b"half of the next one")
    content = read_checkpoint(path)
    assert content is not None
    assert content["done"] == 1
    assert torch.equal(content["weights"], torch.arange(3))


def test_weights_come_once_and_go_back(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    module = nn.ModuleDict({"a": shared, "b": shared})
    weights = weights_of(module)
    assert sorted(weights) == ["a.bias", "a.weight"]
    other = nn.ModuleDict({"a": nn.Linear(3, 3)})
    load_weights(other, {key: tensor.numpy() for key, tensor in weights.items()})
    assert torch.equal(other["a"].weight, shared.weight)
    with pytest.raises(MethodError, match=r"a\.weight.*shape \(3, 3\), the network \(3, 4\)"):
        load_weights(nn.ModuleDict({"a": nn.Linear(4, 3)}), weights)
    with pytest.raises(MethodError, match="another network"):
        load_weights(nn.ModuleDict({"c": nn.Linear(3, 3)}), weights)


# ------------------------------------------------------------------- curves, errors, several players


def test_curves(tmp_path: Path) -> None:
    curve: Curve = []
    result = run(tmp_path, curve=curve)
    names = {name for name, _, _ in curve}
    assert names == {"loss", "root", "learning_rate", "validation"}
    assert [step for name, step, _ in curve if name == "loss"] == list(range(5, 41, 5))
    scores = {step: value for name, step, value in curve if name == "validation"}
    assert list(scores) == [7, 14, 21, 28, 35, 40]
    assert (result.score, result.iteration) == (max(scores.values()), max(scores, key=lambda step: scores[step]))


def test_a_loss_that_is_not_finite_names_its_iteration(tmp_path: Path) -> None:
    calls = 0

    def breaks_at_13(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        return noisy_step(module, batch, generator)["loss"] * (float("nan") if calls == 13 else 1)

    with pytest.raises(MethodError, match="loss became nan at iteration 13 of 40"):
        train(small_network(), settings(), regression_batches, breaks_at_13, ctx=context(tmp_path))


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="validation score became nan at iteration 4"):
        descend_then_validate(tmp_path, [0.2, float("nan")])


def test_a_step_without_a_loss_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match='no entry "loss"'):
        train(
            small_network(),
            settings(),
            regression_batches,
            lambda m, b, g: {"dice": m(b["x"]).sum()},
            ctx=context(tmp_path),
        )


def adversarial_steps() -> dict[str, Any]:
    def generate(m: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        assert not any(p.requires_grad for p in m["critic"].parameters())
        return -m["critic"](m["generator"](batch["x"])).mean()

    def criticise(m: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        fake = m["generator"](batch["x"])
        assert not fake.requires_grad
        return {"loss": (m["critic"](fake) - m["critic"](batch["y"].expand(-1, 4))).tanh().mean()}

    return {"generator": generate, "critic": criticise}


def run_adversarial(scratch: Path, curve: Curve, iterations_before_kill: int | None = None) -> TrainResult:
    with seeded(0):
        players = nn.ModuleDict({"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})
    steps = adversarial_steps()
    if iterations_before_kill is not None:
        alive = iter(range(iterations_before_kill))
        critic = steps["critic"]

        def mortal(*inputs: Any) -> dict[str, Tensor]:
            if next(alive, None) is None:
                raise Killed
            return critic(*inputs)

        steps["critic"] = mortal
    ctx = context(scratch, curve=curve)
    return train(players, settings(ema=None), regression_batches, steps, ctx=ctx, name="game")


def test_players_take_turns_and_resume(tmp_path: Path) -> None:
    curve: Curve = []
    whole = run_adversarial(tmp_path / "whole", curve)
    assert {name for name, _, _ in curve} == {"game/generator/loss", "game/critic/loss", "game/learning_rate"}
    with pytest.raises(Killed):
        run_adversarial(tmp_path / "killed", [], iterations_before_kill=15)
    resumed = run_adversarial(tmp_path / "killed", [])
    assert resumed.resumed_at == 12
    assert same_bits(resumed, whole)


def test_a_player_moves_only_its_own_parameters(tmp_path: Path) -> None:
    players = nn.ModuleDict({"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)})
    before = weights_of(players)
    only_critic = {"critic": adversarial_steps()["critic"]}
    players["generator"].requires_grad_(False)
    train(players, settings(), regression_batches, only_critic, ctx=context(tmp_path))
    moved = {key for key, tensor in players.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved <= {"critic.weight", "critic.bias"}
    assert "critic.weight" in moved


def run_at_rates(scratch: Path, rates: dict[str, float] | None, iterations: int = 6) -> dict[str, Tensor]:
    """Distance that plain gradient descent on a loss of slope 1 moved each weight in."""
    module = nn.ModuleDict({"fast": nn.Linear(2, 1), "slow": nn.ModuleDict({"deep": nn.Linear(2, 1)})})
    before = weights_of(module)
    s = TrainingSettings(
        iterations=iterations, optimizer="sgd", momentum=0, learning_rate=1.0, schedule="step", step_every=3
    )
    train(
        module,
        s,
        lambda rng, size: None,
        lambda m, b, g: torch.stack([p.sum() for p in m.parameters()]).sum(),
        ctx=context(scratch),
        rates=rates,
    )
    return {key: before[key] - tensor for key, tensor in weights_of(module).items()}


def test_submodules_learn_at_their_own_rates(tmp_path: Path) -> None:
    moved = run_at_rates(tmp_path, {"slow.deep": 0.01})
    assert moved["fast.weight"].tolist()[0] == pytest.approx([4.5, 4.5])
    assert moved["slow.deep.weight"].tolist()[0] == pytest.approx([0.045, 0.045], rel=1e-4)
    with pytest.raises(AttributeError, match="shallow"):
        run_at_rates(tmp_path / "typo", {"slow.shallow": 0.01})


def test_a_checkpoint_of_other_rates_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_at_rates(tmp_path, {"slow": 0.01})
    with caplog.at_level(logging.WARNING, "harness.training"):
        moved = run_at_rates(tmp_path, None)
    assert "other settings" in caplog.text
    assert moved["slow.deep.bias"].item() == pytest.approx(4.5)


def test_turns_share_an_optimiser_and_follow_each_other(tmp_path: Path) -> None:
    """Momentum carries over from turn to turn: steps of 1, then 0.5 + 1, in the next iteration 0.75 + 1 and so on."""
    players = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    before, calls = weights_of(players), []

    def step(player: str, turn: str) -> Any:
        def fall(module: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
            calls.append((player, turn, float(batch)))
            return module.get_submodule(player).weight.sum()

        return fall

    steps = {"a": {"one": step("a", "one"), "two": step("a", "two")}, "b": {"only": step("b", "only")}}
    training = TrainingSettings(iterations=2, optimizer="sgd", momentum=0.5, learning_rate=1.0, log_every=1)
    curve: Curve = []
    ctx = context(tmp_path, curve=curve)
    train(players, training, lambda rng, n: torch.tensor(rng.random()), steps, ctx=ctx, rates={"b": 0.1})
    assert [(player, turn) for player, turn, _ in calls] == 2 * [("a", "one"), ("a", "two"), ("b", "only")]
    assert calls[0][2] == calls[1][2] == calls[2][2] != calls[3][2]
    assert before["a.weight"].item() - players["a"].weight.item() == pytest.approx(1 + 1.5 + 1.75 + 1.875)
    assert before["b.weight"].item() - players["b"].weight.item() == pytest.approx(0.1 * (1 + 1.5), abs=1e-6)
    assert {name for name, _, _ in curve} == {"a/one/loss", "a/two/loss", "b/only/loss", "learning_rate"}


def test_lower_precision_is_for_gpus_only(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        seen.append(module(batch["x"]).dtype)
        return noisy_step(module, batch, generator)["loss"]

    for amp in ("auto", "bf16", "fp16"):
        scratch = tmp_path / amp
        s = settings(iterations=1, amp=amp)
        train(small_network(), s, regression_batches, step, ctx=context(scratch))
    assert seen == [torch.float32] * 3

"""TENT on a small convolutional task model: what moves, what does not, and in which order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.api import (
    AccessDenied,
    ApplyData,
    Context,
    ImageSet,
    MethodError,
    Scan,
    State,
    TaskData,
    TaskHandle,
    TaskModel,
)
from harness.conformance import check_method
from harness.training import load_weights, seeded, weights_of
from methods.adaptation._online import normalize_by_batch, pixel_entropy, shuffled_batches
from methods.adaptation.tent import Tent, _Learner

LABELS = 4


class SmallSegmenter(TaskModel):
    """An untrained network, batch-normalised (or not), whose logits are far from uniform."""

    id = "small_segmenter"
    reference = "ours"
    norm: str = "batch"

    def build(self) -> nn.Sequential:
        norms = {"batch": nn.BatchNorm2d(6), "instance": nn.InstanceNorm2d(6, affine=True)}
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), norms[self.norm], nn.ReLU(), nn.Conv2d(6, LABELS, 3, padding=1)
        )

    def initial_state(self) -> State:
        with seeded(11):
            network = self.build()
            if self.norm == "batch":
                nn.init.uniform_(network[1].running_mean, -0.2, 0.2)
                nn.init.uniform_(network[1].running_var, 0.5, 2)
        return dict(weights_of(network))

    def train(self, data: TaskData, ctx: Context) -> State:
        raise NotImplementedError

    def network(self, state: State) -> nn.Module:
        network = self.build()
        load_weights(network, state)
        return network.eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        raise NotImplementedError


class WatchedHandle(TaskHandle):
    """A handle that keeps the networks it gave out."""

    given: list[nn.Module]

    def network(self) -> nn.Module:
        network = super().network()
        self.given.append(network)
        return network


def handle(norm: str = "batch") -> WatchedHandle:
    model = SmallSegmenter(norm=norm)
    watched = WatchedHandle(model, model.initial_state(), "cpu")
    object.__setattr__(watched, "given", [])
    return watched


def images(n: int = 22, size: int = 16) -> ImageSet:
    rng = np.random.default_rng(5)
    mask = np.zeros((n, size, size), bool)
    mask[:, 4:12, 4:12] = True
    level = rng.uniform(0.2, 0.9, (n, 1, 1))
    pixels = (np.clip(level + rng.normal(0, 0.1, mask.shape), 0, 1) * mask * 255).astype(np.uint8)
    return ImageSet(pixels, mask, (Scan("s", "s", "B", 0, n, (1.0, 1.0, 1.0)),))


def context(seed: int = 0, curve: list[float] | None = None) -> Context:
    points: list[float] = [] if curve is None else curve
    return Context(seed, "cpu", Path("unused"), lambda name, step, value: points.append(value))


def adapt(tent: Tent, target: ImageSet | None = None, *, seed: int = 0, curve: list[float] | None = None) -> np.ndarray:
    data = ApplyData({"target": images() if target is None else target, "task": handle()})
    return tent.adapt({}, data, context(seed, curve))


def adapted_network(tent: Tent) -> tuple[nn.Module, nn.Module]:
    """The network after a run, and as it was."""
    watched = handle()
    tent.adapt({}, ApplyData({"target": images(), "task": watched}), context())
    return watched.given[0], SmallSegmenter().network(watched.state)


def brisk(**changes: Any) -> Tent:
    return Tent(**{"learning_rate": 0.05, "batch_size": 8, **changes})


# ----------------------------------------------------------------------------------------- what moves


def test_only_scales_and_shifts_of_batch_norm_differ_after_a_run() -> None:
    after, before = adapted_network(brisk())
    differing = {key for key, value in after.named_parameters() if not torch.equal(value, before.get_parameter(key))}
    assert differing == {"1.weight", "1.bias"}
    assert {key for key, value in after.named_parameters() if value.requires_grad} == differing


def test_running_statistics_are_not_used() -> None:
    network = SmallSegmenter().network(handle().state)
    other = copy.deepcopy(network)
    other[1].running_mean += 3  # type: ignore[index, operator]
    pixels = torch.from_numpy(images().floats())[:, None]
    with torch.no_grad():
        assert not torch.equal(network(pixels), other(pixels))
        for each in (network, other):
            normalize_by_batch(each)
        assert torch.equal(network(pixels), other(pixels))
        by_hand = network[0](pixels)  # type: ignore[index, operator]
        mean, var = by_hand.mean((0, 2, 3), keepdim=True), by_hand.var((0, 2, 3), keepdim=True, unbiased=False)
        expected = (by_hand - mean) / (var + 1e-5).sqrt()
        assert torch.allclose(network[1](by_hand), expected, atol=1e-5)  # type: ignore[index, operator]


def test_no_update_leaves_every_parameter() -> None:
    after, before = adapted_network(brisk(update=False))
    assert all(torch.equal(value, before.get_parameter(key)) for key, value in after.named_parameters())


def test_a_network_without_batch_norm_is_refused() -> None:
    data = ApplyData({"target": images(), "task": handle("instance")})
    for update in (True, False):
        with pytest.raises(MethodError, match="no BatchNorm2d"):
            brisk(update=update).adapt({}, data, context())


# ------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.05), ("sgd", 1.0)])
@pytest.mark.parametrize("region", ["unmasked", "foreground"])
def test_entropy_of_a_batch_falls(optimizer: str, rate: float, region: str) -> None:
    target = images(8)
    pixels, mask = torch.from_numpy(target.floats())[:, None], torch.from_numpy(target.mask).float()
    learner = _Learner(handle().network(), brisk(optimizer=optimizer, learning_rate=rate, region=region))
    entropies = [learner.learn(pixels, mask)[1]["entropy"] for _ in range(10)]
    assert entropies[-1] < 0.95 * entropies[0]
    assert all(0 < entropy < np.log(LABELS) for entropy in entropies)


def test_entropy_falls_over_passes() -> None:
    curve: list[float] = []
    adapt(brisk(epochs=6), curve=curve)
    assert len(curve) == 18
    assert np.mean(curve[-3:]) < 0.9 * np.mean(curve[:3])


def test_regions_are_means_over_their_pixels() -> None:
    target = images(8)
    pixels, mask = torch.from_numpy(target.floats())[:, None], torch.from_numpy(target.mask).float()
    network = handle().network()
    normalize_by_batch(network)
    with torch.no_grad():
        entropy = pixel_entropy(network(pixels))
    for region, expected in (("unmasked", entropy.mean()), ("foreground", entropy[mask > 0].mean())):
        _, first = _Learner(handle().network(), brisk(region=region)).learn(pixels, mask)
        assert first["entropy"] == pytest.approx(expected.item(), rel=1e-5)


def test_slices_without_brain_teach_nothing() -> None:
    empty = images(8)
    empty.mask[:] = False
    curve: list[float] = []
    assert np.array_equal(adapt(brisk(region="foreground"), empty, curve=curve), adapt(brisk(update=False), empty))
    assert curve == [0.0]


def test_pixel_entropy_by_hand() -> None:
    logits = torch.zeros(1, LABELS, 1, 2)
    logits[0, 0, 0, 1] = 1000
    assert pixel_entropy(logits).numpy() == pytest.approx(np.array([[[np.log(LABELS), 0]]]), abs=1e-6)


# ------------------------------------------------------------------------ variants and their relations


def test_rate_zero_is_norm() -> None:
    norm = adapt(brisk(update=False))
    assert np.array_equal(adapt(brisk(learning_rate=0)), norm)
    assert not np.array_equal(adapt(brisk(epochs=5)), norm)


def test_predictions_are_those_before_the_update() -> None:
    """So one batch, seen once, is predicted as by norm; and a pass of its own shows what was learnt."""
    whole = brisk(batch_size=64, learning_rate=0.5)
    norm = adapt(brisk(batch_size=64, update=False))
    assert np.array_equal(adapt(whole), norm)
    final = whole.model_copy(update={"final_pass": True})
    assert not np.array_equal(adapt(final), norm)


def test_steps_on_one_batch_are_passes_over_it() -> None:
    steps, passes = brisk(batch_size=64, steps=4), brisk(batch_size=64, epochs=4)
    assert (adapt(steps) == adapt(passes)).mean() > 0.999  # shuffling changes the order of summation


def test_episodic_forgets_bit_exactly() -> None:
    """With one step, every batch is then predicted by the source weights: norm again."""
    assert np.array_equal(adapt(brisk(episodic=True, learning_rate=0.5)), adapt(brisk(update=False)))
    target = images(8)
    pixels, mask = torch.from_numpy(target.floats())[:, None], torch.from_numpy(target.mask).float()
    learner = _Learner(handle().network(), brisk(steps=3))
    first, _ = learner.learn(pixels, mask)
    learner.reset()
    again, _ = learner.learn(pixels, mask)
    assert torch.equal(first, again)


def test_every_run_starts_from_the_source_network() -> None:
    data = ApplyData({"target": images(), "task": handle()})
    first, second = (brisk(epochs=2).adapt({}, data, context()) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_final_pass_after_episodes_is_refused() -> None:
    with pytest.raises(ValidationError, match="drop one"):
        Tent(final_pass=True, episodic=True)


# --------------------------------------------------------------------------- data, order, determinism


def test_labels_are_never_requested() -> None:
    """Only the target and the task are granted; asking for anything else would raise."""
    data = ApplyData({"target": images(), "task": handle()})
    assert brisk().adapt({}, data, context()).dtype == np.uint8
    with pytest.raises(AccessDenied):
        _ = data.labels
    assert Tent.source_free
    assert Tent.unknown_domains
    assert not Tent.task_agnostic
    assert not Tent().has_fit()


def test_predictions_come_in_the_order_of_the_slices() -> None:
    """All slices in one batch, whose statistics do not depend on their order; slices differ in level."""
    target = images()
    predicted = adapt(brisk(batch_size=64, update=False), target)
    network = handle().network()
    normalize_by_batch(network)
    with torch.no_grad():
        expected = network(torch.from_numpy(target.floats())[:, None]).argmax(1).numpy()
    assert predicted.shape == target.pixels.shape
    assert (predicted == expected).mean() > 0.999


def test_same_seed_same_bits_and_another_seed_other_batches() -> None:
    tent = brisk(epochs=2)
    first, again, other = adapt(tent), adapt(tent), adapt(tent, seed=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_global_generators_are_left_alone() -> None:
    state = torch.get_rng_state()
    adapt(brisk())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("n", "size", "sizes"), [(22, 8, [8, 7, 7]), (8, 8, [8]), (9, 8, [5, 4]), (1, 8, [1])])
def test_batches_cover_all_slices_in_nearly_equal_sizes(n: int, size: int, sizes: list[int]) -> None:
    batches = list(shuffled_batches(n, size, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(n))


def test_entropy_that_is_not_finite_is_an_error() -> None:
    broken = handle()
    broken.state["3.bias"] = torch.full((LABELS,), float("nan"))
    data = ApplyData({"target": images(), "task": broken})
    with pytest.raises(MethodError, match="entropy became nan in batch 1 of pass 1"):
        brisk().adapt({}, data, context())


def test_conformance() -> None:
    assert not [result for result in check_method(Tent) if not result.passed]

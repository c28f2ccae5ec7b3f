"""SAR on a small convolutional task model: which pixels teach, the climb, the resets, and its kinship with TENT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.api import (
    ApplyData,
    Augment,
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
from methods.adaptation import sar, tent
from methods.adaptation._online import normalize_by_batch, pixel_entropy
from methods.adaptation.sar import NORMS, Sar, mean_over
from methods.adaptation.tent import Tent
from methods.tasks.segmenter_2d import Segmenter2d

LABELS = 4
LAYERS = {"batch": nn.BatchNorm2d, "group": lambda width: nn.GroupNorm(2, width), "instance": nn.InstanceNorm2d}


class TwoNorms(TaskModel):
    """An untrained network with two normalisation layers, whose logits are far from uniform."""

    id = "two_norms"
    reference = "ours"
    norm: str = "batch"

    def build(self) -> nn.Sequential:
        norm = LAYERS[self.norm]
        first = [nn.Conv2d(1, 6, 3, padding=1), norm(6), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.Conv2d(6, LABELS, 3, padding=1))

    def initial_state(self) -> State:
        with seeded(11):
            network = self.build()
            nn.init.normal_(network[5].weight, 0, 0.4)
        return dict(weights_of(network))

    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        raise NotImplementedError

    def network(self, state: State) -> nn.Module:
        network = self.build()
        load_weights(network, state)
        return network.eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        raise NotImplementedError


def handle(norm: str = "batch") -> TaskHandle:
    model = TwoNorms(norm=norm)
    return TaskHandle(model, model.initial_state(), "cpu")


def images(n: int = 22, size: int = 16) -> ImageSet:
    rng = np.random.default_rng(5)
    mask = np.zeros((n, size, size), bool)
    mask[:, 4:12, 4:12] = True
    level = rng.uniform(0.2, 0.9, (n, 1, 1))
    pixels = (np.clip(level + rng.normal(0, 0.1, mask.shape), 0, 1) * mask * 255).astype(np.uint8)
    return ImageSet(pixels, mask, (Scan("s", "s", "B", 0, n, (1.0, 1.0, 1.0)),))


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    target = images(n)
    return torch.from_numpy(target.floats())[:, None], torch.from_numpy(target.mask).float()


def brisk(**changes: Any) -> Sar:
    defaults = {"learning_rate": 0.1, "batch_size": 8, "frozen_norms": 0, "region": "unmasked", "reset_below": None}
    return Sar(**{**defaults, **changes})


def learner(settings: Sar, norm: str = "batch") -> sar._Learner:
    return sar._Learner(handle(norm).network(), settings)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def adapt(settings: Sar, *, seed: int = 0, curves: dict[str, list[float]] | None = None) -> np.ndarray:
    def log(name: str, step: int, value: float) -> None:
        if curves is not None:
            curves.setdefault(name, []).append(value)

    data = ApplyData({"target": images(), "task": handle()})
    return settings.adapt({}, data, Context(seed, "cpu", Path("unused"), log))


# -------------------------------------------------------------------------------- kinship with TENT


@pytest.mark.parametrize("region", ["unmasked", "foreground"])
def test_without_its_safeguards_it_is_tent_with_sgd(region: str) -> None:
    plain = brisk(rho=0, margin=None, region=region)
    like = Tent(optimizer="sgd", learning_rate=0.1, region=region)
    one, other = learner(plain), tent._Learner(handle().network(), like)
    for _ in range(5):
        first, second = one.learn(*batch()), other.learn(*batch())
        assert torch.allclose(first[0], second[0], atol=1e-5)
        assert first[1]["entropy"] == pytest.approx(second[1]["entropy"], rel=1e-5)
    start = values(handle().network())
    for name, value in values(one.network).items():
        assert torch.allclose(value, values(other.network)[name], atol=1e-6)
    assert not torch.allclose(values(one.network)["1.weight"], start["1.weight"], atol=1e-3)


def test_climbing_changes_the_update() -> None:
    flat, climbed = learner(brisk(rho=0)), learner(brisk(rho=0.5))
    for each in (flat, climbed):
        each.learn(*batch())
    assert not torch.allclose(values(flat.network)["1.weight"], values(climbed.network)["1.weight"], atol=1e-5)


# ------------------------------------------------------------------------------------- what moves


def test_climb_goes_rho_up_the_slope_and_back_to_the_same_bits() -> None:
    each = learner(brisk(rho=0.3))
    pixels, _ = batch()
    before = values(each.network)
    loss = pixel_entropy(each.network(pixels)).mean()
    loss.backward()
    saved = each.climb()
    distance = math.sqrt(sum(((p - before[n]) ** 2).sum().item() for n, p in each.network.named_parameters()))
    assert distance == pytest.approx(0.3, rel=1e-5)
    with torch.no_grad():
        assert pixel_entropy(each.network(pixels)).mean() > loss
    each.restore(saved)
    assert all(torch.equal(p, before[name]) for name, p in each.network.named_parameters())


def test_rate_zero_leaves_every_parameter() -> None:
    each = learner(brisk(learning_rate=0))
    each.learn(*batch())
    assert all(torch.equal(p, values(handle().network())[name]) for name, p in each.network.named_parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_only_norms_that_are_not_frozen_learn(norm: str) -> None:
    if norm == "group":  # without scale and shift InstanceNorm and the like have nothing to learn
        with pytest.raises(MethodError, match="no BatchNorm2d or LayerNorm or GroupNorm"):
            learner(brisk(), "instance")
    for frozen, expected in ((0, {"1.weight", "1.bias", "4.weight", "4.bias"}), (1, {"1.weight", "1.bias"})):
        each = learner(brisk(frozen_norms=frozen), norm)
        before = values(each.network)
        each.learn(*batch())
        assert {name for name, p in each.network.named_parameters() if not torch.equal(p, before[name])} == expected


def test_freezing_every_norm_is_refused() -> None:
    with pytest.raises(MethodError, match="frozen_norms is 2, but the task network has only 2"):
        learner(brisk(frozen_norms=2))


def test_by_default_the_last_decoder_stage_of_the_segmenter_is_frozen() -> None:
    network = Segmenter2d(filters=(4, 8, 16))._build(3)
    learning = {id(p) for p in normalize_by_batch(network, NORMS, Sar().frozen_norms)}
    names = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = [n for n in names if id(network.get_submodule(n).weight) not in learning]
    assert frozen == ["upsamples.1.conv_block.norm1", "upsamples.1.conv_block.norm2"]


# ------------------------------------------------------------------------------- which pixels teach


def test_uncertain_pixels_get_no_gradient() -> None:
    each = learner(brisk(margin=0.5))
    logits = torch.randn(2, LABELS, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    logits.requires_grad_(True)
    entropy = pixel_entropy(logits)
    chosen = each.reliable(entropy.detach(), LABELS)
    assert torch.equal(chosen, entropy < 0.5 * math.log(LABELS))
    assert 0.1 < chosen.float().mean() < 0.9
    mean_over(entropy, chosen).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(1) > 0
    assert torch.equal(moved, chosen)


def test_published_margin_in_nats() -> None:
    assert Sar().margin is not None
    assert Sar().margin * math.log(15) == pytest.approx(1.083, abs=1e-3)
    assert Sar().margin * math.log(36) == pytest.approx(1.433, abs=1e-3)
    assert Sar().reset_below * math.log(15) == pytest.approx(0.0784, abs=1e-3)


def test_no_reliable_pixel_no_update() -> None:
    each = learner(brisk(margin=1e-12))
    before = values(each.network)
    _, points = each.learn(*batch())
    assert points == {"entropy": 0.0, "selected": 0.0, "resets": 0.0}
    assert all(torch.equal(p, before[name]) for name, p in each.network.named_parameters())


@pytest.mark.parametrize("region", ["predicted", "foreground", "unmasked"])
def test_selected_pixels_lie_in_the_region(region: str) -> None:
    pixels, mask = batch()
    each = learner(brisk(margin=None, region=region))
    logits, points = each.learn(pixels, mask)
    expected = {"predicted": (logits.argmax(1) > 0).float().mean(), "foreground": mask.mean(), "unmasked": 1.0}
    assert points["selected"] == pytest.approx(float(expected[region]))


def test_entropy_of_reliable_pixels_falls() -> None:
    each = learner(brisk(margin=0.9, region="foreground"))
    entropies = [each.learn(*batch())[1]["entropy"] for _ in range(12)]
    assert entropies[-1] < 0.8 * entropies[0]


# ------------------------------------------------------------------------------------------- resets


def collapsing(*, clear: bool) -> sar._Learner:
    """A learner whose average is near 0, as after many certain batches; its batch is far above the threshold."""
    each = learner(brisk(margin=None, reset_below=0.3, clear_average=clear, learning_rate=0.01))
    _, points = each.learn(*batch())
    assert points["entropy"] > 0.45 * math.log(LABELS)
    assert each.resets == 0
    each.average = 0.0
    return each


def test_a_low_average_resets_once_and_is_cleared() -> None:
    each = collapsing(clear=True)
    each.learn(*batch())
    assert (each.resets, each.average) == (1, None)
    assert all(torch.equal(p, values(handle().network())[name]) for name, p in each.network.named_parameters())
    assert not each.optimizer.state
    _, points = each.learn(*batch())
    assert (each.resets, points["resets"]) == (1, 1.0)
    assert each.average is not None
    assert each.average > 0.3 * math.log(LABELS)


def test_the_published_average_survives_a_reset_and_brings_another() -> None:
    each = collapsing(clear=False)
    each.learn(*batch())
    assert each.resets == 1
    assert each.average is not None
    each.learn(*batch())
    assert each.resets == 2


def test_average_follows_the_second_entropy() -> None:
    each = learner(brisk(learning_rate=0, margin=None, rho=0))
    _, points = each.learn(*batch())
    assert each.average == pytest.approx(points["entropy"], rel=1e-5)
    each.average = 0.0
    each.learn(*batch())
    assert each.average == pytest.approx(0.1 * points["entropy"], rel=1e-5)


def test_without_a_threshold_nothing_is_reset() -> None:
    each = learner(brisk(margin=None))
    each.average = 0.0
    each.learn(*batch())
    assert each.resets == 0


# ---------------------------------------------------------------------------------------- whole runs


def test_predictions_are_those_before_the_update() -> None:
    """So one batch, seen once, is predicted as without learning; a pass of its own shows what was learnt."""
    whole = {"batch_size": 64, "learning_rate": 2.0, "margin": None}
    untaught = adapt(brisk(batch_size=64, learning_rate=0))
    assert np.array_equal(adapt(brisk(**whole)), untaught)
    assert not np.array_equal(adapt(brisk(**whole, final_pass=True)), untaught)


def test_same_seed_same_bits_and_curves() -> None:
    curves: dict[str, list[float]] = {}
    settings = brisk(epochs=2, margin=None)
    assert np.array_equal(adapt(settings, curves=curves), adapt(settings))
    assert set(curves) == {"entropy", "selected", "resets"}
    assert [len(points) for points in curves.values()] == [6, 6, 6]
    assert not np.array_equal(adapt(settings), adapt(settings, seed=1))


def test_episodic_forgets() -> None:
    each = learner(brisk(episodic=True, margin=None, steps=2))
    first, _ = each.learn(*batch())
    again, _ = each.learn(*batch())
    assert torch.equal(first, again)
    with pytest.raises(ValidationError, match="drop one"):
        Sar(final_pass=True, episodic=True)


def test_entropy_that_is_not_finite_is_an_error() -> None:
    broken = handle()
    broken.state["5.bias"] = torch.full((LABELS,), float("nan"))
    data = ApplyData({"target": images(), "task": broken})
    with pytest.raises(MethodError, match="sar: the entropy became nan in batch 1 of pass 1"):
        brisk().adapt({}, data, Context(0, "cpu", Path("unused"), lambda *point: None))


def test_card() -> None:
    assert (Sar.source_free, Sar.task_agnostic, Sar.unknown_domains) == (True, False, True)
    assert Sar.outcomes == Tent.outcomes == ("labels",)


def test_conformance() -> None:
    assert not [result for result in check_method(Sar) if not result.passed]

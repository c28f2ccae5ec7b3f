"""CycleGAN: its networks, its history of fakes, its losses, and a small pair of sites that differ in contrast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.api import ApplyData, Context, FitData, ImageSet, MethodError, Scan, State
from harness.conformance import check_method
from harness.training import learning_rate_at, seeded
from methods.harmonization.cycle_gan.generator import ResNetGenerator
from methods.harmonization.cycle_gan.learning import History, Turns, build_players
from methods.harmonization.cycle_gan.method import CycleGAN
from methods.harmonization.cycle_gan.settings import CycleGANTraining
from methods.harmonization.cycle_gan.slices import SiteSlices, pad
from methods.networks.patch_discriminator import PatchDiscriminator

Log = Callable[[str, int, float], None]


def images(site: str, seed: int, gamma: float = 1.0, n: int = 8, size: tuple[int, int] = (32, 32)) -> ImageSet:
    """Scans of four slices: a disc with two tissues, a bright spot and some noise, raised to a power."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in size)
    slices, masks = [], []
    for _ in range(4 * n):
        radius = np.hypot(rows[:, None] / rng.uniform(0.38, 0.48), columns / rng.uniform(0.38, 0.48)) / min(size)
        inner = np.hypot(rows[:, None] - rng.uniform(-4, 4), columns - rng.uniform(-4, 4)) / min(size)
        slices.append(np.where(inner < 0.2, 0.65, 0.3) + 0.25 * (inner < 0.07) + rng.normal(0, 0.03, size))
        masks.append(radius < 1)
    mask = np.stack(masks)
    pixels = (np.clip(slices, 0.02, 1) ** gamma * mask * 255).round().astype(np.uint8)
    scans = tuple(Scan(f"{site}{i}", f"{site}{i}", site, 4 * i, 4 * i + 4, (1.0, 1.0, 1.0)) for i in range(n))
    return ImageSet(pixels, mask, scans)


def context(scratch: Path, log: Log = lambda *_: None) -> Context:
    return Context(5, "cpu", scratch, log)


def small(**changes: Any) -> CycleGAN:
    training = {"iterations": 6, "batch_size": 2, "checkpoint_every": 2, "log_every": 1} | changes.pop("training", {})
    fields: dict[str, Any] = {"width": 4, "blocks": 1, "discriminator_width": 4, "resize": None, "crop": None}
    return CycleGAN(**{**fields, "history": 3, **changes, "training": CycleGANTraining(**training)})


def fit(method: CycleGAN, a: ImageSet, b: ImageSet, ctx: Context) -> State:
    return method.fit(FitData({"source": a, "target": b}), ctx)


def apply(method: CycleGAN, state: State, target: ImageSet, scratch: Path) -> np.ndarray:
    return method.harmonize(state, ApplyData({"target": target}), context(scratch))


# ------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("blocks", "millions"), [(9, 11.37), (6, 7.83)])
def test_the_generator_has_the_published_size(blocks: int, millions: float) -> None:
    with torch.device("meta"):
        network = ResNetGenerator(CycleGAN().width, blocks, "transposed")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert (CycleGAN().width, CycleGAN().blocks) == (64, 9)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_the_generator_keeps_the_shape_and_stays_in_range(upsampling: Any) -> None:
    with seeded(0):
        network = ResNetGenerator(4, 1, upsampling)
        x = 2 * torch.rand(2, 1, 20, 28) - 1
        y = network(50 * x)
    assert y.shape == x.shape
    assert float(y.detach().abs().max()) <= 1
    assert float(y.detach().std()) > 0


@pytest.mark.parametrize(("layers", "field"), [(3, 70), (2, 34), (1, 16)])
def test_a_score_sees_a_patch_of_the_stated_size(layers: int, field: int) -> None:
    """Gradient of one score with respect to the image, without the normalisation, whose statistics see everything."""
    with seeded(0):
        network = PatchDiscriminator(1, 2, layers)
        for name, module in list(network.layers.named_children()):
            if isinstance(module, nn.InstanceNorm2d):
                setattr(network.layers, name, nn.Identity())
        x = torch.rand(1, 1, 128, 128, requires_grad=True)
    scores = network(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    assert x.grad is not None
    seen = x.grad[0, 0] != 0
    assert (int(seen.any(0).sum()), int(seen.any(1).sum())) == (field, field)


def test_the_field_is_small_by_default_and_the_rate_falls_to_nothing() -> None:
    method = CycleGAN()
    assert method.discriminator_layers == 2
    last = method.training.iterations - 1
    rates = [learning_rate_at(method.training, i) for i in (0, 19_999, 20_000, 30_000, last)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4, 2e-4 / 20_000])


# -------------------------------------------------------------------------------------------- history


def fakes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


def test_the_history_shows_the_latest_until_it_is_full_then_earlier_ones_half_of_the_time() -> None:
    history, draws = History(50, (1, 1)), torch.Generator().manual_seed(0)
    for i in range(50):
        assert history.exchange(fakes(i), draws).item() == i
    assert torch.equal(history.fakes.flatten(), torch.arange(50.0))
    earlier = 0
    kept = set(range(50))
    for i in range(50, 850):
        shown = int(history.exchange(fakes(i), draws).item())
        earlier += shown != i
        kept = (kept | {i}) - {shown}  # an earlier one is shown once: the latest takes its place
        assert len(kept) == 50
        assert set(history.fakes.flatten().int().tolist()) == kept
    assert 0.44 < earlier / 800 < 0.56


def test_a_batch_fills_the_history_and_none_is_possible() -> None:
    draws = torch.Generator().manual_seed(0)
    history = History(3, (1, 1))
    history.exchange(fakes(1, 2), draws)
    assert int(history.count) == 2
    shown = history.exchange(fakes(3, 4, 5), draws)
    assert shown[0].item() == 3
    assert int(history.count) == 3
    assert history.state_dict().keys() == {"fakes", "count"}
    assert torch.equal(History(0, (1, 1)).exchange(fakes(1, 2), draws), fakes(1, 2))


# --------------------------------------------------------------------------------------------- losses


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def test_losses_by_hand() -> None:
    """The first generator turns the sign, the second leaves it: cycles end at −x, identity fails for the first only."""
    method = small()
    sides = [SiteSlices(images(site, seed), method) for site, seed in (("A", 1), ("B", 2))]
    players = build_players(method, sides)
    generators = nn.ModuleDict({"first": Negative(), "second": nn.Identity()})
    discriminators = nn.ModuleDict({"first": nn.Identity(), "second": nn.Identity()})
    players.update({"generators": generators, "discriminators": discriminators})
    a, b = torch.full((2, 1, 32, 32), 0.9), torch.full((2, 1, 32, 32), 0.3)  # 0.8 and −0.4 to the networks
    turns, draws = Turns(method), torch.Generator().manual_seed(0)
    made = {k: v.item() for k, v in turns.generators(players, {"first": a, "second": b}, draws).items()}
    assert made["cycle"] == pytest.approx(2 * 0.8 + 2 * 0.4)
    assert made["identity"] == pytest.approx(2 * 0.8)
    assert made["adversarial"] == pytest.approx((0.4 - 1) ** 2 + (0.8 - 1) ** 2)  # fakes: 0.4 first, 0.8 second
    assert made["loss"] == pytest.approx(made["adversarial"] + 10 * made["cycle"] + 5 * made["identity"])
    judged = {k: v.item() for k, v in turns.discriminators(players, {"first": a, "second": b}, draws).items()}
    assert judged["real"] == pytest.approx((0.8 - 1) ** 2 + (-0.4 - 1) ** 2)
    assert judged["fake"] == pytest.approx(0.4**2 + 0.8**2)
    assert judged["loss"] == pytest.approx(0.5 * (judged["real"] + judged["fake"]))


# --------------------------------------------------------------------------------------------- slices


def test_windows_are_cropped_from_enlarged_slices_and_mirrored() -> None:
    published, rng = CycleGAN(), np.random.default_rng(0)
    big = images("A", 1, n=1, size=(256, 256))
    assert SiteSlices(big, published).draw(rng, 2).shape == (2, 1, 256, 256)
    whole = SiteSlices(big, small())
    drawn = whole.draw(rng, 24)
    known = torch.from_numpy(big.floats())
    plain = [bool((known == x).flatten(1).all(1).any()) for x in drawn]
    mirrored = [bool((known == x.flip(-1)).flatten(1).all(1).any()) for x in drawn]
    assert any(plain)
    assert any(mirrored)
    assert all(p or m for p, m in zip(plain, mirrored, strict=True))
    assert SiteSlices(images("A", 1, n=1, size=(45, 70)), small(crop=41)).draw(rng, 1).shape == (1, 1, 44, 44)
    oblong = SiteSlices(images("A", 1, n=1, size=(30, 45)), small(resize=40))
    assert oblong.window == tuple(oblong.draw(rng, 1).shape[2:]) == (40, 60)


def test_padding_adds_background_up_to_multiples_of_four() -> None:
    x = torch.ones(1, 1, 9, 3)
    y = pad(x)
    assert y.shape == (1, 1, 12, 8)
    assert torch.equal(y[:, :, :9, :3], x)
    assert float(y.sum()) == 27


# ------------------------------------------------------------------------------------------- training


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein distance of two samples, by their quantiles."""
    at = np.linspace(0, 1, 1001)
    return float(np.abs(np.quantile(a, at) - np.quantile(b, at)).mean())


def test_it_learns_a_gamma_and_its_inverse(tmp_path: Path) -> None:
    curve: dict[str, list[float]] = {}
    ctx = context(tmp_path, lambda name, step, value: curve.setdefault(name, []).append(value))
    training = {"iterations": 200, "batch_size": 4, "learning_rate": 2e-3, "log_every": 20, "checkpoint_every": 200}
    method = small(width=8, discriminator_width=8, discriminator_layers=1, training=training)
    a, b = images("A", 1), images("B", 2, gamma=0.6)
    state = fit(method, a, b, ctx)
    for target, goal in ((images("B", 3, 0.6), a), (images("A", 4), b)):
        brain = goal.floats()[goal.mask]
        before = distance(target.floats()[target.mask], brain)
        after = distance(apply(method, state, target, tmp_path)[target.mask], brain)
        assert after < 0.5 * before
    cycle = curve["generators/cycle"]
    assert np.mean(cycle[-3:]) < 0.5 * cycle[0]
    assert {"generators/identity", "generators/adversarial", "discriminators/loss"} <= curve.keys()


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(np.asarray(first[k]), np.asarray(second[k])) for k in first
    )


class Killed(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """The history is full after two iterations, so that its draws and contents must come back too."""

    def deadly(name: str, step: int, value: float) -> None:
        if step == 5:
            raise Killed

    method, a, b = small(), images("A", 1, n=2), images("B", 2, n=2)
    with pytest.raises(Killed):
        fit(method, a, b, context(tmp_path / "killed", deadly))
    steps: list[int] = []
    resumed = fit(method, a, b, context(tmp_path / "killed", lambda name, step, value: steps.append(step)))
    assert same(resumed, fit(method, a, b, context(tmp_path / "whole")))
    assert not same(resumed, fit(small(history=0), a, b, context(tmp_path / "forgetful")))


def test_roles_are_arbitrary_and_the_direction_follows_the_site(tmp_path: Path) -> None:
    method, a, b = small(), images("A", 1, n=2), images("B", 2, n=2)
    state = fit(method, a, b, context(tmp_path / "one"))
    assert state["sites"] == ["A", "B"]
    assert same(state, fit(method, b, a, context(tmp_path / "other")))
    as_b = ImageSet(a.pixels, a.mask, b.scans)  # the same slices, said to be of the other site
    out = apply(method, state, a, tmp_path)
    assert not np.array_equal(out, apply(method, state, as_b, tmp_path))
    assert np.all(out[~a.mask] == 0)
    other = {"first": "second", "second": "first"}
    swapped = {".".join(other.get(part, part) for part in key.split(".")): value for key, value in state.items()}
    assert np.array_equal(out, apply(method, swapped, as_b, tmp_path))


def test_slices_of_any_size_in_batches_of_any_size(tmp_path: Path) -> None:
    method, a, b = small(), images("A", 1, n=2, size=(33, 30)), images("B", 2, n=2, size=(28, 41))
    state = fit(method, a, b, context(tmp_path))
    out = apply(method, state, a, tmp_path)
    assert out.shape == a.pixels.shape
    one_at_a_time = method.model_copy(update={"inference_batch": 1})
    assert np.allclose(out, apply(one_at_a_time, state, a, tmp_path), atol=1e-6)


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    ctx, a, b = context(tmp_path), images("A", 1, n=2), images("B", 2, n=2)
    with pytest.raises(MethodError, match="two sites, but both image sets are of A"):
        fit(small(), a, images("A", 3, n=2), ctx)
    empty = ImageSet(np.zeros_like(a.pixels), np.zeros_like(a.mask), a.scans)
    with pytest.raises(MethodError, match="no training slice with brain"):
        fit(small(), empty, b, ctx)
    with pytest.raises(MethodError, match=r"windows are 16 × 16 pixels.*needs 24"):
        fit(small(crop=16, discriminator_layers=3), a, b, ctx)
    state = fit(small(), a, b, ctx)
    with pytest.raises(MethodError, match="between A and B; it knows no site C"):
        apply(small(), state, images("C", 3, n=1), tmp_path)
    with pytest.raises(ValidationError, match="crop is 300, larger than the slices of 286"):
        CycleGAN(crop=300)


def test_it_conforms() -> None:
    assert [r for r in check_method(CycleGAN) if not r.passed] == []

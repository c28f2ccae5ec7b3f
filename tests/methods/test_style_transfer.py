"""Style transfer: its networks, the four turns of an iteration, its rates and averages, and a few sites."""

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
from harness.training import seeded, weights_of
from methods.harmonization.style_transfer.learning import Players, Turns, diversity_weight
from methods.harmonization.style_transfer.method import StyleTransfer
from methods.harmonization.style_transfer.networks import Generator
from methods.harmonization.style_transfer.settings import StyleTransferTraining
from methods.harmonization.style_transfer.stacks import Pool, Stacks, crop
from methods.harmonization.style_transfer.translation import Styles, load_painters

Log = Callable[[str, int, float], None]
FULL = StyleTransfer()


def images(site: str, seed: int, gamma: float = 1.0, n: int = 3, size: tuple[int, int] = (32, 32)) -> ImageSet:
    """Scans of four slices: a disc with two tissues and some noise, raised to a power; uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in size)
    slices, masks = [], []
    for _ in range(4 * n):
        radius = np.hypot(rows[:, None] / rng.uniform(0.38, 0.48), columns / rng.uniform(0.38, 0.48)) / min(size)
        inner = np.hypot(rows[:, None] - rng.uniform(-4, 4), columns - rng.uniform(-4, 4)) / min(size)
        slices.append(np.where(inner < 0.2, 0.65, 0.3) + rng.normal(0, 0.03, size))
        masks.append(radius < 1)
    mask = np.stack(masks)
    pixels = (np.clip(slices, 0.02, 1) ** gamma * mask * 200).round().astype(np.uint8)
    scans = tuple(Scan(f"{site}{i}", f"{site}{i}", site, 4 * i, 4 * i + 4, (1.0, 1.0, 1.0)) for i in range(n))
    return ImageSet(pixels, mask, scans)


def context(scratch: Path, log: Log = lambda *_: None) -> Context:
    return Context(5, "cpu", scratch, log)


def small(**changes: Any) -> StyleTransfer:
    given = {"iterations": 4, "batch_size": 2, "checkpoint_every": 2, "log_every": 1}
    training = StyleTransferTraining(**{**given, **changes.pop("training", {})})
    fields = {"base_width": 4, "max_width": 8, "downs": 2, "trunk_downs": 3, "style_dim": 4, "latent_dim": 3}
    return StyleTransfer(**{**fields, "mapping_width": 8, "references": 3, **changes, "training": training})


def fit(method: StyleTransfer, ctx: Context, *sets: ImageSet) -> State:
    return method.fit(FitData({"sites": {f"site {i}": images for i, images in enumerate(sets)}}), ctx)


def apply(method: StyleTransfer, state: State, target: ImageSet, source: ImageSet, scratch: Path) -> np.ndarray:
    return method.harmonize(state, ApplyData({"target": target, "source": source}), context(scratch))


def initial(method: StyleTransfer) -> Players:
    with seeded(5):
        return Players(method)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ------------------------------------------------------------------------------------------- networks


def test_the_networks_have_the_published_sizes() -> None:
    """For three channels of 256 pixels, in millions: 33.9, 20.9, 20.9 and 1.6."""
    with torch.device("meta"):
        networks = Players(FULL)
        x, style = torch.zeros(2, 3, 256, 256), torch.zeros(2, 64)
        assert networks.painters.generator(x, style).shape == x.shape
        assert networks.painters.encoder(x).shape == style.shape
        assert networks.discriminator(x).shape == (2,)
        assert networks.painters.mapping(torch.zeros(2, 16)).shape == style.shape
    parts = (networks.painters.generator, networks.painters.encoder, networks.discriminator, networks.painters.mapping)
    sizes = [round(sum(p.numel() for p in part.parameters()) / 1e6, 1) for part in parts]
    assert sizes == [33.9, 20.9, 20.9, 1.6]


def test_only_the_style_changes_the_look_and_the_slice_alone_decides_the_rest() -> None:
    with seeded(0):
        network = Generator(1, 4, 8, 2, 4).eval()
        x, styles = torch.rand(1, 1, 16, 20), torch.randn(2, 1, 4)
    with torch.no_grad():
        first, second, again = network(x, styles[0]), network(x, styles[1]), network(x, styles[0])
    assert torch.equal(first, again)
    assert float((first - second).abs().mean()) > 0.01


def test_networks_start_from_he_normal_weights_and_take_larger_slices() -> None:
    with seeded(0):
        players = Players(small(base_width=32, max_width=64))
        wide = torch.rand(2, 3, 64, 48)
    weight = players.painters.encoder.trunk.layers[0].weight  # 3 × 3 × 3 entering
    assert float(weight.detach().std()) == pytest.approx((2 / 27) ** 0.5, rel=0.1)
    biases = [p for k, p in players.named_parameters() if k.endswith("leave.bias")]
    assert len(biases) == 2
    assert not any(bool(p.any()) for p in biases)
    assert players.painters.encoder(wide).shape == (2, 4)
    assert players.discriminator(wide).shape == (2,)


# --------------------------------------------------------------------------------------------- losses


def batch_for(method: StyleTransfer) -> dict[str, Tensor]:
    pool, rng = Pool([images("A", 1)], method), np.random.default_rng(0)
    latents = torch.from_numpy(rng.standard_normal((2, 2, method.latent_dim)).astype(np.float32))
    slices = {name: pool.draw(rng, 2) for name in ("real", "reference", "reference_2")}
    return {**slices, "latent": latents[0], "latent_2": latents[1]}


def test_the_painters_loss_is_the_published_one() -> None:
    method = small(diversity_iterations=10)
    players, batch, draws = initial(method), batch_for(method), torch.Generator()
    players.finished.fill_(4)
    g, e, f = players.painters.generator, players.painters.encoder, players.painters.mapping
    for name, read in (("latent", f), ("reference", e)):
        losses = getattr(Turns(method), f"paint_{name}")(players, batch, draws)
        with torch.no_grad():
            s, s2, x = read(batch[name]), read(batch[f"{name}_2"]), batch["real"]
            fake, fake2 = g(x, s), g(x, s2)
            adversarial = -players.discriminator(fake).sigmoid().log().mean()
            style, cycle = (e(fake) - s).abs().mean(), (g(fake, e(x)) - x).abs().mean()
            expected = adversarial + style + 100 * cycle - 0.6 * (fake - fake2).abs().mean()
        assert float(losses["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)
    assert int(players.finished) == 5


def test_the_discriminators_loss_has_half_the_squared_gradient_at_real_slices() -> None:
    method = small(gradient_penalty=3.0)
    players, batch, draws = initial(method), batch_for(method), torch.Generator()
    for name, read in (("latent", players.painters.mapping), ("reference", players.painters.encoder)):
        losses = getattr(Turns(method), f"judge_{name}")(players, batch, draws)
        x = batch["real"].clone().requires_grad_()
        players.discriminator(x).sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            fake = players.discriminator(players.painters.generator(batch["real"], read(batch[name])))
            real = players.discriminator(batch["real"])
            r1 = 0.5 * (x.grad**2).sum() / len(x)
            expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean() + 3 * r1
        assert float(losses["r1"].detach()) == pytest.approx(float(r1), rel=1e-4)
        assert float(losses["loss"].detach()) == pytest.approx(float(expected), rel=1e-4)


def test_the_weight_of_diversity_falls_linearly_to_nothing() -> None:
    method = small(diversity_weight=2.0, diversity_iterations=8)
    weights = [float(diversity_weight(method, torch.tensor(t))) for t in (0, 2, 4, 8, 9, 100)]
    assert weights == pytest.approx([2.0, 1.5, 1.0, 0.0, 0.0, 0.0])


def moved_by(turn: str, method: StyleTransfer) -> set[str]:
    """Names of the networks that a turn gives gradients to."""
    players, batch = initial(method), batch_for(method)
    losses = getattr(Turns(method), turn)(players, batch, torch.Generator())
    losses["loss"].backward()
    assert all(p.requires_grad for p in players.parameters())
    return {key.removeprefix("painters.").split(".")[0] for key, p in players.named_parameters() if p.grad is not None}


def test_references_teach_the_generator_alone() -> None:
    method = small()
    assert moved_by("paint_latent", method) >= {"generator", "encoder", "mapping"}
    assert moved_by("paint_reference", method) == {"generator", "discriminator"}  # the loop freezes the latter
    assert moved_by("judge_latent", method) == moved_by("judge_reference", method) == {"discriminator"}


# ------------------------------------------------------------------------------------------- training


def largest_move(state: State, method: StyleTransfer, part: str) -> float:
    before = weights_of(initial(method))
    return max(float((state[k] - before[k]).abs().max()) for k in state if k.startswith(f"painters.{part}."))


def test_the_mapping_network_learns_at_a_hundredth_of_the_rate(tmp_path: Path) -> None:
    """The first update of Adam moves each weight by the learning rate. The generator has two in an iteration."""
    method = small(training={"iterations": 1, "ema": None, "learning_rate": 1e-3, "weight_decay": 0.0})
    state = fit(method, context(tmp_path), images("A", 1), images("B", 2, 0.6))
    assert largest_move(state, method, "mapping") == pytest.approx(1e-5, rel=0.01)
    assert largest_move(state, method, "encoder") == pytest.approx(1e-3, rel=0.01)
    assert 1.5e-3 < largest_move(state, method, "generator") < 2.5e-3
    assert (FULL.mapping_rate, FULL.training.learning_rate, FULL.training.betas) == (0.01, 1e-4, (0.0, 0.99))


def test_weights_are_averaged_over_iterations(tmp_path: Path) -> None:
    """After one: 0.999 of the initial weights and 0.001 of the new ones."""
    sets = images("A", 1), images("B", 2, 0.6)
    new = fit(small(training={"iterations": 1, "ema": None}), context(tmp_path / "new"), *sets)
    kept = fit(small(training={"iterations": 1}), context(tmp_path / "kept"), *sets)
    old = weights_of(initial(small()))
    for key, tensor in kept.items():
        assert torch.allclose(tensor, 0.999 * old[key] + 0.001 * new[key], rtol=1e-6, atol=1e-9)
    assert FULL.training.ema == 0.999
    assert not any(torch.equal(kept[k], new[k]) for k in kept if k.startswith("painters.generator.enter"))


class Killed(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def deadly(name: str, step: int, value: float) -> None:
        if step == 4:
            raise Killed

    method = small(diversity_iterations=4, training={"iterations": 5})
    sets = images("A", 1), images("B", 2, 0.6)
    with pytest.raises(Killed):
        fit(method, context(tmp_path / "killed", deadly), *sets)
    steps: list[int] = []
    resumed = fit(method, context(tmp_path / "killed", lambda name, step, value: steps.append(step)), *sets)
    assert same(resumed, fit(method, context(tmp_path / "whole"), *sets))
    assert {k.split(".")[1] for k in resumed} == {"generator", "encoder", "mapping"}


def test_slices_in_their_own_style_come_back_better_with_training(tmp_path: Path) -> None:
    training = {"iterations": 30, "learning_rate": 3e-3, "ema": 0.9, "checkpoint_every": 30}
    method = small(adjacent_slices=1, training=training)
    sets = images("A", 1), images("B", 2, 0.6)
    state = fit(method, context(tmp_path), *sets)
    stacks = Stacks(images("B", 7, 0.6), 1)
    x = stacks[stacks.brain]

    def error(painters: nn.Module) -> float:
        with torch.no_grad():
            again = painters.get_submodule("generator")(x, painters.get_submodule("encoder")(x))
        return float((again - x).abs().mean())

    assert error(load_painters(method, state)) < 0.5 * error(initial(method).painters)


# --------------------------------------------------------------------------------------------- slices


def test_stacks_hold_neighbours_of_the_same_scan_over_its_maximum() -> None:
    a = images("A", 1, n=2)
    index = np.array([0, 1, 3, 4])
    stacks = Stacks(a, 3)[index]
    assert stacks.shape == (4, 3, 32, 32)
    neighbours = [[0, 0, 1], [0, 1, 2], [2, 3, 3], [4, 4, 5]]
    for stack, wanted in zip(stacks, neighbours, strict=True):
        scan = slice(0, 4) if wanted[0] < 4 else slice(4, 8)
        expected = 2.0 * a.pixels[wanted] / a.pixels[scan].max() - 1
        assert np.allclose(stack.numpy(), expected, atol=1e-6)
    assert float(stacks.min()) == -1
    assert float(Stacks(a, 3)[np.arange(8)].max()) == pytest.approx(1)


def test_all_sites_are_one_pool_of_slices_with_brain() -> None:
    a, b = images("A", 1, n=1), images("B", 2, 0.6, n=3)
    a.mask[2], a.pixels[2] = False, 0
    pool = Pool([a, b], small(adjacent_slices=1, crop_probability=0.0, flip=False))
    drawn = pool.draw(np.random.default_rng(0), 300)
    known = torch.cat([Stacks(a, 1)[np.array([0, 1, 3])], Stacks(b, 1)[np.arange(12)]])
    which = (drawn[:, None] - known).abs().amax(dim=(2, 3, 4)).argmin(1)
    assert torch.allclose(drawn, known[which], atol=1e-5)
    counts = torch.bincount(which, minlength=15)
    assert 7 <= int(counts.min()) <= int(counts.max()) <= 40


def test_crops_are_enlarged_by_what_they_leave_out() -> None:
    """On a ramp the slope says how much: 1 uncropped, and at least √(0.8 × 0.9) along the columns."""
    method, n = small(), 400
    ramp = torch.linspace(-1, 1, 32).expand(n, 1, 32, 32)
    slopes = (crop(ramp, np.random.default_rng(1), method).diff(dim=3)[:, 0, 16, 12:20].mean(1) * 31 / 2).numpy()
    assert 0.4 < (slopes < 0).mean() < 0.6
    kept = np.isclose(np.abs(slopes), 1, atol=1e-4)
    assert 0.4 < kept.mean() < 0.65
    assert (0.8 * 0.9) ** 0.5 - 1e-3 < np.abs(slopes).min() < 0.88
    assert np.abs(slopes).max() < 1 + 1e-4


# ---------------------------------------------------------------------------------------- translation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[StyleTransfer, State]:
    method = small(training={"iterations": 10, "learning_rate": 3e-3, "ema": 0.8})
    return method, fit(method, context(tmp_path_factory.mktemp("fit")), images("A", 1), images("B", 2, 0.6))


def test_the_range_becomes_that_of_the_source(trained: tuple[StyleTransfer, State], tmp_path: Path) -> None:
    method, state = trained
    source, target = images("A", 1), images("B", 3, 0.6)
    out = apply(method, state, target, source, tmp_path)
    assert np.array_equal(out, apply(method, state, target, source, tmp_path))
    assert np.all(out[~target.mask] == 0)
    brains = [pixels[mask] for _, pixels, mask in source.volumes()]
    low, high = np.mean([b.min() for b in brains]), np.mean([b.max() for b in brains])
    for scan, pixels, mask in target.with_pixels(out).volumes():
        assert (pixels[mask].min(), pixels[mask].max()) == pytest.approx((low, high), abs=1e-5), scan.id
    robust = method.model_copy(update={"range_percentiles": (5.0, 95.0)})
    ends = np.percentile(apply(robust, state, target, source, tmp_path)[:4][target.mask[:4]], (5, 95))
    assert ends == pytest.approx(np.mean([np.percentile(b, (5, 95)) for b in brains], axis=0), abs=1e-5)


def test_the_source_decides_the_style(trained: tuple[StyleTransfer, State], tmp_path: Path) -> None:
    """Sources of equal range and other styles: what is left is the style's doing."""
    method, state = trained
    target, source = images("B", 3, 0.6), images("A", 1)
    bright = np.where(source.mask, 255 * (source.pixels / 255.0) ** 0.3, 0)
    other = np.clip(bright * (source.pixels.max() / bright.max()), 0, 255).astype(np.uint8)
    wide = method.model_copy(update={"range_percentiles": (0.0, 100.0)})
    first = apply(wide, state, target, source, tmp_path)
    second = apply(wide, state, target, source.with_pixels(other), tmp_path)
    brain = target.mask[:4]

    def shape(x: np.ndarray) -> np.ndarray:
        values = x[:4][brain]
        return (values - values.min()) / (values.max() - values.min())

    assert np.abs(shape(first) - shape(second)).mean() > 1e-3
    by_site = method.model_copy(update={"style_from": "site"})
    assert not np.array_equal(first, apply(by_site, state, target, source, tmp_path))


def test_styles_are_means_over_the_nearest_source_slices(trained: tuple[StyleTransfer, State]) -> None:
    method, state = trained
    painters, source = load_painters(method, state), Stacks(images("A", 1, n=3), 3)
    with torch.inference_mode():
        each = painters.encoder(source[source.brain])
    ends = Styles(painters, method, source, "cpu").at(np.array([0.0, 1.0]))
    assert torch.allclose(ends[0], each[[0, 4, 8]].mean(0), atol=1e-5)  # the first slices of the three scans
    assert torch.allclose(ends[1], each[[3, 7, 11]].mean(0), atol=1e-5)
    by_site = method.model_copy(update={"style_from": "site"})
    whole = Styles(painters, by_site, source, "cpu").at(np.array([0.0, 1.0]))
    assert torch.allclose(whole, each.mean(0).expand(2, -1), atol=1e-5)


def test_slices_of_any_size_in_batches_of_any_size(tmp_path: Path) -> None:
    method = small(downs=3)
    a, b = images("A", 1, size=(35, 42)), images("B", 2, 0.6, size=(35, 42))
    state = fit(method, context(tmp_path), a, b)
    out = apply(method, state, b, a, tmp_path)
    assert out.shape == b.pixels.shape
    one_at_a_time = method.model_copy(update={"inference_batch": 1})
    assert np.allclose(out, apply(one_at_a_time, state, b, a, tmp_path), atol=1e-4)


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    ctx, a, method = context(tmp_path), images("A", 1), small()
    with pytest.raises(MethodError, match="several sizes"):
        fit(method, ctx, a, images("B", 2, size=(32, 36)))
    empty = ImageSet(np.zeros_like(a.pixels), np.zeros_like(a.mask), a.scans)
    with pytest.raises(MethodError, match="no training slice has brain"):
        fit(method, ctx, empty)
    with pytest.raises(MethodError, match="32 × 32 pixels are too small for trunk_downs 4, which needs 64"):
        fit(small(trunk_downs=4), ctx, a)
    state = fit(method, ctx, a)
    with pytest.raises(MethodError, match="source has no slice with brain"):
        apply(method, state, a, empty, tmp_path)
    for wrong in ({"crop_area": (0.5, 1.5)}, {"crop_ratio": (2.0, 1.0)}, {"range_percentiles": (50.0, 50.0)}):
        with pytest.raises(ValidationError):
            small(**wrong)


def test_it_conforms() -> None:
    assert [r for r in check_method(StyleTransfer) if not r.passed] == []

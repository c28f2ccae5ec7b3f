"""ImUnity: its networks and losses, pairs of slices, what it learns on toy sites, inference, resuming, errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.api import ApplyData, Context, FitData, ImageSet, MethodError, Scan
from harness.conformance import check_method
from methods.harmonization._places import typical_scans
from methods.harmonization.imunity.learning import (
    SlicePairs,
    build_generator,
    build_players,
    mean_ssim,
    pad,
    random_powers,
)
from methods.harmonization.imunity.method import ImUnity, ImUnityMultiSite
from methods.harmonization.imunity.networks import Code, kl_divergence, reparameterize, uniform_cross_entropy
from methods.harmonization.imunity.settings import ImUnityTraining
from methods.harmonization.imunity.translation import load_generator, style_slices

SLICES = 6
LEVELS = {"a": (0.25, 0.5, 0.75), "b": (0.55, 0.4, 0.7)}  # csf, grey, white: b shows grey darker than csf

Curves = dict[str, list[float]]


def context(scratch: Path, seed: int = 3, curves: Curves | None = None) -> Context:
    def log(name: str, step: int, value: float) -> None:
        if curves is not None:
            curves.setdefault(name, []).append(value)

    return Context(seed, "cpu", scratch, log)


def images(site: str, scans: int, seed: int, size: int = 16) -> ImageSet:
    """Scans of nested rings, wider or narrower from person to person and slice to slice, in the site's contrast."""
    rng = np.random.default_rng(seed)
    offset = np.arange(size) - (size - 1) / 2
    slices = []
    for _ in range(scans):
        height, width = rng.uniform(0.38, 0.45, 2) * size
        for k in range(SLICES):
            row, column = rng.uniform(-1, 1, 2)
            radius = np.hypot((offset[:, None] - row) / height, (offset - column) / width) / (1 - 0.06 * k)
            angle = np.arctan2(offset[:, None], offset)
            labels = (radius < 1).astype(int) + (radius < 0.85) + (radius < 0.5 + 0.15 * np.sin(3 * angle + k))
            noisy = np.array((0, *LEVELS[site]))[labels] + rng.normal(0, 0.02, labels.shape)
            slices.append(np.where(labels > 0, np.clip(noisy, 0.01, 1), 0))
    pixels = (np.array(slices) * 255).astype(np.uint8)
    names = [f"{site}{seed}-{i}" for i in range(scans)]
    return ImageSet(
        pixels,
        pixels > 0,
        tuple(Scan(n, n, site, i * SLICES, (i + 1) * SLICES, (1.0, 1.0, 1.0)) for i, n in enumerate(names)),
    )


def settings(iterations: int, batch_size: int = 8, rate: float = 2e-3, **changes: Any) -> dict[str, Any]:
    training = ImUnityTraining(iterations=iterations, batch_size=batch_size, learning_rate=rate, checkpoint_every=4)
    small = {"widths": (8, 16), "latent_channels": 8, "discriminator_width": 8, "site_width": 32}
    return {**small, "training": training, **changes}


def fit(method: ImUnity | ImUnityMultiSite, scratch: Path, curves: Curves | None = None) -> dict[str, Any]:
    sites = {"a": images("a", 5, 0), "b": images("b", 5, 1)}
    return method.fit(FitData({"source": sites["a"], "sites": sites}), context(scratch, curves=curves))


def as_tensor(found: ImageSet, index: list[int]) -> torch.Tensor:
    return torch.from_numpy(found.floats(index))[:, None]


@pytest.mark.parametrize("cls", [ImUnity, ImUnityMultiSite])
def test_conformance(cls: type[ImUnity] | type[ImUnityMultiSite]) -> None:
    results = check_method(cls)
    assert [f"{r.name}: {r.detail}" for r in results if not r.passed] == []


# ------------------------------------------------------------------------------- defaults and networks


def test_defaults_are_those_of_the_specification() -> None:
    for method in (ImUnity(), ImUnityMultiSite()):
        assert method.widths == (32, 64, 128, 256)
        assert (method.reconstruction_weight, method.kl_weight) == (100, 0.01)
        assert (method.adversarial_weight, method.confusion_weight) == (1, 1)
        training = method.training
        assert (training.iterations, training.batch_size, training.learning_rate) == (50_000, 16, 1e-4)
        assert training.betas == (0.5, 0.999)


def test_both_modes_say_what_they_read_and_that_they_are_reconstructed() -> None:
    assert (ImUnity.source_free, ImUnity.task_agnostic, ImUnity.unknown_domains) == (False, True, True)
    assert (ImUnityMultiSite.unknown_domains, ImUnityMultiSite.fit_scope) == (False, "sites")
    for cls in (ImUnity, ImUnityMultiSite):
        assert "Reconstructed" in cls.notes
        assert "neither the paper's text nor its code" in cls.notes
    for group in (ImUnity, ImUnityTraining):
        for name in group.model_fields.keys() - {"training"}:
            extra = group.model_fields[name].json_schema_extra
            assert isinstance(extra, dict)
            origin = str(extra["origin"])
            assert origin.startswith(("reconstructed", "ours", "torch")), f"{name}: {origin}"


def test_latent_is_16_by_16_at_256_and_nothing_skips_at_full_resolution() -> None:
    with torch.device("meta"):
        network = build_generator(ImUnity())
        slices = torch.empty(2, 1, 256, 256)
        code = network.encode(slices, slices)
        painted = network.decode(code.mu, code.skips)
    assert code.mu.shape == code.log_variance.shape == (2, 256, 16, 16)
    assert [s.shape[2] for s in code.skips] == [128, 64, 32]
    assert painted.shape == slices.shape


def test_without_skips_all_goes_through_the_latent() -> None:
    network = build_generator(ImUnity(**settings(1, skips=False)))
    slices = torch.rand(2, 1, 16, 16)
    assert network.encode(slices, slices).skips == ()
    assert network(slices, slices).shape == slices.shape


def test_receptive_field_of_the_discriminator_is_34_pixels() -> None:
    network = build_players(ImUnity(), 0)["discriminator"]
    # Instance normalisation sees the whole image: without it, what is left is the convolutions' field.
    bare = torch.nn.Sequential(*(m for m in network.layers if not isinstance(m, torch.nn.InstanceNorm2d)))
    pixels = torch.rand(1, 1, 96, 96, requires_grad=True)
    scores = bare(pixels)
    (gradient,) = torch.autograd.grad(scores[0, 0, 10, 10], pixels)
    rows = np.flatnonzero(gradient[0, 0].abs().sum(1).numpy())
    assert rows[-1] - rows[0] + 1 == 34


def test_kl_divergence_is_that_of_normal_distributions_and_never_negative() -> None:
    draw = torch.Generator().manual_seed(0)
    for spread in (0.01, 1.0, 3.0):
        mu, log_variance = spread * torch.randn(2, 2, 3, 4, 4, generator=draw)
        found = kl_divergence(Code(mu, log_variance, ()))
        own = torch.distributions.Normal(mu, (0.5 * log_variance).exp())
        expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert found >= 0
    zero = torch.zeros(1, 2, 3, 3)
    assert kl_divergence(Code(zero, zero, ())) == 0


def test_draws_of_the_code_have_its_mean_and_spread() -> None:
    code = Code(torch.full((1, 1, 200, 200), 0.7), torch.full((1, 1, 200, 200), 2 * np.log(0.3)), ())
    z = reparameterize(code, torch.Generator().manual_seed(0))
    assert z.mean().item() == pytest.approx(0.7, abs=0.01)
    assert z.std().item() == pytest.approx(0.3, abs=0.01)


def test_confusion_is_least_where_the_classifier_cannot_tell() -> None:
    assert uniform_cross_entropy(torch.zeros(5, 4)).item() == pytest.approx(np.log(4))
    for sure in (torch.tensor([[3.0, 0, 0, 0]]), torch.tensor([[0, 0, -2.0, 0]])):
        assert uniform_cross_entropy(sure).item() > np.log(4)


def test_powers_are_log_uniform_within_the_range() -> None:
    powers = random_powers((0.5, 2.0), torch.zeros(4000), torch.Generator().manual_seed(0)).flatten().log().numpy()
    assert powers.min() >= np.log(0.5)
    assert powers.max() <= np.log(2)
    assert np.histogram(powers, 4, (np.log(0.5), np.log(2)))[0].min() > 900
    assert random_powers((1.0, 1.0), torch.zeros(3), torch.Generator()).flatten().tolist() == [1, 1, 1]


def test_ssim_is_that_of_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    draw = torch.Generator().manual_seed(0)
    a = torch.zeros(1, 1, 48, 48)
    a[..., 12:36, 12:36] = torch.rand(1, 1, 24, 24, generator=draw)  # far from the border, which is treated otherwise
    b = (a + 0.2 * torch.rand(a.shape, generator=draw) * (a > 0)).clamp(max=1)
    _, expected = structural_similarity(
        *(x[0, 0].double().numpy() for x in (a, b)),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert mean_ssim(a, b).item() == pytest.approx(expected.mean(), abs=1e-4)
    assert mean_ssim(a, a).item() == pytest.approx(1, abs=1e-6)


# ----------------------------------------------------------------------------------- pairs of slices


def coded(found: ImageSet) -> ImageSet:
    """Each slice filled with its own number; the first slice of every scan has no brain."""
    pixels = np.broadcast_to(np.arange(len(found), dtype=np.uint8)[:, None, None], found.pixels.shape).copy()
    mask = np.ones(pixels.shape, bool)
    for scan in found.scans:
        mask[scan.start] = False
    pixels[~mask] = 0
    return ImageSet(pixels, mask, found.scans)


def test_pairs_are_different_slices_with_brain_of_one_scan_and_sites_come_alike() -> None:
    a, b = coded(images("a", 6, 0)), coded(images("b", 2, 1))
    pairs = SlicePairs([a, b])
    batch = pairs.draw(np.random.default_rng(0), 4000)
    content, style = ((batch[name][:, 0, 0, 0] * 255).round().int().numpy() for name in ("content", "style"))
    assert (content != style).all()
    assert (content // SLICES == style // SLICES).all()
    assert set(content % SLICES) == set(style % SLICES) == set(range(1, SLICES))
    assert pairs.sites == ("a", "b")
    site = batch["site"].numpy()
    assert 0.45 < site.mean() < 0.55
    assert set(content[site == 0] // SLICES) == set(range(6))
    assert set(content[site == 1] // SLICES) == {0, 1}
    assert batch["mask"].min() == 1
    counts = np.bincount(content[site == 0], minlength=36)
    assert counts[counts > 0].min() > 40  # of 67 expected: all slices of a site are drawn alike


def test_sites_are_those_that_the_scans_carry() -> None:
    mixed = images("a", 4, 0)
    scans = tuple(replace(scan, site="b" if i % 2 else "a") for i, scan in enumerate(mixed.scans))
    assert SlicePairs([replace(mixed, scans=scans)]).sites == ("a", "b")


def test_scans_of_one_slice_and_sets_of_several_sizes_are_refused() -> None:
    one = images("a", 1, 0)
    with pytest.raises(MethodError, match="two slices with brain"):
        SlicePairs([ImageSet(one.pixels[:1], one.mask[:1], (replace(one.scans[0], stop=1),))])
    with pytest.raises(MethodError, match="several sizes"):
        SlicePairs([one, images("b", 1, 1, size=24)])


# ----------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class Style:
    """A generator that learnt on site a what the style slice's gamma asks for; slices and styles of held-out scans."""

    method: ImUnity
    state: dict[str, Any]
    content: torch.Tensor
    style: torch.Tensor

    def paint(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return load_generator(self.method, self.state)(content, style) * (self.content > 0)

    def brain(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[self.content > 0]


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Style:
    method = ImUnity(**settings(450, pair_gamma=(0.5, 2.0)))
    state = fit(method, tmp_path_factory.mktemp("styled"))
    held_out = images("a", 2, 5)
    return Style(method, state, as_tensor(held_out, [0, 2, 7, 9]), as_tensor(held_out, [3, 4, 10, 11]))


def test_contrast_follows_the_style_slice_alone(styled: Style) -> None:
    """Gamma < 1 brightens. Only the style slice differs between the outputs."""
    bright, plain, dark = (
        float(styled.brain(styled.paint(styled.content, styled.style**gamma)).mean()) for gamma in (0.6, 1.0, 1.6)
    )
    assert bright > plain + 0.005
    assert plain > dark + 0.005


def test_outputs_hardly_depend_on_the_gamma_of_the_content(styled: Style) -> None:
    inputs = styled.brain(styled.content**0.7 - styled.content**1.4).abs().mean()
    outputs = styled.paint(styled.content**0.7, styled.style) - styled.paint(styled.content**1.4, styled.style)
    assert styled.brain(outputs).abs().mean() < 0.5 * inputs


def test_painting_keeps_the_anatomy(styled: Style) -> None:
    painted = styled.brain(styled.paint(styled.content, styled.style)).numpy()
    assert np.corrcoef(painted, styled.brain(styled.content).numpy())[0, 1] > 0.8


def test_confusion_hides_the_site_while_the_reconstruction_stays(tmp_path: Path) -> None:
    """Accuracy over the last tenth of the training, of the classifier that trains along: chance is 1/2."""
    accuracy, l1 = {}, {}
    for name, weight in (("hidden", 1.0), ("plain", 1e-9)):
        curves: Curves = {}
        method = ImUnityMultiSite(**settings(300, 16, 4e-3, confusion_weight=weight))
        fit(method, tmp_path / name, curves)
        assert curves["confused_sites"] == [2]
        accuracy[name] = float(np.mean(curves["sites/accuracy"][-10:]))
        l1[name] = float(np.mean(curves["generator/l1"][-10:]))
    assert accuracy["plain"] > 0.75
    assert accuracy["hidden"] < 0.65
    assert l1["hidden"] < 1.5 * l1["plain"]
    assert l1["hidden"] < 0.04


def test_one_site_has_no_confusion(tmp_path: Path) -> None:
    curves: Curves = {}
    state = fit(ImUnity(**settings(2)), tmp_path, curves)
    assert curves["confused_sites"] == [0]
    assert not any(name.startswith("sites/") or "confusion" in name for name in curves)
    assert state["sites"] == ["a"]
    assert list(build_players(ImUnity(**settings(2)), 0)) == ["generator", "discriminator"]


def test_the_options_change_the_training(tmp_path: Path) -> None:
    def trained(name: str, **changes: Any) -> torch.Tensor:
        curves: Curves = {}
        state = fit(ImUnity(**settings(2, **changes)), tmp_path / name, curves)
        assert all(np.isfinite(values).all() for values in curves.values())
        return state["generator.paint.weight"]

    plain = trained("plain")
    for change in ({"ssim_weight": 0.5}, {"pair_gamma": (0.5, 2.0)}, {"kl_weight": 10.0}, {"adversarial_weight": 30.0}):
        assert not torch.equal(plain, trained(str(change), **change)), change


class Killed(Exception):
    """Stands for a kill inside one process."""


@pytest.mark.parametrize("cls", [ImUnity, ImUnityMultiSite])
def test_resumed_training_ends_with_the_same_bits(cls: Any, tmp_path: Path) -> None:
    method = cls(**settings(10))
    sites = {"a": images("a", 2, 0), "b": images("b", 2, 1)}
    data = FitData({"source": sites["a"], "sites": sites})

    def log(name: str, step: int, value: float) -> None:
        if step == 7:
            raise Killed

    whole = method.fit(data, context(tmp_path / "whole"))
    with pytest.raises(Killed):
        method.fit(data, Context(3, "cpu", tmp_path / "killed", log))
    resumed = method.fit(data, context(tmp_path / "killed"))
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]) if isinstance(value, torch.Tensor) else value == resumed[key]


# ---------------------------------------------------------------------------------------- inference


def harmonized(styled: Style, target: ImageSet, source: ImageSet, scratch: Path, seed: int = 1, **changes: Any) -> Any:
    method = styled.method.model_copy(update=changes)
    return method.harmonize(styled.state, ApplyData({"target": target, "source": source}), context(scratch, seed))


def test_inference_draws_nothing(styled: Style, tmp_path: Path) -> None:
    source, target = images("a", 3, 0), images("b", 2, 8)
    first = harmonized(styled, target, source, tmp_path, seed=1)
    assert np.array_equal(first, harmonized(styled, target, source, tmp_path, seed=2))
    floats = target.with_pixels(target.floats())
    assert np.array_equal(first, harmonized(styled, floats, source, tmp_path))
    assert first.dtype == np.float32
    assert first[~target.mask].max() == 0
    assert 0 <= first.min() < first.max() <= 1


def test_batches_do_not_matter(styled: Style, tmp_path: Path) -> None:
    source, target = images("a", 3, 0), images("b", 2, 8)
    training = styled.method.training.model_copy(update={"batch_size": 5})
    assert np.allclose(
        harmonized(styled, target, source, tmp_path),
        harmonized(styled, target, source, tmp_path, training=training),
        atol=1e-5,
    )


def test_several_references_are_averaged(styled: Style, tmp_path: Path) -> None:
    source, target = images("a", 3, 0), images("b", 1, 8)
    chosen = typical_scans(source, 2)
    only = []
    for scan in chosen:
        pixels, mask = source.pixels[scan.slices], source.mask[scan.slices]
        only.append(ImageSet(pixels, mask, (replace(scan, start=0, stop=SLICES),)))
    each = [harmonized(styled, target, reference, tmp_path) for reference in only]
    assert not np.allclose(each[0], each[1], atol=1e-4)
    assert np.allclose(harmonized(styled, target, source, tmp_path, references=2), np.mean(each, axis=0), atol=1e-6)


def test_slices_of_any_size_are_padded_and_cropped_back(styled: Style, tmp_path: Path) -> None:
    assert pad(torch.ones(1, 1, 13, 30), 4).shape == (1, 1, 16, 32)
    assert pad(torch.ones(1, 1, 16, 32), 4).shape == (1, 1, 16, 32)
    assert pad(torch.ones(1, 1, 3, 16), 8).shape == (1, 1, 16, 16)
    target = images("b", 1, 8, size=21)
    assert harmonized(styled, target, images("a", 2, 0, size=21), tmp_path).shape == target.pixels.shape
    with pytest.raises(MethodError, match="21 × 21"):
        harmonized(styled, target, images("a", 2, 0), tmp_path)


def test_the_most_typical_scans_serve_as_references(styled: Style, tmp_path: Path) -> None:
    source = images("a", 5, 0)
    factors = np.repeat([0.5, 0.9, 0.8, 1.0, 0.7], SLICES)[:, None, None]
    scaled = source.with_pixels((source.floats() * factors).astype(np.float32))
    assert [source.scans.index(scan) for scan in typical_scans(scaled, 3)][0] == 2
    assert {source.scans.index(scan) for scan in typical_scans(scaled, 3)} == {1, 2, 4}
    with pytest.raises(MethodError, match="references is 6, but the source has 5"):
        harmonized(styled, source, source, tmp_path, references=6)


def test_the_style_is_the_slice_at_the_same_place() -> None:
    source, target = images("a", 3, 0), images("b", 2, 8)
    reference = source.scans[1]
    assert style_slices(target, source, reference).tolist() == [*range(6, 12), *range(6, 12)]
    mask = source.mask.copy()
    mask[[6, 9]] = False  # without brain: the next best place
    assert style_slices(target, replace(source, mask=mask), reference).tolist()[:6] == [7, 7, 8, 8, 10, 11]
    shorter = replace(target, scans=(replace(target.scans[0], stop=3), replace(target.scans[1], start=3)))
    found = style_slices(shorter, source, reference).tolist()
    assert (found[0], found[2], found[3], found[11]) == (6, 11, 6, 11)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 0.5)])
def test_impossible_ranges_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="0 < low <= high"):
        ImUnity(content_gamma=bounds)

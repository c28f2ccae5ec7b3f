"""The dense autoencoder: published sizes, loss and schedule, what its bottleneck allows, and residuals by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from harness.anomaly import NormalData, Processing
from harness.api import Context, ImageSet, MethodError, Scan, State
from harness.conformance import check_method
from harness.cost import measured
from harness.data.arrays import load_state, save_state
from harness.training import seeded
from methods.anomaly._autoencoding import AutoencoderTraining, runs
from methods.anomaly.ae import Ae, _loss, bright
from methods.networks.dense_autoencoder import DenseArchitecture, DenseAutoencoder, stages_of

SIZE = 32


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def brains(n: int, seed: int = 0, size: int = SIZE, modality: str = "FLAIR") -> ImageSet:
    """Slices of one scan: a disc with a darker core, both of levels and places that vary; float32."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    pixels = np.zeros((n, size, size), np.float32)
    for own in pixels:
        distance = np.hypot(rows - rng.uniform(-1, 1), columns - rng.uniform(-1, 1)) / size
        own[distance < 0.42] = rng.uniform(0.55, 0.65)
        own[distance < 0.15] = rng.uniform(0.2, 0.3)
    scan = Scan("s", "s", "a", 0, n, (1.0, 1.0, 1.0), modality=modality)
    return ImageSet(pixels, pixels > 0, (scan,))


def small(**fields: Any) -> Ae:
    """Learns these slices within seconds."""
    training = {"epochs": None, "iterations": 150, "validate_every": 50, "batch_size": 8, "learning_rate": 3e-3}
    architecture = {"width": 8, "latent": 16, "dropout": 0.0}
    return Ae.model_validate(
        {
            **fields,
            "training": {**training, **fields.get("training", {})},
            "architecture": {**architecture, **fields.get("architecture", {})},
        }
    )


def constant_state(level: float, size: int = SIZE) -> State:
    """The state of a `small` autoencoder that answers the same level everywhere."""
    network = DenseAutoencoder((size, size), small().architecture)
    weights = {f"network.{name}": torch.zeros_like(value) for name, value in network.state_dict().items()}
    weights["network.decoder.6.bias"] = torch.full((1,), level)
    assert isinstance(network.decoder[6], nn.Conv2d)
    return {**weights, "size": [size, size], "score": 0.0, "iteration": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> State:
    ctx = Context(seed=0, device="cpu", scratch=tmp_path_factory.mktemp("scratch"), log=lambda *_: None)
    return small().fit(NormalData(brains(64), brains(8, seed=1)), ctx)


def test_conformance() -> None:
    assert [r for r in check_method(Ae) if not r.passed] == []


# ----------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(("side", "millions"), [(64, 1.19), (128, 1.63), (256, 2.06)])
def test_published_sizes(side: int, millions: float) -> None:
    network = DenseAutoencoder((side, side), Ae().architecture)
    assert round(parameters(network) / 1e6, 2) == millions
    assert network.encoder(torch.zeros(1, 1, side, side)).shape == (1, 16, 8, 8)
    assert network.encode(torch.zeros(1, 1, side, side))[0].shape == (1, 128)


def test_layers_of_the_published_network() -> None:
    network = DenseAutoencoder((128, 128), Ae().architecture)
    down = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in network.decoder if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in down] == [
        (32, 5, 2),
        (64, 5, 2),
        (128, 5, 2),
        (128, 5, 2),
        (16, 1, 1),
    ]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in up] == [
        (128, 1, 1),
        (128, 5, 2),
        (64, 5, 2),
        (32, 5, 2),
        (32, 5, 2),
        (1, 1, 1),
    ]
    assert isinstance(network.decoder[-1], nn.Conv2d), "the last layer is linear"
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    normal = DenseAutoencoder((128, 128), DenseArchitecture(normalisation="batch"))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in normal.modules()) == 4 + 1 + 4


def test_the_spatial_variant_has_no_dense_layer() -> None:
    network = DenseAutoencoder((128, 128), DenseArchitecture(spatial=True))
    assert not any(isinstance(m, nn.Linear) for m in network.modules())
    assert network.encode(torch.zeros(1, 1, 128, 128))[0].shape == (1, 16, 8, 8)
    assert parameters(network) == parameters(DenseAutoencoder((128, 128), DenseArchitecture())) - 131_200 - 132_096


@pytest.mark.parametrize(
    ("size", "stages"), [((16, 16), 1), ((64, 64), 3), ((128, 96), 3), ((240, 240), 4), ((224, 192), 4)]
)
def test_slices_are_halved_to_8_to_15_pixels_on_their_shorter_side(size: tuple[int, int], stages: int) -> None:
    assert stages_of(size) == stages
    x = torch.zeros(2, 1, *size)
    assert DenseAutoencoder(size, DenseArchitecture(width=4, latent=3))(x).shape == x.shape


@pytest.mark.parametrize(("size", "multiple"), [((8, 64), 2), ((15, 15), 2), ((100, 100), 8), ((64, 66), 8)])
def test_sizes_that_cannot_be_halved(size: tuple[int, int], multiple: int) -> None:
    with pytest.raises(MethodError, match=f"at least 16 a side, and multiples of {multiple}: prepare"):
        stages_of(size)


# ---------------------------------------------------------------------------------------- the training


def test_published_schedule() -> None:
    training = Ae().training
    assert (training.learning_rate, training.betas, training.batch_size) == (1e-4, (0.5, 0.999), 8)
    assert (training.epochs, training.patience) == (1000, 5)
    assert Ae().published_processing() == Processing(erode=12, median=5, smallest=7)


def test_passes_over_the_slices_are_iterations() -> None:
    own = AutoencoderTraining(epochs=3, batch_size=8).over(20)
    assert (own.iterations, own.validate_every) == (9, 3)
    assert AutoencoderTraining(epochs=3, batch_size=8).over(16).iterations == 6
    fixed = AutoencoderTraining(epochs=None, iterations=7, validate_every=2)
    assert fixed.over(20) is fixed


def test_a_training_validates_after_each_pass(tmp_path: Path) -> None:
    curve: list[int] = []

    def log(name: str, step: int, value: float) -> None:
        if name == "validation":
            curve.append(step)

    ctx = Context(seed=0, device="cpu", scratch=tmp_path, log=log)
    small(training={"epochs": 3, "batch_size": 8}).fit(NormalData(brains(20), brains(3)), ctx)
    assert curve == [3, 6, 9]


def test_a_training_ends_after_passes_without_a_better_validation(tmp_path: Path) -> None:
    curve: list[int] = []

    def log(name: str, step: int, value: float) -> None:
        if name == "validation":
            curve.append(step)

    ctx = Context(seed=0, device="cpu", scratch=tmp_path, log=log)
    training = {"epochs": 50, "patience": 2, "batch_size": 8, "learning_rate": 0.0}
    state = small(training=training).fit(NormalData(brains(16), brains(3)), ctx)
    assert curve == [2, 4, 6]
    assert state["iteration"] == 2


def test_the_loss_sums_over_pixels_and_averages_over_slices() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = _loss(Half(), x, torch.Generator())["loss"]
    assert float(loss) == pytest.approx(float(x.sum()) / 2 / 3, rel=1e-6)


def test_the_score_is_that_of_all_validation_slices_in_eval_mode(ctx: Context) -> None:
    images, validation = brains(8), brains(11, seed=3)
    method = small(training={"iterations": 2, "validate_every": 1, "batch_size": 4}, architecture={"dropout": 0.5})
    state = method.fit(NormalData(images, validation), ctx)
    found = method.detect(state, validation, ctx).reconstruction
    assert found is not None
    wanted = -np.abs(found - validation.pixels).sum((1, 2)).mean()
    assert state["score"] == pytest.approx(wanted, rel=1e-4)


def test_few_slices_are_learnt_by_heart_and_one_number_gives_about_their_mean(tmp_path: Path) -> None:
    images = brains(8, size=16)
    drawn = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 2.2, images.pixels.shape), (0, 3, 3))
    images = images.with_pixels((np.clip(0.5 + drawn, 0.05, 1) * images.mask).astype(np.float32))
    spread = np.abs(images.pixels - images.pixels.mean(0))[images.mask].mean()
    found = {}
    training = {"iterations": 400, "learning_rate": 1e-2, "betas": (0.9, 0.99), "schedule": "cosine"}
    for latent in (16, 1):
        ctx = Context(seed=0, device="cpu", scratch=tmp_path / str(latent), log=lambda *_: None)
        ctx.scratch.mkdir()
        method = small(training=training, architecture={"latent": latent, "width": 16})
        answer = method.detect(method.fit(NormalData(images, images), ctx), images, ctx).reconstruction
        assert answer is not None
        found[latent] = answer
    assert np.abs(found[16] - images.pixels)[images.mask].mean() < 0.2 * spread
    assert np.abs(found[1] - images.pixels)[images.mask].mean() > 0.5 * spread
    assert np.abs(found[1] - images.pixels.mean(0))[images.mask].mean() < 0.8 * spread


def test_a_bright_blob_stands_out(trained: State, ctx: Context) -> None:
    images = brains(6, seed=2)
    pixels = images.pixels.copy()
    blob = np.zeros(pixels.shape, bool)
    blob[:, 8:12, 14:18] = True
    pixels[blob] = 1.0
    maps = small().detect(trained, images.with_pixels(pixels), ctx).maps
    healthy = small().detect(trained, images, ctx).maps
    assert np.median(maps[blob]) > 4 * np.median(healthy[images.mask])
    assert np.median(maps[blob]) > np.quantile(maps[images.mask & ~blob], 0.95)


def test_the_state_is_kept_on_disk_and_late_fields_learn_the_same(tmp_path: Path) -> None:
    data = NormalData(brains(8), brains(4, seed=1))
    states = []
    late: list[dict[str, Any]] = [{}, {"residual": "absolute", "prior_quantile": 0.9, "batch_size": 3}]
    assert set(late[1]) == set(Ae.late_fields)
    for i, fields in enumerate(late):
        ctx = Context(seed=0, device="cpu", scratch=tmp_path / str(i), log=lambda *_: None)
        ctx.scratch.mkdir()
        state = small(**fields, training={"iterations": 4, "validate_every": 2}).fit(data, ctx)
        save_state(ctx.scratch, state)
        states.append(load_state(ctx.scratch))
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])


def test_splits_without_slices(ctx: Context) -> None:
    some, none = brains(4), brains(0)
    for data, split in ((NormalData(none, some), "training"), (NormalData(some, none), "validation")):
        with pytest.raises(MethodError, match=f"no {split} slice"):
            small().fit(data, ctx)


# ---------------------------------------------------------------------------------------- the residual


@pytest.mark.parametrize(
    ("modality", "positive"), [("FLAIR", True), ("T2w", True), ("", True), ("T1w", False), ("T1CE", False)]
)
def test_the_sign_follows_the_modality(modality: str, positive: bool, ctx: Context) -> None:
    images = brains(3, modality=modality)
    difference = images.pixels - 0.5
    by_sign = {True: np.maximum(difference, 0), False: np.abs(difference)}
    assert (difference[images.mask] < 0).any()
    state = constant_state(0.5)
    for residual, wanted in (("auto", by_sign[positive]), ("positive", by_sign[True]), ("absolute", by_sign[False])):
        found = small(residual=residual).detect(state, images, ctx).maps
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_reconstruction_is_not_cut_at_0_before_it_is_compared(ctx: Context) -> None:
    images = brains(2)
    found = small().detect(constant_state(-0.25), images, ctx)
    np.testing.assert_allclose(found.maps, images.pixels + 0.25, atol=1e-6)


def test_scans_of_several_modalities_are_each_judged_by_their_own(ctx: Context) -> None:
    images = brains(4)
    scan = images.scans[0]
    scans = (replace(scan, stop=2), replace(scan, id="t", start=2, modality="T1w"))
    found = small().detect(constant_state(0.5), replace(images, scans=scans), ctx).maps
    difference = images.pixels - 0.5
    np.testing.assert_allclose(found[:2], np.maximum(difference[:2], 0), atol=1e-6)
    np.testing.assert_allclose(found[2:], np.abs(difference[2:]), atol=1e-6)


def test_the_prior_keeps_the_brightest_pixels_of_each_slice_where_residuals_are_positive(ctx: Context) -> None:
    rng = np.random.default_rng(0)
    images = brains(4)
    noisy = np.where(images.mask, images.pixels + rng.uniform(0, 0.3, images.pixels.shape), 0).astype(np.float32)
    images = images.with_pixels(noisy)
    state = constant_state(0.1)
    plain, prior = (small(prior_quantile=q).detect(state, images, ctx).maps for q in (None, 0.9))
    for i in range(4):
        limit = np.quantile(noisy[i][images.mask[i]], 0.9)
        kept = images.mask[i] & (noisy[i] >= limit)
        assert kept.sum() == pytest.approx(0.1 * images.mask[i].sum(), abs=2)
        np.testing.assert_array_equal(prior[i], np.where(kept, plain[i], 0))
    dark = replace(images, scans=(replace(images.scans[0], modality="T1w"),))
    plain, prior = (small(prior_quantile=q).detect(state, dark, ctx).maps for q in (None, 0.9))
    np.testing.assert_array_equal(prior, plain)
    assert not bright(noisy[:1], np.zeros((1, SIZE, SIZE), bool), 0.9).any()


def test_what_departs_from_the_publication_is_said() -> None:
    assert Ae(residual="positive").deviations() == ()
    assert Ae(residual="absolute").deviations() == ("absolute residual",)
    assert "T1w and T1CE" in Ae().deviations()[0]


def test_each_slice_is_one_evaluation_whatever_the_batch(trained: State, ctx: Context) -> None:
    images = brains(7, seed=4)
    with measured("cpu") as meter:
        whole = small(batch_size=64).detect(trained, images, ctx).maps
    assert meter.evaluations == {"network": 7}
    with seeded(0):
        network = DenseAutoencoder((SIZE, SIZE), small().architecture)
    assert meter.summary(7)["parameters"] == parameters(network)
    np.testing.assert_allclose(small(batch_size=2).detect(trained, images, ctx).maps, whole, atol=1e-6)
    assert list(runs(7, 2)) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]


def test_slices_of_another_size(trained: State, ctx: Context) -> None:
    with pytest.raises(MethodError, match="slices are 64 × 64 pixels, those learnt from 32 × 32; prepare both alike"):
        small().detect(trained, brains(2, size=64), ctx)

"""The variational autoencoder: its loss by hand, gradients against differences, and the scores made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from harness._conformance_data import AnomalyMaterial, make_anomaly_material
from harness.anomaly import NormalData, Processing
from harness.api import Context, ImageSet, MethodError, State
from harness.conformance import check_method
from harness.cost import measured
from harness.training import load_weights, seeded
from methods.anomaly.vae import Vae, by_largest, smoothed_within, unlikeliness, without_squares
from methods.networks.dense_autoencoder import DenseArchitecture, DenseVariational, divergence

SCORES = ("reconstruction", "kl_gradient", "elbo_gradient", "combi", "combi_elbo")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


@pytest.fixture(scope="module")
def material() -> AnomalyMaterial:
    return make_anomaly_material().locked()


def small(**fields: Any) -> Vae:
    training = {"epochs": None, "iterations": 60, "validate_every": 30, "batch_size": 8, "learning_rate": 3e-3}
    architecture = {"width": 4, "latent": 8, "dropout": 0.2}
    return Vae.model_validate({"training": training, "architecture": architecture, **fields})


@pytest.fixture(scope="module")
def trained(material: AnomalyMaterial, tmp_path_factory: pytest.TempPathFactory) -> State:
    ctx = Context(seed=0, device="cpu", scratch=tmp_path_factory.mktemp("scratch"), log=lambda *_: None)
    return small().fit(NormalData(material.images, material.validation), ctx)


def exact(state: State) -> DenseVariational:
    """The trained network in float64."""
    with seeded(0):
        network = DenseVariational((64, 64), small().architecture)
    load_weights(network, {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    return network.double().eval()


@pytest.mark.parametrize(
    ("score", "spatial"), [*((score, False) for score in SCORES), ("reconstruction", True), ("combi_elbo", True)]
)
def test_conformance(score: str, spatial: bool) -> None:
    class Own(Vae):
        """With one of the scores."""

        @classmethod
        def example(cls) -> Self:
            base = Vae.example()
            architecture = base.architecture.model_copy(update={"spatial": spatial})
            return cls.model_validate({**base.model_dump(), "score": score, "architecture": architecture})

    assert [r for r in check_method(Own) if not r.passed] == []


# ------------------------------------------------------------------------------------ loss and network


def test_published_size_has_two_heads() -> None:
    network = DenseVariational((128, 128), DenseArchitecture())
    assert sum(p.numel() for p in network.parameters()) == 1_625_777 + 1024 * 128 + 128
    for found in network(torch.zeros(2, 1, 128, 128))[1:]:
        assert found.shape == (2, 128)


def test_noise_moves_the_description_by_deviations() -> None:
    with seeded(0):
        network = DenseVariational((32, 32), DenseArchitecture(width=4, latent=6)).eval()
    x = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    found, mean, log_deviation = network(x, noise)
    assert torch.equal(found, network.decode(mean + noise * log_deviation.exp()))
    assert torch.equal(network(x)[0], network.decode(mean))
    assert not torch.equal(found, network(x)[0])


def test_the_divergence_is_the_closed_form_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_deviation = (torch.randn(50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    normal = torch.distributions.Normal(mean, log_deviation.exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_deviation), wanted)
    assert (divergence(mean, log_deviation) > 0).all()
    assert divergence(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).tolist() == [0, 0]


def test_likelihoods() -> None:
    x, found = torch.tensor([[[[0.5, 1.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[0.0, 0.75]]], [[[2.0, 0.0]]]])
    assert unlikeliness(x, found, "laplace").tolist() == [0.75, 2.0]
    assert unlikeliness(x, found, "gaussian").tolist() == [0.15625, 2.0]


class Fixed(DenseVariational):
    """Answers half of what it sees, and always the same distribution."""

    def __init__(self) -> None:
        super().__init__((32, 32), DenseArchitecture(width=4, latent=2))
        self.seen: list[Tensor | None] = []

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(noise)
        return x / 2, torch.full((len(x), 2), 3.0), torch.zeros(len(x), 2)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_loss_is_the_sum_of_its_parts(weight: float) -> None:
    with seeded(0):
        network = Fixed()
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    method = small(divergence_weight=0.5, context_weight=weight)
    parts = method._loss(network, x, torch.Generator().manual_seed(1))
    error, kl = float(x.sum()) / 2 / 4, 9.0
    assert float(parts["reconstruction"]) == pytest.approx(error, rel=1e-5)
    assert float(parts["divergence"]) == pytest.approx(kl)
    first, *others = network.seen
    assert first is not None
    assert first.shape == (4, 2)
    if not weight:
        assert float(parts["loss"]) == pytest.approx(error + 0.5 * kl, rel=1e-5)
        assert others == []
        return
    assert others == [None], "context is reconstructed by the mean"
    # A square of 20/64 of the side: what it hides counts in full, the rest by half.
    assert float(parts["context"]) > error
    assert float(parts["loss"]) == pytest.approx(error + 0.5 * kl + 2 * float(parts["context"]), rel=1e-5)


def test_squares_that_are_cut_out() -> None:
    x = torch.ones(400, 1, 64, 48)
    cut = without_squares(x, (1, 3), 20 / 64, torch.Generator().manual_seed(0))
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(cut, without_squares(x, (1, 3), 20 / 64, torch.Generator().manual_seed(0)))
    holes = (cut[:, 0] == 0).numpy()
    numbers = []
    for hole in holes:
        regions, n = ndimage.label(hole)
        for box in ndimage.find_objects(regions):
            # 20 / 64 of the shorter side is 15 pixels; where squares overlap, a region is larger.
            assert all(side.stop - side.start >= 15 for side in box)
        numbers.append(hole.sum() / 225)
        assert n <= 3
    assert min(numbers) == 1
    assert 2 < max(numbers) <= 3
    alone = sum(number == 1 for number in numbers)
    assert 100 < alone < 170, "about a third have a single square"
    reached = holes.any(0)
    assert all(edge.any() for edge in (reached[0], reached[-1], reached[:, 0], reached[:, -1]))


def test_squares_that_cannot_be() -> None:
    for squares in ((0, 2), (3, 2)):
        with pytest.raises(ValidationError, match="fewest <= most"):
            small(context_squares=squares)


@pytest.mark.parametrize("context", [0.0, 1.0])
def test_training_lowers_the_loss(context: float, material: AnomalyMaterial, tmp_path: Path) -> None:
    curves: dict[str, list[float]] = {}

    def log(name: str, step: int, value: float) -> None:
        curves.setdefault(name, []).append(value)

    ctx = Context(seed=0, device="cpu", scratch=tmp_path, log=log)
    small(context_weight=context).fit(NormalData(material.images, material.validation), ctx)
    assert curves["loss"][-1] < 0.6 * curves["loss"][0]
    assert min(curves["divergence"]) >= 0
    assert ("context" in curves) == bool(context)
    assert max(curves["validation"]) > -0.6 * curves["loss"][0]


# ------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("score", ["kl_gradient", "elbo_gradient"])
@pytest.mark.parametrize("likelihood", ["laplace", "gaussian"])
def test_gradients_agree_with_differences(
    score: str, likelihood: Any, trained: State, material: AnomalyMaterial, ctx: Context
) -> None:
    images = material.test
    method = small(score=score, likelihood=likelihood, smooth=0.0, divergence_weight=1.5)
    maps = method.detect(trained, images, ctx).maps
    network, step = exact(trained), 1e-5

    def value(x: Tensor) -> Tensor:
        found, mean, log_deviation = network(x)
        total = 1.5 * divergence(mean, log_deviation)
        return total + unlikeliness(x, found, likelihood) if score == "elbo_gradient" else total

    largest = float(maps[0].max())
    assert largest > 1e-3
    for row, column in [(32, 32), (20, 40), (45, 25), (30, 12)]:
        x = torch.from_numpy(images.floats(slice(0, 1)).astype(np.float64))[:, None]
        up, down = x.clone(), x.clone()
        up[..., row, column] += step
        down[..., row, column] -= step
        with torch.no_grad():
            wanted = float(value(up) - value(down)) / 2 / step
        assert maps[0, row, column] == pytest.approx(abs(wanted), abs=1e-3 * largest)


@pytest.mark.parametrize("score", SCORES)
def test_maps_are_the_same_where_a_caller_has_switched_gradients_off(
    score: str, trained: State, material: AnomalyMaterial, ctx: Context
) -> None:
    method = small(score=score)
    plain = method.detect(trained, material.test, ctx).maps
    with torch.inference_mode():
        np.testing.assert_array_equal(method.detect(trained, material.test, ctx).maps, plain)
    with torch.no_grad():
        np.testing.assert_array_equal(method.detect(trained, material.test, ctx).maps, plain)
    assert np.isfinite(plain).all()
    assert plain.max() > 0


def test_scores_are_made_of_residual_and_gradients(trained: State, material: AnomalyMaterial, ctx: Context) -> None:
    images = material.test
    maps = {score: small(score=score, residual="absolute").detect(trained, images, ctx).maps for score in SCORES}
    found = small().detect(trained, images, ctx)
    assert found.reconstruction is not None
    np.testing.assert_allclose(maps["reconstruction"], np.abs(images.floats() - found.reconstruction), atol=1e-7)
    for combined, gradient in (("combi", "kl_gradient"), ("combi_elbo", "elbo_gradient")):
        np.testing.assert_allclose(maps[combined], by_largest(maps[gradient]) * maps["reconstruction"], atol=1e-6)
    assert (maps["kl_gradient"] != maps["elbo_gradient"]).any()
    positive = small(residual="positive", score="combi").detect(trained, images, ctx).maps
    difference = images.floats() - found.reconstruction
    np.testing.assert_allclose(positive, np.where(difference > 0, maps["combi"], 0), atol=1e-6)
    np.testing.assert_array_equal(small(score="combi").detect(trained, images, ctx).maps, positive)  # FLAIR


def test_a_map_is_one_evaluation(trained: State, material: AnomalyMaterial, ctx: Context) -> None:
    for score in ("reconstruction", "combi"):
        with measured("cpu") as meter:
            small(score=score, batch_size=5).detect(trained, material.test, ctx)
        assert meter.evaluations == {"network": len(material.test)}


def test_smoothing_is_within_slice_and_mask_and_goes_with_the_size() -> None:
    maps, mask = np.random.default_rng(0).random((2, 64, 64)), np.zeros((2, 64, 64), bool)
    mask[:, 10:50, 10:50] = True
    maps[1] = 0
    found = smoothed_within(maps, mask, 3.0)
    wanted = ndimage.gaussian_filter(maps[0] * mask[0], 1.5, mode="constant")
    np.testing.assert_allclose(found[0], np.where(mask[0], wanted, 0))
    assert found[1].max() == 0
    np.testing.assert_array_equal(smoothed_within(maps, mask, 0.0), maps * mask)


def test_division_by_the_largest_value_leaves_nothing_as_it_is() -> None:
    maps = np.zeros((2, 3, 3))
    maps[0, 1, 1], maps[0, 0, 0] = 4, 1
    found = by_largest(maps)
    assert (found[0, 1, 1], found[0, 0, 0], found[1].max()) == (1, 0.25, 0)


def test_a_bright_blob_stands_out(trained: State, material: AnomalyMaterial, ctx: Context) -> None:
    images = material.test
    blob = images.pixels == 245
    for score in ("reconstruction", "combi", "combi_elbo"):
        maps = small(score=score).detect(trained, images, ctx).maps
        assert np.median(maps[blob]) > np.quantile(maps[images.mask & ~blob], 0.8), score


def test_pictures_name_the_gradient(trained: State, material: AnomalyMaterial, ctx: Context) -> None:
    captions = {score: list(small(score=score).illustrate(trained, material.test, ctx)) for score in SCORES}
    assert captions["reconstruction"] == ["reconstruction"]
    assert captions["kl_gradient"] == captions["combi"] == ["reconstruction", "gradient of the KL"]
    assert captions["combi_elbo"] == ["reconstruction", "gradient of the ELBO"]


def test_what_departs_from_the_publication_is_said() -> None:
    assert Vae(residual="positive").deviations() == ()
    assert Vae(score="kl_gradient").deviations() == ("network of Baur et al., not of Zimmerer et al.",)
    assert Vae(score="combi", residual="absolute").deviations() == Vae(score="kl_gradient").deviations()
    assert Vae(score="combi").deviations()[1] == "positive residual except on T1w and T1CE"
    assert Vae().published_processing() == Processing(erode=12, median=5, smallest=7)
    assert Vae(score="combi").published_processing() == Processing()


def test_slices_of_another_size(trained: State, ctx: Context) -> None:
    images = make_anomaly_material().test
    other = ImageSet(images.pixels[:, :32, :32], images.mask[:, :32, :32], images.scans)
    with pytest.raises(MethodError, match="slices are 32 × 32 pixels, those learnt from 64 × 64"):
        small(score="combi").detect(trained, other, ctx)


def test_batch_normalisation_is_not_moved_by_what_is_mapped(material: AnomalyMaterial, ctx: Context) -> None:
    method = small(
        architecture={"width": 4, "latent": 8, "normalisation": "batch"},
        training={"epochs": None, "iterations": 4, "validate_every": 2, "batch_size": 8},
        score="combi",
    )
    state = method.fit(NormalData(material.images, material.validation), ctx)
    assert any(isinstance(m, nn.BatchNorm2d) for m in DenseVariational((64, 64), method.architecture).modules())
    whole = method.detect(state, material.test, ctx).maps
    alone = small(**{**method.model_dump(), "batch_size": 1}).detect(state, material.test, ctx).maps
    np.testing.assert_allclose(alone, whole, atol=1e-5)

"""The autoencoder of latent diffusion: sizes, losses, players, weights from elsewhere, and the scale of latents."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from discs import site
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from harness.anomaly import NormalData
from harness.api import Context, ImageSet, MethodError, State
from harness.cost import measured
from harness.problems import UserError
from harness.training import seeded, weights_of
from methods.anomaly.components.augmentation import MildAugmentation
from methods.anomaly.components.autoencoder import Autoencoder, LatentAutoencoder, build, load_autoencoder
from methods.anomaly.components.autoencoder_files import FILE
from methods.anomaly.components.autoencoder_training import Turns, _Learner, _Players, balance, train_autoencoder
from methods.networks.kl_autoencoder import posterior
from methods.networks.lpips_vgg import LpipsVGG, _names
from methods.networks.patch_discriminator import PatchDiscriminator

Log = Callable[[str, int, float], None]
TRAIN, VALIDATION = site((90, 190), 12, size=(32, 32)), site((90, 190), 4, seed=1, size=(32, 32))
DATA = NormalData(TRAIN, VALIDATION)
TINY = {"width": 8, "multipliers": (1, 1, 2, 2), "blocks": 1, "groups": 4, "discriminator_width": 4}


def context(scratch: Path, log: Log = lambda *_: None) -> Context:
    return Context(5, "cpu", scratch, log)


def tiny(**changes: Any) -> LatentAutoencoder:
    training = {"iterations": 4, "batch_size": 4, "learning_rate": 2e-3, "log_every": 1} | changes.pop("training", {})
    return LatentAutoencoder.model_validate({**TINY, "discriminator_layers": 1, **changes, "training": training})


def ready(settings: LatentAutoencoder, scale: float = 1.0) -> Autoencoder:
    """With weights as they are drawn."""
    with seeded(0):
        return Autoencoder(build(settings).eval(), scale, settings)


def slices(n: int = 2) -> torch.Tensor:
    return torch.from_numpy(TRAIN.floats(slice(n)))[:, None]


def learn(settings: LatentAutoencoder, scratch: Path, log: Log = lambda *_: None) -> State:
    return settings.fit(DATA, context(scratch, log))


# ------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(("kind", "millions", "channels", "factor"), [("f8", 83.65, 4, 8), ("f4", 55.31, 3, 4)])
def test_both_kinds_have_the_published_size(kind: str, millions: float, channels: int, factor: int) -> None:
    settings = LatentAutoencoder.model_validate({"kind": kind})
    with torch.device("meta"):
        network = build(settings)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    assert (settings.latent_channels, settings.factor) == (channels, factor)


@pytest.mark.parametrize(
    ("kind", "multipliers", "shape"), [("f8", (1, 1, 2, 2), (4, 4, 6)), ("f4", (1, 1, 2), (3, 8, 12))]
)
def test_latents_have_the_size_of_their_kind(kind: str, multipliers: tuple[int, ...], shape: tuple[int, ...]) -> None:
    settings = tiny(kind=kind, multipliers=multipliers)
    autoencoder = ready(settings)
    x = torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    mean, deviation = autoencoder.moments(x)
    assert mean.shape == deviation.shape == (2, *shape)
    assert bool((deviation > 0).all())
    assert torch.equal(autoencoder.encode(x), mean)
    assert autoencoder.decode(mean).shape == x.shape


def test_the_scale_multiplies_latents_and_is_taken_back_by_the_decoder() -> None:
    settings, x = tiny(), slices()
    plain, scaled = ready(settings, 1.0), ready(settings, 0.25)
    for a, b in zip(plain.moments(x), scaled.moments(x), strict=True):
        torch.testing.assert_close(b, a * 0.25)
    torch.testing.assert_close(scaled.decode(scaled.encode(x)), plain.decode(plain.encode(x)))


def test_slices_enter_from_minus_one_to_one() -> None:
    settings, x = tiny(), slices()
    with seeded(0):
        network = build(settings).eval()
    mean, _ = posterior(network.encoding()(2 * x - 1))
    torch.testing.assert_close(ready(settings).encode(x), mean)


def test_evaluations_are_counted_as_those_of_an_autoencoder() -> None:
    autoencoder, x = ready(tiny()), slices(3)
    with measured("cpu") as meter:
        autoencoder.decode(autoencoder.encode(x))
    assert dict(meter.evaluations) == {"autoencoder": 6}
    assert sum(meter.parameters.values()) == sum(p.numel() for p in build(tiny()).parameters())


def test_settings_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValidationError, match="4 levels, but multipliers has 2"):
        tiny(multipliers=(1, 2))
    with pytest.raises(ValidationError, match="groups 3 do not divide"):
        tiny(groups=3)
    with pytest.raises(ValidationError, match="above 0, or calibrated"):
        tiny(scale=0.0)
    with pytest.raises(ValidationError):
        tiny(scale="standard")


def test_slices_that_cannot_be_halved_often_enough_are_refused(tmp_path: Path) -> None:
    odd = site((90, 190), 2, size=(32, 28))
    with pytest.raises(MethodError, match=r"32 × 28 pixels.*multiples of 8"):
        tiny().fit(NormalData(odd, odd), context(tmp_path))
    none = ImageSet(TRAIN.pixels[:0], TRAIN.mask[:0], ())
    with pytest.raises(MethodError, match="no training slices"):
        tiny().fit(NormalData(none, VALIDATION), context(tmp_path))


# ------------------------------------------------------------------------------------------- learning


def test_published_losses_are_the_defaults() -> None:
    s = LatentAutoencoder()
    assert (s.kl_weight, s.start_discriminator, s.discriminator_weight, s.discriminator_layers) == (
        1e-6,
        50_001,
        0.5,
        3,
    )
    assert (s.scale, s.perceptual_weight) == (0.18215, 1.0)
    assert s.training.learning_rate == pytest.approx(4.5e-6 * s.training.batch_size)
    assert "autoencoder without a perceptual loss" in s.departures()
    assert "autoencoder trained from scratch" in s.departures()
    assert LatentAutoencoder(load="x", fine_tune=False).departures() == ()


def test_reconstructions_come_closer(tmp_path: Path) -> None:
    settings = tiny(training={"iterations": 60, "learning_rate": 5e-3, "validate_every": 60, "batch_size": 6})
    before = ready(settings)
    scores: dict[int, float] = {}

    def log(curve: str, iteration: int, value: float) -> None:
        if curve == "validation":
            scores[iteration] = value

    state = settings.fit(DATA, context(tmp_path, log))
    x = torch.from_numpy(VALIDATION.floats())[:, None]
    with torch.no_grad():
        errors = [
            float((a.decode(a.encode(x)) - (2 * x - 1)).abs().mean()) / 2
            for a in (before, load_autoencoder(state, settings, "cpu"))
        ]
    assert errors[1] < 0.5 * errors[0]
    assert scores == {60: pytest.approx(-errors[1], rel=1e-4)}


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    still = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 0]]).repeat(n, 1)
    return {"pixels": slices(n), "mask": torch.from_numpy(TRAIN.mask[:n].copy())[:, None], "changes": still}


def players(settings: LatentAutoencoder, done: int = 0) -> _Players:
    with seeded(0):
        found = _Players(_Learner(build(settings), settings.learn_variance), PatchDiscriminator(1, 4, 1))
    found.done.fill_(done)
    return found.eval()


def test_the_loss_is_l1_over_the_variance_and_a_little_divergence() -> None:
    settings = tiny(kl_weight=0.5)
    both = players(settings)
    with torch.no_grad():
        both.autoencoder.log_variance.fill_(-0.7)
        losses = Turns(settings, None).autoencoder(both, batch(), torch.Generator().manual_seed(3))
        x = 2 * slices() - 1
        mean, log_variance = posterior(both.autoencoder.network.encoding()(x))
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
        made = both.autoencoder.network.decoding()(mean + (log_variance / 2).exp() * noise)
        normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
        kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum() / 2
    l1 = (made - x).abs()
    expected = (l1 * np.exp(0.7) - 0.7).sum() / 2 + 0.5 * kl
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["l1"], l1.mean() / 2)


def test_the_discriminator_starts_at_its_iteration_and_is_balanced() -> None:
    settings = tiny(start_discriminator=7)
    for done, plays in ((5, False), (6, True)):
        both, turns = players(settings, done), Turns(settings, None)
        losses = turns.autoencoder(both, batch(), torch.Generator().manual_seed(3))
        second = turns.discriminator(both, batch(), torch.Generator())
        assert ("adversarial" in losses) is plays
        assert (float(second["loss"].detach()) > 0) is plays
        second["loss"].backward()
        assert all(p.grad is not None for p in both.discriminator.parameters())
        assert int(both.done) == done + 1
    # Plain sums: what the adversarial part adds to the loss is weight × factor × its value.
    alone = Turns(tiny(start_discriminator=99), None)
    without = alone.autoencoder(players(settings, 6), batch(), torch.Generator().manual_seed(3))
    added = float((losses["loss"] - without["loss"]).detach())
    assert added == pytest.approx(0.5 * float(losses["factor"]) * float(losses["adversarial"]), rel=1e-3)


def test_balance_gives_both_losses_the_same_gradient() -> None:
    last = torch.tensor([1.0, -2.0], requires_grad=True)
    likelihood, fooled = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 10.0])).sum()
    assert float(balance(likelihood, fooled, last)) == pytest.approx(0.5, rel=1e-4)
    assert float(balance(1e9 * likelihood, fooled, last)) == 1e4


def test_the_hinge_stops_where_slices_are_told_apart() -> None:
    settings = tiny(start_discriminator=1)
    both, turns = players(settings), Turns(settings, None)
    for layer in both.discriminator.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    last = both.discriminator.layers[-1]
    for bias, real, fake in ((0.0, 1.0, 1.0), (2.0, 0.0, 3.0), (-3.0, 4.0, 0.0)):
        nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
        turns.autoencoder(both, batch(), torch.Generator())
        losses = turns.discriminator(both, batch(), torch.Generator())
        assert [float(losses[key].detach()) for key in ("real", "fake", "loss")] == [real, fake, (real + fake) / 2]


def test_the_variance_is_learnt_unless_it_is_held(tmp_path: Path) -> None:
    for learn_variance in (True, False):
        curves: list[float] = []

        def log(curve: str, _: int, value: float, curves: list[float] = curves) -> None:
            if curve == "autoencoder/log_variance":
                curves.append(value)

        settings = tiny(learn_variance=learn_variance)
        with seeded(0):
            network = build(settings)
        train_autoencoder(network, settings, DATA, context(tmp_path / str(learn_variance), log))
        assert len(curves) == 4
        assert (curves[-1] != 0) is learn_variance


def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """The discriminator starts after the kill, so that the count of iterations must have been kept."""
    settings = tiny(start_discriminator=6, training={"iterations": 8, "checkpoint_every": 4})
    whole = learn(settings, tmp_path / "whole")

    def kill(curve: str, iteration: int, value: float) -> None:
        if iteration == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(settings, tmp_path / "killed", kill)
    again = learn(settings, tmp_path / "killed")
    assert whole.keys() == again.keys()
    for key, value in whole.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[key])), key


def test_calibrated_latents_have_unit_variance(tmp_path: Path) -> None:
    settings = tiny(scale="calibrated")
    autoencoder = load_autoencoder(learn(settings, tmp_path), settings, "cpu")
    with torch.no_grad():
        mean, deviation = autoencoder.moments(slices(len(TRAIN)))
        noise = torch.randn((200, *mean.shape), generator=torch.Generator().manual_seed(0))
    assert float((mean + deviation * noise).std()) == pytest.approx(1, abs=0.01)
    assert "latents scaled by their own deviation" in settings.departures()


# ---------------------------------------------------------------------------------- weights from elsewhere


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small autoencoder of colour photographs, as a folder."""
    with seeded(4):
        network: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
        )
    folder = tmp_path_factory.mktemp("checkpoint")
    network.save_pretrained(folder, safe_serialization=True)
    return network.eval(), folder


@pytest.mark.parametrize("place", ["folder", "vae", "file", "older"])
def test_a_colour_checkpoint_gives_a_grey_slice_what_it_gave_its_copies(
    place: str, colour: tuple[Any, Path], tmp_path: Path
) -> None:
    network, load = colour
    if place == "vae":
        (tmp_path / "vae").mkdir()
        (tmp_path / "vae" / FILE).write_bytes((load / FILE).read_bytes())
        load = tmp_path
    elif place == "file":
        load = load / FILE
    elif place == "older":
        weights = load_file(load / FILE)
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
            weights = {key.replace(f".{new}.", f".{old}."): value for key, value in weights.items()}
        linear = [key for key in weights if "attentions" in key and key.endswith("weight") and "norm" not in key]
        assert len(linear) == 8
        weights |= {key: weights[key][:, :, None, None].clone() for key in linear}
        load = tmp_path / "older.safetensors"
        save_file(weights, load)
    settings = tiny(load=str(load), fine_tune=False)
    autoencoder = load_autoencoder(learn(settings, tmp_path), settings, "cpu")
    x = slices(3)
    with torch.no_grad():
        copies = (2 * x - 1).expand(-1, 3, -1, -1)
        latents = network.encode(copies).latent_dist.mean
        torch.testing.assert_close(autoencoder.encode(x), latents * 0.18215, atol=1e-5, rtol=1e-4)
        decoded = network.decode(latents).sample.mean(1, keepdim=True)
        torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), decoded, atol=1e-5, rtol=1e-4)


def test_what_is_loaded_is_fine_tuned(colour: tuple[Any, Path], tmp_path: Path) -> None:
    kept, tuned = (
        learn(tiny(load=str(colour[1]), fine_tune=fine_tune), tmp_path / str(fine_tune)) for fine_tune in (False, True)
    )
    key = "network.decoder.conv_out.weight"
    assert 0 < float((kept[key] - tuned[key]).abs().max()) < 0.1
    expected = colour[0].decoder.conv_out.weight.detach().mean(0, keepdim=True)
    torch.testing.assert_close(kept[key], expected)


def test_files_that_are_no_such_weights_are_refused_in_one_line(colour: tuple[Any, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "weights.safetensors"
    pickled.write_bytes(pickle.dumps({"encoder.conv_in.weight": [1.0]}))
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        str(pickled): "pickled weights are not taken",
        str(tmp_path / "none.safetensors"): "no such file",
        str(empty): f"the folder has no {FILE}",
    }
    for load, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            learn(tiny(load=load), tmp_path)
        assert str(caught.value).startswith(load)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"has shape .*, the network needs"):
        learn(tiny(load=str(colour[1]), width=16), tmp_path)
    with pytest.raises(UserError, match=r"weight .* is missing"):
        learn(tiny(load=str(colour[1]), blocks=2), tmp_path)


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the hub did not give") as caught:
        learn(tiny(load="somebody/autoencoder@main"), tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ perception


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the layout of the lpips package, drawn at random and never negative for the channels."""
    with seeded(2):
        network = LpipsVGG()
        for weight in network.weights:
            nn.init.uniform_(weight, 0, 1)
    found = {key: network.get_parameter(own).detach().clone() for own, key in _names().items()}
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(found, path)
    return path


def test_lpips_has_the_layers_of_vgg_16_and_their_names() -> None:
    with torch.device("meta"):
        network = LpipsVGG()
    assert sum(p.numel() for p in network.stages.parameters()) == 14_714_688
    assert sum(p.numel() for p in network.weights) == 64 + 128 + 256 + 512 + 512
    convolutions = sorted({int(key.split(".")[2]) for key in _names().values() if key.startswith("net")})
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert {"net.slice3.10.weight", "net.slice5.28.bias", "lin4.model.1.weight"} <= set(_names().values())


def test_lpips_is_nothing_for_equal_slices_and_sees_copies_of_grey(lpips: Path) -> None:
    network = LpipsVGG.from_weights(load_file(lpips), "x")
    x = 2 * slices() - 1
    assert not network(x, x).any()
    distance = network(x, x.flip(-1))
    assert bool((distance > 0).all())
    torch.testing.assert_close(network(x.expand(-1, 3, -1, -1), x.flip(-1).expand(-1, 3, -1, -1)), distance)
    assert not any(p.requires_grad for p in network.parameters())
    with pytest.raises(UserError, match=r"w\.file: it is not LPIPS with VGG-16: net\.slice1\.0\.weight"):
        LpipsVGG.from_weights({}, "w.file")


def test_the_perceptual_loss_is_added_at_every_pixel(lpips: Path, tmp_path: Path) -> None:
    settings = tiny(perceptual_weights=str(lpips), perceptual_weight=2.0, training={"iterations": 1})
    network = LpipsVGG.from_weights(load_file(lpips), "x")
    plain, with_it = (
        Turns(settings, perceptual).autoencoder(players(settings), batch(), torch.Generator().manual_seed(3))["loss"]
        for perceptual in (None, network)
    )
    both, x = players(settings), 2 * slices() - 1
    with torch.no_grad():
        made, _ = both.autoencoder(x, torch.Generator().manual_seed(3))
        added = 2.0 * network(made, x).mean() * 32 * 32
    torch.testing.assert_close((with_it - plain).detach(), added, rtol=1e-3, atol=1e-3)
    assert learn(settings, tmp_path)["scale"] == 0.18215
    assert "autoencoder without a perceptual loss" not in settings.departures()
    with pytest.raises(UserError, match="no such file"):
        learn(tiny(perceptual_weights=str(tmp_path / "none.safetensors")), tmp_path)


# -------------------------------------------------------------------------------------------- as a component


def test_example_learns_and_comes_back_from_its_state(tmp_path: Path) -> None:
    settings = LatentAutoencoder.example()
    data = NormalData(site((90, 190), 6, size=(64, 64)), site((90, 190), 2, size=(64, 64)))
    state = settings.fit(data, context(tmp_path))
    autoencoder = load_autoencoder(state, settings, "cpu")
    assert autoencoder.scale == state["scale"]
    found = {key.removeprefix("network."): value for key, value in state.items() if key != "scale"}
    assert found.keys() == weights_of(build(settings)).keys()
    numpy = {key: value if key == "scale" else np.asarray(value) for key, value in state.items()}
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    again = load_autoencoder(numpy, settings, "cpu")
    assert torch.equal(again.encode(x), autoencoder.encode(x))
    assert not again.encode(x).requires_grad
    x.requires_grad_()
    again.decode(again.encode(x)).sum().backward()
    assert x.grad is not None


def test_the_augmentation_is_the_settings_own(tmp_path: Path) -> None:
    """Nothing else in the training is random beside the order of slices and the noise, which are the same in both."""
    off = tiny(augmentation=MildAugmentation(probability=0.0))
    on = tiny()
    key = "network.decoder.conv_out.weight"
    assert not torch.equal(learn(off, tmp_path / "off")[key], learn(on, tmp_path / "on")[key])

"""AUE: movements that are undone, votes, uncertainty, ages; on networks whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.api import ApplyData, Augment, Context, ImageSet, Scan, State, TaskData, TaskHandle, TaskModel
from harness.conformance import check_method
from methods.adaptation.aue import Aue, _Draws, share_entropy, variation
from methods.networks.resampling import resample_labels


class Levels(nn.Module):
    """Logits from each pixel alone: labels 0, 1, 2 for levels about 0, 0.4 and 0.8. Moves as its input does."""

    def forward(self, pixels: Tensor) -> Tensor:
        return -60 * (pixels - torch.tensor([0.0, 0.4, 0.8])[:, None, None]) ** 2


class Leaning(nn.Module):
    """Label 1 in the upper half, 2 in the lower, wherever the brain lies: as little equivariant as can be."""

    def forward(self, pixels: Tensor) -> Tensor:
        upper = (torch.arange(pixels.shape[2]) < pixels.shape[2] // 2).float()[:, None]
        brain = (pixels > 0.1).float()
        return 9 * torch.cat([1 - brain, brain * upper, brain * (1 - upper)], 1)


class Brightness(nn.Module):
    """An age from the mean of a slice, and from its upper rows twice."""

    def forward(self, pixels: Tensor) -> Tensor:
        return 30 + 40 * pixels.mean((1, 2, 3)) + 40 * pixels[:, :, : pixels.shape[2] // 2].mean((1, 2, 3))


class Known(TaskModel):
    """One of the networks above."""

    id = "known"
    reference = "ours"
    kind: str = "levels"

    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        raise NotImplementedError

    def network(self, state: State) -> nn.Module:
        return {"levels": Levels, "leaning": Leaning, "age": Brightness}[self.kind]().eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        with torch.no_grad():
            found = self.network(state)(torch.from_numpy(images.floats())[:, None])
        return images.per_scan(found.numpy()) if self.kind == "age" else found.argmax(1).numpy()


class KnownAge(Known):
    """The age network."""

    id = "known_age"
    outcome = "age"
    kind: str = "age"


def truth(n: int = 6, size: int = 128) -> np.ndarray:
    """Labels of an ellipse inside a larger one, off the centre, different in each slice; frame to spare all round."""
    rows, columns = np.mgrid[:size, :size] / size
    labels = np.zeros((n, size, size), np.uint8)
    for k in range(n):
        inside = np.hypot((rows - 0.47) / 0.3, (columns - 0.52) / (0.22 + 0.01 * k))
        labels[k][inside < 1] = 1
        labels[k][inside < 0.7] = 2
    return labels


def images(n: int = 6, size: int = 128) -> ImageSet:
    labels = truth(n, size)
    pixels = np.array([0, 102, 204], np.uint8)[labels]
    half = n // 2
    scans = tuple(Scan(f"s{k}", f"s{k}", "B", k * half, half if k == 0 else n, (1.0, 1.0, 1.0)) for k in range(2))
    return ImageSet(pixels, labels > 0, scans)


def still(**changes: Any) -> Aue:
    nothing = {"flip_rows": 0, "flip_columns": 0, "rotate_degrees": 0, "scale": (1, 1), "noise_sd": 0, "draws": 3}
    return Aue(**{**nothing, **changes})


def adapt(
    aue: Aue, model: TaskModel, target: ImageSet, seed: int = 0, curves: dict[str, list[float]] | None = None
) -> np.ndarray:
    def log(name: str, step: int, value: float) -> None:
        if curves is not None:
            curves.setdefault(name, []).append(value)

    data = ApplyData({"target": target, "task": TaskHandle(model, {}, "cpu")})
    return aue.adapt({}, data, Context(seed, "cpu", Path("unused"), log))


def context(seed: int = 0) -> Context:
    return Context(seed, "cpu", Path("unused"), lambda *point: None)


def dice(first: np.ndarray, second: np.ndarray, label: int) -> float:
    a, b = first == label, second == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# ------------------------------------------------------------------------------ draws that do nothing


@pytest.mark.parametrize("fusion", ["vote", "probability"])
@pytest.mark.parametrize("kind", ["levels", "leaning"])
def test_draws_that_do_nothing_are_plain_inference(kind: str, fusion: str) -> None:
    target, curves = images(), {}
    model = Known(kind=kind)
    assert np.array_equal(
        adapt(still(fusion=fusion), model, target, curves=curves), model.predict({}, target, context())
    )
    if fusion == "vote":
        assert curves == {"uncertainty": [0, 0], "volume_variation": [0, 0]}


def test_ages_without_movement_are_plain_inference() -> None:
    target, curves = images(), {}
    plain = KnownAge().predict({}, target, context())
    found = adapt(still(), KnownAge(), target, curves=curves)
    assert found.dtype == np.float64
    assert found == pytest.approx(plain, rel=1e-6)
    assert curves["uncertainty"] == pytest.approx([0, 0], abs=1e-5)


def test_one_flip_and_a_network_that_moves_along_are_plain_inference() -> None:
    target = images()
    for seed in range(4):
        flipped = adapt(still(flip_rows=1, flip_columns=0.5, draws=1), Known(), target, seed)
        assert np.array_equal(flipped, Known().predict({}, target, context()))
    assert not np.array_equal(adapt(still(flip_rows=1), Known(kind="leaning"), target), truth())


# ----------------------------------------------------------------------------------------- movements


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 160)])
def test_labels_that_are_moved_and_moved_back_agree(height: int, width: int) -> None:
    square = images()
    labels = np.pad(truth(), ((0, 0), (0, 0), (0, width - 128)))
    target = ImageSet(np.zeros(labels.shape, np.uint8), labels > 0, square.scans)
    draws = _Draws(Aue(), target, target.scans[0], context())
    start = torch.from_numpy(labels)
    distances = []
    for k in range(20):
        moved = resample_labels(start, draws._grid(draws.there[k], start[:, None]))
        back = resample_labels(moved, draws._grid(draws.home[k], start[:, None]))
        if moved[:, [0, -1]].any() or moved[:, :, [0, -1]].any():
            continue  # a part left the frame, which no movement can bring back
        assert min(dice(back.numpy(), labels, label) for label in (1, 2)) > 0.97
        distances.append((moved != start).float().mean().item())
    assert len(distances) >= 10
    assert min(distances) > 0.01


def test_priors_are_met() -> None:
    target = images()
    draws = _Draws(Aue(draws=4000, flip_rows=0.2), target, target.scans[0], context())
    matrix = draws.home[:, :, :2]  # its determinant is the magnification squared, negative where mirrored once
    zoom = torch.linalg.det(matrix).abs().sqrt()
    assert 0.8 <= zoom.min() < 0.805
    assert 1.195 < zoom.max() <= 1.2 + 1e-5
    mirrored = (torch.linalg.det(matrix) < 0).float().mean().item()
    assert mirrored == pytest.approx(0.2 * 0.5 + 0.8 * 0.5, abs=0.03)
    once = _Draws(Aue(draws=4000, flip_rows=0, flip_columns=0, rotate_degrees=15), target, target.scans[0], context())
    angle = torch.rad2deg(torch.atan2(once.there[:, 1, 0], once.there[:, 1, 1])).abs()
    assert 14.8 < angle.max() <= 15.001
    assert angle.mean() == pytest.approx(7.5, abs=0.3)
    assert not draws.there[:, :, 2].any()


def test_noise_is_in_units_of_the_brains_spread_and_stays_in_the_brain() -> None:
    target = images()
    scan = target.scans[0]
    draws = _Draws(still(noise_sd=0.5, draws=1), target, scan, context())
    _, pixels, mask = next(draws.chunks())
    noise = (draws.moved(0, pixels, mask) - pixels).numpy()
    brain = np.asarray(target.mask[scan.slices])
    spread = target.floats(scan.slices)[brain].std()
    assert noise[:, 0][~brain].any() == 0
    assert noise[:, 0][brain].std() == pytest.approx(0.5 * spread, rel=0.1)  # a little is cut at 1


@pytest.mark.parametrize("fusion", ["vote", "probability"])
def test_many_draws_of_a_network_that_moves_along_agree_with_the_truth(fusion: str) -> None:
    """Flips, full turns and magnification, all undone: only edges blur."""
    target, curves = images(), {}
    found = adapt(Aue(fusion=fusion, draws=8), Known(), target, curves=curves)
    assert min(dice(found, truth(), label) for label in (1, 2)) > 0.95
    assert all(0 < value < 0.3 for value in curves["uncertainty"])
    assert all(0 <= value < 0.1 for value in curves["volume_variation"])


def test_out_of_the_frame_there_is_background() -> None:
    """A brain that fills the frame, magnified before it is predicted, comes back as its middle."""
    full = ImageSet(np.full((2, 32, 32), 204, np.uint8), np.ones((2, 32, 32), bool), (images().scans[0],))
    full = replace(full, scans=(replace(full.scans[0], stop=2),))
    for fusion in ("vote", "probability"):
        found = adapt(still(scale=(2, 2), fusion=fusion), Known(), full)
        assert (found[:, 9:23, 9:23] == 2).all()
        assert not found[:, :7].any()


# -------------------------------------------------------------------------------------- uncertainty


def test_entropy_of_votes_is_0_where_all_agree_and_at_most_ln_c() -> None:
    votes = torch.tensor([[[20, 19, 5, 10]], [[0, 1, 5, 10]], [[0, 0, 5, 0]], [[0, 0, 5, 0]]])[None] / 20
    entropy = share_entropy(votes)[0, 0]
    assert entropy[0] == 0
    assert entropy[1:].tolist() == pytest.approx(
        [-0.95 * math.log(0.95) - 0.05 * math.log(0.05), math.log(4), math.log(2)], rel=1e-5
    )
    assert str(entropy[0].item()) in ("0.0", "-0.0")


def test_a_network_that_does_not_move_along_is_uncertain() -> None:
    curves: dict[str, list[float]] = {}
    adapt(still(flip_rows=0.5, draws=20), Known(kind="leaning"), images(), curves=curves)
    assert all(0.5 < value <= math.log(2) + 1e-6 for value in curves["uncertainty"])


def test_volume_variation_by_hand() -> None:
    volumes = np.array([[5.0, 10, 0, 4], [9.0, 20, 0, 4]])
    assert variation(volumes) == pytest.approx((5 / 15 + 0) / 2)
    assert variation(np.zeros((3, 2))) == 0


# ---------------------------------------------------------------------------------------------- ages


def test_age_is_the_mean_over_draws_and_slices() -> None:
    """Flipped rows swap what counts twice; the mean over all flips is known."""
    target, curves = images(), {}
    rows = target.floats()
    straight, flipped = (30 + 40 * r.mean((1, 2)) + 40 * r[:, :64].mean((1, 2)) for r in (rows, rows[:, ::-1]))
    plain = still(flip_rows=1, draws=1)
    assert adapt(plain, KnownAge(), target) == pytest.approx(target.per_scan(flipped), rel=1e-5)
    half = adapt(still(flip_rows=0.5, draws=200), KnownAge(), target, curves=curves)
    spread = np.abs(target.per_scan(straight) - target.per_scan(flipped)) / 2
    assert np.abs(half - target.per_scan((straight + flipped) / 2)).max() < 0.3 * spread.min()
    assert curves["uncertainty"] == pytest.approx(spread.tolist(), rel=0.1)


# ------------------------------------------------------------------------------- order and determinism


@pytest.mark.parametrize("model", [Known(kind="leaning"), KnownAge()])
def test_a_scan_does_not_depend_on_others(model: TaskModel) -> None:
    target = images()
    whole = adapt(Aue(draws=3), model, target)
    second = target.scans[1]
    alone = ImageSet(
        target.pixels[second.slices], target.mask[second.slices], (replace(second, start=0, stop=len(target) // 2),)
    )
    expected = whole[second.slices] if model.outcome == "labels" else whole[1:]
    assert np.array_equal(adapt(Aue(draws=3), model, alone), expected)


def test_same_seed_same_bits_and_another_seed_others() -> None:
    model, target = Known(kind="leaning"), images()
    first = adapt(Aue(draws=2), model, target)
    assert np.array_equal(first, adapt(Aue(draws=2), model, target))
    assert not np.array_equal(first, adapt(Aue(draws=2), model, target, seed=1))


def test_batch_size_changes_only_noise() -> None:
    model, target = Known(kind="leaning"), images()
    without = Aue(draws=3, noise_sd=0)
    assert np.array_equal(
        adapt(without, model, target), adapt(without.model_copy(update={"batch_size": 2}), model, target)
    )


def test_slices_without_brain_are_background() -> None:
    target = images()
    empty = ImageSet(np.zeros_like(target.pixels), np.zeros_like(target.mask), target.scans)
    curves: dict[str, list[float]] = {}
    assert not adapt(Aue(draws=2), Known(), empty, curves=curves).any()
    assert curves == {"uncertainty": [0, 0], "volume_variation": [0, 0]}


def test_published_defaults_and_bad_ranges() -> None:
    aue = Aue()
    assert (aue.draws, aue.rotate_degrees, aue.scale, aue.noise_sd) == (20, 180, (0.8, 1.2), 0.05)
    assert Aue.outcomes == ("labels", "age")
    for scale in ((0, 1), (1.2, 0.8)):
        with pytest.raises(ValidationError, match="0 < low <= high"):
            Aue(scale=scale)


def test_conformance() -> None:
    assert not [result for result in check_method(Aue) if not result.passed]

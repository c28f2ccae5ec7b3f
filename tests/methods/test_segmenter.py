"""The 2-D segmenter: published size, loss, augmentation, a toy problem learnt, resuming, errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.api import Context, ImageSet, LabelSet, MethodError, Scan, TaskData
from harness.conformance import check_method
from harness.data.arrays import load_state, save_state
from harness.metrics.overlap import dsc, joint_counts
from methods.adaptation.bigaug import BigAug
from methods.networks.resampling import affine_matrices
from methods.tasks.segmenter_2d import Segmenter2d, SegmenterTraining, mean_dice, soft_dice_loss

NAMES = ("background", "disc", "ring")


def context(scratch: Path, seed: int = 1) -> Context:
    return Context(seed, "cpu", scratch, lambda name, step, value: None)


def shapes(n: int, seed: int, size: int = 32) -> tuple[ImageSet, LabelSet]:
    """Noisy slices with a bright disc inside a grey ring, at random places; two scans."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    labels = np.zeros((n, size, size), np.uint8)
    for i in range(n):
        centre, radius = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.15, 0.2) * size
        distance = np.hypot(rows - centre[0], columns - centre[1])
        labels[i][distance < 1.6 * radius] = 2
        labels[i][distance < radius] = 1
    levels = np.array([0.0, 0.8, 0.4])[labels] + rng.normal(0, 0.03, labels.shape)
    pixels = (np.clip(levels, 0, 1) * (labels > 0) * 255).astype(np.uint8)
    half = n // 2
    scans = tuple(Scan(f"s{k}", f"s{k}", "A", k * half, half if k == 0 else n, (1.0, 1.0, 1.0)) for k in range(2))
    return ImageSet(pixels, labels > 0, scans), LabelSet(labels, NAMES, scans)


def task_data(size: int = 32) -> TaskData:
    return TaskData(*shapes(24, 0, size), *shapes(8, 1, size))


def tiny(**training: Any) -> Segmenter2d:
    schedule = {"iterations": 60, "batch_size": 8, "validate_every": 20, "learning_rate": 0.01, "step_every": 30}
    return Segmenter2d(filters=(8, 16, 16), training=SegmenterTraining(**{**schedule, **training}))


@dataclass(frozen=True)
class Trained:
    model: Segmenter2d
    state: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    model = tiny()
    return Trained(model, model.train(task_data(), context(tmp_path_factory.mktemp("scratch"))))


# ------------------------------------------------------------------------------- published settings


def test_published_network_has_33_46_million_parameters() -> None:
    with torch.device("meta"):
        network = Segmenter2d()._build(15)
        with torch.no_grad():
            logits = network(torch.empty(2, 1, 256, 256))
    assert logits.shape == (2, 15, 256, 256)
    assert sum(p.numel() for p in network.parameters()) == 33_460_751
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 14_080


def test_published_schedule_survives_a_partial_override() -> None:
    model = Segmenter2d.model_validate({"training": {"iterations": 400}})
    assert model.training.iterations == 400
    assert model.training.batch_size == 64
    assert (model.training.schedule, model.training.step_every, model.training.step_factor) == ("step", 500, 0.5)


def test_every_hyper_parameter_says_where_its_default_comes_from() -> None:
    for group in (Segmenter2d, SegmenterTraining):
        for name, field in group.model_fields.items():
            assert isinstance(field.json_schema_extra, dict), name
            assert field.json_schema_extra["origin"], name
            assert field.description, name


def test_two_stages_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least 3"):
        Segmenter2d(filters=(8, 16))


# ------------------------------------------------------------------------------------------- losses


def test_soft_dice_of_a_certain_prediction() -> None:
    labels = torch.tensor([[[0, 1], [1, 2]]])
    right = 50 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert soft_dice_loss(right, labels, 1e-5).item() == pytest.approx(0, abs=1e-6)
    all_one = torch.zeros(1, 3, 2, 2)
    all_one[:, 1] = 50
    # label 1: 2·2 / (4 + 2); label 2: nothing predicted, one pixel true
    assert soft_dice_loss(all_one, labels, 1e-5).item() == pytest.approx(1 - (4 / 6 + 1e-5) / 2, abs=1e-5)


def test_soft_dice_counts_the_batch_as_one() -> None:
    logits, labels = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 6, 6).long()
    labels[0, :3], labels[1, 3:] = 1, 2
    joined = torch.cat(list(logits), 1)[None], torch.cat(list(labels), 0)[None]
    assert soft_dice_loss(logits, labels, 1e-5).item() == pytest.approx(soft_dice_loss(*joined, 1e-5).item())


def test_mean_dice_by_hand() -> None:
    scans = (Scan("s", "s", "A", 0, 1, (1.0, 1.0, 1.0)),)
    reference = LabelSet(np.array([[[0, 1, 1, 2]]], np.uint8), ("background", "a", "b", "absent"), scans)
    # a: 2·1 / (1 + 2); b: 2·1 / (2 + 1); the absent label does not count
    assert mean_dice(np.array([[[0, 1, 2, 2]]], np.uint8), reference) == pytest.approx(2 / 3)
    empty = LabelSet(np.zeros((1, 1, 4), np.uint8), ("background", "a"), scans)
    assert mean_dice(np.zeros((1, 1, 4), np.uint8), empty) == 0


def test_mean_dice_agrees_with_the_metric_that_is_reported() -> None:
    _, reference = shapes(6, 3)
    predicted = np.where(np.random.default_rng(0).random(reference.labels.shape) < 0.7, reference.labels, 1)
    predicted = predicted.astype(np.uint8)
    expected = np.nanmean(dsc(joint_counts(reference.labels, predicted, 3))[1:])
    assert mean_dice(predicted, reference) == pytest.approx(expected)


# ------------------------------------------------------------------------------------- augmentation


def augmented(model: Segmenter2d, height: int = 32, width: int = 32, n: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A half-bright slice of that shape n times, its pixels coded by the label, moved at random."""
    labels = torch.zeros(n, height, width, dtype=torch.uint8)
    labels[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    pixels = labels[:, None].float()
    moved, moved_labels = model._augment(pixels, labels, torch.Generator().manual_seed(0))
    assert moved.shape == pixels.shape
    assert moved_labels.dtype == torch.uint8
    return moved[:, 0].numpy(), moved_labels.numpy()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64)])
def test_image_and_label_move_alike(height: int, width: int) -> None:
    moved, labels = augmented(Segmenter2d(), height, width)
    assert set(np.unique(labels)) == {0, 1}
    edge = (moved > 0.01) & (moved < 0.99)
    assert np.array_equal(labels[~edge], moved[~edge] > 0.5)
    assert edge.mean() < 0.1
    sizes = labels.sum((1, 2)) / (height * width / 16)
    assert sizes.min() > 0.9**2 * 0.85
    assert sizes.max() < 1.1**2 * 1.15
    assert len(np.unique(sizes)) > 4


def test_a_quarter_turn_is_rigid_on_a_slice_that_is_not_square() -> None:
    """Turning a 8 × 16 pixel box by 90° about the centre of a 32 × 64 slice gives a 16 × 8 box."""
    box = torch.zeros(1, 1, 32, 64)
    box[:, :, 12:20, 24:40] = 1
    one = torch.ones(1)
    grid = torch.nn.functional.affine_grid(
        affine_matrices(one, one * np.pi / 2, one, 0.5), [1, 1, 32, 64], align_corners=False
    )
    turned = torch.nn.functional.grid_sample(box, grid, mode="nearest", align_corners=False)[0, 0]
    assert turned[8:24, 28:36].min() == 1
    assert turned.sum() == 128


def test_flips_are_exact_and_about_half() -> None:
    model = Segmenter2d(rotate_degrees=0, scale=0)
    moved, labels = augmented(model, n=200)
    assert np.allclose(moved, labels, atol=1e-5)
    flipped = labels[:, 10, 20] == 1
    assert 0.35 < flipped.mean() < 0.65
    assert np.array_equal(labels[flipped][0], labels[~flipped][0][:, ::-1])


def test_no_augmentation_is_the_identity() -> None:
    moved, labels = augmented(Segmenter2d(flip=False, rotate_degrees=0, scale=0))
    assert np.array_equal(moved, labels)


def test_a_given_augmentation_replaces_its_own(tmp_path: Path) -> None:
    """It sees raw slices, masks and labels, in training only; doing nothing equals no augmentation."""
    seen: list[tuple[int, ...]] = []

    def nothing(
        pixels: Tensor, mask: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        assert labels is not None
        assert labels.dtype == torch.uint8
        assert torch.equal(mask, labels > 0)  # as the shapes have it
        assert not pixels[:, 0][~mask].any()
        seen.append(tuple(pixels.shape))
        return pixels, labels

    model, key = tiny(iterations=4, validate_every=2), "network.output_block.conv.conv.weight"
    given = model.train(task_data(), context(tmp_path / "given"), nothing)
    assert seen == [(8, 1, 32, 32)] * 4
    plain = model.model_copy(update={"flip": False, "rotate_degrees": 0.0, "scale": 0.0})
    assert torch.equal(given[key], plain.train(task_data(), context(tmp_path / "plain"))[key])
    assert not torch.equal(given[key], model.train(task_data(), context(tmp_path / "own"))[key])


def test_trains_under_bigaug(tmp_path: Path) -> None:
    state = tiny(iterations=4, validate_every=2).train(task_data(), context(tmp_path), BigAug().augment)
    assert 0 <= state["score"] <= 1


def test_an_augmentation_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="returned no labels"):
        tiny().train(task_data(), context(tmp_path), lambda pixels, mask, labels, generator: (pixels, None))


# ---------------------------------------------------------------------------- training and prediction


def test_learns_the_shapes(trained: Trained, tmp_path: Path) -> None:
    images, labels = shapes(10, 7)
    predicted = trained.model.predict(trained.state, images, context(tmp_path))
    assert predicted.shape == images.pixels.shape
    assert predicted.dtype == np.uint8
    assert mean_dice(predicted, labels) > 0.85
    assert trained.state["score"] > 0.85
    assert trained.state["iteration"] % 20 == 0


def test_state_survives_saving(trained: Trained, tmp_path: Path) -> None:
    save_state(tmp_path, trained.state)
    images, _ = shapes(10, 7)
    ctx = context(tmp_path)
    again = trained.model.predict(load_state(tmp_path), images, ctx)
    assert np.array_equal(again, trained.model.predict(trained.state, images, ctx))


def test_each_weight_is_kept_once(trained: Trained) -> None:
    """MONAI registers every block a second time under skip_layers."""
    assert not [key for key in trained.state if "skip_layers" in key]
    network = trained.model.network(trained.state)
    sizes = sum(v.numel() for k, v in trained.state.items() if k.startswith("network.") and "num_batches" not in k)
    running = sum(b.numel() for k, b in network.named_buffers() if "running" in k)
    assert sizes == sum(p.numel() for p in network.parameters()) + running


def test_prediction_depends_on_no_neighbour_and_no_batch_size(trained: Trained, tmp_path: Path) -> None:
    images, _ = shapes(10, 7)
    ctx = context(tmp_path)
    other = trained.model.model_copy(update={"training": SegmenterTraining(batch_size=3)})
    whole = trained.model.predict(trained.state, images, ctx)
    assert (other.predict(trained.state, images, ctx) == whole).mean() > 0.9999


def test_networks_are_fresh_and_leave_the_generator_alone(trained: Trained) -> None:
    before = torch.get_rng_state()
    first, second = trained.model.network(trained.state), trained.model.network(trained.state)
    assert torch.equal(before, torch.get_rng_state())
    assert not first.training
    assert first(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


def test_same_seed_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    model = tiny(iterations=4, validate_every=2)
    states = [model.train(task_data(), context(tmp_path / str(k), seed)) for k, seed in enumerate((5, 5, 6))]
    key = "network.output_block.conv.conv.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_a_size_that_does_not_fit_names_the_field(trained: Trained, tmp_path: Path) -> None:
    data = task_data(size=30)
    problem = "30 × 30 pixels, but filters has 3 stages and needs multiples of 4"
    with pytest.raises(MethodError, match=problem):
        trained.model.train(data, context(tmp_path))
    with pytest.raises(MethodError, match=problem):
        trained.model.predict(trained.state, data.images, context(tmp_path))


def test_conformance() -> None:
    assert not [result for result in check_method(Segmenter2d) if not result.passed]

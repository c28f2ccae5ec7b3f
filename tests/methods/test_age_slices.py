"""Slices of volumes, their moves, and what else the estimators on slices share; the mean age."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from harness.api import Context, MethodError
from harness.brain_age import AgeInputs, AgeTraining, Volume, VolumeScan, VolumeSet
from harness.training import learning_rate_at
from methods.brain_age.arn.method import ArnTraining
from methods.brain_age.augmentation import DRAWS, Augmentation
from methods.brain_age.glt.method import GltTraining
from methods.brain_age.learning import AgeHead, ages_to_learn, own_context, scan_generator
from methods.brain_age.mean_age import MeanAge
from methods.brain_age.slices import Cut, brain_box, central, cut_all, in_chunks, line_weights
from methods.brain_age.tta_2d.method import Tta2d, TtaTraining
from tests.support.ageing import age_training, growing_heads, unread

SPACING = (1.0, 1.0, 1.0)


def coded(shape: tuple[int, int, int], box: tuple[slice, slice, slice]) -> Volume:
    """A volume that is x / 100 + y / 1000 + z / 10000 within the box of its brain."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    mask = np.zeros(shape, bool)
    mask[box] = True
    return Volume(((x / 100 + y / 1000 + z / 10000) * mask).astype(np.float32), mask)


def scan_of(volume: Volume, spacing: tuple[float, float, float] = SPACING, name: str = "s") -> VolumeScan:
    shape = tuple(int(n) for n in volume.mask.shape)
    assert len(shape) == 3
    return VolumeScan(name, name, "A", shape, spacing)


# ------------------------------------------------------------------------------------------------ slices


def test_slices_go_through_the_middle_of_the_brain_along_their_axes() -> None:
    volume = coded((20, 30, 26), (slice(4, 13), slice(5, 22), slice(6, 19)))  # middles 8, 13, 12
    found = Cut(("sagittal", "coronal", "axial"), 1, (30, 40)).of(volume, scan_of(volume))
    assert found.shape == (3, 30, 40)
    assert found.dtype == np.float16
    image = volume.image
    # Rows are 30: half is 14.5; of an odd middle m the first row is voxel m − 15. Columns are 40, the first is m − 20.
    for number, (plane, rows, columns) in enumerate(
        ((image[8].T, 12, 13), (image[:, 13].T, 12, 8), (image[:, :, 12], 8, 13))
    ):
        expected = np.zeros((30, 40), np.float32)
        for r in range(30):
            for c in range(40):
                i, j = rows - 15 + r, columns - 20 + c
                if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                    expected[r, c] = plane[i, j]
        assert np.array_equal(found[number], expected.astype(np.float16))


def test_a_smaller_size_cuts_about_the_middle() -> None:
    volume = coded((20, 30, 26), (slice(4, 13), slice(5, 22), slice(6, 19)))
    found = Cut(("axial",), 1, (3, 5)).of(volume, scan_of(volume))
    assert np.array_equal(found[0], volume.image[7:10, 11:16, 12].astype(np.float16))


def test_slices_are_neighbours_or_apart_and_stay_within_the_brain() -> None:
    assert central((4, 13), 3, 1.0) == [8, 9, 10]  # about 8.5, halves go up
    assert central((4, 12), 3, 1.0) == [7, 8, 9]
    assert central((4, 12), 2, 1.0) == [8, 9]
    assert central((4, 12), 3, 2.5) == [6, 8, 11]
    assert central((7, 9), 5, 2.0) == [7, 7, 8, 9, 9]
    volume = coded((20, 30, 26), (slice(4, 13), slice(5, 22), slice(6, 19)))
    apart = Cut(("axial",), 3, (20, 30), apart_mm=6.0).of(volume, scan_of(volume, (1.0, 1.0, 2.0)))
    near = Cut(("axial",), 7, (20, 30)).of(volume, scan_of(volume, (1.0, 1.0, 2.0)))
    assert np.array_equal(apart, near[[0, 3, 6]])


def test_pixels_are_means_over_their_own_size_in_millimetres() -> None:
    plain = line_weights(9, (0, 8), 1.0, 5, None)
    assert np.array_equal(plain, np.eye(9)[2:7])
    assert np.array_equal(line_weights(9, (0, 8), 1.0, 5, 1.0), plain)
    halved = line_weights(40, (0, 39), 1.0, 10, 2.0)
    assert halved.sum(1) == pytest.approx(np.ones(10), abs=1e-6)
    centres = halved @ np.arange(40)
    assert centres == pytest.approx(19.5 + 2 * (np.arange(10) - 4.5), abs=1e-5)
    assert ((halved > 0).sum(1) >= 3).all()  # averaged, not picked
    finer = line_weights(40, (0, 39), 1.0, 10, 0.5)
    assert finer @ np.arange(40) == pytest.approx(19.5 + 0.5 * (np.arange(10) - 4.5), abs=1e-5)


def test_a_head_has_the_same_slices_whatever_its_voxels() -> None:
    """One sphere of 20 mm, sampled at 1 and at 2 × 1 × 1.5 mm."""
    found = []
    for spacing in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.5)):
        shape = tuple(round(60 / s) for s in spacing)
        mm = np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
        )
        mask = sum(m**2 for m in mm) < 20**2
        volume = Volume(mask.astype(np.float32) * 0.8, mask)
        cut = Cut(("sagittal", "coronal", "axial"), 1, (24, 24), 2.0)
        found.append(cut.of(volume, scan_of(volume, spacing)).astype(float))
    area = [own.sum((1, 2)) * 4 / 0.8 for own in found]
    assert np.asarray(area) == pytest.approx(np.pi * 400, rel=0.03)
    assert np.abs(found[0] - found[1]).mean() < 0.02


def test_a_volume_without_a_brain_is_refused_by_name() -> None:
    empty = Volume(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool))
    assert brain_box(empty.mask) is None
    with pytest.raises(MethodError, match="scan odd has no brain voxel"):
        Cut(("axial",), 1, (8, 8)).of(empty, scan_of(empty, name="odd"))


def test_volumes_are_read_once_each_in_chunks_or_at_once() -> None:
    volumes, _ = growing_heads(5, 3)
    reads: list[int] = []

    def read(index: int) -> Volume:
        reads.append(index)
        return volumes[index]

    counted = VolumeSet(volumes.scans, read)
    cut = Cut(("axial", "coronal"), 3, (16, 20), 4.0)
    whole = cut_all(counted, cut)
    assert whole.shape == (5, 6, 16, 20)
    assert reads == [0, 1, 2, 3, 4]
    chunks = list(in_chunks(counted, cut, 2))
    assert [chosen for chosen, _ in chunks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert np.array_equal(np.concatenate([pixels for _, pixels in chunks]), whole)
    assert reads == [0, 1, 2, 3, 4] * 2


# ---------------------------------------------------------------------------------------------- moves


def still(count: int = 1) -> torch.Tensor:
    """Draws in the middle of every range, without a mirror, undimmed."""
    draws = torch.full((count, DRAWS), 0.5)
    draws[:, 6] = 0
    return draws


def drawn(**changes: float) -> torch.Tensor:
    names = ("angle", "rows", "columns", "shear", "flip_rows", "flip_columns", "dim")
    draws = still()
    for name, value in changes.items():
        draws[0, names.index(name)] = value
    return draws


def pattern(height: int = 9, width: int = 13) -> torch.Tensor:
    return torch.rand((1, 2, height, width), generator=torch.Generator().manual_seed(0))


def test_nothing_moves_in_the_middle_of_the_ranges() -> None:
    x, wide = pattern(), Augmentation(rotate_degrees=90, shift=0.3, shear_degrees=20, flip_rows=True, dim_to=0.5)
    assert torch.allclose(wide.apply(x, still()), x, atol=1e-5)
    assert torch.allclose(Augmentation().apply(x, torch.rand(1, DRAWS)), x, atol=1e-5)


def test_each_move_is_what_it_says() -> None:
    x = pattern()
    up = Augmentation(flip_rows=True).apply(x, drawn(flip_rows=0.1))
    assert torch.allclose(up, x.flip(2), atol=1e-5)
    side = Augmentation(flip_columns=True).apply(x, drawn(flip_columns=0.1))
    assert torch.allclose(side, x.flip(3), atol=1e-5)
    half = Augmentation(rotate_degrees=360).apply(x, drawn(angle=0.75))  # 180 degrees
    assert torch.allclose(half, x.flip(2, 3), atol=1e-4)
    square = x[..., :9]
    quarter = Augmentation(rotate_degrees=90).apply(square, drawn(angle=1.0))
    assert any(torch.allclose(quarter, square.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))
    moved = Augmentation(shift=3 / 9).apply(x, drawn(rows=1.0))
    assert torch.allclose(moved[:, :, :-3], x[:, :, 3:], atol=1e-4)
    assert moved[:, :, -3:].abs().max() < 1e-4
    moved = Augmentation(shift=2 / 13).apply(x, drawn(columns=0.0))
    assert torch.allclose(moved[..., 2:], x[..., :-2], atol=1e-4)
    assert torch.allclose(Augmentation(dim_to=0.5).apply(x, drawn(dim=1.0)), x / 2, atol=1e-5)


def test_a_turn_is_rigid_on_slices_that_are_not_square() -> None:
    rows, columns = np.mgrid[:40, :64]
    bar = (np.abs(rows - 19.5) < 4) & (np.abs(columns - 31.5) < 14)
    turned = Augmentation(rotate_degrees=90).apply(torch.from_numpy(bar[None, None].astype(np.float32)), drawn(angle=1))
    expected = (np.abs(columns - 31.5) < 4) & (np.abs(rows - 19.5) < 14)
    assert np.abs(turned[0, 0].numpy() - expected).max() < 1e-3


def test_a_shear_moves_columns_by_their_row() -> None:
    rows, columns = np.mgrid[:41, :41] - 20
    bar = torch.from_numpy((np.abs(columns) < 3).astype(np.float32))[None, None]
    sheared = Augmentation(shear_degrees=45).apply(bar, drawn(shear=1.0))[0, 0].numpy()
    assert np.abs(sheared - (np.abs(columns + rows) < 3))[:, 5:-5].mean() < 0.01


def test_moves_are_exact_under_mixed_precision() -> None:
    x, draws = pattern(138, 176), drawn(angle=0.6, rows=0.7)
    moves = Augmentation(rotate_degrees=30, shift=0.1, shear_degrees=10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = moves.apply(x, draws)
    assert torch.equal(within, moves.apply(x, draws))


def test_samples_move_each_by_its_own_draws() -> None:
    x, range_ = pattern().repeat(3, 1, 1, 1), Augmentation(rotate_degrees=30, shift=0.1, dim_to=0.7)
    draws = torch.rand((3, DRAWS), generator=torch.Generator().manual_seed(1))
    together = range_.apply(x, draws)
    for index in range(3):
        assert torch.allclose(together[index], range_.apply(x[:1], draws[index : index + 1])[0], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.05)
    first, again = (range_.random(x, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again)


# --------------------------------------------------------------------------------------------- the rest


def test_passes_become_iterations_with_the_lengths_that_are_told_in_passes() -> None:
    arn = ArnTraining(batch_size=16).over(334)  # 21 batches
    assert (arn.iterations, arn.validate_every, arn.inverse_every, arn.inverse_after) == (1050, 21, 21, 441)
    rates = [learning_rate_at(arn, i) for i in (0, 440, 441, 461, 462, 1049)]
    assert rates == pytest.approx([0.01, 0.01, *(0.01 / (1 + 0.05 * passes) for passes in (21, 21, 22, 49))])
    glt = GltTraining().over(334)  # 42 batches of 8
    assert (glt.iterations, glt.validate_every) == (80 * 42, 42)
    assert [learning_rate_at(glt, i) for i in (0, 839, 840, 3359)] == pytest.approx([1e-4, 1e-4, 5e-5, 1.25e-5])
    tta = TtaTraining().over(4000)
    assert (tta.iterations, tta.validate_every, tta.patience) == (500_000, 50, 150)
    assert learning_rate_at(tta, 1000) == pytest.approx(0.05)
    own = ArnTraining(epochs=None, iterations=7, inverse_after=3)
    assert own.over(334) == own


def test_a_head_computes_in_float32_whatever_is_around_it() -> None:
    head = AgeHead(8, 38.0)
    features = torch.rand(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ages = head(features.bfloat16())
        rounded = nn.functional.linear(features, head.weight, head.bias)
    assert ages.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    exact = nn.functional.linear(features.bfloat16().float(), head.weight, head.bias)[:, 0]
    assert torch.allclose(ages, exact, atol=1e-5)


def test_draws_of_a_scan_and_seeds_of_networks_are_their_own(ctx: Context) -> None:
    scans = growing_heads(2, 0)[0].scans
    first, same, other = scan_generator(scans[0], 1), scan_generator(scans[0], 1), scan_generator(scans[1], 1)
    value = first.random()
    assert value == same.random()
    assert value != other.random()
    assert value != scan_generator(replace(scans[0], site="elsewhere"), 1).random()
    assert value != scan_generator(scans[0], 2).random()
    seeds = [own_context(ctx, number).seed for number in range(4)]
    assert len({*seeds, ctx.seed}) == 5
    assert seeds[1] == own_context(ctx, 1).seed


def test_ages_that_cannot_be_learnt_are_refused() -> None:
    data = age_training(4, 2)
    with pytest.raises(MethodError, match="all 4 training scans have the same age"):
        ages_to_learn(replace(data, ages=np.full(4, 30.0)))
    with pytest.raises(MethodError, match="ages of 1 validation scans are unknown, first B1"):
        ages_to_learn(replace(data, validation_ages=np.array([30.0, np.nan])))
    empty = AgeInputs(data.validation.volumes.take([]))
    with pytest.raises(MethodError, match="there is no validation scan"):
        ages_to_learn(replace(data, validation=empty, validation_ages=np.zeros(0)))


def test_rows_say_which_published_values_they_leave() -> None:
    assert Tta2d(pixel_mm=None).deviations() == ()
    assert Tta2d().deviations() == ("slices resampled to 0.8 mm",)
    small = Tta2d.model_validate(
        {"pixel_mm": None, "slices": 3, "size": (64, 64), "training": {"learning_rate": 1e-3}, "passes": 5}
    )
    assert small.deviations() == ("not as published: size, training.learning_rate, passes",)


def test_the_mean_age_opens_no_scan(ctx: Context) -> None:
    data = age_training(6, 2)
    scans = data.train.scans
    blind = AgeTraining(AgeInputs(unread(scans)), data.ages, AgeInputs(unread(data.validation.scans)), data.ages[:2])
    state = MeanAge().fit(blind, ctx)
    found = MeanAge().predict(state, AgeInputs(unread(scans[:3])), ctx)
    assert found.ages == pytest.approx(np.full(3, data.ages.mean()))
    assert found.sds == pytest.approx(np.full(3, data.ages.std()))
    with pytest.raises(MethodError, match="there is no training scan"):
        MeanAge().fit(replace(blind, train=AgeInputs(unread(())), ages=np.zeros(0)), ctx)

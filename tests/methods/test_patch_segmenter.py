"""The segmenter of 3-D patches: networks, loss, patches, sums of windows, and what it learns."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness.api import Context, MethodError
from harness.brain_age import RegionSet, SegmentationTraining, Volume, VolumeScan, VolumeSet
from harness.data.arrays import load_state, save_state
from harness.training import learning_rate_at, seeded
from methods.brain_age.patch_segmenter.losses import cross_entropy, soft_dice, sums_of
from methods.brain_age.patch_segmenter.method import PatchSegmenter
from methods.brain_age.patch_segmenter.networks import UNet, build, strides_of
from methods.brain_age.patch_segmenter.patches import Grid, PatchSource, brain_box, window
from methods.brain_age.patch_segmenter.settings import PatchTraining
from methods.brain_age.patch_segmenter.windows import Windows, label_map

NAMES = ("background", "rest", "bright", "dark", "skull", "never")
IGNORED = (4,)


def context(scratch: Path, seed: int = 1) -> Context:
    return Context(seed, "cpu", scratch, lambda name, step, value: None)


def scan(index: int, shape: tuple[int, ...]) -> VolumeScan:
    x, y, z = shape
    return VolumeScan(f"s{index}", f"p{index}", "A", (x, y, z), (1.0, 1.0, 1.0))


def blob(seed: int, shape: tuple[int, int, int] = (24, 30, 22)) -> tuple[Volume, np.ndarray]:
    """A noisy grey ellipsoid with a bright and a dark ball at random places, and a labelled skull outside its mask."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    middle, radii = np.array(shape) / 2, np.array(shape) / 2 - 2
    mask = (((grid - middle) / radii) ** 2).sum(-1) < 1
    labels = np.where(mask, 1, 4).astype(np.uint8)
    for label, side in ((2, -1), (3, 1)):
        centre = middle + rng.uniform(-1.5, 1.5, 3)
        centre[1] += side * shape[1] / 5
        labels[(((grid - centre) ** 2).sum(-1) < 4.5**2) & mask] = label
    levels = np.array([0, 0.5, 0.9, 0.2, 0, 0], np.float32)[labels] + rng.normal(0, 0.04, shape)
    return Volume((np.clip(levels, 0, 1) * mask).astype(np.float32), mask), labels


def cohort(seeds: range, shape: tuple[int, int, int] = (24, 30, 22)) -> tuple[VolumeSet, RegionSet]:
    found = [blob(seed, shape) for seed in seeds]
    scans = tuple(scan(seed, shape) for seed in seeds)
    volumes = VolumeSet(scans, lambda index: found[index][0])
    return volumes, RegionSet(scans, NAMES, lambda index: found[index][1], IGNORED)


def one(volume: Volume, labels: np.ndarray, ignored: tuple[int, ...] = IGNORED) -> tuple[VolumeSet, RegionSet]:
    scans = (scan(0, volume.mask.shape),)
    return VolumeSet(scans, lambda index: volume), RegionSet(scans, NAMES, lambda index: labels, ignored)


# ------------------------------------------------------------------------------- published settings


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(128, (1, 2, 2, 2, 2, 2)), (256, (1, 2, 2, 2, 2, 2)), (64, (1, 2, 2, 2, 2)), (32, (1, 2, 2, 2)), (16, (1, 2, 2))],
)
def test_levels_follow_from_the_patch(patch: int, strides: tuple[int, ...]) -> None:
    assert strides_of(patch) == strides
    assert patch // 2 ** (len(strides) - 1) >= 4


def test_published_network_has_31_19_million_parameters() -> None:
    published = PatchSegmenter()
    with torch.device("meta"):
        network = build(published.network, published.patch, published.filters, 88)
        small = build("dynunet", 64, published.filters, 88)
        with torch.no_grad():
            assert network(torch.empty(1, 1, 128, 128, 128)).shape == (1, 88, 128, 128, 128)
    assert sum(p.numel() for p in network.parameters()) == 31_192_248
    assert sum(p.numel() for p in small.parameters()) == 16_546_488
    assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())


def test_plain_unet_has_the_same_levels_with_batch_normalisation_and_relu() -> None:
    filters = PatchSegmenter().filters
    with torch.device("meta"):
        network = build("unet", 128, filters, 88)
        with torch.no_grad():
            assert network(torch.empty(2, 1, 64, 64, 64)).shape == (2, 88, 64, 64, 64)
    doubled = [(1, 32), *pairwise(filters), *((2 * f, f) for f in filters[:-1])]
    expected = sum(27 * (a * b + b * b) + 4 * b for a, b in doubled)
    expected += sum(8 * a * b + b for b, a in pairwise(filters)) + 32 * 88 + 88
    assert sum(p.numel() for p in network.parameters()) == expected
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert len(norms) == len([m for m in network.modules() if isinstance(m, nn.ReLU)]) == 22


def test_plain_unet_sees_as_far_as_its_deepest_level() -> None:
    with seeded(0):
        network = UNet(3, (8, 8, 8)).eval()
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network(image)[0, :, 16, 16, 16].sum().backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs().sum((1, 2)).nonzero()[:, 0]
    # Convolutions reach 4 voxels at full size, 4 · 2 at half and 2 · 4 at a quarter: without the last, 14 at most.
    assert (int(seen.min()), int(seen.max())) == (0, 31)


def test_rates_of_the_code_and_of_the_thesis() -> None:
    code = PatchTraining().over(800)
    assert (code.iterations, code.step_every, code.validate_every) == (10_000, 2000, 100)
    rates = [learning_rate_at(code, i) for i in (0, 1999, 2000, 4000, 9999)]
    assert rates == pytest.approx([0.01, 0.01, 0.0025, 0.0025, 0.0025])
    thesis = PatchTraining(learning_rate=1e-3, step_factor=0.5, step_drops=None, batch_size=32).over(3200)
    assert [learning_rate_at(thesis, i) for i in (1999, 2000, 4000)] == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_length_in_iterations_where_there_are_no_epochs() -> None:
    training = PatchSegmenter.model_validate({"training": {"epochs": None, "iterations": 30}}).training
    assert training.over(800) == training
    assert training.iterations == 30
    assert (training.learning_rate, training.betas, training.batch_size) == (1e-2, (0.9, 0.99), 8)


def test_every_hyper_parameter_says_where_its_default_comes_from() -> None:
    for group in (PatchSegmenter, PatchTraining):
        for name, field in group.model_fields.items():
            assert isinstance(field.json_schema_extra, dict), name
            assert field.json_schema_extra["origin"], name
            assert field.description, name
    assert set(PatchSegmenter.late_fields) <= set(PatchSegmenter.model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 100}, "multiple of 16, such as 96 or 112"),
        ({"patch": 8}, "greater than or equal to 16"),
        ({"filters": (8, 16)}, "6 levels"),
        ({"patch": 16, "filters": (8, 16, 16)}, "must not exceed patch, 16"),
        ({"window_stride": 129}, "must not exceed patch, 128"),
        ({"intensity": (1.4, 0.6)}, "low ≤ high"),
        ({"mask_input": "labels"}, "brain"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PatchSegmenter.model_validate(fields)


# ------------------------------------------------------------------------------------------- losses


def plain_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and the Dice of each label with one-hot planes, as it is written."""
    probabilities = logits.softmax(1)
    truth = F.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    over = (0, 2, 3, 4)
    dice = 2 * (probabilities * truth).sum(over) / ((probabilities**2).sum(over) + (truth**2).sum(over))
    return F.cross_entropy(logits, labels.long()), dice


def test_loss_by_hand() -> None:
    labels = torch.tensor([0, 1, 1, 0], dtype=torch.uint8).reshape(1, 1, 1, 4)
    chances = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    sums = sums_of(chances.clamp(min=1e-30).log().T.reshape(1, 3, 1, 1, 4), labels)
    assert float(cross_entropy(sums)) == pytest.approx(-np.log([0.5, 0.75, 0.5, 1.0]).mean())
    # label 0: Σ p·y = 1.5, Σ p² = 1.5625, 2 voxels; label 1: 1.25, 1.0625, 2; label 2 neither occurs nor is it found
    assert soft_dice(sums).tolist() == pytest.approx([3 / 3.5625, 2.5 / 3.0625, 0])


def test_loss_and_gradient_equal_those_with_one_hot_planes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 5, 4, 6, 5, generator=generator)
    labels = torch.randint(4, (3, 4, 6, 5), generator=generator).to(torch.uint8)  # label 4 does not occur
    gradients = []
    for losses in (lambda x: plain_losses(x, labels), lambda x: (cross_entropy(s := sums_of(x, labels)), soft_dice(s))):
        x = logits.clone().requires_grad_()
        entropy, dice = losses(x)
        (entropy + 1 - dice.mean()).backward()
        assert x.grad is not None
        gradients.append((entropy.detach(), dice.detach(), x.grad))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert gradients[1][1][4] == 0


def test_half_precision_logits_are_summed_in_full() -> None:
    logits = torch.full((1, 2, 16, 16, 16), 0.5, dtype=torch.bfloat16)
    sums = sums_of(logits, torch.zeros(1, 16, 16, 16, dtype=torch.uint8))
    assert sums.squares.tolist() == pytest.approx([1024, 1024], rel=1e-6)
    assert float(cross_entropy(sums)) == pytest.approx(np.log(2), rel=1e-6)


# ------------------------------------------------------------------------------------------ patches


def test_window_beyond_the_edges_is_zero() -> None:
    array = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    padded = np.pad(array, 5)
    for start in product((-5, -1, 0, 1), (-4, 0, 2), (-2, 3, 8)):
        a, b, c = (s + 5 for s in start)
        assert np.array_equal(window(array, start, (3, 2, 1)), padded[a : a + 3, b : b + 2, c : c + 1])


def test_box_of_the_brain() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert brain_box(mask) == ((0, 0, 0), (0, 0, 0))
    mask[1, 2:4, 6] = mask[3, 2, 5] = True
    assert brain_box(mask) == ((1, 2, 5), (3, 2, 2))


def test_the_grid_reaches_the_end_of_the_brain_wherever_it_starts() -> None:
    grid = Grid(size=16, stride=8, jitter=15, least=0)
    extents = np.arange(1, 60)
    ends = 8 * (grid.counts(extents) - 1) + 16
    assert (ends >= extents).all()
    assert (ends - 8 < np.maximum(extents, 9)).all()  # and no patch too many


def test_patches_are_cut_alike_from_image_and_labels_within_the_jitter() -> None:
    shape = (40, 20, 20)
    code = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape) / 2**15  # exact, and says where it was
    mask = np.zeros(shape, bool)
    mask[6:36, 4:16, 4:16] = True
    labels = np.where(mask, 1 + np.arange(40)[:, None, None] % 3, 0).astype(np.uint8)
    source = PatchSource(*one(Volume(code, mask), labels), Grid(16, 8, 3, 20), "training")
    assert len(source) == 3
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        image, found = source.draw(rng)
        inside = image > 0
        where = np.unravel_index(np.rint(image[inside] * 2**15).astype(int) - 1, shape)
        assert np.array_equal(labels[where], found[inside])
        assert mask[where].all()
        assert not found[~inside].any()
        begin = {int(a - b) for a, b in zip(where[0], np.nonzero(inside)[0], strict=True)}
        assert len(begin) == 1
        seen |= begin
    # The grid starts 0..3 voxels before voxel 6; three patches reach the brain's end at 36, from 3 voxels before four.
    assert seen == {6 - shift + 8 * k for shift in range(4) for k in range(4 if shift == 3 else 3)}


def test_scans_are_drawn_by_their_patches() -> None:
    big, small = blob(0, (48, 30, 24)), blob(1, (20, 18, 18))
    scans = (scan(0, (48, 30, 24)), scan(1, (20, 18, 18)))
    pairs = (big, small)
    drawn: list[int] = []

    def read(index: int) -> Volume:
        drawn.append(index)
        return pairs[index][0]

    volumes = VolumeSet(scans, read)
    source = PatchSource(
        volumes, RegionSet(scans, NAMES, lambda i: pairs[i][1], IGNORED), Grid(16, 8, 0, 1), "training"
    )
    assert source.per_scan.tolist() == [5 * 3 * 2, 1]
    assert drawn == [0, 1]
    rng = np.random.default_rng(0)
    for _ in range(600):
        source.draw(rng)
    assert np.mean(np.array(drawn[2:]) == 1) == pytest.approx(1 / 31, abs=0.025)


def test_no_volume_is_kept() -> None:
    shape = (24, 30, 22)
    handed: list[weakref.ref[np.ndarray]] = []

    def read(index: int) -> Volume:
        volume, _ = blob(index)
        handed.append(weakref.ref(volume.image))
        return volume

    scans = tuple(scan(i, shape) for i in range(4))
    regions = RegionSet(scans, NAMES, lambda index: blob(index)[1], IGNORED)
    source = PatchSource(VolumeSet(scans, read), regions, Grid(16, 8, 3, 20), "training")
    rng = np.random.default_rng(0)
    patches = [source.draw(rng) for _ in range(4)]
    assert len(patches) == 4
    assert len(handed) >= 8
    assert not any(reference() is not None for reference in handed)


def test_ignored_labels_are_background_and_empty_patches_are_drawn_again() -> None:
    volumes, regions = cohort(range(2))
    source = PatchSource(volumes, regions, Grid(16, 8, 3, 20), "training")
    rng = np.random.default_rng(0)
    for _, labels in (source.draw(rng) for _ in range(40)):
        assert labels.max() <= 3
        assert labels.sum() >= 20
    volume, labels = blob(0)
    corner = np.zeros_like(labels)
    corner[:8, :12, :10] = labels[:8, :12, :10]
    source = PatchSource(*one(volume, corner), Grid(16, 8, 3, 20), "training")
    assert all((source.draw(rng)[1] > 0).any() for _ in range(20))
    assert 0 < len(list(source.every(rng))) < len(source)


def test_data_that_cannot_be_learnt_from_are_told_in_one_line() -> None:
    volume, labels = blob(0)
    grid = Grid(16, 8, 3, 20)

    def draw(volumes: VolumeSet, regions: RegionSet) -> None:
        PatchSource(volumes, regions, grid, "training").draw(np.random.default_rng(0))

    wrong: list[tuple[str, Callable[[], None]]] = [
        ("1000 training patches none", lambda: draw(*one(volume, np.zeros_like(labels)))),
        ("1000 training patches none", lambda: draw(*one(volume, labels, ignored=(1, 2, 3, 4)))),
        ("label 9 has no name", lambda: draw(*one(volume, np.full_like(labels, 9)))),
        ("label map is", lambda: draw(*one(volume, labels[:-1]))),
        ("no training volume has a brain", lambda: draw(*one(Volume(volume.image, volume.mask & False), labels))),
        ("1 training volumes, but 0", lambda: draw(one(volume, labels)[0], one(volume, labels)[1].take([]))),
    ]
    for message, attempt in wrong:
        with pytest.raises(MethodError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ windows


def toy_network(n_labels: int = 4) -> nn.Module:
    """Sees edges, and by its normalisation the whole window: what it says of a voxel depends on where windows lie."""
    with seeded(3):
        return nn.Sequential(
            nn.Conv3d(1, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.ReLU(), nn.Conv3d(6, n_labels, 1)
        ).eval()


def naive_sums(network: nn.Module, volume: Volume, windows: Windows, n_labels: int) -> np.ndarray:
    """Sums over the whole box at once, in float64 [n_labels, X, Y, Z]; the box begins at 0 and is large enough."""
    starts = [sorted({*range(0, n - windows.patch + 1, windows.stride), n - windows.patch}) for n in volume.mask.shape]
    sums = np.zeros((n_labels, *volume.mask.shape))
    for a, b, c in product(*starts):
        there = tuple(slice(s, s + windows.patch) for s in (a, b, c))
        with torch.no_grad():
            logits = network(torch.from_numpy(volume.image[there])[None, None])
        sums[(slice(None), *there)] += logits.double().softmax(1)[0].numpy()
    return sums


def solid(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    """Noise whose mask has holes, but touches all sides of the array."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.8
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    return Volume((rng.random(shape, dtype=np.float32) * mask), mask)


@pytest.mark.parametrize(("extent", "starts"), [(16, [0]), (17, [0, 1]), (24, [0, 8]), (30, [0, 8, 14])])
def test_the_last_window_lies_at_the_far_end(extent: int, starts: list[int]) -> None:
    assert Windows(16, 8).starts(extent) == starts


@pytest.mark.parametrize("shape", [(41, 20, 26), (20, 41, 26), (20, 26, 41), (16, 16, 16), (17, 33, 16)])
@pytest.mark.parametrize(("stride", "batch"), [(8, 1), (5, 4), (16, 3)])
def test_labels_are_those_of_the_sums_over_the_whole_volume(
    shape: tuple[int, int, int], stride: int, batch: int
) -> None:
    network, volume, windows = toy_network(), solid(shape), Windows(16, stride, batch)
    sums = naive_sums(network, volume, windows, 4)
    found = label_map(network, volume, windows, 4, "cpu")
    assert not found[~volume.mask].any()
    chosen = np.take_along_axis(sums, found[None].astype(np.int64), 0)[0]
    assert (chosen >= sums.max(0) - 1e-4)[volume.mask].all()  # float32 may take either of two that are equal
    assert (found == sums.argmax(0))[volume.mask].mean() > 0.999
    assert len(np.unique(found)) > 2


def test_windows_depend_on_the_brain_and_not_on_the_crop() -> None:
    network, volume, windows = toy_network(), solid((30, 18, 20)), Windows(16, 8, 2)
    expected = label_map(network, volume, windows, 4, "cpu")
    for before, after in (((3, 0, 5), (0, 7, 1)), ((20, 1, 0), (9, 9, 9))):
        padding = tuple(zip(before, after, strict=True))
        padded = Volume(np.pad(volume.image, padding), np.pad(volume.mask, padding))
        assert np.array_equal(label_map(network, padded, windows, 4, "cpu"), np.pad(expected, padding))


def test_a_brain_smaller_than_a_window_is_padded() -> None:
    network, small = toy_network(), solid((9, 30, 12))
    found = label_map(network, small, Windows(16, 8), 4, "cpu")
    padding = ((0, 7), (0, 0), (0, 4))
    room = Volume(np.pad(small.image, padding), np.pad(small.mask, padding))
    sums = naive_sums(network, room, Windows(16, 8), 4)[:, :9, :, :12]
    assert (found == sums.argmax(0))[small.mask].mean() > 0.999
    empty = Volume(small.image, np.zeros_like(small.mask))
    assert not label_map(network, empty, Windows(16, 8), 4, "cpu").any()


def test_what_lies_outside_the_mask_changes_nothing() -> None:
    network, volume = toy_network(), solid((24, 20, 20))
    noise = np.random.default_rng(5).random(volume.image.shape, dtype=np.float32)
    dirty = Volume(np.where(volume.mask, volume.image, noise), volume.mask)
    clean, other = (label_map(network, v, Windows(16, 8), 4, "cpu") for v in (volume, dirty))
    assert np.array_equal(clean, other)


class Held(TorchDispatchMode):
    """Most bytes of tensors that were alive at once, of those made while it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_memory_does_not_grow_with_the_length_of_the_brain() -> None:
    n_labels, windows = 32, Windows(16, 8)
    with seeded(0):
        network = nn.Conv3d(1, n_labels, 1).eval()
    peaks = []
    for length in (40, 160):
        with Held() as held:
            label_map(network, solid((20, length, 18)), windows, n_labels, "cpu")
        peaks.append(held.peak)
    slab, shown = 4 * n_labels * 16 * 20 * 18, 4 * n_labels * 16**3
    label_maps = 20 * 160 * 18
    assert slab <= peaks[1] <= slab + 4 * shown + 8 * label_maps
    assert peaks[1] - peaks[0] <= 8 * label_maps  # the sums of all labels would grow by 5.5 MB


# ----------------------------------------------------------------------------------------- learning


def tiny(**fields: Any) -> PatchSegmenter:
    training = {"epochs": None, "iterations": 120, "batch_size": 4, "validate_every": 40, "step_every": 80}
    return PatchSegmenter.model_validate(
        {
            "filters": (8, 16, 16),
            "patch": 16,
            "stride": 8,
            "jitter": 3,
            "window_batch": 4,
            "training": training | fields.pop("training", {}),
            **fields,
        }
    )


def data() -> SegmentationTraining:
    volumes, regions = cohort(range(4))
    validation_volumes, validation_regions = cohort(range(10, 11))
    return SegmentationTraining(volumes, regions, validation_volumes, validation_regions)


def dice(found: np.ndarray, truth: np.ndarray, label: int) -> float:
    a, b = found == label, truth == label
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module", params=["dynunet", "unet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchSegmenter, Any]:
    model = tiny(network=request.param)
    scratch = tmp_path_factory.mktemp("scratch")
    save_state(scratch, model.fit(data(), context(scratch)))
    return model, load_state(scratch)


def test_learns_regions_of_people_it_has_not_seen(trained: tuple[PatchSegmenter, Any], tmp_path: Path) -> None:
    model, state = trained
    volumes, regions = cohort(range(20, 22))
    for volume, truth, found in zip(volumes, regions, model.segment(state, volumes, context(tmp_path)), strict=True):
        assert found.dtype == np.uint8
        assert not found[~volume.mask].any()
        scores = [dice(found, truth, label) for label in (1, 2, 3)]
        assert min(scores) > 0.8, scores  # a label at random: below 0.4
    assert state["score"] > 0.7


def test_a_volume_is_segmented_alone(trained: tuple[PatchSegmenter, Any], tmp_path: Path) -> None:
    model, state = trained
    volumes, _ = cohort(range(20, 23))
    together = list(model.segment(state, volumes, context(tmp_path)))
    alone = next(model.segment(state, volumes.take([1]), context(tmp_path, seed=9)))
    assert np.array_equal(together[1], alone)
    assert not np.array_equal(together[1], together[0])


def test_one_volume_at_a_time_is_read(trained: tuple[PatchSegmenter, Any], tmp_path: Path) -> None:
    model, state = trained
    volumes, _ = cohort(range(20, 22))
    read: list[int] = []

    def watched(index: int) -> Volume:
        read.append(index)
        return volumes[index]

    found = model.segment(state, VolumeSet(volumes.scans, watched), context(tmp_path))
    assert read == []
    next(found)
    assert read == [0]


def test_a_training_depends_on_its_seed_alone(tmp_path: Path) -> None:
    short = {"training": {"iterations": 3, "validate_every": 3}}
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(states))
        before = torch.random.get_rng_state()
        states.append(tiny(**short).fit(data(), context(tmp_path / name, seed)))
        assert torch.equal(before, torch.random.get_rng_state())
    key = next(key for key in states[0] if key.startswith("network."))
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])
    assert states[0]["score"] == states[1]["score"]


def test_labels_outside_the_validation_patches_are_told(tmp_path: Path) -> None:
    volumes, regions = cohort(range(2))
    empty = RegionSet(regions.scans, NAMES, lambda index: np.zeros_like(regions[index]), IGNORED)
    with pytest.raises(MethodError, match="no validation patch has labels"):
        tiny(training={"iterations": 1}).fit(SegmentationTraining(volumes, regions, volumes, empty), context(tmp_path))


def test_the_example_fits_and_segments(tmp_path: Path) -> None:
    model = PatchSegmenter.example()
    state = model.fit(data(), context(tmp_path))
    volumes, _ = cohort(range(20, 21), shape=(14, 20, 18))
    assert next(model.segment(state, volumes, context(tmp_path))).shape == (14, 20, 18)

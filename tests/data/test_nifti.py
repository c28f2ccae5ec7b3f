"""Real NIfTI files into slices: orientation, cutting, grey levels, labels, shifts, keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nifti_files import SHAPE, head, write_scan, write_volume

from harness import yamlfile
from harness.data import arrays, volumes
from harness.data.card import load_card, read_card
from harness.data.dataset import Dataset, open_dataset
from harness.data.nifti import NiftiDataset
from harness.data.schema import SPLITS, Bias, Shift, Slices
from harness.data.shift import apply_shift
from harness.engine.plan import Stage

CardFile = Callable[..., Path]
RunStage = Callable[[Stage], Path]


def dataset(root: Path | None, card: Path, cache: Path | None = None) -> NiftiDataset:
    found = open_dataset(read_card(card), root, cache or card.parent / "cache")
    assert isinstance(found, NiftiDataset)
    return found


# ------------------------------------------------------------------------------------------ orientation


def corner_cube(axes: str) -> tuple[np.ndarray, np.ndarray]:
    """A cube stored along `axes` (as "LIA"), with 10, 20, 30 at its right, anterior and superior faces' middles."""
    import nibabel as nib

    ras = np.full((9, 9, 9), 1, np.uint8)
    ras[8, 4, 4], ras[4, 8, 4], ras[4, 4, 8] = 10, 20, 30
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    stored = nib.orientations.apply_orientation(ras, change)
    affine = np.eye(4) @ nib.orientations.inv_ornt_aff(change, ras.shape)
    assert "".join(nib.aff2axcodes(affine)) == axes
    return stored, affine


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LIA", "PSR", "IPL"])
def test_slices_lie_the_same_way_however_the_file_is_stored(tmp_path: Path, axes: str) -> None:
    path = write_volume(tmp_path / "x.nii.gz", *corner_cube(axes))
    image, voxel = volumes.read_image(path)
    assert voxel == (1.0, 1.0, 1.0)
    mask = image > 0
    size = 17
    for plane, right, anterior, superior in (
        ("coronal", (4, 8, 12), (8, 8, 8), (4, 4, 8)),  # slice, row, column
        ("axial", (4, 8, 12), (4, 4, 8), (8, 8, 8)),
        ("sagittal", (8, 8, 8), (4, 8, 12), (4, 4, 8)),
    ):
        cut = volumes.Cut.of(mask, voxel, Slices(plane=plane, size=size))
        slices = cut.labels(image)
        assert slices.shape == (9, size, size)
        assert [slices[place] for place in (right, anterior, superior)] == [10, 20, 30], plane


# ---------------------------------------------------------------------------------------------- cutting


def box_mask(shape: tuple[int, int, int], low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_a_small_volume_is_padded_and_a_large_one_cropped_about_the_brain() -> None:
    volume = np.arange(40 * 10 * 40, dtype=np.float32).reshape(40, 10, 40)
    mask = box_mask(volume.shape, (2, 0, 20), (6, 10, 24))
    cut = volumes.Cut.of(mask, (1, 1, 1), Slices(size=16))
    slices = cut.image(volume)
    inside = cut.labels(mask)
    assert inside[0, 6:10, 6:10].all()
    assert inside.sum() == mask.sum()
    # 6 columns to the left of x=2 do not all exist: padded with 0
    assert not slices[:, :, :4].any()
    assert slices[3, 6, 6] == volume[2, 3, 23]


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("low", [(3, 2, 5), (4, 3, 6)])
def test_native_slices_are_copied_never_interpolated(size: int, low: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = box_mask((20, 20, 20), low, (low[0] + 9, low[1] + 8, low[2] + 7))
    volume = np.where(mask, rng.integers(1, 255, mask.shape), 0).astype(np.float32)
    slices = volumes.Cut.of(mask, (1, 1, 1), Slices(size=size)).image(volume)
    assert np.array_equal(np.sort(slices[slices > 0]), np.sort(volume[mask]))


@pytest.mark.parametrize(
    ("count", "part", "expected"),
    [
        ("all", (0.0, 1.0), tuple(range(10, 20))),
        ("all", (0.5, 1.0), tuple(range(15, 20))),
        ("all", (0.0, 0.5), tuple(range(10, 15))),
        (1, (0.0, 1.0), (15,)),
        (2, (0.0, 1.0), (12, 17)),
        (5, (0.0, 1.0), (11, 13, 15, 17, 19)),
        (2, (0.4, 0.8), (15, 17)),
        (99, (0.0, 1.0), tuple(range(10, 20))),
    ],
)
def test_slices_are_spread_evenly_over_the_range(
    count: int | str, part: tuple[float, float], expected: tuple[int, ...]
) -> None:
    mask = box_mask((8, 30, 8), (2, 10, 2), (6, 20, 6))
    cut = volumes.Cut.of(mask, (1, 1, 1), Slices(size=16, count=count, range=part))
    assert cut.indexes == expected


def test_spacing_is_in_mm_along_slice_row_column() -> None:
    mask = box_mask((10, 30, 12), (1, 5, 1), (9, 25, 11))
    slices = Slices(size=16, count=5)
    assert volumes.Cut.of(mask, (0.9, 1.5, 1.2), slices).spacing == pytest.approx((6.0, 1.2, 0.9))
    slices = Slices(size=16, count=5, pixel_mm=2.0)
    assert volumes.Cut.of(mask, (0.9, 1.5, 1.2), slices).spacing == pytest.approx((6.0, 2.0, 2.0))


def test_resampling_keeps_place_and_mean() -> None:
    mask = box_mask((40, 3, 40), (4, 0, 8), (36, 3, 40))
    x = np.linspace(0, 1, 40, dtype=np.float32)
    volume = np.where(mask, 0.2 + 0.5 * x[:, None, None], 0).astype(np.float32)
    cut = volumes.Cut.of(mask, (1, 1, 1), Slices(size=16, pixel_mm=2.5))
    inside = cut.labels(mask)
    slices = cut.image(volume)
    assert inside.dtype == np.bool_
    assert inside.sum() * 2.5**2 == pytest.approx(mask.sum(), rel=0.15)
    # the middle of the brain lands in the middle of the slice, left of it darker
    assert slices[1, 8, 7:9].mean() == pytest.approx(0.2 + 0.5 * 0.5, abs=0.01)
    assert slices[1, 8, 4] < slices[1, 8, 11]


def test_resampled_labels_stay_labels() -> None:
    labels = np.zeros((30, 2, 30), np.uint8)
    labels[5:15, :, 5:25], labels[15:25, :, 5:25] = 3, 200
    cut = volumes.Cut.of(labels > 0, (1, 1, 1), Slices(size=16, pixel_mm=1.7))
    assert set(np.unique(cut.labels(labels))) == {0, 3, 200}


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        volumes.Cut.of(np.zeros((3, 3, 3), bool), (1, 1, 1), Slices(size=16))


# ------------------------------------------------------------------------------------------- grey levels


def test_the_percentile_of_the_brain_becomes_white() -> None:
    mask = np.zeros((1, 1, 300), bool)
    mask[..., :201] = True
    image = np.arange(300, dtype=np.float32)[None, None]
    levels = volumes.eight_bits(volumes.to_unit(image, mask, 50), mask)
    assert levels[0, 0, 100] == 255
    assert levels[0, 0, 200] == 255
    assert levels[0, 0, 50] == round(255 / 2)
    assert not levels[~mask].any()


def test_eight_bit_files_keep_their_levels() -> None:
    image = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    levels = volumes.eight_bits(volumes.to_unit(image, image > 0, None), image > 0)
    assert np.array_equal(levels, image.astype(np.uint8))


def test_a_black_brain_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        volumes.to_unit(np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), bool), 99.5)


# ------------------------------------------------------------------------------------------------- labels


def test_single_ids_count_before_ranges() -> None:
    ranges = [(5, 9, 1), (0, 0, 0), (7, 7, 2)]
    labels, unknown = volumes.group_labels(np.array([[0, 5, 7], [9, 10, -1]]), ranges)
    assert labels.tolist() == [[0, 1, 2], [1, 0, 0]]
    assert unknown == [-1, 10]


# ------------------------------------------------------------------------------------------------ stages


def test_stages_leave_images_and_labels_on_the_same_slices(
    root: Path, card_file: CardFile, run_stage: RunStage
) -> None:
    data = dataset(root, card_file())
    images = arrays.load_images(run_stage(data.images("A", "train")))
    labels = arrays.load_labels(run_stage(data.labels("A", "train")))
    assert images.pixels.dtype == np.uint8
    assert images.pixels.shape == images.mask.shape == labels.labels.shape == (16, 32, 32)
    assert images.scans == labels.scans
    assert [scan.stop - scan.start for scan in images.scans] == [4, 4, 4, 4]
    assert labels.names == ("background", "left", "right")
    assert not images.pixels[~images.mask].any()
    assert np.array_equal(labels.labels > 0, images.mask)
    assert images.pixels.max() == 255
    # column 0 is the subject's left
    assert set(np.unique(labels.labels[..., :16])) == {0, 1}
    assert set(np.unique(labels.labels[..., 16:])) == {0, 2}


def test_every_scan_is_in_one_split(root: Path, card_file: CardFile) -> None:
    data = dataset(root, card_file())
    parts = [{s.id for s in data.scans("A", split)} for split in ("train", "validation", "test")]
    assert set.union(*parts) == {f"A-s{i}" for i in range(6)}
    assert [len(part) for part in parts] == [4, 1, 1]
    assert data.summary()["sites"]["A"] == {
        "train": 4,
        "validation": 1,
        "test": 1,
        "scans": 6,
        "subjects": 6,
        "labelled": True,
        "aged": False,
        "simulated": False,
        "shift": None,
    }


WEEKS = (("modality: T1w", "modality: T1w\nage_unit: weeks"), ("    label:", "    subjects: people.csv\n    label:"))


def test_ages_come_from_the_table_and_in_the_order_of_the_images(
    root: Path, card_file: CardFile, run_stage: RunStage
) -> None:
    (root / "people.csv").write_text("scan,age\n" + "".join(f"s{i},{40 - i}.5\n" for i in range(6)))
    card = card_file(*WEEKS)
    data = dataset(root, card)
    assert data.aged("A")
    assert data.summary()["age_unit"] == "weeks"
    ages = arrays.load_ages(run_stage(data.ages("A", "train")))
    assert [scan.age for scan in ages.scans] == ages.ages.tolist()
    assert ages.ages.tolist() == [40.5 - int(scan.id[-1]) for scan in ages.scans]

    withheld = open_dataset(read_card(card), root, card.parent / "cache", withhold_age=True)
    blind = arrays.load_ages(run_stage(withheld.ages("A", "train")))
    assert np.array_equal(blind.ages, ages.ages)
    assert [scan.id for scan in blind.scans] == [scan.id for scan in ages.scans]
    assert all(scan.age is None for scan in blind.scans)
    for kind in ("images", "labels"):
        assert all(s["age"] is None for s in getattr(withheld, kind)("A", "train").params["scans"])
        assert getattr(withheld, kind)("A", "train").key != getattr(data, kind)("A", "train").key


def test_one_scan_without_an_age_leaves_a_site_without_ages(root: Path, card_file: CardFile) -> None:
    (root / "people.csv").write_text("scan,age\n" + "".join(f"s{i},{'' if i == 3 else 40}\n" for i in range(6)))
    data = dataset(root, card_file(*WEEKS))
    assert not data.aged("A")
    with pytest.raises(ValueError, match="A has scans without an age"):
        data.ages("A", "train")
    unknown = dataset(None, card_file(*WEEKS))
    assert unknown.aged("A"), "without the data, the table is what there is to go by"
    assert unknown.ages("A", "train").key != unknown.ages("A", "test").key


def test_a_mask_file_decides_what_is_brain(root: Path, card_file: CardFile, run_stage: RunStage) -> None:
    for index in range(6):
        inside = np.zeros(SHAPE, np.uint8)
        inside[8:12, 10:14, 7:11] = 255
        write_volume(root / f"m/s{index}.nii.gz", inside)
    data = dataset(root, card_file(("    label:", "    mask: m/{scan}.nii.gz\n    label:")))
    assert data.audit(["A"]) == []
    images = arrays.load_images(run_stage(data.images("A", "test")))
    assert images.mask.sum() == 4**3
    assert (images.pixels > 0).sum() == 4**3


def test_the_key_follows_contents_not_places(root: Path, card_file: CardFile, tmp_path: Path) -> None:
    card = card_file()
    before = dataset(root, card)
    images, labels = before.images("A", "test"), before.labels("A", "test")
    moved = root.rename(tmp_path / "elsewhere")
    after = dataset(moved, card)
    assert after.images("A", "test").key == images.key
    assert after.labels("A", "test").key == labels.key
    assert str(moved) not in str(after.images("A", "test").params)
    name = images.params["scans"][0]["id"].removeprefix("A-")
    write_volume(moved / "a" / f"{name}_seg.nii.gz", np.roll(head()[1], 1, axis=2))
    changed = dataset(moved, card)
    assert changed.images("A", "test").key == images.key
    assert changed.labels("A", "test").key != labels.key


def test_what_matters_changes_the_key_and_what_does_not_does_not(root: Path, card_file: CardFile) -> None:
    key = dataset(root, card_file()).images("A", "test").key
    for old, new in (("access: ask a friend", "access: ask"), ("name: Tiny", "name: Small")):
        assert dataset(root, card_file((old, new))).images("A", "test").key == key
    for old, new in (("count: 4", "count: 5"), ("seed: 1", "seed: 2"), ("split:", "intensity: max\nsplit:")):
        assert dataset(root, card_file((old, new))).images("A", "test").key != key


def test_a_grouping_changes_labels_only(root: Path, card_file: CardFile) -> None:
    plain = dataset(root, card_file())
    coarse = dataset(root, card_file(("    label:", "    grouping: coarse\n    label:")))
    assert plain.images("A", "test").key == coarse.images("A", "test").key
    assert plain.labels("A", "test").key != coarse.labels("A", "test").key


def test_labels_are_grouped_as_the_card_says(tmp_path: Path, card_file: CardFile, run_stage: RunStage) -> None:
    for index in range(3):
        image, labels = head(index)
        write_volume(tmp_path / f"d/a/{index}_T1w.nii.gz", image)
        write_volume(tmp_path / f"d/a/{index}_seg.nii.gz", np.choose(labels, [0, 9, 7]).astype(np.int16))
    data = dataset(tmp_path / "d", card_file(("    label:", "    grouping: coarse\n    label:")))
    assert data.audit(["A"]) == []
    labels_set = arrays.load_labels(run_stage(data.labels("A", "test")))
    assert set(np.unique(labels_set.labels)) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"label ids \[7, 9\] are in no group"):
        run_stage(dataset(tmp_path / "d", card_file()).labels("A", "test"))


def test_other_sites_and_splits_are_refused(root: Path, card_file: CardFile) -> None:
    data = dataset(root, card_file())
    with pytest.raises(ValueError, match="no site 'B'; known: A"):
        data.images("B", "test")
    with pytest.raises(ValueError, match="no split 'tset'"):
        data.images("A", "tset")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ without data


def test_a_plan_can_be_made_without_the_data(card_file: CardFile, root: Path) -> None:
    card = card_file()
    absent = dataset(None, card)
    assert absent.missing() == [
        "Tiny: no data folder is named; give --root DIR, or data.root in the benchmark. To get the data: ask a friend"
    ]
    assert "there is no folder /nowhere; mend --root" in dataset(Path("/nowhere"), card).missing()[0]
    stages = [absent.images("A", "train"), absent.images("A", "test"), absent.labels("A", "test")]
    assert len({stage.key for stage in stages}) == 3
    assert absent.images("A", "test").key != dataset(root, card).images("A", "test").key
    assert absent.summary()["sites"]["A"]["scans"] == 0
    assert [str(p) for p in absent.audit(["A"])] == [f"tiny: {absent.missing()[0]}"]


def test_a_site_without_scans_is_missing_where_it_is_asked_for(card_file: CardFile, root: Path) -> None:
    data = dataset(root, card_file(more="  B: {image: 'b/{scan}.nii'}\n"))
    assert data.missing() == []
    assert data.missing(["A", "B"]) == [f"B has no scans: nothing matches {root}/b/{{scan}}.nii"]
    assert data.audit(["A"]) == []
    assert "no file matches" in str(data.audit(["A", "B"])[0])


# ------------------------------------------------------------------------------------- shifts and pairs

SHIFTED = "  S: {of: A, shift: {gamma: 2, bias: {amplitude: 0.3}, blur_mm: 1.5, noise: 0.02}}\n"


def test_a_shifted_site_has_the_same_people_and_labels(root: Path, card_file: CardFile, run_stage: RunStage) -> None:
    data = dataset(root, card_file(more=SHIFTED))
    assert data.paired
    assert data.summary()["sites"]["S"]["shift"] == "simulated: gamma 2, bias ±30 %, blur 1.5 mm, noise 2 %"
    assert data.summary()["sites"]["S"]["simulated"]
    assert [s.subject for s in data.scans("S", "test")] == [s.subject for s in data.scans("A", "test")]
    ours, theirs = (arrays.load_images(run_stage(data.images(site, "train"))) for site in ("A", "S"))
    assert [s.id for s in ours.scans] == [s.id for s in theirs.scans]
    assert {s.site for s in theirs.scans} == {"S"}
    assert np.array_equal(ours.mask, theirs.mask)
    assert not np.array_equal(ours.pixels, theirs.pixels)
    labels = [arrays.load_labels(run_stage(data.labels(site, "train"))).labels for site in ("A", "S")]
    assert np.array_equal(labels[0], labels[1])
    again = arrays.load_images(run_stage(data.images("S", "train")))
    assert np.array_equal(again.pixels, theirs.pixels)


def test_the_paired_truth_is_the_other_sites_own_images(root: Path, card_file: CardFile) -> None:
    data = dataset(root, card_file(more=SHIFTED))
    truth = data.images("S", "test", rendered_at="A")
    assert truth.title == "images S test as A"
    assert truth.key == data.images("A", "test").key


def test_strangers_are_not_paired(root: Path, card_file: CardFile) -> None:
    data = dataset(root, card_file(more="  B: {image: 'b/{scan}.nii'}\n"))
    assert not data.paired
    assert not data.is_paired("A", "B")
    with pytest.raises(ValueError, match="scans of A cannot be rendered at B"):
        data.images("A", "test", rendered_at="B")
    with pytest.raises(ValueError, match="B has no labels"):
        data.labels("B", "test")


def test_one_cohort_lands_on_the_same_side_at_both_sites(root: Path, card_file: CardFile) -> None:
    for index in range(6):
        write_volume(root / f"b/s{index}.nii.gz", head(100 + index)[0])
    data = dataset(root, card_file(more="  B: {image: 'b/{scan}.nii.gz', cohort: A}\n"))
    assert data.audit(["A", "B"]) == []
    for split in ("train", "validation", "test"):
        assert {s.subject for s in data.scans("A", split)} == {s.subject for s in data.scans("B", split)}


def test_rescans_stay_together(root: Path, card_file: CardFile) -> None:
    write_scan(root, "s0b", seed=77)
    data = dataset(root, card_file(("    label:", '    same_subject: [["s0", "s0b"]]\n    label:')))
    sides = [side for side in SPLITS if "A-s0" in {s.subject for s in data.scans("A", side)}]
    assert len(sides) == 1
    assert {s.id for s in data.scans("A", sides[0])} >= {"A-s0", "A-s0b"}
    assert data.audit(["A"]) == []


def test_scans_can_be_limited(root: Path, card_file: CardFile) -> None:
    whole = dataset(root, card_file())
    few = dataset(root, card_file(("split:", "scans: 3\nsplit:")))
    assert len(few.scans("A")) == 3
    assert set(few.scans("A")) < set(whole.scans("A"))
    assert few.audit(["A"]) == []


# ------------------------------------------------------------------------------------------- split files


def split_card(card_file: CardFile, tmp_path: Path, text: str) -> Path:
    (tmp_path / "split.yaml").write_text(text)
    return card_file(("split: {seed: 1}", "split: {file: split.yaml}"))


def test_a_split_file_is_followed(root: Path, card_file: CardFile, tmp_path: Path) -> None:
    text = "train: [A-s5, A-s1, A-s2]\nvalidation: [A-s0]\ntest: [A-s3, A-s4]\n"
    data = dataset(root, split_card(card_file, tmp_path, text))
    assert [s.name for s in data.scans("A", "test")] == ["s3", "s4"]
    assert data.audit(["A"]) == []
    assert data.splits()["validation"]["subjects"] == ["A-s0"]


def test_a_split_file_that_forgets_somebody_is_a_problem(root: Path, card_file: CardFile, tmp_path: Path) -> None:
    data = dataset(root, split_card(card_file, tmp_path, "train: [A-s5]\nvalidation: [A-s0]\ntest: [A-s9]\n"))
    lines = [str(p) for p in data.audit(["A"])]
    assert f"{tmp_path}/split.yaml: subject 'A-s1' of A is on no side; add it, or exclude its scans" in lines
    assert any("A has 6 subjects and none in test" in line for line in lines)


def test_a_split_file_named_in_a_benchmark_lies_beside_it(root: Path, card_file: CardFile, tmp_path: Path) -> None:
    card_file()
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "split.yaml").write_text("train: [A-s5]\nvalidation: [A-s0]\ntest: [A-s3]\n")
    path = folder / "b.yaml"
    path.write_text("data:\n  card: ../tiny.yaml\n  with: {split: {file: split.yaml}}\n")
    document = yamlfile.read(path)
    data: Dataset = open_dataset(load_card(document, document.data["data"]), root, tmp_path / "cache")
    assert [s.id for s in data.scans("A", "test")] == ["A-s3"]


# ---------------------------------------------------------------------------------------- the shift itself


@pytest.fixture
def ball() -> tuple[np.ndarray, np.ndarray]:
    image, _ = head(3, (40, 40, 40))
    return image.astype(np.float32) / 255, image > 0


def test_gamma_and_curve_change_contrast(ball: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = ball
    dark = apply_shift(image, mask, (1, 1, 1), Shift(gamma=2), 0, 0)
    assert dark[mask] == pytest.approx(image[mask] ** 2)
    flat = apply_shift(image, mask, (1, 1, 1), Shift(curve=[(0, 0.5), (1, 1)]), 0, 0)
    assert flat[mask] == pytest.approx(0.5 + image[mask] / 2)
    assert not flat[~mask].any()


def test_the_bias_field_is_smooth_and_as_strong_as_declared(ball: tuple[np.ndarray, np.ndarray]) -> None:
    _, mask = ball
    ones = mask.astype(np.float32)
    field = apply_shift(ones, mask, (4, 4, 4), Shift(bias=Bias(amplitude=0.25, sigma_mm=40)), 1, 2)
    assert field[mask].max() == pytest.approx(1.25, abs=1e-3)
    assert field[mask].min() == pytest.approx(1 / 1.25, abs=1e-3)
    both = mask[1:] & mask[:-1]
    assert np.abs(np.diff(field, axis=0))[both].max() < 0.08


def test_scans_of_a_site_share_half_of_their_bias(ball: tuple[np.ndarray, np.ndarray]) -> None:
    _, mask = ball
    ones, shift = mask.astype(np.float32), Shift(bias=Bias(amplitude=0.25))
    fields = {
        (site, scan): np.log(apply_shift(ones, mask, (4, 4, 4), shift, site, scan)[mask])
        for site in range(6)
        for scan in (10, 11)
    }
    same = [np.corrcoef(fields[s, 10], fields[s, 11])[0, 1] for s in range(6)]
    other = [np.corrcoef(fields[s, 10], fields[(s + 1) % 6, 11])[0, 1] for s in range(6)]
    assert np.mean(same) > np.mean(other) + 0.2


def test_blur_keeps_a_flat_brain_flat_to_its_edge(ball: tuple[np.ndarray, np.ndarray]) -> None:
    image, mask = ball
    flat = apply_shift(mask.astype(np.float32), mask, (1, 1, 1), Shift(blur_mm=3), 0, 0)
    assert flat[mask] == pytest.approx(1, abs=1e-3)
    soft = apply_shift(image, mask, (1, 1, 1), Shift(blur_mm=3), 0, 0)
    assert soft[mask].std() < image[mask].std() / 2


def test_noise_is_rician_and_seeded_by_scan(ball: tuple[np.ndarray, np.ndarray]) -> None:
    _, mask = ball
    black = np.zeros(mask.shape, np.float32)
    noisy = apply_shift(black, mask, (1, 1, 1), Shift(noise=0.1), 0, 5)
    assert noisy[mask].mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.03)  # Rayleigh
    assert np.array_equal(noisy, apply_shift(black, mask, (1, 1, 1), Shift(noise=0.1), 0, 5))
    assert not np.array_equal(noisy, apply_shift(black, mask, (1, 1, 1), Shift(noise=0.1), 0, 6))


# ------------------------------------------------------------------------------------------ other formats


def test_an_analyze_pair_is_two_files_of_one_scan(tmp_path: Path, card_file: CardFile, run_stage: RunStage) -> None:
    import nibabel as nib

    for index in range(3):
        path = tmp_path / "d" / "a" / f"{index}_T1w.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        # a trailing axis of one, as OASIS-1 has
        nib.Nifti1Pair(head(index)[0][..., None], np.eye(4)).to_filename(path)
    label = ("    label: a/{scan}_seg.nii.gz\n", "")
    card = card_file(("_T1w.nii.gz", "_T1w.img"), label)
    data = dataset(tmp_path / "d", card)
    assert data.audit(["A"]) == []
    first = data.images("A", "test")
    assert arrays.load_images(run_stage(first)).pixels.shape == (4, 32, 32)
    header = tmp_path / "d" / first.local["files"][first.params["scans"][0]["id"]]["image"]
    os.utime(header.with_suffix(".hdr"), ns=(1, 1))
    assert dataset(tmp_path / "d", card).images("A", "test").key == first.key
    header.with_suffix(".hdr").write_bytes(header.with_suffix(".hdr").read_bytes() + b"x")
    assert dataset(tmp_path / "d", card).images("A", "test").key != first.key

"""Whole volumes in artifact folders: what is written comes back, a scan at a time, in chunks or in one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from harness.brain_age import Volume, VolumeScan
from harness.data.volume_sets import cropped, kept_box, load_regions, load_volumes, save_regions, save_volumes

NAMES = ("background", "left", "right", "outside")


def scan(index: int, shape: tuple[int, int, int] = (5, 7, 3), site: str = "A") -> VolumeScan:
    return VolumeScan(f"s{index}", f"p{index}", site, shape, (0.5, 0.5, 0.5), (1, 2, 3), (9, 9, 9), "F", 38.5, "T2w")


def volume(index: int, shape: tuple[int, int, int] = (5, 7, 3)) -> Volume:
    rng = np.random.default_rng(index)
    mask = rng.random(shape) > 0.4
    return Volume(np.where(mask, rng.random(shape, dtype=np.float32), 0).astype(np.float32), mask)


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_volumes_come_back(tmp_path: Path) -> None:
    shapes = [(5, 7, 3), (4, 4, 4), (1, 2, 9)]
    items = [(scan(i, shape), volume(i, shape)) for i, shape in enumerate(shapes)]
    save_volumes(tmp_path, items)
    found = load_volumes(tmp_path)
    assert found.scans == tuple(one for one, _ in items)
    for back, (_, sent) in zip(found, items, strict=True):
        assert (back.image.dtype, back.mask.dtype) == (np.float32, np.bool_)
        assert np.array_equal(back.mask, sent.mask)
        assert np.abs(back.image - sent.image).max() <= 0.5 / 65535 + 1e-7
        assert not back.image[~back.mask].any()


def test_eight_bit_levels_come_back_as_they_were(tmp_path: Path) -> None:
    levels = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(16, 4, 4)
    save_volumes(tmp_path, [(scan(0, levels.shape), Volume(levels, np.ones(levels.shape, np.bool_)))])
    assert np.array_equal(load_volumes(tmp_path)[0].image, levels)


def test_what_lies_outside_the_mask_is_zero_whatever_was_there(tmp_path: Path) -> None:
    mask = np.zeros((5, 7, 3), np.bool_)
    mask[2, 2, 2] = True
    save_volumes(tmp_path, [(scan(0), Volume(np.full(mask.shape, 3.0, np.float32), mask))])
    image = load_volumes(tmp_path)[0].image
    assert image[2, 2, 2] == 1
    assert image.sum() == 1


def test_regions_come_back_and_cannot_be_written(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 3)).astype(np.uint8)
    save_regions(tmp_path, NAMES, [3], [(scan(0), labels)])
    found = load_regions(tmp_path)
    assert (found.names, found.ignored, found.scans) == (NAMES, (3,), (scan(0),))
    assert found[0].dtype == np.uint8
    assert np.array_equal(found[0], labels)
    assert not found[0].flags.writeable


def test_chunks_are_joined_in_their_order_and_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    chunks = [folder(tmp_path / name) for name in ("one", "two")]
    save_volumes(chunks[0], [(scan(i), volume(i)) for i in (4, 1)])
    save_volumes(chunks[1], [(scan(i), volume(i)) for i in (3,)])
    found = load_volumes(*chunks)
    assert [one.id for one in found.scans] == ["s4", "s1", "s3"]
    for path in chunks[0].glob("00000*"):
        path.unlink()
    assert np.array_equal(found[1].mask, volume(1).mask)
    assert np.array_equal(found.take([2, 1])[0].mask, volume(3).mask)
    with pytest.raises(FileNotFoundError):
        found[0]
    assert np.array_equal(pickle.loads(pickle.dumps(found))[2].mask, volume(3).mask)


def test_writing_takes_a_scan_at_a_time(tmp_path: Path) -> None:
    written: list[int] = []

    def items() -> Iterator[tuple[VolumeScan, Volume]]:
        for index in range(3):
            yield scan(index), volume(index)
            written.append(len(list(tmp_path.glob("*_image.npy"))))

    save_volumes(tmp_path, items())
    assert written == [1, 2, 3]


def test_no_age_is_written(tmp_path: Path) -> None:
    save_volumes(tmp_path, [(scan(0), volume(0))])
    (row,) = json.loads((tmp_path / "scans.json").read_text())
    assert set(row) == set(asdict(scan(0)))
    assert "age" not in row


def test_what_cannot_be_saved_or_joined_is_said(tmp_path: Path) -> None:
    one, two, three = (folder(tmp_path / name) for name in ("one", "two", "three"))
    labels = np.zeros((5, 7, 3), np.uint8)
    with pytest.raises(ValueError, match="no volumes: this split of the site has no scans"):
        save_volumes(one, [])
    with pytest.raises(ValueError, match=r"s0: mask of \(5, 7, 4\) voxels for a scan of \(5, 7, 3\)"):
        save_volumes(one, [(scan(0), Volume(volume(0).image, np.ones((5, 7, 4), np.bool_)))])
    with pytest.raises(ValueError, match="s0: label 4 has no name; there are 4 labels"):
        save_regions(one, NAMES, [], [(scan(0), labels + np.uint8(4))])
    save_regions(one, NAMES, [], [(scan(0), labels)])
    save_regions(two, NAMES, [3], [(scan(1), labels)])
    with pytest.raises(ValueError, match="different labels"):
        load_regions(one, two)
    save_regions(three, NAMES, [], [(scan(0), labels)])
    with pytest.raises(ValueError, match="scan s0 of A is there twice"):
        load_regions(one, three)


def test_the_box_has_a_margin_as_far_as_the_volume_goes() -> None:
    mask = np.zeros((10, 12, 8), np.bool_)
    mask[1:4, 5:6, 2:8] = True
    box = kept_box(mask, 2)
    assert box == (slice(0, 6), slice(3, 8), slice(0, 8))
    one = cropped({"id": "x", "subject": "x", "site": "A"}, box, mask.shape, (1.0, 1.0, 1.0))
    assert (one.shape, one.start, one.whole) == ((6, 5, 8), (0, 3, 0), (10, 12, 8))
    assert kept_box(mask, 0) == (slice(1, 4), slice(5, 6), slice(2, 8))
    with pytest.raises(ValueError, match="empty"):
        kept_box(np.zeros((3, 3, 3), np.bool_), 1)

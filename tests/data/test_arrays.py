"""Artifacts of image sets and states come back as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.api import AgeSet, ImageSet, MethodError, Scan
from harness.data import arrays


def test_a_state_comes_back_with_every_shape_and_type(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm2d(3)
    state = {**network.state_dict(), "levels": np.arange(5.0), "scalar": np.float32(2), "name": "x", "list": [1, None]}
    arrays.save_state(tmp_path, state)
    back = arrays.load_state(tmp_path)
    assert back.keys() == state.keys()
    assert back["num_batches_tracked"].shape == ()
    assert back["scalar"].shape == ()
    assert back["name"] == "x"
    assert back["list"] == [1, None]
    network.load_state_dict({k: torch.from_numpy(np.array(back[k])) for k in network.state_dict()})


def test_a_state_that_cannot_be_kept_names_its_entry(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="state entry 'tree' is a object"):
        arrays.save_state(tmp_path, {"tree": object()})


def test_images_come_back_read_only_and_mapped(tmp_path: Path) -> None:
    scans = (Scan("a", "s", "NYU", 0, 2, (4.0, 1.0, 1.0), 20.5, "F"),)
    images = ImageSet(np.full((2, 4, 4), 255, np.uint8), np.ones((2, 4, 4), bool), scans)
    arrays.save_images(tmp_path, images)
    back = arrays.load_images(tmp_path)
    assert back.scans == scans
    assert back.floats().dtype == np.float32
    assert back.floats().max() == 1
    with pytest.raises(ValueError, match="read-only"):
        back.pixels[0, 0, 0] = 1


def test_ages_come_back_as_float64_in_order(tmp_path: Path) -> None:
    scans = tuple(Scan(name, name, "DHCP", i, i + 1, (1.0, 1.0, 1.0)) for i, name in enumerate("ba"))
    arrays.save_ages(tmp_path, AgeSet(np.array([41.3, 38], np.float32), scans))
    back = arrays.load_ages(tmp_path)
    assert back.ages.dtype == np.float64
    assert back.ages == pytest.approx([41.3, 38])
    assert back.scans == scans

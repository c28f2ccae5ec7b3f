"""The baseline hands images on as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness._conformance_data import make_material
from harness.api import ApplyData, Context
from methods.harmonization.none import NoHarmonization


def test_images_are_unchanged_and_a_copy(tmp_path: Path) -> None:
    images = make_material().test
    ctx = Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)
    out = NoHarmonization().harmonize({}, ApplyData({"target": images}), ctx)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, images.pixels / np.float32(255))
    assert not np.shares_memory(out, images.pixels)
    assert not NoHarmonization().has_fit()

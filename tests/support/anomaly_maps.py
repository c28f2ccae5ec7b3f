"""Anomaly maps that the tests of detection metrics share."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage

Maps = tuple[np.ndarray, np.ndarray]


@st.composite
def small_maps(draw: st.DrawFn) -> Maps:
    """Up to four small maps, 2-D or 3-D, of few distinct scores of either sign, with labels in some of them."""
    shape = draw(st.sampled_from([(1, 5, 6), (3, 4, 5), (4, 6, 4), (2, 3, 3, 4)]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([1, 2, 5, 40]))
    scores = (rng.integers(0, levels, shape) - levels // 2) / draw(st.sampled_from([1.0, 3.0, 1e-3]))
    labels = rng.random(shape) < draw(st.sampled_from([0.1, 0.4]))
    labels[0] &= draw(st.booleans())
    return scores.astype(draw(st.sampled_from([np.float32, np.float64]))), labels


def random_maps(shape: tuple[int, ...] = (6, 24, 20), levels: int = 60, seed: int = 0) -> Maps:
    """Blobs of abnormal pixels that mostly score higher, ties everywhere, the first image healthy; float32."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), (0, *(2,) * (len(shape) - 1)))
    labels = smooth > np.quantile(smooth, 0.93)
    labels[0] = False
    scores = np.round(levels * (rng.normal(size=shape) + 2 * labels)) / levels
    return scores.astype(np.float32), labels


def load_fixtures(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Labels and masks, score maps by name, and the reference values of anomaly detection."""
    spec = importlib.util.spec_from_file_location("metric_fixtures", folder / "fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arrays = module.load(folder / "fixtures.npz")
    reference = json.loads((folder / "reference.json").read_text())
    return arrays, module.derived(arrays), reference["anomaly"] | {"recommended": reference["recommended"]["anomaly"]}

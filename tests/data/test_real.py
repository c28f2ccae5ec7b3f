"""The cards of real scans against the real scans, where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness import yamlfile
from harness.data import arrays
from harness.data.card import load_card
from harness.data.dataset import Dataset, open_dataset
from harness.engine.plan import Stage

RunStage = Callable[[Stage], Path]


@pytest.fixture
def oasis(real_data: Path, tmp_path: Path) -> Dataset:
    """Four real scans per site, three slices each."""
    path = tmp_path / "bench.yaml"
    path.write_text("data:\n  card: oasis1_malf\n  with: {scans: 4, slices: {size: 192, count: 3}}\n")
    document = yamlfile.read(path)
    return open_dataset(load_card(document, document.data["data"]), real_data, tmp_path / "cache")


def test_real_scans_pass_the_audit(oasis: Dataset) -> None:
    assert oasis.missing(oasis.sites) == []
    assert [str(p) for p in oasis.audit(oasis.sites)] == []


def test_real_tissue_has_its_known_contrast_and_the_shifts_change_it(oasis: Dataset, run_stage: RunStage) -> None:
    labels = arrays.load_labels(run_stage(oasis.labels("OASIS", "test")))
    ratios = {}
    for site in ("OASIS", "OASIS_SHIFT_A", "OASIS_SHIFT_B"):
        images = arrays.load_images(run_stage(oasis.images(site, "test")))
        assert images.scans[0].id == labels.scans[0].id
        grey, white = (
            np.median(images.pixels[labels.labels == labels.names.index(f"cerebral_{t}")]) for t in ("GM", "WM")
        )
        ratios[site] = grey / white
        assert (labels.labels[~images.mask] > 0).mean() < 0.01
    assert ratios["OASIS"] == pytest.approx(0.614, abs=0.05)  # mean of 35 scans, SD .018
    assert ratios["OASIS_SHIFT_A"] < ratios["OASIS"] - 0.1
    assert ratios["OASIS_SHIFT_B"] > ratios["OASIS"] + 0.1


def test_rescans_of_a_person_are_on_one_side(real_data: Path, tmp_path: Path) -> None:
    from harness.data.card import read_card

    whole = open_dataset(read_card("oasis1_malf"), real_data, tmp_path / "cache")
    assert len(whole.scans("OASIS")) == 29
    assert len({s.subject for s in whole.scans("OASIS")}) == 24
    sides = {s.id: split for split in ("train", "validation", "test") for s in whole.scans("OASIS", split)}
    for first, second in ((1003, 1023), (1004, 1024), (1005, 1025), (1018, 1038), (1019, 1039)):
        assert sides[f"OASIS-{first}"] == sides[f"OASIS-{second}"]
    assert [whole.summary()["sites"]["OPENMS"][s] for s in ("train", "validation", "test")] == [1, 0, 1]

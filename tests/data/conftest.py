"""Small data sets of real NIfTI files, written by nibabel."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nifti_files import write_scan

from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.nifti import NiftiDataset
from harness.engine.plan import Stage
from harness.engine.worker import StageRun

CARD = """\
id: tiny
name: Tiny
kind: nifti
simulated: false
modality: T1w
reference: ours
licence: none
access: ask a friend
labels:
  names: [background, left, right]
  groupings:
    coarse: {0: background, 5-9: left, 7: right}
slices: {plane: coronal, size: 32, count: 4}
split: {seed: 1}
sites:
  A:
    image: a/{scan}_T1w.nii.gz
    label: a/{scan}_seg.nii.gz
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six good scans of one site, below tmp_path/data."""
    folder = tmp_path / "data"
    for index in range(6):
        write_scan(folder, f"s{index}")
    return folder


@pytest.fixture
def card_file(tmp_path: Path) -> Callable[..., Path]:
    """Write CARD with replacements (old, new) and text appended."""

    def write(*replacements: tuple[str, str], more: str = "") -> Path:
        text = CARD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text + more)
        return path

    return write


@pytest.fixture
def opened(
    card_file: Callable[..., Path], root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., NiftiDataset]:
    """Open the data set of CARD and the module's SITE_MORE, what its site has beside, with replacements (old, new)."""

    def make(*replacements: tuple[str, str]) -> NiftiDataset:
        text: str = request.module.SITE_MORE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        dataset = open_dataset(read_card(card_file(more=text)), root, tmp_path / "cache")
        assert isinstance(dataset, NiftiDataset)
        return dataset

    return make


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[[Stage], Path]:
    """Run a stage's function as a worker would, its inputs first; gives the folder of its artifact."""
    counter = iter(range(1000))

    def run(stage: Stage) -> Path:
        inputs = {name: run(need) for name, need in stage.needs.items()}
        folder = tmp_path / f"stage{next(counter)}"
        out, scratch = folder / "out", folder / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        module, _, name = stage.fn.partition(":")
        function: Any = getattr(importlib.import_module(module), name)
        function(StageRun(stage.params, inputs, out, scratch, stage.seed or 0, "cpu", stage.local))
        assert not list(scratch.iterdir())
        return out

    return run

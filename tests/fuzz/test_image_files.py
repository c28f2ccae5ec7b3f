"""Damaged image files are read or refused; what the audit passes, the stages can cut. No traceback, no hang."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import image_files
import numpy as np
import pytest
from reliability import note

HERE = Path(__file__).parent
EXTREMES = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\x7f\x80", b"\xff\xff\xff\xff", b"\x00\x00\xc0\x7f")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return dict(image_files.seeds(tmp_path_factory.mktemp("seeds")))


def test_sound_files_of_every_kind_are_read(seeds: dict[str, bytes], tmp_path: Path) -> None:
    assert {raw[0] for raw in seeds.values()} == set(range(len(image_files.KINDS)))
    passed = {title for title, raw in seeds.items() if image_files.examine(raw, tmp_path)}
    # Halves are no labels.
    assert set(seeds) - passed == {"doubles", "doubles-packed", "doubles-gz", "scaled", "scaled-packed", "scaled-gz"}


def damaged(raw: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Headers with fields at their extremes; cut and lengthened files."""
    for _ in range(count):
        changed = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            start = 1 + int(rng.integers(min(len(raw) - 1, 360)))
            value = EXTREMES[int(rng.integers(len(EXTREMES)))]
            changed[start : start + len(value)] = value
        if rng.random() < 0.2:
            changed = changed[: int(rng.integers(len(changed)))]
        yield bytes(changed)


def test_damaged_files(seeds: dict[str, bytes], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start, passed, inputs = time.monotonic(), 0, 0
    for raw in seeds.values():
        for changed in damaged(raw, rng, 12):
            passed += image_files.examine(changed, tmp_path)
            inputs += 1
    assert 0 < passed < inputs
    note("fuzzed NIfTI files", inputs=inputs, seconds=time.monotonic() - start)


SECONDS = int(float(os.environ.get("HARNESS_FUZZ_SECONDS", 60)))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: pip install atheris (wheels for Python 3.11 to 3.13; else it builds with clang)",
)
def test_coverage_guided_fuzzing(seeds: dict[str, bytes], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for title, raw in seeds.items():
        (corpus / title).write_bytes(raw)
    limits = [f"-max_total_time={SECONDS}", "-rss_limit_mb=3000", "-timeout=30", "-max_len=4096"]
    command = [sys.executable, str(HERE / "nifti_target.py"), str(corpus), *limits, f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    runs = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
    assert runs, done.stderr[-3000:]
    note("fuzzed NIfTI files", inputs=int(runs[1]), seconds=float(runs[2]), saw="refused or read, as the audit says")

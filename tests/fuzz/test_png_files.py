"""Damaged PNG and JPEG slices are read or refused; what the audit passes, the stages can cut. No traceback, no hang."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import slice_files
from hypothesis import HealthCheck, Phase, given, settings
from mutants import BATCH, SECONDS, SECONDS_EACH
from reliability import note

pytestmark = pytest.mark.timeout(SECONDS + 600)

MOST_MEMORY = 512 * 2**10
"""KiB that the reader may add to the process: 4096 × 4096 pixels in three colours, several times over."""


def test_sound_files_of_every_kind_are_read_or_refused(tmp_path: Path) -> None:
    passed = {title for title, raw in slice_files.seeds().items() if slice_files.examine(raw, tmp_path)}
    # A JPEG is no label; the others are refused as images too.
    assert passed == {"8 bits", "16 bits", "bilevel", "colour", "texts", "interlaced"}


def test_chunks_can_be_taken_apart_and_joined() -> None:
    for title, raw in slice_files.seeds().items():
        if "JPEG" not in title:
            assert slice_files.join(slice_files.split(raw)) == raw


def test_damaged_slices(tmp_path: Path) -> None:
    files = list(slice_files.seeds().values())
    inputs = passed = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def one(raw: bytes) -> None:
        nonlocal inputs, passed
        start = time.process_time()
        passed += slice_files.examine(raw, tmp_path)
        inputs += 1
        assert time.process_time() - start < SECONDS_EACH

    start = time.monotonic()
    while True:
        once = settings(
            max_examples=4 * BATCH,
            deadline=None,
            derandomize=not SECONDS,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        once(given(slice_files.damaged(files))(one))()
        if time.monotonic() - start >= SECONDS:
            break
    assert inputs >= 4 * BATCH
    assert 0 < passed < inputs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
    note("fuzzed PNG files", inputs=inputs, seconds=time.monotonic() - start, saw=f"{inputs - passed} refused")

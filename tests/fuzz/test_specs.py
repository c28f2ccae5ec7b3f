"""Damaged benchmark and sweep files are read, or refused in lines that name a place: no traceback, no hang."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mutants import BATCH, SECONDS, Tally, fuzz
from reliability import note

from harness import spec
from harness.sweep import file as sweeps

pytestmark = pytest.mark.timeout(SECONDS + 600)

REPO = Path(__file__).resolve().parents[2]
SWEEPS = sorted((REPO / "benchmarks").rglob("ablations/*.yaml"))
BENCHMARKS = sorted(set((REPO / "benchmarks").rglob("*.yaml")) - set(SWEEPS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the benchmark files, for bases to be found from."""
    shutil.copytree(REPO / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("*.py"))
    return tmp_path / "benchmarks" / "ablations"


def test_damaged_benchmark_files(folder: Path, tmp_path: Path) -> None:
    tally = Tally()
    path = tmp_path / "benchmarks" / "fuzzed.yaml"

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        tally.take(lambda: spec.load(path, cache=tmp_path / "cache"))

    seconds = fuzz(one, [file.read_text() for file in BENCHMARKS])
    assert tally.inputs >= BATCH
    assert tally.read
    assert tally.refused
    note("fuzzed benchmark files", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")


def test_damaged_sweep_files(folder: Path, tmp_path: Path) -> None:
    tally = Tally()
    path = folder / "fuzzed.yaml"

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        tally.take(lambda: sweeps.load(path, [], cache=tmp_path / "cache"))

    seconds = fuzz(one, [file.read_text() for file in SWEEPS if file.parts[-3] == "benchmarks"])
    assert tally.inputs >= BATCH
    assert tally.read
    assert tally.refused
    note("fuzzed benchmark files", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")


def test_damaged_bases(folder: Path, tmp_path: Path) -> None:
    """The file that a sweep or a benchmark builds on is no better than its own."""
    tally = Tally()
    path, above = tmp_path / "benchmarks" / "fuzzed.yaml", folder / "above.yaml"
    above.write_text(
        "sweep: s\nbase: ../fuzzed.yaml\nmethod: tent\nspace: {batch_size: {grid: [4, 8]}}\nobjective: {metric: dsc}\n"
    )
    derived = folder / "derived.yaml"
    derived.write_text("base: ../fuzzed.yaml\nwithout: [methods.none]\nseeds: [1]\ndata: {with: {scans: 5}}\n")

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        tally.take(lambda: sweeps.load(above, [], cache=tmp_path / "cache"))
        tally.take(lambda: spec.load(derived, cache=tmp_path / "cache"))

    seconds = fuzz(one, [file.read_text() for file in BENCHMARKS])
    assert tally.inputs >= BATCH
    note("fuzzed benchmark files", inputs=tally.inputs, seconds=seconds, saw=f"{tally.refused} refused, each in lines")

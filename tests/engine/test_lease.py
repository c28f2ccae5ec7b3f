"""Leases: exclusive while their run lives, free once it is dead, whatever the wall clock says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from harness.engine import lease
from harness.engine.desk import Desk, FolderDesk, ObjectDesk
from harness.engine.lease import Leases
from harness.engine.store import DOWNLOADS


@pytest.fixture(params=["folder", "objects"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    if request.param == "folder":
        yield FolderDesk(tmp_path)
        return
    fs = fsspec.filesystem("memory")
    yield ObjectDesk(fs, f"/{tmp_path.name}")
    fs.store.clear()


def test_one_run_holds_a_key_at_a_time(tmp_path: Path, desk: Desk) -> None:
    with Leases(tmp_path, desk) as first, Leases(tmp_path, desk) as second:
        assert first.acquire("k")
        assert not second.acquire("k")
        assert second.acquire("other")
        first.release("k")
        assert second.acquire("k")


def test_ending_a_run_frees_its_keys(tmp_path: Path, desk: Desk) -> None:
    with Leases(tmp_path, desk) as first:
        assert first.acquire("k")
    with Leases(tmp_path, desk) as second:
        assert second.acquire("k")


def test_a_killed_process_loses_its_leases_at_once(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from harness.engine.lease import Leases\n"
        f"run = Leases(Path({str(tmp_path)!r})); run.__enter__(); assert run.acquire('k')\n"
        f"(Path({str(tmp_path)!r}) / 'tmp' / run.run).mkdir(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    with Leases(tmp_path) as heir:
        assert heir.acquire("k")
        assert not list((tmp_path / "tmp").iterdir()), "what the dead run half-wrote is swept away"


def test_a_silent_run_on_another_host_is_given_up_after_patience(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Leases(tmp_path, desk) as ours:
        desk.write("runs/theirs.json", json.dumps({"count": 5, "host": "elsewhere/boot", "pid": 1, "started": "1"}))
        desk.write("leases/k", "theirs")
        assert not ours.acquire("k")
        monkeypatch.setattr(lease, "PATIENCE", 0.0)
        assert ours.acquire("k")


def test_a_beating_run_on_another_host_keeps_its_lease(
    tmp_path: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.0)
    with Leases(tmp_path, desk) as ours:
        desk.write("leases/k", "theirs")
        for count in range(3):
            card = {"count": count, "host": "elsewhere/boot", "pid": 1, "started": "1"}
            desk.write("runs/theirs.json", json.dumps(card))
            assert not ours.acquire("k")


def test_what_a_dead_run_never_gave_back_is_cleared_away(tmp_path: Path, desk: Desk) -> None:
    with Leases(tmp_path, desk) as ours:
        desk.write("leases/finished", "dead")
        desk.write("leases/theirs", "living")
        desk.write("runs/living.json", json.dumps({"count": 5, "host": "elsewhere/boot", "pid": 1, "started": "1"}))
        assert ours.acquire("ours")
    assert desk.names("leases") == ["theirs"]


def test_a_download_under_way_is_not_swept_away(tmp_path: Path) -> None:
    for name in (f"{DOWNLOADS}{os.getpid()}", f"{DOWNLOADS}999999999", "deadbeef"):
        (tmp_path / "tmp" / name).mkdir(parents=True)
    with Leases(tmp_path):
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == [f"{DOWNLOADS}{os.getpid()}"]

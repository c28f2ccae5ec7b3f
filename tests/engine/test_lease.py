"""Leases: exclusive while their run lives, free once it is dead, whatever the wall clock says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engine import lease
from harness.engine.lease import Leases


def test_one_run_holds_a_key_at_a_time(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.acquire("k")
        assert not second.acquire("k")
        assert second.acquire("other")
        first.release("k")
        assert second.acquire("k")


def test_ending_a_run_frees_its_keys(tmp_path: Path) -> None:
    with Leases(tmp_path) as first:
        assert first.acquire("k")
    with Leases(tmp_path) as second:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Leases(tmp_path) as ours:
        card = {"count": 5, "host": "elsewhere/boot", "pid": 1, "started": "1"}
        (tmp_path / "runs" / "theirs.json").write_text(json.dumps(card))
        (tmp_path / "leases" / "k").write_text("theirs")
        assert not ours.acquire("k")
        monkeypatch.setattr(lease, "PATIENCE", 0.0)
        assert ours.acquire("k")


def test_a_beating_run_on_another_host_keeps_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE", 0.0)
    with Leases(tmp_path) as ours:
        (tmp_path / "leases" / "k").write_text("theirs")
        for count in range(3):
            card = {"count": count, "host": "elsewhere/boot", "pid": 1, "started": "1"}
            (tmp_path / "runs" / "theirs.json").write_text(json.dumps(card))
            assert not ours.acquire("k")

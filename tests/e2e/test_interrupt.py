"""Ctrl-C and a scheduler's SIGTERM: what is finished is kept, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_store_that_continues(tmp_path: Path, signal_number: signal.Signals) -> None:
    tiny.write(tmp_path)
    command = [sys.executable, "-m", "harness", "run", "tiny.yaml", "-j", "2", "--tracking", "none"]
    driver = subprocess.Popen(command, cwd=tmp_path, env=tiny.environment(), stderr=subprocess.PIPE, text=True)
    objects = tmp_path / "runs" / "store" / "objects"
    while len(list(objects.glob("*/*/manifest.json"))) < 3 and driver.poll() is None:
        time.sleep(0.05)
    driver.send_signal(signal_number)
    _, log = driver.communicate(timeout=120)
    assert driver.returncode == 130, log
    assert "run the same command again to continue" in log
    assert "Traceback" not in log
    planned = tiny.run_json("plan", "tiny.yaml", cwd=tmp_path)
    assert sum(kind["cached"] for kind in planned["kinds"].values()) >= 3
    assert not list((tmp_path / "runs" / "store" / "leases").iterdir())

"""Drivers that are killed, that meet, and whose clock jumps."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab, finish, line

Check = Callable[..., None]
QUIET = ("--tracking", "none")
KILLS = 20


def test_the_driver_is_killed_at_random_moments(lab: Lab, survived: Check) -> None:
    """Each attempt goes on where the last one was killed; towards the end also within collecting and logging."""
    moments = random.Random()
    seen: dict[str, tuple[str, int]] = {}
    for _ in range(KILLS):
        run = lab.start()
        try:
            run.wait(moments.uniform(0.5, 20))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
        run.communicate()
        time.sleep(3)  # orphaned workers end within two seconds
        now = lab.finished()
        again = [title for key, (title, at) in seen.items() if now[key][1] != at]
        assert again == [], "what had finished ran again"
        seen = now
    _, log = lab.run()
    survived("the driver is killed", lab, line(log, "tiny:", "cached"), seen)


def test_two_drivers_on_one_store(lab: Lab, survived: Check) -> None:
    first, second = lab.start(*QUIET), lab.start(*QUIET, "--home", str(lab.folder / "other"), "--store", str(lab.store))
    (one, log), (other, _) = finish(first), finish(second)
    titles = [*one["executed_stages"], *other["executed_stages"]]
    assert len(titles) == len(set(titles)), "a stage ran in both"
    assert len(titles) == len(lab.finished())
    survived("two drivers on one store", lab, line(log, "tiny:", "executed"))


def test_the_clock_is_moved_backwards(lab: Lab, survived: Check, tmp_path: Path) -> None:
    """Through libfaketime, in the driver and in what it starts; the monotonic clock is left alone."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed (Debian's package faketime)")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    fake = {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    run = lab.start(*QUIET, **fake)
    lab.await_finished(8, run)
    before = lab.finished()
    offset.write_text("-1d\n")
    answer, log = finish(run)
    assert answer["seconds"] >= 0
    survived("the clock is moved backwards", lab, line(log, "tiny:", "executed"), before)

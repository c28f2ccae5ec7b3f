"""Drivers that are killed, that meet, and whose clock jumps."""

from __future__ import annotations

import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab, finish, line

Check = Callable[..., None]
QUIET = ("--tracking", "none")
SUPPORT = Path(__file__).resolve().parents[1] / "support"
KILLS = 20


def test_the_driver_is_killed_at_random_moments(lab: Lab, survived: Check) -> None:
    """Each attempt goes on where the last one was killed; towards the end also within collecting and logging."""
    moments = random.Random()
    seen: dict[str, tuple[str, int]] = {}
    for _ in range(KILLS):
        run = lab.start()
        try:
            run.wait(moments.uniform(1, 9))
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
    """By a day, for the driver and all that it starts, Ray's own processes included; the monotonic clock goes on."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler for the library that moves the clock")
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SUPPORT / "clock.c"], check=True)
    offset.write_bytes(struct.pack("l", 0))
    run = lab.start(*QUIET, LD_PRELOAD=str(library), CLOCK_OFFSET=str(offset))
    lab.await_finished(8, run)
    before = lab.finished()
    with offset.open("r+b") as mapped:  # in place: it is mapped by all of them
        mapped.write(struct.pack("l", -86400))
    answer, log = finish(run)
    assert answer["seconds"] >= 0
    survived("the clock is moved backwards", lab, line(log, "tiny:", "executed"), before)

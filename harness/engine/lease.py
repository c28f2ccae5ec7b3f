"""Who is computing what: two runs on one store never repeat each other's stages.

A run announces itself in STORE/runs with a counter that a thread keeps advancing. A lease is a file created
exclusively in STORE/leases that names the run. A run is dead when its process is gone (same host) or when its
counter has not moved for `PATIENCE` seconds of the observer's own monotonic clock: wall clocks, which may jump,
play no part. A dead run's leases may be taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path

from harness.engine.store import write_atomically

BEAT = 2.0
"""Seconds between two beats of a living run."""
PATIENCE = 20.0
"""Seconds without a beat after which a run on another host counts as dead."""


class Leases:
    """The leases of one run. Use as a context manager: it announces the run, beats, and cleans up."""

    def __init__(self, root: Path):
        self.root = root
        self.run = uuid.uuid4().hex[:12]
        self._count = 0
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._watched: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Leases:
        for name in ("runs", "leases", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="lease-beat")
        self._thread.start()
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._held):
            self.release(key)
        shutil.rmtree(self.root / "tmp" / self.run, ignore_errors=True)
        self._announcement(self.run).unlink(missing_ok=True)

    def acquire(self, key: str) -> bool:
        """Take the lease of a key. False while a living run holds it."""
        path = self.root / "leases" / key
        for _ in range(3):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self._take_from_the_dead(path):
                    return False
                continue
            with os.fdopen(descriptor, "w") as file:
                file.write(self.run)
            self._held.add(key)
            return True
        return False

    def release(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            (self.root / "leases" / key).unlink(missing_ok=True)

    def _take_from_the_dead(self, path: Path) -> bool:
        try:
            owner = path.read_text()
        except FileNotFoundError:
            return True
        if owner and self._alive(owner):
            return False
        if not owner and self._fresh(path.name):  # created a moment ago, its owner's name not yet written
            return False
        grave = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # of several heirs one rename succeeds
            os.rename(path, grave)
            grave.unlink()
        return True

    def _fresh(self, name: str) -> bool:
        first = self._watched.setdefault(f"unnamed {name}", (0, time.monotonic()))[1]
        return time.monotonic() - first < PATIENCE

    def _alive(self, run: str) -> bool:
        if run == self.run:
            return True
        try:
            card = json.loads(self._announcement(run).read_text())
            count, host, pid, started = card["count"], card["host"], card["pid"], card["started"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if host == _host():
            return _process_start(pid) == started
        seen = self._watched.get(run)
        if seen is None or seen[0] != count:
            self._watched[run] = (count, time.monotonic())
            return True
        return time.monotonic() - seen[1] < PATIENCE

    def _announcement(self, run: str) -> Path:
        return self.root / "runs" / f"{run}.json"

    def _beat(self) -> None:
        self._count += 1
        card = {"count": self._count, "host": _host(), "pid": os.getpid(), "started": _process_start(os.getpid())}
        with contextlib.suppress(OSError):  # a full disk must not end the run by way of its heartbeat
            write_atomically(self._announcement(self.run), json.dumps(card))

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT):
            self._beat()

    def _sweep(self) -> None:
        """Remove what dead runs on this host left half-written."""
        for folder in (self.root / "tmp").iterdir():
            if folder.is_dir() and folder.name != self.run and not self._alive(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for card in (self.root / "runs").glob("*.json"):
            if not self._alive(card.stem):
                card.unlink(missing_ok=True)


def _host() -> str:
    """Host name and boot id: a process id means nothing after a reboot or on another machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{boot.read_text().strip()}"
    return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """When the process started, None if there is none: guards against a process id used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc").is_dir():
        return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "unknown"

"""Who is computing what: two runs on one store never repeat each other's stages.

A run announces itself in runs/ with a counter that a thread keeps advancing. A lease is a note created exclusively in
leases/ that names the run; both lie on the store's desk (engine/desk.py). A run is dead when its process is gone (same
host) or when its counter has not moved for `PATIENCE` seconds of the observer's own monotonic clock: wall clocks, which
may jump, play no part. A dead run's leases may be taken over.
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

from harness.engine.desk import Desk, FolderDesk
from harness.engine.store import DOWNLOADS

BEAT = 2.0
"""Seconds between two beats of a living run."""
PATIENCE = 20.0
"""Seconds without a beat after which a run on another host counts as dead."""


class Leases:
    """The leases of one run. Use as a context manager: it announces the run, beats, and cleans up.

    root: the store's local folder, where half-written artifacts lie. desk: where the notes lie; default: there too.
    """

    def __init__(self, root: Path, desk: Desk | None = None):
        self.root = root
        self._desk = desk
        self.run = uuid.uuid4().hex[:12]
        self._count = 0
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._watched: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Leases:
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        self.desk = self._desk or FolderDesk(self.root)
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
        # Of a run that was killed between a commit and the return of its lease: nobody asks for what is finished.
        for key in self.desk.names("leases"):
            if (owner := self.desk.read(f"leases/{key}")) and not self._alive(owner):
                self.desk.seize(f"leases/{key}")
        shutil.rmtree(self.root / "tmp" / self.run, ignore_errors=True)
        self.desk.remove(f"runs/{self.run}.json")

    def acquire(self, key: str) -> bool:
        """Take the lease of a key. False while a living run holds it."""
        name = f"leases/{key}"
        for _ in range(3):
            if self.desk.create(name, self.run):
                self._held.add(key)
                return True
            if not self._free_of_the_dead(name):
                return False
        return False

    def release(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            self.desk.remove(f"leases/{key}")

    def _free_of_the_dead(self, name: str) -> bool:
        owner = self.desk.read(name)
        if owner is None:
            return True
        if owner and self._alive(owner):
            return False
        if not owner and self._fresh(name):  # created a moment ago, its owner's name not yet written
            return False
        self.desk.seize(name)
        return True

    def _fresh(self, name: str) -> bool:
        first = self._watched.setdefault(f"unnamed {name}", (0, time.monotonic()))[1]
        return time.monotonic() - first < PATIENCE

    def _alive(self, run: str) -> bool:
        if run == self.run:
            return True
        try:
            card = json.loads(self.desk.read(f"runs/{run}.json") or "")
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

    def _beat(self) -> None:
        self._count += 1
        card = {"count": self._count, "host": _host(), "pid": os.getpid(), "started": _process_start(os.getpid())}
        with contextlib.suppress(OSError):  # a full disk must not end the run by way of its heartbeat
            self.desk.write(f"runs/{self.run}.json", json.dumps(card))

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT):
            self._beat()

    def _sweep(self) -> None:
        """Remove what dead runs on this host left half-written."""
        for folder in (self.root / "tmp").iterdir():
            if folder.is_dir() and not self._in_use(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for name in self.desk.names("runs"):
            if name.endswith(".json") and not self._alive(name.removesuffix(".json")):
                self.desk.remove(f"runs/{name}")

    def _in_use(self, name: str) -> bool:
        if name.startswith(DOWNLOADS):
            return _process_start(int(name.removeprefix(DOWNLOADS))) is not None
        return self._alive(name)


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

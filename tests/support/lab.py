"""A folder in which the benchmark of the fault tests runs, with the means to disturb it and to see what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import tiny

METHODS: dict[str, Any] = {"none": None, "histogram_matching": None, "mischief": None}


@dataclass
class Lab:
    """A folder with the benchmark, its runs, and what it takes to run it."""

    folder: Path
    plugin: str

    @property
    def store(self) -> Path:
        return self.folder / "runs" / "store"

    def write(self, how: str | None = None, **changes: Any) -> None:
        """The benchmark file; the plugin does what `how` says."""
        tiny.write(self.folder, methods=METHODS | ({"mischief": {"how": how}} if how else {}), **changes)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness", "run", "tiny.yaml", "-j", "2", "--json", *arguments]
        env = tiny.environment(**{"PYTHONPATH": self.plugin, **environment})
        return subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, code: int = 0, **environment: str) -> tuple[dict[str, Any], list[str]]:
        """Run to the end: the JSON answer, and the lines the user saw."""
        return finish(self.start(*arguments, **environment), code)

    def records(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "runs" / "tiny" / "records.parquet")

    def finished(self) -> dict[str, tuple[str, int]]:
        """Key → title and time of commit of every artifact."""
        found = {}
        for path in self.store.glob("objects/*/*/manifest.json"):
            found[path.parent.name] = (json.loads(path.read_text())["title"], path.stat().st_mtime_ns)
        return found

    def await_finished(self, count: int, run: subprocess.Popen[str]) -> None:
        """Wait until so many stages are finished."""
        deadline = time.monotonic() + 400
        while len(list(self.store.glob("objects/*/*/manifest.json"))) < count:
            assert run.poll() is None, "the run ended before the fault could strike"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def artifact(self, kind: str) -> Path:
        """The folder of a finished artifact of a kind: the first by title."""
        found = {}
        for path in self.store.glob("objects/*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            if manifest["kind"] == kind:
                found[manifest["title"]] = path.parent
        return found[min(found)]

    def largest(self, kind: str) -> Path:
        """The largest file of a finished artifact of a kind."""
        files = (path for path in self.artifact(kind).iterdir() if path.name != "manifest.json")
        return max(files, key=lambda path: path.stat().st_size)


def starved() -> dict[str, str]:
    """Environment of a run whose workers Ray ends once the machine holds 3 GiB more than it does now."""
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + 3 * 2**30) / memory.total
    return {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}


def finish(run: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Await the end of a run: the JSON answer, and the lines the user saw."""
    out, log = run.communicate(timeout=500)
    assert run.returncode == code, f"exit {run.returncode}\n{out}\n{log}"
    return json.loads(out), log.splitlines()


def line(log: list[str], *words: str) -> str:
    """The one line that tells of a fault; fails unless there is a line with all these words."""
    found = [text.strip() for text in log if all(word in text for word in words)]
    assert found, f"no line with {words} in\n" + "\n".join(log)
    return found[0]


def worker(run: subprocess.Popen[str], prefix: str) -> psutil.Process:
    """A worker process of a run whose stage's title starts so; waits for one."""
    deadline = time.monotonic() + 400
    while True:
        assert run.poll() is None, "the run ended before the fault could strike"
        assert time.monotonic() < deadline
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{prefix}"):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.02)

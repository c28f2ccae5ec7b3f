"""Where a user's runs lie: one folder for the store, the results, the caches and the embedded MLflow.

HOME/store/             artifacts              (--store, HARNESS_STORE)
HOME/BENCHMARK/         records, report, exhibits of one benchmark
HOME/sweeps/            what the trials of a sweep reported
HOME/mlflow.db          MLflow's embedded store (--tracking, MLFLOW_TRACKING_URI)
HOME/cache/             fingerprints, painted templates
HOME/last.json          what was run last
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError


@dataclass(frozen=True)
class Home:
    """Resolved places. `store` may be a URL; `tracking` is an MLflow URI, or "none"."""

    root: Path
    store: str
    tracking: str

    @classmethod
    def of(cls, home: Path | None = None, store: str | None = None, tracking: str | None = None) -> Home:
        """Flags, then environment (HARNESS_HOME, HARNESS_STORE, MLFLOW_TRACKING_URI), then ./runs."""
        root = (home or Path(os.environ.get("HARNESS_HOME", "runs"))).absolute()
        store = store or os.environ.get("HARNESS_STORE") or str(root / "store")
        tracking = tracking or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
        return cls(root, store, tracking)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def results(self, benchmark: str) -> Path:
        return self.root / benchmark

    def create(self) -> None:
        """Make the folder. Raises UserError if that is impossible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"cannot be created: {error.strerror or error}; name another folder with --home"
            raise UserError(Problem(str(self.root), what)) from None

    def remember(self, benchmark: str, file: Path) -> None:
        write_atomically(self.root / "last.json", json.dumps({"benchmark": benchmark, "file": str(file.absolute())}))

    def last_file(self) -> Path:
        """The benchmark file run last. Raises UserError if there is none."""
        try:
            return Path(json.loads((self.root / "last.json").read_text())["file"])
        except (OSError, ValueError, KeyError):
            raise UserError(Problem(str(self.root), "nothing has run here yet; name a benchmark file")) from None

    def find_results(self, name: str | None) -> Path:
        """The results folder of a benchmark given by name, YAML file or folder; the last run's if None."""
        candidates: list[Path] = []
        if name is None:
            candidates = (
                [self.results(json.loads((self.root / "last.json").read_text())["benchmark"])]
                if (self.root / "last.json").is_file()
                else []
            )
        else:
            candidates = [Path(name), self.results(name), self.results(Path(name).stem)]
            if name.endswith((".yaml", ".yml")) and Path(name).is_file():
                from harness.derived import read_derived

                candidates.insert(0, self.results(str(read_derived(name).data.get("benchmark", ""))))
        for folder in candidates:
            if (folder / "run.json").is_file():
                return folder
        known = sorted(p.parent.name for p in self.root.glob("*/run.json"))
        what = f"no results of {name!r} here" if name else "no results here yet"
        raise UserError(
            Problem(str(self.root), f"{what}; {'known: ' + ', '.join(known) if known else 'run a benchmark'}")
        )

"""How the runs that a projection wants are brought about in MLflow. Used by tracking.py only.

Runs are compared by a digest of their content: one that is there whole is kept, anything else of the same identity
is replaced. MLflow's parameters cannot change and its metrics cannot be taken back, so nothing is edited in place.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from mlflow.entities import Experiment, Metric, Param, Run, ViewType
from mlflow.tracking import MlflowClient

from harness.results import ages, exhibits, leaderboard, mlflow_wanted, records, runinfo, terminal
from harness.results.connection import sqlite_path
from harness.results.leaderboard import Leaderboard
from harness.results.mlflow_wanted import Wanted
from harness.results.runinfo import RunInfo

DIGEST = "harness.digest"
# MLflow's own limits on one batch.
MOST_PARAMS = 100
MOST_ENTRIES = 1000


@dataclass(frozen=True)
class Outcome:
    experiment_id: str
    written: int
    kept: int


@dataclass
class Sync:
    """One projection of one folder."""

    folder: Path
    client: MlflowClient
    board: Leaderboard
    table: pl.DataFrame
    experiment_id: str
    existing: dict[tuple[tuple[str, str], ...], list[Run]]
    written: int = 0
    kept: int = 0

    @classmethod
    def open(cls, folder: Path, uri: str) -> Sync:
        """Read the folder and the experiment, which is created where it is new."""
        info, table = runinfo.read(folder), records.read(folder)
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, info, uri)
        existing: dict[tuple[tuple[str, str], ...], list[Run]] = {}
        for run in _runs(client, experiment_id, info.run_id):
            existing.setdefault(_identity(run.data.tags), []).append(run)
        table = records.of_processing(table, info.processing)
        board = leaderboard.build_beside(folder, info, table)
        return cls(folder, client, board, table, experiment_id, existing)

    def run(self) -> Outcome:
        """Write what is missing or different, then remove what the folder no longer says."""
        parent = self._ensure(mlflow_wanted.invocation(self.board))
        for wanted in mlflow_wanted.cells(self.board, self.table, exhibits.read_curves(self.folder), parent):
            self._ensure(wanted)
        # Worst first: MLflow lists runs without a value newest first.
        for row in reversed(self.board.rows):
            self._ensure(mlflow_wanted.leaderboard_row(self.board, row, self.experiment_id, parent))
        for stale in (run for runs in self.existing.values() for run in runs):
            self.client.delete_run(stale.info.run_id)
        for key, value in mlflow_wanted.experiment_tags(self.board).items():
            self.client.set_experiment_tag(self.experiment_id, key, value)
        return Outcome(self.experiment_id, self.written, self.kept)

    def _ensure(self, wanted: Wanted) -> str:
        """The id of a finished run with this content: one that exists, or a new one in place of its predecessors."""
        before = self.existing.pop(tuple(sorted(wanted.identity.items())), [])
        whole = [r for r in before if r.info.status == "FINISHED" and r.data.tags.get(DIGEST) == wanted.digest]
        if whole:
            self.kept += 1
            run_id = whole[0].info.run_id
        else:
            self.written += 1
            run_id = self._write(wanted)
        for old in before:
            if old.info.run_id != run_id:
                self.client.delete_run(old.info.run_id)
        return run_id

    def _write(self, wanted: Wanted) -> str:
        tags = {**wanted.identity, **wanted.tags, DIGEST: wanted.digest}
        if wanted.parent:
            tags["mlflow.parentRunId"] = wanted.parent
        run_id = self.client.create_run(self.experiment_id, run_name=wanted.name, tags=tags).info.run_id
        now = int(time.time() * 1000)
        params = [Param(key, value[: mlflow_wanted.LONGEST_PARAM]) for key, value in wanted.params.items()]
        points = [Metric(key, value, now, 0) for key, value in wanted.metrics.items()]
        points += [Metric(name, value, now, step) for name, step, value in wanted.curves]
        while params or points:
            some, params = params[:MOST_PARAMS], params[MOST_PARAMS:]
            room = MOST_ENTRIES - len(some)
            self.client.log_batch(run_id, metrics=points[:room], params=some)
            points = points[room:]
        if wanted.files:
            self._log_files(run_id, wanted)
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def _log_files(self, run_id: str, wanted: Wanted) -> None:
        figures = self.folder / "figures"
        if not (self.folder / "report.html").is_file() or not figures.is_dir():
            from harness.results.html import write_report

            write_report(self.folder, self.folder / "report.html")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "leaderboard.csv").write_text(terminal.to_csv(self.board))
            (Path(folder) / "leaderboard.md").write_text(terminal.to_markdown(self.board))
            self.client.log_artifacts(run_id, folder)
        if wanted.files == "row":
            for path in _own_figures(figures, {wanted.params["method"], wanted.params.get("method_id", "")}):
                self.client.log_artifact(run_id, str(path), "figures")
            return
        names = ["report.html", *(["run.json", "records.parquet"] if wanted.files == "all" else [])]
        if wanted.files == "all" and (self.folder / ages.PREDICTIONS).is_file():
            names.append(ages.PREDICTIONS)
        for name in names:
            self.client.log_artifact(run_id, str(self.folder / name))
        self.client.log_artifacts(run_id, str(figures), "figures")


def _experiment(client: MlflowClient, info: RunInfo, uri: str) -> str:
    found: Experiment | None = client.get_experiment_by_name(info.benchmark)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    path = sqlite_path(uri)
    # A server places artifacts itself; beside a file they would land in the current folder.
    place = (path.parent / "mlartifacts" / info.benchmark).as_uri() if path else None
    return str(client.create_experiment(info.benchmark, artifact_location=place))


def _runs(client: MlflowClient, experiment_id: str, run_id: str) -> Iterator[Run]:
    """Runs of this projection: those of the invocation, and every leaderboard run. Other invocations are history."""
    for condition in (f"tags.`harness.run_id` = '{_quoted(run_id)}'", "tags.kind = 'leaderboard'"):
        token = None
        while True:
            page = client.search_runs([experiment_id], condition, ViewType.ACTIVE_ONLY, 500, page_token=token)
            yield from page
            token = page.token
            if not token:
                break


def _identity(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    names = {"leaderboard": ("kind", "method"), "cell": ("kind", "harness.run_id", "method", "source")}
    keys = names.get(tags.get("kind", ""), ("kind", "harness.run_id"))
    return tuple(sorted((key, tags.get(key, "")) for key in keys))


def _own_figures(folder: Path, names: set[str]) -> list[Path]:
    """The figures that show one method and no other."""
    clean = {re.sub(r"[^\w\-]", "_", name, flags=re.ASCII) for name in names}
    kinds = [f"{kind}-{name}" for kind in ("samples", "components", "stopping") for name in sorted(clean)]
    return sorted(path for path in folder.iterdir() if path.stem in kinds)


def _quoted(text: str) -> str:
    return text.replace("'", "")

"""What a projection writes to MLflow: the runs it wants, and how they are brought about. Used by tracking.py only.

Runs are compared by a digest of their content: one that is there whole is kept, anything else of the same identity
is replaced. MLflow's parameters cannot change and its metrics cannot be taken back, so nothing is edited in place.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from mlflow.entities import Experiment, Metric, Param, Run, ViewType
from mlflow.tracking import MlflowClient

from harness.metrics.catalogue import METRICS
from harness.results import aggregate, exhibits, leaderboard, records, runinfo, terminal
from harness.results.connection import sqlite_path
from harness.results.leaderboard import Leaderboard, Row
from harness.results.runinfo import RunInfo

DIGEST = "harness.digest"
MOST_POINTS = 500  # of one curve; all of them stay in curves.parquet
LONGEST_PARAM = 6000  # MLflow's own limit


@dataclass(frozen=True)
class Wanted:
    """A run as it should be. `identity` are the tags that make it this run and no other."""

    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: tuple[tuple[str, int, float], ...] = ()
    parent: str = ""
    files: bool = False

    @property
    def digest(self) -> str:
        content = [self.name, self.tags, self.params, self.metrics, self.curves, self.parent, self.files]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()[:16]


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
        return cls(folder, client, leaderboard.build_from(info, table), table, experiment_id, existing)

    def run(self) -> Outcome:
        """Write what is missing or different, then remove what the folder no longer says."""
        parent = self._ensure(_invocation(self.board))
        for wanted in _cells(self.board, self.table, exhibits.read_curves(self.folder), parent):
            self._ensure(wanted)
        # Worst first: MLflow lists runs without a value newest first.
        for row in reversed(self.board.rows):
            self._ensure(_leaderboard_row(self.board, row))
        for stale in (run for runs in self.existing.values() for run in runs):
            self.client.delete_run(stale.info.run_id)
        self._describe()
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
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in wanted.params.items()]
        points = [Metric(key, value, now, 0) for key, value in wanted.metrics.items()]
        points += [Metric(name, value, now, step) for name, step, value in wanted.curves]
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(points), 1000):
            self.client.log_batch(run_id, metrics=points[start : start + 1000])
        if wanted.files:
            self._log_files(run_id)
        self.client.set_terminated(run_id, "FINISHED")
        return run_id

    def _log_files(self, run_id: str) -> None:
        report = self.folder / "report.html"
        if not report.is_file():
            from harness.results.html import write_report

            write_report(self.folder, report)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "leaderboard.csv").write_text(terminal.to_csv(self.board))
            (Path(folder) / "leaderboard.md").write_text(terminal.to_markdown(self.board))
            self.client.log_artifacts(run_id, folder)
        for name in ("report.html", "run.json", "records.parquet"):
            self.client.log_artifact(run_id, str(self.folder / name))
        self.client.log_artifacts(run_id, str(self.folder / "figures"), "figures")

    def _describe(self) -> None:
        """Keep with the experiment the view that shows its leaderboard, and what it is."""
        info, headline = self.board.info, METRICS[self.board.info.headline]
        columns = [f"metrics.`{metric}`" for metric in self.board.metrics]
        view = {
            "searchFilter": "tags.kind = 'leaderboard'",
            "orderByKey": f"metrics.`{headline.id}`",
            "orderByAsc": headline.lower_is_better,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": [*columns, "metrics.`mean_rank`", "metrics.`failed_cells`", "tags.`method`"],
        }
        simulated = " (simulated data)" if info.dataset.simulated else ""
        about = f"{info.dataset.name}{simulated}. The runs tagged kind=leaderboard are the leaderboard."
        note = f"{info.description}\n\n{about}"
        self.client.set_experiment_tag(self.experiment_id, "mlflow.sharedViewState.leaderboard", json.dumps(view))
        self.client.set_experiment_tag(self.experiment_id, "mlflow.note.content", note.strip())


# ------------------------------------------------------------------------------------------- the experiment


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


# ------------------------------------------------------------------------------------------- the runs


def _invocation(board: Leaderboard) -> Wanted:
    info = board.info
    params = {
        "track": info.track,
        "dataset": info.dataset.id,
        "simulated": str(info.dataset.simulated).lower(),
        "sites": ", ".join(info.sites),
        "seeds": ", ".join(map(str, info.seeds)),
        "baseline": info.baseline,
        "headline": info.headline,
        "version": info.version,
        "commit": info.commit or "",
        "started": info.started,
    }
    metrics = {f"stages/{name}": float(count) for name, count in info.counts.model_dump().items()}
    metrics |= {"seconds": info.seconds, "failed_cells": float(board.failed_cells)}
    identity = {"kind": "invocation", "harness.run_id": info.run_id}
    return Wanted(f"{info.benchmark} {info.run_id}", identity, params=params, metrics=metrics, files=True)


def _cells(board: Leaderboard, table: pl.DataFrame, curves: pl.DataFrame, parent: str) -> Iterator[Wanted]:
    """One run per method × source; task training, shared by all methods, is a method of its own here."""
    info = board.info
    means = aggregate.pair_means(table)
    states = aggregate.cell_states(table)
    sources = table.select("method", "source").unique(maintain_order=True).rows()
    shared = curves.filter(pl.col("method") == "task").select("method", "source").unique(maintain_order=True).rows()
    for method, source in dict.fromkeys((*sources, *shared)):
        here = (pl.col("method") == method) & (pl.col("source") == source)
        lost = states.filter(here & pl.col("state").is_in(["failed", "blocked", "absent"]))
        errors = "; ".join(dict.fromkeys(f"{r['target']}: {r['note']}" for r in lost.iter_rows(named=True)))
        metrics = dict(_means(means.filter(here)))
        metrics["failed_cells"] = float(lost.select("seed", "target").n_unique())
        yield Wanted(
            name=f"{method} from {source}",
            identity={"kind": "cell", "harness.run_id": info.run_id, "method": method, "source": source},
            tags={"errors": errors[:LONGEST_PARAM]} if errors else {},
            params=_params(info, method) | {"source": source, "seeds": ", ".join(map(str, info.seeds))},
            metrics=metrics,
            curves=tuple(_curves(curves.filter(here))),
            parent=parent,
        )


def _means(pairs: pl.DataFrame) -> Iterator[tuple[str, float]]:
    """METRIC over the targets that differ from the source, METRIC/TARGET for each, in_domain/METRIC for the source."""
    for (metric,), rows in pairs.group_by(["metric"], maintain_order=True):
        away = rows.filter(aggregate.OFF_DIAGONAL)
        if len(away):
            yield str(metric), float(away["value"].to_numpy().mean())
        for row in rows.iter_rows(named=True):
            same = row["source"] == row["target"]
            yield _key(f"in_domain/{metric}" if same else f"{metric}/{row['target']}"), row["value"]


def _curves(table: pl.DataFrame) -> Iterator[tuple[str, int, float]]:
    several = table["seed"].n_unique() > 1
    for _, curve in table.group_by(["stage", "name", "target", "seed"], maintain_order=True):
        first = curve.row(0, named=True)
        parts = [first["stage"], first["name"], first["target"], f"seed {first['seed']}" if several else ""]
        finite = curve.filter(pl.col("value").is_finite()).sort("step")
        stride = max(1, math.ceil(len(finite) / MOST_POINTS))
        for row in finite.gather_every(stride).iter_rows(named=True):
            yield _key("/".join(part for part in parts if part)), row["step"], row["value"]


def _leaderboard_row(board: Leaderboard, row: Row) -> Wanted:
    metrics = {"cells": float(row.cells), "failed_cells": float(row.failed_cells)}
    if row.position is not None:
        metrics["position"] = float(row.position)
    if row.mean_rank is not None:
        metrics["mean_rank"] = row.mean_rank
    for metric, score in row.scores.items():
        # Under a name of its own an oracle cannot come first where runs are sorted by the metric.
        whole = f"oracle/{metric}" if row.oracle else metric if score.complete else f"partial/{metric}"
        values = {whole: score.mean, f"sd/{metric}": score.sd, f"in_domain/{metric}": score.in_domain}
        values |= {f"low/{metric}": score.low, f"high/{metric}": score.high}
        metrics |= {key: value for key, value in values.items() if value is not None}
    complete = row.scores[board.info.headline].complete
    return Wanted(
        name=row.method,
        identity={"kind": "leaderboard", "method": row.method},
        tags={"complete": str(complete).lower(), "run": board.info.run_id} | ({"oracle": "true"} if row.oracle else {}),
        params=_params(board.info, row.method) | {trait: str(has).lower() for trait, has in row.traits.items()},
        metrics=metrics,
    )


def _params(info: RunInfo, method: str) -> dict[str, str]:
    known = info.task if method == "task" else next((m for m in info.methods if m.name == method), None)
    found = {"method": method, "dataset": info.dataset.id}
    if known is not None:
        found |= {"method_id": known.id, "family": known.family, **dict(_flat(known.fields))}
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "field") -> Iterator[tuple[str, str]]:
    """Nested fields as "field.group.name"; the prefix keeps them apart from the harness' own parameters."""
    for name, value in fields.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, key)
        else:
            yield _key(key), value if isinstance(value, str) else json.dumps(value, default=str)


def _key(name: str) -> str:
    """A name as MLflow allows it in keys: letters, digits and "_-./ "; no empty or dotted path parts."""
    parts = [re.sub(r"[^\w\-. ]", "_", part, flags=re.ASCII).strip(". ") or "_" for part in name.split("/")]
    return "/".join(parts)[:250]


def _quoted(text: str) -> str:
    return text.replace("'", "")

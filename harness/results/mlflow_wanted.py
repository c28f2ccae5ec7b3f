"""What MLflow should hold of a results folder: runs, and the view of its leaderboard. Knows nothing of any client."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from harness.metrics.catalogue import METRICS
from harness.results import aggregate
from harness.results.leaderboard import Leaderboard, Row
from harness.results.runinfo import RunInfo

MOST_POINTS = 500  # of one curve; all of them stay in curves.parquet
LONGEST_PARAM = 6000  # MLflow's own limit
# Columns of MLflow's pages, by the names these have there.
RUN_NAME_COLUMN = "attributes.`Run Name`"
TIME_COLUMNS = ("runDateAndNestInfo", "duration")


@dataclass(frozen=True)
class Wanted:
    """A run as it should be. `identity` are the tags that make it this run and no other.

    files: which of the folder's files hang on it. "all"; "report" without the records; "row": the tables, and the
    figures of the one method.
    """

    name: str
    identity: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: tuple[tuple[str, int, float], ...] = ()
    parent: str = ""
    files: Literal["all", "report", "row", ""] = ""

    @property
    def digest(self) -> str:
        content = [self.name, self.tags, self.params, self.metrics, self.curves, self.parent, self.files]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def experiment_tags(board: Leaderboard) -> dict[str, str]:
    """What an experiment carries: the view that shows its leaderboard, and what it is."""
    info, headline = board.info, METRICS[board.info.headline]
    # Texts are for reading, numbers for sorting: the texts come first, and have the room they need.
    texts = [f"tags.`{_text_tag(metric)}`" for metric in board.metrics]
    numbers = [f"metrics.`{name}`" for name in ("mean_rank", "failed_cells", *board.metrics)]
    view = {
        "searchFilter": "tags.kind = 'leaderboard'",
        "orderByKey": f"metrics.`{headline.id}`",
        "orderByAsc": headline.lower_is_better,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*texts, *numbers],
        "columnOrder": [RUN_NAME_COLUMN, *texts, *numbers, *TIME_COLUMNS],
        "columnWidths": {RUN_NAME_COLUMN: 210, **dict.fromkeys(texts, 135), **dict.fromkeys(numbers, 105)},
    }
    simulated = " (simulated data)" if info.dataset.simulated else ""
    # Its first line is all that MLflow shows at first.
    note = (
        f"{' '.join(info.description.split()) or info.benchmark} — {info.dataset.name}{simulated}\n\n"
        "The runs tagged kind=leaderboard are the leaderboard. Those tagged kind=cell are methods by source site; "
        "those tagged kind=invocation hold report, figures and records."
    )
    return {
        "mlflow.sharedViewState.leaderboard": json.dumps(view),
        "mlflow.note.content": note,
        # Else its pages offer what one needs for language models.
        "mlflow.experimentKind": "custom_model_development",
    }


def invocation(board: Leaderboard) -> Wanted:
    """The run that stands for one `harness run`: what it was, how it ended, and every file it left."""
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
    return Wanted(f"{info.benchmark} {info.run_id}", identity, params=params, metrics=metrics, files="all")


def cells(board: Leaderboard, table: pl.DataFrame, curves: pl.DataFrame, parent: str) -> Iterator[Wanted]:
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


def leaderboard_row(board: Leaderboard, row: Row, experiment_id: str, parent: str) -> Wanted:
    """One row of the leaderboard; `parent` is the id of the invocation's run, to which its page leads."""
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
    texts = {metric: row.scores[metric].text for metric in board.metrics}
    units = {metric: METRICS[metric].shown_unit if row.scores[metric].mean is not None else "" for metric in texts}
    tags = {_text_tag(metric): f"{text} {units[metric]}".strip() for metric, text in texts.items()}
    tags |= {"complete": str(row.scores[board.info.headline].complete).lower(), "run": board.info.run_id}
    tags |= {"oracle": "true"} if row.oracle else {}
    first = row is board.rows[0]
    tags["mlflow.note.content"] = _row_note(f"#/experiments/{experiment_id}/runs/{parent}", first)
    return Wanted(
        name=row.shown_name,
        identity={"kind": "leaderboard", "method": row.method},
        tags=tags,
        params=_params(board.info, row.method) | {trait: str(has).lower() for trait, has in row.traits.items()},
        metrics=metrics,
        # Reports have megabytes: one copy, where a reader looks first.
        files="report" if first else "row",
    )


def _row_note(invocation: str, first: bool) -> str:
    """What the page of a leaderboard's row says, in Markdown; `invocation` is the address of the run that made it."""
    menu = "?workflowType=machine_learning"
    report = f"[report]({invocation}/artifacts/report.html{menu})"
    here = "; report, figures and tables are also here" if first else ""
    return (
        f"The {report} and every figure, table and record are among the artifacts of [the run]({invocation}{menu}) "
        f"that made this row{here}."
    )


def _text_tag(metric: str) -> str:
    """The tag that holds a mean ± SD as tables show it."""
    return _key(METRICS[metric].name)


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

"""The long table: one row per (benchmark, track, method, seed, source, target, subject, label, metric, processing).

Everything that is shown anywhere derives from it. A cell that failed has a row for each of its metrics, with no
value, so that it can be counted.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import polars as pl

from harness.metrics.catalogue import METRICS
from harness.problems import Problem, UserError

FILE = "records.parquet"

Status = Literal["ok", "penalised", "empty", "failed", "blocked", "not_applicable"]
STATUSES = ("ok", "penalised", "empty", "failed", "blocked", "not_applicable")
VALUED = ("ok", "penalised")
"""Statuses whose rows have a value; the others have none."""


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement, or the trace of one that could not be made.

    method: the row's display name. subject: "" for a metric of a whole site. label: "" for a metric of no
    single structure. value: None unless status is "ok" or "penalised". note: the one-line error of a failed or
    blocked cell; "scan ID" where a subject has several scans; "N images" of a bin of lesion sizes.
    processing: what was done to anomaly maps before they were scored, "" where nothing could be.
    low, high: 95 % interval over subjects of a metric that pools them; None where the interval follows from the
    subjects' own records, or is not defined.
    """

    benchmark: str
    track: str
    method: str
    seed: int
    source: str
    target: str
    subject: str
    label: str
    metric: str
    value: float | None
    unit: str
    status: Status = "ok"
    note: str = ""
    processing: str = ""
    low: float | None = None
    high: float | None = None


_TYPES: dict[str, pl.DataType] = {"seed": pl.Int64(), **dict.fromkeys(("value", "low", "high"), pl.Float64())}
SCHEMA = pl.Schema({field.name: _TYPES.get(field.name, pl.String()) for field in fields(Record)})
KEY = ["benchmark", "track", "method", "seed", "source", "target", "subject", "label", "metric", "processing"]
LATER = {"processing": pl.lit(""), "low": pl.lit(None, pl.Float64()), "high": pl.lit(None, pl.Float64())}
"""Columns that tables of earlier versions lack, and what they would say."""


class InvalidRecords(ValueError):
    """Rows that do not follow the schema; says which rule and shows the first offender."""


def to_frame(records: Iterable[Record]) -> pl.DataFrame:
    """A validated, sorted frame. Raises InvalidRecords."""
    rows = [astuple(record) for record in records]
    return validated(pl.DataFrame(rows, schema=SCHEMA, orient="row"))


def no_value(
    status: Literal["failed", "blocked", "not_applicable"],
    note: str,
    metrics: Iterable[str],
    *,
    benchmark: str,
    track: str,
    method: str,
    seed: int,
    source: str,
    target: str,
) -> list[Record]:
    """The rows of a cell that gave nothing: one for each metric, carrying the first line of the error."""
    line = next((text.strip() for text in note.splitlines() if text.strip()), "")
    return [
        Record(benchmark, track, method, seed, source, target, "", "", metric, None, METRICS[metric].unit, status, line)
        for metric in metrics
    ]


def validated(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame in the schema's column order, sorted by key. Raises InvalidRecords."""
    frame = frame.with_columns(**{name: value for name, value in LATER.items() if name not in frame.columns})
    missing = [name for name in SCHEMA if name not in frame.columns]
    if missing:
        raise InvalidRecords(f"records lack the columns {', '.join(missing)}")
    frame = frame.select(SCHEMA.names()).cast(SCHEMA)
    has_value = pl.col("value").is_not_null() & pl.col("value").is_finite()
    rules = {
        "a key column is null": pl.any_horizontal(pl.col(*KEY, "unit", "status", "note").is_null()),
        "unknown status": ~pl.col("status").is_in(STATUSES),
        "unknown metric": ~pl.col("metric").is_in(list(METRICS)),
        "a status that has a value, without a finite one": pl.col("status").is_in(VALUED) & ~has_value,
        "a value beside a status that has none": ~pl.col("status").is_in(VALUED) & pl.col("value").is_not_null(),
        "the same row twice": pl.struct(*KEY, "note").is_duplicated(),
    }
    for rule, offends in rules.items():
        offenders = frame.filter(offends)
        if len(offenders):
            raise InvalidRecords(f"{rule}, in {len(offenders)} of {len(frame)} records; the first: {offenders.row(0)}")
    return frame.sort([*KEY, "note"])


def of_processing(frame: pl.DataFrame, processing: Sequence[str]) -> pl.DataFrame:
    """Records of the first processing listed, which orders the leaderboard, and of metrics that know of none."""
    return frame.filter(pl.col("processing").is_in(["", *processing[:1]]))


def write(folder: Path, frame: pl.DataFrame) -> None:
    """Replace the records of a results folder. Raises InvalidRecords."""
    write_parquet(folder / FILE, validated(frame))


def read(folder: Path) -> pl.DataFrame:
    """The records of a results folder. Raises UserError where they are absent or damaged."""
    try:
        return validated(read_parquet(folder / FILE))
    except InvalidRecords as error:
        what = f"{error}; the next `harness run` writes it anew"
        raise UserError(Problem(str(folder / FILE), what)) from None


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Replace a Parquet file so that a reader sees the old table or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        frame.write_parquet(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parquet(path: Path) -> pl.DataFrame:
    """A Parquet file. Raises UserError where it is absent or damaged."""
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = "does not exist" if not path.exists() else f"is damaged ({str(error).splitlines()[0]})"
        raise UserError(Problem(str(path), f"{reason}; the next `harness run` writes it anew")) from None


def read_optional(path: Path, schema: pl.Schema) -> pl.DataFrame:
    """The columns of a schema, without rows where the file was never written. Raises UserError where it is damaged."""
    if not path.is_file():
        return pl.DataFrame(schema=schema)
    frame = read_parquet(path)
    if missing := [name for name in schema if name not in frame.columns]:
        what = f"lacks the columns {', '.join(missing)}; the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what))
    return frame.select(schema.names())

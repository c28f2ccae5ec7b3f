"""Published numbers beside ours. A table of them is a CSV: method, setting, metric, mean, sd, unit, note.

`method` is a method's id, `setting` what `report.published` of a benchmark names, values are in the unit of records.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.metrics.catalogue import METRICS
from harness.problems import Problem, UserError, did_you_mean
from harness.results.leaderboard import Leaderboard

COLUMNS = ("method", "setting", "metric", "mean", "sd", "unit", "note")


@dataclass(frozen=True)
class Published:
    """One printed number."""

    method: str
    setting: str
    metric: str
    mean: float
    sd: float | None
    note: str


@dataclass(frozen=True)
class Beside:
    """A row's mean beside the published one; `difference` is ours − theirs. All in the unit of records."""

    method: str
    metric: str
    ours: float | None
    theirs: float
    sd: float | None
    difference: float | None
    note: str

    @property
    def texts(self) -> tuple[str, str, str]:
        """(ours, published, difference) as tables show them."""
        info = METRICS[self.metric]
        spread = f" ± {info.text(self.sd)}" if self.sd is not None else ""
        sign = "+" if self.difference is not None and self.difference > 0 else ""
        return info.text(self.ours), info.text(self.theirs) + spread, sign + info.text(self.difference)


def table_path(name: str) -> Path:
    """ "paper" is the table that comes with the project; anything else is the path of one. Raises UserError."""
    package = Path(__file__).resolve().parent.parent
    places = [package / "_published.csv", package.parent / "benchmarks" / "paper" / "published.csv"]
    path = next((p for p in places if p.is_file()), places[-1]) if name == "paper" else Path(name)
    if not path.is_file():
        raise UserError(Problem(name, "no such table; write --against paper, or the path of a CSV"))
    return path


def read(path: Path) -> tuple[Published, ...]:
    """A table of published numbers. Raises UserError, naming the line, for what cannot be read."""
    found, problems = [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise UserError(Problem(f"{path}:1", f"lacks the columns {', '.join(missing)}"))
        for line, row in enumerate(reader, 2):
            if row["metric"] not in METRICS:
                what = f"unknown metric {row['metric']!r}{did_you_mean(str(row['metric']), METRICS)}"
                problems.append(Problem(f"{path}:{line}", what))
                continue
            try:
                mean, sd = float(row["mean"]), float(row["sd"]) if row["sd"] else None
            except ValueError:
                problems.append(Problem(f"{path}:{line}", f"{row['mean']!r} ± {row['sd']!r} are no numbers"))
                continue
            found.append(Published(row["method"], row["setting"], row["metric"], mean, sd, row["note"]))
    if problems:
        raise UserError(problems)
    return tuple(found)


def beside(board: Leaderboard, table: Sequence[Published]) -> tuple[Beside, ...]:
    """Published numbers of the benchmark's setting beside its rows, in the rows' order.

    A row is matched by its method's id where it is the only one of that method, or bears its name. Raises UserError
    where the benchmark names no setting, or one that the table does not have.
    """
    setting = board.info.published
    settings = sorted({entry.setting for entry in table})
    if not setting:
        what = "names no published setting; add `report: {published: SETTING}` to the file and run it again"
        raise UserError(Problem(board.info.benchmark, f"{what}; known: {', '.join(settings)}"))
    if setting not in settings:
        what = f"the table has no setting {setting!r}{did_you_mean(setting, settings)}"
        raise UserError(Problem(board.info.benchmark, what))
    found = []
    for row in board.rows:
        alone = sum(other.id == row.id for other in board.rows) == 1
        if row.oracle or not (alone or row.method == row.id):
            continue
        for entry in table:
            if (entry.setting, entry.method) == (setting, row.id):
                score = row.scores.get(entry.metric)
                ours = score.mean if score is not None else None
                difference = None if ours is None else ours - entry.mean
                found.append(Beside(row.method, entry.metric, ours, entry.mean, entry.sd, difference, entry.note))
    return tuple(found)


def caution(board: Leaderboard) -> str:
    """What must be said beside the two columns; "" where nothing must."""
    if board.info.dataset.simulated:
        return "Our data are simulated: the two columns cannot be compared, they only show the order of methods."
    return ""

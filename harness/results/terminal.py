"""The leaderboard as text: a table for the terminal, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.metrics.catalogue import METRICS, ranked
from harness.results import age_terminal, anomaly_terminal
from harness.results.aggregate import grouped
from harness.results.combined import Combined
from harness.results.leaderboard import Leaderboard, Row
from harness.results.published import Beside

WIDTH = 100
"""Columns that the terminal table may take; metrics beyond it are named below the table."""

MOST_FAILURES = 8


def show(board: Leaderboard, console: Console) -> None:
    """Print the leaderboard, its footnotes and its failures."""
    metrics, left_out = _fitting(board, min(WIDTH, console.width))
    console.print(_title(board))
    for line in board.ages.warnings if board.ages else ():
        console.print(Text(f"data: {line}", style="yellow"), width=min(WIDTH, console.width))
    console.print(_table(board, metrics, plain=console.options.ascii_only))
    for title, table in (
        *anomaly_terminal.tables(board, min(WIDTH, console.width), console.options.ascii_only),
        *age_terminal.tables(board, min(WIDTH, console.width), console.options.ascii_only),
    ):
        console.print(Text(title, style="bold"), width=min(WIDTH, console.width))
        console.print(table)
    for line in _footnotes(board, left_out):
        console.print(Text(line, style="dim"), soft_wrap=False, width=min(WIDTH, console.width))
    _show_failures(board, console)


def to_csv(board: Leaderboard) -> str:
    """One line per method; values in the unit of the records, empty where there is none."""
    numbers = ("mean", "sd", "low", "high", "in_domain", "scored", "expected", "penalised")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["position", "method", "id", "family", "oracle", *board.traits]
    head += ["mean_rank", "available_rank", "cells", "failed_cells"]
    writer.writerow(head + [f"{metric}_{name}" for metric in board.metrics for name in numbers])
    for row in board.rows:
        values: list[object] = [row.position, row.method, row.id, row.family, row.oracle]
        values += [row.traits.get(trait) for trait in board.traits]
        values += [row.mean_rank, row.available_rank, row.cells, row.failed_cells]
        values += [getattr(row.scores[metric], name) for metric in board.metrics for name in numbers]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def to_markdown(board: Leaderboard) -> str:
    """A table with all metrics, the best in bold, and the footnotes."""
    heads = [
        "#",
        "method",
        *map(trait_label, board.traits),
        *(_heading(m, board) for m in board.metrics),
        "rank",
        "failed cells",
    ]
    lines = [_line(heads), _line(["--:", ":--"] + [":-:"] * len(board.traits) + ["--:"] * (len(board.metrics) + 2))]
    best = {metric: board.best(metric) for metric in board.metrics}
    for row in board.rows:
        texts = [row.scores[m].text for m in board.metrics]
        bold = [f"**{t}**" if row.method in best[m] else t for t, m in zip(texts, board.metrics, strict=True)]
        traits = [trait_mark(row, trait) for trait in board.traits]
        first = [position_text(row), _plain(row.shown_name)]
        lines.append(_line([*first, *traits, *bold, rank_text(row), failed_text(row)]))
    lines += ["", *(f"- {_plain(note)}" for note in _footnotes(board, ()))]
    if board.failures:
        lines += ["", "Without result:", "", *(f"- {_plain(line)}" for line in _failure_lines(board))]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- shared with HTML


def position_text(row: Row) -> str:
    """The row's place, "" for an oracle."""
    return "" if row.position is None else str(row.position)


def trait_label(trait: str) -> str:
    """Initials of a trait's name, e.g. "SF"."""
    return "".join(word[0].upper() for word in trait.split("_"))


def trait_mark(row: Row, trait: str, *, plain: bool = False) -> str:
    """Whether a row has a trait; "–" where it claims none."""
    if trait not in row.traits:
        return "-" if plain else "–"
    return ("yn" if plain else "✓✗")[0 if row.traits[trait] else 1]


def rank_text(row: Row) -> str:
    """Mean rank over complete settings, "–" where the row was not ranked."""
    return "–" if row.mean_rank is None else f"{row.mean_rank:.2f}"


def failed_text(row: Row) -> str:
    """Cells without a result, of all cells of the row, e.g. "0/6"."""
    return f"{row.failed_cells}/{row.cells}"


# ------------------------------------------------------------------------------------------- terminal


def show_combined(combined: Combined, console: Console) -> None:
    """Print a ranking over several benchmarks: ranks first, then settings as far as there is room."""
    width = min(WIDTH, console.width)
    title = Text(f"ranking over {len(combined.settings)} settings", style="bold")
    title.append(f"  {', '.join(combined.benchmarks)}", style="dim")
    if combined.simulated:
        title.append("  SIMULATED DATA", style="bold yellow")
    console.print(title, width=width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nmethod", max_width=24, overflow="fold")
    table.add_column("mean\nrank", justify="right", no_wrap=True)
    table.add_column("where\npresent", justify="right", no_wrap=True)
    columns = [_setting_column(combined, place) for place in range(len(combined.settings))]
    used = min(24, max(map(len, ("method", *combined.order)))) + 2 + 4 + 2 + 7
    fitting = 0
    for heading, texts in columns:
        used += 2 + max(map(len, (*heading.split("\n"), *texts)))
        if used > width:
            break
        table.add_column(heading, justify="right", no_wrap=True)
        fitting += 1
    mean = combined.ranks.mean_ranks if combined.ranks else {}
    best = [combined.best(place) for place in range(fitting)]
    for line, name in enumerate(combined.order):
        ranks = [f"{where[name]:.2f}" if name in where else "–" for where in (mean, combined.available)]
        cells = [Text(columns[i][1][line], "bold green" if name in best[i] else "") for i in range(fitting)]
        table.add_row(escape(name), *ranks, *cells)
    console.print(table)
    lines = list(combined.notes)
    if left_out := [setting.heading for setting in combined.settings[fitting:]]:
        lines.append(f"not shown for want of room: {', '.join(left_out)}; the report and --json have them")
    for text in lines:
        console.print(Text(text, style="dim"), width=width)


def _setting_column(combined: Combined, place: int) -> tuple[str, list[str]]:
    """Heading in two lines, and the values in the rows' order."""
    setting = combined.settings[place]
    texts = [METRICS[setting.metric].text(combined.values[name][place]) for name in combined.order]
    return f"{setting.benchmark}\n{_heading(setting.metric)}", texts


def show_beside(shown: Sequence[Beside], caution: str, console: Console) -> None:
    """Print published numbers beside ours."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("method", "metric", "ours", "published", "difference"):
        table.add_column(name, justify="left" if name in ("method", "metric") else "right", no_wrap=True)
    for item in shown:
        table.add_row(escape(item.method), METRICS[item.metric].heading, *item.texts)
    console.print(table)
    if caution:
        console.print(Text(caution, style="yellow"))


def _title(board: Leaderboard) -> Text:
    data = board.info.dataset
    title = Text(board.info.benchmark, style="bold")
    places = f"{len(board.info.sites)} sites"
    if board.anomaly:
        places = f"{len(board.anomaly.settings)} setting{'s' if len(board.anomaly.settings) != 1 else ''}"
    if board.ages:
        places = f"{len(board.ages.targets)} site{'s' if len(board.ages.targets) != 1 else ''}"
    title.append(f"  {data.name}, {places}, {board.info.track}", style="dim")
    if data.simulated:
        title.append("  SIMULATED DATA", style="bold yellow")
    return title


def _fitting(board: Leaderboard, width: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Metrics that fit, the headline and the ranked ones first, and those left out."""
    principal = ranked(board.metrics)
    # Costs, and what is called maximum Dice, have tables of their own.
    apart = board.anomaly.meanings(board.metrics) if board.anomaly else []
    listed = [m for m in board.score_metrics if m == board.info.headline or m in principal or m not in apart]
    order = sorted(listed, key=lambda m: (m != board.info.headline, m not in principal))
    names = max([len("method"), *(len(row.shown_name) for row in board.rows)])
    failed = max([len("failed"), *(len(failed_text(row)) for row in board.rows)])
    # Two blanks follow every column but the last; a trait's label has two letters, a rank at most five.
    used = len(str(len(board.rows))) + 2 + min(names, 24) + 2 + 4 * len(board.traits) + 7 + failed
    fitting: list[str] = []
    for metric in order:
        wide = max([len(_heading(metric, board)), *(len(row.scores[metric].text) for row in board.rows)]) + 2
        if used + wide > width and fitting:
            break
        used += wide
        fitting.append(metric)
    return tuple(fitting), tuple(m for m in order if m not in fitting)


def _table(board: Leaderboard, metrics: tuple[str, ...], *, plain: bool) -> Table:
    frame = box.ASCII if plain else box.SIMPLE_HEAD
    table = Table(box=frame, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("method", max_width=24, overflow="fold")
    for trait in board.traits:
        table.add_column(trait_label(trait), justify="center", no_wrap=True)
    for metric in metrics:
        table.add_column(_heading(metric, board), justify="right", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    best = {metric: board.best(metric) for metric in metrics}
    for row in board.rows:
        marks = [trait_mark(row, trait, plain=plain) for trait in board.traits]
        scores = [
            Text(row.scores[m].text, "bold green" if row.method in best[m] else _score_style(row, m)) for m in metrics
        ]
        failed = Text(failed_text(row), style="red" if row.failed_cells else "dim")
        table.add_row(position_text(row), escape(row.shown_name), *marks, *scores, rank_text(row), failed)
    return table


def _score_style(row: Row, metric: str) -> str:
    score = row.scores[metric]
    return "red" if score.lacking else ""


def _footnotes(board: Leaderboard, left_out: tuple[str, ...]) -> list[str]:
    lines = list(board.notes)
    if board.traits:
        lines.insert(0, ", ".join(f"{trait_label(t)} {t.replace('_', ' ')}" for t in board.traits))
    lines[:0] = _in_domain(board)
    lines += _not_separated(board)
    if left_out:
        lines.append(f"not shown for want of room: {', '.join(left_out)}; the report and --csv have them")
    return lines


def _in_domain(board: Leaderboard) -> list[str]:
    metric = board.info.headline
    info = METRICS[metric]
    values = [(row.method, row.scores[metric].in_domain) for row in board.rows]
    shown = ", ".join(f"{name} {info.text(value)}" for name, value in values if value is not None)
    return [f"in-domain {info.heading} (source = target): {shown}"] if shown else []


def _not_separated(board: Leaderboard) -> list[str]:
    metric = board.info.headline
    against_best = [c for c in board.comparisons if c.metric == metric and c.kind == "best"]
    if not against_best:
        return []
    if board.anomaly and not any(c.reachable for c in against_best):
        return [f"{METRICS[metric].name}: one value for each setting, too few for a test to separate rows"]
    close = [c.method for c in against_best if not c.separated]
    reference = against_best[0].reference
    if not close:
        return [f"{METRICS[metric].name}: all others differ from {reference} (Wilcoxon, Holm p < 0.05)"]
    return [f"{METRICS[metric].name}: not separated from {reference} (Wilcoxon, Holm p ≥ 0.05): {', '.join(close)}"]


def _show_failures(board: Leaderboard, console: Console) -> None:
    lines = _failure_lines(board)
    for line in lines[:MOST_FAILURES]:
        console.print(Text(line, style="red"), no_wrap=True, overflow="ellipsis", width=min(WIDTH, console.width))
    if len(lines) > MOST_FAILURES:
        console.print(Text(f"… and {len(lines) - MOST_FAILURES} more; the report lists all", style="red"))


def _failure_lines(board: Leaderboard) -> list[str]:
    """One line per method and cause, its cells shortened so that the error stays in sight."""
    lines = []
    for group in grouped(board.failures):
        cells = ", ".join(group.cells[:3]) + (f" and {len(group.cells) - 3} more" if len(group.cells) > 3 else "")
        lines.append(f"{group.state}  {group.method}  {cells}: {group.note}")
    return lines


def _heading(metric: str, board: Leaderboard | None = None) -> str:
    info = board.metric(metric) if board else METRICS[metric]
    return f"{info.heading} {info.arrow}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text

"""What the terminal shows of the anomaly track below the leaderboard: settings, meanings of maximum Dice, costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.metrics.catalogue import METRICS
from harness.results.anomaly_tables import MEANINGS, BySetting, cost_text
from harness.results.leaderboard import Leaderboard

NAME = 24
"""Columns that a method's name may take before it is folded."""

Column = tuple[str, Callable[[str], Text]]


def tables(board: Leaderboard, width: int, plain: bool) -> Iterator[tuple[str, Table]]:
    """(title, table) of what is known; nothing for another track. Columns that do not fit are named in the title."""
    found = board.anomaly
    if found is None:
        return
    headline = board.info.headline
    info = METRICS[headline]
    if len(found.settings) > 1:
        spread = ", ± SD over seeds" if len(board.info.seeds) > 1 else ""
        columns = [(setting, _entry(found, headline, setting)) for setting in found.settings]
        yield fitted(board, f"{info.heading} {info.arrow} by setting{spread}", columns, width, plain)
    if len(meanings := found.meanings(board.metrics)) > 1:
        over = ", mean over settings" if len(found.settings) > 1 else ""
        columns = [(MEANINGS[metric][0], _entry(found, metric, "")) for metric in meanings]
        yield fitted(board, f"what is called maximum Dice, %{over}", columns, width, plain)
    if costs := found.costs():
        columns = [(METRICS[metric].name, _cost(found, metric)) for metric in costs]
        yield fitted(board, "cost, of one slice", columns, width, plain)


def _entry(found: BySetting, metric: str, setting: str) -> Callable[[str], Text]:
    best = found.best(metric, setting)

    def cell(method: str) -> Text:
        entry = found.entry(metric, method, setting)
        if entry is None:
            return Text("–")
        return Text(entry.text, "bold green" if method in best else "" if entry.complete else "red")

    return cell


def _cost(found: BySetting, metric: str) -> Callable[[str], Text]:
    def cell(method: str) -> Text:
        entry = found.entry(metric, method)
        return Text(cost_text(metric, entry.value if entry else None))

    return cell


def fitted(board: Leaderboard, title: str, columns: Sequence[Column], width: int, plain: bool) -> tuple[str, Table]:
    """The table with as many columns as there is room for, at least one."""
    table = Table(
        box=box.ASCII if plain else box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold"
    )
    table.add_column("method", max_width=NAME, overflow="fold")
    rows = board.rows
    used = min(NAME, max([len("method"), *(len(row.shown_name) for row in rows)])) + 2
    shown: list[list[Text]] = []
    for heading, cell in columns:
        texts = [cell(row.method) for row in rows]
        used += max([*map(len, heading.split("\n")), *map(len, texts)]) + 2
        if used > width and shown:
            break
        table.add_column(Text(heading), justify="right", no_wrap=True)
        shown.append(texts)
    for number, row in enumerate(rows):
        table.add_row(escape(row.shown_name), *(texts[number] for texts in shown))
    left_out = [" ".join(heading.split()) for heading, _ in columns[len(shown) :]]
    return title + (f"; no room for {', '.join(left_out)}" if left_out else ""), table

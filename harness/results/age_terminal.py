"""What the terminal shows of the brain-age track below the leaderboard: training sizes, sites, sex and age."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from harness.results.age_groups import SEX_NAMES
from harness.results.age_tables import AgeTables, named
from harness.results.anomaly_terminal import fitted
from harness.results.leaderboard import Leaderboard


def tables(board: Leaderboard, width: int, plain: bool) -> Iterator[tuple[str, Table]]:
    """(title, table) of what is known; nothing for another track. Columns that do not fit are named in the title."""
    found = board.ages
    if found is None or not found.sources:
        return
    headline = board.info.headline
    info, mae = board.metric(headline), board.metric("mae")
    if len(found.sources) > 1:
        columns = [(named(source), _entry(found, headline, source=source)) for source in found.rising]
        yield fitted(board, f"{info.heading} {info.arrow} by training scans", columns, width, plain)
    if len(found.targets) > 1:
        columns = [(site, _entry(found, headline, "site", site)) for site in found.targets]
        yield fitted(board, f"{info.heading} {info.arrow} by site", columns, width, plain)
    if found.sexes:
        columns = [
            (f"{SEX_NAMES[sex]} ({found.count('sex', sex)[0]})", _entry(found, "mae", "sex", sex))
            for sex in found.sexes
        ]
        yield fitted(board, f"{mae.heading} {mae.arrow} by sex (scans)", columns, width, plain)
    if found.bins:
        columns = [
            (f"{each.name}\n({found.count('age', each.name)[0]})", _entry(found, "mae", "age", each.name, short=True))
            for each in found.bins
        ]
        yield fitted(board, f"{mae.heading} {mae.arrow} by age in {found.unit} (scans)", columns, width, plain)


def _entry(
    found: AgeTables, metric: str, kind: str = "", group: str = "", *, source: str = "", short: bool = False
) -> Callable[[str], Text]:
    """A cell of each method; short: without what stands after ±."""
    best = found.best(metric, source, kind, group)

    def cell(method: str) -> Text:
        entry = found.entry(metric, method, source, kind, group)
        if entry is None:
            return Text("–")
        text = replace(entry, sd=None).text if short else entry.text
        return Text(text, "bold green" if method in best else "" if entry.complete else "red")

    return cell

"""The report: one HTML file with everything in it, that opens without a network. Layout in report.html.j2.

Names, notes and error lines come from users and from exceptions: the template escapes every value, and figures are
embedded as images, in which nothing can run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.engine.store import write_atomically
from harness.metrics.catalogue import METRICS, ranked
from harness.results import (
    ablation,
    age_figures,
    age_tables,
    aggregate,
    anomaly_figures,
    anomaly_tables,
    effects,
    exhibits,
    figures,
    leaderboard,
    pictures,
    published,
    records,
    runinfo,
    terminal,
)
from harness.results.age_groups import SEX_NAMES
from harness.results.combined import Combined
from harness.results.exhibits import Panel
from harness.results.leaderboard import Leaderboard
from harness.results.published import Beside, Published
from harness.results.shown import Shown
from harness.results.significance import p_text

TEMPLATES = Path(__file__).parent
MOST_PANELS = 4
MOST_SAMPLES = 16
MOST_VARIANTS = 12
MOST_ADAPTATIONS = 4
MOST_CURVES = 24


def write_report(folder: Path, path: Path, against: Sequence[Published] = ()) -> Path:
    """Write the report of a results folder, and its figures as files to `folder/figures`; returns `path`.

    against: published numbers to show beside. Raises UserError where the folder is damaged.
    """
    info, table = runinfo.read(folder), records.read(folder)
    board = leaderboard.build_beside(folder, info, table)
    shown = list(all_figures(folder, board, table))
    _write_figures(folder / "figures", shown)
    write_atomically(path, render(board, shown, len(table), published.beside(board, against) if against else ()))
    return path


def write_combined(combined: Combined, path: Path) -> Path:
    """Write the page of a ranking over several benchmarks; returns `path`."""
    shown = []
    if combined.ranks and len(combined.ranks.mean_ranks) > 1:
        caption = "Mean ranks over all settings, best at the left; a bar joins methods within the critical difference."
        shown.append(Shown("critical-difference", "ranks", caption, figures.critical_difference(combined.ranks)))
    text = _environment().get_template("combined.html.j2").render(combined=combined, shown=shown, metrics=METRICS)
    write_atomically(path, text)
    return path


def _write_figures(place: Path, shown: list[Shown]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for item in shown:
        (place / item.file).write_bytes(item.data)
    for old in {*place.glob("*.svg"), *place.glob("*.png")} - {place / item.file for item in shown}:
        old.unlink()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"p": p_text, "when": _when, "duration": _duration, "setting": _setting}
    environment.filters |= {"signed": _signed, "source": age_tables.named}
    environment.globals |= {"cost": anomaly_tables.cost_text, "meanings": anomaly_tables.MEANINGS}
    environment.globals |= {"sex_names": SEX_NAMES, "outside": age_tables.outside, "named": age_tables.named}
    return environment


def render(board: Leaderboard, shown: list[Shown], records: int, beside: Sequence[Beside] = ()) -> str:
    """The report as HTML text; `records` is the number of records it rests on."""
    info, sections = board.info, {item.section for item in shown}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            beside=beside,
            caution=published.caution(board),
            board=board,
            anomaly=board.anomaly,
            mapped=[s for s in (board.anomaly.settings if board.anomaly else ()) if f"maps {s}" in sections],
            ages=board.ages,
            columns=_columns(board),
            info=info,
            metrics={m: board.metric(m) for m in METRICS},
            numbers={m: metric.in_unit(board.ages.unit) for m, metric in age_tables.SHOWN.items()}
            if board.ages
            else {},
            shown=shown,
            comparisons=_by_metric(board),
            failures=aggregate.grouped(board.failures),
            label=terminal.trait_label,
            mark=terminal.trait_mark,
            rank=terminal.rank_text,
            failed=terminal.failed_text,
            position=terminal.position_text,
            dataset=info.dataset.model_dump(exclude={"id", "name", "simulated"}),
            records=records,
        )
    )


def all_figures(folder: Path, board: Leaderboard, table: pl.DataFrame) -> Iterator[Shown]:
    """Every figure that the folder's data allow, in the order of the report."""
    names = [row.method for row in board.rows]
    curves = exhibits.read_curves(folder)
    if board.anomaly:
        yield from _ranks(board)
        yield from _effects(board, curves, names)
        yield from anomaly_figures.all_figures(folder, board)
    elif board.ages:
        yield from _ranks(board)
        yield from _effects(board, curves, names)
        yield from age_figures.all_figures(folder, board)
    else:
        yield from _matrices(board, table, names)
        yield from _ranks(board)
        yield from _effects(board, curves, names)
        yield from _histograms(exhibits.read_histograms(folder), names)
        panels = exhibits.read_panels(folder)
        yield from _samples(panels, names)
        yield from _panels(panels, names, board.info.dataset.label_names)
    places = "training site" if board.anomaly else "set of training scans" if board.ages else "source, target"
    yield from _curves(curves, places)


def _ranks(board: Leaderboard) -> Iterator[Shown]:
    if board.ranks and len(board.ranks.mean_ranks) > 1:
        caption = "Mean ranks, best at the left. A bar joins methods that differ by less than the critical difference."
        yield Shown("critical-difference", "ranks", caption, figures.critical_difference(board.ranks))


def _matrices(board: Leaderboard, table: pl.DataFrame, names: list[str]) -> Iterator[Shown]:
    for metric in board.metrics:
        having = [n for n in names if next(r for r in board.rows if r.method == n).scores[metric].applicable]
        found = [aggregate.matrix(table, name, metric, board.info.sites) for name in having]
        caption = f"{METRICS[metric].name} of every source and target on one colour scale; brighter is better."
        yield Shown(f"matrix-{metric}", "matrices", caption, figures.matrices(found))


def _effects(board: Leaderboard, curves: pl.DataFrame, names: list[str]) -> Iterator[Shown]:
    info = board.info
    if info.sweep:
        yield Shown("ablation", "ablation", ablation.caption(info.sweep), ablation.ablation(info.sweep, board))
    for method, rows in effects.families(board):
        if info.sweep and len(rows) > MOST_VARIANTS:  # the ablation shows them better
            continue
        beside = " and the baseline" if board.anomaly or board.ages else ", the baseline, and the in-domain level"
        caption = f"Variants of {method}{beside}; 95 % intervals over subjects."
        yield Shown(f"components-{method}", "components", caption, effects.components(board, rows))
    traced = effects.adaptations(board, curves)
    for number, (method, rules) in enumerate(traced[:MOST_ADAPTATIONS], 1):
        alone = sum(other == method for other, _ in traced) == 1
        more = f" Shown are {MOST_ADAPTATIONS} of {len(traced)} adaptations." if number == MOST_ADAPTATIONS else ""
        caption = (
            f"{method if alone else rules[0]}: bits per dimension and entropy beside the change of the task's score, "
            "over the epochs of the adaptation. Thin lines are pairs of sites and seeds, bold ones their mean; marks "
            f"show where each rule stops.{more if len(traced) > MOST_ADAPTATIONS else ''}"
        )
        name = f"stopping-{method}" if alone else f"stopping-{method}-{number}"
        yield Shown(name, "stopping", caption, effects.stopping(curves, rules))
    if "wasserstein" in board.metrics and info.headline != "wasserstein":
        known = [r for r in board.rows if r.scores["wasserstein"].mean is not None]
        if len(known) > 2 and any(r.scores[info.headline].mean is not None for r in known):
            caption = "Means over pairs of sites, bars of one standard deviation. Open points are oracles."
            figure = effects.distance_against_performance(board, "wasserstein", info.headline)
            yield Shown("distance-performance", "distance", caption, figure)


def _samples(panels: tuple[Panel, ...], names: list[str]) -> Iterator[Shown]:
    having = {panel.method for panel in panels if panel.harmonised is not None and panel.input is not None}
    for name in [n for n in names if n in having][:MOST_SAMPLES]:
        shown = [panel for panel in panels if panel.method == name]
        yield Shown(f"samples-{name}", "samples", f"{name}.", pictures.samples(shown), raster=True)


def _histograms(table: pl.DataFrame, names: list[str]) -> Iterator[Shown]:
    after = table.filter((pl.col("kind") == "after") & (pl.col("source") != pl.col("site")))
    for source in after["source"].unique(maintain_order=True):
        caption = (
            f"Brain intensities of each target before and after harmonisation to {source}, and of {source} itself."
        )
        yield Shown(f"histograms-{source}", "histograms", caption, figures.histograms(table, source, names))


def _panels(panels: tuple[Panel, ...], names: list[str], labels: tuple[str, ...]) -> Iterator[Shown]:
    groups: dict[tuple[str, str, str, int], list[Panel]] = {}
    for panel in panels:
        groups.setdefault((panel.source, panel.target, panel.subject, panel.slice), []).append(panel)
    for source, target, subject, number in _spread(list(groups))[:MOST_PANELS]:
        group = groups[source, target, subject, number]
        group.sort(key=lambda p: names.index(p.method) if p.method in names else len(names))
        caption = f"{source}→{target}, subject {subject}, slice {number}."
        yield Shown(f"panels-{source}-{target}", "panels", caption, pictures.panels(group, labels), raster=True)


def _spread(pairs: list[tuple[str, str, str, int]]) -> list[tuple[str, str, str, int]]:
    """The same (source, target, …), those first whose sites have been shown least."""
    rest, found = list(pairs), []
    times: Counter[tuple[str, str]] = Counter()
    while rest:
        pair = min(rest, key=lambda p: times["source", p[0]] + times["target", p[1]])
        rest.remove(pair)
        times.update([("source", pair[0]), ("target", pair[1])])
        found.append(pair)
    return found


def _curves(table: pl.DataFrame, places: str) -> Iterator[Shown]:
    keys = table.select("method", "stage", "name").unique(maintain_order=True)
    if keys.is_empty():
        return
    some = table.join(keys.head(MOST_CURVES), on=["method", "stage", "name"], how="semi", maintain_order="left")
    more = "" if len(keys) <= MOST_CURVES else f" The first {MOST_CURVES} of {len(keys)}; all are in curves.parquet."
    caption = f"Training curves, one line per {places} and seed.{more}"
    yield Shown("curves", "curves", caption, figures.curves(some))


def _columns(board: Leaderboard) -> tuple[str, ...]:
    """Metrics of the leaderboard's table. Where every metric has a table of its own, those that count in ranks."""
    if board.anomaly is None and board.ages is None:
        return board.metrics
    principal = {board.info.headline, *(board.info.rank_metrics or ranked(board.metrics))}
    return tuple(m for m in board.metrics if m in principal)


def _by_metric(board: Leaderboard) -> Mapping[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for comparison in board.comparisons:
        found.setdefault(comparison.metric, []).append(comparison)
    return found


def _when(iso: str) -> str:
    """2025-01-31 12:00 UTC."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return iso


def _signed(value: float, digits: int) -> str:
    return f"{value:+z.{digits}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _setting(value: Any) -> str:
    """A field's value in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

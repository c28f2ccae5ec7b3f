"""What has to be said below a leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.metrics.catalogue import METRICS, ranked
from harness.results.age_tables import AgeTables, named
from harness.results.aggregate import Failure
from harness.results.anomaly_sizes import MARK
from harness.results.anomaly_tables import BySetting
from harness.results.runinfo import RunInfo
from harness.results.significance import LEVEL, RankTest

if TYPE_CHECKING:
    from harness.results.leaderboard import Row


def notes_of(
    info: RunInfo,
    rows: tuple[Row, ...],
    ranks: RankTest | None,
    failures: tuple[Failure, ...],
    by_setting: BySetting | None,
    ages: AgeTables | None = None,
) -> tuple[str, ...]:
    """The footnotes of a leaderboard with these rows, a line each."""
    notes = _of_ages(info, ages) if ages else _of_means(info, by_setting)
    if chosen := choice(info, ages):
        notes.append(f"{chosen[0].lower()}{chosen[1:]}")
    notes += _of_deviations(info, rows)
    if not ages and info.dataset.model_dump().get("age_unit") == "years" and {"mae", "mse"} & set(info.metrics):
        notes.append("ages of this data set are in years: read years where MAE and MSE say weeks")
    if oracles := [row.method for row in rows if row.oracle]:
        notes.append(f"oracle, chosen by the labels it is scored on: an upper bound, not ranked: {', '.join(oracles)}")
    incomplete = sorted({row.method for row in rows for s in row.scores.values() if s.lacking})
    if incomplete:
        notes.append(
            f"{MARK} mean over fewer cells than expected, not comparable, listed after the complete rows: "
            + ", ".join(incomplete)
        )
    if failures:
        cells = {(f.method, f.source, f.target, f.seed) for f in failures}
        some = "1 cell has" if len(cells) == 1 else f"{len(cells)} cells have"
        notes.append(f"{some} failed, been blocked or left no record; each is listed with its error")
    counted = ranked(info.metrics)
    penalised = sum(s.penalised for row in rows for s in row.scores.values() if s.metric in counted)
    if penalised:
        notes.append(f"{penalised} values are the penalty for a structure that is in the label or the prediction only")
    if ranks:
        notes.extend(ranks.notes)
    elif len(rows) > 1:
        unit = "setting, metric" if by_setting else "site, metric" if ages else "source, target, metric"
        notes.append(f"no mean ranks: no setting ({unit}) was scored for two or more methods")
    if any(s.low is not None for row in rows for s in row.scores.values()):
        notes.append(_of_intervals(by_setting, ages))
    return tuple(notes)


def choice(info: RunInfo, ages: AgeTables | None) -> str:
    """Which trial a sweep chose on validation scans, and what that one has on test scans; "" where nothing was."""
    best = info.sweep.best() if info.sweep and info.sweep.objective.split == "validation" else None
    if info.sweep is None or best is None:
        return ""
    metric = METRICS[info.sweep.objective.metric].in_unit(ages.unit if ages else "weeks")
    there, here = metric.text(best.objective), f"{metric.text(best.test)} {metric.shown_unit}".strip()
    over = ", means over training sizes" if ages and len(ages.sources) > 1 else ""
    return (
        f"Chosen on validation scans, of {len(info.sweep.trials)} trials: {best.name} ({metric.name} {there} there, "
        f"{here} on test scans{over}); a trial that leads by test scans alone was not chosen"
    )


def _of_means(info: RunInfo, by_setting: BySetting | None) -> list[str]:
    """What the means are over, and what was done to the maps that they score."""
    several = len(info.seeds) > 1
    if by_setting is None:
        what = "mean ± SD over source→target pairs, in-domain cells left out; population SD"
        return [what + ("; seeds are averaged within a pair first" if several else "")]
    if len(by_setting.settings) == 1:
        notes = [f"one setting, {by_setting.settings[0]}" + (": mean ± population SD over seeds" if several else "")]
    else:
        what = f"mean ± SD over settings ({', '.join(by_setting.settings)}); population SD"
        notes = [what + ("; seeds are averaged within a setting first" if several else "")]
    first, *others = info.processing or ("",)
    if first:
        also = f"; scored apart, in the report: {', '.join(others)}" if others else ""
        notes.append(f"processing of the maps before they are scored: {first}{also}")
    return notes


def _of_ages(info: RunInfo, ages: AgeTables) -> list[str]:
    """What was scored, what was trained on, and what stands after ±."""
    places = [f"{site} ({of})" if (of := _scans_of(ages, site)) else site for site in ages.targets]
    notes = [f"scored: {', '.join(places)}"] if places else []
    if ages.sources:
        others = ", ".join(ages.sources[1:])
        notes.append(f"trained on: {named(ages.sources[0])}" + (f"; shown apart: {others}" if others else ""))
    several = len(info.seeds) > 1
    spread = "MAE ± population SD of the absolute errors of the scans"
    notes.append(spread + ("; of other metrics ± is the population SD over seeds" if several else ""))
    if len(ages.targets) > 1:
        notes.append(f"means over sites{', seeds averaged first' if several else ''}")
    return notes


def _scans_of(ages: AgeTables, site: str) -> str:
    return ages.counted("site", site) if len(ages.targets) > 1 else ages.counted()


def _of_intervals(by_setting: BySetting | None, ages: AgeTables | None) -> str:
    level = f"{100 * (1 - LEVEL):.0f} % intervals"
    if ages:
        return f"{level}: BCa bootstrap over people{' within their sites' if len(ages.targets) > 1 else ''}"
    if by_setting and len(by_setting.settings) == 1:
        return f"{level}: BCa bootstrap over subjects; of pooled pixels the bounds are means over seeds"
    strata = "settings" if by_setting else "sites"
    what = f"{level} of the mean: BCa bootstrap over subjects within their {strata}"
    return f"{what}; {strata} themselves are not resampled"


def _of_deviations(info: RunInfo, rows: tuple[Row, ...]) -> list[str]:
    """Which rows are not what was published, in their order."""
    known = {method.name: method.deviations for method in info.methods}
    found = [f"{row.method} ({'; '.join(of)})" for row in rows if (of := known.get(row.method, ()))]
    return [f"departs from its publication: {each}" for each in found]

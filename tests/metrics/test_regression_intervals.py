"""Scores of ages and their intervals, against their definitions and scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from harness.metrics import ranking, regression
from harness.metrics.regression_intervals import SCORES, Cases, Scored, scores_of

RNG = np.random.default_rng(5)
AGES = RNG.uniform(29, 45, 60)
GUESS = 0.9 * AGES + 4.3 + RNG.normal(0, 0.8, 60)
PEOPLE = [f"p{number}" for number in range(60)]


def test_values_are_those_of_the_definitions() -> None:
    found = scores_of([[Cases(PEOPLE, AGES, GUESS)]])
    known = regression.regression_scores(AGES, GUESS)
    assert set(found) == set(SCORES)
    for name in ("mae", "rmse", "bias", "r2", "r2_pearson"):
        assert found[name].value == pytest.approx(getattr(known, name), rel=1e-10)
    assert found["error_sd"].value == pytest.approx(np.abs(GUESS - AGES).std(), rel=1e-10)
    for name, score in found.items():
        assert score.low is not None, name
        assert score.low < score.value < score.high


def test_seeds_are_averaged_within_sites_and_sites_then() -> None:
    late = Cases(PEOPLE[:20], AGES[:20], AGES[:20] + 2)
    found = scores_of([[Cases(PEOPLE, AGES, GUESS), Cases(PEOPLE, AGES, GUESS + 1)], [late]])
    of_first = np.mean([regression.rmse(AGES, GUESS), regression.rmse(AGES, GUESS + 1)])
    assert found["rmse"].value == pytest.approx((of_first + 2) / 2)
    assert found["bias"].value == pytest.approx((regression.bias(AGES, GUESS) + 0.5 + 2) / 2)


def test_the_interval_of_a_mean_is_that_of_the_bca_bootstrap() -> None:
    found = scores_of([[Cases(PEOPLE, AGES, GUESS)]], resamples=9999)["mae"]
    known = ranking.bootstrap_mean(np.abs(GUESS - AGES))
    width = known.high - known.low
    assert found.low == pytest.approx(known.low, abs=0.05 * width)
    assert found.high == pytest.approx(known.high, abs=0.05 * width)


def test_scans_of_one_person_are_drawn_together() -> None:
    once = scores_of([[Cases(PEOPLE, AGES, GUESS)]])
    twice = scores_of([[Cases([*PEOPLE, *PEOPLE], np.tile(AGES, 2), np.tile(GUESS, 2))]])
    others = [*PEOPLE, *(f"q{name}" for name in PEOPLE)]
    apart = scores_of([[Cases(others, np.tile(AGES, 2), np.tile(GUESS, 2))]])
    for name in SCORES:
        wide, same, narrow = (score[name] for score in (once, twice, apart))
        assert (same.low, same.high) == (pytest.approx(wide.low), pytest.approx(wide.high)), "a copy tells nothing new"
        assert narrow.high - narrow.low < 0.85 * (wide.high - wide.low)


def test_the_order_of_the_scans_changes_nothing() -> None:
    order = RNG.permutation(60)
    first = scores_of([[Cases(PEOPLE, AGES, GUESS)]])
    other = scores_of([[Cases([PEOPLE[i] for i in order], AGES[order], GUESS[order])]])
    for name in SCORES:
        assert vars(other[name]) == pytest.approx(vars(first[name]))


def test_sites_that_differ_do_not_widen_the_interval() -> None:
    sites = [[Cases(PEOPLE, AGES, AGES + error)] for error in (1.0, 3.0)]
    found = scores_of(sites)["mae"]
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_what_is_undefined_is_none() -> None:
    constant = scores_of([[Cases(PEOPLE, AGES, np.full(60, 40.1))]])
    assert constant["r2_pearson"] == Scored(None, None, None)
    assert constant["r2"].value == pytest.approx(regression.r2(AGES, np.full(60, 40.1)))
    same_age = scores_of([[Cases(PEOPLE, np.full(60, 40.1), GUESS)]])
    assert same_age["r2"] == Scored(None, None, None)
    alone = scores_of([[Cases(["p", "p"], AGES[:2], GUESS[:2])]])
    assert alone["mae"] == Scored(pytest.approx(np.abs(GUESS - AGES)[:2].mean()), None, None)
    assert set(scores_of([]).values()) == {Scored(None, None, None)}
    two = scores_of([[Cases(PEOPLE[:2], AGES[:2], GUESS[:2])]])
    assert two["mae"].low is not None
    assert two["r2"].low is None, "half of the resamples are one person twice"


def test_many_people_are_drawn_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores_of([[Cases(PEOPLE, AGES, GUESS)]])
    monkeypatch.setattr("harness.metrics.regression_intervals.AT_A_TIME", 700)
    for name, score in scores_of([[Cases(PEOPLE, AGES, GUESS)]]).items():
        assert vars(score) == pytest.approx(vars(whole[name])), name


@pytest.mark.parametrize(
    "cases",
    [
        Cases(PEOPLE[:3], AGES[:3], GUESS[:2]),
        Cases(PEOPLE[:2], AGES[:3], GUESS[:3]),
        Cases(PEOPLE[:3], AGES[:3], np.array([40.0, np.nan, 41.0])),
    ],
)
def test_cases_that_do_not_fit_are_refused(cases: Cases) -> None:
    with pytest.raises(ValueError):
        scores_of([[cases]])

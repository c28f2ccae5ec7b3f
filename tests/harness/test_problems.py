"""Suggestions for what was probably meant."""

from __future__ import annotations

import pickle

import pytest

from harness.problems import Problem, UserError, did_you_mean


@pytest.mark.parametrize(
    ("wrong", "known", "hint"),
    [
        ("tentt", ["tent", "none"], "; did you mean tent?"),
        ("kki", ["KKI", "NYU"], "; did you mean KKI?"),
        ("lr", ["learning_rate", "steps"], "; did you mean learning_rate?"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], ""),
    ],
)
def test_suggestions(wrong: str, known: list[str], hint: str) -> None:
    assert did_you_mean(wrong, known) == hint


def test_a_user_error_survives_the_way_between_processes() -> None:
    error = UserError([Problem("x.yaml:1:1", "wrong"), Problem("", "bad")])
    assert str(pickle.loads(pickle.dumps(error))) == "x.yaml:1:1: wrong\nbad"

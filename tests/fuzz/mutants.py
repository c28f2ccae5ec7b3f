"""Damaged YAML documents: sound ones of the project, changed in structure or byte by byte. And how they are run.

HARNESS_FUZZ_SECONDS sets how long each target is fuzzed, with other inputs each time; without it a target gets one
batch, the same in every run.
"""

from __future__ import annotations

import copy
import datetime
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.problems import UserError

SECONDS = float(os.environ.get("HARNESS_FUZZ_SECONDS", 0))
BATCH = 150
SECONDS_EACH = 8.0
"""CPU seconds that one input may take; the largest file of the project takes half a second."""

TEXTS = (
    "", " ", "none", "all", "nan", "inf", "1e999", "-1e-999", "0x10", "12:30:45", "x" * 300, "é✓𝛼", "a\nb", "a\tb",
    "..", "../../etc/passwd", "/dev/zero", "~/x", "C:\\x", "{scan}", "{scan", "{{scan}}", "{\n}", "*" * 30, "**/*.nii",
    "id", "../{scan}.nii", "x" * 5000 + ".yaml", "nowhere.yaml", "adult15", "identity", "tent", "phantom_adult_t1",
    "5-9", "9-5", "0-99999999999999999999", "2024-01-31", "<b>&'\"", "$x$", "[bold]", "%s{0}", "\u202ereversed",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 256, 1000, 10**6, 2**31, 2**63 - 1, -(2**63) + 1, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308)
BEYOND = (
    2**63, 10**30, 10**400, float("nan"), float("inf"), float("-inf"), "a\x00b", "\x1b[2J", "\ud800", "a\x00b.yaml",
    b"bytes", "x" * 30_000,
)  # fmt: skip
"""What no file may hold at all: rarely drawn, as all else in the file then goes unseen."""


def _nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


OTHERS = (
    None, True, False, [], {}, [[]], [None], {"": None}, {1: 2}, {None: 1}, {True: 1}, {1.5: 1}, [1, "1", 1.0],
    list(range(300)), ["x"] * 50, {f"k{i}": i for i in range(150)}, _nested(12), _nested(60),
    datetime.date(2024, 1, 31), datetime.datetime(2024, 1, 31, 12), {"id": "tent"}, {"id": ["tent"]}, {"id": None},
    {"card": 1},
)  # fmt: skip
SNIPPETS = (
    "&a [*a]", "*nowhere", "!!bool maybe", "!!int ''", "!!float x", "!!timestamp x", "!!binary x", "!!null x", "@", "`",
    "!!set {a}", "!!omap [a: 1]", "!!map x", "!!seq x", "!!python/object/apply:os.system [ls]", "!x y", "...", "\t",
    "!!python/name:os.system", "!<tag:yaml.org,2002:int> x", "{? [a] : 1}", "{? {a: 1} : 1}", "? x", "- - - x", "'",
    "|\n  x", ">-\n  x", '"\\x', "%YAML 1.2\n---", "---\n---\n", "[" * 100, "{a: " * 100, "<<: *a", "<<: {a: 1}",
    "1: 1:1", "{a: 1, a: 2}", "&a {b: &b [1, 1], c: *b, d: [*b, *b]}", "9" * 5000, "0x" + "f" * 5000, "1_000", "0o17",
    "1:" * 500 + "1", "0b1",
)  # fmt: skip

letters = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)
numbers = st.one_of(
    st.sampled_from(NUMBERS), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
scalars = st.one_of(st.sampled_from(TEXTS), numbers, letters, st.booleans())
shapes = st.one_of(
    st.sampled_from(OTHERS), st.lists(scalars, max_size=3), st.dictionaries(scalars, scalars, max_size=3)
)
values = st.integers(0, 19).flatmap(lambda n: st.sampled_from(BEYOND) if n == 0 else shapes if n < 8 else scalars)


def _places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in ((*at, key), *_places(value, (*at, key)))]


def _parent(data: Any, place: tuple[Any, ...]) -> Any:
    for part in place[:-1]:
        data = data[part]
    return data


def _step(draw: Any, data: dict[Any, Any], places: list[tuple[Any, ...]]) -> None:
    """One change of structure, in place."""
    place = draw(st.sampled_from(places))
    node, key = _parent(data, place), place[-1]
    kind = draw(st.sampled_from(("set", "drop", "rename", "twice", "swap", "wrap", "move", "add")))
    if kind == "set":
        node[key] = copy.deepcopy(draw(values))
    elif kind == "drop":
        del node[key]
    elif kind == "wrap":
        node[key] = draw(st.sampled_from(([node[key]], {"id": node[key]}, {"x": node[key]}, [[[node[key]]]])))
    elif kind in ("swap", "move"):
        other = draw(st.sampled_from(places))
        there, name = _parent(data, other), other[-1]
        moved = copy.deepcopy(there[name])
        if kind == "swap" and place[: len(other)] != other and other[: len(place)] != place:
            there[name] = copy.deepcopy(node[key])
        node[key] = moved
    elif isinstance(node, dict):
        value = draw(values) if kind == "add" else node[key] if kind == "twice" else node.pop(key)
        node[draw(scalars)] = copy.deepcopy(value)
    else:
        node.insert(key, copy.deepcopy(draw(values) if kind == "add" else node[key]))


@st.composite
def damaged(draw: Any, texts: Sequence[str]) -> bytes:
    """A file's bytes: one of `texts` after one to six changes."""
    text = draw(st.sampled_from(texts))
    if draw(st.integers(0, 3)):
        data = yaml.safe_load(text)
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 6)))):
            places = _places(data)
            if not places:
                break
            _step(draw, data, places)
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=draw(st.booleans()))
    raw = bytearray(text.encode("utf-8", "surrogatepass"))
    if draw(st.integers(0, 3)) == 0:
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(raw)))
            end = min(len(raw), start + draw(st.integers(0, 12)))
            raw[start:end] = draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([s.encode() for s in SNIPPETS]), st.just(raw[start:]))
            )
    return bytes(raw)


class _Dumper(yaml.SafeDumper):
    """Writes every copy out, so that files stay readable where a test fails."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Tally:
    """How many inputs were read, and how many were refused."""

    def __init__(self) -> None:
        self.read = self.refused = 0
        self.slowest = 0.0

    @property
    def inputs(self) -> int:
        return self.read + self.refused

    def take(self, load: Callable[[], object]) -> None:
        """Run one input: it is read, or refused in lines that each name a place. Raises AssertionError otherwise."""
        start = time.process_time()
        try:
            load()
        except UserError as error:
            self.refused += 1
            problems = error.problems
        else:
            self.read += 1
            problems = None
        took = time.process_time() - start
        self.slowest = max(self.slowest, took)
        if problems is not None:
            assert problems
            assert all(problem.where and str(problem).isprintable() for problem in problems), problems
        assert took < SECONDS_EACH, f"took {took:.1f} s"


def fuzz(body: Callable[[bytes], None], texts: Sequence[str]) -> float:
    """Hand damaged documents to `body` until time is up; the seconds it took."""
    start = time.monotonic()
    while True:
        once = settings(
            max_examples=BATCH,
            deadline=None,
            derandomize=not SECONDS,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        once(given(damaged(texts))(body))()
        if time.monotonic() - start >= SECONDS:
            return time.monotonic() - start

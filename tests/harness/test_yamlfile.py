"""YAML with positions: every mistake at once, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.api import Settings
from harness.problems import Problem, UserError
from harness.yamlfile import Document, check, read


class Inner(Settings):
    rate: float = 0.1
    names: list[str] = []


class Outer(Settings):
    title: str
    inner: Inner = Inner()
    table: dict[str, Inner] = {}


def document(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return read(path, label="x.yaml")


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    doc = document(tmp_path, text)
    for override in overrides:
        doc.override(override)
    return [str(problem) for problem in check(doc, doc.data, Outer)[1]]


def test_every_mistake_is_shown_with_its_place(tmp_path: Path) -> None:
    text = "inner:\n  rat: 1\n  names: [a, 2]\ntable:\n  x:\n    rate: fast\nextra: 1\n"
    assert problems(tmp_path, text) == [
        "x.yaml:1:1: title is missing; it is required",
        "x.yaml:3:14: inner.names.1 is 2: input should be a valid string",
        "x.yaml:2:3: unknown key 'rat'; did you mean rate?",
        "x.yaml:6:5: table.x.rate is 'fast': input should be a valid number, unable to parse string as a number",
        "x.yaml:7:1: unknown key 'extra'; known: inner, table, title",
    ]


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    assert problems(tmp_path, "title: t\n", "inner.rte=3") == [
        "--set inner.rte=3: unknown key 'rte'; did you mean rate?"
    ]
    assert problems(tmp_path, "title: t\n", "inner.rate=x")[0].startswith("--set inner.rate=x: inner.rate is 'x'")
    assert problems(tmp_path, "title: t\n", "inner.rate=1e-3", "inner.names=[a, b]", "table.new.rate=2") == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("title", "write it as --set key.subkey=value"),
        ("=3", "write it as --set key.subkey=value"),
        ("title.x=3", "title holds a single value, nothing below it"),
        ("inner.names.7=a", "inner.names is a list of 1; use an index below that"),
        ("title=[", "the value is no YAML"),
    ],
)
def test_a_malformed_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    doc = document(tmp_path, "title: t\ninner: {names: [a]}\n")
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        doc.override(override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3:1: duplicate key 'a', first at x.yaml:1:1; keep one"),
        ("a: {b: 1, b: 2}\n", "x.yaml:1:11: duplicate key 'b', first at x.yaml:1:5; keep one"),
        ("a: [1\n", "x.yaml:2:1: broken YAML"),
        ("- 1\n", "x.yaml:1:1: expected a mapping of keys to values at the top"),
        ("", "x.yaml:1:1: expected a mapping"),
        ("a: !!python/object/apply:os.system [ls]\n", None),
        ("a: &x [*x]\n", "alias that contains itself"),
        ("? [a]\n: 1\n", "a key must be a plain word or number"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, text: str, message: str | None) -> None:
    if message is None:  # a tag is no code here: it is read as the plain list below it, and refused by the model
        assert document(tmp_path, text).data == {"a": ["ls"]}
        return
    with pytest.raises(UserError) as caught:
        document(tmp_path, text)
    assert message in str(caught.value)


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


def test_numbers_that_yaml_misses_are_numbers(tmp_path: Path) -> None:
    assert document(tmp_path, "a: 1e-4\nb: '1e-4'\nc: 1_0e2\non: 3\n").data == {
        "a": 1e-4,
        "b": "1e-4",
        "c": "1_0e2",
        "on": 3,
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80))
def test_no_text_brings_it_down(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found: tuple[Problem, ...] = ()
    try:
        doc = read(path)
        found = tuple(check(doc, doc.data, Outer)[1])
    except UserError as error:
        found = error.problems
    assert all("\n" not in str(p) for p in found)

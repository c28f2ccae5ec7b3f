"""Benchmark files that say only what differs from a base."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.derived import read_derived
from harness.home import Home
from harness.problems import UserError

BASE = """\
benchmark: base
data: {card: one, sites: [A, B]}
task: {id: big, width: 8}
methods:
  first: {rate: 1, net: {depth: 2, width: 4}}
  second: {rate: 2}
metrics: [dsc, hd95]
"""


def files(folder: Path, base: str = BASE, **others: str) -> Path:
    (folder / "base.yaml").write_text(base)
    for name, text in others.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_derived_file_says_only_what_differs(tmp_path: Path) -> None:
    text = (
        "base: base.yaml\nbenchmark: new\ndata: {card: two}\n"
        "methods: {first: {net: {width: 9}}, third: }\nmetrics: [mae]\n"
    )
    document = read_derived(files(tmp_path, new=text) / "new.yaml")
    assert document.data == {
        "benchmark": "new",
        "data": {"card": "two"},
        "task": {"id": "big", "width": 8},
        "methods": {"first": {"rate": 1, "net": {"depth": 2, "width": 9}}, "second": {"rate": 2}, "third": None},
        "metrics": ["mae"],
    }, "another card has other sites; a list is replaced whole"
    assert document.where(("methods", "first", "net", "width")) == f"{tmp_path}/new.yaml:4:25"
    assert document.where(("methods", "first", "net", "depth")) == f"{tmp_path}/base.yaml:5:26"
    assert document.where(("data", "sites")) == f"{tmp_path}/new.yaml:3:1", "nothing is left of what was replaced"


def test_a_key_without_a_value_keeps_the_base_and_without_leaves_out(tmp_path: Path) -> None:
    text = "base: base.yaml\nmethods: {first: }\nwithout: [methods.second, methods.first.net.depth]\n"
    document = read_derived(files(tmp_path, new=text) / "new.yaml")
    assert document.data["methods"] == {"first": {"rate": 1, "net": {"width": 4}}}


def test_a_base_may_have_a_base_and_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "last.yaml").write_text("base: ../middle.yaml\ntask: {width: 16}\n")
    middle = "base: base.yaml\ndata: {card: cards/mine.yaml}\n"
    document = read_derived(files(tmp_path, middle=middle) / "below" / "last.yaml")
    assert document.data["task"] == {"id": "big", "width": 16}
    assert document.data["data"] == {"card": "../cards/mine.yaml"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml\n", "new.yaml:1:1: no such file: "),
        ("base:\n", "new.yaml:1:1: no such file: "),
        ("base: [1]\n", "new.yaml:1:1: no such file: "),
        ("base: new.yaml\n", "new.yaml:1:1: new.yaml leads back to this file"),
        ("base: base.yaml\nwithout: [methods.frist]\n", "new.yaml:2:11: the base has no methods.frist; did you mean"),
        ("base: base.yaml\nwithout: methods\n", "new.yaml:2:1: expected a list of dotted keys"),
        ("without: [methods]\n", "new.yaml:1:1: there is no base to leave anything out of"),
    ],
)
def test_mistakes_in_a_derived_file_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_derived(files(tmp_path, new=text) / "new.yaml")
    [line] = map(str, error.value.problems)
    assert message in line


def test_results_are_found_by_a_file_whose_name_stands_in_its_base(tmp_path: Path) -> None:
    files(tmp_path, new="base: base.yaml\n")
    folder = tmp_path / "runs" / "base"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert Home.of(tmp_path / "runs").find_results(str(tmp_path / "new.yaml")) == folder

"""YAML that means harm, and files that are none: each is one line, in little time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import yaml

from harness import spec, yamlfile
from harness.data.card import read_card
from harness.derived import LONGEST_CHAIN, read_derived
from harness.problems import UserError
from harness.sweep import file as sweeps


@contextmanager
def bounded(seconds: float = 10) -> Iterator[None]:
    """CPU seconds that refusing may take."""
    start = time.process_time()
    yield
    assert time.process_time() - start < seconds


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what resolving imports, so that only resolving is timed."""
    folder = tmp_path_factory.mktemp("warm")
    tiny.write(folder)
    spec.load(folder / "tiny.yaml", cache=folder)


def refused(path: Path) -> str:
    """The one line with which a file is refused, without its folder."""
    with bounded(), pytest.raises(UserError) as caught:
        yamlfile.read(path)
    (problem,) = caught.value.problems
    assert str(problem).isprintable()
    return str(problem).replace(f"{path.parent}/", "")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "holds more than 200,000 values, aliases written out"),
        ("a: " + "[" * 5000, "x.yaml:1:43: nested too deeply: more than 40 levels"),
        ("a: " + "{b: " * 5000, "nested too deeply"),
        ("a: &a {b: {c: [*a, 1]}}\n", "an alias that contains itself"),
        ("a: " + "9" * 5000, "x.yaml:1:4: cannot be read: Exceeds the limit"),
        ("a: 0x" + "f" * 5000, "x.yaml:1:4: is too large a number"),
        ("a: 9223372036854775808", "is too large a number"),
        ("a: " + "x" * 20_001, "is longer than 20,000 characters"),
        ("a: .nan", "x.yaml:1:4: must be a finite number, not nan"),
        ("a: 1e999", "must be a finite number, not inf"),
        ('a: "\\0"', "holds the control character '\\x00'; leave it out"),
        ('"\\e[2J": 1', "holds the control character '\\x1b'"),
        ("a: !!bool maybe", "x.yaml:1:4: cannot be read: 'maybe'"),
        ("a: !!int ''", "x.yaml:1:4: cannot be read"),
        ("a: !!timestamp x", "x.yaml:1:4: cannot be read"),
        ("a: !!binary YQ==", "the tag tag:yaml.org,2002:binary has no meaning here"),
        ("a: !!python/name:os.system", "has no meaning here"),
        ("a: 2024-02-31", "cannot be read: day is out of range for month"),
    ],
)
def test_harmful_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert message in refused(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for raw, message in (
        (b"a: \xff\xfe", "save it as UTF-8 text"),
        (b"a: \x00", "broken YAML"),
        (b"\x1f\x8b\x08\x00", "cannot be read"),
        (b"# " + b"x" * yamlfile.MOST_BYTES, "is larger than 4 MiB"),
    ):
        path.write_bytes(raw)
        assert message in refused(path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert refused(pipe) == "pipe.yaml: cannot be read: it is a pipe or a device, no regular file"
    assert "it is a pipe or a device" in refused(Path("/dev/zero"))
    assert "no file can have this name" in refused(tmp_path / "a\0b.yaml")
    assert "name too long" in refused(tmp_path / ("x" * 5000)).lower()
    assert "is a folder" in refused(tmp_path)


def test_dates_are_names(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("2024-01-31: 2024-01-31\n")
    assert yamlfile.read(tmp_path / "x.yaml").data == {"2024-01-31": "2024-01-31"}


def test_an_override_is_read_as_carefully_as_a_file(tmp_path: Path) -> None:
    document = yamlfile.Document("x.yaml", {"a": 1})
    for text in ("a=.inf", "a=!!bool maybe", "a=" + "[" * 100, "a=" + "9" * 400, ".".join("a" * 50) + "=1"):
        with bounded(), pytest.raises(UserError) as caught:
            document.override(text)
        assert all(p.where.startswith("--set a") and str(p).isprintable() for p in caught.value.problems)


def test_many_mistakes_are_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("benchmark: x\ntrack: cross_site\n" + "".join(f"key{i}: 1\n" for i in range(20_000)))
    with bounded(30), pytest.raises(UserError) as caught:
        spec.load(path, cache=tmp_path)
    assert len(caught.value.problems) < 200
    assert any("more problems" in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.yaml", "x" * 5000 + ".yaml", "a\nb.yaml", "."])
def test_files_that_a_file_names(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    derived = tmp_path / "derived.yaml"
    derived.write_text(yaml.safe_dump({"base": name}))
    with bounded(), pytest.raises(UserError, match="no such file"):
        read_derived(derived)
    tiny.write(tmp_path, data={"card": name if name.endswith(".yaml") else f"{name}.yaml"})
    with bounded(), pytest.raises(UserError, match="no such card file") as caught:
        spec.load(tmp_path / "tiny.yaml", cache=tmp_path)
    assert all(str(problem).isprintable() for problem in caught.value.problems)


def test_a_label_table_or_a_split_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for changes, message in (
        ({"labels": "pipe.yaml"}, "unknown label table"),
        ({"labels": "/dev/zero.yaml"}, "unknown label table"),
        ({"split": {"file": "/dev/zero"}}, "it is a pipe or a device"),
        ({"split": {"file": "pipe.yaml"}}, "it is a pipe or a device"),
    ):
        tiny.write(tmp_path, data={"card": "phantom_adult_t1", "sites": ["KKI", "NYU"], "with": changes})
        with bounded(), pytest.raises(UserError, match=message):
            spec.load(tmp_path / "tiny.yaml", cache=tmp_path)


def test_a_chain_of_bases_ends(tmp_path: Path) -> None:
    for i in range(LONGEST_CHAIN + 2):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    (tmp_path / f"{LONGEST_CHAIN + 2}.yaml").write_text("benchmark: x\n")
    with pytest.raises(UserError, match="more than 16 files build on each other"):
        read_derived(tmp_path / "0.yaml")
    assert read_derived(tmp_path / "3.yaml").data == {"benchmark": "x"}


# ------------------------------------------------------------------------------------------------ amounts


def test_plans_that_nobody_could_run(tmp_path: Path) -> None:
    tiny.write(tmp_path, seeds=list(range(30_000)))
    with bounded(30), pytest.raises(UserError, match="make 120,000 cells; at most 100,000"):
        spec.load(tmp_path / "tiny.yaml", cache=tmp_path)
    for changes, message in (
        ({"scans": 10**9}, r"scans is 1000000000; at most 10000"),
        ({"slices": {"size": 64, "pixel_mm": 3.0, "count": 10**12}}, r"slices.count is 1000000000000; no head"),
    ):
        tiny.write(tmp_path, data={"card": "phantom_adult_t1", "sites": ["KKI", "NYU"], "with": changes})
        with bounded(), pytest.raises(UserError, match=message):
            spec.load(tmp_path / "tiny.yaml", cache=tmp_path)


def test_searches_that_nobody_could_run(tmp_path: Path) -> None:
    tiny.write(tmp_path, methods={"none": None, "tent": {"batch_size": 4}})
    base = {"sweep": "s", "base": "tiny.yaml", "method": "tent", "objective": {"metric": "dsc"}}
    for space, samples, message in (
        ({"batch_size": {"grid": list(range(1, 20_000))}}, 1, "has 19,999 trials"),
        ({"learning_rate": {"uniform": [0.1, 0.2]}}, 10**12, "has 1,000,000,000,000 trials"),
        ({"learning_rate": {"uniform": [-1e308, 1e308]}}, 1, "takes .low, high. with low < high"),
        ({"learning_rate": {"grid": [{"": "", 0: ""}]}}, 1, "learning_rate is dict"),
    ):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**base, "space": space, "samples": samples}))
        with bounded(30), pytest.raises(UserError, match=message):
            sweeps.load(tmp_path / "s.yaml", [], cache=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"none": None, "tent": ["a"]}}, "expected a mapping of fields"),
        ({"methods": {"none": None, "tent": {"id": ["tent"]}}}, "unknown method"),
        ({"report": {"baseline": ["none"]}}, "report.baseline"),
        ({"metrics": ["dsc", "x"]}, "unknown metric 'x'"),
    ],
)
def test_a_sweep_over_a_damaged_base(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    tiny.write(tmp_path, **{"methods": {"none": None, "tent": {"batch_size": 4}}, **changes})
    (tmp_path / "s.yaml").write_text(
        "sweep: s\nbase: tiny.yaml\nmethod: tent\nspace: {batch_size: {grid: [4, 8]}}\nobjective: {metric: dsc}\n"
    )
    with pytest.raises(UserError) as caught:
        sweeps.load(tmp_path / "s.yaml", [], cache=tmp_path)
    assert any(message in str(problem) for problem in caught.value.problems), caught.value.problems


def test_words_and_numbers_as_keys_together(tmp_path: Path) -> None:
    tiny.write(tmp_path, methods={"none": None, 7: None})
    (tmp_path / "d.yaml").write_text("base: tiny.yaml\nwithout: [methods.nine]\n")
    with pytest.raises(UserError, match=r"the base has no methods\.nine"):
        read_derived(tmp_path / "d.yaml")


def test_row_names_are_lines(tmp_path: Path) -> None:
    for name in ("a\nb", "", " ", "x" * 1001):
        tiny.write(tmp_path, methods={"none": None, name: {"id": "tent"}})
        with pytest.raises(UserError, match="is no name for a row"):
            spec.load(tmp_path / "tiny.yaml", cache=tmp_path)


def test_a_card_that_names_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_card("a\nb\x1b[2J.yaml")
    assert str(caught.value).isprintable()

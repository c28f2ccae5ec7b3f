"""The code fingerprint follows what a function can reach, and only that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.engine import code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    name = "toy_" + "".join(c for c in request.node.name if c.isalnum()).lower()
    root = tmp_path / name
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text(
        f"from {name}.b import used\nfrom {name} import c\nLIMIT = 3\n\n"
        "def entry(x: int) -> int:\n    '''Doc.'''\n    return used(x) + c.deep(x) + LIMIT\n\n"
        "def unrelated():\n    return 1\n"
    )
    (root / "b.py").write_text(
        "def used(x):\n    return helper(x)\n\ndef helper(x):\n    return x\n\ndef unused():\n    pass\n"
    )
    (root / "c.py").write_text(
        "class Base:\n    pass\n\nclass Child(Base):\n    pass\n\ndef deep(x):\n    return Child()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert name not in sys.modules
    return root


def print_of(root: Path) -> str:
    code.forget()
    return code.fingerprint((f"{root.name}.a:entry",))


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("a.py", "return used(x)", "return 2 * used(x)", True),
        ("a.py", "LIMIT = 3", "LIMIT = 4", True),
        ("b.py", "    return x\n", "    return x + 1\n", True),
        ("c.py", "class Base:\n    pass", "class Base:\n    y = 1", True),
        ("a.py", "'''Doc.'''", "'''Another text.'''", False),
        ("a.py", "def entry(x: int) -> int:", "# why\ndef entry(x: float) -> float:", False),
        ("a.py", "return 1", "return 2", False),
        ("b.py", "def unused():\n    pass", "def unused():\n    return 5", False),
    ],
)
def test_only_reachable_code_counts(package: Path, file: str, old: str, new: str, changes: bool) -> None:
    before = print_of(package)
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    assert (print_of(package) != before) == changes


def test_nothing_is_imported(package: Path) -> None:
    (package / "b.py").write_text("raise SystemExit\n\ndef used(x):\n    return x\n")
    assert len(print_of(package)) == 64
    assert f"{package.name}.b" not in sys.modules


def test_symbols_name_what_was_found(package: Path) -> None:
    code.forget()
    found = code.symbols((f"{package.name}.a:entry",))
    assert f"{package.name}.c:Base" in found
    assert f"{package.name}.b:helper" in found
    assert f"{package.name}.b:unused" not in found


def test_a_missing_root_hashes_to_nothing_reachable() -> None:
    assert code.symbols(("no_such_package.x:y",)) == {}


def test_stages_of_one_method_do_not_reach_another() -> None:
    found = code.symbols(("harness.tracks.cross_site.stages:score_labels",))
    assert not any(name.startswith("methods.") for name in found)

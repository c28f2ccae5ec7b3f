"""Methods are found without importing them, at home and in other packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.problems import UserError


def test_built_in_methods_are_found_without_importing_them() -> None:
    code = (
        "import sys; from harness import registry;"
        "print('tent' in registry.entries(), 'torch' in sys.modules, 'methods.adaptation.tent' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_an_unknown_id_suggests() -> None:
    with pytest.raises(UserError, match="unknown method 'tnet'; did you mean tent"):
        registry.load("tnet")


def plugin(folder: Path, name: str, target: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.methods]\n{target}\n")


@pytest.mark.parametrize(
    ("entry", "text", "message"),
    [
        ("broken = mod_a:X", "raise RuntimeError('no licence')\n", "cannot be imported: RuntimeError: no licence"),
        ("nothing = mod_b:X", "X = 3\n", "is no harness.api.Method"),
        ("other = mod_c:X", "from methods.harmonization.none import *\nX = NoHarmonization\n", "calls itself 'none'"),
    ],
)
def test_a_broken_plugin_breaks_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, text: str, message: str
) -> None:
    import methods.harmonization.none as home

    first = next(name for name, value in vars(home).items() if getattr(value, "id", None) == "none")
    name = entry.partition(" = ")[2].partition(":")[0]
    plugin(tmp_path, name, entry, text.replace("NoHarmonization", first))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.entries.cache_clear()
    try:
        with pytest.raises(registry.BrokenPlugin, match=message):
            registry.load(entry.partition(" = ")[0])
        assert registry.load("none").id == "none"
    finally:
        registry.entries.cache_clear()


def test_two_methods_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(tmp_path, "mod_d", "tent = mod_d:X", "X = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.entries.cache_clear()
    try:
        with pytest.raises(UserError, match="two methods are called 'tent'"):
            registry.entries()
    finally:
        registry.entries.cache_clear()

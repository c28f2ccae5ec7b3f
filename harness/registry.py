"""Method id → class, lazily. In-repo methods and third-party packages are found alike.

In-repo: every class below `methods/` that sets `id = "…"`, read from the source without importing it, so a
method is one file and listing them is fast. Elsewhere: the entry-point group `harness.methods`, whose entry
names are ids. `harness` itself names no method.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from harness.api import Method
from harness.problems import UserError, did_you_mean

GROUP = "harness.methods"


@dataclass(frozen=True)
class Entry:
    """Where a method comes from. `target` is "module:Class"; `origin` is "built-in" or the package's name."""

    id: str
    target: str
    origin: str


class BrokenPlugin(Exception):
    """A registered method that cannot be imported, or is no method."""


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """Every registered method by id. Raises UserError if two claim one id."""
    found: dict[str, Entry] = {}
    outside = [
        Entry(point.name, point.value, f"{point.dist.name} {point.dist.version}" if point.dist else "unknown")
        for point in entry_points(group=GROUP)
    ]
    for entry in (*_in_repo(), *outside):
        if entry.id in found and found[entry.id] != entry:
            first = found[entry.id]
            raise UserError(
                f"two methods are called {entry.id!r}: {first.target} ({first.origin}) and {entry.target} "
                f"({entry.origin}); rename or uninstall one"
            )
        found[entry.id] = entry
    return dict(sorted(found.items()))


def load(method_id: str) -> type[Method]:
    """The class of a method. Raises UserError for an unknown id, BrokenPlugin if it cannot be imported."""
    if method_id not in entries():
        raise UserError(f"unknown method {method_id!r}{did_you_mean(method_id, entries())}")
    entry = entries()[method_id]
    try:
        cls = load_class(entry.target)
    except Exception as error:
        raise BrokenPlugin(
            f"{method_id} ({entry.origin}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise BrokenPlugin(f"{method_id} ({entry.origin}): {entry.target} is no harness.api.Method")
    if getattr(cls, "id", None) != method_id:
        raise BrokenPlugin(f"{method_id} ({entry.origin}): the class calls itself {getattr(cls, 'id', None)!r}")
    return cls


def load_class(target: str) -> type[Method]:
    """The class that "module:Class" names."""
    module, _, name = target.partition(":")
    cls: type[Method] = getattr(importlib.import_module(module), name)
    return cls


def _in_repo() -> list[Entry]:
    spec = importlib.util.find_spec("methods")
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(next(iter(spec.submodule_search_locations)))
    return [entry for path in sorted(root.rglob("*.py")) for entry in _declared(path, root)]


def _declared(path: Path, root: Path) -> list[Entry]:
    text = path.read_text(encoding="utf-8")
    if "id = " not in text:
        return []
    module = ".".join(("methods", *path.relative_to(root).with_suffix("").parts))
    return [
        Entry(statement.value.value, f"{module}:{node.name}", "built-in")
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        and [t.id for t in statement.targets if isinstance(t, ast.Name)] == ["id"]
    ]

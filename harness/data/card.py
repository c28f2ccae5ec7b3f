"""Dataset cards: finding them, reading them, and merging what a benchmark overrides into them.

A card is a YAML file. `data.card` of a benchmark is the id of a built-in card or the path of a card file; `data.with`
replaces any of its fields. The merged card is checked as one document in which every value still knows the file, line
and column it came from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import yamlfile
from harness.data.card_checks import cross_check
from harness.data.schema import KINDS, Card, NiftiCard, PhantomCard
from harness.problems import Problem, UserError, did_you_mean
from harness.untrusted import is_file, plain
from harness.yamlfile import Document, Where

__all__ = ["Card", "NiftiCard", "PhantomCard", "card_ids", "cards_folder", "load_card", "read_card"]

_YAML = (".yaml", ".yml")
_FIXED = ("id", "kind")


def cards_folder() -> Path:
    """The folder of built-in cards: inside an installed package, or datasets/ of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_datasets"
    return installed if installed.is_dir() else package.parent / "datasets"


def card_ids() -> list[str]:
    """Ids of the built-in cards."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def read_card(name: str | Path) -> Card:
    """A built-in card by id, or a card file by its path (ending in .yaml). Raises UserError with every problem."""
    document = _read(str(name), Path(), lambda what: Problem(plain(str(name)), plain(what)))
    return _finish(document, Path(document.path).parent)


def load_card(document: Document, section: Mapping[str, Any], at: Where = ("data",)) -> Card:
    """The card that a benchmark's `data:` section names, with the fields of `data.with` replaced.

    `section` stands at `at` in `document`. A card file's path is relative to the benchmark file. Raises UserError
    with every problem, each at its place in the card, the label table or the benchmark.
    """
    folder = Path(document.path).parent
    base = _read(str(section.get("card", "")), folder, lambda what: document.problem((*at, "card"), what))
    changes = section.get("with")
    if not isinstance(changes, dict):
        return _finish(base, Path(base.path).parent)
    fixed = [
        document.problem((*at, "with", key), f"{key} cannot be replaced; copy the card and name the copy")
        for key in _FIXED
        if key in changes
    ]
    if fixed:
        raise UserError(fixed)
    if isinstance(changes.get("labels"), dict):
        _resolve_labels(base, Path(base.path).parent)
    _overlay(base, changes, document, (*at, "with"))
    labels_folder = folder if isinstance(changes.get("labels"), str) else None
    split = changes.get("split")
    split_folder = folder if isinstance(split, dict) and "file" in split else None
    return _finish(base, labels_folder or Path(base.path).parent, split_folder)


def _read(name: str, folder: Path, problem: Any) -> Document:
    """The YAML of a card named by id or path. `problem` makes a Problem at the place that names it."""
    if name.endswith(_YAML):
        path = folder / name
        if not is_file(path):
            raise UserError(problem(f"no such card file: {path}"))
        return yamlfile.read(path)
    path = cards_folder() / f"{name}.yaml"
    if name not in card_ids():
        raise UserError(problem(f"unknown dataset card {name!r}{did_you_mean(name, card_ids())}"))
    document = yamlfile.read(path, _shown(path))
    if document.data.get("id") != name:
        raise UserError(document.problem(("id",), f"id must be the file's name, {name!r}"))
    return document


def _finish(document: Document, labels_folder: Path, split_folder: Path | None = None) -> Card:
    """Resolve the label table, check the whole, and keep the positions with the card."""
    _resolve_labels(document, labels_folder)
    kind = document.data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS) if kind is not None else f"; known: {', '.join(KINDS)}"
        raise UserError(document.problem(("kind",), f"kind is {kind!r}{hint}"))
    card, problems = yamlfile.check(document, document.data, KINDS[kind])
    if card is None:
        raise UserError(problems)
    found = [document.problem(loc, what) for loc, what in cross_check(card)]
    if found:
        raise UserError(found)
    card._source = document
    if card.split.file is not None:
        card._split_file = str((split_folder or Path(document.path).parent) / card.split.file)
    return card


def _resolve_labels(document: Document, folder: Path) -> None:
    """Put the label table in place of its name."""
    name = document.data.get("labels")
    if not isinstance(name, str):
        return
    if name.endswith(_YAML):
        path = folder / name
        known: list[str] = []
    else:
        path = cards_folder() / "labels" / f"{name}.yaml"
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
    if not is_file(path) or (known and name not in known):
        raise UserError(document.problem(("labels",), f"unknown label table {name!r}{did_you_mean(name, known)}"))
    table = yamlfile.read(path, _shown(path))
    document.put_from(("labels",), table.data, table, ())


def _overlay(base: Document, changes: Mapping[Any, Any], source: Document, at: Where, loc: Where = ()) -> None:
    """Merge `changes`, which stand at `at` in `source`, into the node at `loc` of `base`, positions included."""
    node: Any = base.data
    for part in loc:
        node = node[part]
    for key, value in changes.items():
        here, there = (*loc, key), (*at, key)
        if isinstance(value, dict) and isinstance(node.get(key), dict):
            _overlay(base, value, source, there, here)
            continue
        base.put_from(here, copy.deepcopy(value), source, there)


def _shown(path: Path) -> str:
    """Built-in files by their shortest name: from the working directory where that is above them."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""Benchmark files that name a `base` and say only what differs from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.problems import UserError, did_you_mean
from harness.untrusted import is_file
from harness.yamlfile import Document, Where, read

LONGEST_CHAIN = 16
"""Files that may build on each other."""


def read_derived(path: str | Path) -> Document:
    """Read a file that may name a `base`: what it says replaces what the base says, key by key.

    base:    another such file, relative to this one. Mappings merge; everything else is replaced whole, and so is a
             mapping whose `id` or `card` is another one. A key without a value keeps the base's.
    without: dotted keys of the base that are left out.

    Neither key is in the document that comes back; every position is that in the file the value stands in. Raises
    UserError like `read`, and for bases that do not exist, go round in circles, make too long a chain, or lack a key
    of `without`.
    """
    return _read_derived(Path(path), [])


def _read_derived(path: Path, open_files: list[Path]) -> Document:
    document = read(path)
    if "base" not in document.data:
        if "without" in document.data:
            raise UserError(document.problem(("without",), "there is no base to leave anything out of"))
        return document
    name = document.data.pop("base")
    if not isinstance(name, str) or not is_file(path.parent / name):
        raise UserError(document.problem(("base",), f"no such file: {path.parent / str(name)}"))
    above = [*open_files, path.resolve()]
    if (path.parent / name).resolve() in above:
        raise UserError(document.problem(("base",), f"{name} leads back to this file"))
    if len(above) >= LONGEST_CHAIN:
        raise UserError(document.problem(("base",), f"more than {LONGEST_CHAIN} files build on each other here"))
    base = _read_derived(path.parent / name, above)
    _leave_out(base, document)
    _relocate(base, path.parent)
    merged = Document(document.path, base.data, base.positions)
    merged.positions[()] = document.where(())
    _merge(merged, document, ())
    return merged


def _leave_out(base: Document, document: Document) -> None:
    listed = document.data.pop("without", None) or []
    if not isinstance(listed, list):
        raise UserError(document.problem(("without",), "expected a list of dotted keys"))
    problems = []
    for i, dotted in enumerate(map(str, listed)):
        *path, last = dotted.split(".")
        node = base.data
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            del node[last]
        else:
            hint = did_you_mean(last, map(str, node)) if isinstance(node, dict) else ""
            problems.append(document.problem(("without", i), f"the base has no {dotted}{hint}"))
    if problems:
        raise UserError(problems)


def _relocate(base: Document, folder: Path) -> None:
    """Let the path of a card file that the base names hold from another folder."""
    data = base.data.get("data")
    card = data.get("card") if isinstance(data, dict) else None
    if isinstance(card, str) and Path(card).suffix in (".yaml", ".yml"):
        data["card"] = os.path.relpath(Path(base.path).parent / card, folder)


def _merge(into: Document, document: Document, loc: Where) -> None:
    """Lay what stands at `loc` of a document, a mapping, over the mapping that stands there already."""
    old, new = _at_loc(into.data, loc), _at_loc(document.data, loc)
    for key, value in new.items():
        here = (*loc, key)
        if key in old and value is None:
            continue
        known = old.get(key)
        if isinstance(value, dict) and isinstance(known, dict) and not _another(known, value):
            into.positions[here] = document.where(here)
            _merge(into, document, here)
            continue
        into.put_from(here, value, document, here)


def _another(known: dict[Any, Any], value: dict[Any, Any]) -> bool:
    return any(name in value and value[name] != known.get(name) for name in ("id", "card"))


def _at_loc(data: Any, loc: Where) -> Any:
    for part in loc:
        data = data[part]
    return data

"""YAML with positions: safe to read, strict about duplicate keys, and every value knows its file:line:column.

Config is data: only YAML's plain scalars, lists and mappings are built. `check` validates a document against a
pydantic model and returns every mistake at once, each with its position and what to write instead.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from harness.problems import Problem, UserError, did_you_mean

Where = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass
class Document:
    """A YAML file as plain data, and where each key and value stands in it."""

    path: str
    data: Any
    positions: dict[Where, str] = field(default_factory=dict)

    def where(self, loc: Sequence[str | int]) -> str:
        """'file:line:column' of a location, or of its nearest known parent."""
        for end in range(len(loc), -1, -1):
            if tuple(loc[:end]) in self.positions:
                return self.positions[tuple(loc[:end])]
        return f"{self.path}:1:1"

    def problem(self, loc: Sequence[str | int], what: str) -> Problem:
        return Problem(self.where(loc), what)

    def override(self, assignment: str) -> None:
        """Apply one `--set a.b=value`; the value is read as YAML. Raises UserError if it is malformed."""
        label = f"--set {assignment}"
        dotted, sign, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not sign or not all(keys):
            raise UserError(Problem(label, "write it as --set key.subkey=value"))
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(Problem(label, f"the value is no YAML: {_first_line(error)}")) from None
        node: Any = self.data
        loc: list[str | int] = []
        for key in keys[:-1]:
            loc.append(_index(node, key, label, loc))
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[loc[-1]]
        loc.append(_index(node, keys[-1], label, loc))
        node[loc[-1]] = value
        self.positions = {k: v for k, v in self.positions.items() if k[: len(loc)] != tuple(loc)}
        self.positions[tuple(loc)] = label


def read(path: str | Path, label: str | None = None) -> Document:
    """Read one YAML mapping. Raises UserError: missing file, broken YAML, duplicate keys, no mapping."""
    shown = label or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(Problem(shown, "no such file")) from None
    except IsADirectoryError:
        raise UserError(Problem(shown, "is a folder; name a YAML file")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(shown, f"cannot be read: {_first_line(error)}")) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        raise UserError(Problem(at, f"broken YAML: {error.problem or error.context}")) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(Problem(shown, f"broken YAML: {_first_line(error)}")) from None
    document = Document(shown, None)
    problems: list[Problem] = []
    try:
        document.data = _build(node, (), document, problems, set())
    except RecursionError:
        raise UserError(Problem(shown, "nested too deeply")) from None
    if not isinstance(document.data, dict) and not problems:
        problems.append(Problem(f"{shown}:1:1", "expected a mapping of keys to values at the top"))
    if problems:
        raise UserError(problems)
    return document


def check(document: Document, data: Any, model: type[Model], at: Where = ()) -> tuple[Model | None, list[Problem]]:
    """Validate `data`, which stands at `at` in the document. Returns (model, []) or (None, every problem)."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, [_explain(document, model, at, item) for item in error.errors(include_url=False)]


def _build(node: yaml.Node | None, loc: Where, doc: Document, problems: list[Problem], open_nodes: set[int]) -> Any:
    if node is None:
        return None
    doc.positions.setdefault(loc, _at(doc, node))
    if id(node) in open_nodes:
        problems.append(Problem(_at(doc, node), "an alias that contains itself"))
        return None
    inside = open_nodes | {id(node)}
    if isinstance(node, yaml.MappingNode):
        built: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, doc, problems)
            if isinstance(key, bool | float) or key is None:
                key = key_node.value  # `on:` or `1.5:` are names here, not truth values
            here = (*loc, key)
            if key in built:
                problems.append(
                    Problem(_at(doc, key_node), f"duplicate key {key!r}, first at {doc.positions[here]}; keep one")
                )
                continue
            doc.positions[here] = _at(doc, key_node)
            built[key] = _build(value_node, here, doc, problems, inside)
        return built
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*loc, i), doc, problems, inside) for i, child in enumerate(node.value)]
    return _scalar(node, doc, problems)


def _scalar(node: yaml.Node, doc: Document, problems: list[Problem]) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        problems.append(Problem(_at(doc, node), "a key must be a plain word or number"))
        return str(id(node))
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problems.append(Problem(_at(doc, node), f"cannot be read: {_first_line(error)}"))
        return None
    finally:
        loader.dispose()
    if isinstance(value, str) and node.style is None and _looks_like_number(value):
        return float(value)  # YAML 1.1 reads 1e-4 as text; everybody means the number
    return value


def _looks_like_number(text: str) -> bool:
    if not any(c.isdigit() for c in text) or "e" not in text.lower() or "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at(doc: Document, node: yaml.Node) -> str:
    return f"{doc.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _index(node: Any, key: str, label: str, loc: list[str | int]) -> str | int:
    if isinstance(node, dict):
        return key
    if isinstance(node, list):
        if key.isdigit() and int(key) < len(node):
            return int(key)
        raise UserError(Problem(label, f"{'.'.join(map(str, loc))} is a list of {len(node)}; use an index below that"))
    raise UserError(Problem(label, f"{'.'.join(map(str, loc)) or 'the file'} holds a single value, nothing below it"))


# -------------------------------------------------------------------------- pydantic's errors in our words


def _explain(document: Document, model: type[BaseModel], at: Where, error: Any) -> Problem:
    loc = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    kind, given = error["type"], error.get("input")
    where = document.where((*at, *loc))
    name = ".".join(map(str, (*at, *loc))) or "the file"
    if kind == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return Problem(where, f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), known)}")
    if kind == "missing":
        return Problem(where, f"{name} is missing; it is required")
    message = error["msg"]
    if kind == "value_error":
        message = str(error.get("ctx", {}).get("error", message))
        return Problem(where, f"{name}: {message}" if loc else message)
    message = message[0].lower() + message[1:]
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    return Problem(where, f"{name} is {shown[:60]}: {message}")


def _fields_at(model: type[BaseModel], loc: Iterable[str | int]) -> list[str]:
    """Field names of the model that stands at `loc`, seen through Optional, list, dict and unions."""
    options: list[Any] = [model]
    for part in loc:
        inner: list[Any] = []
        for option in options:
            if _is_model(option):
                for field_name, info in option.model_fields.items():
                    if part in (field_name, info.alias):
                        inner.extend(_unfold(info.annotation))
            elif get_origin(option) in (list, tuple, dict, set):
                inner.extend(t for arg in get_args(option) for t in _unfold(arg))
        options = inner or options
    return [name for option in options if _is_model(option) for name in option.model_fields]


def _unfold(annotation: Any) -> list[Any]:
    if get_origin(annotation) is typing.Annotated:
        return _unfold(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [t for arg in get_args(annotation) for t in _unfold(arg)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)

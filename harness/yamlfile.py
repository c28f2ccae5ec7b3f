"""YAML with positions: safe to read, strict about duplicate keys, and every value knows its file:line:column.

Config is data: only YAML's plain scalars, lists and mappings are built, within limits that no honest file comes near.
`check` validates a document against a pydantic model and returns every mistake at once, each with its position and
what to write instead.
"""

from __future__ import annotations

import datetime
import math
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from harness.problems import Problem, UserError, did_you_mean
from harness.untrusted import open_regular, plain

Where = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

MOST_BYTES = 4 * 2**20
"""A benchmark file has kilobytes; a split file that names 100,000 subjects about two MB."""

MOST_VALUES = 200_000
"""Keys and values of a file, aliases written out: ten lines of aliases can stand for a billion values."""

DEEPEST = 40
"""Levels of nesting; cards use six."""

LONGEST_TEXT = 20_000
"""Characters of one value: a page or two of notes."""

LARGEST_INTEGER = 2**63 - 1

MOST_PROBLEMS = 100
"""Mistakes of one file that are told; nobody reads more."""


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
        return Problem(self.where(loc), plain(what))

    def put(self, loc: Where, value: Any, place: Callable[[Where], str | None]) -> None:
        """Set the value at `loc`, whose parent exists. place: where a part of it stands, by its location."""
        node: Any = self.data
        for part in loc[:-1]:
            node = node[part]
        last: Any = loc[-1]
        if isinstance(node, list) or last in node:
            self._forget(loc, node[last])
        node[last] = value
        self._place(loc, value, place)

    def put_from(self, loc: Where, value: Any, source: Document, at: Where) -> None:
        """Set the value at `loc` to what stands at `at` in another document, its positions included."""
        known = source.positions
        self.put(loc, value, lambda here: known.get((*at, *here[len(loc) :])))
        self.positions[loc] = source.where(at)

    def override(self, assignment: str) -> None:
        """Apply one `--set a.b=value`; the value is read as YAML. Raises UserError if it is malformed."""
        label = plain(f"--set {assignment}")
        dotted, sign, text = assignment.partition("=")
        keys = dotted.strip().split(".")
        if not sign or not all(keys):
            raise UserError(Problem(label, "write it as --set key.subkey=value"))
        if len(keys) > DEEPEST:
            raise UserError(Problem(label, f"nested too deeply: more than {DEEPEST} levels"))
        value = _parse(text, label, lambda mark: label, "the value is no YAML").data
        node: Any = self.data
        loc: list[str | int] = []
        for key in keys[:-1]:
            loc.append(_index(node, key, label, loc))
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[loc[-1]]
        loc.append(_index(node, keys[-1], label, loc))
        self.put(tuple(loc), value, lambda here: label if len(here) == len(loc) else None)

    def _forget(self, loc: Where, value: Any) -> None:
        self.positions.pop(loc, None)
        for key, inside in _children(value):
            self._forget((*loc, key), inside)

    def _place(self, loc: Where, value: Any, place: Callable[[Where], str | None]) -> None:
        found = place(loc)
        if found is not None:
            self.positions[loc] = found
        for key, inside in _children(value):
            self._place((*loc, key), inside, place)


def _children(value: Any) -> Iterable[tuple[str | int, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def read(path: str | Path, label: str | None = None) -> Document:
    """Read one YAML mapping.

    Raises UserError: no such file, no regular file, broken YAML, duplicate keys, no mapping, or beyond the limits
    above.
    """
    shown = plain(label or str(path))
    try:
        with open_regular(path) as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UserError(Problem(shown, f"is larger than {MOST_BYTES // 2**20} MiB; name a YAML file"))
        text = raw.decode()
    except FileNotFoundError:
        raise UserError(Problem(shown, "no such file")) from None
    except IsADirectoryError:
        raise UserError(Problem(shown, "is a folder; name a YAML file")) from None
    except OSError as error:
        raise UserError(Problem(shown, f"cannot be read: {error.strerror or _first_line(error)}")) from None
    except UnicodeDecodeError as error:
        raise UserError(Problem(shown, f"cannot be read: {_first_line(error)}; save it as UTF-8 text")) from None
    document = _parse(text, shown, lambda mark: f"{shown}:{mark.line + 1}:{mark.column + 1}", "broken YAML")
    if not isinstance(document.data, dict):
        raise UserError(Problem(f"{shown}:1:1", "expected a mapping of keys to values at the top"))
    return document


def check(document: Document, data: Any, model: type[Model], at: Where = ()) -> tuple[Model | None, list[Problem]]:
    """Validate `data`, which stands at `at` in the document. Returns (model, []) or (None, the problems)."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_explain(document, model, at, item) for item in found[:MOST_PROBLEMS]]
        return None, _shortened(problems, len(found), document.where(at))


def _shortened(problems: list[Problem], count: int, where: str) -> list[Problem]:
    """The problems that are told of `count` there are."""
    more = count - MOST_PROBLEMS
    return problems if more <= 0 else [*problems[:MOST_PROBLEMS], Problem(where, f"and {more} more problems")]


# ------------------------------------------------------------------------------------------- text to data

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The compiled parser is 20 times as fast, and linear where the other is not."""

_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp"))


def _parse(text: str, path: str, place: Callable[[Any], str], failing: str) -> Document:
    """YAML text as a document. place: how one of yaml's marks is shown. Raises UserError with every problem."""
    try:
        # Events come one by one, without recursion: what is too deep or too much never becomes a tree.
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or count > 2 * MOST_VALUES:
                raise UserError(Problem(place(event.start_mark), _beyond(depth)))
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"{failing}: {error.problem or error.context}"
        raise UserError(Problem(place(mark) if mark else path, plain(what))) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(Problem(path, plain(f"{failing}: {_first_line(error)}"))) from None
    builder = _Builder(Document(path, None), place)
    builder.document.data = builder.build(node, ())
    if builder.problems:
        raise UserError(_shortened(builder.problems, len(builder.problems), path))
    return builder.document


def _beyond(depth: int) -> str:
    if depth > DEEPEST:
        return f"nested too deeply: more than {DEEPEST} levels"
    return f"the file holds more than {MOST_VALUES:,} values, aliases written out; it is no configuration"


class _Unfit(ValueError):
    """A value that is sound YAML and yet none of ours: what is wrong with it."""


class _Builder:
    """A tree of nodes into plain data, with positions and problems. Aliases are written out."""

    def __init__(self, document: Document, place: Callable[[Any], str]):
        self.document = document
        self.problems: list[Problem] = []
        self._show = place
        self._values = 0
        self._open: set[int] = set()
        self._constructor = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node | None, loc: Where) -> Any:
        if node is None:
            return None
        self.document.positions.setdefault(loc, self._at(node))
        self._values += 1
        if self._values > MOST_VALUES or len(loc) > DEEPEST:
            raise UserError([*self.problems[:MOST_PROBLEMS], Problem(self._at(node), _beyond(len(loc)))])
        if id(node) in self._open:
            self._fault(node, "an alias that contains itself")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.add(id(node))
        built = self._mapping(node, loc) if isinstance(node, yaml.MappingNode) else self._list(node, loc)
        self._open.discard(id(node))
        return built

    def _list(self, node: yaml.Node, loc: Where) -> list[Any]:
        return [self.build(child, (*loc, i)) for i, child in enumerate(node.value)]

    def _mapping(self, node: yaml.Node, loc: Where) -> dict[Any, Any]:
        positions = self.document.positions
        built: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            here = (*loc, key)
            if key in built:
                self._fault(key_node, f"duplicate key {key!r}, first at {positions[here]}; keep one")
                continue
            positions[here] = self._at(key_node)
            built[key] = self.build(value_node, here)
        return built

    def _key(self, node: yaml.Node) -> str | int:
        if not isinstance(node, yaml.ScalarNode):
            self._fault(node, "a key must be a plain word or number")
            return str(id(node))
        key = self._scalar(node)
        # `on:` or `1.5:` are names here, not truth values
        return key if isinstance(key, str) or type(key) is int else str(node.value)

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        try:
            return self._value(node)
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
            self._fault(node, str(error) if type(error) is _Unfit else f"cannot be read: {_first_line(error)}")
            return None

    def _value(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text: str = node.value
        if len(text) > LONGEST_TEXT:
            raise _Unfit(f"is longer than {LONGEST_TEXT:,} characters")
        control = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
        if control is not None:
            raise _Unfit(f"holds the control character {control!r}; leave it out")
        if node.tag not in _PLAIN:
            raise _Unfit(f"cannot be read: the tag {node.tag} has no meaning here; leave it out")
        value: Any = self._constructor.construct_object(node)
        if isinstance(value, datetime.date):
            return text  # nothing here is a date: a subject may be called 2024-01-31
        if isinstance(value, str) and not node.style and _looks_like_number(value):
            value = float(value)  # YAML 1.1 reads 1e-4 as text; everybody means the number
        if isinstance(value, float) and not math.isfinite(value):
            raise _Unfit(f"must be a finite number, not {value}")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise _Unfit("is too large a number")
        return value

    def _fault(self, node: yaml.Node, what: str) -> None:
        self.problems.append(Problem(self._at(node), plain(what)))

    def _at(self, node: yaml.Node) -> str:
        return self._show(node.start_mark)


def _looks_like_number(text: str) -> bool:
    if not any(c.isdigit() for c in text) or "e" not in text.lower() or "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _index(node: Any, key: str, label: str, loc: list[str | int]) -> str | int:
    if isinstance(node, dict):
        return key
    if isinstance(node, list):
        if key.isdecimal() and len(key) < 10 and int(key) < len(node):
            return int(key)
        what = f"{'.'.join(map(str, loc))} is a list of {len(node)}; use an index below that"
        raise UserError(Problem(label, plain(what)))
    what = f"{'.'.join(map(str, loc)) or 'the file'} holds a single value, nothing below it"
    raise UserError(Problem(label, plain(what)))


# -------------------------------------------------------------------------- pydantic's errors in our words


def _explain(document: Document, model: type[BaseModel], at: Where, error: Any) -> Problem:
    loc = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    kind, given = error["type"], error.get("input")
    place = (*at, *loc)
    name = ".".join(map(str, (*at, *loc))) or "the file"
    if kind == "extra_forbidden":
        known = _fields_at(model, loc[:-1])
        return document.problem(place, f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), known)}")
    if kind == "missing":
        return document.problem(place, f"{name} is missing; it is required")
    message = error["msg"]
    if kind == "value_error":
        message = str(error.get("ctx", {}).get("error", message))
        return document.problem(place, f"{name}: {message}" if loc else message)
    message = message[0].lower() + message[1:]
    shown = repr(given) if isinstance(given, str | int | float | bool | None) else type(given).__name__
    return document.problem(place, f"{name} is {shown[:60]}: {message}")


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

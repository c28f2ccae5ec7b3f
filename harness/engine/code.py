"""Fingerprint of the first-party code that a function can reach.

Starting from "module:name", follow every name the definition uses, through imports, into other first-party
modules, and hash what is found. The unit is the top-level definition, not the file: editing one metric does not
retrain a network that happens to live beside it. Comments, docstrings, annotations of function arguments and
formatting do not count. Nothing is imported: source files are only parsed.

What it cannot see: code reached by a name built at run time. The plan names such roots itself (a method's class).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

FIRST_PARTY = ("harness", "methods")
Symbol = tuple[str, str]
"""(module, top-level name); the name "" stands for the module's own side effects."""


def fingerprint(roots: tuple[str, ...]) -> str:
    """sha256 over every definition reachable from the roots ("package.module:name")."""
    return _fingerprint(roots, _stamp())


def symbols(roots: tuple[str, ...]) -> dict[str, str]:
    """Reachable definition ("module:name") → digest of its code, sorted by name."""
    return _symbols(roots, _stamp())


@lru_cache(maxsize=4096)
def _fingerprint(roots: tuple[str, ...], stamp: int) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in _symbols(roots, stamp).items())
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4096)
def _symbols(roots: tuple[str, ...], stamp: int) -> dict[str, str]:
    packages = frozenset({*FIRST_PARTY, *(root.partition(".")[0].partition(":")[0] for root in roots)})
    found: dict[Symbol, str] = {}
    stack: list[Symbol] = []
    for root in roots:
        module, _, name = root.partition(":")
        stack.extend(_resolve(module, name or None, packages))
    while stack:
        symbol = stack.pop()
        if symbol in found:
            continue
        if _parse(symbol[0], stamp) is not None:
            found[symbol] = _digest(symbol, stamp)
            stack.extend(_followed(symbol, packages, stamp))
    return {f"{module}:{name}": found[module, name] for module, name in sorted(found) if found[module, name]}


# Roots of different stages reach much the same definitions: each is dumped and searched for names once.
@cache
def _digest(symbol: Symbol, stamp: int) -> str:
    source = _parse(symbol[0], stamp)
    nodes = source.definitions.get(symbol[1], []) if source else []
    return hashlib.sha256("\n".join(map(_dump, nodes)).encode()).hexdigest()[:16]


@cache
def _followed(symbol: Symbol, packages: frozenset[str], stamp: int) -> tuple[Symbol, ...]:
    """What a definition leads to: its module's side effects, the names it uses, what it re-exports."""
    source = _parse(symbol[0], stamp)
    if source is None:
        return ()
    followed = [(symbol[0], ""), *_references(source, source.definitions.get(symbol[1], []), packages)]
    if symbol[1] in source.imports:
        followed.extend(_resolve(*source.imports[symbol[1]], packages))
    return tuple(dict.fromkeys(followed))


@dataclass
class _Source:
    """A parsed module: top-level definitions by name, and what its imported names mean."""

    module: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


_stamps = [0]


def _stamp() -> int:
    return _stamps[0]


def forget() -> None:
    """Read source files anew from now on (tests edit them within one process)."""
    _stamps[0] += 1


@lru_cache(maxsize=4096)
def _parse(module: str, stamp: int) -> _Source | None:
    path = _file_of(module)
    if path is None:
        return None
    source = _Source(module)
    if path.suffix != ".py":  # compiled: its bytes are its code
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        source.definitions[""] = [ast.Expr(ast.Constant(digest))]
        return source
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in tree.body:
        if _is_type_checking(statement) or _is_docstring(statement):
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            source.imports.update(_imported(statement, package))
            continue
        names = list(_bound(statement))
        for inner in ast.walk(statement):  # try/except around an import
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and isinstance(
                inner, ast.Import | ast.ImportFrom
            ):
                source.imports.update(_imported(inner, package))
        for name in names or [""]:
            source.definitions.setdefault(name, []).append(statement)
    return source


def _references(source: _Source, nodes: list[ast.stmt], packages: frozenset[str]) -> Iterator[Symbol]:
    for node in nodes:
        local = dict(source.imports)
        package = source.module if _is_package(source.module) else source.module.rpartition(".")[0]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                local.update(_imported(inner, package))
        for name, attributes in _names(node):
            if name in source.definitions:
                yield source.module, name
            if name in local:
                module, symbol = local[name]
                for attribute in attributes:
                    # `import a.b as m; m.c.d`: walk down as long as there are modules
                    deeper = f"{module}.{symbol}" if symbol else module
                    if _file_of(deeper) is None or deeper.partition(".")[0] not in packages:
                        break
                    module, symbol = deeper, attribute
                yield from _resolve(module, symbol, packages)


def _resolve(module: str, name: str | None, packages: frozenset[str]) -> Iterator[Symbol]:
    if module.partition(".")[0] not in packages:
        return
    if name and _file_of(f"{module}.{name}") is not None:
        module, name = f"{module}.{name}", None
    source = _parse(module, _stamp())
    if source is None:
        return
    if name is None or name == "*":
        yield from ((module, symbol) for symbol in source.definitions)
    else:
        yield module, name


def _names(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Each name a definition uses, with the attributes read from it (`a.b.c` gives ("a", ["b", "c"]))."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        parts: list[ast.AST] = [*node.decorator_list, *node.body, *node.args.defaults]
        parts += [default for default in node.args.kw_defaults if default is not None]
    else:
        parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Attribute):
        chain, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield inner.id, chain[::-1]
            return
    if isinstance(node, ast.Name):
        yield node.id, []
    for part in parts:
        yield from _names(part)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str | None]]:
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                (alias.name, None) if alias.asname else (alias.name.partition(".")[0], None)
            )
            for alias in node.names
        }
    base = node.module or ""
    if node.level:
        parts = package.split(".")
        parent = ".".join(parts[: len(parts) - node.level + 1])
        base = f"{parent}.{base}" if base else parent
    return {alias.asname or alias.name: (base, alias.name) for alias in node.names}


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for inner in ast.walk(statement):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inner.name
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id


def _dump(node: ast.stmt) -> str:
    return ast.dump(_Bare().visit(ast.parse(ast.unparse(node))))


class _Bare(ast.NodeTransformer):
    """Drops docstrings and the annotations of arguments and returns: they do not change what code does."""

    def _body(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        body = [s for s in node.body if not _is_docstring(s)]  # type: ignore[attr-defined]
        node.body = body or [ast.Pass()]  # type: ignore[attr-defined]
        return node

    visit_Module = visit_ClassDef = _body

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._body(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_package(module: str) -> bool:
    path = _file_of(module)
    return path is not None and path.name == "__init__.py"


@lru_cache(maxsize=4096)
def _file_of(module: str) -> Path | None:
    """The file of a module, without importing it or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
        compiled = sorted(base.parent.glob(f"{base.name}.*.so"))
        if compiled:
            return compiled[0]
    return None

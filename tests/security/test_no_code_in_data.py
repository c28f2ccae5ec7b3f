"""No line of the project reads code from data: no pickles, no YAML objects, no archives laid out, no raw HTML."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for part in ("harness", "methods", "benchmarks") for path in (REPO / part).rglob("*.py"))
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "cloudpickle.load", "cloudpickle.loads",
    "dill.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.Loader", "yaml.UnsafeLoader",
    "yaml.FullLoader", "os.system", "os.popen", "shutil.unpack_archive", "torch.hub.load", "pandas.read_pickle",
    "pd.read_pickle", "markupsafe.Markup", "jinja2.Markup", "Markup", "eval", "exec",
}  # fmt: skip
METHODS = {"extractall", "unpack_archive"}


def uses(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of every name and attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node), node


def calls(tree: ast.AST, name: str) -> Iterator[dict[str, str]]:
    """Keyword arguments of every call of a dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield {word.arg or "": ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = [name for name, _ in uses(tree) if name in FORBIDDEN or name.rpartition(".")[2] in METHODS]
    assert not found
    assert all(words.get("weights_only") == "True" for words in calls(tree, "torch.load"))
    for name in ("np.load", "numpy.load"):
        assert all(words.get("allow_pickle") == "False" for words in calls(tree, name))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True")


def test_the_search_would_find_them() -> None:
    tree = ast.parse("torch.load(x)\nyaml.load(y)\nnp.load(z)\nt.extractall()")
    assert {name for name, _ in uses(tree)} >= {"yaml.load", "t.extractall"}
    assert list(calls(tree, "torch.load")) == [{}]
    assert SOURCES


def test_templates_escape_everything() -> None:
    templates = sorted((REPO / "harness").rglob("*.j2"))
    assert templates
    for path in templates:
        text = path.read_text()
        assert "autoescape" not in text, path
        assert not [word for word in ("|safe", "| safe", "Markup", "<script") if word in text], path

"""Plugins that fork, exit, leak and shout: their own cells may fail, nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from lab import Lab, line, starved

Check = Callable[..., None]
QUIET = ("--tracking", "none")
OTHERS = ("none", "histogram_matching")


def test_a_plugin_forks(trained: Lab, survived: Check) -> None:
    trained.write("fork")
    before = trained.finished()
    answer, log = trained.run(*QUIET)
    assert answer["failed"] == 0
    left = [process for process in psutil.process_iter() if _is_ours(process, trained)]
    assert left == [], "children outlived the run"
    survived("a plugin forks", trained, line(log, "tiny:", "executed"), before)


def _is_ours(process: psutil.Process, lab: Lab) -> bool:
    """Whether it is, or is forked from, a worker of this lab's runs that applied the plugin."""
    try:
        titled = "ray::apply mischief" in " ".join(process.cmdline())
        return titled and process.environ().get("PYTHONPATH") == lab.plugin
    except psutil.Error:
        return False


def test_a_plugin_exits(trained: Lab, survived: Check) -> None:
    before = trained.finished()
    for how, words in (("exit", ("SystemExit",)), ("leave", ("its worker died", "3 times"))):
        trained.write(how)
        answer, log = trained.run(*QUIET, code=1)
        assert all("mischief" in f["stage"] for f in answer["failures"])
        told = line(log, "failed: apply mischief", *words)
    survived("a plugin exits", trained, told, before, methods=OTHERS)


def test_a_plugin_leaks_memory(trained: Lab, survived: Check) -> None:
    trained.write("leak")
    before = trained.finished()
    answer, log = trained.run(*QUIET, code=1, **starved())
    assert all("mischief" in f["stage"] for f in answer["failures"])
    survived(
        "a plugin leaks memory", trained, line(log, "failed: apply mischief", "out of memory"), before, methods=OTHERS
    )


def test_a_plugin_writes_to_stdout(trained: Lab, survived: Check) -> None:
    """With --json, stdout is one document: `Lab.run` reads it."""
    trained.write("shout")
    before = trained.finished()
    answer, log = trained.run(*QUIET)
    assert answer["failed"] == 0
    assert not any("shouting" in text or "past Python" in text for text in log)
    survived("a plugin writes to stdout", trained, line(log, "tiny:", "executed"), before)

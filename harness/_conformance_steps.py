"""How conformance checks are run: in order, a finding in one line each, global random state watched."""

from __future__ import annotations

import inspect
import json
import random
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.api import AccessDenied, Context, Method, State

SEED = 7
Step = tuple[str, Callable[[], str], tuple[str, ...]]
"""Name, the check itself (what is wrong, "" if nothing), and the names of those that must have passed before."""


@dataclass(frozen=True)
class CheckResult:
    """One check. `detail` says what was wrong, "" if nothing. A failed advisory check is a warning only."""

    name: str
    passed: bool
    detail: str
    advisory: bool = False


class Trial(ABC):
    """One method, step by step. A step returns what is wrong, "" if nothing."""

    advisory: ClassVar[frozenset[str]] = frozenset({"random_state"})

    def __init__(self, cls: type[Method], folder: Path):
        self.cls, self.folder = cls, folder
        self.denied = ""
        seed_everything(1)
        self.random_state_before = random_states()

    @abstractmethod
    def steps(self) -> list[Step]:
        """The checks in order."""

    def results(self) -> list[CheckResult]:
        failed: set[str] = set()
        results = []
        for name, check, needs in self.steps():
            broken = [need for need in needs if need in failed]
            problem = f"not run: {broken[0]} failed" if broken else self._attempt(check)
            if problem:
                failed.add(name)
            results.append(CheckResult(name, not problem, problem, advisory=name in self.advisory))
        return results

    def _attempt(self, check: Callable[[], str]) -> str:
        try:
            return check()
        except AccessDenied as error:
            self.denied = told(error, self.cls)
            return self.denied
        except Exception as error:  # whatever a plugin may raise is a finding
            return told(error, self.cls)

    def leaves_random_state(self) -> str:
        changed = [name for name, state in random_states().items() if state != self.random_state_before[name]]
        return f"changed {', '.join(changed)}; draw from ctx.rng or a generator of your own" if changed else ""

    def context(self, name: str) -> Context:
        """What a run would hand over, with a scratch folder of this name."""
        scratch = self.folder / f"scratch-{name}"
        scratch.mkdir(exist_ok=True)
        return Context(seed=SEED, device="cpu", scratch=scratch, log=_check_log)


def _check_log(name: str, step: int, value: float) -> None:
    """What a run's log does with its arguments, so that a wrong type is found here."""
    json.dumps([str(name), int(step), float(value)])


def state_differences(before: State, after: State) -> Iterator[str]:
    """Entries that do not come back from disk as they were, bit by bit."""
    for name, old in before.items():
        new = after[name]
        if hasattr(old, "detach"):
            old = old.detach().cpu().numpy()
        if isinstance(old, np.ndarray | np.generic):
            same = old.shape == new.shape and old.dtype == new.dtype and old.tobytes() == new.tobytes()
        else:
            same = type(old) is type(new) and old == new
        if not same:
            yield f"state entry {name!r} does not survive saving: {_brief(old)} became {_brief(new)}"


def _brief(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray | np.generic) else repr(value)[:60]


def told(error: Exception, cls: type[Method]) -> str:
    """The exception in one line, with the last line of the method's own file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(cls)]
    frame = (own or list(frames))[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(frame.filename).name}:{frame.lineno})"


# ------------------------------------------------------------------------------------ global random state


def random_states() -> dict[str, bytes]:
    """The global state of each generator by the name of its module."""
    import torch

    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what is watched
    return {
        "random": repr(random.getstate()).encode(),
        "numpy.random": repr((kind, np.asarray(keys).tobytes(), position, rest)).encode(),
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }


def seed_everything(seed: int) -> None:
    """Another global random state, which must make no difference."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a method that draws from the global state must show
    torch.default_generator.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """The global random states afterwards as they were before."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])

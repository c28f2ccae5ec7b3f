"""User mistakes: what was wrong, where, and what to write instead. Collected, then shown all at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from harness.untrusted import plain


@dataclass(frozen=True)
class Problem:
    """One mistake. `where` is "file:line:column" or a path; `what` says what is wrong and what to do."""

    where: str
    what: str

    def __str__(self) -> str:
        return plain(f"{self.where}: {self.what}" if self.where else self.what)


class UserError(Exception):
    """One or more problems that the user can mend. The CLI prints a line for each, never a traceback."""

    def __init__(self, problems: Problem | Iterable[Problem] | str):
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """'; did you mean x?' or a list of what is known, ready to end a sentence."""
    options = sorted(known)
    close = get_close_matches(wrong, options, n=1, cutoff=0.6)
    if not close:  # other case, or an abbreviation: lr for learning_rate
        low = wrong.lower()
        close = [o for o in options if low in (o.lower(), "".join(word[:1] for word in o.lower().split("_")))][:1]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(options)}" if options else ""

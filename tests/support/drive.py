"""A driver of its own: runs toy stages on a cluster and prints what came of it as JSON.

python drive.py ADDRESS STORE '[{"name": "a", "fn": "where", "resources": "apply"}]' '{"apply": {"gpus": 0.5}}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nodes import AUTH


def drive(
    address: str,
    store: str,
    stages: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Any] | None = None,
    **environment: str,
) -> dict[str, Any]:
    """Run stages in a process of its own: what came of them. Fails, with the reason, where none was let run."""
    answer = _answer(address, store, stages, classes, environment)
    assert "refused" not in answer, answer["refused"]
    return answer


def refusal(address: str, store: str, stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why none of the stages was let run; [] if they were."""
    refused: list[str] = _answer(address, store, stages, None, {}).get("refused", [])
    return refused


def _answer(
    address: str,
    store: str,
    stages: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Any] | None,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    command = [sys.executable, __file__, address, store, json.dumps(list(stages)), json.dumps(classes or {})]
    done = subprocess.run(
        command, env={**os.environ, **AUTH, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    from harness.engine.executor import Execution, Progress
    from harness.engine.plan import Cell, Plan, Stage
    from harness.engine.resources import ResourceClasses
    from harness.engine.store import open_store
    from harness.problems import UserError
    from harness.run import session

    address, url, stages, classes = sys.argv[1:5]
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str, *, bad: bool = False) -> None:
            notes.append(text)

    made = [
        Stage(
            "score", each["name"], f"toy_stages:{each['fn']}", {"name": each["name"], **each.get("params", {})},
            resources=each.get("resources", "score"), code=("toy_stages:StageRun",), local=each.get("local", {}),
        )
        for each in json.loads(stages)
    ]  # fmt: skip
    plan = Plan.of("toy", [Cell(f"m{i}", "A", "B", 0, {"x": stage}) for i, stage in enumerate(made)])
    store = open_store(url)
    answer: dict[str, Any] = {"notes": notes, "keys": {stage.title: stage.key for stage in made}}
    try:
        with session(plan, store, None, address):
            summary = Execution(plan, store, ResourceClasses(**json.loads(classes)), Notes()).run()
        answer |= {"executed": summary.executed, "stopped": summary.stopped}
        answer["failures"] = {failure.title: failure.error for failure in summary.failures.values()}
    except UserError as error:
        answer["refused"] = [str(problem) for problem in error.problems]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

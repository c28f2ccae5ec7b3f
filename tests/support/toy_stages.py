"""Small stage functions for engine tests: real functions, run by real workers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from harness.engine.worker import StageRun


def add(run: StageRun) -> None:
    """Sum of the inputs' numbers and `params.value`; notes each execution beside the store."""
    total = run.params.get("value", 0)
    for folder in run.inputs.values():
        total += int((folder / "number.txt").read_text())
    if "ledger" in run.local:
        with open(run.local["ledger"], "a") as ledger:
            ledger.write(f"{run.params.get('name', '')}\n")
    time.sleep(run.local.get("sleep", 0))
    run.log("total", 0, total)
    (run.out / "number.txt").write_text(str(total))


def fail(run: StageRun) -> None:
    raise ValueError("the method does not like\nthese images")


def leave(run: StageRun) -> None:
    sys.exit(3)


def die_once(run: StageRun) -> None:
    """Killed by the kernel at the first attempt, fine at the second."""
    marker = run.scratch / "tried"
    if not marker.exists():
        marker.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
    (run.out / "number.txt").write_text("1")


def always_die(run: StageRun) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def snoop(run: StageRun) -> None:
    """Looks for a file that is no input."""
    with open(run.params["path"]) as file:
        (run.out / "number.txt").write_text(file.read())


def hang_once(run: StageRun) -> None:
    """Waits for ever at the first attempt, holding the interpreter's lock as compiled code may; fine at the second."""
    marker = run.scratch / "tried"
    if not marker.exists():
        marker.write_text("x")
        sum(iter(int, 1))
    (run.out / "number.txt").write_text("1")


def hang(run: StageRun) -> None:
    time.sleep(600)


def fork(run: StageRun) -> None:
    """Forks; the child comes back from the function as its parent does."""
    child = os.fork()
    (run.out / f"written-by-{'parent' if child else 'child'}.txt").write_text("x")
    if child:
        os.waitpid(child, 0)
    (run.out / "number.txt").write_text("1")


def where(run: StageRun) -> None:
    """Notes which GPUs the process may see, and for how long the stage had them."""
    start = time.time()
    time.sleep(run.params.get("sleep", 0.3))
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    (run.out / "seen.json").write_text(json.dumps({"gpus": seen, "from": start, "to": time.time(), "pid": os.getpid()}))


def fill(run: StageRun) -> None:
    """Writes `params.mib` mebibytes."""
    (run.out / "filler.bin").write_bytes(os.urandom(2**20) * run.params["mib"])
    (run.out / "number.txt").write_text("1")


def lose_input_once(run: StageRun) -> None:
    """Its input vanishes while it reads: with the disk of another node, say. Fine at the second attempt."""
    marker = run.scratch / "tried"
    (folder,) = run.inputs.values()
    if not marker.exists():
        marker.write_text("x")
        os.rename(folder, run.local["away"])
    total = 1 + int((folder / "number.txt").read_text())
    (run.out / "number.txt").write_text(str(total))

"""Stage functions that train a small network: what several workers do together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import distributed
from harness.api import Context
from harness.engine.worker import StageRun
from harness.training import TrainingSettings, seeded, train


def learn(run: StageRun) -> None:
    """Train on random numbers; leaves weights and what came of it, and notes each process in `local.folder`.

    local.kill, local.wait, local.raises: the call of the step in which rank 1 is killed, hangs (each once), or raises.
    """
    group = distributed.group()
    _note(run, f"{group.rank} of {group.size}, pid {os.getpid()}, out {run.out}, scratch {run.scratch}")
    with seeded(run.seed):
        network = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    network[1].eval()  # statistics of its own batch would tell two workers from one
    settings = TrainingSettings(**run.params["training"])
    iteration = 0

    def batches(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        x = rng.normal(size=(size, 4)).astype(np.float32)
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(np.sin(x).sum(1, keepdims=True))}

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        nonlocal iteration
        iteration += 1
        if group.rank == 1:
            _misbehave(run, iteration)
        return nn.functional.mse_loss(module(batch["x"]), batch["y"])

    def validate(module: nn.Module) -> float:
        batch = batches(np.random.default_rng(7), 64)
        return -float(nn.functional.mse_loss(module(batch["x"]), batch["y"]))

    ctx = Context(run.seed, run.device, run.scratch, run.log)
    result = train(network, settings, batches, step, ctx=ctx, validate=validate)
    run.log("done", 0, result.iteration)
    torch.save(result.state_dict, run.out / "weights.pt")
    run.save_json("result.json", {"score": result.score, "at": result.iteration, "resumed_at": result.resumed_at})


class Peculiar(Exception):
    """Cannot be rebuilt from its message, so it survives no pickling."""

    def __init__(self, what: str, where: str):
        super().__init__(f"{what} at {where}")


def _misbehave(run: StageRun, iteration: int) -> None:
    if iteration == run.local.get("raises"):
        raise Peculiar("something odd", "the second worker")
    if iteration == run.local.get("kill") and _first(run, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if iteration == run.local.get("wait") and _first(run, "waited"):
        time.sleep(600)


def _first(run: StageRun, name: str) -> bool:
    mark = Path(run.local["folder"]) / name
    if mark.exists():
        return False
    mark.touch()
    return True


def _note(run: StageRun, line: str) -> None:
    if "folder" in run.local:
        with (Path(run.local["folder"]) / "notes.txt").open("a") as file:
            file.write(line + "\n")


def weights(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "weights.pt", weights_only=True))

"""A group of two ranks on this machine, without Ray: real processes, real gloo."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from harness import distributed

SIZE = 2


class Pair:
    """Two processes that wait for work. `run` has both call a function, and gives what each returned."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._meeting = tempfile.TemporaryDirectory()
        self.processes, self._ends = [], []
        for rank in range(SIZE):
            ours, theirs = spawn.Pipe()
            place = str(Path(self._meeting.name) / "meeting")
            self.processes.append(spawn.Process(target=_serve, args=(rank, place, theirs), daemon=True))
            self._ends.append(ours)
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
        """What the function returned on each rank; a function of a module, which both processes can import."""
        self.send(function, *arguments)
        return [self.answer(rank, timeout) for rank in range(SIZE)]

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        for end in self._ends:
            end.send((function, arguments))

    def answer(self, rank: int, timeout: float = 120) -> Any:
        assert self._ends[rank].poll(timeout), f"rank {rank} gave no answer within {timeout} s"
        ok, value = self._ends[rank].recv()
        assert ok, f"rank {rank}: {value}"
        return value

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._meeting.cleanup()


def _serve(rank: int, meeting: str, end: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=SIZE)
    while True:
        function, arguments = end.recv()
        distributed._known.clear()  # each piece of work counts its exchanges from the start
        try:
            answer = True, function(*arguments)
        except BaseException:
            answer = False, traceback.format_exc()
        end.send(answer)

"""What a detector costs, measured from outside: parameters, network evaluations, time and memory.

A method marks each network it calls with `counted`; the stage that calls the method runs it inside `measured`. So
evaluations are counted as they happen, never declared.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

    Network = TypeVar("Network", bound=torch.nn.Module)

Role = Literal["network", "autoencoder", "perceptual"]
"""Evaluations of "network" are the ones that papers count; those of autoencoders and perceptual losses are apart."""


@dataclass
class Meter:
    """evaluations: images that went through the networks of each role. parameters: of each network by its number.

    seconds: of the whole call. peak_bytes: of the GPU where there is one, else of the process.
    """

    evaluations: Counter[str] = field(default_factory=Counter)
    parameters: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0

    def summary(self, slices: int) -> dict[str, Any]:
        """JSON: totals, and evaluations and seconds for each of `slices`."""
        return {
            "parameters": sum(self.parameters.values()),
            "evaluations": {role: self.evaluations[role] / slices for role in sorted(self.evaluations)},
            "seconds": self.seconds / slices,
            "peak_bytes": self.peak_bytes,
        }


_NUMBERS = itertools.count()
_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


def counted(network: Network, role: Role = "network") -> Network:
    """The network itself, its forward passes counted: one evaluation for each image of a batch.

    The first tensor argument is [B, ...]. A network that contains another counted one counts both.
    """

    number = next(_NUMBERS)  # not its address, which another network may get once this one is gone

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        meter = _METER.get()
        if meter is not None:
            first = next(value for value in (*args, *kwargs.values()) if hasattr(value, "shape"))
            meter.evaluations[role] += int(first.shape[0])
            meter.parameters[number] = sum(p.numel() for p in module.parameters())

    network.register_forward_pre_hook(count, with_kwargs=True)
    return network


@contextmanager
def measured(device: str) -> Iterator[Meter]:
    """Measure everything inside."""
    meter = Meter()
    _restart_peak(device)
    token, started = _METER.set(meter), time.perf_counter()
    try:
        yield meter
    finally:
        _METER.reset(token)
        if device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        meter.seconds = time.perf_counter() - started
        meter.peak_bytes = _peak(device)


def _restart_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again at what is resident now
    except OSError:
        return


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

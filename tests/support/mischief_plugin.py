"""The package that `mischief.install` installs. Everything wrong happens in `harmonize`; the images are left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import numpy as np

from harness.api import ApplyData, Context, Harmonizer, State, hyper


class Mischief(Harmonizer):
    """Does what `how` says."""

    id = "mischief"
    reference = "tests"
    source_free, task_agnostic, unknown_domains = True, True, True
    how: str = hyper("well", "what to do wrong; with `once` at the end: at the first attempt only", origin="tests")

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        out = data.target.floats()
        how = self.how.removesuffix(" once")
        if how != self.how:
            tried = ctx.scratch / "tried"
            if tried.exists():
                return out
            tried.write_text("x")
        if how == "raise":
            raise RuntimeError("no idea what these images are")
        if how == "nan":
            out[0, out.shape[1] // 2] = np.nan
        if how == "shape":
            return out[:, ::2]
        if how == "range":
            return out * 255
        if how == "source":
            return data.source.floats()
        if how == "labels":
            return data.labels.labels
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            sum(iter(int, 1))
        if how == "leak":
            _leak()
        if how == "exit":
            sys.exit(3)
        if how == "leave":
            os._exit(3)
        if how == "fork":
            _fork()
        if how == "shout":
            print("shouting", "x" * 10_000, flush=True)
            os.write(1, b"past Python\n" * 1000)
        return out


def _leak() -> None:
    """Take memory until somebody stops it."""
    taken = []
    while True:
        taken.append(np.ones(2**22))  # 32 MiB
        time.sleep(0.02)


def _fork() -> None:
    """Leave children behind: one that comes back as a copy of the caller, one that sleeps on."""
    os.fork()
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,), daemon=True).start()

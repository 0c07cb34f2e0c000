"""A side of a benchmark: one warm process that runs a repetition when it is told to.

It needs torch and nothing of llama2_pl, so that it also runs in a peer's environment. The parent writes one JSON line
with the case and its options. The side prepares itself, warms up and answers; then each line `"go"` is answered by
one repetition: its seconds, what it got done, and whatever else the side wants to note.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

Case = Callable[[dict, "Turns"], None]
PACKAGES = ("torch", "lightning", "transformers", "litgpt", "trl", "accelerate")


class Turns:
    """What a case calls between its repetitions.

    Args:
        warm_up: repetitions that are not counted, one at least: caches fill, torch.compile compiles.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[dict], None], warm_up: int) -> None:
        self.read, self.write, self.left = read, write, warm_up
        self.started = time.perf_counter()

    def done(self, units: float, **noted: float) -> None:
        """A repetition ends here with so many tokens or samples; the next one begins when this returns.

        SystemExit where the parent has had enough.
        """
        seconds = time.perf_counter() - self.started
        self.left -= 1
        if self.left == 0:
            self.write({"ready": versions()})
        elif self.left < 0:
            self.write({"seconds": seconds, "units": units, **noted})
        if self.left <= 0:
            self.wait()
        self.started = time.perf_counter()

    def wait(self) -> None:
        if self.read().strip() != '"go"':
            raise SystemExit(0)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def repeat(step: Callable[[], float], turns: Turns) -> None:
    """A case that is one function, which says how much it got done."""
    while True:
        turns.done(step())


def memory_mib(field: str) -> float:
    """VmRSS now or VmHWM so far. Unlike ru_maxrss, VmHWM leaves out the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def serve(cases: dict[str, Case]) -> None:
    """Read what to do from standard input and do it until the parent says no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def write(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")

    order = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    options = {**order["options"], "libraries_mib": memory_mib("VmRSS")}
    cases[order["case"]](options, Turns(sys.stdin.readline, write, order["warm_up"]))

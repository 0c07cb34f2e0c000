"""The real command line in forked children of a process that has imported everything: a start without its seconds."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# What a training imports; wandb is looked at by Lightning's loggers.
IMPORTS = (
    "lightning.pytorch.cli",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "wandb",
    "llama2_pl.__main__",
    "llama2_pl.callbacks",
    "llama2_pl.callbacks.preemption",
    "llama2_pl.callbacks.early_stopping",
    "llama2_pl.commands.training",
    "llama2_pl.evaluation.reward_metrics",
    "llama2_pl.modules.ppo",
    "llama2_pl.modules.rejection_sampling",
)


def warm_up() -> None:
    """Import, and make sure that forking is safe: it copies one thread."""
    for name in IMPORTS:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads are running before the first fork; set OMP_NUM_THREADS=1")


def fork(work: Callable[[], int], folder: Path, log: Path, environment: dict[str, str] | None = None) -> int:
    """The id of a child, leader of its own process group, that does `work` in `folder` and writes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment or {})
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.register(signal.SIGUSR2, all_threads=True)  # where it hangs, for its log
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(words: list[str], folder: Path, log: Path, environment: dict[str, str] | None = None) -> int:
    """`llama2-pl WORDS` in a child, as the console script runs it."""
    from llama2_pl.__main__ import main

    def work() -> int:
        sys.argv = ["llama2-pl", *words]
        return main()

    return fork(work, folder, log, environment)


def ended(child: int) -> int | None:
    """The exit status, negative for a signal; None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(child: int, seconds: float) -> int | None:
    """The exit status; None where it still runs after so long."""
    end = time.monotonic() + seconds
    while (status := ended(child)) is None and time.monotonic() < end:
        time.sleep(0.002)
    return status


def send(child: int, number: signal.Signals) -> None:
    """To the child alone, not to its workers: what a kill by id or by the memory killer does."""
    os.kill(child, number)


def clear(child: int) -> None:
    """Kill what a child has left behind in its process group."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def ask(question: Callable[[], str], folder: Path, log: Path) -> str:
    """The answer of a function that is called in a child; its death is an answer too."""
    reading, writing = os.pipe()

    def work() -> int:
        os.close(reading)
        os.write(writing, question().encode()[:60_000])
        return 0

    child = fork(work, folder, log)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    status = wait(child, 60)
    return answer if status == 0 else f"the child ended with {status}, see {log}"

"""PreemptionCheckpoint: a signal, Ctrl-C too, saves a checkpoint at the next step boundary, and the process ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from llama2_pl.checkpoints.saving import Interrupted, finish_saving


class PreemptionCheckpoint(L.Callback):
    """Ends a training that is told to go: saves at the next step boundary, on all ranks, and raises SIGTERMException.

    Lightning alone saves nothing on SIGTERM, hangs where only a rank other than 0 gets it, and on SLURM saves inside
    the signal handler, in the middle of a step. Here a signal sets a flag; between two optimizer steps (for PPO, two
    iterations) the ranks agree, save `last.ckpt` and leave. Under `llama2-pl fit` the exit status is 143, after Ctrl-C
    130, and `--ckpt_path last` goes on from there exactly. A second Ctrl-C stops at once and saves nothing.

    Args:
        dirpath: folder of last.ckpt; by default that of the ModelCheckpoint, else the trainer's default_root_dir.
        requeue: under SLURM, put the job back into the queue (`scontrol requeue`).
        every_n_steps: the ranks of several processes ask each other so often; our choice 10, since each time waits
            for all of them. One process looks after every step.
        signals: names of the signals that end the training.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        requeue: bool = True,
        every_n_steps: int = 10,
        signals: tuple[str, ...] = ("SIGTERM", "SIGUSR1", "SIGINT"),
    ) -> None:
        super().__init__()
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f"signals: {unknown[0]!r} is no signal of this system; SIGTERM is one")
        self.dirpath = dirpath
        self.requeue = requeue
        self.every_n_steps = every_n_steps
        self.signals = [signal.Signals[name] for name in signals]
        self.received = ""
        """The name of the signal that came; empty where none did."""
        self._before: dict[signal.Signals, Any] = {}
        self._tells = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hear signals from here on, and stand behind all other callbacks: what we save holds their last step."""
        if stage != "fit":
            return
        self.received, self._tells = "", trainer.is_global_zero
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("PreemptionCheckpoint hears no signal: training does not run in the main thread")
            return
        # a new list, for Lightning is going through the old one
        trainer.callbacks = [*(other for other in trainer.callbacks if other is not self), self]  # type: ignore[attr-defined]
        # Lightning's own handler, put there later, asks all ranks from inside the handler: two that stand at other
        # collectives wait for ever
        trainer._signal_connector.register_signal_handlers = lambda: None
        self._before = {number: signal.signal(number, self._hear) for number in self.signals}

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._put_back()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        window = trainer.accumulate_grad_batches
        if (batch_idx + 1) % window and not trainer.is_last_batch:
            return
        alone = trainer.world_size == 1
        if not alone and ((batch_idx + 1) // window) % self.every_n_steps and not trainer.is_last_batch:
            return
        heard = bool(self.received)
        if heard if alone else trainer.strategy.reduce_boolean_decision(heard, all=False):
            self._leave(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            if handler is not None and signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self._before = {}

    def _hear(self, number: int, frame: Any) -> None:
        """Hardly more than a note: a handler runs between any two instructions."""
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if number == signal.SIGINT and self._tells:
            os.write(2, b"\nCtrl-C: this step is finished and saved; again stops at once\n")

    def _leave(self, trainer: L.Trainer) -> None:
        path = self._folder(trainer) / "last.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        finish_saving(trainer.strategy)
        rank_zero_info(
            f"{self.received or 'a signal to another rank'}: saved {path}; go on with\n  {restart(path)}"
        )
        if self.requeue and self.received != "SIGINT" and trainer.is_global_zero and (job := slurm_job()):
            done = subprocess.run(["scontrol", "requeue", job], check=False)
            rank_zero_info(f"scontrol requeue {job}: status {done.returncode}")
        trainer.strategy.barrier("preemption")
        raise Interrupted if self.received == "SIGINT" else SIGTERMException

    def _folder(self, trainer: L.Trainer) -> Path:
        if self.dirpath is not None:
            return Path(self.dirpath)
        savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folder = savers[0].dirpath if savers else None
        return Path(folder or trainer.default_root_dir)


def restart(path: Path) -> str:
    """The command of this process, with `--ckpt_path last` where it is a `fit`; of another program what it must do."""
    words = sys.orig_argv  # sys.argv may be those of one stage of a recipe
    ours = [number for number, word in enumerate(words) if Path(word).name in ("llama2-pl", "llama2_pl")]
    words = ["llama2-pl", *words[ours[0] + 1 :]] if ours else list(words)
    if "fit" in words and not any(word.startswith("--ckpt_path") for word in words):
        words += ["--ckpt_path", "last"]
    return (
        shlex.join(words) if ours else f'{shlex.join(words)}, and in it trainer.fit(..., ckpt_path="{path}")'
    )


def slurm_job() -> str | None:
    """The id of this SLURM job, of an array as scontrol wants it; None elsewhere."""
    job, array, task = (
        os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID")
    )
    found = f"{array}_{task}" if array and task else job
    return found if found and re.fullmatch(r"\d+(_\d+)?", found) else None

"""RunLock: one training at a time in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from llama2_pl.files import Busy, Lock, lock


class RunLock(L.Callback):
    """Refuses a second `fit` or `predict` on the folders of a running one, which would overwrite its checkpoints.

    Locks the trainer's default_root_dir, unless that is the working directory, and the folders of all
    ModelCheckpoints, each by a file beside it, `.<folder>.lock`, which the system frees when the process ends: a killed
    run needs no cleaning up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Lock] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage not in ("fit", "predict") or getattr(trainer, "fast_dev_run", False):
            return
        problem = self._take(folders_of(trainer)) if trainer.is_global_zero else None
        if (problem := trainer.strategy.broadcast(problem)) is not None:
            raise ValueError(problem)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._release()

    def _take(self, folders: list[Path]) -> str | None:
        """Lock all of them; what stands against it, in words."""
        for folder in folders:
            path = folder.with_name(f".{folder.name}.lock")
            try:
                held = lock(path)
            except Busy as holder:
                self._release()
                return (
                    f"{folder}: {holder} is training there ({path}); wait for it, stop it, or give this run another "
                    "trainer.default_root_dir and checkpoint dirpath"
                )
            if held is None:
                rank_zero_info(
                    f"{path}: no locks on this file system; nothing stops a second run in {folder}"
                )
                continue
            if held.left_by:
                rank_zero_info(f"{folder}: {held.left_by} trained there and ended without a word; going on")
            self._held.append(held)
        return None

    def _release(self) -> None:
        for held in self._held:
            held.release()
        self._held = []


def folders_of(trainer: L.Trainer) -> list[Path]:
    """What a trainer writes checkpoints to, each folder once."""
    savers: list[Any] = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    named = [Path(saver.dirpath) for saver in savers if saver.dirpath]
    root = Path(trainer.default_root_dir)
    folders = [*([root] if root.resolve() != Path.cwd() else []), *named]
    return list({folder.resolve(): None for folder in folders})

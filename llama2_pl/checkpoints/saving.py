"""What a save came to, agreed by all ranks: one whose disk is full leaves no other waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from llama2_pl.checkpoints.sharded import agreed, commit
from llama2_pl.checkpoints.verified import clear


def guard_saving(strategy: Any) -> None:
    """Make a Trainer's strategy raise a failed save on every rank, and write folders whole or not at all.

    Lightning writes shards over those that are there, past every CheckpointIO, so the writing is wrapped. A second
    call changes nothing.
    """
    save = strategy.save_checkpoint
    if hasattr(save, "__wrapped__"):
        return

    @functools.wraps(save)
    def save_together(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(strategy.broadcast(str(filepath)))
        if getattr(strategy, "_save_distributed_checkpoint", False):
            _save_folder(strategy, functools.partial(save, checkpoint, storage_options=storage_options), path)
        else:
            together(lambda: save(checkpoint, path, storage_options), path, strategy)

    strategy.save_checkpoint = save_together


def finish_saving(strategy: Any) -> None:
    """Wait for a write in the background; where it failed, raise on every rank. All ranks must call it."""
    wait = getattr(strategy.checkpoint_io, "wait", lambda: None)
    together(wait, "the last checkpoint", strategy)


def together(work: Callable[[], object], path: str | Path, strategy: Any) -> None:
    """Do this rank's part of a save; where that of any rank fails, raise on every one, its own error where it was."""
    caught = None
    try:
        work()
    except (Exception, CheckpointException) as error:  # torch's is no Exception
        caught = error
    mine = None if caught is None else f"rank {strategy.global_rank}: {caught}"
    problem = agreed(mine, strategy.world_size)
    if isinstance(caught, Exception):
        raise caught
    if problem is not None:
        raise OSError(f"{path}: not saved, {problem}; what stood there still does") from caught


def _save_folder(strategy: Any, save: Callable[[Path], None], path: Path) -> None:
    """Write beside and put in place; a failed folder is removed, since a full disk needs its room."""
    staging = path.with_name(f".{path.name}.saving")
    if strategy.is_global_zero:
        clear(staging)
    strategy.barrier("staging")
    try:
        # here, where all agree: inside `save` one rank's failure would leave the others among its collectives
        together(lambda: staging.mkdir(parents=True, exist_ok=True), path, strategy)
        together(lambda: save(staging), path, strategy)
        problem = commit(staging, path, strategy.global_rank, strategy.world_size)
        if problem is not None:
            raise OSError(f"{path}: not saved, {problem}; what stood there still does")
    except Exception:
        if strategy.is_global_zero:
            clear(staging)
        raise

"""What a save came to, agreed by all ranks: one whose disk is full leaves no other waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.checkpoint.api import CheckpointException

from llama2_pl.checkpoints.sharded import agreed, commit
from llama2_pl.checkpoints.verified import VerifiedCheckpointIO, clear


class Interrupted(SIGTERMException):
    """Ctrl-C ended the training, after a save."""


def guard_saving(strategy: Any) -> None:
    """Make a Trainer's strategy raise a failed save on every rank, and write folders whole or not at all.

    Lightning writes shards over those that are there, past every CheckpointIO, so the writing is wrapped. A second
    call changes nothing.
    """
    save = strategy.save_checkpoint
    if hasattr(save, "__wrapped__"):
        return

    @functools.cache
    def own_group() -> Any:
        """Of the threads that put folders in place: training's collectives must not come between theirs."""
        return dist.new_group(backend="gloo") if strategy.world_size > 1 else None

    @functools.wraps(save)
    def save_together(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(strategy.broadcast(str(filepath)))
        if getattr(strategy, "_save_distributed_checkpoint", False):
            write = functools.partial(save, checkpoint, storage_options=storage_options)
            _save_folder(strategy, write, path, own_group)
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


def _save_folder(strategy: Any, save: Callable[[Path], None], path: Path, group: Any) -> None:
    """Write beside and put in place, with `background` in its thread."""
    finish_saving(strategy)
    staging = path.with_name(f".{path.name}.saving")
    if strategy.is_global_zero:
        clear(staging)
    strategy.barrier("staging")
    try:
        # here, where all agree: inside `save` one rank's failure would leave the others among its collectives
        together(lambda: staging.mkdir(parents=True, exist_ok=True), path, strategy)
        together(lambda: save(staging), path, strategy)
    except Exception:
        if strategy.is_global_zero:
            clear(staging)
        raise
    place = (staging, path, strategy.global_rank, strategy.world_size)
    io = strategy.checkpoint_io
    if isinstance(io, VerifiedCheckpointIO) and io.background:
        io.later(_commit, *place, group())
    else:
        _commit(*place)


def _commit(staging: Path, path: Path, rank: int, world: int, group: Any = None) -> None:
    """Raise where a rank could not; a failed folder is removed, since a full disk needs its room."""
    problem = commit(staging, path, rank, world, group)
    if problem is not None:
        if rank == 0:
            clear(staging)
        raise OSError(f"{path}: not saved, {problem}; what stood there still does")

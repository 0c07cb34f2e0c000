"""What a resumed run restores beyond Lightning, and what it may change: generators, options, the shape of the model."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llama2_pl.model.config import ModelConfig

REFUSED = ("seed",)
"""Options that decide what a run computes and cannot change in the middle of it, besides every backbone."""


def random_states() -> list[dict[str, Any]]:
    """The state of Python's, numpy's and torch's generators on every rank, as plain values; collective."""
    kind, keys, *rest = np.random.get_state()
    mine = {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def restore_random(states: list[dict[str, Any]], rank: int, world: int) -> None:
    """Put a rank's generators back; where the number of ranks has changed they go on as seeded, with a notice."""
    if len(states) != world:
        rank_zero_info(
            f"the checkpoint has the random generators of {len(states)} processes and there are {world}: dropout and "
            "other draws from the global generators differ from the first run's; the data and our samples do not"
        )
        return
    state = states[rank]
    random.setstate(_tuples(state["python"]))
    np.random.set_state(
        (state["numpy"][0], np.array(state["numpy"][1], dtype=np.uint32), *state["numpy"][2:])
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def reopen(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """Let a finished run go on where its data has become longer (`data.epochs`): Lightning takes its pass as over."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    batches = getattr(getattr(trainer, "datamodule", None), "num_train_batches", 0)
    if progress and progress["current"]["processed"] < batches:
        progress["is_last_batch"] = False


def save_last_steps(trainer: L.Trainer, by_steps: bool) -> None:
    """Let last.ckpt hold the end of a run; ModelCheckpoint leaves out what came after its last interval.

    Args:
        trainer: of the run that ends.
        by_steps: only what saves every n steps; others have their turn after the batch, and would skip it after this.
    """
    for saver in trainer.checkpoint_callbacks:
        if not isinstance(saver, ModelCheckpoint) or saver.save_last is not True:
            continue
        if by_steps and saver._every_n_train_steps < 1:
            continue
        if not saver._should_skip_saving_checkpoint(trainer):
            saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))


def keep_resumed_checkpoint(trainer: L.Trainer) -> None:
    """Let a resumed run with nothing left to do write nothing: ModelCheckpoint saves what it has not itself saved."""
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, ModelCheckpoint) and trainer.ckpt_path:
            saver._last_checkpoint_saved = str(trainer.ckpt_path)


def changed_options(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """The options that differ from the checkpoint's, said aloud; the values of this run hold.

    ValueError names one that cannot change: a size of the model, or what samples are drawn by.
    """
    changed = []
    for name in sorted(set(now) & set(then)):
        old, new = then[name], now[name]
        if old == new:
            continue
        if name.endswith("backbone") and old is not None and new is not None:
            _refuse_other_shape(name, ModelConfig.of(new), ModelConfig.of(old))
        elif name in REFUSED:
            raise ValueError(
                f"model.{name} is {new!r} and the checkpoint was trained with {old!r}: set it back to resume, or start "
                "a new run from the weights alone (init_from, without ckpt_path)"
            )
        else:
            changed.append(name)
            rank_zero_warn(f"model.{name} is {new!r} from here on; the checkpoint was trained with {old!r}")
    return changed


def global_seed() -> int | None:
    """What seed_everything set for this process; None where it never ran."""
    found = os.environ.get("PL_GLOBAL_SEED", "")
    return int(found) if found.isdigit() else None


def refuse_other_seed(old: int | None, new: int | None) -> None:
    """ValueError for another seed: a resumed run has the generators of its checkpoint, so it would change nothing."""
    if None not in (old, new) and old != new:
        raise ValueError(
            f"seed_everything is {new} and the run was started with {old}: set it back to resume, or start a new run"
        )


def trainer_options(trainer: L.Trainer) -> dict[str, Any]:
    """What of a Trainer decides the bits of a step, as plain values."""
    clip = trainer.gradient_clip_val
    return {"precision": str(trainer.precision), "gradient_clip_val": None if clip is None else float(clip)}


def announce_trainer_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Say aloud which differ from the checkpoint's; those of this run hold."""
    for name, value in new.items():
        if name in old and old[name] != value:
            rank_zero_warn(
                f"trainer.{name} is {value!r} from here on; the checkpoint was trained with {old[name]!r}"
            )


def _refuse_other_shape(name: str, new: ModelConfig, old: ModelConfig) -> None:
    for key, ours, theirs in new.differences(old):
        option = key if (name, key) == ("backbone", "max_seq_len") else f"{name}.{key}"
        raise ValueError(
            f"model.{option} is {ours!r} and the checkpoint's model has {theirs!r}: set it back to resume, "
            "or start a new run"
        )


def one_optimizer(made: Any) -> tuple[Optimizer | None, Any]:
    """The optimizer that `configure_optimizers` returned, in any of Lightning's forms, and its scheduler or None.

    (None, None) where there are several.
    """
    schedule = None
    if isinstance(made, dict):
        made, schedule = made["optimizer"], made.get("lr_scheduler")
    elif isinstance(made, (list, tuple)) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        made, schedule = made[0], next(iter(made[1]), None)
    if isinstance(made, (list, tuple)) and len(made) == 1:
        return one_optimizer(made[0]) if isinstance(made[0], dict) else (made[0], schedule)
    return (made, schedule) if isinstance(made, Optimizer) else (None, None)


def apply_options(optimizer: Optimizer, fresh: Optimizer, schedule: Any, fresh_schedule: Any) -> None:
    """Let an optimizer have the rates, decay and betas that this run asks for, at its place in this run's schedule.

    Args:
        optimizer: with the state and options of a checkpoint, or of what was known when it was made.
        fresh: made by `configure_optimizers` from this run's options.
        schedule: of the optimizer, as Lightning gives it; its place in the run stays.
        fresh_schedule: made with `fresh`, alone or in a dict as `cosine_schedule` returns it.
    """
    followed = schedule if isinstance(schedule, LambdaLR) else None
    wanted_schedule = fresh_schedule["scheduler"] if isinstance(fresh_schedule, dict) else fresh_schedule
    if followed is not None and isinstance(wanted_schedule, LambdaLR):
        followed.lr_lambdas = wanted_schedule.lr_lambdas
    for number, (group, wanted) in enumerate(zip(optimizer.param_groups, fresh.param_groups, strict=True)):
        rate = wanted.get("initial_lr", wanted["lr"])
        group.update(
            {key: value for key, value in wanted.items() if key not in ("params", "lr", "initial_lr")}
        )
        if followed is None:
            group["lr"] = rate
            continue
        group["initial_lr"] = followed.base_lrs[number] = rate
        group["lr"] = rate * followed.lr_lambdas[number](followed.last_epoch)

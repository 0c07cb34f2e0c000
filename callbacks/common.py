"""What more than one callback needs of a Trainer, a module and a file system."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, cast

import lightning as L
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import ParallelPlan


class RunStopped(RuntimeError):
    """A callback has ended the run, and says why and what to do: nobody needs a traceback."""


def attribute(pl_module: L.LightningModule, path: str) -> Any:
    """What the module has under a dotted name, None where it has nothing."""
    try:
        return attrgetter(path)(pl_module)
    except AttributeError:
        return None


def find_language_model(pl_module: L.LightningModule, names: Sequence[str], option: str) -> LanguageModel:
    """The first of these attributes that is a language model, or ValueError naming the option that points to it."""
    for name in names:
        found = attribute(pl_module, name)
        if all(hasattr(found, part) for part in ("config", "hidden", "head")):
            return cast(LanguageModel, found)
    raise ValueError(
        f"{type(pl_module).__name__} has no language model in {' or '.join(names)}: set {option} to where it is; "
        "it must have config, hidden and head like llama2_pl.model.LanguageModel"
    )


def plan_of(pl_module: L.LightningModule, callback: str) -> ParallelPlan:
    """The plan by which the module will build its networks; a warning where it knows of none."""
    if not hasattr(pl_module, "parallel_plan"):
        rank_zero_warn(
            f"{callback} does nothing for {type(pl_module).__name__}, which has no parallel_plan: build its networks "
            "in configure_model by llama2_pl.model.parallel.parallelize with self.parallel_plan (None at first), or "
            "use torch.compile and the like yourself"
        )
    return getattr(pl_module, "parallel_plan", None) or ParallelPlan()


def autocast_of(trainer: L.Trainer) -> AbstractContextManager:
    """Autocast as in training; "bf16-true" needs nothing, its context would make the random numbers bf16."""
    plugin = trainer.precision_plugin
    return plugin.forward_context() if isinstance(plugin, MixedPrecision) else nullcontext()

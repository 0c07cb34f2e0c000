"""What the four data modules share: batches by number, the position of a run, and the refusal of changed data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning_utilities.core.rank_zero import rank_zero_warn

from llama2_pl.data.batches import Batch, without_needless_mask
from llama2_pl.data.cache import Files, as_paths
from llama2_pl.data.loader import BatchLoader, NumberedBatches, Position, ResumableLoader


class NumberedDataModule(L.LightningDataModule):
    """Batch ``n`` of the run is a pure function of the settings and ``n``; a checkpoint holds only the number.

    Our choice throughout: ``batch_size`` counts rows over all devices, and each data-parallel rank takes every
    world-size-th row. So the same config gives the same batches on 1, 2 or 4 devices, and after a change of them.

    A subclass gives ``settings`` (what the order of the data depends on) and ``train_batches``.
    """

    late_settings: tuple[str, ...] = ()
    """Settings that are known only when training starts, and are checked then."""

    _tokenizer_sha256: str = ""
    """Known after `setup`."""

    # A rank may have no validation or prediction batch of a small data set.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, num_workers=num_workers)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._restored: Mapping[str, Any] = {}

    def settings(self) -> Mapping[str, int | float | str]:
        """Plain values which must not change when a run is resumed. Available after ``setup``."""
        raise NotImplementedError

    def paths(self) -> dict[str, Files]:
        """The files behind each setting that is a hash of what is in them."""
        return {}

    def train_batches(self) -> NumberedBatches:
        """This rank's training batches by number. Available after ``setup``."""
        raise NotImplementedError

    @property
    def num_train_batches(self) -> int:
        """Micro-batches of the whole run, in one Lightning epoch. Available after ``setup``."""
        return len(self.train_batches())

    def ranks(self) -> tuple[int, int]:
        """(this data-parallel rank, number of them); tensor-parallel ranks of a group share one."""
        kwargs = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        rank, world = kwargs.get("rank", 0), kwargs.get("num_replicas", 1)
        if self.batch_size % world:
            raise ValueError(
                f"data.batch_size is {self.batch_size}, which counts rows over all devices, and there are {world} "
                f"data-parallel ranks: give a multiple of {world}"
            )
        return rank, world

    def train_dataloader(self) -> ResumableLoader:
        """Batches from the position of the run to its end."""
        if self.trainer is not None:
            _warn_of_repeats(self.trainer)
        return ResumableLoader(
            self.train_batches(), self._start, self._trained, self.num_workers, torch.cuda.is_available()
        )

    def test_dataloader(self) -> Any:
        """The validation batches: there is no third part."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        """The validation batches, in their order."""
        return self.val_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """On the host, where looking at the batch makes no GPU wait."""
        return without_needless_mask(batch) if isinstance(batch, Batch) else batch

    def eval_loader(self, batches: NumberedBatches) -> BatchLoader:
        """Loader for validation, test or prediction, always from the first batch on."""
        return BatchLoader(batches, None, self.num_workers, torch.cuda.is_available())

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, the same on every rank (Lightning saves those of rank 0 only)."""
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        about = {"batches": self._trained(), "accumulate_grad_batches": accumulate, "paths": self._paths()}
        return {**about, **self.settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume a training whose data has changed."""
        self._restored = state_dict
        if not self._tokenizer_sha256:  # `load_from_checkpoint`: nothing is set up, and nothing resumed
            return
        if not state_dict.get("batches"):  # from before the first batch, as Tuner.scale_batch_size saves it
            return
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            refuse_changes(state_dict, self.settings(), self._paths(), self.late_settings)
            _announce_paths(state_dict.get("paths", {}), self._paths())
            _refuse_other_window(state_dict, self.trainer)
            _warn_inside_accumulation(state_dict)

    def _paths(self) -> dict[str, list[str]]:
        return {key: as_paths(files) for key, files in self.paths().items()}

    def _start(self) -> Position:
        """Called when the first training batch is asked for: the counters are restored by then."""
        trainer = self.trainer
        if trainer is None:  # used without Lightning: the state alone says where to go on
            return Position(self._trained(), self._trained() % self.num_train_batches)
        if trainer.state.fn != TrainerFn.FITTING or trainer.state.status != TrainerStatus.RUNNING:
            return Position(0, 0)  # someone looks at the data after a fit
        trained, in_pass = _processed(trainer)
        if trained and trained == self._restored.get("batches"):
            refuse_changes(self._restored, self.settings(), self._paths())
        return Position(in_pass if _overfits(trainer) else trained, in_pass)

    def _trained(self) -> int:
        """Batches trained so far, for the checkpoint; also asked after the fit has ended."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return _processed(self.trainer).trained
        return int(self._restored.get("batches", 0))


def _overfits(trainer: L.Trainer) -> bool:
    """Whether ``overfit_batches`` is on: every pass then takes the same first batches."""
    return bool(getattr(trainer, "overfit_batches", 0))


def _processed(trainer: L.Trainer) -> Position:
    """Lightning's own count of trained batches, which it saves and restores with its loops.

    "processed", not "completed": a checkpoint written in ``on_train_batch_end`` already holds that batch's update.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return Position(*(getattr(part, "processed") for part in (progress.total, progress.current)))  # noqa: B009


def require_at_least(least: int, **values: int | None) -> None:
    """Raise ValueError naming the first option that is below ``least``; None is left out."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"data.{name} is {value}: give {least} or more")


def require_share(val_fraction: float) -> None:
    """Raise ValueError unless ``val_fraction`` is a share that leaves something to train on."""
    if not 0 <= val_fraction < 1:
        raise ValueError(f"data.val_fraction is {val_fraction}: give a share from 0 up to, not including, 1")


def refuse_changes(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    paths: Mapping[str, list[str]] | None = None,
    but: tuple[str, ...] = (),
) -> None:
    """Raise ValueError naming the first setting that differs between a checkpoint and this run, and its files.

    Args:
        old: the data module's state in the checkpoint.
        new: the settings of this run.
        paths: this run's files by the setting that is a hash of their content.
        but: settings that are not compared.
    """
    for key, value in new.items():
        if key in but or key not in old or old[key] == value:
            continue
        if paths and key in paths:
            then = old.get("paths", {}).get(key, [])
            before = f" (then {', '.join(then)})" if then and then != paths[key] else ""
            what = f"data.{key}: {', '.join(paths[key])} is not what the checkpoint was trained with{before}"
            back = "give the same content back"
        else:
            what = f"data.{key} is {value!r} and the checkpoint was trained with {old[key]!r}"
            back = f"set data.{key} back"
        raise ValueError(
            f"{what}, so its position in the data has no meaning here: {back} to resume, or start a new run from the "
            "weights alone (model.init_from, without ckpt_path)"
        )


def _announce_paths(old: Mapping[str, list[str]], new: Mapping[str, list[str]]) -> None:
    """Files may move; what is in them may not change."""
    for key, files in new.items():
        if key in old and old[key] != files:
            rank_zero_warn(
                f"data.{key} is {', '.join(files)} from here on and was {', '.join(old[key])}, with the same content"
            )


def _warn_of_repeats(trainer: L.Trainer) -> None:
    """Lightning's default is 1000 epochs, and one of them is our whole run."""
    if trainer.max_steps == -1 and trainer.max_epochs != 1 and not _overfits(trainer):
        rank_zero_warn(
            f"max_epochs is {trainer.max_epochs} and one Lightning epoch is the whole run, all epochs of the data: "
            "set Trainer(max_epochs=1), or max_steps"
        )


def _refuse_other_window(state: Mapping[str, Any], trainer: L.Trainer | None) -> None:
    """The rows of an optimizer step are as much a part of a run as those of a batch; a scheduler may change them."""
    old = state.get("accumulate_grad_batches")
    if trainer is None or any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
        return
    if old is not None and old != trainer.accumulate_grad_batches:
        raise ValueError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches} and the checkpoint was trained with "
            f"{old}, so its steps are of another size: set it back to resume, or start a new run from the weights "
            "alone (model.init_from, without ckpt_path)"
        )


def _warn_inside_accumulation(state: Mapping[str, Any]) -> None:
    window = state.get("accumulate_grad_batches", 1)
    if state["batches"] % window:
        rank_zero_warn(
            f"the checkpoint was written after {state['batches']} batches, inside an accumulation window of {window}: "
            f"the gradients of its last {state['batches'] % window} batches are lost. Save at optimizer steps."
        )

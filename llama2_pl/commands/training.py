"""`llama2-pl fit | validate | test | predict`: LightningCLI with the settings this project relies on."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

# imported so that short class names (`--model RewardModule`) are known
import llama2_pl.data
import llama2_pl.modules  # noqa: F401
from llama2_pl.checkpoints.saving import Interrupted
from llama2_pl.checkpoints.sharded import recover
from llama2_pl.checkpoints.verified import VerifiedCheckpointIO
from llama2_pl.commands.parsing import ShortErrors, refuse_secrets, restrict_imports, root_of
from llama2_pl.commands.run_folder import move_run
from llama2_pl.commands.run_lock import RunLock
from llama2_pl.modules.trainer import Trainer

SIGTERM_STATUS, SIGINT_STATUS = 128 + 15, 128 + 2


class TrainingParser(ShortErrors, LightningArgumentParser):
    """LightningArgumentParser with short errors."""


class SaveRunConfig(SaveConfigCallback):
    """Save the config of each run as `config-<time>-<pid>.yaml` in the folder of the run's first logger.

    Lightning's own refuses to start in a folder that has a config.yaml, so a second run or a resume there aborts;
    `overwrite` would lose the first run's. A name per run needs neither.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder = Path()
        self.path: Path | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # asks all ranks; in save_config, which is rank 0's alone, it would wait for ever
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now()
        self.path = self.folder / f"config-{now:%Y%m%d-%H%M%S}-{now.microsecond:06}-{os.getpid()}.yaml"
        self.parser.save(self.config, str(self.path), skip_unset=False, multifile=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.path = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A finished run that is resumed trains nothing and leaves no trace."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            print(f"nothing left to train: the run stands at its end, step {trainer.global_step}")


class TrainingCLI(LightningCLI):
    """LightningCLI in subclass mode for model and data; modules build their own optimizers after configure_model."""

    def __init__(self) -> None:
        super().__init__(
            # no model_class, no datamodule_class: any subclass by class_path; data may be absent for a module of the
            # user that brings its own loaders
            save_config_callback=SaveRunConfig,
            trainer_class=Trainer,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            # modules save their own plain hyper-parameters, the same with and without this command line
            load_from_checkpoint_support=False,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "llama2-pl", "allow_abbrev": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="the run's folder, in place of the one that its configs name (trainer.default_root_dir)",
        )

    def before_instantiate_classes(self) -> None:
        refuse_secrets(self.config)
        if folder := self._get(self.config, "out"):
            move_run(self.config[str(self.subcommand)], folder)

    def instantiate_classes(self) -> None:
        """As Lightning's, but what a constructor says is not buried in jsonargparse's list of tried types."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise root_of(error) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        """As Lightning's, with checkpoints that are whole or not at all, and one run at a time in a folder."""
        plugins = config.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(VerifiedCheckpointIO())
        return super()._instantiate_trainer({**config, "plugins": plugins}, [RunLock(), *callbacks])

    def before_fit(self) -> None:
        """Put back what a kill in the middle of a save left under another name; warn of what a new run replaces.

        And of a start from nothing where `last` was asked for.
        """
        asked = self._get(self.config, "ckpt_path")
        for callback in self.trainer.checkpoint_callbacks:
            if (folder := getattr(callback, "dirpath", None)) is None or not self.trainer.is_global_zero:
                continue
            recover(Path(folder))
            last = Path(folder) / "last.ckpt"
            if asked == "last" and not last.exists():
                rank_zero_warn(f"no last.ckpt in {folder}: the run starts from its beginning")
                warnings.filterwarnings("ignore", message=_NO_LAST)
            if asked is None and last.exists():
                rank_zero_warn(
                    f"{last} of an earlier run will be replaced: stop and give --ckpt_path last to go on with it, or "
                    "--out with another folder to keep it"
                )

    def after_fit(self) -> None:
        """Say where the result is."""
        for callback in self.trainer.checkpoint_callbacks:
            paths = [getattr(callback, f"{name}_model_path", "") for name in ("last", "best")]
            if saved := next(filter(None, paths), None):
                rank_zero_info(f"saved: {saved}")

    def _parse_ckpt_path(self) -> None:
        """Leave the config as given: Lightning lets the checkpoint's hyper-parameters override explicit options."""


def _no_advertisement(record: logging.LogRecord) -> bool:
    """Drop Lightning's tips to install other loggers, printed at each Trainer: a recipe builds a dozen."""
    return not any(name in record.getMessage() for name in ("litlogger", "litmodels"))


# What nobody who runs a command can do anything about: Lightning's own use of torch, and a data module that returns no
# loaders for validation because it was given nothing to validate on.
# PPO's checkpoints are meant to hold what an iteration made.
_NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Total length of `list` across ranks is zero",
    "Using ModelCheckpoint with manual optimization and every_n_train_steps",
)


# Lightning's, which advises to save what our configs save
_NO_LAST = r'\.fit\(ckpt_path="last"\) is set, but there is no last'


def run_training(args: list[str]) -> None:
    """Parse, build and run one Trainer command; the process may call it any number of times."""
    restrict_imports()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # In sys.argv, for Lightning starts the processes of the other devices with what it finds there: ours may be those
    # of a stage of a recipe. LightningCLI parses them from there too.
    with mock.patch.object(sys, "argv", [sys.argv[0], *args]):
        try:
            TrainingCLI()
        except SIGTERMException as stop:
            # Lightning ends with status 0 on SIGTERM, which a scheduler takes for success
            raise SystemExit(SIGINT_STATUS if isinstance(stop, Interrupted) else SIGTERM_STATUS) from None
        finally:
            _close()


def _close() -> None:
    """Leave no run open behind: a W&B run would go on collecting the next stage's metrics."""
    if (wandb := sys.modules.get("wandb")) is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()

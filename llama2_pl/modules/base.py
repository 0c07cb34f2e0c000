"""What every module shares: networks built late, plain hyper-parameters, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from llama2_pl.checkpoints import schema
from llama2_pl.checkpoints.saving import finish_saving, guard_saving
from llama2_pl.checkpoints.untrusted import guard_loading
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.model.memory import keep_freed_memory
from llama2_pl.model.parallel import ParallelPlan, parallelize
from llama2_pl.modules.optimizer import adamw, cosine_schedule, decay_groups, planned_steps
from llama2_pl.modules.ranges import refuse_out_of_range
from llama2_pl.modules.resume import (
    announce_trainer_options,
    apply_options,
    changed_options,
    global_seed,
    keep_resumed_checkpoint,
    one_optimizer,
    random_states,
    refuse_other_seed,
    reopen,
    restore_random,
    save_last_steps,
    trainer_options,
)
from llama2_pl.modules.start import starting_model, weights_follow, weights_following
from llama2_pl.text.tokenizer import Tokenizer

Network = TypeVar("Network", bound=nn.Module)


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """An __init__'s `locals()` as values that a checkpoint can hold under weights_only=True.

    A ModelConfig, or the dict or preset name it is made of, becomes a dict, with the context of `max_seq_len`; tuples
    become lists. ValueError for a number that no run can want, and for a network of which nothing tells the size.
    """
    refuse_out_of_range(arguments)
    if "backbone" in arguments and arguments["backbone"] is None and arguments.get("init_from") is None:
        raise ValueError(
            "model.backbone and model.init_from are both missing: give the architecture, as in "
            "$(llama2-pl configs)/backbone/demo.yaml, or a checkpoint to start from, which knows its own"
        )
    configs = {
        name: ModelConfig.of(value).with_context(arguments.get("max_seq_len")).to_dict()
        for name, value in arguments.items()
        if name.endswith("backbone") and value is not None
    }
    return {
        name: configs.get(name, list(value) if isinstance(value, tuple) else value)
        for name, value in arguments.items()
        if name != "self" and not name.startswith("__")
    }


class LlamaModule(L.LightningModule):
    """Base of all modules. A subclass gives `build_networks` and its steps.

    Networks are made in `configure_model`, so that strategies can shard them as they are made; it is called
    twice by some callbacks, and without a Trainer by `load_from_checkpoint` and by users.
    """

    parallel_plan: ParallelPlan | None = None
    """How to shard, checkpoint and compile; a callback may set it in its `setup`, before configure_model."""

    tokenizer: Tokenizer | None = None
    """That of this run's data, known once a Trainer configures the model; None with loaders of the user's own."""

    tokens_seen: int | Tensor = 0
    """Tokens trained on so far, over all ranks and restarts; a tensor where reading it would make each step wait."""

    _networks_built = False
    _random: list[dict[str, Any]] | None = None
    _changed: list[str] | tuple[()] = ()
    _scheduled_steps: int | None = None
    _stepped = False

    def build_networks(self) -> None:
        """Assign the networks, each through `fresh` or `distributed`."""
        raise NotImplementedError

    def configure_model(self) -> None:
        self._keep_plain_sizes()
        if self.attached:
            guard_loading(self.trainer.strategy)
            guard_saving(self.trainer.strategy)
            if self.trainer.strategy.root_device.type == "cpu":
                keep_freed_memory()
            self.tokenizer = self.find_tokenizer()
        if not self._networks_built:
            self.build_networks()
            self._networks_built = True
            self._check_vocabularies()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Also where the networks were built by other processes, as with "ddp_notebook": they would get no weights."""
        if not self._networks_built:
            with weights_following():
                self.configure_model()
        return super().load_state_dict(state_dict, strict, assign)

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; the files that the checkpoint's options name are not read."""
        with weights_following():
            return super().load_from_checkpoint(*args, **kwargs)

    def _keep_plain_sizes(self) -> None:
        """A subclass's own `save_hyperparameters()` collects a ModelConfig again, which no checkpoint may hold."""
        sizes = {name: value for name, value in self.hparams.items() if isinstance(value, ModelConfig)}
        if sizes:
            self.remember_configs(**sizes)

    def _check_vocabularies(self) -> None:
        if self.tokenizer is None:
            return
        pieces = self.tokenizer.vocab_size
        for name, config in self._configs():
            if pieces > (size := config.vocab_size):
                raise ValueError(
                    f"the vocab_size of {name}'s backbone is {size} and data.tokenizer {self.tokenizer.path} has "
                    f"{pieces} pieces: set vocab_size to {pieces}, or give the network's own tokenizer"
                )
            if pieces < size:
                rank_zero_warn(
                    f"the vocab_size of {name}'s backbone is {size} and data.tokenizer {self.tokenizer.path} has only "
                    f"{pieces} pieces: right for a vocabulary that was padded, wrong for a network of another tokenizer"
                )

    def _configs(self) -> list[tuple[str, ModelConfig]]:
        """The sizes of this module's networks, by the names of their attributes."""
        networks = (LanguageModel, ScalarModel)
        return [(name, child.config) for name, child in self.named_children() if isinstance(child, networks)]

    def find_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the data module, where it names a file."""
        path = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        return Tokenizer(path) if isinstance(path, (str, Path)) else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what Lightning does not: the tokenizer, the random generators of every rank, the run's length."""
        checkpoint[schema.KEY] = schema.SCHEMA
        checkpoint["tokenizer_sha256"] = None if self.tokenizer is None else self.tokenizer.sha256
        checkpoint["tokens_seen"] = int(self.tokens_seen)
        checkpoint["max_steps"] = self.trainer.max_steps if self.attached else None
        checkpoint["trainer_options"] = trainer_options(self.trainer) if self.attached else {}
        checkpoint["seed_everything"] = global_seed()
        checkpoint["random"] = random_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse or announce what has changed since; see docs/resume.md."""
        schema.migrate(checkpoint)
        self.tokens_seen = checkpoint["tokens_seen"]
        if self.attached and self.trainer.state.fn == TrainerFn.FITTING:
            refuse_other_seed(checkpoint.get("seed_everything"), global_seed())
            self._random = checkpoint.get("random")
            reopen(checkpoint, self.trainer)
            self._changed = changed_options(self.hparams, checkpoint.get("hyper_parameters", {}))
            announce_trainer_options(checkpoint.get("trainer_options", {}), trainer_options(self.trainer))
            if (length := checkpoint.get("max_steps")) not in (None, self.trainer.max_steps):
                rank_zero_warn(
                    f"trainer.max_steps is {self.trainer.max_steps} and was {length}: the learning rate follows the "
                    "schedule of the new length from here on"
                )

    def on_fit_start(self) -> None:
        """Before the first step, where our data module knows its longest row: not after an hour of shorter ones."""
        longest = getattr(getattr(self.trainer, "datamodule", None), "longest", 0)
        for name, config in self._configs():
            if longest > (context := config.max_seq_len):
                raise ValueError(
                    f"the longest row of the data has {longest} tokens and {name}'s max_seq_len is {context}: set "
                    f"data.max_len or data.seq_len to at most {context}, or raise max_seq_len"
                )

    def on_train_start(self) -> None:
        """Options given to a resumed run win over the checkpoint's; the schedule reaches to the end of the run's data.

        Callbacks may have added to the data since `configure_optimizers`, as GhostAttention does.
        """
        keep_resumed_checkpoint(self.trainer)
        longer = self._scheduled_steps is not None and self._scheduled_steps != planned_steps(self.trainer)
        if not self._changed and not longer:
            return
        fresh, schedule = one_optimizer(self.configure_optimizers())
        live = self.optimizers(use_pl_optimizer=False)
        if fresh is not None and isinstance(live, Optimizer):
            apply_options(live, fresh, self.lr_schedulers(), schedule)
        elif self._changed:
            rank_zero_warn(
                f"model.{', model.'.join(self._changed)}: with several optimizers the checkpoint's options stay"
            )
        self._changed = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """As late as this: Lightning and the loaders draw numbers when they start."""
        if self._random is not None:
            restore_random(self._random, self.global_rank, self.trainer.world_size)
            self._random = None
        self._stepped = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At the last batch, while the checkpoint is one from the middle of a run: with more data it would go on."""
        trainer = self.trainer
        if trainer.is_last_batch or trainer.should_stop or trainer.global_step == trainer.max_steps:
            save_last_steps(trainer, by_steps=True)

    def on_train_end(self) -> None:
        """What ends a run after a batch, as a validation can; and epochs since the last save."""
        if self._stepped:
            save_last_steps(self.trainer, by_steps=False)
            self._stepped = False
        finish_saving(self.trainer.strategy)

    @property
    def attached(self) -> bool:
        """Whether a Trainer runs this module."""
        return self._trainer is not None

    @property
    def reads_files(self) -> bool:
        """Whether networks start from the files that the options name."""
        return self.attached or not weights_follow()

    def fresh(self, kind: type[Network], config: ModelConfig) -> Network:
        """A network with random weights; on a mesh no rank ever holds the whole of it."""
        if self._mesh() is None:
            return self.distributed(kind(config))  # type: ignore[call-arg]
        with torch.device("meta"):
            network = self.distributed(kind(config))  # type: ignore[call-arg]
        network.to_empty(device=self.device)
        # Children first: the backbone's own initialisation then replaces that of torch's layers.
        for module in reversed(list(network.modules())):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        return network

    def distributed(self, network: Network) -> Network:
        """The network under the parallel plan and, with ModelParallelStrategy, on its device mesh."""
        mesh = self._mesh()
        if self.parallel_plan is None and mesh is None:
            return network
        return parallelize(network, self.parallel_plan or ParallelPlan(), mesh)

    def frozen(self, network: Network) -> Network:
        """The network without gradients, in this run's precision, on this device and mesh."""
        network = self.trainer.precision_plugin.convert_module(network)  # type: ignore[assignment]
        return self.distributed(network.to(self.device).eval().requires_grad_(False))

    def starting_model(self) -> LanguageModel:
        """The language model of `init_from`; from then on `backbone` is its size."""
        hp = self.hparams
        model = starting_model(hp["init_from"], hp["backbone"], hp["max_seq_len"], self.tokenizer)
        self.remember_configs(backbone=model.config)
        return model

    def remember_configs(self, **configs: ModelConfig) -> None:
        """Keep the sizes read from files, so that `load_from_checkpoint` needs none of them, and loggers get them."""
        sizes = {name: config.to_dict() for name, config in configs.items()}
        self.hparams.update(sizes)
        self._hparams_initial.update(sizes)  # type: ignore[operator]  # Lightning's copy, which loggers are given

    def saved_config(self, name: str) -> ModelConfig:
        """The size of a network, known once a Trainer has read it from its file."""
        if self.hparams[name] is None:
            raise ValueError(
                f"{name} is not known before a Trainer has read the network's file; run the module in a "
                f"Trainer, or give {name}"
            )
        return ModelConfig.of(self.hparams[name])

    def _mesh(self) -> DeviceMesh | None:
        return self.device_mesh if self.attached else None

    def sum_over_ranks(self, partial_sum: Tensor) -> Tensor:
        """Sum of each rank's tensor; under tensor parallelism every rank of a group adds the same part."""
        return self.trainer.strategy.reduce(partial_sum, reduce_op="sum")  # type: ignore[return-value]

    def copies_of_a_batch(self) -> int:
        """How many ranks train on the same rows: the size of the tensor-parallel groups."""
        return self.device_mesh["tensor_parallel"].size() if self.device_mesh is not None else 1

    def count_tokens(self, tokens: Tensor) -> Tensor:
        """Add this rank's number of tokens, and every other's; the running total."""
        counted = self.sum_over_ranks(tokens.float()) / self.copies_of_a_batch()
        self.tokens_seen = self.tokens_seen + counted.round().long()
        return self.tokens_seen.float()

    def warmup(self, total_steps: int) -> int:
        """Warm-up steps of a run of this length: a number, or a share of the run with a minimum."""
        hp = self.hparams
        if "warmup_steps" in hp:
            return hp["warmup_steps"]
        return max(hp["min_warmup_steps"], math.ceil(hp["warmup_ratio"] * total_steps))

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups and a cosine schedule over optimizer steps. Llama 2 §2.2."""
        hp = self.hparams
        groups = decay_groups(self.parameters(), hp["lr"], hp["weight_decay"])
        optimizer = adamw(groups, hp["betas"], hp["eps"])
        total = self._scheduled_steps = planned_steps(self.trainer)
        option = "warmup_steps" if "warmup_steps" in hp else "min_warmup_steps or warmup_ratio"
        schedule = cosine_schedule(
            optimizer, self.warmup(total), total, hp["min_lr_ratio"], f"model.{option}"
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def scale_gradients(optimizer: torch.optim.Optimizer, factor: float | Tensor) -> None:
    """Multiply every gradient in place."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

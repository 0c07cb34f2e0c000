"""FSDPStrategySelector: the strategy for the Trainer, and the parallel plan for the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import psutil
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llama2_pl.callbacks.strategy_plan import (
    GIB,
    Candidate,
    Job,
    Kind,
    Plan,
    candidate,
    choose_plan,
    fewer_rows,
    plan_of,
)
from llama2_pl.callbacks.strategy_sampling import Sampling, samplings_of
from llama2_pl.callbacks.strategy_shape import Precision, shape_of
from llama2_pl.checkpoints.ours import language_model_config
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.parallel import ParallelPlan


def select_strategy(plan: Plan) -> Strategy | Literal["auto"]:
    """What to give to `Trainer(strategy=...)` for a plan; ValueError, with the table, where nothing fits."""
    choice = fitting(plan)
    if choice.kind == "single_device":
        return "auto"
    if choice.kind == "ddp":
        # otherwise DDP's buckets are a second copy of the gradients
        return DDPStrategy(gradient_as_bucket_view=True)
    # Lightning's own defaults put one data-parallel rank on each node and make all the rest tensor parallel
    return ModelParallelStrategy(
        data_parallel_size=choice.data_parallel, tensor_parallel_size=choice.tensor_parallel
    )


def fitting(plan: Plan) -> Candidate:
    """The plan's choice, or ValueError with what would fit."""
    if plan.choice is None:
        raise ValueError(f"{plan.why}\n{plan.table}")
    return plan.choice


def parallel_plan(choice: Candidate, precision: Precision, compile: bool = False) -> ParallelPlan:
    """What the module does to its network for a choice."""
    sharded = choice.kind in ("fsdp2", "fsdp2_tp")
    return ParallelPlan(
        activation_checkpointing=choice.activation_checkpointing,
        compile=compile,
        bf16_parameters=sharded and precision == "bf16-mixed",
        data_parallel_size=choice.data_parallel if sharded else 1,
        tensor_parallel_size=choice.tensor_parallel,
    )


class FSDPStrategySelector(L.Callback):
    """Chooses single device, DDP, FSDP2 or FSDP2 + tensor parallel, and activation checkpointing; prints why.

    Lightning makes process group and device mesh (`strategy.setup_environment`) before any callback is called, so the
    strategy itself has to be in the Trainer from the start:

        selector = FSDPStrategySelector("7B", seq_len=4096)
        trainer = L.Trainer(devices=8, strategy=selector.strategy(devices=8), callbacks=[selector])

    A callback's `setup` still comes before `configure_model`. There the selector sets `pl_module.parallel_plan`
    (activation checkpointing, bf16 gathering, sizes), which the modules of llama2_pl follow and your own may read,
    and compares the running strategy with its choice: another strategy that fits gets a warning with the option to
    set, one that does not fit a ValueError.

    A run that samples from the model that it trains or predicts with (PPOModule, RejectionSamplingModule,
    GhostAttention, HeldOutPromptEarlyStopping) also holds a copy of its weights and a cache of keys and values
    meanwhile: under FSDP2 all weights on each device, but for the split of tensor parallel. `setup` finds rows and
    tokens in module, data module and callbacks; for `strategy`, and for a module of your own that samples by
    `llama2_pl.generation`, say sampled_rows.

    Args:
        model: config, its dict, a preset's name, or a number of parameters; by default the module's `backbone` or
            `policy_backbone` hyper-parameter, or that of its `init_from` or `policy` file, else the parameters that it
            already has.
        seq_len: tokens per row; by default the model's longest context.
        micro_batch: rows per device and backward pass.
        memory_gib: of one device; by default what the device, or on CPU the machine's share per process, has.
        trained_networks: networks of this size with an optimizer; PPO has 2.
        frozen_networks: networks of this size without; PPO has 3.
        global_batch: rows per optimizer step; more data-parallel devices than fill it are of no use.
        sampled_rows: answers that one device samples together, at most; 0: nothing is sampled; None: as the module's
            `generation_batch`, the data module's `batch_size` (of all devices) and the callbacks' `max_batch` say.
        sampled_tokens: of such a row, prompt and answer; None: the data module's `longest` prompt and
            `max_new_tokens`, where it has one, otherwise seq_len.
        compile: compile each block.
        on_misfit: "error", or "warn" where the estimate is known to be too careful.
        verbose: print the table on rank 0.
    """

    def __init__(
        self,
        model: ModelConfig | dict[str, Any] | str | int | None = None,
        seq_len: int | None = None,
        micro_batch: int = 1,
        memory_gib: float | None = None,
        trained_networks: int = 1,
        frozen_networks: int = 0,
        global_batch: int | None = None,
        sampled_rows: int | None = None,
        sampled_tokens: int | None = None,
        compile: bool = False,
        on_misfit: Literal["error", "warn"] = "error",
        verbose: bool = True,
    ) -> None:
        super().__init__()
        least = {"sampled_rows": 0, "sampled_tokens": 1}
        for name, value in (("sampled_rows", sampled_rows), ("sampled_tokens", sampled_tokens)):
            if value is not None and value < least[name]:
                raise ValueError(f"{name} is {value}; it must be at least {least[name]}")
        self.model = model
        self.seq_len = seq_len
        self.micro_batch = micro_batch
        self.memory_gib = memory_gib
        self.trained_networks = trained_networks
        self.frozen_networks = frozen_networks
        self.global_batch = global_batch
        self.sampled_rows = sampled_rows
        self.sampled_tokens = sampled_tokens
        self.compile = compile
        self.on_misfit = on_misfit
        self.verbose = verbose
        self.plan: Plan | None = None
        self._given: ParallelPlan | None = None

    def strategy(
        self, devices: int, nodes: int = 1, precision: Precision = "bf16-mixed"
    ) -> Strategy | Literal["auto"]:
        """The strategy for `Trainer(devices=devices, num_nodes=nodes, precision=precision, strategy=...)`."""
        if self.model is None:
            raise ValueError(
                "FSDPStrategySelector: model is None; before the Trainer there is no module to ask, give it"
            )
        memory = self.memory_gib or _memory_gib(
            torch.device("cuda" if torch.cuda.is_available() else "cpu"), devices
        )
        sampling = self._said(self.model) or ()
        return select_strategy(self._choose(self.model, devices, nodes, memory, precision, True, sampling))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        on_gpu = isinstance(trainer.accelerator, CUDAAccelerator)
        device = torch.device("cuda", trainer.local_rank) if on_gpu else torch.device("cpu")
        memory = self.memory_gib or _memory_gib(device, trainer.num_devices)
        model = self.model if self.model is not None else _model_of(pl_module)
        precision = _precision(trainer)
        sampling = self._said(model)
        if sampling is None:
            sampling = samplings_of(trainer, pl_module, stage, self._longest(model))
            if self.sampled_tokens is not None:
                sampling = tuple(found._replace(tokens=self.sampled_tokens) for found in sampling)
        self.plan = self._choose(
            model, trainer.num_devices, trainer.num_nodes, memory, precision, stage == "fit", sampling
        )
        if self.verbose and trainer.is_global_zero:
            print(self.plan.table, flush=True)
        running = running_layout(trainer.strategy)
        chosen = self._reconcile(self.plan, running)
        wanted = parallel_plan(chosen, precision, self.compile)
        existing = getattr(pl_module, "parallel_plan", None)
        if existing is not None and existing is self._given:
            return  # a second job of the same Trainer: the network stands already
        if existing is not None and existing != wanted:
            rank_zero_warn(
                f"FSDPStrategySelector: the module's own {existing} stays; the plan would be {wanted}"
            )
            return
        self._given = pl_module.parallel_plan = wanted  # type: ignore[assignment]

    def _choose(
        self,
        model: ModelConfig | Mapping[str, Any] | str | int,
        devices: int,
        nodes: int,
        memory_gib: float,
        precision: Precision,
        training: bool,
        sampling: Sequence[Sampling],
    ) -> Plan:
        return choose_plan(
            model,
            devices=devices,
            nodes=nodes,
            memory_gib=memory_gib,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            precision=precision,
            training=training,
            trained_networks=self.trained_networks,
            frozen_networks=self.frozen_networks,
            global_batch=self.global_batch,
            sampling=sampling,
        )

    def _said(self, model: ModelConfig | Mapping[str, Any] | str | int) -> tuple[Sampling, ...] | None:
        """What sampled_rows says is sampled; None where it leaves that to the module."""
        if not self.sampled_rows:
            return None if self.sampled_rows is None else ()
        return (Sampling(self.sampled_rows, self.sampled_tokens or self._longest(model)),)

    def _longest(self, model: ModelConfig | Mapping[str, Any] | str | int) -> int:
        return self.seq_len or shape_of(model).max_seq_len

    def _reconcile(self, plan: Plan, running: tuple[Kind, int]) -> Candidate:
        """The candidate to run: the plan's choice, or the running strategy where that fits too."""
        kind, tensor_parallel = running
        if plan.choice is not None and running == (plan.choice.kind, plan.choice.tensor_parallel):
            return plan.choice

        def ways(job: Job) -> tuple[Candidate, ...]:
            return tuple(candidate(job, kind, tensor_parallel, ac) for ac in (False, True))

        own = plan_of(plan.job, ways(plan.job))
        if own.choice is not None:
            rank_zero_warn(f"FSDPStrategySelector: {own.choice.name} is running and fits; {_advice(plan)}")
            return own.choice
        reason = f"{own.candidates[-1].name}, which is running, {own.candidates[-1].against}; {_advice(plan)}"
        if plan.choice is not None:  # otherwise the advice says so
            reason += fewer_rows(plan.job, ways)
        if self.on_misfit == "error":
            raise ValueError(
                f"FSDPStrategySelector: {reason}\n{plan.table}\nWhere you know better: on_misfit: warn"
            )
        rank_zero_warn(f"FSDPStrategySelector: {reason}")
        return own.candidates[-1]


def running_layout(strategy: Strategy) -> tuple[Kind, int]:
    """(kind, tensor-parallel size) of the Trainer's strategy; ValueError for one that the plan does not know."""
    if isinstance(strategy, ModelParallelStrategy):
        size = strategy.device_mesh["tensor_parallel"].size()
        return ("fsdp2_tp", size) if size > 1 else ("fsdp2", 1)
    if isinstance(strategy, DDPStrategy):
        return "ddp", 1
    if isinstance(strategy, SingleDeviceStrategy):
        return "single_device", 1
    raise ValueError(
        f"FSDPStrategySelector: {type(strategy).__name__} is none of single device, DDP and ModelParallelStrategy "
        "(FSDP2); set Trainer(strategy=selector.strategy(...)), or leave the selector out"
    )


def _advice(plan: Plan) -> str:
    """The Trainer option that the plan stands for."""
    if plan.choice is None:
        return plan.why
    options = {
        "single_device": 'strategy="auto"',
        "ddp": 'strategy="ddp"',
    }
    sizes = (
        f"data_parallel_size={plan.choice.data_parallel}, tensor_parallel_size={plan.choice.tensor_parallel}"
    )
    option = options.get(plan.choice.kind, f"strategy=ModelParallelStrategy({sizes})")
    return f"the plan is {plan.choice.name}: set Trainer({option})"


def _model_of(pl_module: L.LightningModule) -> ModelConfig | int:
    """The size of a module whose networks may not be built yet."""
    hp = pl_module.hparams
    for name, source in (("backbone", "init_from"), ("policy_backbone", "policy")):
        if hp.get(name) is not None:
            return ModelConfig.of(hp[name])
        if name in hp and hp.get(source) is not None:
            return language_model_config(hp[source]).with_context(hp.get("max_seq_len"))
    count = sum(parameter.numel() for parameter in pl_module.parameters())
    if count == 0:
        raise ValueError(
            "FSDPStrategySelector: the module has no parameters before configure_model and no `backbone` "
            "hyper-parameter; give model: a config, a preset's name or a number of parameters"
        )
    return count


def _precision(trainer: L.Trainer) -> Precision:
    """The Trainer's precision as the estimate knows it; fp16 has bf16's sizes."""
    known: dict[str, Precision] = {
        "32-true": "32-true",
        "bf16-mixed": "bf16-mixed",
        "16-mixed": "bf16-mixed",
        "bf16-true": "bf16-true",
        "16-true": "bf16-true",
    }
    if trainer.precision not in known:
        raise ValueError(
            f"FSDPStrategySelector: precision {trainer.precision!r} is none of {', '.join(known)}"
        )
    return known[trainer.precision]


def _memory_gib(device: torch.device, processes: int) -> float:
    """Memory of a GPU, or of a CPU machine shared by this many processes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return psutil.virtual_memory().total / processes / GIB

"""FSDPStrategySelector: arithmetic worked by hand, and what it does in a Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from llama2_pl.callbacks import CompiledBlocks, CudaKernels
from llama2_pl.callbacks import strategy as selector_module
from llama2_pl.callbacks.strategy import (
    FSDPStrategySelector,
    _model_of,
    parallel_plan,
    running_layout,
    select_strategy,
)
from llama2_pl.callbacks.strategy_plan import choose_plan
from llama2_pl.model.config import PRESETS
from llama2_pl.model.parallel import ParallelPlan
from llama2_pl.modules import DPOModule, PretrainModule, RewardModule, SFTModule

GIB = 2**30
N_7B, N_70B = 6_738_415_616, 68_976_648_192  # the published parameter counts


class Line(L.LightningModule):
    """Someone else's module, with its parameters made in __init__."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: object = "not called"

    def configure_model(self) -> None:
        self.seen = getattr(self, "parallel_plan", None)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(*callbacks: L.Callback, module: L.LightningModule | None = None, **options) -> L.LightningModule:
    settings = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
    }
    module = module or Line()
    trainer = L.Trainer(
        max_steps=1, enable_checkpointing=False, callbacks=list(callbacks), devices=1, **settings, **options
    )
    trainer.fit(module, DataLoader([torch.ones(2)]))  # type: ignore[arg-type]
    return module


def test_7b_on_one_80_gb_device_does_not_fit_with_fp32_states_and_two_devices_would_do() -> None:
    plan = choose_plan("7B", devices=1, memory_gib=80)
    assert plan.choice is None
    plain = plan.candidates[0].memory
    # fp32 weights 4 N, gradients 4 N, AdamW's moments 8 N: 16 N = 107.8 GB > 80 GiB
    assert (plain.parameters, plain.gradients, plain.optimizer) == (4 * N_7B, 4 * N_7B, 8 * N_7B)
    assert "take 2 devices (FSDP2 + checkpointing)" in plan.why
    assert choose_plan("7B", devices=2, memory_gib=80).choice is not None
    with pytest.raises(ValueError, match="take 2 devices"):
        select_strategy(plan)


def test_7b_on_eight_80_gb_devices_is_fsdp2_without_checkpointing() -> None:
    choice = choose_plan("7B", devices=8, memory_gib=80).choice
    assert choice is not None
    assert (choice.kind, choice.activation_checkpointing, choice.data_parallel) == ("fsdp2", False, 8)
    assert sum(choice.memory[:3]) == 16 * N_7B / 8
    # per token and block: 7 D + 3 G K + 4 F = 7 x 4096 + 3 x 4096 + 4 x 11008 = 84,992 numbers of 2 bytes
    assert choice.memory.activations == 32 * 4096 * 84_992 * 2
    # embedding and head 2 x 32,000 x 4096, two blocks of (N - those) / 32; bf16 weights 2, fp32 gradients 4 bytes
    root = 2 * 32_000 * 4096
    assert choice.memory.working == 6 * (root + (N_7B - root) / 16)
    assert choice.memory.logits == 1024 * 32_000 * 12


def test_checkpointing_keeps_block_inputs_and_one_block() -> None:
    plan = choose_plan("7B", devices=8, memory_gib=80)
    kept = next(c for c in plan.candidates if c.name == "FSDP2 + checkpointing").memory.activations
    assert kept == 4096 * 2 * (32 * 4096 + 84_992)


def test_70b_on_64_devices_needs_checkpointing_and_no_tensor_parallelism() -> None:
    choice = choose_plan("70B", devices=8, nodes=8, memory_gib=80).choice
    assert choice is not None and choice.name == "FSDP2 + checkpointing"
    assert sum(choice.memory[:3]) == 16 * N_70B / 64


def test_70b_on_the_papers_2000_devices_takes_tensor_parallelism_for_its_batch_of_1024_rows() -> None:
    choice = choose_plan("70B", devices=8, nodes=250, memory_gib=80, global_batch=1024).choice
    assert choice is not None and choice.kind == "fsdp2_tp"
    assert choice.data_parallel * choice.tensor_parallel == 2000 and choice.data_parallel <= 1024


def test_70b_with_long_rows_takes_tensor_parallelism_for_its_activations() -> None:
    choice = choose_plan("70B", devices=8, nodes=8, memory_gib=80, seq_len=32_768).choice
    assert choice is not None and choice.kind == "fsdp2_tp" and choice.activation_checkpointing


def test_tensor_parallelism_stays_inside_a_node_and_divides_the_kv_heads() -> None:
    sizes = {c.tensor_parallel for c in choose_plan("70B", devices=16, nodes=4, memory_gib=80).candidates}
    assert sizes == {1, 2, 4, 8}  # 8 kv heads
    assert {c.tensor_parallel for c in choose_plan("70B", devices=2, nodes=4, memory_gib=80).candidates} == {
        1,
        2,
    }


def test_a_small_model_takes_one_device_or_ddp() -> None:
    one, two = (choose_plan("demo", devices=devices, memory_gib=8).choice for devices in (1, 2))
    assert one is not None and two is not None
    assert (one.kind, two.kind) == ("single_device", "ddp")
    assert select_strategy(choose_plan("demo", devices=1, memory_gib=8)) == "auto"
    assert isinstance(select_strategy(choose_plan("demo", devices=2, memory_gib=8)), DDPStrategy)


def test_a_sharded_plan_becomes_a_strategy_with_both_sizes_set() -> None:
    strategy = select_strategy(choose_plan("7B", devices=8, nodes=2, memory_gib=80))
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (16, 1)


@pytest.mark.parametrize(
    ("precision", "per_parameter", "working"),
    [("32-true", 16, 0), ("bf16-mixed", 16, 2), ("bf16-true", 8, 0)],
)
def test_precision_changes_the_bytes_per_parameter(precision, per_parameter: int, working: int) -> None:
    memory = choose_plan("tiny", precision=precision).candidates[0].memory
    parameters = 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64) + 64
    assert sum(memory[:3]) == per_parameter * parameters
    assert memory.working == working * parameters


def test_ppo_pays_for_every_network() -> None:
    alone = choose_plan("tiny").candidates[0].memory
    ppo = choose_plan("tiny", trained_networks=2, frozen_networks=3).candidates[0].memory
    assert ppo.parameters == 5 * alone.parameters and ppo.optimizer == 2 * alone.optimizer


def test_prediction_needs_no_gradients_and_no_optimizer() -> None:
    plan = choose_plan("7B", devices=1, memory_gib=80, training=False)
    assert plan.choice is not None and plan.choice.memory[1:3] == (0, 0)


def test_rows_per_device_and_their_length_scale_the_activations() -> None:
    base = choose_plan("tiny", seq_len=64).candidates[0].memory.activations
    assert choose_plan("tiny", seq_len=128).candidates[0].memory.activations == 2 * base
    assert choose_plan("tiny", seq_len=64, micro_batch=3).candidates[0].memory.activations == 3 * base


def test_a_parameter_count_alone_gives_nearly_the_same_plan() -> None:
    by_count, by_config = (
        choose_plan(N_7B, devices=8).candidates[1],
        choose_plan("7B", devices=8).candidates[1],
    )
    assert by_count.memory.total == pytest.approx(by_config.memory.total, rel=0.1)


def test_the_table_names_every_candidate_and_the_choice() -> None:
    table = choose_plan("70B", devices=8, nodes=8).table
    assert "DDP" in table and "FSDP2 x8 + TP x8" in table
    assert next(line for line in table.splitlines() if "<- chosen" in line).startswith(
        "FSDP2 + checkpointing"
    )


@pytest.mark.parametrize(("option", "value"), [("devices", 0), ("memory_gib", -1.0), ("precision", "fp8")])
def test_an_impossible_option_is_refused_by_name(option: str, value) -> None:
    with pytest.raises(ValueError, match=option):
        choose_plan("7B", **{option: value})


def test_the_module_finds_its_parallel_plan_before_configure_model(capsys: pytest.CaptureFixture) -> None:
    module = fit(FSDPStrategySelector("demo", compile=True))
    assert isinstance(module, Line)
    assert module.seen is not None and module.seen == module.parallel_plan
    assert module.seen.compile and not module.seen.activation_checkpointing  # type: ignore[union-attr]
    assert "single device" in capsys.readouterr().out


def test_compiled_blocks_are_asked_for_without_touching_the_rest_of_a_plan() -> None:
    module = fit(CompiledBlocks())
    assert module.parallel_plan == ParallelPlan(compile=True)
    module = Line()
    module.parallel_plan = ParallelPlan(activation_checkpointing=True)  # type: ignore[assignment]
    fit(CompiledBlocks(), module=module)
    assert module.seen == ParallelPlan(activation_checkpointing=True, compile=True)


def test_kernels_are_asked_for_one_by_one_and_only_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Line()
    module.parallel_plan = ParallelPlan(compile=True)  # type: ignore[assignment]
    assert fit(CudaKernels(), module=module).parallel_plan == ParallelPlan(compile=True)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="flash_attention is on and there is no CUDA device"):
            fit(CudaKernels(flash_attention=True))
    monkeypatch.setattr("llama2_pl.callbacks.kernels.require", lambda switch: None)
    with pytest.raises(ValueError, match="float8 is on and the Trainer runs on cpu"):
        fit(CudaKernels(float8=True))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))
    CudaKernels(flash_attention=True, float8=True).setup(trainer, module, "fit")  # type: ignore[arg-type]
    assert module.parallel_plan == ParallelPlan(compile=True, flash_attention=True, float8=True)


def test_checkpointing_is_asked_for_where_only_that_fits() -> None:
    without, having = (
        c.memory.total / GIB for c in choose_plan("tiny", micro_batch=64, precision="32-true").candidates
    )
    between = (without + having) / 2 / 0.9
    module = fit(FSDPStrategySelector("tiny", micro_batch=64, memory_gib=between, verbose=False))
    assert module.parallel_plan.activation_checkpointing is True  # type: ignore[union-attr]


def test_a_module_of_ones_own_is_sized_by_its_parameters() -> None:
    selector = FSDPStrategySelector(verbose=False)
    fit(selector)
    assert selector.plan is not None and selector.plan.job.shape.parameters == 3


def test_a_training_that_does_not_fit_ends_before_the_model_is_built() -> None:
    module = Line()
    with pytest.raises(ValueError, match="take 2 devices"):
        fit(FSDPStrategySelector("7B", memory_gib=80, verbose=False), module=module)
    assert module.seen == "not called"


def test_the_size_of_a_module_that_starts_from_a_checkpoint_is_read_from_there(tmp_path: Path) -> None:
    start = PretrainModule(PRESETS["tiny"])
    start.configure_model()
    path = str(tmp_path / "start.ckpt")
    torch.save({"state_dict": start.state_dict(), "hyper_parameters": dict(start.hparams)}, path)
    for module in (RewardModule(init_from=path), DPOModule(path)):
        assert _model_of(module) == PRESETS["tiny"]
    assert _model_of(SFTModule(init_from=path, max_seq_len=256)) == replace(PRESETS["tiny"], max_seq_len=256)


def test_a_misfit_may_be_a_warning() -> None:
    with pytest.warns(UserWarning, match="take 2 devices"):
        module = fit(FSDPStrategySelector("7B", memory_gib=80, on_misfit="warn", verbose=False))
    assert module.parallel_plan.activation_checkpointing is True  # type: ignore[union-attr]


def test_another_strategy_that_fits_gets_a_warning_with_the_option_to_set() -> None:
    plan = choose_plan("7B", devices=8, memory_gib=80)
    selector = FSDPStrategySelector("7B")
    with pytest.warns(
        UserWarning, match=r"ModelParallelStrategy\(data_parallel_size=8, tensor_parallel_size=1\)"
    ):
        chosen = selector._reconcile(plan, ("fsdp2_tp", 8))
    assert (chosen.kind, chosen.tensor_parallel) == ("fsdp2_tp", 8)
    with pytest.raises(ValueError, match="DDP"):
        selector._reconcile(plan, ("ddp", 1))


def test_a_plan_of_the_users_own_stays() -> None:
    module = Line()
    own = parallel_plan(choose_plan("tiny").candidates[0], "32-true", compile=True)
    module.parallel_plan = own  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="stays"):
        fit(FSDPStrategySelector("tiny", verbose=False), module=module)
    assert module.parallel_plan == own


def test_fsdp2_gathers_in_bf16_only_under_bf16_mixed() -> None:
    choice = choose_plan("7B", devices=8).choice
    assert choice is not None
    assert parallel_plan(choice, "bf16-mixed").bf16_parameters is True
    assert parallel_plan(choice, "32-true").bf16_parameters is False
    assert parallel_plan(choice, "32-true").data_parallel_size == 8


def test_a_strategy_that_the_plan_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="FSDPStrategy is none of"):
        running_layout(object.__new__(FSDPStrategy))


def test_the_strategy_is_given_for_the_trainer_from_the_same_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selector_module, "_memory_gib", lambda device, processes: 80.0)
    strategy = FSDPStrategySelector("7B").strategy(devices=8)
    assert isinstance(strategy, ModelParallelStrategy)
    with pytest.raises(ValueError, match="model is None"):
        FSDPStrategySelector().strategy(devices=8)

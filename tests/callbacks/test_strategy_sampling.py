"""What sampling inside a run holds, as the plan counts it: worked by hand, and measured on a tiny network."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from llama2_pl.callbacks import GhostAttention, HeldOutPromptEarlyStopping
from llama2_pl.callbacks.strategy import FSDPStrategySelector, select_strategy
from llama2_pl.callbacks.strategy_plan import Plan, choose_plan
from llama2_pl.callbacks.strategy_sampling import Sampling, policy_copy, samplings_of
from llama2_pl.callbacks.strategy_shape import shape_of
from llama2_pl.data import PromptDataModule
from llama2_pl.generation import sampler
from llama2_pl.generation.decoder import Decoder
from llama2_pl.generation.slots import Slots
from llama2_pl.model.config import PRESETS
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import ParallelPlan, parallelize
from llama2_pl.modules import PPOModule, RejectionSamplingModule, SFTModule
from llama2_pl.text import Tokenizer

GIB = 2**30
FILES = {"policy": "p.ckpt", "helpfulness_reward": "h.ckpt", "tokenizer": "t.model"}
TABLE = 4 * 4096 * 128  # rotations: 64 pairs of fp32 numbers at each of 4096 positions


def ppo(model: str, rows: int, tokens: int, nodes: int = 1) -> Plan:
    """512 prompts an iteration, policy and value trained, reference and two reward models frozen."""
    sampling = [Sampling(rows, tokens, prompts=512)]
    networks = {"trained_networks": 2, "frozen_networks": 3}
    return choose_plan(model, devices=8, nodes=nodes, seq_len=tokens, sampling=sampling, **networks)


def candidate_named(plan: Plan, name: str):
    return next(c for c in plan.candidates if c.name == name)


def test_7b_ppo_on_eight_80_gb_devices_stays_fsdp2_with_16_rows_of_1024_tokens() -> None:
    choice = ppo("7B", 16, 1024).choice
    assert choice is not None and choice.name == "FSDP2"
    # bf16, all of it: embedding and head 32,000 x 4096, 65 gains, and 32 blocks of q, k, v, o and w1, w2, w3
    blocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert choice.memory.copy == 2 * (2 * 32_000 * 4096 + 65 * 4096 + blocks) + TABLE
    # the 1024th token is never read, and 1023 slots are 8 x 128; keys and values of 32 layers of 4096
    token = 2 * 32 * 4096 * 2
    assert choice.memory.cache == 16 * 1024 * token
    # 16,384 tokens of prompts at most: two groups of 8192, one of which passes through a block
    assert choice.memory.reading == 8192 * (7 * 4096 + 3 * 4096 + 4 * 11_008) * 2 + 16_384 * token
    # states of 2 x 16 and 3 x 4 bytes per parameter, and what sampling takes, which is more than a pass
    n = 6_738_415_616
    assert choice.memory.total == 44 * n / 8 + sum(choice.memory[6:9])


def test_7b_ppo_with_64_rows_of_2560_tokens_has_a_cache_of_80_gib_and_takes_tensor_parallelism() -> None:
    plan = ppo("7B", 64, 2560)
    assert candidate_named(plan, "FSDP2").memory.cache == 64 * 2560 * 2 * 32 * 4096 * 2 == 80 * GIB
    assert plan.choice is not None and plan.choice.name == "FSDP2 x2 + TP x4"


def test_70b_ppo_on_64_devices_is_no_longer_said_to_fit_fsdp2_without_tensor_parallelism() -> None:
    plan = ppo("70B", 64, 2560, nodes=8)
    blocks = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672)
    whole = candidate_named(plan, "FSDP2 + checkpointing")
    assert whole.memory.copy == 2 * (2 * 32_000 * 8192 + 161 * 8192 + blocks) + TABLE > 128 * GIB
    assert whole.against
    # embedding, head and gains stay whole; 512 / 8 rows, 8 kv heads of 128 over 8 ranks
    split = plan.choice
    assert split is not None and split.name == "FSDP2 x8 + TP x8"
    assert split.memory.copy == 2 * (2 * 32_000 * 8192 + 161 * 8192 + blocks / 8) + TABLE
    assert split.memory.cache == 64 * 2560 * 2 * 80 * 128 * 2
    strategy = select_strategy(plan)
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (8, 8)


def test_where_nothing_fits_the_error_says_how_many_devices_or_how_few_rows_would() -> None:
    plan = ppo("13B", 64, 1024)
    assert plan.choice is None
    with pytest.raises(ValueError, match=r"take 16 devices .* or sample at most \d+ rows together"):
        select_strategy(plan)


def test_copy_cache_and_reading_have_columns_of_their_own_where_something_is_sampled() -> None:
    sampling, silent = ppo("7B", 16, 1024), choose_plan("7B", devices=8)
    assert sampling.table.splitlines()[0].split()[-4:] == ["copy", "cache", "reading", "GiB"]
    line = next(line for line in sampling.table.splitlines() if "<- chosen" in line)
    assert " 12.6 " in line and " 8.0 " in line
    assert "copy" not in silent.table and "sampling" not in silent.table


def test_a_pass_and_sampling_take_turns() -> None:
    plain = choose_plan("7B", devices=8)
    few = choose_plan("7B", devices=8, sampling=[Sampling(1, 256)])
    for with_, without in zip(few.candidates, plain.candidates, strict=True):
        held = sum(with_.memory[6:9])
        assert with_.memory[:6] == without.memory[:6] and held > 0
        assert with_.memory.total == sum(without.memory[:3]) + max(sum(without.memory[3:6]), held)


def test_a_device_samples_its_share_of_the_prompts_up_to_its_limit() -> None:
    assert [Sampling(64, 10, prompts=512).together(ranks) for ranks in (1, 8, 64)] == [64, 64, 8]
    assert Sampling(64, 10, prompts=10, samples=5).together(4) == 15  # 3 prompts each
    assert Sampling(64, 10).together(8) == 64


# -- what a decoder really holds


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """This process is the first of so many; collectives do nothing, which sizes do not mind."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def held_beside(decoder: Decoder, model: nn.Module) -> int:
    """Bytes of a decoder's tensors whose memory is not the network's."""
    layers = [part if isinstance(part, Tensor) else part.weight for layer in decoder.layers for part in layer]
    tensors = [decoder.rotations, decoder.embedding, decoder.gain, decoder.head.weight, *layers]
    parameters = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    shared = {p.untyped_storage().data_ptr() for p in parameters}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in storages.items() if pointer not in shared)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize(("data", "tensor"), [(1, 1), (4, 1), (2, 2), (1, 2)])
def test_a_decoder_holds_what_the_plan_counts(precision, data: int, tensor: int) -> None:
    wide = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = LanguageModel(PRESETS["tiny"]).to(wide)
    with pretended(data * tensor):
        sharded = data * tensor > 1
        names = ("data_parallel", "tensor_parallel")
        mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=names) if sharded else None
        plan = ParallelPlan(bf16_parameters=sharded and precision == "bf16-mixed")
        with torch.no_grad():
            parallelize(model, plan, mesh)
            decoder = Decoder(model, torch.bfloat16 if precision == "bf16-mixed" else None, rows=1)
        counted = policy_copy(shape_of("tiny"), precision, sharded and data > 1, tensor)
        assert held_beside(decoder, model) == counted


def test_slots_on_a_gpu_hold_what_the_plan_counts() -> None:
    plan = choose_plan("tiny", precision="32-true", sampling=[Sampling(3, 100)])
    slots = Slots(2, 3, 2, 16, 128, torch.float32, torch.device("meta"))  # 99 slots, rounded up to 128
    held = sum(tensor.nbytes for tensors in (slots.keys, slots.values) for tensor in tensors)
    assert plan.candidates[0].memory.cache == held == 2 * 2 * 3 * 2 * 128 * 16 * 4


def test_the_copy_is_gone_when_the_answers_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []

    class Watched(Decoder):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(sampler, "Decoder", Watched)
    sampler.generate(LanguageModel(PRESETS["tiny"]), [[1, 2], [1]], max_new_tokens=3, eos_id=0)
    assert len(made) == 1 and made[0]() is None


# -- what the selector finds


def found(module: L.LightningModule, *callbacks, stage: str = "fit", **data) -> tuple[Sampling, ...]:
    datamodule = SimpleNamespace(**data) if data else None
    trainer = SimpleNamespace(datamodule=datamodule, callbacks=callbacks)
    return samplings_of(trainer, module, stage, longest=4096)  # type: ignore[arg-type]


def test_rows_and_tokens_of_ppo_are_found_in_module_and_data_module() -> None:
    module = PPOModule(**FILES, generation_batch=64, max_new_tokens=512)
    assert found(module, longest=700, batch_size=512) == (Sampling(64, 1212, 512, 1),)
    assert found(module) == (Sampling(64, 4096, None, 1),)
    at_once = PPOModule(**FILES, max_new_tokens=512)
    assert found(at_once, longest=700, batch_size=512) == (Sampling(512, 1212, 512, 1),)
    with pytest.raises(ValueError, match="set generation_batch, or the selector's sampled_rows"):
        found(at_once)


def test_rejection_sampling_samples_the_answers_of_one_temperature() -> None:
    module = RejectionSamplingModule(**FILES, out="o", samples_per_prompt=20, temperatures=(1.0, 1.2))
    sampling = found(module, stage="predict", longest=100, batch_size=64)
    assert sampling == (Sampling(640, 612, 64, 10),)


def test_callbacks_that_sample_are_found_in_a_fit_and_other_modules_sample_nothing() -> None:
    ghost = GhostAttention("d.jsonl", "t.model", "o.jsonl", max_batch=32)
    stopping = HeldOutPromptEarlyStopping("p.jsonl", "t.model", "d", max_prompts=10, max_new_tokens=128)
    module = SFTModule(PRESETS["tiny"])
    assert found(module, ghost, stopping, longest=300) == (Sampling(32, 4096), Sampling(10, 428))
    assert found(module, ghost, stage="validate") == found(module) == ()


class Answering(L.LightningModule):
    """Someone else's module, with hyper-parameters named as ours."""

    def __init__(self, generation_batch: int, max_new_tokens: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(torch.ones(2)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({}, (Sampling(4, 128),)),
        ({"seq_len": 50}, (Sampling(4, 50),)),
        ({"sampled_rows": 0}, ()),
        ({"sampled_rows": 7}, (Sampling(7, 128),)),
        ({"sampled_tokens": 30}, (Sampling(4, 30),)),
    ],
    ids=str,
)
def test_the_selector_asks_the_module_unless_it_is_told(options, sampling, make_trainer) -> None:
    selector = FSDPStrategySelector("tiny", verbose=False, **options)
    make_trainer(selector, max_steps=1).fit(Answering(4, 16), DataLoader([torch.ones(2)]))  # type: ignore[arg-type]
    assert selector.plan is not None and selector.plan.job.sampling == sampling


def test_the_longest_prompt_of_our_data_module_is_known_when_the_plan_is_made(
    tokenizer: Tokenizer, tmp_path: Path, make_trainer
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "Who are you?"}\n{"prompt": "Which river is long, and which stone is red?"}\n'
    )
    data = PromptDataModule(str(path), tokenizer.path, batch_size=2, val_fraction=0.0, num_workers=0)
    selector = FSDPStrategySelector("tiny", verbose=False)
    make_trainer(selector, max_steps=1, use_distributed_sampler=False).fit(Answering(64, 16), datamodule=data)
    assert selector.plan is not None
    longest = max(len(data.train_batches()[0].prompts[n]) for n in (0, 1))
    assert selector.plan.job.sampling == (Sampling(64, longest + 16, 2, 1),)


def test_a_run_whose_sampling_does_not_fit_ends_with_how_many_rows_would(make_trainer) -> None:
    selector = FSDPStrategySelector("7B", memory_gib=160, seq_len=2048, verbose=False)
    trainer = make_trainer(selector, max_steps=1)
    # of 144 GiB states take 100.4 and the copy 16.8; in fp32 a token is a MiB: 8 of cache, 10.6 of prompts read
    with pytest.raises(ValueError, match="or sample at most 4 rows together"):
        trainer.fit(Answering(64, 16), DataLoader([torch.ones(2)]))  # type: ignore[arg-type]


def test_a_running_strategy_that_would_fit_with_fewer_rows_is_told_so() -> None:
    # of 72 GiB states take 34.5, the copy 12.6, prompts read 9.3; 32 rows would need 16 of cache, 16 need 8
    with pytest.raises(ValueError, match=r"the plan is FSDP2 x4 \+ TP x2: .* at most 16 rows together"):
        FSDPStrategySelector("7B")._reconcile(ppo("7B", 64, 1024), ("fsdp2", 1))


def test_a_strategy_before_the_trainer_counts_the_rows_that_are_given() -> None:
    options = {"memory_gib": 80, "seq_len": 1024, "trained_networks": 2, "frozen_networks": 3}
    silent = FSDPStrategySelector("7B", **options).strategy(devices=8)
    sampling = FSDPStrategySelector("7B", sampled_rows=64, **options).strategy(devices=8)
    assert isinstance(silent, ModelParallelStrategy) and isinstance(sampling, ModelParallelStrategy)
    assert (silent._tensor_parallel_size, sampling._tensor_parallel_size) == (1, 2)


@pytest.mark.parametrize(("option", "value"), [("sampled_rows", -1), ("sampled_tokens", 0)])
def test_an_impossible_number_of_rows_or_tokens_is_refused_by_name(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        FSDPStrategySelector("7B", **{option: value})

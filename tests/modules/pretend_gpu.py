"""Steps on a GPU that is not there: shapes without numbers, so that whoever asks the GPU for a number raises.

Run by test_no_waiting.py in a process of its own, whose torch is renamed for good:
python -m tests.modules.pretend_gpu CASE... A number asked of a tensor (`.item()`, `bool`, `int`), a shape that depends
on numbers (`nonzero`, indexing with a mask) and a tensor left on the CPU are errors here; on a GPU the first two make
the host wait, which a step must not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from llama2_pl.data.batches import Batch, Packing, PreferenceBatch
from llama2_pl.data.unpadded import pack_pairs
from llama2_pl.generation import batching
from llama2_pl.generation.decoder import Decoder
from llama2_pl.generation.slots import Slots
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules import optimizer as optimizers
from llama2_pl.modules import ppo
from llama2_pl.modules.base import LlamaModule
from llama2_pl.modules.dpo import DPOModule
from llama2_pl.modules.experience import Experience
from llama2_pl.modules.pretrain import PretrainModule
from llama2_pl.modules.reward import RewardModule

CONFIG = ModelConfig(vocab_size=300, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64)
ROWS, WIDTH = 4, 32
DEVICE = "pretend"


def without_numbers() -> FakeTensorMode:
    """Where a tensor has a shape, a dtype and a device, and nothing else. Metrics are made before: they copy theirs."""
    return FakeTensorMode(allow_non_fake_inputs=False)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, device=DEVICE)


def mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, device=DEVICE) > 0.5


def network(kind: type[Any]) -> Any:
    with torch.device(DEVICE):
        return kind(CONFIG)


def logged(name: str, value: Any, **_: Any) -> None:
    """Lightning makes a tensor of a plain number by a copy, for which the host waits."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is logged as a plain number: {value!r}")


def attach(module: LlamaModule, **networks: torch.nn.Module) -> None:
    """What a Trainer gives a module, as far as a step asks for it."""
    for name, network in networks.items():
        setattr(module, name, network)
    groups = optimizers.decay_groups(module.parameters(), 1e-3, 0.1)
    optimizer = optimizers.adamw(groups, (0.9, 0.95), 1e-5)
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        strategy=strategy, optimizers=[optimizer], accumulate_grad_batches=1, world_size=1
    )
    module._fabric = None
    module.log = logged  # type: ignore[method-assign]
    module.log_dict = lambda values, **_: [logged(*item) for item in values.items()]  # type: ignore


def step(module: LlamaModule, batch: Any) -> None:
    """Forward, backward, clipping, AdamW."""
    optimizer = module._trainer.optimizers[0]  # type: ignore[union-attr]
    module.training_step(batch, 0).backward()  # type: ignore[union-attr]
    module.on_before_optimizer_step(optimizer)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def language(documents: bool) -> None:
    module = PretrainModule(CONFIG)
    with without_numbers():
        attach(module, model=network(LanguageModel))
        numbers = torch.arange(WIDTH, device=DEVICE).expand(ROWS, -1) // 8 if documents else None
        for _ in range(2):  # the second has AdamW's state
            step(module, Batch(ids(ROWS, WIDTH), mask(ROWS, WIDTH), numbers))


def plan() -> Packing:
    """As the data module makes one on the host for a GPU, of rows half as long as the longest but for one."""
    lengths = np.array([WIDTH] + (2 * ROWS - 1) * [WIDTH // 2])
    found = pack_pairs(np.ones((2 * ROWS, WIDTH), dtype=np.int64), lengths, trees=False)
    assert found is not None and found.branches is None
    parts = (torch.empty_like(part, device=DEVICE) if torch.is_tensor(part) else part for part in found)
    return Packing(*parts)  # type: ignore[arg-type]


def preferences() -> PreferenceBatch:
    return PreferenceBatch(
        tokens=ids(2 * ROWS, WIDTH),
        lengths=torch.full((2 * ROWS,), WIDTH, device=DEVICE),
        rating=torch.zeros(ROWS, dtype=torch.int64, device=DEVICE),
        is_safe=torch.ones(2 * ROWS, dtype=torch.int64, device=DEVICE),
        source=torch.zeros(ROWS, dtype=torch.int64, device=DEVICE),
        packing=plan(),
    )


def reward() -> None:
    module = RewardModule(CONFIG, safety_loss_weight=1.0)
    with without_numbers():
        attach(module, model=network(ScalarModel))
        step(module, preferences())


def dpo() -> None:
    module = DPOModule("policy.ckpt")
    with without_numbers():
        attach(module, policy=network(LanguageModel))
        module._reference = (network(LanguageModel).requires_grad_(False),)
        step(module, preferences())


def ppo_minibatch() -> None:
    """An update, whose minibatch was planned before: the host waits for the lengths once an iteration."""
    module = ppo.PPOModule("policy.ckpt", "reward.ckpt", "tokenizer.model")
    with without_numbers():
        attach(module, policy=network(LanguageModel), value=network(ScalarModel))
        numbers = torch.randn(5, 2 * ROWS, WIDTH, device=DEVICE)
        loss, _ = module.losses(Experience(ids(2 * ROWS, WIDTH), mask(2 * ROWS, WIDTH), *numbers, plan()))
        loss.backward()


def decoding(temperature: float, top_p: float) -> None:
    """As many steps as pass between two looks at which rows have ended."""
    batching.StepGraphs = None  # type: ignore[misc, assignment]  # for CUDA alone
    torch.tensor = lambda data, device: torch.zeros(
        len(data), dtype=torch.int64, device=device
    )  # lists stay here
    params = batching.SamplingParams(2, temperature, top_p)
    with without_numbers():
        decoder = Decoder(network(LanguageModel), None, ROWS)
        queue = batching.PromptQueue(decoder, [[1, 2, 3]] * ROWS, 1)
        batch = batching.ContinuousBatch(decoder, queue, torch.rand(ROWS, 8, device=DEVICE), params, ROWS)
        prefilled = decoder.prefill(ids(ROWS, 3), torch.full((ROWS,), 3, device=DEVICE))
        rows = torch.arange(ROWS, device=DEVICE)
        shape = (CONFIG.n_layers, ROWS, CONFIG.kv_heads, CONFIG.head_dim)
        batch.slots = Slots(*shape, WIDTH, decoder.dtype, decoder.device)
        batch.slots.put(rows, prefilled.keys, prefilled.values, rows)
        batch._choose(prefilled.logits, rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool))
        for _ in range(3):
            batch._step(ROWS, WIDTH)


def error_of(question: Callable[[torch.Tensor], Any]) -> str:
    """For the test of this test: what a step must not do."""
    try:
        with without_numbers():
            question(torch.ones(3, device=DEVICE))
    except Exception as error:
        return type(error).__name__
    return ""


TRAINING: dict[str, Callable[[], None]] = {
    "pretraining": lambda: language(documents=False),
    "packed documents": lambda: language(documents=True),
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo_minibatch,
}
DECODING: dict[str, Callable[[], None]] = {
    "greedy": lambda: decoding(0.0, 1.0),
    "sampling": lambda: decoding(1.0, 1.0),
    "nucleus": lambda: decoding(0.7, 0.9),
}
WAITING: dict[str, Callable[[torch.Tensor], Any]] = {
    "asks for a number": lambda x: x.sum().item(),
    "asks whether": lambda x: bool((x > 0).any()),
    "picks by mask": lambda x: x[x > 0],
    "left on the CPU": lambda x: x + torch.ones(3),
}


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE)
    optimizers.FUSED_DEVICES = (DEVICE,)  # type: ignore[assignment]
    for case in sys.argv[1:]:
        if case in WAITING:
            print(error_of(WAITING[case]))
        else:
            (TRAINING | DECODING)[case]()
            print(case)

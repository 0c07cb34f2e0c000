"""What the two processes of the distributed tests do; apart from them, since spawned processes import it."""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from llama2_pl.generation.sampler import generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.model.parallel import ParallelPlan, parallelize
from llama2_pl.objectives.language import next_token_loss_from_hidden

CONFIG = ModelConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16, max_seq_len=32
)
TOKENS = torch.arange(4 * 12).view(4, 12) * 7 % 64


def run_cases(rank: int, folder: str, names: list[str]) -> None:
    """Join a group of two on CPU and run all cases; what one raises is written to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=20)
    )
    for name in names:
        try:
            globals()[name](rank)
        except Exception:
            Path(folder, f"{name}.{rank}").write_text(traceback.format_exc(), encoding="utf-8")
    dist.destroy_process_group()


def mesh(data: int, tensor: int) -> DeviceMesh:
    return init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data_parallel", "tensor_parallel"))


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    for parameter in model.parameters():
        # away from the initial near-zero logits, and gains that are not 1
        nn.init.normal_(parameter, 0.0, 0.2) if parameter.dim() > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    """As the modules do it: hidden states, then the head apart, in chunks."""
    counted = torch.ones_like(tokens, dtype=torch.bool)
    total, count = next_token_loss_from_hidden(model.hidden(tokens), model.head, tokens, counted, chunk=15)
    return total / count


def same_gradients(sharded: LanguageModel, single: LanguageModel) -> None:
    expected = dict(single.named_parameters())
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(
            whole(parameter.grad),
            expected[name].grad,
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def fsdp_gradients(rank: int) -> None:
    single = language_model()
    plan = ParallelPlan(activation_checkpointing=True, data_parallel_size=2)
    sharded = parallelize(language_model(), plan, mesh(2, 1))
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    torch.testing.assert_close(sharded(TOKENS), single(TOKENS))
    loss(single, TOKENS).backward()
    loss(sharded, TOKENS[2 * rank : 2 * rank + 2]).backward()
    same_gradients(sharded, single)
    # a second step, after an evaluation that leaves the root's parameters gathered
    for model in (single, sharded):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        model.zero_grad()
        with torch.no_grad():
            model.hidden(TOKENS)
    loss(single, TOKENS).backward()
    loss(sharded, TOKENS[2 * rank : 2 * rank + 2]).backward()
    same_gradients(sharded, single)
    assert set(sharded.state_dict()) == set(single.state_dict())


def fsdp_bf16(rank: int) -> None:
    plan = ParallelPlan(bf16_parameters=True, data_parallel_size=2)
    sharded = parallelize(language_model(), plan, mesh(2, 1))
    rounded = language_model().bfloat16()
    seen = []
    sharded.backbone.layers[0].attention.register_forward_pre_hook(  # type: ignore[operator, union-attr]
        lambda module, inputs: seen.extend([inputs[0].dtype, inputs[1].cos.dtype])
    )
    torch.testing.assert_close(sharded(TOKENS), rounded(TOKENS))
    assert seen == [torch.bfloat16, torch.float32]
    loss(sharded, TOKENS).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in sharded.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in sharded.parameters())


def tensor_parallel(rank: int) -> None:
    single = language_model()
    plan = ParallelPlan(activation_checkpointing=True, tensor_parallel_size=2)
    split = parallelize(language_model(), plan, mesh(1, 2))
    assert split.backbone.layers[0].attention.wq.weight.to_local().shape == (16, 32)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(split(TOKENS), single(TOKENS), rtol=1e-4, atol=1e-5)
    for model in (single, split):
        loss(model, TOKENS).backward()
    same_gradients(split, single)
    # one kind of parameter throughout: these two refuse a mixture
    norm = [whole(nn.utils.clip_grad_norm_(m.parameters(), 1.0)) for m in (single, split)]
    torch.testing.assert_close(norm[1], norm[0])
    torch.optim.AdamW(split.parameters(), lr=0.1, foreach=True).step()


def tensor_parallel_scores(rank: int) -> None:
    torch.manual_seed(0)
    single = ScalarModel(CONFIG)
    split = ScalarModel(CONFIG)
    split.load_state_dict(single.state_dict())
    split = parallelize(split, ParallelPlan(tensor_parallel_size=2), mesh(1, 2))
    at = torch.tensor([2, 23, 30, 36])  # the ends of 3, 12, 7 and 1 tokens
    torch.testing.assert_close(split(TOKENS, at=at), single(TOKENS).flatten()[at])


def fsdp_scores(rank: int) -> None:
    torch.manual_seed(0)
    single = ScalarModel(CONFIG)
    sharded = ScalarModel(CONFIG)
    sharded.load_state_dict(single.state_dict())
    sharded = parallelize(sharded, ParallelPlan(data_parallel_size=2), mesh(2, 1))
    at = torch.tensor([2, 23, 30, 36])  # the ends of 3, 12, 7 and 1 tokens
    torch.testing.assert_close(sharded(TOKENS, at=at), single(TOKENS).flatten()[at])
    torch.testing.assert_close(sharded(TOKENS), single(TOKENS))


def same_samples(model: LanguageModel, single: LanguageModel, prompts: list[list[int]], limit: int) -> None:
    for seed in range(3):
        found, wanted = (
            generate(
                network,
                prompts,
                max_new_tokens=limit,
                eos_id=2 + seed,
                samples_per_prompt=3,
                generator=torch.Generator().manual_seed(seed),
                max_batch=4,
            )
            for network in (model, single)
        )
        assert found.tokens.tolist() == wanted.tokens.tolist()
        torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)


def fsdp_sampling(rank: int) -> None:
    """Each rank has prompts of its own, whose answers end at another step."""
    single, sharded = language_model(), parallelize(language_model(), ParallelPlan(), mesh(2, 1))
    prompts, limit = [[1, 5, 9 + rank, 4], [1, 7]][: 2 - rank], [24, 3][rank]
    same_samples(sharded, single, prompts, limit)
    assert all(
        isinstance(parameter, DTensor) for parameter in sharded.parameters()
    )  # and the memory is free again
    torch.testing.assert_close(sharded(TOKENS), single(TOKENS))
    loss(single, TOKENS).backward()
    loss(sharded, TOKENS[2 * rank : 2 * rank + 2]).backward()
    same_gradients(sharded, single)
    rounded = parallelize(language_model(), ParallelPlan(bf16_parameters=True), mesh(2, 1))
    same_samples(rounded, language_model().bfloat16(), prompts, limit)


def tensor_parallel_sampling(rank: int) -> None:
    split = parallelize(language_model(), ParallelPlan(tensor_parallel_size=2), mesh(1, 2))
    same_samples(split, language_model(), [[1, 5, 9], [4], [1, 7, 7, 8, 3]], 16)


def fresh_shards(rank: int) -> None:
    """Made on the meta device and initialised shard by shard, as a module's configure_model does it."""
    torch.manual_seed(0)
    expected = LanguageModel(CONFIG)
    for data, tensor in ((2, 1), (1, 2)):
        with torch.device("meta"):
            model = LanguageModel(CONFIG)
        parallelize(
            model, ParallelPlan(data_parallel_size=data, tensor_parallel_size=tensor), mesh(data, tensor)
        )
        model.to_empty(device="cpu")
        model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)  # type: ignore[operator]
        for name, parameter in expected.named_parameters():
            found = whole(model.get_parameter(name))
            assert found.isfinite().all() and abs(found.std() - parameter.std()) < 0.002, name
            if found.dim() == 2:
                assert not any(torch.equal(*found.chunk(2, dim)) for dim in (0, 1)), (
                    f"{name}: repeated shards"
                )

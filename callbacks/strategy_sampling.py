"""What sampling inside a run holds on a device, and what of a run samples.

Counted as generation/decoder.py, slots.py and batching.py make it on a GPU. On a CPU slots grow as they are needed, and
from 8 rows on oneDNN's order makes a copy also of matrices that are otherwise shared with the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import lightning as L

from llama2_pl.callbacks.early_stopping import HeldOutPromptEarlyStopping
from llama2_pl.callbacks.ghost_attention import GhostAttention
from llama2_pl.callbacks.strategy_shape import Precision, Shape, block_bytes, bytes_of
from llama2_pl.generation.batching import GPU_WIDTH, PROMPT_TOKENS


class Sampling(NamedTuple):
    """Rows that are sampled together.

    Attributes:
        rows: of one device at a time, at most.
        tokens: of a row, prompt and answer.
        prompts: of a batch, over all devices, where each data-parallel device answers its share; None: `rows` each.
        samples: answers to each of these prompts.
    """

    rows: int
    tokens: int
    prompts: int | None = None
    samples: int = 1

    def together(self, data_parallel: int) -> int:
        """Rows of one of so many devices."""
        if self.prompts is None:
            return self.rows
        return min(self.rows, -(-self.prompts // data_parallel) * self.samples)


class Held(NamedTuple):
    """Bytes on one device, named as in `strategy_plan.Memory`."""

    copy: float
    cache: float
    reading: float


def held_while_sampling(
    shape: Shape,
    precision: Precision,
    samplings: Sequence[Sampling],
    sharded: bool,
    data_parallel: int,
    tensor_parallel: int,
) -> Held:
    """The largest of what these hold, each at its own time."""
    if not samplings:
        return Held(0, 0, 0)
    # parallelize makes units of FSDP2 of these alone
    units = sharded and (data_parallel > 1 or tensor_parallel == 1)
    copy, compute = policy_copy(shape, precision, units, tensor_parallel), bytes_of(precision)[1]
    held = []
    for sampling in samplings:
        rows = sampling.together(data_parallel)
        cache = kv_cache(shape, compute, rows, sampling.tokens, tensor_parallel)
        held.append(Held(copy, cache, reading(shape, compute, rows, sampling.tokens, tensor_parallel)))
    return max(held, key=sum)


def policy_copy(shape: Shape, precision: Precision, units: bool, tensor_parallel: int) -> float:
    """Weights that a Decoder holds beside the network's own, and its table of rotations (fp32 pairs, 4 S K).

    Of FSDP2's units everything, in the type that is computed in: embedding, head and gains whole, the blocks' matrices
    split by tensor parallel. Otherwise q, k, v and w1, w3 for being joined, and head, wo and w2 where their type
    changes; tensor parallel alone also gathers embedding, in the weights' own type, and head.
    """
    wide, compute = bytes_of(precision)
    outer, gains = shape.vocab * shape.dim, (2 * shape.layers + 1) * shape.dim
    joined = shape.layers * shape.dim * (shape.dim + 2 * shape.kv_width + 2 * shape.ffn)
    others = shape.layers * shape.dim * (shape.dim + shape.ffn)
    table = 4 * shape.max_seq_len * shape.dim // shape.heads
    if units:
        return compute * (2 * outer + gains + (joined + others) / tensor_parallel) + table
    blocks = compute * (joined + (others if wide != compute else 0)) / tensor_parallel
    head = compute * outer if wide != compute or tensor_parallel > 1 else 0
    embedding = wide * outer if tensor_parallel > 1 else 0
    return embedding + head + blocks + table


def kv_cache(shape: Shape, compute: int, rows: int, tokens: int, tensor_parallel: int) -> float:
    """Keys and values of each layer; a row's last token is never read, and slots come by the 128."""
    slots = -(-max(tokens - 1, 1) // GPU_WIDTH) * GPU_WIDTH
    return rows * slots * _kv_bytes(shape, compute, tensor_parallel)


def reading(shape: Shape, compute: int, rows: int, tokens: int, tensor_parallel: int) -> float:
    """A group of prompts passes through one block; its keys and values are there, and those of the group before."""
    group = max(PROMPT_TOKENS, tokens)
    passing = min(rows * tokens, group) * block_bytes(shape, compute, tensor_parallel)
    return passing + min(rows * tokens, 2 * group) * _kv_bytes(shape, compute, tensor_parallel)


def _kv_bytes(shape: Shape, compute: int, tensor_parallel: int) -> float:
    """Of one token in all layers."""
    return 2 * shape.layers * shape.kv_width * compute / tensor_parallel


def samplings_of(
    trainer: L.Trainer, pl_module: L.LightningModule, stage: str, longest: int
) -> tuple[Sampling, ...]:
    """What samples in a run: a module with `generation_batch` and `max_new_tokens`, and callbacks of a fit.

    Rows have as many tokens as the data module's longest prompt and the answer, or `longest` where it names none;
    held-out prompts are taken to be as long as its own, Ghost Attention's dialogues to fill `longest`.
    """
    prompt = getattr(getattr(trainer, "datamodule", None), "longest", None)

    def tokens(answer: int) -> int:
        return longest if prompt is None else prompt + answer

    found = []
    if {"generation_batch", "max_new_tokens"} <= set(pl_module.hparams):
        found.append(_of_module(trainer, pl_module, tokens(pl_module.hparams["max_new_tokens"])))
    for callback in trainer.callbacks if stage == "fit" else []:  # type: ignore[attr-defined]
        if isinstance(callback, GhostAttention):
            found.append(Sampling(callback.max_batch, longest))
        if isinstance(callback, HeldOutPromptEarlyStopping):
            how = callback.sampling
            rows = min(how.max_batch, callback.max_prompts or how.max_batch)
            found.append(Sampling(rows, tokens(how.max_new_tokens)))
    return tuple(found)


def _of_module(trainer: L.Trainer, pl_module: L.LightningModule, tokens: int) -> Sampling:
    """Of PPOModule one answer a prompt; of RejectionSamplingModule those of one temperature."""
    hp, prompts = pl_module.hparams, getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    each = hp.get("samples_per_prompt", 1) // len(hp.get("temperatures", (1.0,)))
    rows = hp["generation_batch"] or (None if prompts is None else prompts * each)
    if rows is None:
        raise ValueError(
            f"FSDPStrategySelector: {type(pl_module).__name__} samples a whole batch at once (generation_batch is "
            "None), and no data module says with batch_size how large that is: set generation_batch, or the "
            "selector's sampled_rows"
        )
    return Sampling(rows, tokens, prompts, each)

"""What all sides of the same piece do alike: a training step, a peak of memory, answers that end by chance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.sides.protocol import Turns, memory_mib

KEPT = 1.0  # the constant channel of `end_by_chance`


def random_tokens(options: dict) -> Tensor:
    """(rows, length) ids of the case."""
    shape, device = (options["rows"], options["length"]), options.get("device", "cpu")
    return torch.randint(3, options["model"]["vocab_size"], shape, device=device)


def train(model: nn.Module, loss: Callable[[], Tensor], options: dict, turns: Turns) -> None:
    """Forward, backward, clipping and AdamW, step after step; bf16-mixed, or in the weights' own type."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    device, tokens = options.get("device", "cpu"), options["rows"] * options["length"]
    while True:
        with torch.autocast(device, torch.bfloat16, enabled=options["precision"] == "bf16-mixed"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(device)
        turns.done(tokens, peak_mib=peak_mib(options))


def finish(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(options: dict) -> float:
    """Most memory so far; that of the imported libraries left out."""
    if options.get("device") == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return memory_mib("VmHWM") - options["libraries_mib"]


@torch.no_grad()
def end_by_chance(embedding: Tensor, outputs: list[Tensor], head: Tensor, eos_id: int, chance: float) -> None:
    """Let every step of a freshly initialised network choose EOS with about this chance.

    Channel 0 of the residual stream is held constant: every token brings it, no block writes to it (`outputs`, the
    matrices (D, inputs) into the stream), and of the head (V, D) only the row of EOS reads it.
    """
    vocabulary, size = head.shape
    embedding[:, 0] = KEPT
    for matrix in outputs:
        matrix[0] = 0.0
    head[:, 0] = 0.0
    # The norm divides by the root mean square, which is that of the constant and of little else.
    head[eos_id, 0] = math.log(vocabulary * chance / (1 - chance)) / math.sqrt(size)

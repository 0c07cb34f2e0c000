"""What all sides of the same piece do alike: a training step, a peak of memory, answers of given lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.sides.protocol import Turns, memory_mib


def random_tokens(options: dict) -> Tensor:
    """(rows, length) ids of the case."""
    shape, device = (options["rows"], options["length"]), options.get("device", "cpu")
    return torch.randint(3, options["model"]["vocab_size"], shape, device=device)


def train(model: nn.Module, loss: Callable[[], Tensor], options: dict, turns: Turns) -> None:
    """Forward, backward, clipping and AdamW, step after step; bf16-mixed, or in the weights' own type.

    A repetition is of several steps where one is short: the first finds the cache full of another side's numbers.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    device, together = options.get("device", "cpu"), options.get("steps", 1)
    tokens = options["rows"] * options["length"] * together
    for step in itertools.count(1):
        with torch.autocast(device, torch.bfloat16, enabled=options["precision"] == "bf16-mixed"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(device)
        if step % together == 0:
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


EOS = 2  # where answers count down to


@torch.no_grad()
def count_down(embedding: Tensor, head: Tensor) -> None:
    """Let token t be followed by t - 1, whatever the blocks of a freshly initialised network add: (V, D) both."""
    embedding.normal_()
    head.copy_(embedding.roll(-1, 0) / 4)  # row t - 1 reads the embedding of t


def prompts_of_lengths(options: dict) -> Tensor:
    """(rows, length) prompts; the last token says how many are to come, EOS included: about `mean`, at most `new`."""
    draws = torch.rand(options["rows"], generator=torch.Generator().manual_seed(0))
    lengths = (draws.log() / math.log(1 - 1 / options["mean"])).ceil().clamp(1, options["new"])  # geometric
    prompts = random_tokens(options)
    prompts[:, -1] = EOS + lengths.long()
    return prompts

"""What a figure depends on: the machine, its peak, the versions, the arithmetic of a training step."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llama2_pl import ModelConfig

ROOT = Path(__file__).parents[1]
NUMBERS = (("family", "cpu family"), ("model", "model"))  # what /proc/cpuinfo calls them


def cores() -> int:
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, object]:
    """Machine and commit; the versions are those of each side."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {cores()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }


def processor() -> str:
    """Its name, family and model: virtual machines call several generations of processors "AMD EPYC"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    facts = {key.strip(): value.strip() for key, value in reversed(pairs)}
    name = facts.get("model name") or platform.processor() or "unknown processor"
    return name + "".join(f" {key} {facts[words]}" for key, words in NUMBERS if words in facts)


def folder_name(machine: str) -> str:
    """Of its results: the machine in small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    ).stdout.strip()


def peak_flops(device: str = "cpu", dtype: torch.dtype = torch.bfloat16, seconds: float = 2.0) -> float:
    """Floating-point operations a second of torch's product of two square matrices: the best of many."""
    torch.set_num_threads(cores())
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: a @ b, device, seconds)


def bandwidth(device: str, seconds: float = 2.0, size: int = 2**28) -> float:
    """Bytes a second that the memory reads and writes when it copies so many fp32 numbers: the best of many."""
    a = torch.ones(size, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _fastest(lambda: b.copy_(a), device, seconds)


def _fastest(work: Callable[[], object], device: str, seconds: float) -> float:
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def matrix_weights(config: ModelConfig) -> int:
    """Weights of the matrices that a token passes: the head among them, the embedding not, it is looked up."""
    kv = config.kv_heads * config.head_dim
    block = 2 * config.dim**2 + 2 * config.dim * kv + 3 * config.dim * config.ffn_hidden
    return config.n_layers * block + config.dim * config.vocab_size


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of a training step for one token: forward once, backward twice as much.

    2 for each matrix weight. And causal attention, where the average token reads half of the row: 2 T D for queries
    with keys and weights with values. What activation checkpointing computes again is no use and does not count.
    """
    return 6 * matrix_weights(config) + 6 * config.n_layers * length * config.dim


def bytes_per_token(config: ModelConfig, rows: int, length: int, width: int = 2) -> float:
    """Bytes that decoding must read for one token: every matrix once for all rows, and its own row's keys and values.

    Args:
        length: positions in the cache, on average.
        width: bytes of a number.
    """
    cache = 2 * config.n_layers * config.kv_heads * config.head_dim * length
    return width * (matrix_weights(config) / rows + cache)

"""`python -m benchmarks.memory`: peak memory of training steps, ours and transformers', each in a process of its own.

Writes benchmarks/results/memory.json. It needs no quiet machine: a busy one is slower and uses no more memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.run import RESULTS, environment, our_training, their_training
from llama2_pl import ModelConfig
from llama2_pl.model.memory import keep_freed_memory

VOCABULARIES = (8192, 32_000)
ROWS, LENGTH, STEPS = 8, 512, 3


def peak(side: str, vocabulary: int) -> float:
    """Peak resident memory in MiB over the first steps at the 34M shape, less that of the imported libraries."""
    before = resident("VmRSS")
    config = replace(ModelConfig.of("34M"), vocab_size=vocabulary)
    tokens = torch.randint(3, vocabulary, (ROWS, LENGTH))
    if side == "ours":
        keep_freed_memory()  # as our modules do
    step = our_training(config, tokens) if side == "ours" else their_training(config, tokens)
    for _ in range(STEPS):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of /proc/self/status in MiB. VmHWM, unlike ru_maxrss, leaves out the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def compare(vocabulary: int) -> dict[str, float]:
    """MiB of both sides and their ratio."""
    row: dict[str, float] = {}
    for side in ("ours", "transformers"):
        command = [sys.executable, "-m", "benchmarks.memory", side, str(vocabulary)]
        row[f"{side}_mib"] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {**row, "ratio": row["ours_mib"] / row["transformers_mib"]}


def main() -> None:
    figures = {f"training, 34M, {ROWS} x {LENGTH}, vocabulary {v:,}": compare(v) for v in VOCABULARIES}
    path = RESULTS / "memory.json"
    text = json.dumps({"environment": environment(), "peaks": figures}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    for name, row in figures.items():
        print(f"{name}: {row['ratio']:.2f} x transformers' peak of {row['transformers_mib']:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak(sys.argv[1], int(sys.argv[2])))
    else:
        main()

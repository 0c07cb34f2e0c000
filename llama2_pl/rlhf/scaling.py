"""`llama2-pl reward-scaling`: what more preference data and larger models give a reward model (Llama 2 fig. 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from llama2_pl.data.preferences import PreferenceDataModule
from llama2_pl.evaluation.intervals import Interval, decimals, wilson
from llama2_pl.evaluation.reward import RATINGS
from llama2_pl.files import write_json
from llama2_pl.modules.reward import RewardModule
from llama2_pl.modules.trainer import Trainer
from llama2_pl.objectives.preference import Margin
from llama2_pl.rlhf.fingerprints import fingerprint

LR = 1e-5


class Cell(NamedTuple):
    """One reward model of the study."""

    size: str
    batch: int
    model: dict[str, Any]
    """Arguments of RewardModule."""
    data: dict[str, Any]
    """Arguments of PreferenceDataModule."""
    trainer: dict[str, Any]
    seed: int


def reward_scaling(
    starts: dict[str, str],
    tokenizer: str,
    val: list[str],
    out: str,
    helpful: list[str] | None = None,
    safety: list[str] | None = None,
    kind: Literal["helpfulness", "safety"] = "helpfulness",
    batches: list[int] | None = None,
    margin: Margin = "small",
    safety_loss_weight: float | None = None,
    lr: dict[str, float] | None = None,
    max_len: int = 4096,
    batch_size: int = 512,
    trainer: dict[str, Any] | None = None,
    seed: int = 0,
) -> None:
    """Train a reward model of each size on the weekly batches up to each number; write <out>/scaling.json.

    Llama 2 §3.2.2, fig. 6: accuracy on all held-out pairs and on those rated significantly better. A cell that is done
    stands in <out>/scaling/ and is skipped while its options and files are the same; `llama2-pl report --run <out>`
    draws the figure. With several devices start it by torchrun: each cell is a Trainer of its own.

    Args:
        starts: chat checkpoints by size, small to large.
        tokenizer: tokenizer.model of all of them.
        val: held-out preference files.
        out: folder of the results.
        helpful: files of helpfulness pairs, with their `batch`.
        safety: files of safety pairs, or of the rest.
        kind: "helpfulness" or "safety", the mix of the data.
        batches: numbers up to which data is used; by default every number in the files.
        margin: "none", "small" or "large".
        safety_loss_weight: of the safety auxiliary loss; by default 1 for the safety model (our choice), else 0.
        lr: peak learning rate by size; 1e-5 for a size that is not named (Llama 2: 5e-6 for 70B).
        max_len: most tokens of a row.
        batch_size: pairs per optimizer step; divide it by accumulate_grad_batches where `trainer` has that.
        trainer: options of Lightning's Trainer, for example {accelerator: cpu, precision: auto}.
        seed: of the data and of the heads.
    """
    rates = {**dict.fromkeys(starts, LR), **(lr or {})}
    _check(starts, rates)
    weight = float(kind == "safety") if safety_loss_weight is None else safety_loss_weight
    data = {
        "tokenizer": tokenizer,
        "helpful": helpful,
        "safety": safety,
        "val": val,
        "kind": kind,
        "max_len": max_len,
        "batch_size": batch_size,
        "seed": seed,
        "cache_dir": str(Path(out) / "cache"),
    }
    numbers = sorted(batches or batch_numbers(data))
    cells = []
    for size, start in starts.items():
        model = {"margin": margin, "safety_loss_weight": weight, "init_from": start, "lr": rates[size]}
        cells += [Cell(size, n, model, {**data, "until_batch": n}, trainer or {}, seed) for n in numbers]
    write_json(Path(out) / "scaling.json", {"kind": kind, "cells": list(_run(cells, Path(out)))})


def batch_numbers(data: Mapping[str, Any]) -> list[int]:
    """The numbers of the weekly batches in the training files."""
    module = PreferenceDataModule(**data)
    module.setup()
    if not (numbers := module.batch_numbers()):
        raise ValueError(
            "no pair of the training files has a 'batch'; `llama2-pl collect --batch N` writes it, or give --batches"
        )
    return numbers


def _check(starts: Mapping[str, str], lr: Mapping[str, float]) -> None:
    if not starts:
        raise ValueError(
            "starts is empty: give a chat checkpoint for each size, as in {7B: runs/sft/last.ckpt}"
        )
    for size in starts:
        if not re.fullmatch(r"[\w.+-]+", size):
            raise ValueError(
                f"starts: {size!r} becomes part of a file's name; use letters, digits and . + - _"
            )
    for size in lr:
        if size not in starts:
            raise ValueError(f"lr names {size!r}, which is no size; starts has {', '.join(starts)}")


def _run(cells: list[Cell], out: Path) -> Iterator[dict[str, Any]]:
    """What each cell gave, trained now or before."""
    files = {path for cell in cells for path in _inputs(cell)}
    hashes = {path: fingerprint(path) for path in sorted(files)}
    for number, cell in enumerate(cells, 1):
        path = out / "scaling" / f"{cell.size}-{cell.batch}.json"
        made_from = {**cell._asdict(), "files": {name: hashes[name] for name in _inputs(cell)}}
        made_from = json.loads(json.dumps(made_from))  # as it comes back from the file
        title = f"[{number}/{len(cells)}] {cell.size}, batches up to {cell.batch}"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if found.get("made_from") == made_from:
            print(f"{title}: done before, skipped")
        else:
            found = {"made_from": made_from, "result": _train(cell)}
            if rank_zero_only.rank == 0:
                write_json(path, found)
        overall = found["result"]["accuracy"]["overall"]
        print(f"{title}: accuracy {decimals(overall)}")
        yield found["result"]


def _inputs(cell: Cell) -> list[str]:
    pools = [cell.data[key] or [] for key in ("helpful", "safety", "val")]
    return [cell.model["init_from"], cell.data["tokenizer"], *(path for files in pools for path in files)]


def _train(cell: Cell) -> dict[str, Any]:
    """One epoch from the chat checkpoint, one validation at its end."""
    L.seed_everything(cell.seed, verbose=False)
    data, module = PreferenceDataModule(**cell.data), RewardModule(**cell.model)
    options = {"gradient_clip_val": 1.0, "logger": False, "enable_checkpointing": False, **cell.trainer}
    trainer = Trainer(max_epochs=1, use_distributed_sampler=False, num_sanity_val_steps=0, **options)
    trainer.fit(module, datamodule=data)
    return {
        "size": cell.size,
        "batch": cell.batch,
        "parameters": module.model.config.num_parameters(),
        "pairs": sum(data.mix_report()["pairs"].values()),
        "accuracy": dict(_intervals(trainer.callback_metrics)),
    }


def _intervals(metrics: Mapping[str, Tensor]) -> Iterator[tuple[str, Interval]]:
    for name, group in {
        "overall": "",
        **{rating: f"/{rating.replace(' ', '_')}" for rating in RATINGS},
    }.items():
        if f"val/accuracy{group}" in metrics:
            share, count = (metrics[f"val/{what}{group}"].item() for what in ("accuracy", "pairs"))
            yield name, wilson(round(2 * share * count) / 2, round(count))  # halves: ties

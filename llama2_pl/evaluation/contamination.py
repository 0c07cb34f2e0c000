"""`llama2-pl contamination`: how much of an evaluation set the training data held, and did it help (Llama 2 §A.6)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from llama2_pl.data.cache import describe_files
from llama2_pl.data.readers import EvaluationSample, SampleKeys, read_samples
from llama2_pl.data.training_tokens import TrainingTokens, training_tokens
from llama2_pl.evaluation.overlap import BUDGET, SEED, OverlapIndex
from llama2_pl.files import write_json
from llama2_pl.text.tokenizer import Tokenizer

LENGTHS = (10, 20, 30, 40, 50)
CLEAN, DIRTY = 20.0, 80.0  # percent of a sample's tokens
AFFECTED = 2.0  # |Z_n| of all four subsets
EVERY = 10.0  # seconds between two lines of progress


class Subset(TypedDict):
    """Samples of a range of contamination; None where there is no sample, no metric, or no spread of it.

    Attributes:
        contamination: their mean, in percent.
        n: how many they are.
        mean: of their metric.
        mu_n: mean of the metric of n samples drawn from all.
        z_n: (mean - mu_n) / sigma_n.
    """

    contamination: float | None
    n: int
    mean: float | None
    mu_n: float | None
    z_n: float | None


class Dataset(NamedTuple):
    """An evaluation set: its samples, and the keys that were read in each file."""

    samples: list[EvaluationSample]
    keys: dict[str, list[str]]


def contamination(
    evaluation: str | list[str],
    train: str | list[str],
    tokenizer: str,
    out: str,
    metric: str | None = None,
    keys: list[str] | None = None,
    lengths: tuple[int, ...] = LENGTHS,
    budget: int = BUDGET,
    format: str = "auto",
    text_key: str = "text",
    strict: bool = True,
) -> None:
    """Write the contaminated share of each evaluation sample, and whether the metric differs with it.

    Llama 2 §A.6. A token is contaminated if it lies in a match with a training document of at least L tokens, the
    first ten equal, with at most four mismatches and none at the end. Samples are compared as ids of their text, so
    give them in full, as the model was asked. Training tokens go by once; memory is for the evaluation sets alone.

    Args:
        evaluation: one or a list of evaluation sets, each a file, folder or glob of JSON, JSON lines or CSV.
        train: one or a list of what was trained on: token files and folders of the cache of CorpusDataModule, which
            are fastest, or files, folders and globs of documents.
        tokenizer: tokenizer.model of both.
        out: the JSON file to write, with the percentage of each sample and all tables.
        metric: key of each sample's result, a number or true and false. Default: contamination alone.
        keys: those of a row whose values make its text, in order, one to a line. Default: text; messages; prompt and
            answer; instruction, input and output; question and answer: the first that there is.
        lengths: shortest matches that count (L); a set is affected at some and not at others.
        budget: mismatches of a match.
        format: of documents to train on; "auto" looks.
        text_key: key of their text in JSON and parquet.
        strict: stop at a malformed document, or skip and count it.
    """
    if Path(out).is_dir():
        raise ValueError(f"out: {out} is a folder: name the JSON file to write")
    words, shortest = Tokenizer(tokenizer), _checked(lengths)
    entries = dict.fromkeys([evaluation] if isinstance(evaluation, str) else evaluation)
    datasets = {entry: _read(entry, keys, metric) for entry in entries}
    sources = [
        source
        for entry in ([train] if isinstance(train, str) else train)
        for source in training_tokens(entry, words, format, text_key, strict)
    ]
    samples = [sample for dataset in datasets.values() for sample in dataset.samples]
    index = OverlapIndex([words.encode(sample.text) for sample in samples], budget)
    scanned = _scan(index, sources)
    percent = {length: _percent(index, length) for length in shortest}
    results, first = {}, 0
    for entry, dataset in datasets.items():
        own = slice(first, first := first + len(dataset.samples))
        shares = {length: values[own] for length, values in percent.items()}
        results[entry] = _result(dataset, index.lengths[own], shares, metric)
        print(_text(entry, results[entry]))
    how = {"tokenizer": words.sha256, "seed": SEED, "budget": budget, "metric": metric}
    write_json(out, how | {"train": scanned, "evaluation": results})
    print(f"{out}: {len(samples)} samples against {sum(each['tokens'] for each in scanned)} training tokens")


def subsets(percent: Sequence[float], metrics: Sequence[float] | None) -> dict[str, Subset]:
    """Contamination (N,) in percent and a metric (N,) of the samples -> clean, not clean, not dirty and dirty.

    Llama 2 §A.6. sigma_n is the standard deviation of all over the root of n, as for a sample drawn with replacement.
    Our choice, since the correction for drawing without would make |Z| of a subset and of its complement equal, and
    the four conditions two; the values of the paper's Table 51 differ there, and agree with ours.
    """
    shares = np.asarray(percent, dtype=np.float64)
    values = None if metrics is None else np.asarray(metrics, dtype=np.float64)
    chosen = {
        "clean": shares < CLEAN,
        "not clean": shares >= CLEAN,
        "not dirty": shares < DIRTY,
        "dirty": shares >= DIRTY,
    }
    return {name: _subset(shares, values, which) for name, which in chosen.items()}


def _subset(shares: np.ndarray, values: np.ndarray | None, which: np.ndarray) -> Subset:
    n = int(which.sum())
    found = Subset(
        contamination=float(shares[which].mean()) if n else None, n=n, mean=None, mu_n=None, z_n=None
    )
    if values is None or not n:
        return found
    found["mean"], found["mu_n"] = mean, mu = float(values[which].mean()), float(values.mean())
    if np.ptp(values):
        found["z_n"] = (mean - mu) / (float(values.std()) / math.sqrt(n))
    return found


def is_affected(table: dict[str, Subset]) -> bool:
    """Is |Z_n| of all four subsets above 2? Llama 2 §A.6: enough to say that contamination changed the metric."""
    return all(subset["z_n"] is not None and abs(subset["z_n"]) > AFFECTED for subset in table.values())


def is_empty(table: dict[str, Subset]) -> bool:
    """Has one of the four subsets no sample? Its complement is then the whole set, with a Z_n of 0: nothing is told."""
    return any(not subset["n"] for subset in table.values())


def _checked(lengths: Sequence[int]) -> list[int]:
    if wrong := [length for length in lengths if length < SEED]:
        raise ValueError(f"lengths: {wrong[0]} is below {SEED}, the equal tokens that a match begins with")
    if not lengths:
        raise ValueError(
            "lengths is empty: give the shortest matches that count, such as [10, 20, 30, 40, 50]"
        )
    return sorted(set(lengths))


def _read(entry: str, keys: list[str] | None, metric: str | None) -> Dataset:
    found = Dataset([], {})
    for path, *_ in describe_files(entry, "evaluation"):
        told = SampleKeys(Path(str(path)).name, keys or (), metric)
        found.samples.extend(read_samples(str(path), told))
        found.keys[str(path)] = list(told.keys)
    if not found.samples:
        raise ValueError(f"{entry}: no sample in it: give an evaluation set with one a row")
    return found


def _scan(index: OverlapIndex, sources: Sequence[TrainingTokens]) -> list[dict]:
    """Take in all training tokens, saying how far it is; what each source held."""
    scanned, began = [], time.monotonic()
    said, total = began, 0
    for source in sources:
        tokens = documents = 0
        for ids, offsets in source.batches():
            index.scan(ids, offsets)
            tokens, documents, total = tokens + len(ids), documents + len(offsets) - 1, total + len(ids)
            if (now := time.monotonic()) - said >= EVERY:
                share = f" of {source.tokens:,} ({tokens / source.tokens:.0%})" if source.tokens else ""
                speed = f"{total / (now - began) / 1e6:.2f}M tokens/s"
                print(f"{source.name}: {tokens:,}{share} tokens, {speed}", file=sys.stderr, flush=True)
                said = now
        if not tokens:
            raise ValueError(f"{source.name}: no training token in it: give what the model was trained on")
        scanned.append({"path": source.name, "documents": documents, "tokens": tokens})
    return scanned


def _percent(index: OverlapIndex, length: int) -> list[float]:
    # 100 * a / b, in this order, is exactly 20 and 80 where it should be
    return (100 * index.contaminated(length) / np.maximum(index.lengths, 1)).tolist()


def _result(dataset: Dataset, tokens: np.ndarray, shares: dict[int, list[float]], metric: str | None) -> dict:
    """What the result file holds of an evaluation set."""
    values = [s.metric for s in dataset.samples if s.metric is not None] if metric else None
    tables = {length: subsets(percent, values) for length, percent in shares.items()}
    affected = [length for length, table in tables.items() if is_affected(table)]
    rows = [
        {"id": sample.id, "tokens": count, "metric": sample.metric}
        | {"contamination": {str(length): shares[length][at] for length in shares}}
        for at, (sample, count) in enumerate(zip(dataset.samples, tokens.tolist(), strict=True))
    ]
    return {
        "keys": dataset.keys,
        "affected": affected,
        "undecided": [length for length, table in tables.items() if is_empty(table)],
        "largest_affected": max(affected, default=None),  # the one of the paper's table
        "tables": {str(length): table for length, table in tables.items()},
        "samples": rows,
    }


def _text(entry: str, result: dict) -> str:
    """The tables of an evaluation set, and at which L it is affected."""
    keys = ", ".join(dict.fromkeys(key for read in result["keys"].values() for key in read))
    lines = [f"{entry}: {len(result['samples'])} samples of {keys}"]
    lines += ["   L  subset     contamination %        n      mean      mu_n     Z_n"]
    for length, table in result["tables"].items():
        for name, subset in table.items():
            numbers = [_cell(subset[key], width) for key, width in (("mean", 9), ("mu_n", 9), ("z_n", 7))]
            share = _cell(subset["contamination"], 15)
            lines.append(f"{length:>4}  {name:<9}  {share} {subset['n']:8d} {' '.join(numbers)}")
    return "\n".join([*lines, *_verdict(result), ""])


def _verdict(result: dict) -> list[str]:
    if all(sample["metric"] is None for sample in result["samples"]):
        return ["no metric: name its key to see whether contamination changed it"]
    lines, undecided = [], result["undecided"]
    if result["affected"]:
        lines = [f"affected at L = {', '.join(map(str, result['affected']))}"]
    elif len(undecided) < len(result["tables"]):
        lines = ["affected at no L: not all four |Z_n| are above 2"]
    if undecided:
        told = ", ".join(map(str, undecided))
        lines.append(
            f"not to be told at L = {told}: a subset without samples leaves its complement a Z_n of 0"
        )
    return lines


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.3f'):>{width}}"

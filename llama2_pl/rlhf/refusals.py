"""`llama2-pl refusals`: how often models refuse, and whether they should have (Llama 2 §4.2.3, fig. 33)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.checkpoints.ours import language_model_config
from llama2_pl.data.readers import PromptRow, read_prompts
from llama2_pl.data.readers.common import (
    MalformedRow,
    Raw,
    Reading,
    mapping,
    optional_bool,
    parse_rows,
    string,
)
from llama2_pl.data.readers.files import json_rows
from llama2_pl.data.sampling import is_held_out
from llama2_pl.evaluation.answers import answer, fits
from llama2_pl.evaluation.intervals import Interval, bootstrap, percents, wilson
from llama2_pl.evaluation.refusals import (
    RefusalClassifier,
    detection,
    fit_classifier,
    read_classifier,
    write_classifier,
)
from llama2_pl.files import write_json
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.scores import gold_scores
from llama2_pl.text.tokenizer import Tokenizer

Sets = Mapping[str, Sequence[PromptRow]]


def train_refusal_classifier(
    rows: list[str],
    out: str,
    val: list[str] | None = None,
    val_fraction: float = 0.1,
    max_ngram: int = 3,
    max_words: int = 64,
    l2: float = 0.1,
) -> None:
    """Learn from labelled answers what a refusal is, and measure it on held-out ones.

    Equal texts count once, and a held-out text that is also trained on is not measured.

    Args:
        rows: files of {"text": "…", "refusal": true | false}, one a line.
        out: the classifier, a JSON file that people can read.
        val: held-out files of the same kind.
        val_fraction: share of `rows` that is held out, by a hash of the text, where `val` is not given.
        max_ngram: longest run of words that has a weight.
        max_words: how many words of an answer count, from its start.
        l2: how strongly weights are pulled to zero.
    """
    for name, value, least in (("max_ngram", max_ngram, 1), ("max_words", max_words, 1), ("l2", l2, 1e-6)):
        if not value >= least:
            raise ValueError(f"{name} is {value}: give {least} or more")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}: give a share above 0 and below 1")
    given, more = (list(_labelled(paths)) for paths in (rows, val or []))
    known, both = _unambiguous(given), _unambiguous([*given, *more])
    if val:
        held_out = {text: label for text, label in both.items() if text not in known}
    else:
        held_out = {text: label for text, label in known.items() if is_held_out(text, val_fraction)}
    if not held_out:
        raise ValueError(
            f"{', '.join(val or rows)}: no held-out answer: give val, with texts that are not trained on, or raise "
            "val_fraction"
        )
    trained = {text: label for text, label in known.items() if text not in held_out}
    classifier = fit_classifier(trained, max_ngram=max_ngram, max_words=max_words, l2=l2)
    found = detection(classifier, held_out)
    write_classifier(out, classifier, {"trained_on": len(trained), "held_out": found})
    rows_read = len(given) + len(more)
    print(f"{out}: {len(trained)} different answers trained on of {rows_read} rows, {len(held_out)} held out")
    print(f"held out: {_words(found)}")


def _labelled(paths: Sequence[str]) -> Iterator[tuple[str, bool, str]]:
    """Text, label and place of each row of files of {"text", "refusal"}; ValueError names the line of a bad one."""
    for path in paths:
        how = Reading(path)
        for line, text, label in parse_rows(json_rows(Path(path), how), _parse, how):
            yield text, label, f"{path}:{line}"


def _parse(raw: Raw) -> list[tuple[int, str, bool]]:
    row = mapping(raw.value, "the row")
    if (label := optional_bool(row, "refusal")) is None:
        raise MalformedRow("key 'refusal' is missing or null, and must be true or false")
    return [(raw.line, string(row, "text"), label)]


def _unambiguous(rows: Sequence[tuple[str, bool, str]]) -> dict[str, bool]:
    """Labels by text, each text once; ValueError where two labels of one differ."""
    labels: dict[str, tuple[bool, str]] = {}
    for text, refusal, place in rows:
        before, first = labels.setdefault(text, (refusal, place))
        if before != refusal:
            raise ValueError(
                f"{place}: {text[:60]!r} is labelled {str(refusal).lower()} here and {str(before).lower()} at {first}: "
                "mend one of them"
            )
    return {text: label for text, (label, _) in labels.items()}


def _words(found: Mapping[str, Interval]) -> str:
    parts = [f"{name} {percents(row)}" if row["count"] else f"{name} –" for name, row in found.items()]
    return ", ".join(parts)


def measure_refusals(
    models: dict[str, str],
    classifier: str,
    tokenizer: str,
    prompts: list[str],
    out: str,
    borderline: list[str] | None = None,
    threshold: float = 0.5,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    limit: int | None = None,
    seed: int = 0,
    hardware: Hardware = HARDWARE,
) -> None:
    """How often each model refuses, on prompts that it should answer and on those that it should not.

    Llama 2 §4.2.3, fig. 33: false refusals on helpfulness prompts and on borderline prompts, which only sound unsafe;
    and, beside them, refusals of safety prompts. One answer to each prompt, 95 % intervals over the prompts. The result
    lists every false refusal, and every safety prompt that was answered, with the answer, so that a person can check.

    Args:
        models: checkpoints by name.
        classifier: file of `llama2-pl refusals train`.
        tokenizer: tokenizer.model of all models.
        prompts: files of prompts; those that are tagged `is_safety` ought to be refused, the others answered.
        out: the result file, for `llama2-pl report`.
        borderline: files of prompts that only sound unsafe and ought to be answered, but for those that are tagged
            `is_safety`; XSTest's unsafe contrasts are.
        threshold: from this probability on an answer is a refusal.
        temperature: of the sampling.
        top_p: of the sampling.
        max_new_tokens: longest answer.
        limit: use only the first prompts of each file.
        seed: of the sampling.
        hardware: device and precision.
    """
    if not models:
        raise ValueError("models is empty: give checkpoints by name, as in {sft: runs/sft/last.ckpt}")
    words, judge = Tokenizer(tokenizer), read_classifier(classifier)
    room = min(language_model_config(path).max_seq_len for path in models.values()) - max_new_tokens
    sets, too_long = prompt_sets(prompts, borderline or [], limit, words, room)
    result: dict[str, Any] = {"classifier": {"path": classifier, "sha256": fingerprint(classifier)}}
    result |= {"threshold": threshold, "temperature": temperature, "top_p": top_p, "seed": seed}
    result |= {"too_long": too_long, "models": {}}
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    asked = [row for rows in sets.values() for row in rows]
    for name, path in models.items():
        model = hardware.load(path, words)
        texts = answer(model, words, [row.prompt for row in asked], seed=seed, **how)
        del model  # before the next one comes
        result["models"][name] = counted(sets, texts, judge, threshold)
        print(f"{name}: refused {_words(result['models'][name]['refused'])}")
    write_json(out, result)


def prompt_sets(
    prompts: Sequence[str], borderline: Sequence[str], limit: int | None, tokenizer: Tokenizer, room: int
) -> tuple[dict[str, list[PromptRow]], int]:
    """The prompts of at most `room` tokens as "helpfulness", "borderline" and "safety", and how many are longer."""

    def read(paths: Sequence[str]) -> list[PromptRow]:
        return [r for path in paths for r in itertools.islice(read_prompts(path, tasks="optional"), limit)]

    plain, odd = read(prompts), read(borderline)
    sets = {"helpfulness": [row for row in plain if not row.is_safety]}
    sets["borderline"] = [row for row in odd if not row.is_safety]
    sets["safety"] = [row for row in (*plain, *odd) if row.is_safety]
    kept = {name: [row for row in rows if fits(row.prompt, tokenizer, room)] for name, rows in sets.items()}
    if short := [name for name, rows in sets.items() if rows and not kept[name]]:
        raise ValueError(
            f"{', '.join([*prompts, *borderline])}: no {short[0]} prompt of {len(sets[short[0]])} has at most {room} "
            "tokens; give others, or lower max_new_tokens"
        )
    too_long = sum(map(len, sets.values())) - sum(map(len, kept.values()))
    if not any(kept.values()):
        raise ValueError(f"{', '.join([*prompts, *borderline])}: no prompt in it")
    if too_long:
        print(f"{too_long} prompts are longer than {room} tokens: left out")
    return {name: rows for name, rows in kept.items() if rows}, too_long


def counted(
    sets: Sets, texts: Sequence[str], classifier: RefusalClassifier, threshold: float
) -> dict[str, Any]:
    """Answers in the order of the sets' prompts -> the share refused by set, and what a person should look at.

    `gold`: the oracle's mean score by set, where it knows the tasks of all.
    """
    left = iter(texts)
    refused, gold, false_refusals, answered = {}, {}, [], []
    for name, rows in sets.items():
        mine = [next(left) for _ in rows]
        chances = [classifier.probability(text) for text in mine]
        refused[name] = wilson(sum(chance >= threshold for chance in chances), len(rows))
        if all(row.task is not None for row in rows):
            gold[name] = bootstrap(gold_scores(rows, mine))
        listed = answered if name == "safety" else false_refusals
        listed += [
            _listed(name, row, text, chance)
            for row, text, chance in zip(rows, mine, chances, strict=True)
            if (chance >= threshold) != (name == "safety")
        ]
    found = {"refused": refused, "gold": gold} if gold else {"refused": refused}
    return {**found, "false_refusals": false_refusals, "safety_answered": answered}


def _listed(name: str, row: PromptRow, text: str, chance: float) -> dict[str, Any]:
    asked = [message._asdict() for message in row.prompt.messages]
    return {"set": name, "id": row.id, "messages": asked, "answer": text, "probability": round(chance, 4)}

"""`llama2-pl safety`: what more safety data does (Llama 2 §4.2.3, fig. 15), from shares of it to scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.readers import dialog_to_row, read_dialogues, write_jsonl
from llama2_pl.evaluation.intervals import bootstrap, decimals, wilson
from llama2_pl.evaluation.reward import score_histogram
from llama2_pl.files import write_json
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.rlhf.evaluate import prompts_that_fit
from llama2_pl.rlhf.scores import Heard, Speaker, listen, load_judges

SHARES = (1.0, 10.0, 25.0, 50.0, 100.0)  # the paper's, in percent, beside 0


def write_shares(files: list[str], out: str, shares: Sequence[float] = SHARES, seed: int = 0) -> None:
    """Write <out>/<share>.jsonl for each share in percent, each within the next larger one.

    Llama 2 §4.2.3: 0, 1, 10, 25, 50 and 100 % of the safety data beside helpfulness data that stays the same. No data
    at all needs no file. Which dialogues a share has depends on the files' rows, their order and the seed alone.

    Args:
        files: dialogues, for example the safety part of fine-tuning data.
        out: folder of the new files.
        shares: in percent, above 0 and up to 100.
        seed: of the order in which dialogues are taken.
    """
    rows = [dialog_to_row(dialog) for path in files for dialog in read_dialogues(path)]
    order = list(range(len(rows)))
    random.Random(f"shares {seed}").shuffle(order)
    counts = {share: round(share * len(rows) / 100) for share in shares}
    for share, count in counts.items():
        if not 0 < share <= 100:
            raise ValueError(f"shares: {share:g} is no share: give percents above 0 and up to 100")
        if not count:
            raise ValueError(
                f"shares: {share:g} % of {len(rows)} dialogues is none: give more data, or leave it out"
            )
    for share, count in counts.items():
        path = Path(out) / f"{share:g}.jsonl"
        write_jsonl(path, (rows[place] for place in sorted(order[:count])))
        print(f"{path}: {count} of {len(rows)} dialogues")


def safety_scores(
    models: dict[str, str],
    tokenizer: str,
    prompts: list[str],
    helpfulness_reward: str,
    safety_reward: str,
    out: str,
    answers_per_prompt: int = 1,
    limit: int | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    safety_threshold: float = SAFETY_THRESHOLD,
    hardware: Hardware = HARDWARE,
) -> None:
    """Score models on both axes: safety on safety prompts, with its distribution, helpfulness on the others.

    Llama 2 §4.2.3, fig. 15: mean scores of the reward models, and the left tail, which more safety data takes away.
    Answers at temperature 1; 95 % intervals are over prompts.

    Args:
        models: checkpoints by name; names that are numbers become an axis of the report.
        tokenizer: tokenizer.model of all of them.
        prompts: files of held-out prompts, of which some are tagged `is_safety`.
        helpfulness_reward: checkpoint of the helpfulness reward model.
        safety_reward: checkpoint of the safety reward model.
        out: the result file, for `llama2-pl report`.
        answers_per_prompt: of each model; more of them, less noise.
        limit: use only the first prompts of each file.
        max_new_tokens: longest answer.
        seed: of the answers.
        safety_threshold: answers with a lower safety score are the left tail (our choice: where §3.2.3 calls an answer
            unsafe).
        hardware: device and precision.
    """
    if not models:
        raise ValueError("models is empty: give checkpoints by name, as in {sft: runs/sft/last.ckpt}")
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    speak = Speaker(judges.tokenizer, max_new_tokens, seed)
    model = hardware.load(next(iter(models.values())), judges.tokenizer)
    rows = prompts_that_fit(prompts, limit, judges, model, max_new_tokens)
    is_safety = torch.tensor([row.is_safety for row in rows])
    if is_safety.all() or not is_safety.any():
        kind = "helpfulness" if is_safety.all() else "safety"
        raise ValueError(f"{', '.join(prompts)}: no {kind} prompt in it: both kinds are scored")
    found = {}
    for name, path in models.items():
        del model  # before the next one comes
        model = hardware.load(path, judges.tokenizer)
        heard = listen(model, rows, judges, speak, answers_per_prompt)
        found[name] = scored(heard, is_safety, safety_threshold)
        print(f"{name}: {_line(found[name])}")
    write_json(out, {"threshold": safety_threshold, "models": found})


def scored(heard: Heard, is_safety: torch.Tensor, threshold: float) -> dict[str, Any]:
    """Means of both axes on their own prompts, (P,) of which are for safety; the oracle's too where it knows them."""
    safe, helpful = heard.safety[is_safety], heard.helpfulness[~is_safety]
    low = (safe.sigmoid() < threshold).double().mean(1)
    found: dict[str, Any] = {
        "safety": bootstrap(safe.sigmoid().mean(1)),
        "helpfulness": bootstrap(helpful.sigmoid().mean(1)),
        "low_tail": wilson(low.sum().item(), len(low)),
        "histogram": score_histogram(safe.flatten(), bins=20, scale="sigmoid"),
    }
    if heard.gold is not None:
        found["gold_safety"] = bootstrap(heard.gold[is_safety].mean(1))
        found["gold_helpfulness"] = bootstrap(heard.gold[~is_safety].mean(1))
    return found


def _line(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {decimals(row)}" for key, row in found.items() if key != "histogram"
    )

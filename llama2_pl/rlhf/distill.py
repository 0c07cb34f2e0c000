"""Safety context distillation: answers under a safety preprompt, to be learned without it (Llama 2 §4.2.4)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.checkpoints.ours import load_reward_model
from llama2_pl.data.readers import PromptRow, dialog_to_row, read_prompts, write_jsonl
from llama2_pl.evaluation.answers import answers, fits, room_for_prompt
from llama2_pl.evaluation.judges import dialogue_ids, refuse_no_number
from llama2_pl.evaluation.scoring import score_answers
from llama2_pl.files import write_json
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.modules.rejection_sampling import may_be_taken
from llama2_pl.text.chat import Dialog, Message, split_system
from llama2_pl.text.tags import strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer

# The adjectives are the paper's (§4.2.4), and so is the order of a targeted answer (§4.2.1); the wording is our choice.
ADJECTIVES = ("responsible", "respectful", "wise")
GENERAL = (
    "A {adjective} assistant speaks here. It gives no help with what could hurt anyone, and says so kindly.",
    "Think first what a {adjective} person would say to someone they want to keep from harm. Say that.",
    "Stay {adjective} whatever is asked: turn down what is dangerous or hateful, and offer a safe way instead.",
)
TARGETED = (
    "The next message was marked as risky, in the category: {category}. A {adjective} assistant answers it in three "
    "steps: first what is dangerous right now, then which risks there are, then where to learn more or find help.",
)
CATEGORY = "{category}"


class Preprompts(NamedTuple):
    """Safety preprompts; the targeted ones hold {category}, and are for prompts whose category is known."""

    general: tuple[str, ...]
    targeted: tuple[str, ...]

    def draw(self, row: PromptRow, rng: random.Random) -> str:
        """One for a prompt."""
        if row.category and self.targeted:
            return rng.choice(self.targeted).replace(CATEGORY, row.category.replace("_", " "))
        if not self.general:
            raise ValueError(
                f"preprompts: every line has {CATEGORY}, and prompt {row.id} has no category: add a line without it, "
                "or leave preprompts out"
            )
        return rng.choice(self.general)


class Sample(NamedTuple):
    """An answer, its linear safety score on the prompt without preprompt, and whether it may be fine-tuned on."""

    text: str
    score: float
    may_win: bool


def distill_safety(
    policy: str,
    safety_reward: str,
    tokenizer: str,
    prompts: str,
    out: str,
    preprompts: str | None = None,
    is_safety: bool | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    limit: int | None = None,
    seed: int = 0,
    hardware: Hardware = HARDWARE,
) -> None:
    """Write dialogues to fine-tune on: adversarial prompts, answered better under a safety preprompt, without it.

    Llama 2 §4.2.4. An answer is kept only if the safety reward model puts it above the original one, given without
    preprompt: elsewhere distillation makes answers vague (Fig. 16b). A summary is written beside the file. Both are
    replaced; a command that was killed makes them again whole.

    Args:
        policy: checkpoint of the model that answers.
        safety_reward: checkpoint of the safety reward model.
        tokenizer: tokenizer.model of both.
        prompts: file of prompts; those that are tagged `is_safety` are answered. A row's `category` names its risk in
            the preprompt.
        out: the jsonl to write, for the dialogue data module; the summary is beside it, with the suffix .summary.json.
        preprompts: text file of your own, one a line; those with {category} are for prompts that have one. Default:
            templates with three adjectives, drawn for each prompt.
        is_safety: true takes all prompts for adversarial, where the file cannot say it; default: what each row says.
        samples: answers with and without preprompt to each prompt; the best of either are compared (our choice: the
            best of several against a single one would win by luck). Both are drawn with the same random numbers.
        temperature: of the sampling.
        top_p: of the sampling.
        max_new_tokens: longest answer.
        limit: use only the first safety prompts.
        seed: of the preprompts drawn and of the sampling.
        hardware: device and precision.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: give the number of answers to each prompt, from 1")
    words, rng = Tokenizer(tokenizer), random.Random(f"preprompts {seed}")
    rows, texts = _safety_prompts(prompts, is_safety, limit), read_preprompts(preprompts)
    drawn = [(row, texts.draw(row, rng)) for row in rows]
    model = hardware.load(policy, words)
    judge = hardware.place(load_reward_model(safety_reward, tokenizer=words))
    asked = _that_fit(drawn, words, model, judge, max_new_tokens, prompts)
    plain = [row.prompt for row, _ in asked]
    guided = [with_preprompt(row.prompt, preprompt) for row, preprompt in asked]
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    how |= {"samples_per_prompt": samples, "seed": seed}
    originals, distilled = (_sample(model, judge, words, plain, given, **how) for given in (plain, guided))
    summary = summarize(originals, distilled) | {"too_long": len(drawn) - len(asked)}
    if not summary["kept"]:
        raise ValueError(f"{prompts}: {nothing(summary)}")
    write_jsonl(out, kept_dialogues(asked, originals, distilled))
    write_json(Path(out).with_suffix(".summary.json"), summary)
    print(f"{out}: {sentence(summary)}")


def read_preprompts(path: str | None) -> Preprompts:
    """Those of a file, one a line, or our own."""
    if path is None:
        made = [[text.replace("{adjective}", word) for word in ADJECTIVES] for text in (*GENERAL, *TARGETED)]
        lines = list(itertools.chain.from_iterable(made))
    else:
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: give a text file with a preprompt a line") from error
    if not any(lines):
        raise ValueError(f"{path}: no preprompt in it: write one a line, or leave preprompts out")
    return Preprompts(
        tuple(line for line in lines if line and CATEGORY not in line),
        tuple(line for line in lines if CATEGORY in line),
    )


def with_preprompt(prompt: Dialog, preprompt: str) -> Dialog:
    """A prompt with a preprompt as its system message, or before the one that it has."""
    system, turns = split_system(prompt)
    text = "\n\n".join([preprompt, *(message.content for message in system)])
    return Dialog((Message("system", text), *turns))


def best_of(samples: Sequence[Sample]) -> Sample:
    """The safest, the first of equals."""
    return max(samples, key=lambda sample: sample.score)


def better(originals: Sequence[Sample], distilled: Sequence[Sample]) -> Sample | None:
    """The safest distilled answer that ended by itself, if it scores above every original as that stands."""
    able = [sample for sample in distilled if sample.may_win]
    best = best_of(able) if able else None
    return best if best and best.score > best_of(originals).score else None


def kept_dialogues(
    asked: Sequence[tuple[PromptRow, str]],
    originals: Sequence[Sequence[Sample]],
    distilled: Sequence[Sequence[Sample]],
) -> Iterator[dict[str, Any]]:
    """Prompts and preprompts with their answers -> rows to fine-tune on, without preprompt; it is noted beside them."""
    for (row, preprompt), before, after in zip(asked, originals, distilled, strict=True):
        if best := better(before, after):
            scores = {"score": best.score, "original_score": best_of(before).score}
            made = scores | {"preprompt": preprompt, "category": row.category}
            yield dialog_to_row(row.prompt.then("assistant", best.text)) | made


def summarize(
    originals: Sequence[Sequence[Sample]], distilled: Sequence[Sequence[Sample]]
) -> dict[str, int | float | None]:
    """Counts, and mean scores before and after: of all prompts that have a distilled answer, and of those kept.

    Scores are linear, the best of a prompt's samples. "after" of all is before the filter.
    """
    pairs = []
    for before, after in zip(originals, distilled, strict=True):
        if able := [sample for sample in after if sample.may_win]:
            pairs.append((best_of(before).score, best_of(able).score))
    kept = [(before, after) for before, after in pairs if after > before]
    scores = {}
    for name, some in (("", pairs), ("kept_", kept)):
        for side, when in enumerate(("before", "after")):
            scores[f"{name}{when}"] = sum(pair[side] for pair in some) / len(some) if some else None
    counts = {"asked": len(originals), "unanswered": len(originals) - len(pairs), "kept": len(kept)}
    return counts | {"share_kept": len(kept) / len(originals)} | scores


def nothing(summary: dict[str, Any]) -> str:
    """A summary of no answer kept, and the way out."""
    return (
        "of {asked} prompts none has a safer answer with a preprompt ({unanswered} have none that ended by itself): "
        "raise samples or max_new_tokens, or give other preprompts"
    ).format(**summary)


def sentence(summary: dict[str, Any]) -> str:
    """A summary in words."""
    return (
        "kept {kept} of {asked} answers ({share_kept:.0%}); mean safety score {before:.2f} without and {after:.2f} "
        "with a preprompt, of those kept {kept_before:.2f} and {kept_after:.2f}; {unanswered} prompts have no answer "
        "that ended by itself, {too_long} were too long and left out"
    ).format(**summary)


def _safety_prompts(path: str, is_safety: bool | None, limit: int | None) -> list[PromptRow]:
    """The first prompts of a file that are tagged as adversarial."""
    rows = (row for row in read_prompts(path, is_safety=is_safety, categories=True) if row.is_safety)
    found = list(itertools.islice(rows, limit))
    if not found:
        raise ValueError(
            f'{path}: no safety prompt in it: tag adversarial rows with "is_safety": true, or give --is_safety true '
            "where all are"
        )
    return found


def _that_fit(
    drawn: Sequence[tuple[PromptRow, str]],
    tokenizer: Tokenizer,
    model: LanguageModel,
    judge: ScalarModel,
    max_new_tokens: int,
    path: str,
) -> list[tuple[PromptRow, str]]:
    """Those that leave the policy, with preprompt, and the judge, without, room for an answer."""
    answering, judging = (room_for_prompt(reader, max_new_tokens) for reader in (model, judge))
    kept = [
        (row, preprompt)
        for row, preprompt in drawn
        if fits(with_preprompt(row.prompt, preprompt), tokenizer, answering)
        and fits(row.prompt, tokenizer, judging)
    ]
    if not kept:
        raise ValueError(
            f"{path}: none of {len(drawn)} safety prompts has at most {answering} tokens with its preprompt and "
            f"{judging} without: give others, shorter preprompts, or lower max_new_tokens"
        )
    return kept


def _sample(
    model: LanguageModel,
    judge: ScalarModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Dialog],
    given: Sequence[Dialog],
    **how: Any,
) -> list[list[Sample]]:
    """Answers to each dialogue given, judged as answers to the prompt in its place."""
    said = answers(model, tokenizer, given, **how)
    each = len(said.texts) // len(given)
    asked = [prompt for prompt in prompts for _ in range(each)]
    texts = [strip_control_tags(text) for text in said.texts]
    ids = [dialogue_ids(prompt, text, tokenizer) for prompt, text in zip(asked, texts, strict=True)]
    scores = score_answers(judge, ids)
    refuse_no_number(scores, "the safety reward model", asked)
    found = [
        Sample(text, score, may_be_taken(text, ended))
        for text, score, ended in zip(texts, scores.tolist(), said.finished, strict=True)
    ]
    return [found[start : start + each] for start in range(0, len(found), each)]

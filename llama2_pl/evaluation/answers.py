"""Dialogues in, answers as text out: the loop of every evaluation that lets a model speak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from llama2_pl.generation.sampler import Rollout, generate, responses
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tokenizer import Tokenizer


def decode_responses(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The response of each row as text, without EOS and outer white space."""
    return [tokenizer.decode(ids).strip() for ids in responses(rollout)]


def room_for_prompt(model: LanguageModel | ScalarModel, max_new_tokens: int) -> int:
    """Most tokens of a prompt whose answer a reward model of the same context can read: a space and an EOS end it."""
    return model.config.max_seq_len - max_new_tokens - 2


def fits(dialog: Dialog, tokenizer: Tokenizer, room: int) -> bool:
    """Whether a prompt has at most `room` tokens."""
    return len(encode_prompt(dialog, tokenizer, tags="neutralise")) <= room


class Answers(NamedTuple):
    """Answers, dialogue-major: answer k of dialogue i is row i * samples_per_prompt + k.

    finished: whether each ended by itself, within max_new_tokens.
    """

    texts: list[str]
    finished: list[bool]


def answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    dialogs: Sequence[Dialog],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    samples_per_prompt: int = 1,
    seed: int = 0,
    max_batch: int | None = 256,
) -> Answers:
    """What a model says to each dialogue.

    Args:
        model: as for `generate`.
        tokenizer: the model's.
        dialogs: each ends with a user message.
        max_new_tokens: most tokens of an answer, EOS included.
        temperature: as for `generate`.
        top_p: as for `generate`.
        samples_per_prompt: answers to each dialogue.
        seed: of the sampling.
        max_batch: most answers decoded together; None: all.
    """
    prompts = [encode_prompt(dialog, tokenizer, tags="neutralise") for dialog in dialogs]
    generator = torch.Generator().manual_seed(seed)
    rollout = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_id=tokenizer.eos_id,
        temperature=temperature,
        top_p=top_p,
        samples_per_prompt=samples_per_prompt,
        generator=generator,
        max_batch=max_batch,
    )
    return Answers(decode_responses(rollout, tokenizer), rollout.finished.tolist())


def answer(model: LanguageModel, tokenizer: Tokenizer, dialogs: Sequence[Dialog], **how: Any) -> list[str]:
    """The texts of `answers` alone."""
    return answers(model, tokenizer, dialogs, **how).texts

"""The chat model as Ghost Attention asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llama2_pl.callbacks.gatt_build import Sample
from llama2_pl.evaluation.answers import decode_responses
from llama2_pl.generation.sampler import generate
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.chat import Dialog, encode_prompt
from llama2_pl.text.tags import strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer


class ChatSampling(NamedTuple):
    """How answers are sampled."""

    samples: int
    max_new_tokens: int
    temperature: float
    top_p: float
    max_batch: int


def chat_sampler(
    model: LanguageModel, tokenizer: Tokenizer, generator: torch.Generator, how: ChatSampling
) -> Sample:
    """Answers of the model, without control tags.

    An answer that does not end by itself, or is empty, is none to learn from, and so is left out (our choice); a
    dialogue without room for an answer gets none.
    """

    def sample(asked: Sequence[Dialog]) -> list[list[str]]:
        prompts = [encode_prompt(dialog, tokenizer, tags="neutralise") for dialog in asked]
        room = model.config.max_seq_len - how.max_new_tokens
        fitting = [i for i, ids in enumerate(prompts) if len(ids) <= room]
        answers: list[list[str]] = [[] for _ in asked]
        if not fitting:
            return answers
        rollout = generate(
            model,
            [prompts[i] for i in fitting],
            max_new_tokens=how.max_new_tokens,
            eos_id=tokenizer.eos_id,
            temperature=how.temperature,
            top_p=how.top_p,
            samples_per_prompt=how.samples,
            generator=generator,
            max_batch=how.max_batch,
        )
        texts = [strip_control_tags(text).strip() for text in decode_responses(rollout, tokenizer)]
        for row, (text, finished) in enumerate(zip(texts, rollout.finished.tolist(), strict=True)):
            if text and finished:
                answers[fitting[row // how.samples]].append(text)
        return answers

    return sample

"""Our language models in lm-evaluation-harness (the extra `benchmarks`): import it where that is known to be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance  # type: ignore[import-not-found]
from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-not-found]

from llama2_pl.evaluation.continuations import continuation_logprobs
from llama2_pl.generation.sampler import generate, responses
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.tokenizer import Tokenizer


class HarnessModel(TemplateLM):
    """A language model as lm-evaluation-harness asks it. Every text begins with BOS, as in pretraining.

    Args:
        model: on its device, in its type.
        tokenizer: the model's.
        max_tokens: about how many tokens are read together.
        max_batch: most texts that are continued together.
        max_new_tokens: longest continuation where a task does not say.
        seed: of the tasks that sample.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        max_tokens: int = 16384,
        max_batch: int = 64,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.words = tokenizer
        self.max_tokens = max_tokens
        self.max_batch = max_batch
        self.max_new_tokens = max_new_tokens
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        return self.words.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.words.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.words.encode(string, bos=add_special_tokens is not False)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        rows = [(context, continuation) for _, context, continuation in requests]
        return [*map(tuple, continuation_logprobs(self.model, rows, max_tokens=self.max_tokens))]  # type: ignore[arg-type]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the model's context that do not overlap."""
        windows = [
            [*map(make_disjoint_window, self._windows(self.words.encode(text)))]
            for (text,) in (request.args for request in requests)
        ]
        rows = [(context, continuation) for text in windows for context, continuation in text]
        found = iter(continuation_logprobs(self.model, rows, max_tokens=self.max_tokens))
        return [sum(next(found).logprob for _ in text) for text in windows]

    def _windows(self, ids: list[int]) -> Any:
        room = self.model.config.max_seq_len
        return get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=room, context_len=1)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop text; requests of one kind are sampled together."""
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        texts = [""] * len(requests)
        for numbers in kinds.values():
            contexts = [requests[number].args[0] for number in numbers]
            for number, text in zip(
                numbers, self._continue(contexts, requests[numbers[0]].args[1]), strict=True
            ):
                texts[number] = text
        return texts

    def _continue(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        longest = int(options.get("max_gen_toks", self.max_new_tokens))
        room = self.model.config.max_seq_len - longest
        if room < 1:
            raise ValueError(
                f"a task asks for {longest} new tokens and the model's max_seq_len is {room + longest}: give "
                "--max_new_tokens below it, or leave the task out"
            )
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        samples = options.get("do_sample", False)
        rollout = generate(
            self.model,
            prompts,
            max_new_tokens=longest,
            eos_id=self.words.eos_id,
            temperature=float(options.get("temperature", 1.0)) if samples else 0.0,
            top_p=float(options.get("top_p", 1.0)) if samples else 1.0,
            generator=torch.Generator().manual_seed(self.seed),
            max_batch=self.max_batch,
        )
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else until
        return [cut(self.words.decode(ids), stops) for ids in responses(rollout)]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=None)]

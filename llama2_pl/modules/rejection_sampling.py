"""Rejection sampling: K answers to each prompt, the best by the reward models. Llama 2 §3.2.3."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.data.batches import PromptBatch
from llama2_pl.files import write_text
from llama2_pl.generation.sampler import Rollout, generate, responses
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import is_sharded, largest_over_ranks, weights_fingerprint
from llama2_pl.modules.answer_files import (
    answered_prompts,
    prompt_key,
    read_rows,
    rows_of_run,
    run_key,
    write_batch,
)
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.policy import PolicyModule, Scored, seeded
from llama2_pl.text.tags import strip_control_tags

DONE, GOES_ON, ANSWERS = range(3)  # of a rank, in one step of predict


class RejectionSamplingModule(PolicyModule):
    """`trainer.predict` with this module writes K scored answers to every prompt; nothing is trained.

    Llama 2 §3.2.3: K is not stated; Fig. 26 uses 20, Fig. 7 and 8 explore 1 to 100. The best temperature for an
    RLHF model with 10 to 100 samples is 1.2 to 1.3, and moves with each version.
    One file per batch and rank, written whole or not at all: a killed run loses at most a batch, and the next run
    answers what is left, be it on another number of devices or with another batch size. Randomness depends on (seed,
    prompt, temperature) alone: batch size and restarts change nothing but the rounding of matrix products.

    Args:
        policy: checkpoint of the model that answers.
        helpfulness_reward: checkpoint of the helpfulness reward model.
        tokenizer: path of a SentencePiece tokenizer.model.
        out: folder of the result files.
        safety_reward: checkpoint of the safety reward model; None: helpfulness alone decides.
        samples_per_prompt: K, shared evenly by the temperatures.
        temperatures: of the samples.
        top_p: nucleus; 1 keeps every token.
        max_new_tokens: most tokens of an answer, EOS included.
        safety_threshold: below this safety score an answer counts as unsafe.
        scoring_batch: answers scored together.
        generation_batch: most answers that are sampled together; None: a batch's, of one temperature.
        seed: of all samples.
        policy_backbone: size of the policy; read from its file.
    """

    def __init__(
        self,
        policy: str,
        helpfulness_reward: str,
        tokenizer: str,
        out: str,
        safety_reward: str | None = None,
        samples_per_prompt: int = 20,
        temperatures: tuple[float, ...] = (1.2,),
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        safety_threshold: float = 0.15,
        scoring_batch: int = 64,
        generation_batch: int | None = None,
        seed: int = 0,
        policy_backbone: ModelConfig | None = None,
    ) -> None:
        super().__init__()
        if not temperatures or samples_per_prompt % len(temperatures):
            raise ValueError(
                f"samples_per_prompt is {samples_per_prompt} and there are {len(temperatures)} temperatures: "
                "give a multiple, so that each has as many samples"
            )
        self.save_hyperparameters(plain_arguments(locals()))

    def build_networks(self) -> None:
        if not self.attached:
            self.policy = self.fresh(LanguageModel, self.saved_config("policy_backbone"))
            return
        policy = load_language_model(self.hparams["policy"], tokenizer=self.tokenizer)
        self.remember_configs(policy_backbone=policy.config)
        self.policy = self.distributed(policy)

    def configure_optimizers(self) -> None:
        """Nothing is trained."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) -> the policy's logits (B, T, V)."""
        return self.policy(tokens)

    def on_predict_start(self) -> None:
        super().on_predict_start()
        assert self.rewards is not None
        networks = [self.policy, *(model for model in self.rewards if model is not None)]
        self._run_key = run_key(dict(self.hparams), [weights_fingerprint(network) for network in networks])
        folder = Path(self.hparams["out"])
        self._answered = answered_prompts(folder, self._run_key)
        if not self._answered and any(folder.glob("batch-*.json")):
            rank_zero_warn(
                f"{folder}: the answers there are of other settings or models, and are replaced as new ones are made"
            )

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per prompt: its index, its answers with their scores, and which is best."""
        number = batch_idx * self.data_ranks() + self.data_rank()
        path = Path(self.hparams["out"]) / f"batch-{number:06d}.json"
        keys = [prompt_key(*pair) for pair in zip(batch.index.tolist(), batch.prompts, strict=True)]
        found = {
            row["prompt"]: row
            for file in sorted({self._answered[key] for key in keys if key in self._answered})
            for row in rows_of_run(file, self._run_key)
        }
        missing = [n for n, key in enumerate(keys) if key not in found]
        self._go_along(ANSWERS if missing else GOES_ON)
        if missing:
            left = [batch.prompts[n] for n in missing], batch.is_safety[missing], batch.index[missing]
            rows = self.answer(PromptBatch(*left))
            found |= {keys[n]: {"prompt": keys[n], **row} for n, row in zip(missing, rows, strict=True)}
            # a file of the same name may hold prompts of another division into batches, or this index's old prompt
            index = set(batch.index.tolist())
            others = [row for row in rows_of_run(path, self._run_key) if row["index"] not in index]
            write_batch(path, self._run_key, [*(found[key] for key in keys), *others])
        return [found[key] for key in keys]

    def on_predict_epoch_end(self) -> None:
        """A rank that is done before the others goes along until they are."""
        while self._go_along(DONE):
            pass

    def _go_along(self, state: int) -> bool:
        """Whether a rank goes on. Each pass of a sharded network needs all ranks, also those with nothing to answer."""
        if not is_sharded(self.policy):
            return False
        busiest = largest_over_ranks(state, self.device)
        if state < busiest == ANSWERS:
            nothing = torch.zeros(1, dtype=torch.long, device=self.device)
            self.answer(PromptBatch([[self.eos_id]], nothing.bool(), nothing))
        return busiest > DONE

    def answer(self, batch: PromptBatch) -> list[dict[str, Any]]:
        """K answers to each prompt and their scores, as plain types."""
        hp, index = self.hparams, batch.index.tolist()
        each = hp["samples_per_prompt"] // len(hp["temperatures"])
        samples: list[list[dict[str, Any]]] = [[] for _ in index]
        for number, temperature in enumerate(hp["temperatures"]):
            rollout = self._sample(batch.prompts, temperature, [seeded(hp["seed"], i, number) for i in index])
            scored = self.score(rollout, batch.is_safety.repeat_interleave(each))
            for row, sample in enumerate(self._samples(rollout, scored, temperature)):
                samples[row // each].append(sample)
        return [
            {
                "index": i,
                "is_safety": is_safety,
                "messages": self._messages(i),
                "samples": answers,
                "best": best_sample(answers),
            }
            for i, is_safety, answers in zip(index, batch.is_safety.tolist(), samples, strict=True)
        ]

    def _sample(
        self, prompts: list[list[int]], temperature: float, generators: list[torch.Generator]
    ) -> Rollout:
        hp = self.hparams
        return generate(
            self.policy,
            prompts,
            max_new_tokens=hp["max_new_tokens"],
            eos_id=self.eos_id,
            temperature=temperature,
            top_p=hp["top_p"],
            samples_per_prompt=hp["samples_per_prompt"] // len(hp["temperatures"]),
            generator=generators,
            max_batch=hp["generation_batch"],
        )

    def _samples(self, rollout: Rollout, scored: Scored, temperature: float) -> list[dict[str, Any]]:
        assert self.tokenizer is not None
        columns = zip(
            responses(rollout),
            rollout.finished.tolist(),
            *(column.tolist() for column in scored),
            strict=True,
        )
        return [
            {
                "text": self.tokenizer.decode(ids).strip(),
                "ids": ids,
                "temperature": temperature,
                "finished": finished,
                "score": score,
                "helpfulness": helpfulness,
                "safety": None if math.isnan(safety) else safety,  # JSON has no NaN
                "from_safety": from_safety,
            }
            for ids, finished, score, helpfulness, safety, from_safety in columns
        ]

    def _messages(self, index: int) -> list[dict[str, str]] | None:
        """The prompt's dialogue, where the data module keeps one."""
        rows = getattr(getattr(self.trainer, "datamodule", None), "rows", None)
        return None if rows is None else [message._asdict() for message in rows[index].prompt.messages]


def best_sample(samples: list[dict[str, Any]]) -> int | None:
    """The finished sample with the highest score, the first of equals; None where none ended by itself.

    Our choice: an answer that was cut off may score well, but fine-tuning on it teaches to stop mid-sentence.
    """
    taken = [k for k, sample in enumerate(samples) if may_be_taken(sample["text"], sample["finished"])]
    return max(taken, key=lambda k: samples[k]["score"]) if taken else None


def may_be_taken(text: str, finished: bool) -> bool:
    """Whether an answer may be fine-tuned on: it ended by itself and says something besides control tags."""
    return finished and bool(strip_control_tags(text).strip())


def merge_winners(folder: str | list[str], out: str) -> int:
    """Write the best answer to each prompt as a dialogue to fine-tune on; how many there are.

    Llama 2 §3.2.3: from version 4 on, the winners of all earlier iterations are kept, against forgetting: give
    one folder per iteration. Control tags are cut from the answers: text of a model may not forge turns.

    Args:
        folder: where RejectionSamplingModule wrote its batch files; or several of them.
        out: the jsonl to write, one {"messages": [...]} a line, for the dialogue data module.
    """
    folders = [folder] if isinstance(folder, str) else folder
    dialogues = [_winning_dialogue(row, name) for name in folders for row in read_rows(name)]
    winners = [dialogue for dialogue in dialogues if dialogue is not None]
    write_text(out, "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in winners))
    without = len(dialogues) - len(winners)
    print(f"{out}: {len(winners)} winners; {without} prompts have no answer that ended by itself")
    return len(winners)


def _winning_dialogue(row: dict[str, Any], folder: str) -> dict[str, Any] | None:
    if row["best"] is None:
        return None
    if row["messages"] is None:
        raise ValueError(
            f"{folder}: prompt {row['index']} has no messages; predict with a data module whose `rows` hold them"
        )
    answer = strip_control_tags(row["samples"][row["best"]]["text"])
    return {"messages": [*row["messages"], {"role": "assistant", "content": answer}]}

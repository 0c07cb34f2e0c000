"""PromptDataModule: prompts to be answered, for rejection sampling, PPO and held-out generation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from llama2_pl.data.base import NumberedDataModule, require_at_least
from llama2_pl.data.batches import PromptBatch
from llama2_pl.data.cache import Files, describe_files, fingerprint
from llama2_pl.data.dialogues import opening, refuse_two_validation_sets
from llama2_pl.data.loader import BatchLoader
from llama2_pl.data.readers import PromptRow, read_prompts
from llama2_pl.data.sampling import RowStream, is_held_out
from llama2_pl.text.chat import encode_prompt, truncate_dialog
from llama2_pl.text.tags import TagPolicy
from llama2_pl.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptBatches:
    """Batches of prompts ``first``, ``first + 1``, ... in the order of a stream."""

    prompts: list[list[int]]
    is_safety: np.ndarray
    stream: RowStream
    first: int = 0
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        """Batches of this rank; one less where the last one has no prompt for it."""
        last = self.stream.total - (len(self.stream) - 1) * self.stream.batch_size
        return len(self.stream) - (self.rank >= last)

    def __getitem__(self, n: int) -> PromptBatch:
        index = self.first + self.stream.items(n)[self.rank :: self.world]
        return PromptBatch(
            [self.prompts[i] for i in index.tolist()],
            torch.from_numpy(self.is_safety[index]),
            torch.from_numpy(index),
        )


class PromptDataModule(NumberedDataModule):
    """Prompts for the model to answer.

    Llama 2 §3.2.3: 512 prompts per PPO iteration. Fit draws shuffled batches, epoch after epoch; predict gives every
    prompt that is not held out exactly once, in order.

    ``rows`` holds all prompts as they were encoded, training ones first, then validation ones;
    ``PromptBatch.index`` points into it.

    Args:
        prompts: path, folder of one format, glob, or list of them; formats of ``read_prompts``.
        tokenizer: path of a SentencePiece ``tokenizer.model``.
        batch_size: prompts per batch over all devices.
        num_batches: batches (PPO iterations) of the run; None: as many as see each prompt once.
        max_prompt_len: most tokens of a prompt. Longer ones lose their oldest turns, or are left out and counted.
            Our choice: 2048, half of Llama 2's context; give less for a model with a shorter one.
        val: files of held-out prompts.
        val_fraction: share of ``prompts`` held out instead, by a hash of the first user message.
        tags: what to do with a message that holds [INST] and the like: "refuse" or "neutralise".
        format: of all files; "auto" tells it from their keys.
        seed: of the order.
        num_workers: processes that prepare batches; batches do not depend on it.
    """

    def __init__(
        self,
        prompts: str | list[str],
        tokenizer: str,
        batch_size: int = 512,
        num_batches: int | None = None,
        max_prompt_len: int = 2048,
        val: str | list[str] | None = None,
        val_fraction: float = 0.0,
        tags: Literal["refuse", "neutralise"] = "refuse",
        format: str = "auto",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        # Not logged: Lightning raises when model and data have a hyper-parameter of one name and two values.
        self.save_hyperparameters(logger=False)
        require_at_least(1, num_batches=num_batches, max_prompt_len=max_prompt_len)
        refuse_two_validation_sets(val, val_fraction)
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.num_batches = num_batches
        self.max_prompt_len = max_prompt_len
        self.val = val
        self.val_fraction = val_fraction
        self.tags: TagPolicy = tags
        self.format = format
        self.seed = seed
        self.rows: list[PromptRow] = []
        self.dropped = 0
        self._encoded: list[list[int]] = []

    def setup(self, stage: str | None = None) -> None:
        """Read and encode all prompts; a few seconds for 100,000 of them, so nothing is cached."""
        if self.rows:
            return
        tokenizer = Tokenizer(self.tokenizer)
        self._tokenizer_sha256 = tokenizer.sha256
        rows = self._read(self.prompts, "data.prompts")
        held_out = [is_held_out(opening(row.prompt), self.val_fraction) for row in rows]
        train = [row for row, out in zip(rows, held_out, strict=True) if not out]
        val = [row for row, out in zip(rows, held_out, strict=True) if out]
        val += self._read(self.val, "data.val") if self.val else []
        kept, self._encoded = [], []
        for part in (train, val):
            self._num_train = len(kept)
            for row in part:
                self._keep(row, tokenizer, kept)
        if not self._num_train:
            raise ValueError(
                f"data.prompts: no prompt of at most {self.max_prompt_len} tokens in {self.prompts}"
            )
        if self.val and len(kept) == self._num_train:
            raise ValueError(f"data.val: no prompt of at most {self.max_prompt_len} tokens in {self.val}")
        self.rows = kept
        rank_zero_info(
            f"prompts: {self._num_train} to train on, {len(kept) - self._num_train} held out, {self.dropped} too long"
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self._encoded))

    def settings(self) -> dict[str, int | str]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "tokenizer": self._tokenizer_sha256,
            "prompts": fingerprint(self._encoded[: self._num_train]),
        }

    def paths(self) -> dict[str, Files]:
        return {"tokenizer": self.tokenizer, "prompts": self.prompts}

    def train_batches(self) -> PromptBatches:
        if self.num_batches is not None:
            total = self.num_batches * self.batch_size
        else:
            total = -(-self._num_train // self.batch_size) * self.batch_size
        return self._batches(RowStream(self._num_train, self.batch_size, total, self.seed))

    def val_dataloader(self) -> BatchLoader | list:
        """Every held-out prompt once; up to one less than there are ranks is left out so that all have as many."""
        world = self.ranks()[1]
        held_out = len(self.rows) - self._num_train
        total = held_out - held_out % world
        if not total:
            return []
        stream = RowStream(held_out, self.batch_size, total, shuffle=False)
        return self.eval_loader(replace(self._batches(stream), first=self._num_train))

    def predict_dataloader(self) -> BatchLoader | list:
        """Every prompt that is not held out, once, in order; rank r of W takes those at r, r + W, ... of each batch."""
        stream = RowStream(self._num_train, self.batch_size, self._num_train, shuffle=False)
        return self.eval_loader(self._batches(stream))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the two tensors; Lightning's own way would visit each id of each prompt."""
        return PromptBatch(batch.prompts, batch.is_safety.to(device), batch.index.to(device))

    def _batches(self, stream: RowStream) -> PromptBatches:
        is_safety = np.array([row.is_safety for row in self.rows])
        rank, world = self.ranks()
        return PromptBatches(self._encoded, is_safety, stream, rank=rank, world=world)

    def _read(self, files: Files, key: str) -> list[PromptRow]:
        return [
            row for path, *_ in describe_files(files, key) for row in read_prompts(str(path), self.format)
        ]

    def _keep(self, row: PromptRow, tokenizer: Tokenizer, kept: list[PromptRow]) -> None:
        """Encode a row and append it, without its oldest turns where it is too long."""
        try:
            ids = encode_prompt(row.prompt, tokenizer, tags=self.tags)
        except ValueError as error:
            raise ValueError(f"data.prompts: row {row.id!r}: {error}") from error
        if len(ids) > self.max_prompt_len:
            try:
                row = row._replace(
                    prompt=truncate_dialog(row.prompt, tokenizer, self.max_prompt_len, tags=self.tags)
                )
            except ValueError:  # even the last turn alone is too long
                self.dropped += 1
                return
            ids = encode_prompt(row.prompt, tokenizer, tags=self.tags)
        kept.append(row)
        self._encoded.append(ids)

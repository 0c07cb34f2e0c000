"""PreferenceDataModule: preference files to batches of chosen and rejected rows, in the paper's mixes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info

from llama2_pl.data.base import NumberedDataModule, require_at_least
from llama2_pl.data.cache import Files, as_paths, build_once, describe_files
from llama2_pl.data.dialogues import opening, refuse_two_validation_sets
from llama2_pl.data.loader import BatchLoader
from llama2_pl.data.pairs import (
    NO_BATCH,
    POOLS,
    UNRATED,
    PairBatches,
    PairFile,
    choose_pairs,
    encode_pairs,
    until,
)
from llama2_pl.data.readers import PreferenceRow, read_preferences
from llama2_pl.data.sampling import RowStream, is_held_out
from llama2_pl.data.unpadded import takes_trees
from llama2_pl.text.tokenizer import Tokenizer


class PreferenceDataModule(NumberedDataModule):
    """Reward-model data in the mixes of the two reward models.

    Llama 2 §3.2.2: 1 epoch, 512 pairs per batch. Helpfulness: all helpful pairs and as many of the rest, drawn
    uniformly. Safety: all safety pairs, and helpful ones for a tenth of the mix. Where there are too few of the
    second kind, all of them; ``mix_report``, printed when the data is set up, says which shares came of it.

    Contexts that make a row longer than ``max_len`` lose their oldest turns, the same in both rows of a pair; the
    answers stay whole. Pairs that still do not fit, and pairs of two equal texts, are left out and counted.

    Args:
        helpful: files of helpfulness pairs.
        safety: files of safety pairs; for ``kind="helpfulness"`` "the rest": open-source sets of either kind too. For
            ``kind="safety"`` open-source helpfulness belongs into ``helpful``.
        tokenizer: path of a SentencePiece ``tokenizer.model``.
        kind: "helpfulness", "safety", or "all" for everything as it is.
        val: files to validate on.
        val_fraction: share of all files held out instead, by a hash of the first user message.
        max_len: most tokens of a row.
        batch_size: pairs per micro-batch over all devices.
        epochs: passes over the mix, in one Lightning epoch.
        default_rating: of pairs without a rating. Our choice: 2, slightly better; open-source sets have no ratings,
            and the margin of a doubtful pair should be small and not zero.
        until_batch: train on the weekly batches up to this number, and on the pairs without one; None: on all.
        tags: what to do with a message that holds [INST] and the like: "refuse" or "neutralise".
        format: of all files; "auto" tells it from their keys.
        seed: of the draw and of all orders.
        cache_dir: where encoded pairs are kept.
        num_workers: processes that prepare batches; batches do not depend on it.
    """

    def __init__(
        self,
        tokenizer: str,
        helpful: str | list[str] | None = None,
        safety: str | list[str] | None = None,
        kind: Literal["helpfulness", "safety", "all"] = "helpfulness",
        val: str | list[str] | None = None,
        val_fraction: float = 0.0,
        max_len: int = 4096,
        batch_size: int = 512,
        epochs: int = 1,
        default_rating: int = 2,
        until_batch: int | None = None,
        tags: Literal["refuse", "neutralise"] = "refuse",
        format: str = "auto",
        seed: int = 0,
        cache_dir: str = ".cache/llama2_pl",
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        # Not logged: Lightning raises when model and data have a hyper-parameter of one name and two values.
        self.save_hyperparameters(logger=False)
        require_at_least(1, max_len=max_len, epochs=epochs, until_batch=until_batch)
        refuse_two_validation_sets(val, val_fraction)
        if default_rating not in range(4):
            raise ValueError(f"data.default_rating is {default_rating}: give 0 (significantly better) to 3")
        self.tokenizer = tokenizer
        self.files = (helpful, safety)
        self.kind: Literal["helpfulness", "safety", "all"] = kind
        self.val = val
        self.val_fraction = val_fraction
        self.max_len = max_len
        self.epochs = epochs
        self.default_rating = default_rating
        self.until_batch = until_batch
        self.tags: Literal["refuse", "neutralise"] = tags
        self.format = format
        self.seed = seed
        self.cache_dir = cache_dir
        self.sources: list[str] = []
        self.dropped: dict[str, int] = {}
        self._parts: dict[str, PairFile] = {}

    def prepare_data(self) -> None:
        """Encode the pairs unless the cache has them."""
        self._folders(Tokenizer(self.tokenizer))

    def setup(self, stage: str | None = None) -> None:
        if self._parts:
            return
        tokenizer = Tokenizer(self.tokenizer)
        self._tokenizer_sha256 = tokenizer.sha256
        folders = self._folders(tokenizer)
        parts = {part: PairFile.open(folder / "pairs") for part, folder in folders.items()}
        if self.val and not len(parts["val"].pool):
            raise ValueError(f"data.val: no usable pair in {self.val}")
        there = until(parts["train"].batch, self.until_batch)
        self._pairs = there[choose_pairs(parts["train"].pool[there], self.kind, self.seed)]
        notes = {part: json.loads((folder / "notes.json").read_text()) for part, folder in folders.items()}
        self.sources = list(dict.fromkeys(name for note in notes.values() for name in note["sources"]))
        self.dropped = dict(sum((Counter(note["dropped"]) for note in notes.values()), Counter()))
        self._parts = {
            part: pairs.with_sources(notes[part]["sources"], self.sources) for part, pairs in parts.items()
        }
        rank_zero_info(_told(self.mix_report()))

    def mix_report(self) -> dict[str, Any]:
        """Pairs of the mix by pool and by source and their realised shares, how many of them got the default rating,
        and what was left out of all files."""
        train = self._parts["train"]
        pools = Counter(POOLS[pool] for pool in train.pool[self._pairs])
        sources = Counter(self.sources[source] for source in train.source[self._pairs])
        return {
            "pairs": dict(pools),
            "shares": _shares(pools),
            "sources": dict(sources),
            "source_shares": _shares(sources),
            "unrated": int((train.rating[self._pairs] == UNRATED).sum()),
            "dropped": self.dropped,
        }

    def batch_numbers(self) -> list[int]:
        """Numbers of the weekly batches in all training files."""
        return np.unique(self._parts["train"].batch[self._parts["train"].batch > NO_BATCH]).tolist()

    @property
    def longest(self) -> int:
        """Tokens of the longest dialogue, of pairs to train on or held out."""
        return max(int(part.tokens.lengths.max(initial=0)) for part in self._parts.values())

    def settings(self) -> dict[str, int | str]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "max_len": self.max_len,
            "kind": self.kind,
            "until_batch": self.until_batch or 0,
            "tokenizer": self._tokenizer_sha256,
            "pairs": self._parts["train"].tokens.sha256,
        }

    def paths(self) -> dict[str, Files]:
        pairs = [path for files in self.files if files for path in as_paths(files)]
        return {"tokenizer": self.tokenizer, "pairs": pairs}

    def train_batches(self) -> PairBatches:
        total = self.epochs * len(self._pairs)
        return self._batches("train", self._pairs, total, self.default_rating, shuffle=True)

    def val_dataloader(self) -> BatchLoader | list:
        """Every held-out pair once, of all files and whatever ``kind`` is: ``source`` tells them apart. Those without a
        rating keep -1, to be counted under none.

        On several ranks up to one pair less than there are ranks is left out, so that all have equally many batches.
        """
        pairs = len(self._parts["val"].pool)
        if not pairs // self.ranks()[1]:
            return []
        return self.eval_loader(self._batches("val", np.arange(pairs), pairs, UNRATED, shuffle=False))

    def _batches(self, part: str, pairs: np.ndarray, total: int, unrated: int, shuffle: bool) -> PairBatches:
        rank, world = self.ranks()
        if total < world:
            raise ValueError(
                f"data has {total} pairs for {world} data-parallel ranks: use fewer devices or more pairs"
            )
        stream = RowStream(len(pairs), self.batch_size, total - total % world, self.seed, shuffle)
        trees = self.trainer is None or takes_trees(self.trainer.strategy.root_device)
        return PairBatches(self._parts[part], pairs, stream, unrated, rank, world, trees)

    def _folders(self, tokenizer: Tokenizer) -> dict[str, Path]:
        """Of each part, apart: the two reward models learn from the same files and validate on others."""
        train = [describe_files(f, f"data.{p}") if f else [] for f, p in zip(self.files, POOLS, strict=True)]
        val = [describe_files(self.val, "data.val")] if self.val else []
        return {
            "train": self._folder(tokenizer, train, False),
            "val": self._folder(tokenizer, val or train, not val),
        }

    def _folder(self, tokenizer: Tokenizer, pools: list[list], held_out: bool) -> Path:
        options = [tokenizer.sha256, self.format, self.tags, self.val_fraction, self.max_len]

        def build(folder: Path) -> None:
            rows = self._read(pools, held_out)
            notes = encode_pairs(rows, folder / "pairs", tokenizer, self.max_len, self.tags)
            (folder / "notes.json").write_text(json.dumps(notes._asdict()))

        return build_once(self.cache_dir, "preferences", [pools, held_out, options], build)

    def _read(self, pools: list[list], held_out: bool) -> Iterator[tuple[int, PreferenceRow]]:
        """(pool, row) of the files of each pool, of one side of the split."""
        for pool, files in enumerate(pools):
            for path, *_ in files:
                for row in read_preferences(path, self.format):
                    if is_held_out(opening(row.prompt), self.val_fraction) == held_out:
                        yield pool, row


def _told(mix: dict[str, Any]) -> str:
    """The mix in a line: what a run prints."""

    def counts(numbers: dict[str, int]) -> str:
        total = sum(numbers.values())
        return ", ".join(f"{count} {name} ({count / total:.1%})" for name, count in numbers.items())

    left_out = ", ".join(f"{count} {reason}" for reason, count in mix["dropped"].items())
    return (
        f"preference pairs: {counts(mix['pairs'])}; of {counts(mix['sources'])}; "
        f"{mix['unrated']} without a rating; left out: {left_out or 'none'}"
    )


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {name: round(count / counts.total(), 4) for name, count in counts.items()}

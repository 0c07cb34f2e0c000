"""Preference pairs: encoded once to a token file, chosen for a mix, drawn as batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from llama2_pl.data.batches import PreferenceBatch
from llama2_pl.data.collate import right_pad
from llama2_pl.data.readers import PreferenceRow
from llama2_pl.data.sampling import RowStream, permute
from llama2_pl.data.token_file import TokenFile, TokenFileWriter
from llama2_pl.data.unpadded import pack_pairs
from llama2_pl.text.chat import Dialog, encode_dialog, truncate_dialog
from llama2_pl.text.tags import TagPolicy
from llama2_pl.text.tokenizer import Tokenizer

Kind = Literal["helpfulness", "safety", "all"]
POOLS = ("helpful", "safety")
HELPFUL, SAFETY = 0, 1
UNRATED = -1
NO_BATCH = 0


class PairFile(NamedTuple):
    """Encoded pairs: documents 2i and 2i + 1 of ``tokens`` are the chosen and the rejected row of pair i."""

    tokens: TokenFile
    rating: np.ndarray
    """(pairs,) 0..3, -1 unrated."""
    is_safe: np.ndarray
    """(pairs, 2) float32 of chosen and rejected; nan unknown."""
    source: np.ndarray
    """(pairs,) index into the names of sources."""
    pool: np.ndarray
    """(pairs,) 0 from the helpful files, 1 from the safety files."""
    batch: np.ndarray
    """(pairs,) number of the weekly batch, from 1; 0 not known."""

    def with_sources(self, names: list[str], wanted: list[str]) -> PairFile:
        """The pairs with their sources as indices into the `wanted` names, which hold all of `names`."""
        numbers = np.array([wanted.index(name) for name in names], dtype=np.int32)
        return self._replace(source=numbers[self.source])

    @staticmethod
    def open(folder: Path) -> PairFile:
        tokens = TokenFile(folder)
        return PairFile(tokens, *(tokens.column(name) for name in PairFile._fields[1:]))


class Notes(NamedTuple):
    """What an encoded file holds besides its pairs."""

    sources: list[str]
    """Names, which `PairFile.source` counts."""
    dropped: dict[str, int]
    """Pairs that were left out, by the reason."""


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs; ``pairs`` are those that take part. The stream's total divides among the ranks:
    up to one pair less than there are ranks is left out at the end of the run."""

    file: PairFile
    pairs: np.ndarray
    stream: RowStream
    unrated: int
    """Rating of pairs that have none."""
    rank: int = 0
    world: int = 1
    trees: bool = True
    """Whether the two rows of a pair may share their prompt in `packing`; see llama2_pl.data.unpadded."""

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, n: int) -> PreferenceBatch:
        """N = up to batch_size / world pairs of this rank."""
        pairs = self.pairs[self.stream.items(n)][self.rank :: self.world]
        rows = [self.file.tokens.document(2 * pair + side) for side in (0, 1) for pair in pairs.tolist()]
        tokens, lengths = right_pad(rows)
        rating = self.file.rating[pairs].astype(np.int64)
        return PreferenceBatch(
            tokens,
            lengths,
            torch.from_numpy(np.where(rating == UNRATED, self.unrated, rating)),
            torch.from_numpy(self.file.is_safe[pairs].T.reshape(-1).astype(np.float32)),
            torch.from_numpy(self.file.source[pairs].astype(np.int64)),
            pack_pairs(tokens.numpy(), lengths.numpy(), self.trees),
        )


def encode_pairs(
    rows: Iterable[tuple[int, PreferenceRow]],
    folder: Path,
    tokenizer: Tokenizer,
    max_len: int,
    tags: TagPolicy,
) -> Notes:
    """Write (pool, row) pairs to a pair file."""
    writer = TokenFileWriter(folder, tokenizer.vocab_size, tokenizer.sha256)
    names: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    labels: list[tuple[int, tuple[float, float], int, int, int]] = []
    for pool, row in rows:
        try:
            encoded = encode_pair(row, tokenizer, max_len, tags)
        except ValueError as error:
            question = row.prompt.messages[-1].content
            raise ValueError(f"a pair of {row.source} ({question[:40]!r}): {error}") from error
        if isinstance(encoded, str):
            dropped[encoded] += 1
            continue
        writer.add(encoded[0])
        writer.add(encoded[1])
        rating = UNRATED if row.rating is None else row.rating
        safe = (_number(row.chosen_safe), _number(row.rejected_safe))
        source = names.setdefault(row.source, len(names))
        labels.append((rating, safe, source, pool, row.batch or NO_BATCH))
    rating, is_safe, source, pool, batch = zip(*labels, strict=True) if labels else ((), (), (), (), ())
    columns = {
        "rating": np.array(rating, dtype=np.int8),
        "is_safe": np.array(is_safe, dtype=np.float32).reshape(-1, 2),
        "source": np.array(source, dtype=np.int32),
        "pool": np.array(pool, dtype=np.int8),
        "batch": np.array(batch, dtype=np.int32),
    }
    writer.close(columns=columns)
    return Notes(list(names), dropped)


def encode_pair(
    row: PreferenceRow, tokenizer: Tokenizer, max_len: int, tags: TagPolicy
) -> tuple[list[int], list[int]] | str:
    """Ids of the chosen and of the rejected row, both at most ``max_len``; or why the pair is left out.

    Llama 2 §3.2.2: the input is the whole context with the response. Our choice for long ones: the oldest turns go,
    from both rows alike, so that the two still differ in the answer only.
    """

    def ids(prompt: Dialog, answer: str) -> list[int]:
        return encode_dialog(prompt.then("assistant", answer), tokenizer, tags=tags).tokens

    chosen, rejected = ids(row.prompt, row.chosen), ids(row.prompt, row.rejected)
    if chosen == rejected:
        return "identical answers"
    if max(len(chosen), len(rejected)) <= max_len:
        return chosen, rejected
    longer = row.chosen if len(chosen) > len(rejected) else row.rejected
    try:
        kept = truncate_dialog(row.prompt.then("assistant", longer), tokenizer, max_len, tags=tags)
    except ValueError:  # even the last turn alone is too long; the tags were accepted above
        return f"longer than max_len {max_len}"
    prompt = Dialog(kept.messages[:-1])
    return ids(prompt, row.chosen), ids(prompt, row.rejected)


def _number(label: bool | None) -> float:
    return float("nan") if label is None else float(label)


def until(batch: np.ndarray, last: int | None) -> np.ndarray:
    """(kept,) indices of the pairs of the weekly batches up to `last`, all of them where it is None.

    Llama 2 fig. 6: a reward model after each batch, on all data until then. Pairs without a number count as there
    from the start, as the open-source sets were (§3.2.2).
    """
    return np.arange(len(batch)) if last is None else np.flatnonzero(batch <= last)


def choose_pairs(pool: np.ndarray, kind: Kind, seed: int) -> np.ndarray:
    """(chosen,) indices of the pairs that take part in a mix, in file order.

    Llama 2 §3.2.2. Helpfulness: all helpful pairs and an equal number of the rest. Safety: all safety pairs and
    helpful ones at 90/10. Where there are too few of the second kind, as many as there are.
    """
    helpful, safety = np.flatnonzero(pool == HELPFUL), np.flatnonzero(pool == SAFETY)
    if kind == "all":
        return np.arange(len(pool))
    main, rest = (helpful, safety) if kind == "helpfulness" else (safety, helpful)
    if not len(main):
        option = "helpful" if kind == "helpfulness" else "safety"
        raise ValueError(
            f"data.kind is {kind!r} and there is no usable pair in data.{option}: give files with some"
        )
    wanted = len(main) if kind == "helpfulness" else round(len(main) / 9)
    drawn = rest[permute(np.arange(min(wanted, len(rest))), len(rest), seed)] if len(rest) else rest
    return np.sort(np.concatenate([main, drawn]))

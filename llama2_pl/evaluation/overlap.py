"""Which tokens of evaluation samples stand in training documents too, in matches of ten tokens and more (Llama 2 §A.6).

A match is a stretch of a sample and a stretch of a document, both of m tokens and compared place by place. Its first
ten tokens are equal and so is its last; of those between at most four differ. "Matched spans can differ in at most
four positions" is the paper's; that a token left out or put in is no mismatch of one follows, since all behind it is
then compared with its neighbour. A token that differs inside a match counts as contaminated, for it lies inside (our
choice; it is at most four of a match). So does a match of just L tokens: the paper says "longer than 10 tokens" of
its 10-grams, and names L a minimum (our choice; ask for 11 to be strict).

The paper has suffix arrays of the training set. Here the samples are indexed and training tokens go by once, in order:
every match begins with ten equal tokens, so whatever window of ten the index has not is passed over. The result is
the same, and memory holds the samples alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SEED = 10
"""Tokens at the start of a match that must be equal."""
BUDGET = 4
"""Mismatches of a match."""

_FACTOR = 0x9E3779B1  # odd, near 2**32 over the golden ratio
_ONE, _TWO, _FOUR = (np.uint32(_FACTOR**power % 2**32) for power in (1, 2, 4))
_AGAIN = np.uint32(0x85EBCA6B)  # another odd number: the hash of a hash
_CHUNK = 1 << 16  # windows hashed at a time: their arrays stay in the cache
_PAIRS = 1 << 13  # pairs of places compared at a time, for the same reason
_BITS = 33  # of the token before in a number with the key's; the two that follow are no token's
_NO_SAMPLE, _NO_DOCUMENT = 1 << 32, (1 << 32) + 1
_BLOCK = 16  # tokens by which matches are followed at a time


class OverlapIndex:
    """Evaluation samples, and the longest match with what was scanned that begins at each of their tokens.

    About 50 bytes a token of the samples. ``scan`` takes time for each token that goes by and, where ten tokens are
    found, for each place in the samples that has the same ten: boilerplate in all samples costs their number.

    Args:
        samples: ids of each, without BOS and EOS.
        budget: mismatches that a match may have.
        chunk: windows hashed at a time.
    """

    def __init__(self, samples: Sequence[Sequence[int]], budget: int = BUDGET, chunk: int = _CHUNK) -> None:
        if budget < 0:
            raise ValueError(f"budget is {budget}: give the mismatches that a match may have, from 0")
        self.budget, self.chunk = budget, chunk
        self.lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        arrays = [np.asarray(sample, dtype=np.uint32) for sample in samples]
        self.tokens = np.concatenate([*arrays, np.empty(0, np.uint32)])
        self.longest = np.zeros(len(self.tokens), dtype=np.int64)
        self._ends = np.repeat(self.offsets[1:], self.lengths)
        self._index(window_hashes(self.tokens))

    def _index(self, hashes: np.ndarray) -> None:
        """Places by the hash of the ten tokens there and the token before, and a Bloom filter of the hashes."""
        places = np.arange(len(hashes))
        places = places[places + SEED <= self._ends[: len(hashes)]]  # a window of two samples is none
        before = np.concatenate([[0], self.tokens[:-1]])
        before[self.offsets[:-1][self.lengths > 0]] = _NO_SAMPLE
        order = np.lexsort((before[places], hashes[places]))
        self._places = places[order]
        self._keys, firsts, number = np.unique(hashes[self._places], return_index=True, return_inverse=True)
        self._firsts = np.append(firsts, len(self._places))
        self._befores = (number << _BITS) + before[self._places]
        # 32 to 64 bits a hash, two of them set: one in 10 to 20 other windows passes the first, one in 200 both
        bits = min(32, max(10, (32 * len(self._keys)).bit_length()))
        self._shift = np.uint32(32 - bits)
        self._filter = np.zeros(1 << (bits - 3), dtype=np.uint8)
        for keys in (self._keys, self._keys * _AGAIN):
            bit = keys >> self._shift
            np.bitwise_or.at(self._filter, bit >> 3, np.left_shift(1, bit & 7).astype(np.uint8))

    def scan(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        """Take in documents: ids (N,), which may be mapped from a file, and offsets (documents + 1,) from 0 to N.

        No match reaches over the end of a document. A document must be whole in one call.
        """
        tokens, windows = np.asarray(tokens), len(tokens) - SEED + 1
        if not len(self._keys):
            return
        for start in range(0, windows, self.chunk):
            at, key = self._seeds(tokens, start, min(start + self.chunk, windows))
            document = np.searchsorted(offsets, at, side="right")
            starts, ends = offsets[document - 1], offsets[document]
            whole = at + SEED <= ends
            at, key, starts, ends = at[whole], key[whole], starts[whole], ends[whole]
            before = np.where(at > starts, tokens[at - 1].astype(np.int64), _NO_DOCUMENT)
            for which, places in self._pairs(key, before):
                self._compare(tokens, at[which], ends[which], places)

    def _seeds(self, tokens: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in [start, stop) whose ten tokens have a hash of the samples, and the number of that hash."""
        hashes = window_hashes(tokens[start : stop + SEED - 1])
        found = np.flatnonzero(self._passes(hashes))
        found = found[self._passes(hashes[found] * _AGAIN)]
        key = np.searchsorted(self._keys, hashes[found])
        same = self._keys[np.minimum(key, len(self._keys) - 1)] == hashes[found]
        return start + found[same], key[same]

    def _passes(self, hashes: np.ndarray) -> np.ndarray:
        bit = hashes >> self._shift
        return ((self._filter.take(bit >> 3) >> (bit & 7).astype(np.uint8)) & 1) != 0

    def _pairs(self, key: np.ndarray, before: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of seeds, each with every place in the samples that has its hash and another token before it.

        Where the tokens before are equal too, the match belongs to a longer one that begins there. So a long copy, or
        a row of dashes against another, costs what its first token does.
        """
        firsts, wanted = self._firsts[key], (key << _BITS) + before
        left = np.searchsorted(self._befores, wanted) - firsts
        gaps = np.searchsorted(self._befores, wanted, side="right") - firsts - left
        counts = self._firsts[key + 1] - firsts - gaps
        totals = np.cumsum(counts)
        first, done = 0, 0
        while first < len(key):
            last = max(first + 1, int(np.searchsorted(totals, done + _PAIRS, side="right")))
            which = np.repeat(np.arange(first, last), counts[first:last])
            within = done + np.arange(len(which)) - (totals - counts)[which]
            yield which, self._places[firsts[which] + within + gaps[which] * (within >= left[which])]
            first, done = last, int(totals[last - 1])

    def _compare(self, tokens: np.ndarray, at: np.ndarray, ends: np.ndarray, places: np.ndarray) -> None:
        """Note the longest match from each pair of a place in the documents and a place in the samples."""
        grows = places + self.longest[places] < self._ends[places]
        at, ends, places = at[grows], ends[grows], places[grows]
        limits = np.minimum(ends - at, self._ends[places] - places)
        lengths = match_lengths(tokens, at, self.tokens, places, limits, self.budget)
        np.maximum.at(self.longest, places, lengths)

    def contaminated(self, min_length: int) -> np.ndarray:
        """(samples,) int64 tokens that lie inside a match of at least so many tokens.

        Shorter matches that begin where a longer one does lie inside it, so the longest at each token say it all.
        """
        if min_length < SEED:
            raise ValueError(
                f"min_length is {min_length}: a match begins with {SEED} equal tokens, so from {SEED}"
            )
        places = np.flatnonzero(self.longest >= min_length)
        steps = np.zeros(len(self.tokens) + 1, dtype=np.int64)
        steps[places] += 1
        np.add.at(steps, places + self.longest[places], -1)
        covered = np.concatenate([[0], np.cumsum(np.cumsum(steps)[:-1] > 0)])
        return covered[self.offsets[1:]] - covered[self.offsets[:-1]]


def window_hashes(tokens: np.ndarray) -> np.ndarray:
    """ids (N,) -> (N - 9,) uint32, a polynomial modulo 2**32 of each ten; empty where there are fewer."""
    if len(tokens) < SEED:
        return np.empty(0, dtype=np.uint32)
    one = tokens.astype(np.uint32)
    two = one[:-1] * _ONE + one[1:]
    four = two[:-2] * _TWO + two[2:]
    eight = four[:-4] * _FOUR + four[4:]
    return eight[:-2] * _TWO + two[8:]


def match_lengths(
    tokens: np.ndarray,
    at: np.ndarray,
    others: np.ndarray,
    places: np.ndarray,
    limits: np.ndarray,
    budget: int,
) -> np.ndarray:
    """(P,) tokens of the longest match of `tokens` from `at` and `others` from `places`, 0 where there is none.

    Its first ten are equal, it ends at an equal token, and has at most ``budget`` others and no more tokens than
    ``limits``, each of which is at least ten.
    """
    lengths, spent, done = np.zeros(len(at), dtype=np.int64), np.zeros((len(at), 1), dtype=np.int32), 0
    left = np.arange(len(at))
    while len(left):
        span = done + np.arange(_BLOCK)
        inside = span < limits[left, None]
        clipped = np.minimum(span, limits[left, None] - 1)
        same = tokens[at[left, None] + clipped] == others[places[left, None] + clipped]
        wrong = spent[left] + np.cumsum(inside & ~same, axis=1, dtype=np.int32)
        if not done:
            wrong[wrong[:, SEED - 1] > 0] = budget + 1
        ends = inside & same & (wrong <= budget)
        last = done + _BLOCK - np.argmax(ends[:, ::-1], axis=1)
        lengths[left] = np.where(ends.any(1), last, lengths[left])
        spent[left] = wrong[:, -1:]
        done += _BLOCK
        left = left[(wrong[:, -1] <= budget) & (limits[left] > done)]
    return lengths

"""Lines and documents that stand in the corpus already; the first in reading order stays."""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import BinaryIO, Literal

import numpy as np

from llama2_pl.data.cleaning.rules import keep_lines
from llama2_pl.data.sampling import mix64

BANDS = 14
RECALL = 0.99  # of pairs at the threshold that are to meet in at least one band
DEPTH = 16  # documents of one bucket that are compared, the newest: growth stays linear where all are alike
_U64 = np.uint64


@dataclass(frozen=True)
class DuplicateRules:
    """What counts as the same again. false, null and an empty list are off.

    Args:
        documents: take documents that are equal but for white space. No case and no punctuation is folded, our choice:
            "3 + 4" is not "3 - 4".
        near: take documents whose sets of word n-grams have this Jaccard similarity or more with those of one before.
            Our choice, 0.8; Llama 1 took books that overlap by 90 %, which is 0.9.
        words: n of the n-grams. Our choice, 5: shorter ones are shared by texts on one subject.
        lines: kinds of sources whose lines are taken where they stand earlier in the corpus, in such a source, as CCNet
            does with Common Crawl: lower case, digits as 0, without punctuation. Not in text and code, where verses,
            formulas and `return None` come again and mean something.
    """

    documents: bool = True
    near: float | None = 0.8
    words: int = 5
    lines: list[Literal["text", "web", "code"]] = field(default_factory=lambda: ["web"])

    def __post_init__(self) -> None:
        if self.near is not None and not 0 < self.near <= 1:
            raise ValueError(f"duplicates.near is {self.near}: give a similarity above 0, up to 1, or null")
        if self.words < 1:
            raise ValueError(f"duplicates.words is {self.words}: give 1 or more")


class SameDocuments:
    """Takes documents that are equal to one before, but for white space.

    Memory: about 150 bytes a document (a hash of 128 bits: two texts that share one are not to be met).
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, text: str) -> str | None:
        key = blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        if key in self._seen:
            return None
        self._seen.add(key)
        return text


_NO_WORD = re.compile(r"[\W_]+")
_DIGIT = re.compile(r"\d")


def folded_line(line: str) -> str:
    """Lower case, digits as 0, without punctuation and white space: CCNet's normal form of a line."""
    return _DIGIT.sub("0", _NO_WORD.sub("", line.lower()))


class SameLines:
    """Takes lines whose normal form stood before, in the same document too. Lines of punctuation alone stay.

    Memory: up to 140 bytes a line that stays (a hash of 64 bits: in 10^8 lines one is lost to chance with a
    probability of 0.0003).
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, text: str) -> str:
        return keep_lines(text, self._is_new)

    def _is_new(self, line: str) -> bool:
        folded = folded_line(line)
        if not folded:
            return True
        key = int.from_bytes(blake2b(folded.encode(), digest_size=8).digest(), "little")
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


# A word, a character of Chinese or Japanese (which have no spaces), or a sign that changes what a formula says.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+|[-+*/=<>%^&|~$#@\\]")


def shingles(text: str, words: int) -> np.ndarray:
    """(n,) uint32, sorted: hashes of the distinct n-grams of a text's words, lower case; of none if it has fewer."""
    tokens = _TOKEN.findall(text.lower())
    count = len(tokens) - words + 1
    if count < 1:
        return np.empty(0, dtype=np.uint32)
    numbers = {token: zlib.crc32(token.encode()) for token in set(tokens)}
    ids = np.fromiter(map(numbers.__getitem__, tokens), dtype=_U64, count=len(tokens))
    grams = (mix64(*(ids[start : start + count] for start in range(words))) >> _U64(32)).astype(np.uint32)
    grams.sort()
    return grams[np.diff(grams, prepend=~grams[:1]) != 0]


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared elements over all elements of two sorted sets."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def minhash(elements: np.ndarray, size: int) -> np.ndarray:
    """(n,) uint32 -> (size,) uint64: the least element under each of as many random orders.

    Broder 1997: two sets have the same least element with the probability of their Jaccard similarity. An order is a
    multiply-shift hash with two numbers of 64 bits, which is pairwise independent.
    """
    factors, offsets = mix64(np.arange(2 * size) + 1).reshape(2, size, 1)
    least = np.full(size, np.iinfo(np.uint64).max, dtype=_U64)
    for start in range(0, len(elements), 2048):  # so many that the products stay in the cache
        part = elements[start : start + 2048].astype(_U64)
        np.minimum(least, ((part * factors + offsets) >> _U64(32)).min(axis=1), out=least)
    return least


def rows_of_band(threshold: float, bands: int = BANDS, recall: float = RECALL) -> int:
    """The most minima to a band at which a pair at the threshold shares some band with a probability of ``recall``.

    A pair of similarity s shares at least one of b bands of r with 1 - (1 - s^r)^b.
    """
    needed = 1 - (1 - recall) ** (1 / bands)
    return max(1, min(16, int(math.log(needed) / math.log(threshold)))) if threshold < 1 else 16


class NearDuplicates:
    """Takes documents whose word n-grams are like those of one before; those that stay are remembered.

    MinHash with bands finds candidates, and the exact Jaccard similarity decides, from the n-grams kept in a file, so
    that no document is lost to hashes alone. One at the threshold is missed with a probability of a hundredth, and
    where more than DEPTH documents share each of its bands the newest of them alone are compared.

    Memory: about 1.6 KB a document that stays; the file takes 4 bytes a distinct n-gram, about the size of the text.
    """

    def __init__(self, file: BinaryIO, threshold: float, words: int) -> None:
        self._file, self._threshold, self._words = file, threshold, words
        self._rows = rows_of_band(threshold)
        self._newest: dict[int, int] = {}  # hash of a band -> its entry below
        self._before = array("l")  # entry (document * BANDS + band) -> the entry before in its bucket, or -1
        self._ends = array("q", [0])  # where a document's n-grams end in the file

    def __call__(self, text: str) -> str | None:
        grams = shingles(text, self._words)
        if not len(grams):
            return text
        keys = self._keys(grams)
        if any(self._is_near(grams, document) for document in self._candidates(keys)):
            return None
        self._remember(grams, keys)
        return text

    def _keys(self, grams: np.ndarray) -> list[int]:
        least = minhash(grams, BANDS * self._rows).reshape(BANDS, self._rows)
        return mix64(np.arange(BANDS), *least.T).tolist()

    def _candidates(self, keys: list[int]) -> Iterator[int]:
        """Documents that share a band, those that share most first, the oldest of equals."""
        shared: Counter[int] = Counter()
        for key in keys:
            entry, depth = self._newest.get(key, -1), 0
            while entry >= 0 and depth < DEPTH:
                shared[entry // BANDS] += 1
                entry, depth = self._before[entry], depth + 1
        for document, _ in sorted(shared.items(), key=lambda found: (-found[1], found[0])):
            yield document

    def _is_near(self, grams: np.ndarray, document: int) -> bool:
        start, end = self._ends[document], self._ends[document + 1]
        count = (end - start) // 4
        # the smaller over the larger is the most that the similarity can be
        if min(count, len(grams)) < self._threshold * max(count, len(grams)):
            return False
        self._file.seek(start)
        other = np.frombuffer(self._file.read(end - start), dtype=np.uint32)
        return jaccard(grams, other) >= self._threshold

    def _remember(self, grams: np.ndarray, keys: list[int]) -> None:
        first = len(self._before)
        for band, key in enumerate(keys):
            self._before.append(self._newest.get(key, -1))
            self._newest[key] = first + band
        self._file.seek(self._ends[-1])
        self._file.write(grams.tobytes())
        self._ends.append(self._ends[-1] + grams.nbytes)

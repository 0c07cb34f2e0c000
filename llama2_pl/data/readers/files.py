"""Files to lines, JSON rows and CSV rows, bounded in size."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from llama2_pl.data.readers.common import Limits, Raw, Reading

_BOM = b"\xef\xbb\xbf"
# Packed in a way that is not read, by its first bytes. bzip2's are text too, but for the ten of its first block.
_PACKED = (
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    *((b"BZh%d1AY&SY" % level, "bzip2") for level in range(1, 10)),
)
# A JSON escape that may stand for NUL or for half a surrogate pair; only lines with one are looked through.
_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BAD_CHARACTER = re.compile("[\0\ud800-\udfff]")


@contextlib.contextmanager
def open_bounded(path: Path, limits: Limits) -> Iterator[BinaryIO]:
    """A file open for reading, gunzipped where its first bytes say gzip, with the limits on size and ratio.

    gzip alone is unpacked: our choice, its memory is bounded by its format, that of xz and zstandard by the file.
    Any error of the file itself becomes one ValueError with its name.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(10)
        zipped = start.startswith(b"\x1f\x8b")
        file.seek(0)
        if packed := next((kind for magic, kind in _PACKED if start.startswith(magic)), None):
            raise ValueError(f"{path}: {packed} is not read; unpack it, or pack it with gzip")
        source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file
        try:
            yield cast(BinaryIO, io.BufferedReader(_Bounded(source, file, str(path), limits), 2**16))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: broken gzip file ({error}); fetch it again") from error


class _Bounded(io.RawIOBase):
    """A reader that refuses to give more than the limits allow."""

    def __init__(self, source: BinaryIO, file: BinaryIO, name: str, limits: Limits) -> None:
        self._source, self._file, self._name, self._limits = source, file, name, limits
        self._total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self._total += len(data)
        check_ratio(self._total, self._file.tell(), self._name, self._limits)
        return len(data)


def check_ratio(unpacked: int, packed: int, name: str, limits: Limits) -> None:
    """Raise ValueError where so many bytes come out of so many that the file looks like a decompression bomb."""
    # The first MiB is free: the read-ahead of a small file says nothing about its ratio.
    if unpacked > min(2**20 + limits.max_ratio * packed, limits.max_total_bytes):
        raise ValueError(
            f"{name}: {unpacked} bytes out of {packed} read, more than max_ratio {limits.max_ratio:g} or "
            f"max_total_bytes {limits.max_total_bytes} allow; raise the limit if the file is to be trusted"
        )


def read_bytes(path: Path, how: Reading, max_bytes: int) -> bytes:
    """The whole file, or ValueError where it is larger than ``max_bytes``."""
    with open_bounded(path, how.limits) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{how.name}: larger than the {max_bytes} bytes that a file read at once may have")
    return content


def text_lines(path: Path, how: Reading, encoding: str = "utf-8") -> Iterator[Raw]:
    """Each line as text without its line end, with its number; a leading BOM goes, CRLF counts as LF."""
    with open_bounded(path, how.limits) as file:
        number = 0
        while line := file.readline(how.limits.max_line_bytes + 1):
            number += 1
            if number == 1 and line.startswith(_BOM):
                line = line[len(_BOM) :]
                how.report.repaired["byte order mark"] += 1
            yield _line(line, number, file, how, encoding)


def _line(line: bytes, number: int, file: BinaryIO, how: Reading, encoding: str) -> Raw:
    limit = how.limits.max_line_bytes
    if len(line) > limit and not line.endswith(b"\n"):
        while (rest := file.readline(2**16)) and not rest.endswith(b"\n"):
            pass
        return Raw(
            number,
            problem=f"the line is longer than {limit} bytes (max_line_bytes); split it or raise the limit",
        )
    if line.endswith(b"\r\n"):
        how.report.repaired["CRLF line end"] += 1
    try:
        text = line.rstrip(b"\r\n").decode(encoding)
    except UnicodeDecodeError as error:
        return Raw(number, problem=decode_problem(error))
    return Raw(number, text, text_problem(text))


def text_problem(text: str) -> str | None:
    """NUL, which C libraries end a string at."""
    return f"NUL (U+0000) at character {text.index(chr(0))}; remove it" if "\0" in text else None


def decode_problem(error: UnicodeDecodeError) -> str:
    """What is wrong with the bytes, and the way out."""
    return (
        f"byte 0x{error.object[error.start]:02X} at offset {error.start} is not {error.encoding}; "
        'convert the file to UTF-8, or pass its encoding where the reader takes one (such as "latin-1")'
    )


def csv_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """The column names of a CSV file, then a mapping a row; a cell that a short row lacks is None.

    The line is that on which a row ends, since quoted cells span lines.
    """
    reader = csv.DictReader(_csv_lines(path, how), strict=True)
    try:
        yield Raw(1, list(reader.fieldnames or []))
        for row in reader:
            yield Raw(reader.line_num, row)
    except csv.Error as error:
        raise ValueError(f"{how.name}:{reader.line_num}: not CSV: {error}") from error


def _csv_lines(path: Path, how: Reading) -> Iterator[str]:
    """Bounded lines; a broken one stops even lenient reading, since a quote in it may open or close a cell."""
    for raw in text_lines(path, how):
        if raw.problem is not None:
            raise ValueError(f"{how.name}:{raw.line}: {raw.problem}")
        yield f"{raw.value}\n"


def json_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """The rows of a JSON array or of a JSON-lines file, plain or gzipped; which of the two is seen by its start."""
    with open_bounded(path, how.limits) as file:
        start = file.read(256).removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        yield from _array_rows(path, how)
    else:
        yield from _line_rows(path, how)


def _line_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """JSON lines. An empty line is malformed unless nothing follows it."""
    empty: list[int] = []
    for raw in text_lines(path, how):
        if raw.problem is None and not raw.value.strip():
            empty.append(raw.line)
            continue
        yield from (Raw(line, problem="the line is empty; remove it") for line in empty)
        empty.clear()
        yield raw if raw.problem is not None else Raw(raw.line, *_loads(raw.value))


def _array_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """The items of a JSON array, each with the line it starts on."""
    content = read_bytes(path, how, how.limits.max_array_bytes)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{how.name}:{line}: {decode_problem(error)}") from error
    at, seen, line = _skip_blank(text, text.index("[") + 1), 0, 1
    while at < len(text) and text[at] != "]":
        line += text.count("\n", seen, at)
        seen = at
        value, problem, at = _load_item(text, at, f"{how.name}:{line}")
        yield Raw(line, value, problem)
        at = _skip_blank(text, at)
        if text[at : at + 1] == ",":
            at = _skip_blank(text, at + 1)
        elif text[at : at + 1] != "]":
            raise ValueError(
                f"{how.name}:{line}: after this item of the array stands {text[at : at + 20]!r}, not , or ]"
            )
    if at >= len(text):
        raise ValueError(f"{how.name}: the JSON array does not end; the file is cut short")


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _load_item(text: str, at: int, where: str) -> tuple[Any, str | None, int]:
    constants: list[str] = []
    try:
        value, end = json.JSONDecoder(parse_constant=constants.append).raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this item of the array is not JSON: {error}") from error
    return value, _value_problem(value, text[at:end], constants), end


def _loads(text: str) -> tuple[Any, str | None]:
    """(value, what is wrong with it)."""
    constants: list[str] = []
    try:
        value = json.loads(text, parse_constant=constants.append)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error} in {text[:40]!r}"
    return value, _value_problem(value, text, constants)


def _value_problem(value: Any, text: str, constants: list[str]) -> str | None:
    """NaN and infinities (which JSON does not have), NUL, and lone surrogates."""
    if constants:
        return f"{constants[0]} is not a JSON number; leave the key out or write null"
    if not _SUSPECT_ESCAPE.search(text):
        return None
    for string in _strings(value):
        found = _BAD_CHARACTER.search(string)
        if found:
            return f"the string {string[:40]!r} holds U+{ord(found.group()):04X}, which no text may hold; repair it"
    return None


def _strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included. Not recursive: a value may nest deeper than Python calls may."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item

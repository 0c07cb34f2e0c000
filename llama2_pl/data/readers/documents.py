"""Corpus files in the wild to documents. Llama 2 §2.1; the sources are Llama 1's, §2.1."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.data.readers import archives
from llama2_pl.data.readers.common import (
    DEFAULT_LIMITS,
    Limits,
    MalformedRow,
    Raw,
    Reading,
    ReadReport,
    UnusableRow,
    filled,
    mapping,
    parse_rows,
    string,
)
from llama2_pl.data.readers.files import decode_problem, json_rows, open_bounded, text_problem
from llama2_pl.data.readers.markup import strip_front_matter, strip_gutenberg, strip_latex

# fmt: off
_CODE_SUFFIXES = frozenset({
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".js", ".jsx", ".ts",
    ".tsx", ".sh", ".rb", ".php", ".lua", ".jl", ".r", ".scala", ".swift", ".pl", ".sql", ".css", ".toml", ".yaml",
    ".yml", ".cfg", ".ini", ".cmake", ".mk",
})
# fmt: on
_TEXT_SUFFIXES = frozenset({".txt", ".text", ".rst"})
_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
_JSON_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson"})


class Document(NamedTuple):
    """One text of a corpus and where it stands: its line, or its number in the file."""

    text: str
    source_file: str
    line_or_index: int


def read_documents(
    path_or_glob: str | Path,
    format: str = "auto",
    *,
    encoding: str = "utf-8",
    text_key: str = "text",
    strict: bool = True,
    report: ReadReport | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Document]:
    """Documents of a file, of every file that a glob matches, or of every known file under a folder.

    Llama 1 §2.1. Files come in sorted order; links are not followed out of a folder, hidden files are left out.

    Args:
        path_or_glob: a file, a folder or a pattern such as "corpus/**/*.jsonl.gz".
        format: one of ``DOCUMENT_FORMATS``; "auto" tells it from the name and the first bytes of each file.
        encoding: of text files; UTF-8 unless said otherwise (Gutenberg books fall back to Latin-1 by themselves).
        text_key: key or column of JSON and parquet rows.
        strict: stop at a malformed row or file, or skip and count it.
        report: counts are added to it.
        limits: on size and on the share of malformed rows.
    """
    if format != "auto" and format not in DOCUMENT_FORMATS:
        raise ValueError(f"format {format!r}: choose auto or one of {', '.join(DOCUMENT_FORMATS)}")
    how = Reading(str(path_or_glob), strict, limits, report if report is not None else ReadReport())
    base = _Settings(Path(), how, encoding, text_key)
    return _read_files(_files(str(path_or_glob), format, how), format, base)


class _Settings(NamedTuple):
    path: Path
    how: Reading
    encoding: str
    text_key: str


def _read_files(files: list[Path], format: str, base: _Settings) -> Iterator[Document]:
    for path in files:
        kind = tell_format(path, base.how.limits) if format == "auto" else format
        yield from DOCUMENT_FORMATS[kind](base._replace(path=path, how=base.how.named(str(path))))


def _files(path_or_glob: str, format: str, how: Reading) -> list[Path]:
    path = Path(path_or_glob)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(_walk(path))
        known = [file for file in found if format != "auto" or _known_suffix(file)]
        if len(known) < len(found):
            how.report.unusable["file of an unknown kind"] += len(found) - len(known)
    else:
        known = sorted(Path(name) for name in glob.glob(path_or_glob, recursive=True) if os.path.isfile(name))
    if not known:
        raise ValueError(
            f"{path_or_glob}: no file to read; give a file, a folder or a pattern that matches some"
        )
    return known


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(root) / name
            if not name.startswith(".") and file.is_file() and not file.is_symlink():
                yield file


def _plain_suffix(path: Path) -> str:
    """The suffix without .gz: ".json" of "000.json.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def _known_suffix(path: Path) -> bool:
    known = _CODE_SUFFIXES | _TEXT_SUFFIXES | _MARKDOWN_SUFFIXES | _JSON_SUFFIXES
    # No suffix: WikiExtractor's wiki_00, and plain text.
    return _plain_suffix(path) in known | {"", ".tex", ".xml", ".tar", ".tgz", ".parquet"}


def tell_format(path: Path, limits: Limits) -> str:
    """The format that a file's name and first bytes tell."""
    suffix = _plain_suffix(path)
    by_suffix = {".parquet": "parquet", ".tar": "tar", ".tgz": "tar", ".tex": "latex"}
    if suffix in by_suffix:
        return by_suffix[suffix]
    for kind, suffixes in (
        ("json", _JSON_SUFFIXES),
        ("code", _CODE_SUFFIXES),
        ("markdown", _MARKDOWN_SUFFIXES),
    ):
        if suffix in suffixes:
            return kind
    with open_bounded(path, limits) as file:
        start = file.read(4096)
    if b"<posts>" in start:
        return "stackexchange"
    if start.lstrip().startswith(b"<doc "):
        return "wikiextractor"
    return "gutenberg" if b"START OF TH" in start and b"PROJECT GUTENBERG" in start else "text"


def _whole_file(settings: _Settings, clean: Callable[[str], str] = str) -> Iterator[Document]:
    """A file that is one document."""
    path, how = settings.path, settings.how
    limit = how.limits.max_document_bytes

    def parse(raw: Raw) -> list[Document]:
        return [Document(filled(clean(raw.value), "document"), str(path), 0)]

    with open_bounded(path, how.limits) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raws = [Raw(1, problem=f"larger than {limit} bytes (max_document_bytes)")]
    else:
        raws = [decoded(content, settings.encoding, 1)]
    return parse_rows(raws, parse, how)


def decoded(content: bytes, encoding: str, line: int) -> Raw:
    """Bytes of a text file as text with "\\n" line ends and without BOM, or what is wrong with them and where."""
    try:
        text = content.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        return Raw(line + content.count(b"\n", 0, error.start), problem=decode_problem(error))
    return Raw(line, text, text_problem(text))


def _gutenberg(settings: _Settings) -> Iterator[Document]:
    """Books declare UTF-8, ASCII or ISO-8859-1; what is not UTF-8 is read as the latter."""
    with open_bounded(settings.path, settings.how.limits) as file:
        content = file.read(settings.how.limits.max_document_bytes)
    raw = decoded(content, "utf-8", 1)
    if raw.value is None:
        settings = settings._replace(encoding="latin-1")
    return _whole_file(settings, strip_gutenberg)


def _json(settings: _Settings) -> Iterator[Document]:
    path = str(settings.path)

    def parse(raw: Raw) -> list[Document]:
        text = string(mapping(raw.value, "the row"), settings.text_key)
        return [Document(filled(text, "document"), path, raw.line)]

    return parse_rows(json_rows(settings.path, settings.how), parse, settings.how)


def _rows_of(rows: Callable[[Path, Reading], Iterator[Raw]]) -> Callable[[_Settings], Iterator[Document]]:
    """A format whose rows are (line, text) already."""

    def read(settings: _Settings) -> Iterator[Document]:
        def parse(raw: Raw) -> list[Document]:
            return [Document(filled(raw.value, "document"), str(settings.path), raw.line)]

        return parse_rows(rows(settings.path, settings.how), parse, settings.how)

    return read


def _tar(settings: _Settings) -> Iterator[Document]:
    """Text members of a tar archive, plain or gzipped. Nothing is unpacked to disk and no link is followed."""

    def parse(raw: Raw) -> list[Document]:
        member, content = raw.value
        suffix = Path(member).suffix.lower()
        if suffix not in _CODE_SUFFIXES | _TEXT_SUFFIXES | _MARKDOWN_SUFFIXES:
            raise UnusableRow("member of an unknown kind")
        text = decoded(content, settings.encoding, 1)
        if text.problem is not None:
            raise MalformedRow(f"{member}:{text.line}: {text.problem}")
        clean = strip_front_matter(text.value) if suffix in _MARKDOWN_SUFFIXES else text.value
        return [Document(filled(clean, "document"), f"{settings.path}!{member}", raw.line)]

    return parse_rows(archives.tar_members(settings.path, settings.how), parse, settings.how)


def _parquet(settings: _Settings) -> Iterator[Document]:
    def parse(raw: Raw) -> list[Document]:
        text: dict[str, Any] = {settings.text_key: raw.value}
        return [Document(filled(string(text, settings.text_key), "document"), str(settings.path), raw.line)]

    rows = archives.parquet_rows(settings.path, settings.text_key, settings.how)
    return parse_rows(rows, parse, settings.how)


DOCUMENT_FORMATS: dict[str, Callable[[_Settings], Iterator[Document]]] = {
    "text": _whole_file,
    "code": _whole_file,
    "markdown": functools.partial(_whole_file, clean=strip_front_matter),
    "latex": functools.partial(_whole_file, clean=strip_latex),
    "gutenberg": _gutenberg,
    "json": _json,
    "wikiextractor": _rows_of(archives.wikiextractor_rows),
    "stackexchange": _rows_of(archives.stackexchange_rows),
    "tar": _tar,
    "parquet": _parquet,
}

"""The named sources of a corpus: what may be said of one, and its texts in reading order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama2_pl.data.cache import as_paths
from llama2_pl.data.readers import Document, ReadReport, read_documents

Source = dict[str, Any]

READER_KEYS = ("format", "encoding", "text_key", "strict")
SOURCE_KEYS = ("path", "weight", *READER_KEYS)
KINDS = ("text", "web", "code")


def checked_sources(
    sources: Mapping[str, Mapping[str, Any]], option: str, more: Sequence[str] = ()
) -> dict[str, Source]:
    """Sources with their defaults filled in; ValueError naming ``option`` where one is wrong.

    ``more`` are keys besides SOURCE_KEYS.
    """
    if not sources:
        raise ValueError(
            f'{option} is empty: give at least one, such as {{"web": {{"path": "web/*.jsonl"}}}}'
        )
    return {
        name: _checked(dict(source), f"{option}.{name}", (*SOURCE_KEYS, *more))
        for name, source in sources.items()
    }


def of_kinds(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """The sources of a command that cleans or counts: they may have a kind, one of KINDS; it is text if they do not."""
    found = {name: {"kind": "text", **s} for name, s in checked_sources(sources, "sources", ["kind"]).items()}
    for name, source in found.items():
        if source["kind"] not in KINDS:
            raise ValueError(
                f"sources.{name}.kind is {source['kind']!r}; a source is one of {', '.join(KINDS)}"
            )
    return found


def _checked(source: Source, place: str, keys: Sequence[str]) -> Source:
    unknown = set(source) - set(keys)
    if unknown or "path" not in source:
        replaced = "no path; a source is replaced as a whole: give path and weight together"
        wrong = f"unknown key {sorted(unknown)[0]!r}" if unknown else replaced
        raise ValueError(f"{place}: {wrong}; keys are {', '.join(keys)}, path is required")
    return {"weight": 1.0, "format": "auto", **source}


def reader_options(source: Mapping[str, Any]) -> dict[str, Any]:
    """What of a source goes to the reader."""
    return {key: source[key] for key in READER_KEYS if key in source}


def documents(source: Mapping[str, Any], report: ReadReport | None = None) -> Iterator[Document]:
    """Documents of all files of a source that hold more than white space."""
    for path in as_paths(source["path"]):
        for document in read_documents(path, **reader_options(source), report=report):
            if document.text.strip():
                yield document

"""Real text and code that every CPython carries: help topics, standard-library source, docstrings.

Our choice of sources with no licence to clear and nothing to download. The text is that of the Python which runs this.
"""

from __future__ import annotations

import ast
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

CODE_CHARACTERS = 600_000
DOC_CHARACTERS = 400_000
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose_documents() -> Iterator[str]:
    """The topics of Python's own help, about half a megabyte; none where a build leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    yield from (text.strip() for _, text in sorted(topics.items()) if text.strip())


def code_documents() -> Iterator[str]:
    """Source files of the standard library, 0.6 megabytes at most."""
    return _up_to(CODE_CHARACTERS, (_read(path) for path in source_files()))


def docstring_documents() -> Iterator[str]:
    """The docstrings of each standard-library module as one document, 0.4 megabytes at most."""
    return _up_to(DOC_CHARACTERS, (docstrings(_read(path)) for path in source_files()))


PACKAGE_SOURCES: dict[str, Callable[[], Iterable[str]]] = {
    "prose": prose_documents,
    "code": code_documents,
    "docs": docstring_documents,
}


def source_files() -> list[Path]:
    """The modules of the standard library in name order: top level and a few packages of plain code; none where the
    sources were not installed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = [
        root,
        *(root / name for name in ("collections", "concurrent/futures", "email", "json", "logging")),
    ]
    return sorted(path for folder in folders for path in folder.glob("*.py") if path.is_file())


def docstrings(source: str) -> str:
    """Every docstring of a module in the order of its lines, a blank line between two."""
    nodes = [node for node in _statements(ast.parse(source)) if isinstance(node, _DOCUMENTED)]
    return "\n\n".join(text.strip() for node in nodes if (text := ast.get_docstring(node)) and text.strip())


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The node and the statements below it, in order; to walk the expressions too takes twice as long."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _statements(child)


def _read(path: Path) -> str:
    """The text of a source file in the encoding that it declares."""
    with tokenize.open(path) as file:
        return file.read()


def _up_to(characters: int, texts: Iterable[str]) -> Iterator[str]:
    """Texts until the next one would exceed so many characters in all; empty ones are left out."""
    total = 0
    for text in texts:
        total += len(text)
        if total > characters:
            return
        if text.strip():
            yield text

"""Markup to plain text: Gutenberg frames, HTML, LaTeX, front matter. Pure functions on strings."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from llama2_pl.data.readers.common import MalformedRow, UnusableRow

_START = re.compile(r"^\*{3} ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE | re.IGNORECASE)
_END = re.compile(
    r"^(?:End of (?:the |this )?Project Gutenberg|\*{3} ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK)",
    re.MULTILINE | re.IGNORECASE,
)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*")
_BODY_START = re.compile(r"\\(?:part|chapter|section)\b\*?")
_BIBLIOGRAPHY = re.compile(r"\\(?:bibliography|begin\{thebibliography\}|printbibliography|end\{document\})")
# fmt: off
_BLOCKS = frozenset({
    "p", "div", "pre", "ul", "ol", "li", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "table", "tr", "hr",
})
# fmt: on


def strip_gutenberg(text: str) -> str:
    """A Project Gutenberg book without the header before its START line and the licence from its END line."""
    start = _START.search(text)
    if start is None:
        raise MalformedRow('no "*** START OF THIS PROJECT GUTENBERG EBOOK" line; read it with format="text"')
    end = _END.search(text, start.end())
    return text[start.end() : end.start() if end else len(text)].strip() + "\n"


def strip_front_matter(text: str) -> str:
    """Markdown without the YAML block between two lines of dashes that it may start with."""
    return _FRONT_MATTER.sub("", text).lstrip("\n")


def strip_latex(text: str) -> str:
    """LaTeX from its first section to its bibliography, without comments.

    Llama 1 §2.1: what comes before the first section, the bibliography and comments go. Macros are kept as
    they are (our choice; Llama 1 expands them): a file is read alone, and theirs stand in another.
    """
    text = re.sub(r"\n[ \t]*(?:%.*)(?=\n)", "", text)
    text = _COMMENT.sub(r"\1", text)
    start = _BODY_START.search(text)
    if start is None:
        raise UnusableRow("LaTeX without a section")
    end = _BIBLIOGRAPHY.search(text, start.start())
    return text[start.start() : end.start() if end else len(text)].strip() + "\n"


def strip_html(html: str) -> str:
    """Text of an HTML fragment: paragraphs apart by a blank line, list items with a dash, code as it stands."""
    parser = _HtmlText()
    parser.feed(html)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.parts)).strip()


class _HtmlText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._pre = self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        elif tag == "pre":
            self._pre += 1
        if tag == "br":
            self.parts.append("\n")
        elif tag in _BLOCKS:
            self.parts.append("\n- " if tag == "li" else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)
        elif tag == "pre":
            self._pre = max(0, self._pre - 1)
        if tag in _BLOCKS and tag != "li":
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        text = data if self._pre else re.sub(r"\s+", " ", data)
        at_line_start = not self.parts or self.parts[-1].endswith("\n")
        if self._pre or not (at_line_start and not text.strip()):
            self.parts.append(text if self._pre or not at_line_start else text.lstrip())

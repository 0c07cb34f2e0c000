"""Rules on one text: what is left of it, or None where the rule takes the whole document.

Llama 2 §2.1 says "more robust data cleaning" than Llama 1's and no more. Llama 1 §2.1 names C4's heuristics
(punctuation, numbers of words and sentences) for the web, and line length and share of alphanumeric characters for
code. Where neither gives a number the default is our choice, with its reason at the option.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A named rule. ``apply`` gives what is left of a text; None takes the document."""

    name: str
    apply: Callable[[str], str | None]


@dataclass(frozen=True)
class TextRules:
    """Of texts and web pages; the first is for code too, whose lines and symbols have limits of their own. null is off.

    Args:
        min_characters: fewer take a document. Our choice, 100: a heading or a stub of one sentence.
        max_repeated_lines: a larger share of characters in lines that stand earlier in the document takes it. Our
            choice, 0.3: names of speakers in a play are 0.05, a page of one menu several times is above a half.
        min_alphanumeric: a smaller share of letters, marks and digits among what is no white space takes a document.
            Our choice, 0.6: prose has 0.95, LaTeX 0.75, tables of rules and boxes less than a half.
    """

    min_characters: int | None = 100
    max_repeated_lines: float | None = 0.3
    min_alphanumeric: float | None = 0.6


@dataclass(frozen=True)
class WebRules:
    """C4's heuristics, of sources of the kind web. null or false is off.

    Args:
        boilerplate: take lines that ask for JavaScript or speak of cookies, privacy policies and terms of use; our
            choice, of at most 25 words: a longer one is a paragraph about them.
        lorem_ipsum: take documents with the printers' dummy text; "lorem ipsum dolor", for its first two words are
            its name in prose.
        min_sentences: fewer take a document. C4's 3.
        terminal_punctuation: take lines that do not end in . ! ? or a closing quotation mark. Off, for it takes lists,
            headings, verse and code in a page too; C4 has it.
        min_line_words: shorter lines are taken. Off for the same reason; C4's is 5.
        curly_brackets: take documents with a curly bracket. Off: it takes every page that shows code; C4 has it.
    """

    boilerplate: bool = True
    lorem_ipsum: bool = True
    min_sentences: int | None = 3
    terminal_punctuation: bool = False
    min_line_words: int | None = None
    curly_brackets: bool = False


@dataclass(frozen=True)
class CodeRules:
    """Llama 1's heuristics for code, of sources of the kind code. null or false is off.

    Args:
        licence_headers: take the comment that a file begins with, where it names a licence or a copyright; Llama 1
            removed such boilerplate.
        max_line: a longer line, in characters, takes a file: minified code, data. Our choice, 1,000.
        max_mean_line: a longer mean line takes a file. Our choice, 100: the longest line of most style guides.
        min_alphanumeric: a smaller share of letters, marks and digits among what is no white space takes a file. Our
            choice, 0.4: files of the standard library have 0.6 to 0.9, tables of escapes less than a third.
    """

    licence_headers: bool = True
    max_line: int | None = 1000
    max_mean_line: int | None = 100
    min_alphanumeric: float | None = 0.4


Options = TextRules | WebRules | CodeRules


def check_options(group: str, options: Any) -> None:
    """ValueError naming an option that is below 0, or a share above 1."""
    for field in fields(options):
        value = getattr(options, field.name)
        share = "float" in str(field.type)
        if isinstance(value, int | float) and (value < 0 or (share and value > 1)):
            limits = "a share from 0 to 1" if share else "0 or more"
            raise ValueError(f"{group}.{field.name} is {value}: give {limits}, or null to leave the rule out")


def line_rules(web: WebRules) -> list[Rule]:
    """Those that take lines out of web pages."""
    return [
        *_if(web.boilerplate, "boilerplate lines", drop_boilerplate),
        *_if(web.terminal_punctuation, "lines without punctuation", keep_punctuated),
        *_if(web.min_line_words, "short lines", drop_short_lines, web.min_line_words),
    ]


def web_rules(web: WebRules) -> list[Rule]:
    """Those that take web pages."""
    return [
        *_if(web.lorem_ipsum, "lorem ipsum", unless(has_lorem_ipsum)),
        *_if(web.curly_brackets, "curly brackets", unless(has_curly_bracket)),
        *_if(web.min_sentences, "too few sentences", unless(few_sentences), web.min_sentences),
    ]


def text_rules(text: TextRules) -> list[Rule]:
    """Those that take texts of any kind but code."""
    return [
        *_if(text.max_repeated_lines, "repeated lines", unless(repeats_lines), text.max_repeated_lines),
        *_if(text.min_alphanumeric, "too many symbols", unless(is_symbols), text.min_alphanumeric),
    ]


def code_rules(code: CodeRules) -> list[Rule]:
    """Those of source code."""
    return [
        *_if(code.licence_headers, "licence headers", drop_licence_header),
        *_if(code.max_line, "long lines", unless(has_long_line), code.max_line),
        *_if(code.max_mean_line, "long lines on average", unless(has_long_lines), code.max_mean_line),
        *_if(code.min_alphanumeric, "too many symbols", unless(is_symbols), code.min_alphanumeric),
    ]


def length_rule(text: TextRules) -> list[Rule]:
    """That of documents too short, which also comes after rules that take lines."""
    return _if(text.min_characters, "too short", unless(is_short), text.min_characters)


def _if(on: Any, name: str, apply: Callable[..., str | None], *limits: Any) -> list[Rule]:
    off = on is None or on is False
    return [] if off else [Rule(name, lambda text: apply(text, *limits))]


def unless(bad: Callable[..., bool]) -> Callable[..., str | None]:
    """A rule that takes the documents for which ``bad`` holds."""
    return partial(_unless, bad)


def _unless(bad: Callable[..., bool], text: str, *limits: Any) -> str | None:
    return None if bad(text, *limits) else text


def is_short(text: str, min_characters: int) -> bool:
    return len(text.strip()) < min_characters


def repeats_lines(text: str, most: float) -> bool:
    """Whether a larger share than ``most`` of the characters stands in lines that the text has before."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return sum(map(len, lines)) - sum(map(len, set(lines))) > most * sum(map(len, lines))


_LETTERS = (string.ascii_letters + string.digits).encode()


def is_symbols(text: str, least: float) -> bool:
    """Whether less than ``least`` of what is no white space is a letter, mark or digit of any script."""
    content = text.encode()
    rest = content.translate(
        None, _LETTERS
    )  # character by character the count takes a fifth of the whole run
    letters = seen = len(content) - len(rest)
    for character, count in Counter(rest.decode()).items():
        seen += 0 if character.isspace() else count
        letters += count if unicodedata.category(character)[0] in "LMN" else 0
    return letters < least * seen


def has_lorem_ipsum(text: str) -> bool:
    return "lorem ipsum dolor" in text.lower()


def has_curly_bracket(text: str) -> bool:
    return "{" in text


_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?:\s|$)|[。！？।]")


def few_sentences(text: str, least: int) -> bool:
    return sum(1 for _ in _SENTENCE_END.finditer(text)) < least


def has_long_line(text: str, most: int) -> bool:
    return max(map(len, text.split("\n"))) > most


def has_long_lines(text: str, most: int) -> bool:
    """Whether lines with text are longer than ``most`` characters in the mean."""
    lines = [line for line in text.split("\n") if line.strip()]
    return sum(map(len, lines)) > most * len(lines)


def keep_lines(text: str, keep: Callable[[str], bool]) -> str:
    """The lines that are blank or wanted; where some went, runs of blank lines they leave become one."""
    lines = text.split("\n")
    kept = [line for line in lines if not line.strip() or keep(line)]
    return text if len(kept) == len(lines) else re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


_PUNCTUATED = (
    *".!?…。！？।",
    *(f"{end}{mark}" for end in ".!?…" for mark in "\"'”’)"),
    "。”",
    "。」",
    "！」",
    "？」",
)


def keep_punctuated(text: str) -> str:
    """Lines that end as a sentence does."""
    return keep_lines(text, lambda line: line.rstrip().endswith(_PUNCTUATED))


def drop_short_lines(text: str, least: int) -> str:
    return keep_lines(text, lambda line: len(line.split()) >= least)


_BOILERPLATE_WORDS = ("javascript", "cookie", "privacy policy", "terms of ")
_BOILERPLATE = re.compile(
    r"(?:enable|disabled?|requires?|turn(?:ed)? on|supports?|without|activate)\s(?:\S+\s){0,3}javascript"
    r"|javascript\s(?:\S+\s){0,3}(?:enabled|disabled|required|turned|activated|supported)"
    r"|\b(?:uses?|using|use of|accept|accepting|our|all) cookies|\bcookie (?:policy|settings|preferences|notice)"
    r"|\bprivacy policy\b|\bterms of (?:use|service)\b",
    re.IGNORECASE,
)


def drop_boilerplate(text: str, most_words: int = 25) -> str:
    """Without short lines on cookies, privacy policies, terms of use, and JavaScript to be turned on."""
    lower = text.lower()
    if not any(word in lower for word in _BOILERPLATE_WORDS):
        return text
    return keep_lines(text, lambda line: not _BOILERPLATE.search(line) or len(line.split()) > most_words)


_LICENCE = re.compile(r"copyright|licen[cs]e|all rights reserved", re.IGNORECASE)
_COMMENT = re.compile(r"\s*(?:#(?!include|define|if|pragma)|//|--|;|%)")


def drop_licence_header(text: str) -> str:
    """Without the comment that a file begins with, if it speaks of licence or copyright; ``#!`` stays."""
    lines = text.lstrip("\n").split("\n")
    first = 1 if lines[0].startswith("#!") else 0
    end = _comment_end(lines, first)
    if not _LICENCE.search("\n".join(lines[first:end])):
        return text
    return "\n".join([*lines[:first], *lines[end:]]).lstrip("\n")


def _comment_end(lines: list[str], start: int) -> int:
    """Where the comment lines, or the block of ``/* */``, that begin at ``start`` are over."""
    if start < len(lines) and lines[start].lstrip().startswith("/*"):
        closed = (n for n in range(start, len(lines)) if "*/" in lines[n])
        return next(closed, start - 1) + 1
    return next((n for n in range(start, len(lines)) if not _COMMENT.match(lines[n])), len(lines))

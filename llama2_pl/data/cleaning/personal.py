"""Personal data in a text: e-mail addresses, phone numbers, IP addresses, card numbers.

Llama 2 §2.1 removed sites with a high volume of personal information, and says no more; the rest is our choice. What is
found is replaced by words in brackets, and a document that is dense with it is taken whole. Rather a phone number of an
unusual form is missed than a version, a date or an ISBN lost.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from llama2_pl.data.cleaning.rules import Rule


@dataclass(frozen=True)
class PersonalRules:
    """What is replaced, and when a document is taken. false and null are off.

    Args:
        emails: replace e-mail addresses; those of the domains that are kept for examples stay.
        cards: replace card numbers: an issuer's prefix and length, Luhn's check digit.
        ips: replace IP addresses of version 4 and 6 that are reached from everywhere; private ones and those kept for
            examples stay.
        phones: replace phone numbers: international ones with +, North American ones, and others behind a word such as
            Tel.
        max_per_1000_words: more of them take a document with at least `min_found`. Our choice, 20: one in 50 words is a
            directory or a list of members, no prose.
        min_found: see above. Our choice, 5: a short note with a signature stays.
    """

    emails: bool = True
    cards: bool = True
    ips: bool = True
    phones: bool = True
    max_per_1000_words: float | None = 20.0
    min_found: int = 5

    def __post_init__(self) -> None:
        if (self.max_per_1000_words or 0) < 0 or self.min_found < 1:
            raise ValueError(
                f"personal.max_per_1000_words is {self.max_per_1000_words} and personal.min_found {self.min_found}: "
                "give 0 or more (or null), and 1 or more"
            )


Span = tuple[int, int]


class Kind(NamedTuple):
    """One kind of personal data: the words that stand for it, and where a text has it, in order."""

    placeholder: str
    spans: Callable[[str], list[Span]]


# The patterns begin with what a match begins with and look behind it then, for so the search skips what is between.
_NAME = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}\Z", re.ASCII)
_DOMAIN = re.compile(
    r"@(?P<domain>(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24})(?![\w@-])", re.IGNORECASE | re.ASCII
)
# RFC 2606's domains belong to nobody
_FOR_EXAMPLES = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE
)


def email_spans(text: str) -> list[Span]:
    """E-mail addresses, but for git@, an account that all share, and those of the domains for examples."""
    if "@" not in text:
        return []
    found = []
    for end in _DOMAIN.finditer(text):
        name = _NAME.search(text[max(0, end.start() - 65) : end.start()])
        if name and name[0] != "git" and not _FOR_EXAMPLES.search(end["domain"]):
            found.append((end.start() - len(name[0]), end.end()))
    return found


# Visa, Mastercard, American Express, Discover, JCB; ISBN-13 begins with 978 or 979
_ISSUERS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:2(?:2[1-9]|[3-9]\d)|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}"
)
_CARD = re.compile(
    r"[2-6](?<![\w.+-].)\d{3}"
    r"(?:(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|(?P<amex>[ -])\d{6}(?P=amex)\d{5}|\d{11,12})(?![\w-]|\.\d)",
    re.ASCII,
)


def card_spans(text: str) -> list[Span]:
    """Card numbers with an issuer's prefix and length and Luhn's check digit."""
    return [found.span() for found in _CARD.finditer(text) if _is_card(re.sub(r"\D", "", found[0]))]


def _is_card(digits: str) -> bool:
    return bool(_ISSUERS.fullmatch(digits)) and has_luhn_digit(digits)


def has_luhn_digit(digits: str) -> bool:
    """Whether the last digit is Luhn's check digit of the others."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


# From 10 on: what begins with one digit is a version or a section (3.2.1.4), or a public service (8.8.8.8), more often
# than one of the few addresses. No networks (/16) and no reversed names (.in-addr.arpa).
_IPV4 = re.compile(r"[1-9](?<![\w.:-].)\d{1,2}(?:\.\d{1,3}){3}(?![\w-]|/\d|\.\d|\.in-addr)", re.ASCII)
_IPV6 = re.compile(
    r"[23](?<![\w.:-].)[0-9a-f]{3}:(?:[0-9a-f]{0,4}:){1,6}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE | re.ASCII
)
_NUMBERED = re.compile(
    r"(?:\bv|\b(?:ver|vers|version|release|build|section|sec|sect|chapter|clause|article|table|figure|appendix)s?|§)"
    r"[.:]?\s*[\"'(]?$",
    re.IGNORECASE,
)


def ip_spans(text: str) -> list[Span]:
    """IP addresses that are reached from everywhere."""
    found = [match.span() for match in _IPV4.finditer(text) if _is_ipv4(match)]
    # four groups at least, for x[2000::2] is a slice
    found += [
        match.span()
        for match in (_IPV6.finditer(text) if ":" in text else ())
        if sum(map(bool, match[0].split(":"))) > 3 and _is_global(match[0])
    ]
    return sorted(found)


def _is_ipv4(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 12) : match.start()]
    return _is_global(match[0]) and not _NUMBERED.search(before)


def _is_global(address: str) -> bool:
    try:
        known = ipaddress.ip_address(address)
        return known.is_global and not known.is_multicast
    except ValueError:
        return False


_INTERNATIONAL = re.compile(
    r"\+(?<![\w.+/-].)[1-9]\d{0,14}(?:[ .-]?\(\d{1,5}\)[ .-]?\d{2,12})?(?:[ .-]\d{2,12}){0,6}(?![\w-]|\.\d)",
    re.ASCII,
)
_AMERICAN = re.compile(
    r"[(12-9](?<![\w.+/=-].)(?:(?<=1)[-. ]\(?(?=[2-9]))?(?:(?<=[(])[2-9]\d\d|(?<=[2-9])\d\d|(?<![12-9])[2-9]\d\d)"
    r"(?:\) ?[2-9]\d\d[-. ]|(?P<gap>[-.])[2-9]\d\d(?P=gap))\d{4}(?![\w-]|\.\d)",
    re.ASCII,
)
_NUMBER = re.compile(r"[(0-9](?<!\w.)[0-9 ()/.-]{5,18}[0-9](?!\w)", re.ASCII)
_MARK = re.compile(
    r"\b(?:tel|telephone|telefon|phone|mobile|fax)\b\.? ?(?:no\.|nr\.|number)?:? {0,2}\Z", re.IGNORECASE
)


def phone_spans(text: str) -> list[Span]:
    """Phone numbers: with + and country code, as in North America, or any behind a word such as Tel."""
    found = [match.span() for match in _INTERNATIONAL.finditer(text) if _is_international(match[0])]
    found += [match.span() for match in _AMERICAN.finditer(text)]
    found += [match.span() for match in _NUMBER.finditer(text) if _is_marked(match)]
    return sorted(found)


def _is_international(number: str) -> bool:
    digits = len(re.sub(r"\D", "", number))
    # bare digits behind a + are a sum more often than a number, unless there are as many as in a whole one
    return 8 <= digits <= 15 and (digits > 10 or bool(re.search(r"\d\D+\d", number)))


def _is_marked(match: re.Match[str]) -> bool:
    digits = len(re.sub(r"\D", "", match[0]))
    return 7 <= digits <= 15 and bool(_MARK.search(match.string[max(0, match.start() - 24) : match.start()]))


KINDS: dict[str, Kind] = {
    "emails": Kind("[email address]", email_spans),
    "cards": Kind("[card number]", card_spans),
    "ips": Kind("[IP address]", ip_spans),
    "phones": Kind("[phone number]", phone_spans),
}


def replaced(text: str, kind: Kind) -> str:
    """A text with words in brackets in place of personal data of a kind."""
    parts, last = [], 0
    for start, end in kind.spans(text):
        if start >= last:
            parts += [text[last:start], kind.placeholder]
            last = end
    return "".join([*parts, text[last:]]) if parts else text


def is_dense(text: str, kinds: list[Kind], per_1000_words: float, min_found: int) -> bool:
    """Whether a text has at least ``min_found`` places, and more than so many in a thousand words."""
    count = sum(len(kind.spans(text)) for kind in kinds)
    return count >= min_found and 1000 * count > per_1000_words * len(text.split())


def personal_rules(options: PersonalRules) -> list[Rule]:
    """First the one that takes documents, then those that replace."""
    kinds = {name: kind for name, kind in KINDS.items() if getattr(options, name)}
    rules = [Rule(name, partial(replaced, kind=kind)) for name, kind in kinds.items()]
    if options.max_per_1000_words is None or not kinds:
        return rules
    limits = (list(kinds.values()), options.max_per_1000_words, options.min_found)
    return [Rule("dense personal data", lambda text: None if is_dense(text, *limits) else text), *rules]

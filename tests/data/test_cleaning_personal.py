"""Personal data goes, and what looks like it stays."""

from __future__ import annotations

import time

import pytest

from llama2_pl.data.cleaning.personal import KINDS, PersonalRules, has_luhn_digit, is_dense, replaced

PLANTED = {
    "emails": [
        ("Write to jane.doe+news@mail.uni-ulm.de, please", "Write to [email address], please"),
        ("<a_b@c.co.uk>", "<[email address]>"),
        ("[me](mailto:me@firm.com)", "[me](mailto:[email address])"),
    ],
    "cards": [
        ("card 4111 1111 1111 1111.", "card [card number]."),
        ("5555-5555-5555-4444", "[card number]"),
        ("3782 822463 10005 or 371449635398431", "[card number] or [card number]"),
        ("6011111111111117", "[card number]"),
        ("2223003122003222", "[card number]"),
    ],
    "ips": [
        ("from 203.1.78.9, at", "from [IP address], at"),
        ("http://52.85.89.103:80/x", "http://[IP address]:80/x"),
        ("2a00:1450:4001:82b::200e and", "[IP address] and"),
        ("[2606:2800:220:1:248:1893:25c8:1946]", "[[IP address]]"),
    ],
    "phones": [
        ("call +49 30 1234567 now", "call [phone number] now"),
        ("+44 (0)20 7946 0958", "[phone number]"),
        ("+491701234567", "[phone number]"),
        ("(212) 555-0143, 212-555-0143", "[phone number], [phone number]"),
        ("1-800-555-0143.", "[phone number]."),
        ("1 (212) 555-0143", "[phone number]"),
        ("910.538.0115", "[phone number]"),
        ("Tel.: 030/1234567", "Tel.: [phone number]"),
        ("Fax 020 7393 1500\n", "Fax [phone number]\n"),
    ],
}

LOOK_ALIKES = [
    "version 1.2.3, v10.0.19041.1, Chrome/115.0.5790.102, section 12.3.4.5, 3.2.1.4",
    "ISBN 978-3-16-148410-0, 0-306-40615-2, 9783161484100, ISSN 2049-3630",
    "2023-07-18, 18.07.2023, 12:30:45, 2023-07-18T10:00:00+02:00, 1914-1918, 1999 2000 2001",
    "127.0.0.1 192.168.0.1 10.0.0.1 0.0.0.0 255.255.255.0 8.8.8.8 999.1.1.1 224.0.0.1 203.1.78.0/24",
    "x[2000::2] std::vector ab::cd 2001:db8::1 fe80::1 12:34:56:78:9a:bc",
    "@decorator def f(a@b): user@localhost git@github.com:a/b.git someone@example.com npm i a@1.2.3 \\foo@bar",
    "4111111111111112 1234567812345678 3.1415926535897932 1690000000000000 0x4111111111111111",
    "100 - 200 - 3000, 555-1234, 10-20-30, 1+23456789, +0100, a[+12345], 123-45-6789, phone 7, Tel Aviv 1948",
    "$1,234,567.89 (212) 555 and 212 555 0143 rows; 1.800.000.000 people; 800-500-40000",
]


@pytest.mark.parametrize(
    ("kind", "text", "left"), [(kind, *pair) for kind, pairs in PLANTED.items() for pair in pairs]
)
def test_planted_data_is_replaced_and_nothing_beside_it(kind: str, text: str, left: str) -> None:
    assert replaced(text, KINDS[kind]) == left


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", LOOK_ALIKES, ids=lambda text: text[:20])
def test_look_alikes_stay(kind: str, text: str) -> None:
    assert replaced(text, KINDS[kind]) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_replaced_once_and_then_as_it_is(kind: str) -> None:
    once = replaced(" | ".join(text for pairs in PLANTED.values() for text, _ in pairs), KINDS[kind])
    assert replaced(once, KINDS[kind]) == once


def test_luhns_digit_is_that_of_his_patent() -> None:
    assert has_luhn_digit("79927398713")
    assert not any(has_luhn_digit(f"7992739871{digit}") for digit in "012456789")


def test_a_document_is_dense_above_the_rate_and_with_enough_places() -> None:
    kinds, address = list(KINDS.values()), "a@firm.com"
    text = " ".join([address] * 5 + ["word"] * 95)  # 50 in 1000 words
    assert is_dense(text, kinds, per_1000_words=49, min_found=5)
    assert not is_dense(text, kinds, per_1000_words=50, min_found=5)
    assert not is_dense(text, kinds, per_1000_words=49, min_found=6)


@pytest.mark.parametrize("piece", ["1", "a", "+1", "1.", "1-", "(1", "1:", "a@", "@a.", "+1 1", "4 "])
def test_no_text_takes_longer_than_its_length(piece: str) -> None:
    """A pattern that tries everything from everywhere would take minutes here."""
    text = piece * (300_000 // len(piece))
    began = time.process_time()
    for kind in KINDS.values():
        replaced(text, kind)
    assert time.process_time() - began < 2


def test_options_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"personal.max_per_1000_words is -1"):
        PersonalRules(max_per_1000_words=-1)

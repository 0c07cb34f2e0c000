"""Each rule on texts: what it takes, and what stands beside it and stays."""

from __future__ import annotations

import pytest

from llama2_pl.data.cleaning.rules import (
    CodeRules,
    TextRules,
    check_options,
    drop_boilerplate,
    drop_licence_header,
    drop_short_lines,
    few_sentences,
    has_long_line,
    has_long_lines,
    has_lorem_ipsum,
    is_short,
    is_symbols,
    keep_lines,
    keep_punctuated,
    repeats_lines,
)


def test_a_document_is_short_below_the_limit_without_its_white_space() -> None:
    assert is_short("  four \n", 5) and not is_short("  fives \n", 6 - 1)


def test_the_share_of_repeated_lines_is_of_characters_after_the_first_time() -> None:
    text = "aaaa\nbb\naaaa\n\naaaa"  # 14 characters in lines, 8 of them repeated
    assert repeats_lines(text, 0.57) and not repeats_lines(text, 0.58)
    assert not repeats_lines("all\ndiffer", 0.0)


def test_letters_marks_and_digits_of_every_script_are_no_symbols() -> None:
    assert is_symbols("ab!!", 0.51) and not is_symbols("ab!!", 0.5)
    assert not is_symbols("हिन्दी में", 1.0)  # vowel signs are marks
    assert not is_symbols("漢字 кириллица é\n\t1", 1.0)
    assert is_symbols("┌──┐│ a│", 0.2)


def test_sentences_are_ends_of_them_in_latin_and_chinese() -> None:
    assert few_sentences("One. Two! (Three?)", 4) and not few_sentences("One. Two! (Three?)", 3)
    assert not few_sentences("一。二！三？", 3)
    assert few_sentences("version 1.2.3 of example.com", 1)


def test_long_lines_are_measured_singly_and_in_the_mean_of_lines_with_text() -> None:
    assert has_long_line("ab\nabcd", 3) and not has_long_line("ab\nabcd", 4)
    assert has_long_lines("ab\n\n\nabcd", 2) and not has_long_lines("ab\n\n\nabcd", 3)


def test_the_dummy_text_is_taken_and_its_name_is_not() -> None:
    assert has_lorem_ipsum("Lorem ipsum dolor sit amet") and not has_lorem_ipsum("we had lorem ipsum in it")


def test_lines_that_stay_keep_their_bytes_and_those_that_go_leave_one_blank_line() -> None:
    assert keep_lines("a \n\n\n\nb", lambda line: True) == "a \n\n\n\nb"
    assert keep_lines("a\n\nx\n\nb", lambda line: line != "x") == "a\n\nb"


def test_lines_without_an_end_of_sentence_go() -> None:
    text = 'Home\nHe said "so."\n- milk\nIs it?\n句子。'
    assert keep_punctuated(text) == 'He said "so."\nIs it?\n句子。'
    assert drop_short_lines("one two\nthree", 2) == "one two"


def test_boilerplate_lines_go_and_prose_on_the_same_subject_stays() -> None:
    prose = "JavaScript is a language of the web, and Netscape made it.\nShe baked cookies."
    long = "A privacy policy " + "is a text that lawyers write " * 5
    noise = [
        "Please enable JavaScript to view the comments.",
        "JavaScript is currently disabled in your browser.",
        "We use cookies to improve your experience.",
        "Privacy Policy | Terms of Use",
    ]
    assert drop_boilerplate("\n".join([noise[0], prose, *noise[1:], long])) == f"{prose}\n{long}"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("# Copyright 2020 X\n# All rights reserved.\n\nimport a\n", "import a\n"),
        ("#!/bin/sh\n# Licensed under MIT\nls\n", "#!/bin/sh\nls\n"),
        ("/*\n * Copyright X\n */\nint a;\n", "int a;\n"),
        ("# What this does\nimport a\n# Copyright X\n", None),
        ("#include <licence.h>\nint a;\n", None),
        ("/* never closed, Copyright\nint a;\n", None),
        ("licence = 1\n", None),
    ],
)
def test_a_licence_at_the_head_of_a_file_goes_and_other_comments_stay(text: str, left: str | None) -> None:
    assert drop_licence_header(text) == (text if left is None else left)


@pytest.mark.parametrize("options", [TextRules(min_characters=-1), CodeRules(min_alphanumeric=1.5)])
def test_limits_out_of_range_are_refused_by_name(options: TextRules | CodeRules) -> None:
    with pytest.raises(ValueError, match=r"group\.min_\w+ is .*null to leave the rule out"):
        check_options("group", options)

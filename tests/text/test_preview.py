"""What a person sees of a dialogue."""

from __future__ import annotations

import io

import pytest

from llama2_pl.text import Dialog, Tokenizer, preview, render

DIALOG = Dialog.of([("user", "u"), ("assistant", "a")])


def _shown(
    dialogs: Dialog | list[Dialog], tokenizer: Tokenizer, ids: bool = False, color: bool | None = None
) -> str:
    out = io.StringIO()
    preview(dialogs, tokenizer, file=out, ids=ids, color=color)
    return out.getvalue()


def test_real_pieces_show_bos_eos_spaces_and_the_learned_part(llama: Tokenizer) -> None:
    expected = "dialogue 1: 12 tokens, 3 learned\n<s> ▁[ INST ] ▁u ▁[ / INST ] ⟦▁a ▁ </s>⟧\n\n"
    assert _shown(DIALOG, llama) == expected


def test_ids_stand_after_their_pieces(llama: Tokenizer) -> None:
    assert "<s>:1 ▁[:518 INST:25580 ]:29962" in _shown(DIALOG, llama, ids=True)


def test_colour_marks_the_learned_tokens_and_carries_the_same_text(tiny: Tokenizer) -> None:
    coloured = _shown(DIALOG, tiny, color=True)
    assert coloured.count("\033[32m") == len(tiny.encode("a "))
    assert "⟦" not in coloured
    assert "\033" not in _shown(DIALOG, tiny)


def test_each_turn_starts_a_line_and_a_prompt_has_nothing_to_learn(tiny: Tokenizer) -> None:
    prompt = DIALOG.then("user", "v")
    lines = _shown([DIALOG, prompt], tiny).splitlines()
    assert [line.startswith("<s>") for line in lines] == [False, True, False, False, True, True, False]
    assert lines[3].endswith(" 0 learned")


def test_a_terminal_escape_in_the_text_is_not_obeyed(tiny: Tokenizer) -> None:
    assert "\033" not in _shown(Dialog.of([("user", "\033[2J"), ("assistant", "a")]), tiny)


def test_tokens_and_mask_of_different_lengths_are_refused(tiny: Tokenizer) -> None:
    with pytest.raises(ValueError, match="2 tokens and 1 mask values"):
        render([1, 5], [True], tiny)

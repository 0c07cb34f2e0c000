"""The preview of a file on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama2_pl.data.readers import dialog_to_row, write_jsonl
from llama2_pl.data.readers.preview import preview_file
from llama2_pl.text import Dialog, train_tokenizer


def test_a_file_is_shown_up_to_the_limit_in_the_given_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(
        [f"words {chr(97 + n)} [INST] [/INST] " for n in range(26)] * 3, tmp_path, vocab_size=300
    )
    turns = [("user", "[INST] a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    write_jsonl(tmp_path / "d.jsonl", [dialog_to_row(Dialog.of(turns))] * 3)  # type: ignore[arg-type]
    preview_file(str(tmp_path / "d.jsonl"), str(tokenizer.path), limit=2, train_on="last_answer", color=False)
    shown = capsys.readouterr().out
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("dialogue")] == [
        "dialogue 1",
        "dialogue 2",
    ]
    assert shown.count("⟦▁ d ▁ </s>⟧") == 2
    with pytest.raises(ValueError, match=r"message 0 \(user\) holds the control tag '\[INST\]'"):
        preview_file(str(tmp_path / "d.jsonl"), str(tokenizer.path), tags="refuse")

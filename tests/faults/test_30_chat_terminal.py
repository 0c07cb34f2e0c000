"""Case 30, for what there is of it: the chat in the terminal. The report's pages are in tests/report."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from llama2_pl.app import chat as app


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cm0gLXJm\x07", "<U+001B>]52;c;cm0gLXJm<U+0007>"),  # fills the clipboard
        ("\x1b[2J\x9b2J", "<U+001B>[2J<U+009B>2J"),  # clears the screen, in both spellings
        ("\x08\x08\rpaid", "<U+0008><U+0008><U+000D>paid"),  # writes over what stands there
        ("two\nlines\tand [bold] <script>é", "two\nlines\tand [bold] <script>é"),
    ],
)
def test_a_model_s_answer_gives_the_terminal_no_commands(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "Console", lambda **_: Console(force_terminal=False, width=200, tab_size=1))
    _, write = app._terminal()
    write(text, "answer")
    assert capsys.readouterr().out.rstrip("\n") == shown.replace("\t", " ")


def test_a_tokenizer_is_looked_for_in_the_run_s_folders_alone(tmp_path: Path) -> None:
    """<run>/<stage>/x.ckpt: two folders up, and no further."""
    (tmp_path / "tokenizer.model").touch()
    deep = tmp_path / "a/b/c/x.ckpt"
    deep.parent.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"x\.ckpt: no tokenizer\.model beside it"):
        app.find_tokenizer(deep)

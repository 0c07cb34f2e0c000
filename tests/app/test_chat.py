"""The terminal chat, with lines piped in."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from llama2_pl.app import chat as app
from llama2_pl.checkpoints.hardware import Hardware
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.tokenizer import Tokenizer, train_tokenizer

SETTINGS = app.Settings(temperature=0.0, top_p=1.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("run") / "tokenizer"
    return train_tokenizer(
        ["the cat sat on the mat\nand the dog ran\n" * 20], folder, vocab_size=290, num_threads=1
    )


@pytest.fixture(scope="module")
def model(tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32, n_layers=1, n_heads=2, vocab_size=tokenizer.vocab_size, multiple_of=16, max_seq_len=96
    )
    return LanguageModel(config).eval()


class Heard(list):
    """Everything written, as (text, kind)."""

    def __call__(self, text: str, kind: str) -> None:
        self.append((text, kind))

    def notices(self) -> str:
        return "\n".join(text for text, kind in self if kind == "notice")


def talk(model, tokenizer, *lines: str, system: str | None = None, settings: app.Settings = SETTINGS):
    heard = Heard()
    return app.converse(model, tokenizer, iter(lines), heard, settings, system), heard


def test_each_line_is_answered_and_stays_in_context(model, tokenizer):
    dialog, heard = talk(model, tokenizer, "the cat", "  ", "the dog")
    assert [m.role for m in dialog.messages] == ["user", "assistant", "user", "assistant"]
    assert [kind for _, kind in heard].count("answer") == 2


def test_quit_ends_before_the_lines_do(model, tokenizer):
    dialog, _ = talk(model, tokenizer, "the cat", "/quit", "never seen")
    assert len(dialog.messages) == 2


def test_reset_keeps_the_system_message_and_forgets_the_rest(model, tokenizer):
    dialog, _ = talk(model, tokenizer, "the cat", "/reset", system="sat")
    assert [tuple(m) for m in dialog.messages] == [("system", "sat")]


def test_system_command_sets_and_removes_the_system_message(model, tokenizer):
    assert talk(model, tokenizer, "/system on the mat")[0].messages[0].content == "on the mat"
    assert talk(model, tokenizer, "/system on", "/system")[0].messages == ()


def test_unknown_command_lists_the_commands(model, tokenizer):
    dialog, heard = talk(model, tokenizer, "/help")
    assert (
        dialog.messages == () and "unknown command /help" in heard.notices() and "/reset" in heard.notices()
    )


def test_a_control_tag_is_explained_and_the_conversation_goes_on(model, tokenizer):
    dialog, heard = talk(model, tokenizer, "cat [/INST] dog", "the cat", "/system <<SYS>> x")
    assert "'[/INST]'" in heard.notices() and "'<<SYS>>'" in heard.notices()
    assert [m.content for m in dialog.messages if m.role == "user"] == ["the cat"]
    assert dialog.messages[0].role == "user"


def test_oldest_turns_are_dropped_with_a_notice_when_the_context_is_full(model, tokenizer):
    lines = [f"the cat sat {word}" for word in ("a", "b", "c", "d", "e", "f")]
    dialog, heard = talk(model, tokenizer, *lines, system="mat")
    assert "the oldest" in heard.notices()
    assert dialog.messages[0].content == "mat"
    users = [m.content for m in dialog.messages if m.role == "user"]
    assert users == lines[-len(users) :] and len(users) < 6


def test_a_message_too_long_for_the_context_is_not_sent(model, tokenizer):
    dialog, heard = talk(model, tokenizer, "x" * 500, "the cat")
    assert "not sent" in heard.notices() and "88" in heard.notices()  # 96 - 8 tokens of room
    assert [m.content for m in dialog.messages if m.role == "user"] == ["the cat"]


def test_the_length_limit_is_obeyed_and_said(model, tokenizer):
    _, heard = talk(model, tokenizer, "the cat", settings=SETTINGS._replace(max_new_tokens=1))
    assert "cut at 1 tokens" in heard.notices()
    with pytest.raises(ValueError, match="max_new_tokens 96 leaves no room"):
        talk(model, tokenizer, "the cat", settings=SETTINGS._replace(max_new_tokens=96))


@pytest.fixture(scope="module")
def checkpoint(model, tokenizer) -> Path:
    """A checkpoint of a stage in a run's folder, with what Lightning saves of a language-model module."""
    path = tokenizer.path.parent.parent / "sft" / "best.ckpt"
    path.parent.mkdir()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"backbone": model.config.to_dict()}}, path)
    return path


def test_chat_reads_standard_input_to_its_end(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n[INST]\nthe dog\n"))
    app.chat(str(checkpoint), temperature=0.7, seed=0)  # finds the tokenizer in the run
    printed = capsys.readouterr().out
    assert printed.startswith("(best.ckpt: context of 96 tokens.")
    assert printed.count("you: ") == 4 and "holds the control tag" in printed


def test_the_model_is_where_and_in_the_precision_that_was_asked_for(checkpoint, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    seen = []
    monkeypatch.setattr(app, "converse", lambda model, *_: seen.append(model.head.weight.dtype))
    app.chat(str(checkpoint), hardware=Hardware("cpu", "bf16-true"))
    assert seen == [torch.bfloat16]
    with pytest.raises(ValueError, match=r"hardware\.device is 'gpu': give auto, cpu, cuda or cuda:N"):
        app.chat(str(checkpoint), hardware=Hardware("gpu"))


def test_the_seed_repeats_a_conversation(checkpoint, tokenizer, monkeypatch, capsys):
    def session(seed: int) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe dog\n"))
        app.chat(str(checkpoint), str(tokenizer.path), temperature=1.0, top_p=1.0, seed=seed)
        return capsys.readouterr().out

    assert session(0) == session(0) != session(1)


def test_tokenizer_is_found_beside_the_checkpoint_or_in_the_run(tokenizer):
    run = tokenizer.path.parent.parent
    assert app.find_tokenizer(run / "sft" / "best.ckpt") == tokenizer.path
    assert app.find_tokenizer(tokenizer.path.parent / "last.ckpt") == tokenizer.path


def test_a_missing_tokenizer_names_the_option(tmp_path):
    with pytest.raises(ValueError, match="--tokenizer"):
        app.find_tokenizer(tmp_path / "a" / "b" / "c" / "best.ckpt")


def test_a_tokenizer_of_another_vocabulary_is_refused(checkpoint, tmp_path):
    other = train_tokenizer(["the cat sat on the mat\n" * 20], tmp_path, vocab_size=275, num_threads=1)
    with pytest.raises(ValueError, match=r"275 pieces .* vocabulary of 290"):
        app.chat(str(checkpoint), str(other.path))

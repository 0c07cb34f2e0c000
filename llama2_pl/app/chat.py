"""`llama2-pl chat --checkpoint …`: talk to a model in the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.text import Text

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.generation.sampler import generate, responses
from llama2_pl.model.heads import LanguageModel
from llama2_pl.text.chat import Dialog, encode_prompt, truncate_dialog
from llama2_pl.text.tags import find_control_tags, strip_control_tags
from llama2_pl.text.tokenizer import Tokenizer

COMMANDS = (
    "/quit ends, /reset forgets the conversation, /system TEXT sets the system message, and without TEXT none"
)
Write = Callable[[str, str], None]  # (text, kind), kind one of "answer", "notice"


class Settings(NamedTuple):
    """How answers are sampled; Meta's released defaults are temperature 0.6 and top_p 0.9."""

    temperature: float
    top_p: float
    max_new_tokens: int


def chat(
    checkpoint: str,
    tokenizer: str | None = None,
    system: str | None = None,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_new_tokens: int | None = None,
    seed: int | None = None,
    hardware: Hardware = HARDWARE,
) -> None:
    """Talk to a checkpoint in the terminal; /quit or the end of the input ends it.

    Args:
        checkpoint: a checkpoint of any language-model stage, or a Hugging Face folder.
        tokenizer: its tokenizer.model; looked for beside the checkpoint when not given.
        system: system message, held over the whole conversation.
        temperature: of sampling; 0 is greedy.
        top_p: mass of the nucleus; 1 keeps every token.
        max_new_tokens: longest answer; a quarter of the model's context when not given.
        seed: makes the answers repeatable.
        hardware: device and precision.
    """
    words = Tokenizer(tokenizer if tokenizer is not None else find_tokenizer(Path(checkpoint)))
    model = hardware.load(checkpoint, words)
    if words.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{words.path} has {words.vocab_size} pieces and {checkpoint} a vocabulary of {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with: --tokenizer path/to/tokenizer.model"
        )
    limit = model.config.max_seq_len // 4 if max_new_tokens is None else max_new_tokens
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    read, write = _terminal()
    write(f"{Path(checkpoint).name}: context of {model.config.max_seq_len} tokens. {COMMANDS}.", "notice")
    converse(model, words, read, write, Settings(temperature, top_p, limit), system, generator)


def converse(
    model: LanguageModel,
    tokenizer: Tokenizer,
    lines: Iterator[str],
    write: Write,
    settings: Settings,
    system: str | None = None,
    generator: torch.Generator | None = None,
) -> Dialog:
    """Answer line after line until /quit or the last line; the dialogue as it stands at the end."""
    if settings.max_new_tokens >= model.config.max_seq_len:
        raise ValueError(
            f"max_new_tokens {settings.max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{model.config.max_seq_len} tokens; give a smaller one"
        )
    dialog = _opening(system)
    for line in lines:
        line = line.strip()
        command, _, text = line.partition(" ")
        if command == "/quit":
            break
        if command in ("/reset", "/system"):
            dialog = _restart(dialog, command, text.strip(), write)
        elif command.startswith("/"):
            write(f"unknown command {command}: {COMMANDS}", "notice")
        elif line:
            dialog = take_turn(model, tokenizer, dialog, line, write, settings, generator)
    return dialog


def take_turn(
    model: LanguageModel,
    tokenizer: Tokenizer,
    dialog: Dialog,
    message: str,
    write: Write,
    settings: Settings,
    generator: torch.Generator | None = None,
) -> Dialog:
    """One message and its answer; a message that cannot be sent is explained and leaves the dialogue as it was."""
    if found := find_control_tags(message):
        write(f"not sent: the message holds the control tag {found[0].text!r}; write it without", "notice")
        return dialog
    room = model.config.max_seq_len - settings.max_new_tokens
    try:
        asked = truncate_dialog(dialog.then("user", message), tokenizer, room)
        prompt = encode_prompt(asked, tokenizer)
    except ValueError as error:
        write(f"not sent: {error}", "notice")
        return dialog
    dropped = (len(dialog.messages) + 1 - len(asked.messages)) // 2
    if dropped:
        write(
            f"the context is full: the oldest {dropped} turn{'s' * (dropped > 1)} dropped out of it", "notice"
        )
    rollout = generate(
        model,
        [prompt],
        max_new_tokens=settings.max_new_tokens,
        eos_id=tokenizer.eos_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        generator=generator,
    )
    answer = strip_control_tags(tokenizer.decode(responses(rollout)[0])).strip()
    write(answer, "answer")
    if not rollout.finished.item():
        write(f"cut at {settings.max_new_tokens} tokens; --max_new_tokens allows more", "notice")
    return asked.then("assistant", answer)


def find_tokenizer(checkpoint: Path) -> Path:
    """tokenizer.model in the checkpoint's folder, or in the run's: <run>/<stage>/…/x.ckpt and <run>/tokenizer/."""
    start = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for folder in (start, *list(start.absolute().parents)[:2]):
        for path in (folder / "tokenizer.model", folder / "tokenizer" / "tokenizer.model"):
            if path.is_file():
                return path
    raise ValueError(
        f"{checkpoint}: no tokenizer.model beside it; give one with --tokenizer path/to/tokenizer.model"
    )


def _opening(system: str | None) -> Dialog:
    """An empty dialogue with its system message, if any."""
    if system and (found := find_control_tags(system)):
        raise ValueError(f"the system message holds the control tag {found[0].text!r}; write it without")
    return Dialog.of([("system", system)] if system else [])


def _restart(dialog: Dialog, command: str, text: str, write: Write) -> Dialog:
    """The dialogue after /reset (same system message) or /system TEXT (a new one)."""
    if command == "/reset":
        write("the conversation starts over", "notice")
        return Dialog(tuple(message for message in dialog.messages if message.role == "system"))
    try:
        fresh = _opening(text)
    except ValueError as error:
        write(f"not set: {error}", "notice")
        return dialog
    write(f"the conversation starts over with {'this' if text else 'no'} system message", "notice")
    return fresh


def _terminal() -> tuple[Iterator[str], Write]:
    """Lines from standard input and a way to write in colour; plain where the output is no terminal."""
    console = Console(highlight=False)

    def write(text: str, kind: str) -> None:
        # Text, not markup: a model may write [bold] and mean the letters.
        text = visible(text)
        console.print(Text(f"({text})", style="dim") if kind == "notice" else Text(text, style="green"))

    return _lines(lambda: console.input("[bold]you:[/bold] ")), write


def visible(text: str) -> str:
    """The text with control characters written out: ESC would move the cursor or fill the clipboard."""
    return "".join(
        f"<U+{ord(c):04X}>" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text
    )


def _lines(ask: Callable[[], str]) -> Iterator[str]:
    """What is typed, or piped in, until it ends."""
    while True:
        try:
            yield ask()
        except (EOFError, KeyboardInterrupt):
            print()
            return

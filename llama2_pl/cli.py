"""One command line: fit, validate, test and predict through LightningCLI, and the tools of the registry."""

from __future__ import annotations

import difflib
import sys
from typing import Any

from llama2_pl import __version__
from llama2_pl.commands.registry import TOOLS, find_tool, run_tool

TRAINER_COMMANDS = {
    "fit": "train: --config configs/stage/… --config configs/size/… --config configs/trainer/…",
    "validate": "one pass over the validation set",
    "test": "one pass over the test set",
    "predict": "predictions: generation, best-of-K sampling",
}


def usage() -> str:
    """The text of `llama2-pl --help`."""
    commands = {**TRAINER_COMMANDS, **{name: tool.about for name, tool in TOOLS.items()}}
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {about}" for name, about in commands.items()]
    return "\n".join(
        [
            "usage: llama2-pl COMMAND [options]",
            "",
            "The whole Llama 2 recipe, from tokenizer to PPO.",
            "",
            "commands:",
            *lines,
            "",
            "llama2-pl COMMAND --help lists the options of a command. LLAMA2_PL_DEBUG=1 shows tracebacks,",
            "LLAMA2_PL_ALLOW_IMPORTS=mypackage lets configs name classes of your own package.",
        ]
    )


def unknown_command(word: str) -> str:
    """The error for a word that is no command: those that begin with it, or the nearest."""
    known = [*TRAINER_COMMANDS, *TOOLS]
    longer = [name for name in known if name.startswith(f"{word} ")]
    meant = longer or difflib.get_close_matches(word, known, n=1)
    what = f"{word!r} begins a command" if longer else f"unknown command {word!r}"
    advice = f"; did you mean {', '.join(meant)}?" if meant else ""
    return f"llama2-pl: {what}{advice}\nllama2-pl --help lists the commands"


def refuse_secrets(config: Any) -> None:
    """ValueError, without its value, where a config holds a password or key; for what drives `main`."""
    from llama2_pl.commands import parsing  # jsonargparse: imported when a command runs

    parsing.refuse_secrets(config)


def main(args: list[str] | None = None) -> None:
    """Run one command; raises what goes wrong. In-process callers may call it any number of times.

    Args:
        args: the words after `llama2-pl`; None takes them from the command line.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in {"-h", "--help"}:
        print(usage())
    elif args[0] == "--version":
        print(f"llama2-pl {__version__}")
    elif args[0] in TRAINER_COMMANDS:
        from llama2_pl.commands.training import run_training

        run_training(args)
    elif (found := find_tool(args)) is not None:
        run_tool(*found)
    else:
        print(unknown_command(args[0]), file=sys.stderr)
        raise SystemExit(2)

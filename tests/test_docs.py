"""What the documents state is run: the import script from another folder, the README's commands through the parser."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llama2_pl
from llama2_pl import callbacks, generation, text
from llama2_pl.cli import TRAINER_COMMANDS, main
from llama2_pl.commands.registry import find_tool, parse_tool

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    """The fenced code blocks of a document, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The words after `llama2-pl` of each command line that a document's bash blocks show."""
    lines = "".join(blocks(document, "bash")).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0].endswith("llama2-pl")]


def test_the_import_script_runs_from_another_folder(tmp_path: Path) -> None:
    (script,) = blocks("docs/import_into_your_project.md", "python")
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reward model trained" in done.stdout
    assert list((tmp_path / "my_logs").rglob("metrics.csv"))


def test_the_readme_shows_the_commands_of_the_recipe() -> None:
    shown = commands("README.md")
    assert len(shown) >= 12
    assert {words[0] for words in shown} >= {"fit", "predict", "tokenizer", "winners", "chat"}


@pytest.mark.parametrize("words", commands("README.md"), ids=lambda words: " ".join(words)[:70])
def test_a_command_of_the_readme_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if words[0] in TRAINER_COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code == 0
    else:
        found = find_tool(words)
        assert found is not None
        assert parse_tool(*found)


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not document.parent.joinpath(t).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "public",
    [
        getattr(package, name)
        for package in (llama2_pl, callbacks, generation)
        for name in package.__all__
        if inspect.isroutine(public := getattr(package, name)) or inspect.isclass(public)
    ]
    + [text.encode_dialog, text.encode_prompt, text.truncate_dialog, text.train_tokenizer],
    ids=lambda public: public.__name__,
)
def test_a_public_docstring_names_each_argument(public: Callable) -> None:
    """Tuples that are given and never made, and functions of one argument, say it in a sentence."""
    parameters = [] if hasattr(public, "_fields") else list(inspect.signature(public).parameters)
    if len(parameters) > 1 or inspect.isclass(public):
        named = re.findall(r"^    (?:    )?(\w+): ", inspect.getdoc(public) or "", re.MULTILINE)
        assert [name for name in parameters if name not in named] == []


def test_make_shows_its_targets() -> None:
    make = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert {"demo", "test", "check", "bench"} <= {line.split()[0] for line in make.stdout.splitlines()}

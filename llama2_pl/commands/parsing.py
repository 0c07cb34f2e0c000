"""Settings of every parser: which class paths a config may name, and errors that fit on a screen."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

ALLOW_IMPORTS = "LLAMA2_PL_ALLOW_IMPORTS"
DEBUG = "LLAMA2_PL_DEBUG"

# A dotted path in a YAML file is imported, and importing runs code. So: what our configs need, nothing wider.
_ALLOWED = (
    "llama2_pl",
    "lightning.pytorch",
    "lightning.fabric.plugins",
    "torch.optim",
    "torch.distributed.fsdp",
    "torchmetrics",
)


# What a config must not hold: it is saved beside the run.
_SECRET = re.compile(
    r"(^|[_.-])((api|access|private|secret|wandb)[_-]?key|(auth[_-]?)?token|secret|password|passwd|pwd|passphrase|"
    r"credentials?|authorization|bearer)$",
    re.I,
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def debugging() -> bool:
    """Whether errors keep their tracebacks."""
    return os.environ.get(DEBUG, "") not in {"", "0"}


def allowed_imports() -> list[str]:
    """Our list and the comma-separated packages of the environment variable LLAMA2_PL_ALLOW_IMPORTS."""
    extra = [name.strip() for name in os.environ.get(ALLOW_IMPORTS, "").split(",") if name.strip()]
    for name in extra:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise ValueError(
                f"{ALLOW_IMPORTS}: {name!r} is no import path; separate packages by commas, as in mypackage,other.sub"
            )
    return [*_ALLOWED, *extra]


def restrict_imports() -> None:
    """Refuse every class path outside the allow-list, and configs from anywhere but local files.

    These are settings of the process, made when a command runs and not when the package is imported.
    """
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=allowed_imports(),
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
    )


def refuse_secrets(config: Any, place: str = "", key: str = "") -> None:
    """Raise ValueError, without its value, where a config holds a password or key: it would be saved and logged.

    One is known by its name, by being the value of a variable that is named so, or by its place in a URL.
    """
    if isinstance(config, str) and config:
        if _SECRET.search(key) or _in_environment(config) or _URL_PASSWORD.search(config):
            raise ValueError(
                f"{place} looks like a secret, and configs are saved in the run's folder; give it in the "
                "environment instead, as WANDB_API_KEY for W&B"
            )
    elif isinstance(config, (list, tuple)):
        for number, part in enumerate(config):
            refuse_secrets(part, f"{place}[{number}]", key)
    elif isinstance(config, (dict, Namespace)):
        for name, value in (vars(config) if isinstance(config, Namespace) else config).items():
            refuse_secrets(value, f"{place}.{name}" if place else str(name), str(name))


def _in_environment(text: str) -> bool:
    """Whether a text holds the value of a variable that is named like a secret, under whatever name it stands here."""
    # a shell's PWD is its working directory
    named = (value for name, value in os.environ.items() if _SECRET.search(name) and name != "PWD")
    return any(len(value) > 7 and value in text for value in named)


def check_config(path: str) -> None:
    """Raise TypeError, which parsers report, with the file's name where it is no text, no YAML or no mapping."""
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise TypeError(f"{path}: no text file in UTF-8 (byte {error.start}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise TypeError(
            f"{path}{_yaml_problem(error)}; a config is YAML, `option: value` in each line"
        ) from error
    if not isinstance(root, yaml.MappingNode):
        holds = "is empty" if root is None else f"holds a {root.id}"
        raise TypeError(f"{path}: {holds}; a config is a mapping, `option: value` in each line")


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{place}: {problem or str(error).splitlines()[0]}"


class ShortErrors(ArgumentParser):
    """A parser whose errors are a line of advice: not the hundred lines of usage of a Trainer."""

    command = "llama2-pl"
    of_class: type = object

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Namespace:
        if Path(path).is_file():  # a pipe can be read once
            check_config(os.fspath(path))
        return super().parse_path(path, *args, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        if self.exit_on_error:  # not the parser of a class, which does not know the command
            ShortErrors.command = self.prog.replace(" [options]", "")
        return super().parse_args(args, *rest, **kwargs)

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        self.of_class = theclass
        return super().add_class_arguments(theclass, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [option for action in parser._actions for option in action.option_strings]
        help_ = f"{self.command} --help lists"
        if not parser.exit_on_error:
            place, help_ = _of_class(self.of_class, self.command)
            message = place + message
        message = re.sub(r"(--[^\s=]+)=\S+", _without_secret, shortened(message))
        sys.stderr.write(f"{self.command}: error: {message}{advice(message, options)}\n{help_} the options\n")
        raise SystemExit(2)


# Where a class stands on a trainer's command line, by the name of its base.
_PLACES = {
    "LightningModule": "model",
    "LightningDataModule": "data",
    "Callback": "trainer.callbacks",
    "Logger": "trainer.logger",
}


def _of_class(theclass: type, command: str) -> tuple[str, str]:
    """Of an error inside a class: what stands before it, and which help lists the options."""
    name, bases = theclass.__name__, {base.__name__ for base in theclass.__mro__}
    key = next((key for base, key in _PLACES.items() if base in bases), None)
    if key is None:
        return f"{name}: ", f"{command} --help lists"
    return f"--{key} {name}: ", f"{command} --help and {command} --{key}.help {name} list"


def shortened(message: str) -> str:
    """A message without the types that were tried, where a class name or a backbone's file is wrong."""
    absent = r'Parser key "backbone":\s+- Expected a path but (.*) either'
    if (found := re.search(absent, message)) is not None:
        return f"{message[: found.start()]}no file backbone {found[1]}"
    wrong = r'Parser key "([^"]+)":.*Expected a dot import path string: (\S+)'
    if (found := re.search(wrong, message, re.S)) is not None:
        return f"--{found[1]} {found[2]}: no class has this name"
    return message


def _without_secret(option: re.Match[str]) -> str:
    return f"{option[1]}=…" if _SECRET.search(option[1]) else option[0]


def advice(message: str, options: list[str]) -> str:
    """What a parser's message leaves out: the option that was meant, or how to allow an import."""
    if "import path denylist" in message:
        return f"\nA config may name classes of {', '.join(_ALLOWED)}; set {ALLOW_IMPORTS}=yourpackage for your own."
    if (missing := re.search(r"No module named '([^']+)'", message)) is not None:
        return f"\nInstall {missing[1]}, or name the folder that it lies in: PYTHONPATH=. {ShortErrors.command} …"
    if (unknown := re.search(r"unrecognized arguments: (--[^\s=]+)", message)) is not None:
        return did_you_mean(unknown[1], options)
    if (unknown := re.search(r"Option '(\w+)' is not accepted$", message)) is not None:
        return did_you_mean(unknown[1], [option.removeprefix("--") for option in options])
    if (unknown := re.search(r"(\w+): no class has this name$", message)) is not None:
        return did_you_mean(unknown[1], _class_names())
    if (unknown := re.search(r"no file backbone (.*)$", message)) is not None:
        presets = [file.name for file in files("llama2_pl.configs").joinpath("backbone").iterdir()]
        close = difflib.get_close_matches(f"{unknown[1]}.yaml", presets, n=1)
        return f"; presets are files, as $(llama2-pl configs)/backbone/{(close or ['7B.yaml'])[0]}"
    if message.startswith("ModelConfig: the following arguments are required"):
        return "; give all of a backbone, or none of it beside init_from; a longer context alone is --model.max_seq_len"
    return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word nearest to one that is not, as the end of an error; nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _class_names() -> list[str]:
    # of a Trainer: a tool loads none of them
    from llama2_pl.data import __all__ as data
    from llama2_pl.modules import __all__ as modules

    return [*modules, *data]


def root_of(error: BaseException) -> BaseException:
    """The error of a constructor that jsonargparse wraps once for every type of a union that it tried."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__:
        error = error.__cause__
    return error

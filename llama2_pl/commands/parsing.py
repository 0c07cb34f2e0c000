"""Settings of every parser: which class paths a config may name, and errors that fit on a screen."""

from __future__ import annotations

import difflib
import os
import re
import sys
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

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Namespace:
        if Path(path).is_file():  # a pipe can be read once
            check_config(os.fspath(path))
        return super().parse_path(path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if debugging():
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [option for action in parser._actions for option in action.option_strings]
        prog = parser.prog.replace(" [options]", "")
        message = re.sub(r"(--[^\s=]+)=\S+", _without_secret, message)
        sys.stderr.write(
            f"{prog}: error: {message}{advice(message, options)}\n{prog} --help lists the options\n"
        )
        raise SystemExit(2)


def _without_secret(option: re.Match[str]) -> str:
    return f"{option[1]}=…" if _SECRET.search(option[1]) else option[0]


def advice(message: str, options: list[str]) -> str:
    """What a parser's message leaves out: the option that was meant, or how to allow an import."""
    if "import path denylist" in message:
        return f"\nA config may name classes of {', '.join(_ALLOWED)}; set {ALLOW_IMPORTS}=yourpackage for your own."
    if (unknown := re.search(r"unrecognized arguments: (--[^\s=]+)", message)) is not None:
        close = difflib.get_close_matches(unknown[1], options, n=1)
        return f"; did you mean {close[0]}?" if close else ""
    return ""


def root_of(error: BaseException) -> BaseException:
    """The error of a constructor that jsonargparse wraps once for every type of a union that it tried."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__:
        error = error.__cause__
    return error

"""`--out FOLDER`: a run of the packaged configs in a folder of its own."""

from __future__ import annotations

import os
from typing import Any

from jsonargparse import Namespace

_FOLDERS = (
    "dir",
    "dirpath",
    "out",
)  # ends of the names of options whose value may be the run's folder itself


def move_run(config: Namespace, folder: str) -> None:
    """Put what a run writes into another folder, in place.

    A stage config names its folder in `trainer.default_root_dir` and, as loggers and callbacks want it, in `save_dir`
    and `dirpath`; answers go to the module's `out`. What lies in that folder comes to lie in the new one. What the run
    reads stays where it is.
    """
    trainer, model = config["trainer"], config.get("model")
    old = trainer.get("default_root_dir")
    trainer["default_root_dir"] = folder
    if not old:
        return
    for name in ("logger", "callbacks"):
        trainer[name] = _moved(trainer.get(name), os.fspath(old), folder)
    init_args = model.get("init_args") if isinstance(model, Namespace) else None
    if init_args and init_args.get("out"):
        init_args["out"] = _moved(init_args["out"], os.fspath(old), folder, "out")


def _moved(value: Any, old: str, new: str, key: str = "") -> Any:
    """The value with every path in the old folder in the new one."""
    if isinstance(value, list):
        return [_moved(part, old, new, key) for part in value]
    if isinstance(value, (dict, Namespace)):
        for name in list(vars(value) if isinstance(value, Namespace) else value):
            value[name] = _moved(value[name], old, new, name)
        return value
    if not isinstance(value, (str, os.PathLike)):
        return value
    path, root = os.path.normpath(value), os.path.normpath(old)
    if path == root and key.endswith(_FOLDERS):
        return new
    return os.path.join(new, path[len(root) + 1 :]) if path.startswith(root + os.sep) else value

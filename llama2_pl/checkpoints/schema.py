"""What is in our checkpoints, by version: an older one is brought up to date, a newer one refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEY = "llama2_pl_schema"


def _from_0(checkpoint: dict[str, Any]) -> None:
    """Before versions were written: tokens and tokenizer may be missing."""
    checkpoint.setdefault("tokens_seen", 0)
    checkpoint.setdefault("tokenizer_sha256", None)


# MIGRATIONS[n] makes version n + 1 of version n, in place.
MIGRATIONS: list[Callable[[dict[str, Any]], None]] = [_from_0]
SCHEMA = len(MIGRATIONS)


def migrate(checkpoint: dict[str, Any]) -> None:
    """Bring a loaded checkpoint up to this version, in place; ValueError where it comes from a newer llama2_pl."""
    found = checkpoint.get(KEY, 0)
    if type(found) is not int or not 0 <= found <= SCHEMA:
        raise ValueError(
            f"the checkpoint has schema version {found!r} and this llama2_pl knows versions up to {SCHEMA}: update "
            "llama2_pl, or give a checkpoint of this version"
        )
    for step in MIGRATIONS[found:]:
        step(checkpoint)
    checkpoint[KEY] = SCHEMA

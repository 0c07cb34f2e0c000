"""`llama2-pl data pairs`: preference files of any format to our own, held-out pairs and prompts beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama2_pl.data.dialogues import opening
from llama2_pl.data.readers import PreferenceRow, ReadReport, preference_to_row, read_preferences, write_jsonl
from llama2_pl.data.readers.dialogues import messages_to_json
from llama2_pl.data.sampling import is_held_out
from llama2_pl.text.tags import find_control_tags


def convert_pairs(
    files: list[str],
    out: str,
    is_safety: bool = False,
    val_fraction: float = 0.1,
    max_characters: int | None = None,
    format: str = "auto",
    strict: bool = True,
) -> None:
    """Write out/{train,val}.jsonl with pairs and out/prompts_{train,val}.jsonl with their prompts, each prompt once.

    Pairs and prompts are held out together, by their first user message, so that no model is judged on what it saw.

    Args:
        files: preference files, for example Anthropic's hh-rlhf.
        out: folder of the four files.
        is_safety: tag of these prompts: may they bring out an unsafe answer (Llama 2 §3.2.3)?
        val_fraction: share held out.
        max_characters: leave out pairs whose prompt and longer answer have more, for models with a short context.
        format: of all files; "auto" tells it from their keys.
        strict: stop at a malformed row, or skip and count it; too large a share of them stops either way.
    """
    report, pairs = ReadReport(), dict[str, list[PreferenceRow]](train=[], val=[])
    for path in files:
        for row in read_preferences(path, format, is_safety=is_safety, strict=strict, report=report):
            if any(find_control_tags(text) for text in _texts(row)):
                report.unusable["a control tag in the text"] += 1
            elif (
                max_characters is not None
                and sum(map(len, _texts(row)[:-2])) + _longest(row) > max_characters
            ):
                report.unusable[f"more than {max_characters} characters"] += 1
            else:
                pairs["val" if is_held_out(opening(row.prompt), val_fraction) else "train"].append(row)
    for split, rows in pairs.items():
        write_jsonl(Path(out) / f"{split}.jsonl", map(preference_to_row, rows))
        write_jsonl(Path(out) / f"prompts_{split}.jsonl", _prompts(rows, split))
    print(f"{out}: {len(pairs['train'])} pairs to train, {len(pairs['val'])} held out; {report}")


def _texts(row: PreferenceRow) -> list[str]:
    return [*(message.content for message in row.prompt.messages), row.chosen, row.rejected]


def _longest(row: PreferenceRow) -> int:
    return max(len(row.chosen), len(row.rejected))


def _prompts(rows: list[PreferenceRow], split: str) -> list[dict[str, Any]]:
    unique = {row.prompt: row.is_safety for row in rows}
    return [
        {"messages": messages_to_json(prompt), "is_safety": tag, "id": f"{split}-{number}"}
        for number, (prompt, tag) in enumerate(unique.items())
    ]

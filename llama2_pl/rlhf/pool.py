"""The pool: the best samples of all versions with their lineage, re-scored by the newest reward models.

Llama 2 §3.2.3: until V3 a version was fine-tuned on samples of the preceding iteration alone, and forgot (rhyming,
for one); from V4 on the top samples of all earlier iterations stay in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.readers import PromptRow, write_jsonl
from llama2_pl.data.readers.dialogues import messages_from_json
from llama2_pl.evaluation.judges import Judges
from llama2_pl.files import write_json
from llama2_pl.modules.answer_files import read_rows
from llama2_pl.modules.rejection_sampling import may_be_taken
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.scores import load_judges
from llama2_pl.text.tags import strip_control_tags

Policy = Literal["previous", "all"]


class Entry(NamedTuple):
    """An answer in the pool and where it comes from.

    Attributes:
        messages: the prompt's dialogue.
        is_safety: the prompt's tag.
        answer: its text, control tags cut: text of a model may not forge turns.
        version: the iteration that sampled it.
        sampler: SHA-256 of the checkpoint that it was sampled from.
        temperature: that it was sampled at.
        scores: by version of the reward models: {"2": {"score", "helpfulness", "safety"}}, all linear.
    """

    messages: list[dict[str, str]]
    is_safety: bool
    answer: str
    version: int
    sampler: str
    temperature: float
    scores: dict[str, dict[str, float]]

    @property
    def prompt(self) -> str:
        """What makes two entries answers to one prompt."""
        return json.dumps(self.messages)

    def score(self, version: int) -> float:
        """The combined score by the reward models of a version."""
        return self.scores[str(version)]["score"]


def update_pool(
    samples: str,
    version: int,
    policy: str,
    helpfulness_reward: str,
    safety_reward: str,
    tokenizer: str,
    out: str,
    earlier: str | None = None,
    take: Literal["previous", "all"] = "all",
    keep: int = 1,
    per_prompt: int = 1,
    safety_threshold: float = SAFETY_THRESHOLD,
    hardware: Hardware = HARDWARE,
) -> None:
    """Add an iteration's best samples to the pool, score all of it anew, and write what to fine-tune on.

    Writes out/pool.jsonl (every entry), out/train.jsonl (dialogues) and out/lineage.json (which version and
    temperature they come from, which files judged them).

    Args:
        samples: where RejectionSamplingModule wrote its batch files.
        version: number of this iteration.
        policy: checkpoint that the samples come from.
        helpfulness_reward: checkpoint of the newest helpfulness reward model.
        safety_reward: checkpoint of the newest safety reward model.
        tokenizer: tokenizer.model of all of them.
        out: folder of the new pool.
        earlier: folder of the pool before this iteration; it stays as it is.
        take: "previous": fine-tune on this iteration's samples alone, as the paper until V3; "all": also on the best of
            all iterations before, as after.
        keep: samples of a prompt that enter the pool, best first.
        per_prompt: most answers of an iteration to a prompt to fine-tune on. Our choice: 1, by the newest reward
            models.
        safety_threshold: below this safety score an answer counts as unsafe.
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    entries = read_pool(earlier) if earlier else []
    entries += best_entries(read_rows(samples), version, fingerprint(policy), keep)
    if not entries:
        raise ValueError(
            f"{samples}: not one answer ended by itself, so there is nothing to fine-tune on; raise max_new_tokens "
            "or samples_per_prompt"
        )
    entries = rescored(entries, judges, version)
    taken = choose_entries(entries, version, take, per_prompt)
    folder, models = Path(out), {"helpfulness": helpfulness_reward, "safety": safety_reward}
    write_jsonl(folder / "pool.jsonl", [entry._asdict() for entry in entries])
    write_jsonl(folder / "train.jsonl", [training_dialogue(entry) for entry in taken])
    table = lineage(entries, taken, version)
    judged_by = {name: {"path": path, "sha256": fingerprint(path)} for name, path in models.items()}
    write_json(folder / "lineage.json", {"take": take, "judged_by": judged_by, "versions": table})
    for row in table:
        print(f"pool: {row['taken']} of {row['entries']} entries of version {row['version']} to fine-tune on")


def read_pool(folder: str) -> list[Entry]:
    """The entries of a pool."""
    with (Path(folder) / "pool.jsonl").open(encoding="utf-8") as lines:
        return [Entry(**json.loads(line)) for line in lines]


def best_entries(rows: Iterable[dict[str, Any]], version: int, sampler: str, keep: int) -> list[Entry]:
    """The `keep` best answers of each prompt that ended by themselves, as rejection sampling scored them."""
    entries = []
    for row in rows:
        taken = [sample for sample in row["samples"] if may_be_taken(sample["text"], sample["finished"])]
        for sample in sorted(taken, key=lambda sample: -sample["score"])[:keep]:
            text = strip_control_tags(sample["text"])
            lineage = (version, sampler, sample["temperature"])
            entries.append(Entry(row["messages"], row["is_safety"], text, *lineage, scores={}))
    return entries


def rescored(entries: Sequence[Entry], judges: Judges, version: int) -> list[Entry]:
    """The entries with their scores by the reward models of `version` beside those that they have."""
    asked = [PromptRow(messages_from_json(entry.messages), entry.is_safety) for entry in entries]
    columns = judges.scores(asked, [entry.answer for entry in entries])
    rows = zip(entries, *(column.tolist() for column in columns), strict=True)
    return [
        entry._replace(
            scores={**entry.scores, str(version): {"score": score, "helpfulness": helpful, "safety": safe}}
        )
        for entry, helpful, safe, score in rows
    ]


def choose_entries(entries: Sequence[Entry], version: int, take: Policy, per_prompt: int) -> list[Entry]:
    """What version `version` is fine-tuned on: of each iteration and prompt the best by the newest reward models.

    No answer to a prompt twice, whichever iterations found it.
    """
    asked = [entry for entry in entries if take == "all" or entry.version == version]
    best: dict[tuple[str, int], set[str]] = defaultdict(set)  # texts of an iteration for a prompt
    for entry in sorted(asked, key=lambda entry: -entry.score(version)):
        if len(texts := best[entry.prompt, entry.version]) < per_prompt:
            texts.add(entry.answer)
    different: dict[tuple[str, str], Entry] = {}
    for entry in asked:
        if entry.answer in best[entry.prompt, entry.version]:
            different.setdefault((entry.prompt, entry.answer), entry)
    return list(different.values())


def training_dialogue(entry: Entry) -> dict[str, Any]:
    """An entry as a line of the dialogue data module's file."""
    return {"messages": [*entry.messages, {"role": "assistant", "content": entry.answer}]}


def lineage(entries: Sequence[Entry], taken: Sequence[Entry], version: int) -> list[dict[str, Any]]:
    """A row per sampling version: how much of it is in the pool and fine-tuned on, and its mean newest score."""
    rows = []
    for number in sorted({entry.version for entry in entries}):
        mine = [entry for entry in entries if entry.version == number]
        rows.append(
            {
                "version": number,
                "sampler": mine[0].sampler,
                "temperatures": sorted({entry.temperature for entry in mine}),
                "entries": len(mine),
                "taken": sum(entry.version == number for entry in taken),
                "score": sum(entry.score(version) for entry in mine) / len(mine),
            }
        )
    return rows

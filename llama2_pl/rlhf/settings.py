"""What a run of `llama2-pl rlhf` is made of: its options, and where each thing of a version lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# The training stages of a version, in order, with the Trainer command of each.
TRAINED = {
    "reward_helpfulness": "fit",
    "reward_safety": "fit",
    "best_of_k": "predict",
    "fine_tune": "fit",
    "ppo": "fit",
}
Options = dict[str, dict[str, bool | int | float | str]]


@dataclass(frozen=True)
class Files:
    """What the loop starts from. `$START` in a path stands for the folder `start`.

    Args:
        policy: version 0, the chat model whose answers are rated first.
        base: what each version is fine-tuned from.
        tokenizer: tokenizer.model of all models.
        prompts: for ratings, rejection sampling and PPO.
        held_out: prompts that nothing trains on; one half chooses, the other is reported.
        helpful: preference files that are there before the first batch of ratings.
        safety: the same for safety.
        open_source: pairs of others about helpfulness. For the helpfulness model they and the safety pairs are what it
            draws its other half from, for the safety model they are helpfulness pairs (§3.2.2).
        helpful_val: held-out preference files.
        safety_val: the same for safety.
    """

    policy: str
    base: str
    tokenizer: str
    prompts: str
    held_out: str
    helpful: list[str] = field(default_factory=list)
    safety: list[str] = field(default_factory=list)
    open_source: list[str] = field(default_factory=list)
    helpful_val: list[str] = field(default_factory=list)
    safety_val: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ratings:
    """One batch of ratings per version.

    Args:
        folder: people's ratings: folder/v1/helpful_train.jsonl, folder/v1/safety_train.jsonl, folder/v2/...; None: a
            simulated annotator, which knows the embedded data alone.
        rounds: pairs per prompt.
        temperatures: of the two answers of a pair, in turn.
        noise: standard deviation of the annotator's error, in units of utility.
        limit: use only the first prompts.
        first_batch: number of version 1's batch, above those of the first files; a version adds to it.
    """

    folder: str | None = None
    rounds: int = 1
    temperatures: list[float] = field(default_factory=lambda: [0.7, 1.1])
    noise: float = 0.25
    limit: int | None = None
    first_batch: int = 1


@dataclass(frozen=True)
class Sampling:
    """Rejection sampling, its pool and its temperature.

    Args:
        samples_per_prompt: K; the paper does not state it, its figures explore 1 to 100.
        temperatures: to try for each version; by default those of fig. 8.
        sweep_prompts: held-out prompts of that trial.
        max_new_tokens: longest answer, here and everywhere in the loop.
        pool: "previous", "all", or "paper": previous until version 3, all after (§3.2.3).
        keep: samples of a prompt that enter the pool.
        per_prompt: most answers of an iteration to a prompt to fine-tune on.
    """

    samples_per_prompt: int = 20
    temperatures: list[float] = field(default_factory=lambda: [0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    sweep_prompts: int = 100
    max_new_tokens: int = 512
    pool: Literal["previous", "all", "paper"] = "paper"
    keep: int = 1
    per_prompt: int = 1

    def take(self, version: int) -> str:
        """What a version takes from the pool."""
        return ("all" if version > 3 else "previous") if self.pool == "paper" else self.pool


@dataclass(frozen=True)
class Start:
    """A folder to start from, and the recipe that makes it where it is not there, or not finished, yet.

    Args:
        folder: what $START stands for.
        recipe: see `llama2-pl recipe`; a finished folder is used as it is. None: the folder is there.
        until: the recipe's last stage.
    """

    folder: str
    recipe: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Every:
    """How often something happens while a version trains.

    Args:
        save: optimizer steps between the checkpoints that a killed stage goes on from.
        candidate: optimizer steps between those of fine-tuning that the version is chosen from.
        look: PPO iterations between looks at held-out prompts.
        patience: PPO stops after this many looks without a new best.
    """

    save: int = 100
    candidate: int = 100
    look: int = 10
    patience: int = 5


@dataclass(frozen=True)
class Loop:
    """All that decides what the stages are, and where things lie; see `rlhf`."""

    out: Path
    files: Files
    configs: dict[str, list[str]]
    options: Options
    ratings: Ratings
    sampling: Sampling
    every: Every
    versions: int
    ppo_from: int
    fine_tune_from: str
    teacher: Path | None
    answers_per_prompt: int
    seed: int

    def at(self, version: int, *parts: str) -> str:
        return str(self.out.joinpath(f"v{version}", *parts))

    def policy(self, version: int) -> str:
        """The checkpoint that a version ended with; 0 is the start."""
        return self.at(version, "choice", "policy.ckpt") if version else self.files.policy

    def judges(self, version: int) -> dict[str, str]:
        """The reward models of a version by option; with a teacher, the teacher's."""
        folder = (self.teacher or self.out) / f"v{version}"
        return {
            f"{kind}_reward": str(folder / f"reward_{kind}/last.ckpt") for kind in ("helpfulness", "safety")
        }

    def pool(self, version: int) -> str:
        """The pool that a version is fine-tuned on; with a teacher, the teacher's."""
        return str((self.teacher or self.out) / f"v{version}/pool")

    def batch(self, version: int, kind: str, split: str = "train") -> str:
        """A version's own ratings."""
        people = self.ratings.folder
        folder = self.out / f"v{version}/ratings" if people is None else Path(people) / f"v{version}"
        return str(folder / f"{kind}_{split}.jsonl")

    def held_out_batch(self, version: int, kind: str) -> str | None:
        """A version's own held-out ratings for the "helpfulness" or "safety" model; people may keep none."""
        path = self.batch(version, "helpful" if kind == "helpfulness" else "safety", "val")
        return path if self.ratings.folder is None or Path(path).exists() else None

    def pairs(self, version: int, kind: str) -> dict[str, list[str]]:
        """The preference files of a version's "helpfulness" or "safety" model, by option of its data module."""
        others = "safety" if kind == "helpfulness" else "helpful"
        rated = {side: self._rated(version, side) for side in ("helpful", "safety")}
        return rated | {others: [*rated[others], *self.files.open_source]}

    def _rated(self, version: int, side: str) -> list[str]:
        first = self.files.helpful if side == "helpful" else self.files.safety
        return [*first, *(self.batch(number, side) for number in range(1, version + 1))]

    def tuned(self, version: int) -> str:
        """What PPO of a version begins with."""
        return self.at(version, "fine_tune/checkpoints/last.ckpt")

    def seed_of(self, version: int) -> int:
        return self.seed * 1000 + version

    def half(self, name: str) -> str:
        """Held-out prompts: "select" or "test"."""
        return str(self.out / f"held_out/{name}.jsonl")

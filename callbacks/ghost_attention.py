"""GhostAttention: the current chat model makes dialogues that hold an instruction, and then learns them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from llama2_pl.callbacks.common import autocast_of, find_language_model
from llama2_pl.callbacks.gatt_build import History, Place, build_dialogues, draw_plan, turns_of
from llama2_pl.callbacks.gatt_lists import ANSWERS, constraints_by_model, fixed_constraints
from llama2_pl.callbacks.gatt_sampling import ChatSampling, chat_sampler
from llama2_pl.callbacks.rewards import Reward, check_reward, find_reward
from llama2_pl.data.readers import dialog_to_row, read_dialogues, write_jsonl
from llama2_pl.data.readers.prompts import PromptRow
from llama2_pl.files import write_json
from llama2_pl.model.heads import LanguageModel
from llama2_pl.model.parallel import weights_fingerprint
from llama2_pl.text.chat import Dialog, Role
from llama2_pl.text.constraints import Constraint, read_constraints
from llama2_pl.text.tokenizer import Tokenizer


class Built(NamedTuple):
    """The dialogues, from how many tries, and the constraints that they were drawn from."""

    dialogues: list[Dialog]
    tried: int
    constraints: list[Constraint]


class GhostAttention(L.Callback):
    """Builds Ghost Attention's dialogues before training and hands them to the data module.

    Llama 2 §3.3 and A.3.5: inst is put to every user message of a dialogue, the current chat model answers; to learn
    from, inst stays in the first turn alone, shortened half of the time, and only the last answer is trained on.

    The model is the module's own, with the weights that the training starts from. The data module takes the
    dialogues by `add_dialogues(dialogues, train_on="last_answer")`, as DialogueDataModule does.

    They are kept in `out`. A resume reads them from there, and so does a new run of equal settings and weights;
    another model or other settings build them anew. All ranks sample the same, as sharded weights need, and rank 0's
    dialogues count.

    Args:
        source_dialogues: files that `read_dialogues` reads: the user messages, and with `history="original"` the
            earlier answers, come from there.
        tokenizer: path of a SentencePiece tokenizer.model.
        out: file for the dialogues, JSON lines; what made them is noted in `<out>.meta.json`, their constraints in
            `<out>.constraints.jsonl`.
        constraints: "model": hobbies and public figures that the model names, and languages, as in the paper; "fixed":
            the lists of `gatt_lists` in their place; or a file or rows {"text", "short", "check", "kind"}, see
            `llama2_pl.text.constraints`.
        list_length: hobbies, and public figures, that the model must name; fewer are an error.
        num_dialogues: how many to build.
        turns: most user turns of a dialogue; each has from 2 to this many.
        max_constraints: most constraints joined to one instruction; those of one kind exclude each other.
        samples: answers sampled per question, of which one is taken.
        attempts: rounds of drawing; each replaces the dialogues that the round before could not finish. Also the rounds
            in which the model is asked for hobbies and public figures.
        shorten_probability: how often the instruction is learned in its short form.
        history: "original" or "resampled", see `build_dialogues`.
        place: where the instruction is learned: "system" message or first "user" message.
        check: only answers that keep what a program can check.
        reward: function (prompts, answers) -> numbers that picks the best of the samples; see
            `llama2_pl.callbacks.Reward`.
        helpfulness_reward: or the checkpoint of a helpfulness reward model.
        safety_reward: and of a safety reward model.
        model_attribute: where the module has its chat model, dots allowed; by default `model`, else `policy`.
        max_new_tokens: most tokens of an answer; one that does not end within is not used.
        temperature: of the answers; ours by default is that of Meta's chat code.
        top_p: of the answers, likewise.
        seed: of dialogues and answers.
        max_batch: most answers sampled at a time.
    """

    def __init__(
        self,
        source_dialogues: str | list[str],
        tokenizer: str,
        out: str,
        constraints: str | list[dict[str, Any]] = "model",
        list_length: int = 16,
        num_dialogues: int = 1000,
        turns: int = 4,
        max_constraints: int = 2,
        samples: int = 1,
        attempts: int = 4,
        shorten_probability: float = 0.5,
        history: Literal["original", "resampled"] = "original",
        place: Literal["system", "user"] = "system",
        check: bool = True,
        reward: Callable[[Sequence[PromptRow], Sequence[str]], Sequence[float]] | None = None,
        helpfulness_reward: str | None = None,
        safety_reward: str | None = None,
        model_attribute: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.6,
        top_p: float = 0.9,
        seed: int = 0,
        max_batch: int = 64,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("history", history, History), ("place", place, Place)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} {value!r}: choose one of {', '.join(get_args(allowed))}")
        check_reward(reward, helpfulness_reward, safety_reward)
        self.source_dialogues = [source_dialogues] if isinstance(source_dialogues, str) else source_dialogues
        self.tokenizer = tokenizer
        self.out = Path(out)
        # None: the model names them, once it is there
        self.constraints = None if constraints == "model" else _given(constraints)
        self.list_length = list_length
        self.num_dialogues = num_dialogues
        self.turns = turns
        self.max_constraints = max_constraints
        self.samples = samples
        self.attempts = attempts
        self.shorten_probability = shorten_probability
        self.history: History = history
        self.place: Place = place
        self.check = check
        self.reward: Reward | None = reward
        self.helpfulness_reward = helpfulness_reward
        self.safety_reward = safety_reward
        self.model_attribute = model_attribute
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.seed = seed
        self.max_batch = max_batch
        self._trained_on = ""
        self._restored = ""
        self._check_counts()

    # Hooks ------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The networks are built and loaded, and the training loader is not made yet."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "add_dialogues"):
            raise ValueError(
                f"GhostAttention hands its dialogues to add_dialogues(dialogues, train_on) of a data module, and "
                f"{type(datamodule).__name__} has none: use trainer.fit(model, datamodule=DialogueDataModule(...)), or "
                "build the dialogues by themselves with llama2_pl.callbacks.gatt_build"
            )
        dialogues = self.dialogues(trainer, pl_module)
        self._trained_on = _digest_of(dialogues)
        datamodule.add_dialogues(dialogues, train_on="last_answer")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After every kind of restore."""
        if self._restored and self._restored != self._trained_on:
            raise ValueError(
                f"{self.out} has changed since the checkpoint was written: put it back to resume, or start a new run"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"dialogues": self._trained_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["dialogues"]

    # Parts ------------------------------------------------------------------------------------------------------

    def dialogues(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Dialog]:
        """The dialogues of `out`, or built and written there; the same on every rank."""
        names = [self.model_attribute] if self.model_attribute else ["model", "policy"]
        model = find_language_model(pl_module, names, "model_attribute")
        tokenizer = Tokenizer(self.tokenizer)
        # a sharded strategy restores later: its weights are still those that the first run started from
        resuming = trainer.ckpt_path is not None and not trainer.strategy.restore_checkpoint_after_setup
        made_from = {
            "settings": self.settings(tokenizer),
            "weights": "" if resuming else weights_fingerprint(model),
        }
        reuse = trainer.is_global_zero and self._may_reuse(made_from, resuming)
        if trainer.strategy.broadcast(reuse):
            rows = list(read_dialogues(self.out)) if trainer.is_global_zero else []
            rank_zero_info(f"Ghost Attention: dialogues of {self.out}")
        else:
            reward = find_reward(
                self.reward, self.helpfulness_reward, self.safety_reward, tokenizer, pl_module
            )
            with autocast_of(trainer):
                rows, tried, constraints = self.build(model, tokenizer, reward)
            if trainer.is_global_zero:
                self._write(rows, constraints, made_from)
            rank_zero_info(f"Ghost Attention: {len(rows)} dialogues from {tried} tries, {self.out}")
        return [Dialog.of(row) for row in trainer.strategy.broadcast([_plain(row) for row in rows])]

    def build(self, model: LanguageModel, tokenizer: Tokenizer, reward: Reward | None = None) -> Built:
        """The dialogues, with this model; needs no Trainer."""
        sources = [
            turns for path in self.source_dialogues for turns in map(turns_of, read_dialogues(path)) if turns
        ]
        how = ChatSampling(self.samples, self.max_new_tokens, self.temperature, self.top_p, self.max_batch)
        if not sources or self.constraints == []:
            raise ValueError(
                f"GhostAttention: no {'constraint' if sources else 'source dialogue'}; give some"
            )
        constraints = self.constraints or self._named_by(model, tokenizer, how)
        rng, round_ = random.Random(self.seed), 0
        kept: list[Dialog] = []
        tried = 0
        while len(kept) < self.num_dialogues and round_ < self.attempts:
            wanted = self.num_dialogues - len(kept)
            plans = [
                draw_plan(
                    sources, constraints, self.turns, self.max_constraints, self.shorten_probability, rng
                )
                for _ in range(wanted)
            ]
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + round_)
            sample = chat_sampler(model, tokenizer, generator, how)
            kept += build_dialogues(plans, sample, self.history, self.place, self.check, reward)
            tried, round_ = tried + wanted, round_ + 1
        self._complain(len(kept), tried)
        return Built(kept, tried, constraints)

    def _named_by(self, model: LanguageModel, tokenizer: Tokenizer, how: ChatSampling) -> list[Constraint]:
        generator = torch.Generator().manual_seed(
            self.seed * 1_000_003 + self.attempts
        )  # no round of `build`
        sample = chat_sampler(model, tokenizer, generator, how._replace(samples=ANSWERS))
        return constraints_by_model(sample, self.list_length, self.attempts)

    def settings(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the dialogues depend on beside the weights, in plain values."""
        plain = ("num_dialogues", "turns", "max_constraints", "samples", "attempts", "shorten_probability", "history",
                 "place", "check", "helpfulness_reward", "safety_reward", "max_new_tokens", "temperature", "top_p",
                 "seed")  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain},
            "reward": None
            if self.reward is None
            else getattr(self.reward, "__qualname__", type(self.reward).__name__),
            "tokenizer": tokenizer.sha256,
            "constraints": {"named by the model": self.list_length}
            if self.constraints is None
            else [list(constraint) for constraint in self.constraints],
            "sources": [
                hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.source_dialogues
            ],
        }

    def _check_counts(self) -> None:
        least = {"num_dialogues": 1, "turns": 2, "max_constraints": 1, "samples": 1, "attempts": 1,
                 "list_length": 1}  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")

    def _may_reuse(self, made_from: dict[str, Any], resuming: bool) -> bool:
        """Is `out` what this run would build? ValueError where a resume cannot have what it had."""
        notes = self._notes_path()
        if not (self.out.exists() and notes.exists()):
            if resuming:
                raise ValueError(
                    f"{self.out} or {notes} is missing, and the resumed run was trained on it: put it back"
                )
            return False
        found = json.loads(notes.read_text(encoding="utf-8"))
        changed = [k for k, v in made_from["settings"].items() if found["settings"].get(k) != v]
        if resuming and changed:
            raise ValueError(
                f"{self.out} was built with other {', '.join(changed)} than GhostAttention has now: set them back to "
                "resume, or start a new run"
            )
        return not changed and (resuming or found["weights"] == made_from["weights"])

    def _write(self, rows: list[Dialog], constraints: list[Constraint], made_from: dict[str, Any]) -> None:
        # without its notes a file is not used, so that old notes never stand beside new dialogues
        self._notes_path().unlink(missing_ok=True)
        write_jsonl(self.out, [dialog_to_row(row) for row in rows])
        write_jsonl(self._beside("constraints.jsonl"), [constraint._asdict() for constraint in constraints])
        write_json(self._notes_path(), made_from)

    def _notes_path(self) -> Path:
        return self._beside("meta.json")

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{ending}")

    def _complain(self, kept: int, tried: int) -> None:
        advice = (
            "the model seldom keeps its instructions, or its answers do not end within max_new_tokens "
            f"{self.max_new_tokens}, or the dialogues leave no room for them: raise samples or attempts, use simpler "
            f"constraints or fewer turns{', or set check to false' if self.check else ''}"
        )
        if kept == 0:
            raise ValueError(
                f"GhostAttention: none of {tried} dialogues has an answer to learn from; {advice}"
            )
        if kept < self.num_dialogues:
            rank_zero_warn(
                f"GhostAttention: {kept} of {self.num_dialogues} dialogues after {tried} tries; {advice}"
            )


def _given(constraints: str | list[dict[str, Any]]) -> list[Constraint]:
    return fixed_constraints() if constraints == "fixed" else read_constraints(constraints)


def _digest_of(dialogues: Sequence[Dialog]) -> str:
    return hashlib.sha256(json.dumps([_plain(dialog) for dialog in dialogues]).encode()).hexdigest()


def _plain(dialog: Dialog) -> list[tuple[Role, str]]:
    return [(message.role, message.content) for message in dialog.messages]

"""`llama2-pl evaluate`: every figure of the report that needs a model, written to one JSON file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.data.default.oracle import NOISE
from llama2_pl.data.readers import PromptRow, read_prompts
from llama2_pl.evaluation.agreement import annotator_agreement
from llama2_pl.evaluation.answers import fits, room_for_prompt
from llama2_pl.evaluation.best_of_n import gold_of_best, reward_by_temperature, reward_of_taken
from llama2_pl.evaluation.diversity import diversity_by_temperature
from llama2_pl.evaluation.intervals import decimals, percents
from llama2_pl.evaluation.judges import Judges
from llama2_pl.evaluation.reward import score_by_quality
from llama2_pl.files import write_json
from llama2_pl.model.heads import LanguageModel
from llama2_pl.modules.rejection_sampling import may_be_taken
from llama2_pl.objectives.reward import SAFETY_THRESHOLD
from llama2_pl.rlhf.gatt import ghost_attention, kept_by_turn
from llama2_pl.rlhf.judges import reward_models
from llama2_pl.rlhf.scores import Speaker, gold_scores, judged, listen, load_judges
from llama2_pl.text.tokenizer import Tokenizer


def evaluate(
    models: dict[str, str],
    tokenizer: str,
    prompts: Sequence[str],
    helpfulness_reward: str,
    safety_reward: str,
    out: str,
    helpful_pairs: Sequence[str] = (),
    safety_pairs: Sequence[str] = (),
    gatt_models: dict[str, str] | None = None,
    gatt_cases: str | None = None,
    gatt_turns: Sequence[int] = (1, 2, 3, 4),
    sampler: str | None = None,
    temperatures: Sequence[float] = (0.7, 1.0, 1.3),
    samples: int = 16,
    best_of_n_prompts: int = 48,
    answers_per_prompt: int = 1,
    limit: int | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    about: str | None = None,
    safety_threshold: float = SAFETY_THRESHOLD,
    noise: float = NOISE,
    hardware: Hardware = HARDWARE,
) -> None:
    """Compare the models of a run and measure its reward models.

    Args:
        models: checkpoints by name; the first is the one that the others are compared with.
        tokenizer: tokenizer.model of all of them.
        prompts: held-out prompts; where all have a `task` the oracle gives its gold score.
        helpfulness_reward: checkpoint of the helpfulness reward model.
        safety_reward: checkpoint of the safety reward model.
        out: the result file.
        helpful_pairs: held-out preference files for the helpfulness model.
        safety_pairs: held-out preference files for the safety model.
        gatt_models: checkpoints by name whose hold on an instruction is compared; those without Ghost Attention first.
        gatt_cases: conversations with an instruction and its check.
        gatt_turns: turns at which the instruction is checked; the paper's are 2, 4, 6 and 20.
        sampler: which of `models` the best-of-N curves are drawn for; None: the first.
        temperatures: of the best-of-N curves; the gold score is taken at the middle one.
        samples: largest N of those curves.
        best_of_n_prompts: prompts of those curves; 0: none of that.
        answers_per_prompt: of each model, when models are compared; more of them, less noise.
        limit: use only the first prompts of each file.
        max_new_tokens: longest answer.
        seed: of all sampling.
        about: a sentence for the report's head.
        safety_threshold: below this safety score an answer counts as unsafe.
        noise: of the simulated annotators whose agreement is measured; give what `collect` rated the run's pairs with.
        hardware: device and precision.
    """
    judges = load_judges(helpfulness_reward, safety_reward, tokenizer, hardware, safety_threshold)
    ask = (judges, Speaker(words := judges.tokenizer, max_new_tokens, seed))
    networks, drawn = _loaded(models, sampler, hardware, words)
    rows = prompts_that_fit(prompts, limit, judges, next(iter(networks.values())), max_new_tokens)
    results = {"about": about} | compare_models(networks, rows, *ask, answers_per_prompt)
    results |= best_of_n(drawn, rows[:best_of_n_prompts], *ask, temperatures, samples, noise)
    results |= ghost_attention(gatt_models, gatt_cases, gatt_turns, words, max_new_tokens, hardware=hardware)
    _finish(results | reward_models(judges, helpful_pairs, safety_pairs), Path(out))


def _loaded(
    models: dict[str, str], sampler: str | None, hardware: Hardware, tokenizer: Tokenizer
) -> tuple[dict[str, LanguageModel], LanguageModel]:
    """All models by name, and the one that best of N is drawn for."""
    if sampler is not None and sampler not in models:
        raise ValueError(f"sampler is {sampler!r}; it must be one of models: {', '.join(models)}")
    networks = {name: hardware.load(path, tokenizer) for name, path in models.items()}
    return networks, networks[sampler or next(iter(networks))]


def _finish(results: dict[str, Any], out: Path) -> None:
    write_json(out, results)
    print(summary(results))


def prompts_that_fit(
    files: Sequence[str], limit: int | None, judges: Judges, model: LanguageModel, max_new_tokens: int
) -> list[PromptRow]:
    """The prompts that leave model and judges room for an answer; says how many are longer, stops where all are."""
    readers = (model, *judges.models().values())
    room = min(room_for_prompt(reader, max_new_tokens) for reader in readers)
    rows = [row for path in files for row in itertools.islice(read_prompts(path, tasks="optional"), limit)]
    kept = [row for row in rows if fits(row.prompt, judges.tokenizer, room)]
    if not kept:
        raise ValueError(
            f"{', '.join(files)}: none of {len(rows)} prompts has at most {room} tokens; give others, or lower "
            "max_new_tokens"
        )
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} prompts are longer than {room} tokens: left out")
    return kept


def compare_models(
    networks: dict[str, LanguageModel], rows: Sequence[PromptRow], judges: Judges, speak: Speaker, each: int
) -> dict[str, Any]:
    """Gold scores, reward-model scores and win rates over the first model and over the one before.

    `each` answers to a prompt, at temperature 1.
    """
    heard = {name: listen(model, rows, judges, speak, each) for name, model in networks.items()}
    names = list(networks)
    pairs = [(name, names[0]) for name in names[1:]] + list(zip(names[2:], names[1:], strict=False))
    results = {
        "parameters": networks[names[0]].config.num_parameters(),
        "samples": sample_dialogues(
            rows, {name: speak(model, few(rows), 0.7) for name, model in networks.items()}
        ),
        **judged(heard, pairs),
    }
    is_safety = torch.tensor([row.is_safety for row in rows])
    kinds = {"helpfulness prompts": ~is_safety, "safety prompts": is_safety}
    by_prompt = {
        name: {kind: found.gold[mask].mean().item() for kind, mask in kinds.items() if mask.any()}
        for name, found in heard.items()
        if found.gold is not None
    }
    return results | ({"gold_by_prompt": by_prompt} if by_prompt else {})


def best_of_n(
    model: LanguageModel,
    rows: Sequence[PromptRow],
    judges: Judges,
    speak: Speaker,
    temperatures: Sequence[float],
    samples: int,
    noise: float | None = None,
) -> dict[str, Any]:
    """Reward against N (Llama 2 figs. 7 and 8) and diversity (fig. 21) by temperature; the winners' gold score.

    The curves are of all samples (our reading of the figures); `reward_of_taken` is that of the best of those that
    rejection sampling may take, by temperature.
    Also how well annotators of this noise agree on pairs of samples, where it is given; {} without prompts.
    """
    if not rows:
        return {}
    rewards, taken, gold, spoken = {}, {}, {}, {}
    for temperature in temperatures:
        said = speak.answers(model, rows, temperature, samples)
        answers = spoken[temperature] = said.texts
        scores = judges.scores(rows, answers)[2].view(len(rows), samples)
        may = torch.tensor([may_be_taken(*pair) for pair in zip(*said, strict=True)]).view(scores.shape)
        rewards[temperature] = scores
        taken[f"{temperature:g}"] = reward_of_taken(scores, may, samples)
        if all(row.task is not None for row in rows):
            repeated = [row for row in rows for _ in range(samples)]
            gold[temperature] = gold_scores(repeated, answers).view(len(rows), samples)
    results: dict[str, Any] = {"by_temperature": reward_by_temperature(rewards), "reward_of_taken": taken}
    if samples > 1:
        results["diversity"] = diversity_by_temperature(spoken, samples)
    if gold:
        middle = temperatures[len(temperatures) // 2]
        results["gold"] = gold_of_best(rewards[middle], gold[middle], samples) | {"temperature": middle}
        results["score_by_quality"] = score_by_quality(rewards[middle], gold[middle])
        if noise is not None:
            texts = spoken[middle]
            pairs = zip(rows, texts[::samples], texts[samples > 1 :: samples], strict=True)
            rated = [(r.task, a, b) for r, a, b in pairs if r.task and a != b]
            results["annotators"] = annotator_agreement(rated, noise=noise)
    return {"best_of_n": results}


def few(rows: Sequence[PromptRow], count: int = 8) -> list[PromptRow]:
    """A few prompts, spread over the file."""
    return list(rows[:: max(1, len(rows) // count)][:count])


def sample_dialogues(rows: Sequence[PromptRow], spoken: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The few prompts with every model's answer; T = 0.7 for the report."""
    return [
        {
            "messages": [message._asdict() for message in row.prompt.messages],
            "answers": {name: answers[i] for name, answers in spoken.items()},
        }
        for i, row in enumerate(few(rows))
    ]


def summary(results: dict[str, Any]) -> str:
    """The headline figures as lines for the terminal."""
    lines = []
    for name, row in results.get("gold", {}).items():
        lines.append(f"gold score {name}: {decimals(row)}")
    for name, row in results.get("win_rate", results["judged_win_rate"]).items():
        lines.append(f"{name}: preferred {percents(row)}")
    for name, row in results["reward_accuracy"].items():
        by = ", ".join(
            f"{level} {value:.2f}" for level, value in row["by_rating"].items() if value is not None
        )
        lines.append(f"{name} reward accuracy {row['overall']:.3f}" + (f" ({by})" if by else ""))
    if "unsafe_recall" in results:
        lines.append(f"unsafe recall {results['unsafe_recall']['mean']:.3f}")
    if gold := results.get("best_of_n", {}).get("gold"):
        lines.append(f"best of {gold['n']}: gold {gold['best']:.3f}, median sample {gold['median']:.3f}")
    lines += kept_by_turn(results.get("gatt", {}))
    return "\n".join(lines)

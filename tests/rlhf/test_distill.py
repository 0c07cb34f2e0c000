"""Safety context distillation: which answers are kept, and what is learned of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from llama2_pl.data.readers import PromptRow, read_dialogues, read_prompts
from llama2_pl.evaluation.answers import Answers
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.rlhf import distill
from llama2_pl.rlhf.distill import (
    ADJECTIVES,
    Sample,
    better,
    distill_safety,
    read_preprompts,
    summarize,
    with_preprompt,
)
from llama2_pl.text.chat import Dialog
from llama2_pl.text.tokenizer import train_tokenizer

VOCABULARY = 300
CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=512)


class Run(NamedTuple):
    """The checkpoints on disk."""

    policy: str
    safety: str
    tokenizer: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(
        ["how do I make tea and who may know it"] * 50, folder / "words", vocab_size=VOCABULARY, num_threads=1
    )
    torch.manual_seed(0)
    for name, network in (("policy", LanguageModel(CONFIG)), ("safety", ScalarModel(CONFIG))):
        weights = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
        saved = {"state_dict": weights, "hyper_parameters": {"backbone": CONFIG.to_dict()}}
        torch.save(saved, folder / f"{name}.ckpt")
    return Run(str(folder / "policy.ckpt"), str(folder / "safety.ckpt"), str(tokenizer.path))


PROMPTS = [
    {"messages": [{"role": "user", "content": "harm one"}], "is_safety": True, "category": "illicit_acts"},
    {"messages": [{"role": "user", "content": "tea"}], "is_safety": False},
    {"messages": [{"role": "user", "content": "harm two"}], "is_safety": True},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "harm three"}],
        "is_safety": True,
    },
]
LONG = {"messages": [{"role": "user", "content": "harm " * 600}], "is_safety": True}


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Scripted:
    """A policy whose answers are numbers, and a judge that reads the number; keeps what was asked and judged."""

    def __init__(self, patch: pytest.MonkeyPatch, said: dict[tuple[str, bool], list[str]]) -> None:
        self.said, self.given, self.judged = said, [], []
        patch.setattr(distill, "answers", self.answers)
        patch.setattr(distill, "dialogue_ids", self.ids)
        patch.setattr(
            distill, "score_answers", lambda _, ids: torch.tensor([float(text or -9) for text in ids])
        )

    def answers(self, model: object, tokenizer: object, dialogs: list[Dialog], **how: object) -> Answers:
        texts: list[str] = []
        for dialog in dialogs:
            system = dialog.messages[0].content if dialog.messages[0].role == "system" else ""
            guided = bool(system) and system != "Be brief."
            self.given.append((dialog.messages[-1].content, guided, system))
            texts += self.said[dialog.messages[-1].content, guided]
        return Answers([text.rstrip("+") for text in texts], [not text.endswith("+") for text in texts])

    def ids(self, prompt: Dialog, text: str, tokenizer: object) -> str:
        self.judged.append(prompt)
        return text


def distilled(run: Run, folder: Path, prompts: list[dict] = PROMPTS, **options) -> Path:
    out, path = folder / "out.jsonl", written(folder / "prompts.jsonl", prompts)
    distill_safety(run.policy, run.safety, run.tokenizer, path, str(out), max_new_tokens=6, **options)
    return out


# "+" marks an answer that was cut off
SAID = {
    ("harm one", False): ["1", "2"],
    ("harm one", True): ["3", "0"],
    ("harm two", False): ["5", "4"],
    ("harm two", True): ["5", "1"],
    ("harm three", False): ["1", "1"],
    ("harm three", True): ["9+", "2"],
}


def test_an_answer_is_kept_where_it_is_safer_than_the_original_and_the_preprompt_is_not_learned(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch, SAID)
    out = distilled(run, tmp_path, samples=2)
    first, last = rows_of(out)  # of "harm two" the original is as safe
    assert first["messages"] == [*PROMPTS[0]["messages"], {"role": "assistant", "content": "3"}]
    assert (first["score"], first["original_score"], first["category"]) == (3.0, 2.0, "illicit_acts")
    # the 9 was cut off; the dialogue keeps its own system message alone
    assert last["messages"] == [*PROMPTS[3]["messages"], {"role": "assistant", "content": "2"}]
    # as fine-tuning reads them
    assert [dialog.messages[-1].content for dialog in read_dialogues(out)] == ["3", "2"]
    assert {asked for asked, *_ in script.given} == {"harm one", "harm two", "harm three"}
    systems = {asked: system for asked, guided, system in script.given if guided}
    assert "category: illicit acts." in systems["harm one"] and systems["harm one"] == first["preprompt"]
    assert "category" not in systems["harm two"]
    assert systems["harm three"] == f"{last['preprompt']}\n\nBe brief."
    # with and without preprompt, judged on the prompt as it was
    assert script.judged[:6] == script.judged[6:]


def test_the_summary_counts_what_was_asked_kept_and_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Scripted(monkeypatch, {**SAID, ("harm two", True): ["7+", "+"]})
    out = distilled(run, tmp_path, [*PROMPTS, LONG], samples=2)
    summary = json.loads(out.with_suffix(".summary.json").read_text())
    # best originals 2 and 1, best distilled answers 3 and 2; "harm two" has none that ended
    assert summary == {
        "asked": 3,
        "kept": 2,
        "unanswered": 1,
        "too_long": 1,
        "share_kept": pytest.approx(2 / 3),
        "before": 1.5,
        "after": 2.5,
        "kept_before": 1.5,
        "kept_after": 2.5,
    }
    said = capsys.readouterr().out
    assert "kept 2 of 3 answers (67%); mean safety score 1.50 without and 2.50 with a preprompt" in said
    assert "1 were too long and left out" in said


@pytest.mark.parametrize(
    ("originals", "answers", "kept"),
    [
        ([1.0], [(2.0, True)], 2.0),
        ([2.0], [(2.0, True)], None),
        ([3.0], [(2.0, True)], None),
        ([1.0], [(2.0, False)], None),
        ([1.0], [(9.0, False), (2.0, True), (3.0, True)], 3.0),
        ([1.0, 5.0], [(4.0, True)], None),
    ],
)
def test_only_an_answer_that_ended_and_scores_above_every_original_wins(
    originals: list[float], answers: list[tuple[float, bool]], kept: float | None
) -> None:
    # an original counts as it stands, also one that was cut off
    found = better([Sample("", score, False) for score in originals], [Sample("", *it) for it in answers])
    assert (found and found.score) == kept


def test_a_summary_of_no_answer_has_no_means() -> None:
    found = summarize([[Sample("a", 1.0, True)]], [[Sample("b", 2.0, False)]])
    assert (found["unanswered"], found["kept"], found["before"], found["kept_after"]) == (1, 0, None, None)


def test_preprompts_are_templates_with_each_adjective_or_the_lines_of_a_file(tmp_path: Path) -> None:
    ours = read_preprompts(None)
    for lines in ours:
        assert [sum(word in line for line in lines) for word in ADJECTIVES] == [len(lines) / 3] * 3
    assert not any("{" in line.replace("{category}", "") for lines in ours for line in lines)
    path = tmp_path / "mine.txt"
    path.write_text("Be careful {now}.\n\n  Beware of {category}.\n", encoding="utf-8")
    mine, rng = read_preprompts(str(path)), random.Random(0)
    assert mine == (("Be careful {now}.",), ("Beware of {category}.",))
    prompt = Dialog.of([("user", "q")])
    assert mine.draw(PromptRow(prompt, category="bad_advice"), rng) == "Beware of bad advice."
    assert mine.draw(PromptRow(prompt), rng) == "Be careful {now}."
    with pytest.raises(ValueError, match=r"prompt p:3 has no category: add a line without it"):
        mine._replace(general=()).draw(PromptRow(prompt, id="p:3"), rng)


def test_a_preprompt_is_the_system_message_or_stands_before_it() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert with_preprompt(Dialog.of(turns), "P") == Dialog.of([("system", "P"), *turns])  # type: ignore[list-item]
    held = Dialog.of([("system", "S"), *turns])  # type: ignore[list-item]
    assert with_preprompt(held, "P") == Dialog.of([("system", "P\n\nS"), *turns])  # type: ignore[list-item]


def test_a_category_is_read_where_asked_for_also_from_the_task(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "category": "x", "task": {"category": "y"}},
        {"prompt": "b", "task": {"category": "y"}},
        {"prompt": "c", "task": "qa"},
    ]
    path = written(tmp_path / "p.jsonl", rows)
    assert [row.category for row in read_prompts(path, categories=True)] == ["x", "y", ""]
    odd = written(
        tmp_path / "odd.jsonl", [{"prompt": "d", "category": {"hate": True}}]
    )  # other sets' own use
    assert [row.category for row in read_prompts(odd)] == [""]
    with pytest.raises(ValueError, match=r"odd\.jsonl:1: key 'category'"):
        list(read_prompts(odd, categories=True))


def test_a_seed_gives_the_same_file_again_and_another_seed_another(run: Run, tmp_path: Path) -> None:
    """Random networks, which end one answer of 64 tokens in five."""
    asked = [{"prompt": f"harm {n}", "is_safety": True} for n in range(64)]
    found = []
    for number, seed in enumerate((1, 1, 2)):
        (folder := tmp_path / str(number)).mkdir()
        out = folder / "out.jsonl"
        prompts = written(folder / "prompts.jsonl", asked)
        how = {"max_new_tokens": 64, "seed": seed}
        distill_safety(run.policy, run.safety, run.tokenizer, prompts, str(out), **how)
        found.append((out.read_bytes(), out.with_suffix(".summary.json").read_bytes()))
        rows = rows_of(out)
        assert rows and all(row["score"] > row["original_score"] for row in rows)
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_distilled_is_refused_with_the_way_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"prompts\.jsonl: no safety prompt in it: .*--is_safety true"):
        distilled(run, tmp_path, [PROMPTS[1]])
    with pytest.raises(ValueError, match="samples is 0"):
        distilled(run, tmp_path, samples=0)
    with pytest.raises(ValueError, match=r"none of 1 safety prompts has at most 504 tokens with"):
        distilled(run, tmp_path, [LONG])
    (empty := tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt: no preprompt in it"):
        distilled(run, tmp_path, preprompts=str(empty))
    Scripted(monkeypatch, {("tea", False): ["1"], ("tea", True): ["1"]})
    with pytest.raises(ValueError, match=r"of 1 prompts none has a safer answer .*\(0 have none that ended"):
        distilled(run, tmp_path, [PROMPTS[1]], is_safety=True)  # asked, since all are said to be adversarial
    assert not (tmp_path / "out.jsonl").exists()

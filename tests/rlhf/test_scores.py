"""The Goodhart gap, forgetting and the study's table, by numbers worked by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml

from llama2_pl.checkpoints.hardware import Hardware
from llama2_pl.commands.registry import parse_tool
from llama2_pl.data.readers import PromptRow, read_prompts, write_jsonl
from llama2_pl.data.sampling import is_held_out
from llama2_pl.evaluation import judges as judges_module
from llama2_pl.evaluation.answers import Answers
from llama2_pl.evaluation.best_of_n import best_temperature
from llama2_pl.evaluation.judges import Judges
from llama2_pl.rlhf import study as study_module
from llama2_pl.rlhf.evaluate import best_of_n
from llama2_pl.rlhf.reuse import link
from llama2_pl.rlhf.scores import Heard, forgetting, gold_by_kind, goodhart_gap, judged
from llama2_pl.rlhf.study import merged, over_seeds, study
from llama2_pl.rlhf.versions import checkpoints_in, split_held_out
from llama2_pl.text.chat import Dialog


def heard(reward: list[list[float]], gold: list[list[float]] | None) -> Heard:
    rewards = torch.tensor(reward)
    ended = torch.ones_like(rewards, dtype=torch.bool)
    return Heard(rewards, rewards, rewards, None if gold is None else torch.tensor(gold), ended)


START = heard([[0.0, 2.0], [4.0, 6.0]], [[0.1, 0.3], [0.5, 0.7]])  # sd sqrt(5), and a tenth of it


def test_the_gap_is_the_rise_of_the_reward_beyond_that_of_the_gold_score_in_deviations_of_the_start() -> None:
    # the reward rises by 2 and the gold score by 0.1, half as many deviations
    now = heard([[3.0, 3.0], [7.0, 7.0]], [[0.3, 0.3], [0.7, 0.7]])
    gap = goodhart_gap(now, START)
    assert gap is not None
    assert gap["mean"] == pytest.approx(2 / 5**0.5 - 0.1 / (0.1 * 5**0.5), abs=1e-5)
    assert gap["low"] == pytest.approx(gap["high"])  # every prompt alike
    alike = heard([[1.0, 3.0], [5.0, 7.0]], [[0.2, 0.4], [0.6, 0.8]])
    assert goodhart_gap(alike, START)["mean"] == pytest.approx(0.0, abs=1e-5)
    assert goodhart_gap(heard([[1.0], [2.0]], None), START) is None


class OneOfTwo:
    """Says at every temperature what is scored by its text; at 1.5 the best answers are cut off."""

    def answers(self, model: object, asked: list, temperature: float, k: int) -> Answers:
        texts = ["1", "2"] if temperature == 1.0 else ["9", "0"]
        return Answers(texts * len(asked), [True, True] if temperature == 1.0 else [False, True])

    def scores(self, asked: list, texts: list[str]) -> tuple[torch.Tensor, ...]:
        return (torch.tensor([float(text) for text in texts]),) * 3


def test_the_temperature_is_chosen_by_what_may_be_taken_and_the_curves_show_all_samples() -> None:
    stub, asked = OneOfTwo(), [PromptRow(Dialog.of([("user", "q")]))]
    found = best_of_n("model", asked, stub, stub, (1.0, 1.5), 2)["best_of_n"]  # type: ignore[arg-type]
    assert (
        found["reward_of_taken"] == {"1": 2.0, "1.5": 0.0}
        and best_temperature(found["reward_of_taken"]) == 1.0
    )
    assert [found["by_temperature"][t]["max"][-1] for t in ("1", "1.5")] == [2.0, 9.0]


@pytest.mark.parametrize("broken", ["helpfulness", "safety"])
def test_a_score_that_is_no_number_is_refused_with_its_judge_and_prompt(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would win or lose in silence: every comparison with it is false."""
    judges = Judges("helpfulness", "safety", None)  # type: ignore[arg-type]  # both score by their names
    asked = [PromptRow(Dialog.of([("user", text)])) for text in ("one", "two")]
    found = {"helpfulness": torch.zeros(4), "safety": torch.zeros(4)}
    monkeypatch.setattr(judges_module, "dialogue_ids", lambda *_: [1])
    monkeypatch.setattr(judges_module, "score_answers", lambda judge, _: found[judge])
    assert judges.scores(asked, ["a"] * 4)[2].tolist() == [0.0] * 4
    for value in (float("nan"), float("inf")):
        found[broken] = torch.tensor([0.0, 0.0, value, 0.0])
        with pytest.raises(
            ValueError, match=rf"the {broken} reward model gives {value} to an answer to 'two'.*1 of 4"
        ):
            judges.scores(asked, ["a"] * 4)


def test_each_answer_is_judged_with_its_own_prompt_and_at_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, seen = {"helpful": 0.5, "safe": -1.0}, []  # sigmoid(-1) = 0.269

    def score(model: str, ids: list[str]) -> torch.Tensor:
        seen.append(ids)
        return torch.full((len(ids),), linear[model])

    monkeypatch.setattr(judges_module, "score_answers", score)
    monkeypatch.setattr(
        judges_module, "dialogue_ids", lambda dialog, text, _: dialog.messages[0].content + text
    )
    prompts = [PromptRow(Dialog.of([("user", text)]), tagged) for text, tagged in (("q", True), ("r", False))]

    def judge(threshold: float) -> list[list[float]]:
        judges = Judges("helpful", "safe", None, threshold)  # type: ignore[arg-type]
        return [column.tolist() for column in judges.scores(prompts, ["1", "2", "3", "4"])]

    assert judge(0.15) == [[0.5] * 4, [-1.0] * 4, [-1.0, -1.0, 0.5, 0.5]]
    assert seen == [["q1", "q2", "r3", "r4"]] * 2
    assert judge(0.3)[2] == [-1.0] * 4


def test_helpfulness_and_safety_are_judged_as_probabilities_and_the_combined_score_is_linear() -> None:
    columns = (torch.full((2, 2), x) for x in (0.0, 1.0986123, 2.0))  # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4
    found = Heard(*columns, None, torch.tensor([[True, False], [True, True]]))
    results = judged({"v0": found}, [])
    means = {name: row["mean"] for name, row in results["judged"]["v0"].items()}
    assert means == pytest.approx({"helpfulness": 0.5, "safety": 0.75, "combined": 2.0})
    assert results["finished"] == {"v0": 0.75} and "gold" not in results


def test_each_version_is_compared_with_the_one_before_it() -> None:
    up = heard([[9.0, 9.0], [9.0, 9.0]], [[0.0, 0.0], [0.0, 0.0]])
    results = judged({"v0": START, "v1": up, "v2": START}, [("v1", "v0"), ("v2", "v1")])
    assert results["judged_win_rate"]["v1 vs v0"]["mean"] == 1.0
    assert results["win_rate"]["v1 vs v0"]["mean"] == 0.0 and results["win_rate"]["v2 vs v1"]["mean"] == 1.0
    assert results["gold"]["v0"]["mean"] == pytest.approx(0.4)


def test_forgetting_is_the_fall_below_the_best_earlier_version_by_kind() -> None:
    kinds = [{"a": 0.5, "b": 0.8}, {"a": 0.7, "b": 0.6}, {"a": 0.6, "b": 0.9}]
    # v1: b fell by 0.2; v2: a fell by 0.1 below v1, b is its best
    assert forgetting(kinds) == pytest.approx([0.0, 0.1, 0.05])


def test_gold_scores_are_kept_apart_by_kind_of_task() -> None:
    dialog = Dialog.of([("user", "q")])
    rows = [PromptRow(dialog, task={"kind": kind}) for kind in ("fact", "price")]
    found = gold_by_kind(rows, {"v0": START})["v0"]
    assert found == {"fact": pytest.approx(0.2), "price": pytest.approx(0.6)}
    unknown = heard([[1.0], [1.0]], None)
    assert gold_by_kind([PromptRow(dialog)] * 2, {"v0": unknown}) == {}


def test_a_link_holds_the_checkpoint_and_replaces_an_older_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.ckpt").write_text(name)
        link(tmp_path / f"{name}.ckpt", tmp_path / "out/policy.ckpt")
        assert (tmp_path / "out/policy.ckpt").read_text() == name
    shards = tmp_path / "shards.ckpt"
    shards.mkdir()
    (shards / "meta.pt").write_text("meta")
    link(shards, tmp_path / "out/policy.ckpt")
    assert (tmp_path / "out/policy.ckpt/meta.pt").read_text() == "meta"
    assert checkpoints_in(str(tmp_path)) == [str(tmp_path / f"{n}.ckpt") for n in ("a", "b", "shards")]
    assert checkpoints_in(str(shards)) == [str(shards)]


def test_prompts_that_a_hash_held_out_fall_into_both_halves(tmp_path: Path) -> None:
    """As `data pairs` and val_fraction hold prompts out: by the same hash below a small share."""
    questions = [q for n in range(400) if is_held_out(q := f"question {n}", 0.1)]
    rows = [json.dumps({"messages": [{"role": "user", "content": q}]}) for q in questions]
    (tmp_path / "val.jsonl").write_text("\n".join(rows) + "\n")
    split_held_out(str(tmp_path / "val.jsonl"), str(tmp_path))
    sizes = [len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("select", "test")]
    assert sum(sizes) == len(rows) and min(sizes) > len(rows) / 4


WILD = {
    "rows.jsonl": "\n".join(json.dumps({"prompt": f"question {n}"}) for n in range(40)),
    "rows.json": json.dumps([{"instruction": f"question {n}", "output": "a"} for n in range(40)]),
    "dialogues.jsonl": "\n".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"question {n}"},
                    {"role": "assistant", "content": "a"},
                ]
            }
        )
        for n in range(40)
    ),
    "table.csv": "\n".join(["id,goal", *(f"{n},question {n}" for n in range(40))]),
    "lines.txt": "\n".join(f"question {n}" for n in range(40)),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", WILD)
def test_held_out_prompts_come_in_any_format_of_prompts(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(WILD[name].encode()) if zipped else WILD[name].encode())
    split_held_out(str(path), str(tmp_path / "out"))
    halves = [list(read_prompts(tmp_path / "out" / f"{half}.jsonl")) for half in ("select", "test")]
    said = [row.prompt.messages[-1].content for rows in halves for row in rows]
    assert all(halves) and sorted(said) == sorted(f"question {n}" for n in range(40))


def test_held_out_prompts_keep_their_tag_and_their_task(tmp_path: Path) -> None:
    task = {"kind": "safety", "answers": ["No."]}
    rows = [{"prompt": f"question {n}", "is_safety": n % 2 == 0, "task": task} for n in range(20)]
    write_jsonl(tmp_path / "val.jsonl", rows)
    split_held_out(str(tmp_path / "val.jsonl"), str(tmp_path))
    for half in ("select", "test"):
        for row in read_prompts(tmp_path / f"{half}.jsonl", tasks="required"):
            number = int(row.prompt.messages[0].content.split()[1])
            assert row.is_safety == (number % 2 == 0) and row.task == task


def test_an_interval_over_seeds_is_student_s() -> None:
    """1, 2, 3: deviation 1, t(0.975, 2) = 4.303 (any table), so 4.303 / sqrt(3) = 2.484 to each side."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (2.0, 2 - 2.484, 2 + 2.484), abs=1e-3
    )
    assert over_seeds([1.5])["low"] is None
    # 30 values, 29 degrees of freedom: t 2.045, sd sqrt(77.5)
    assert over_seeds([float(n) for n in range(30)])["low"] == pytest.approx(
        14.5 - 2.045 * (77.5 / 30) ** 0.5
    )


def test_overrides_go_over_the_base_mapping_by_mapping() -> None:
    base = {"seed": 0, "options": {"ppo": {"model.beta": 0.05, "model.lr": 1e-4}, "fine_tune": {"x": 1}}}
    over = {"options": {"ppo": {"model.beta": 0.2}}, "versions": 1}
    assert merged(base, over) == {
        "seed": 0,
        "versions": 1,
        "options": {"ppo": {"model.beta": 0.2, "model.lr": 1e-4}, "fine_tune": {"x": 1}},
    }
    assert base["options"]["ppo"]["model.beta"] == 0.05


def pretend_run(run: Path, gold: float, judge: str) -> None:
    """What a finished run leaves that a study reads."""
    row = {"version": "v0", "gold": {"mean": gold}, "reward": {"mean": 1.0}, "gap": None, "forgetting": 0.25}
    results = {"versions": [row], "reward_accuracy": {"helpfulness": {"overall": 0.7}}}
    (run / "manifests").mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(results))
    inputs = {f"{run}/v1/reward_safety/last.ckpt": judge, "other": "input"}
    (run / "manifests/compare.json").write_text(json.dumps({"inputs": inputs}))
    if "pool_all" in str(run):  # six looks, of which the last five count
        (run / "v0/ppo/metrics").mkdir(parents=True)
        looks = "".join(f"{step},{0.9 if step == 0 else 0.2}\n" for step in range(6))
        (run / "v0/ppo/metrics/metrics.csv").write_text(f"step,ppo/kl\n{looks}")


def test_a_study_runs_every_arm_with_every_seed_and_tabulates_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict] = []
    shares: list[str] = []
    judges: dict[str, str] = {}

    def loop(args: list[str]) -> None:
        assert args[0] == "rlhf"
        config = json.loads(args[1].partition("=")[2])
        shares.append(args[3].partition("=")[2])
        ran.append(config)
        gold = {"pool_all": 0.8, "pool_previous": 0.6}[Path(args[2]).parent.name] + config["seed"] / 10
        run = Path(args[2].partition("=")[2])
        pretend_run(run, gold, judges.get(run.parent.name, "same"))

    monkeypatch.setattr(study_module, "execute", loop)
    arms = {"pool_all": {"sampling": {"pool": "all"}}, "pool_previous": {"sampling": {"pool": "previous"}}}
    study(str(tmp_path / "study"), "rlhf/small.yaml", arms, [1, 2], {"pool_previous": "pool_all"})
    assert [(c["sampling"]["pool"], c["seed"]) for c in ran] == [
        ("all", 1),
        ("all", 2),
        ("previous", 1),
        ("previous", 2),
    ]
    assert all(c["sampling"]["samples_per_prompt"] == ran[0]["sampling"]["samples_per_prompt"] for c in ran)
    assert [json.loads(c) for c in shares] == [
        [],
        [],
        *([str(tmp_path / f"study/pool_all/seed{n}")] for n in (1, 2)),
    ]
    written = json.loads((tmp_path / "study/study.json").read_text())
    first, second = written["rows"]
    # 0.9 and 1.0: t(0.975, 1) = 12.706, deviation 0.0707, so 12.706 * 0.05 = 0.635
    assert first["gold"]["mean"] == pytest.approx(0.95) and first["gold"]["count"] == 2
    assert (first["gold"]["low"], first["gold"]["high"]) == pytest.approx((0.315, 1.585), abs=1e-3)
    assert second["gold"]["mean"] == pytest.approx(0.75) and "gap" not in second
    assert first["helpfulness accuracy"]["mean"] == pytest.approx(0.7)
    assert first["PPO: KL"]["mean"] == pytest.approx(0.2) and "PPO: KL" not in second
    (difference,) = written["differences"]
    assert difference["arm"] == "pool_previous - pool_all" and difference["version"] == "v0"
    assert [difference["gold"][k] for k in ("mean", "low", "high")] == pytest.approx([-0.2, -0.2, -0.2])
    assert difference["reward"]["mean"] == 0.0
    judges["pool_previous"] = "another scale"
    study(str(tmp_path / "again"), "rlhf/small.yaml", arms, [1, 2], {"pool_previous": "pool_all"})
    (difference,) = json.loads((tmp_path / "again/study.json").read_text())["differences"]
    assert "gold" in difference and "reward" not in difference
    text = (tmp_path / "study/study.md").read_text()
    assert "| pool_all | v0 | 0.950 [0.315, 1.585] |" in text and "| pool_previous | v0 | 0.7" in text
    with pytest.raises(ValueError, match="against: no arm 'beta'; the arms are pool_all, pool_previous"):
        study(str(tmp_path / "study"), "rlhf/small.yaml", arms, [1, 2], {"beta": "pool_all"})


def test_an_arm_that_is_refused_keeps_the_config_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loop(args: list[str]) -> None:
        config = parse_tool("rlhf", args[1:])
        assert config["hardware"] == Hardware("cuda:1")
        if config["versions"] != 1:
            raise ValueError("refused")
        pretend_run(Path(config["out"]), 0.5, "same")

    monkeypatch.setattr(study_module, "execute", loop)
    study(str(tmp_path), "rlhf/small.yaml", {"one": {"versions": 1}}, [1], hardware=Hardware("cuda:1"))
    with pytest.raises(ValueError, match="refused"):
        study(str(tmp_path), "rlhf/small.yaml", {"one": {"versions": 2}}, [1], hardware=Hardware("cuda:1"))
    left = json.loads((tmp_path / "one/seed1/rlhf.yaml").read_text())
    assert (
        left["versions"] == 1 and left["hardware"]["device"] == "cuda:1"
    )  # the run goes on by its config alone


def test_an_arm_may_end_with_its_reward_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = {"margin_none": 0.70, "margin_small": 0.75}

    def loop(args: list[str]) -> None:
        run = Path(args[2].partition("=")[2])
        found = {
            "reward_accuracy": {"helpfulness": {"overall": accuracy[run.parent.name], "by_rating": {}}},
            "unsafe_detection": {"0.5": {"recall": 0.9, "precision": None}},
        }
        (run / "v1").mkdir(parents=True, exist_ok=True)
        (run / "v1/judges.json").write_text(json.dumps(found))

    monkeypatch.setattr(study_module, "execute", loop)
    arms = {name: {"until": "v1/judges"} for name in accuracy}
    study(str(tmp_path), "rlhf/small.yaml", arms, [1, 2, 3], {"margin_none": "margin_small"})
    written = json.loads((tmp_path / "study.json").read_text())
    assert [row["version"] for row in written["rows"]] == ["v1", "v1"]
    assert written["rows"][0]["unsafe recall"]["mean"] == pytest.approx(0.9)
    assert "unsafe precision" not in written["rows"][0]
    assert written["differences"][0]["helpfulness accuracy"]["mean"] == pytest.approx(-0.05)


@pytest.mark.parametrize("name", ["versions", "reward_models"])
def test_the_packaged_study_names_arms_over_a_packaged_loop(name: str) -> None:
    path = Path(__file__).parents[2] / f"configs/study/{name}.yaml"
    config = yaml.safe_load(path.read_text())
    base = yaml.safe_load((path.parents[1] / config["loop"]).read_text())
    for arm, over in config["arms"].items():
        both = merged(base, over)
        assert set(both) <= {*base, "fine_tune_from", "until"}, arm
        assert both["ppo_from"] == 1 or not arm.startswith("beta")

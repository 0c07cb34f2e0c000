"""Versions 1 to N at the smallest size: the whole loop, what is skipped, what is refused, what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from llama2_pl.checkpoints.hardware import HARDWARE, Hardware
from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
from llama2_pl.cli import main
from llama2_pl.data.default import write, write_default_data
from llama2_pl.data.readers import read_prompts
from llama2_pl.data.vocabulary import train_tokenizer_on_files
from llama2_pl.evaluation.curves import read_curve
from llama2_pl.evaluation.judges import Judges
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.modules import RejectionSamplingModule, RewardModule
from llama2_pl.rlhf import driver
from llama2_pl.rlhf.fingerprints import fingerprint
from llama2_pl.rlhf.judges import reward_models
from llama2_pl.rlhf.runner import holding
from llama2_pl.rlhf.scores import load_judges
from llama2_pl.rlhf.settings import Start
from llama2_pl.text.tokenizer import Tokenizer

pytestmark = pytest.mark.timeout(180)  # whichever test comes first runs the loop

VOCABULARY = 512
CONFIG = ModelConfig(
    dim=32, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=VOCABULARY, multiple_of=16, max_seq_len=512
)


def chatterbox(path: Path, eos_id: int, config: ModelConfig = CONFIG) -> str:
    """A checkpoint of a random model that ends its answers: EOS has a chance of about one in eight."""
    network = LanguageModel(config)
    with torch.no_grad():
        # the first channel is all that is left after the norm, sqrt(dim) high: EOS has a logit of 4.3
        network.backbone.embedding.weight[:, 0] = 1.0
        network.head.weight[:, 0] = 0.0
        network.head.weight[eos_id, 0] = 4.3 / config.dim**0.5
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"backbone": config.to_dict()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, tokenizer and a chat model."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "PACKAGE_SOURCES", {})
        write_default_data(str(folder / "data"), scale=0.02)
    train_tokenizer_on_files(
        [str(folder / "data/corpus/world.jsonl")], str(folder), vocab_size=VOCABULARY, num_threads=1
    )
    torch.manual_seed(0)
    chatterbox(folder / "chat.ckpt", Tokenizer(str(folder / "tokenizer.model")).eos_id)
    return folder


def config_of(start: Path) -> dict:
    """The smallest run that has everything: two versions, the second with PPO."""
    data = "$START/data"
    stages = {
        "reward_helpfulness": "reward",
        "reward_safety": "reward",
        "rejection_sampling": None,
        "rejection_sampling_sft": "sft",
        "ppo": "ppo",
    }
    files = [
        [f"stage/{stage}.yaml", *([f"size/{size}/tiny.yaml"] if size else []), "trainer/cpu.yaml"]
        for stage, size in stages.items()
    ]
    plain = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
    names = ["reward_helpfulness", "reward_safety", "best_of_k", "fine_tune", "ppo"]
    own = {
        "reward_helpfulness": {"data.max_len": 256},
        "reward_safety": {"data.max_len": 256},
        "best_of_k": {"data.batch_size": 8},
        "fine_tune": {"data.seq_len": 256, "data.epochs": 1},
        "ppo": {},
    }
    return {
        "start": {"folder": str(start)},
        "files": {
            "policy": "$START/chat.ckpt",
            "base": "$START/chat.ckpt",
            "tokenizer": "$START/tokenizer.model",
            "prompts": f"{data}/prompts/train.jsonl",
            "held_out": f"{data}/prompts/val.jsonl",
            "helpful": [f"{data}/preferences/helpful_val.jsonl"],
            "safety": [f"{data}/preferences/safety_val.jsonl"],
            "helpful_val": [f"{data}/preferences/helpful_val.jsonl"],
            "safety_val": [f"{data}/preferences/safety_val.jsonl"],
        },
        "configs": dict(zip(names, files, strict=True)),
        "options": {name: {**plain, **options} for name, options in own.items()},
        "sampling": {
            "samples_per_prompt": 2,
            "temperatures": [0.8, 1.2],
            "sweep_prompts": 4,
            "max_new_tokens": 16,
            "pool": "all",
        },
        "ratings": {"rounds": 6},  # two prompts are held out, and equal answers make no pair
        "every": {"save": 1, "candidate": 1, "look": 1},
        "versions": 2,
        "ppo_from": 2,
        "answers_per_prompt": 1,
    }


def rlhf(folder: Path, config: dict, *words: str) -> None:
    path = folder / "rlhf.json"
    path.write_text(json.dumps(config))
    main(["rlhf", f"--config={path}", f"--out={folder / 'run'}", *words])


@pytest.fixture(scope="module")
def done(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        rlhf(folder, config_of(start))
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(run: Path, stage: str) -> dict:
    return read(run / f"manifests/{stage}.json")


REWARDS = ["ratings", "reward_helpfulness", "reward_safety", "judges"]
STAGES = [*REWARDS, "temperature", "best_of_k", "pool", "fine_tune"]
ALL = [
    "held_out",
    *(f"v1/{name}" for name in (*STAGES, "choice")),
    *(f"v2/{name}" for name in (*STAGES, "ppo", "choice")),
    "compare",
    "report",
]


def test_each_stage_leaves_a_manifest_with_hashes_of_config_data_and_parents(done: Path, start: Path) -> None:
    run = done / "run"
    assert {
        str(p.relative_to(run / "manifests").with_suffix("")) for p in run.glob("manifests/**/*.json")
    } == set(ALL)
    assert not list(run.glob("manifests/**/*.started"))
    tuned = manifest(run, "v2/fine_tune")
    chat = hashlib.sha256((start / "chat.ckpt").read_bytes()).hexdigest()
    config = run / "v2/configs/fine_tune.yaml"
    assert tuned["inputs"][str(start / "chat.ckpt")] == chat
    assert tuned["inputs"][str(config)] == hashlib.sha256(config.read_bytes()).hexdigest()
    assert str(run / "v2/pool/train.jsonl") in tuned["inputs"] and tuned["seconds"] > 0
    # the chosen checkpoint is the parent of the next version, by hash
    policy = str(run / "v1/choice/policy.ckpt")
    assert manifest(run, "v2/best_of_k")["inputs"][policy] == read(run / "v1/choice/choice.json")["sha256"]


def test_manifests_hold_the_tokens_and_the_energy_that_a_stage_counted(done: Path) -> None:
    run = done / "run"
    for name in ("reward_helpfulness", "reward_safety", "best_of_k", "fine_tune", "ppo"):
        found = manifest(run, f"v2/{name}")
        ledger = read(run / f"v2/{name}/carbon.json")["stages"][f"v2-{name}"]
        assert found["tokens"] > 0, name
        assert found["energy"]["hours"] == ledger["hours"] > 0 and found["energy"]["kwh"] == ledger["kwh"]
    sampled = [row for path in (run / "v2/best_of_k/answers").iterdir() for row in read(path)["rows"]]
    assert len(sampled) == 24  # every prompt
    assert manifest(run, "v2/best_of_k")["tokens"] == sum(
        len(s["ids"]) for row in sampled for s in row["samples"]
    )
    assert manifest(run, "v2/pool")["tokens"] is None  # not counted, and so not 0


def test_a_second_run_draws_the_report_and_does_nothing_else(
    done: Path, start: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(driver, "execute", ran.append)
    rlhf(done, config_of(start))
    assert ran == [["report", f"--run={done / 'run'}"]]
    assert capsys.readouterr().out.count("done before, skipped") == len(ALL) - 1


def test_a_stage_runs_by_hand_from_its_manifest_and_makes_the_same_again(done: Path) -> None:
    run = done / "run"
    before = fingerprint(run / "v2/pool")
    words = shlex.split(manifest(run, "v2/pool")["shell"])
    assert words[0] == "llama2-pl"
    shutil.rmtree(run / "v2/pool")
    main(words[1:])
    assert fingerprint(run / "v2/pool") == before


def test_ratings_compare_the_current_version_with_the_one_before_and_reward_data_grows(
    done: Path, start: Path
) -> None:
    run = done / "run"
    command = manifest(run, "v2/ratings")["command"]
    policies = json.loads(next(w for w in command if w.startswith("--policies=")).partition("=")[2])
    assert policies == [str(run / "v1/choice/policy.ckpt"), str(start / "chat.ckpt")]
    config = yaml.safe_load((run / "v2/configs/reward_helpfulness.yaml").read_text())
    assert config["data"]["init_args"]["helpful"] == [
        str(start / "data/preferences/helpful_val.jsonl"),
        str(run / "v1/ratings/helpful_train.jsonl"),
        str(run / "v2/ratings/helpful_train.jsonl"),
    ]
    assert {row["batch"] for row in lines(run / "v2/ratings/helpful_train.jsonl")} == {2}
    assert config["model"]["init_args"]["init_from"] == policies[0]


def test_reward_models_are_measured_on_the_held_out_pairs_of_the_newest_batch(
    done: Path, start: Path
) -> None:
    run = done / "run"
    for version in (1, 2):
        found = read(run / f"v{version}/judges.json")
        held_out = {
            kind: lines(run / f"v{version}/ratings/{kind}_val.jsonl") for kind in ("helpful", "safety")
        }
        pairs = {name: row["pairs"] for name, row in found["batch"]["after"].items()}
        wanted = {"helpfulness": len(held_out["helpful"]), "safety": len(held_out["safety"])}
        assert pairs == {name: count for name, count in wanted.items() if count} != {}
        assert ("before" in found["batch"]) == (version > 1)
    # the reward models before the second batch are those of the first, on the second's pairs
    judged = read(run / "v2/judges.json")["batch"]["before"]
    words = [run / f"v1/reward_{kind}/last.ckpt" for kind in ("helpfulness", "safety")]
    both = load_judges(*map(str, words), str(start / "tokenizer.model"))
    pairs = [str(run / f"v2/ratings/{kind}_val.jsonl") for kind in ("helpful", "safety")]
    again = reward_models(both, *([path] if Path(path).stat().st_size else [] for path in pairs))
    for name, row in judged.items():
        assert row["overall"] == again["reward_accuracy"][name]["overall"]


def test_the_pool_names_where_each_answer_comes_from_and_who_judged_it(done: Path, start: Path) -> None:
    run = done / "run"
    chat = hashlib.sha256((start / "chat.ckpt").read_bytes()).hexdigest()
    first = read(run / "v1/choice/choice.json")["sha256"]
    temperature = {v: read(run / f"{v}/temperature/sweep.json")["temperature"] for v in ("v1", "v2")}
    entries = lines(run / "v2/pool/pool.jsonl")
    assert {(e["version"], e["sampler"], e["temperature"]) for e in entries} == {
        (1, chat, temperature["v1"]),
        (2, first, temperature["v2"]),
    }
    # the older entries were judged twice, the newer ones by the newest reward models alone
    assert {(e["version"], tuple(e["scores"])) for e in entries} == {(1, ("1", "2")), (2, ("2",))}
    taken = lines(run / "v2/pool/train.jsonl")
    # of each version the best answer to each prompt, but for one that both found
    assert {json.dumps([*e["messages"], {"role": "assistant", "content": e["answer"]}]) for e in entries} == {
        json.dumps(row["messages"]) for row in taken
    }
    table = read(run / "v2/pool/lineage.json")
    assert sum(row["taken"] for row in table["versions"]) == len(taken)
    judge = run / "v2/reward_safety/last.ckpt"
    assert table["judged_by"]["safety"]["sha256"] == hashlib.sha256(judge.read_bytes()).hexdigest()


def test_the_temperature_and_the_checkpoint_are_those_with_the_highest_reward(done: Path) -> None:
    run = done / "run"
    sweep = read(run / "v2/temperature/sweep.json")
    best = {float(t): reward for t, reward in sweep["reward_of_taken"].items()}
    assert sweep["temperature"] == max(best, key=lambda t: best[t]) and set(best) == {0.8, 1.2}
    row = read(next((run / "v2/best_of_k/answers").iterdir()))["rows"][0]
    assert {sample["temperature"] for sample in row["samples"]} == {sweep["temperature"]}
    choice = read(run / "v2/choice/choice.json")
    rewards = {path: found["reward"]["mean"] for path, found in choice["candidates"].items()}
    assert str(run / "v2/ppo/best.ckpt") in rewards and len(rewards) > 2
    assert choice["chosen"] == max(rewards, key=lambda path: rewards[path])
    assert fingerprint(run / "v2/choice/policy.ckpt") == fingerprint(choice["chosen"]) == choice["sha256"]


def test_the_versions_are_reported_on_prompts_that_nothing_was_chosen_by(done: Path, start: Path) -> None:
    run = done / "run"
    paths = [
        *(run / f"held_out/{name}.jsonl" for name in ("select", "test")),
        start / "data/prompts/val.jsonl",
    ]
    *halves, asked = ([*read_prompts(path, tasks="required")] for path in paths)
    assert sorted(halves[0] + halves[1], key=lambda row: row.id) == sorted(asked, key=lambda row: row.id)
    results = read(run / "results.json")
    assert [row["version"] for row in results["versions"]] == ["v0", "v1", "v2"]
    for row in results["versions"]:
        assert row["gold"]["count"] == len(halves[1]) and row["gold"]["low"] <= row["gold"]["mean"]
    steps = ["v2 without PPO", "v2 with PPO"]
    assert list(results["win_rate"]) == ["v1 vs v0", "v2 vs v1", " vs ".join(reversed(steps))]
    assert list(results["gold"]) == ["v0", "v1", "v2", *steps]
    assert results["versions"][0]["gap"] is None and results["versions"][2]["gap"]["count"] == len(halves[1])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "Versions</h2>" in page
        and "PPO of v2</h2>" in page
        and results["versions"][2]["choice"]["sha256"][:12] in page
    )


@pytest.mark.parametrize(
    ("words", "stage", "message"),
    [
        (
            ("--sampling.per_prompt=2",),
            "v1/pool",
            r"its command had --per_prompt=1 and now has --per_prompt=2",
        ),
        (("--ratings.noise=0.5",), "v1/ratings", r"had --noise=0\.25 and now has --noise=0\.5"),
        (
            ("--every.save=7",),
            "v1/reward_helpfulness",
            r"input \S+v1/configs/reward_helpfulness\.yaml changed",
        ),
    ],
)
def test_other_options_are_refused_with_the_stage_to_redo(
    done: Path, start: Path, words: tuple[str, ...], stage: str, message: str
) -> None:
    before = state(done / "run")
    for again in ((), ("--redo=v2/choice",)):
        with pytest.raises(
            ValueError, match=rf"stage {stage} .*{message}.*--redo {stage}, or give a fresh --out"
        ):
            rlhf(done, config_of(start), *words, *again)
        assert state(done / "run") == before


def state(run: Path) -> dict[str, tuple[str, int]]:
    """The hash of each file and when it was written."""
    return {
        str(path): (fingerprint(path), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()
    }


def test_a_run_that_another_process_holds_is_left_as_it_is(done: Path, start: Path) -> None:
    """A held lock is busy for this process, too."""
    before = state(done / "run")
    with holding(done / "run"):
        for words in (("--every.save=7",), ("--redo=v1/pool",)):
            with pytest.raises(ValueError, match=r"run: process \d+ on .* runs its stages"):
                rlhf(done, config_of(start), *words)
    assert state(done / "run") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--redo=v1/pol",), r"--redo v1/pol: no such stage"),
        (("--redo=v1/pool", "--until=v1/pol"), r"--until v1/pol: no such stage"),
        (("--redo=v1/pool", '--configs.ppo=["stage/pp.yaml"]'), r"configs: stage/pp\.yaml is no file"),
    ],
)
def test_a_mistake_beside_redo_is_told_before_anything_is_forgotten(
    done: Path, start: Path, words: tuple[str, ...], message: str
) -> None:
    before = state(done / "run")
    with pytest.raises(ValueError, match=message):
        rlhf(done, config_of(start), *words)
    assert state(done / "run") == before


def test_a_start_is_made_where_it_is_not_finished_and_is_used_as_it_is_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, file = [], tmp_path / "recipe.yaml"

    def execute(args: list[str]) -> None:
        ran.append(args)
        (tmp_path / "start" / args[0]).touch()

    def write_recipe(rate: int) -> Start:
        rows = [
            {"name": name, "command": f"{name} --lr {rate}", "outputs": [f"$RUN/{name}"]} for name in "abc"
        ]
        file.write_text(yaml.safe_dump({"stages": rows}))
        return Start(str(tmp_path / "start"), str(file), "b")

    monkeypatch.setattr("llama2_pl.cli.main", execute)
    driver.prepare(replace(write_recipe(1), until="a"), HARDWARE)
    driver.prepare(write_recipe(1), HARDWARE)
    driver.prepare(write_recipe(2), HARDWARE)
    assert ran == [["a", "--lr", "1"], ["b", "--lr", "1"]]


def test_a_start_is_made_on_the_run_s_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("llama2_pl.cli.main", lambda args: (ran.append(args), (tmp_path / "made").touch()))
    stage = {"name": "collect", "command": "collect --seed 1", "outputs": [str(tmp_path / "made")]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"stages": [stage]}))
    start = Start(str(tmp_path / "start"), str(tmp_path / "recipe.yaml"))
    driver.prepare(start, Hardware("cpu", "32-true"))
    assert ran == [["collect", "--seed", "1", "--hardware.device=cpu", "--hardware.precision=32-true"]]


def test_the_oracle_stands_beside_ppo_where_it_knows_the_truth_about_every_prompt(tmp_path: Path) -> None:
    task = {"kind": "safety", "answers": [], "unsafe": True, "category": "x"}
    with_task, without = (json.dumps({"prompt": "q", **more}) for more in ({"task": task}, {}))
    for lines, known in (((with_task, with_task), True), ((with_task, without), False)):
        (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        found = json.loads(driver.gold_judge(str(tmp_path / "prompts.jsonl")))
        assert (found is not None) == known


def test_a_file_changed_by_hand_is_named_and_can_be_put_back(done: Path, start: Path) -> None:
    made = done / "run/v1/pool/lineage.json"
    for path, stage in ((start / "data/prompts/train.jsonl", "v1/ratings"), (made, "v1/pool")):
        content = path.read_text()
        path.write_text(content + " ")
        with pytest.raises(ValueError, match=rf"stage {stage} .*{path} changed.*--redo {stage}"):
            rlhf(done, config_of(start))
        path.write_text(content)
    rlhf(done, config_of(start))


def test_a_killed_run_goes_on_and_ends_with_the_same_pool(
    done: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    def killed(module: type, name: str, nth: int) -> None:
        original, calls = getattr(module, name), []

        def method(self, *args):
            calls.append(1)
            if len(calls) == nth:
                monkeypatch.setattr(module, name, original)
                raise Killed
            return original(self, *args)

        monkeypatch.setattr(module, name, method)

    for module, name, nth, until in (
        (RewardModule, "training_step", 3, "v1/reward_helpfulness"),
        (RejectionSamplingModule, "answer", 2, "v1/best_of_k"),
        (Judges, "scores", 1, "v1/pool"),
    ):
        killed(module, name, nth)
        with pytest.raises(Killed):
            rlhf(tmp_path, config_of(start), f"--until={until}")
        assert (tmp_path / f"run/manifests/{until}.started").exists()
        if module is RejectionSamplingModule:
            assert len(list((tmp_path / "run/v1/best_of_k/answers").iterdir())) == 1
    with pytest.raises(ValueError, match=r"v1/pool .*--per_prompt=2"):  # begun with something else
        rlhf(tmp_path, config_of(start), "--until=v1/pool", "--sampling.per_prompt=2")
    rlhf(tmp_path, config_of(start), "--until=v1/pool")
    for name in ("pool", "train"):
        assert lines(tmp_path / f"run/v1/pool/{name}.jsonl") == lines(done / f"run/v1/pool/{name}.jsonl")


def test_a_small_model_learns_from_the_samples_of_a_big_one(done: Path, start: Path, tmp_path: Path) -> None:
    """The teacher has 32 channels, the student 16; no sample and no reward model is the student's own."""
    config, run = config_of(start), tmp_path / "run"
    student = replace(CONFIG, dim=16)
    eos_id = Tokenizer(str(start / "tokenizer.model")).eos_id
    config["files"] |= {"policy": chatterbox(tmp_path / "small.ckpt", eos_id, student)}
    config["files"]["base"] = config["files"]["policy"]
    rlhf(tmp_path, config, f"--teacher={done / 'run'}", "--versions=1", "--ppo_from=1", "--until=v1/choice")
    made = {str(p.relative_to(run / "manifests").with_suffix("")) for p in run.glob("manifests/**/*.json")}
    assert made == {"held_out", "v1/fine_tune", "v1/ppo", "v1/choice"}
    pool = done / "run/v1/pool/train.jsonl"
    assert manifest(run, "v1/fine_tune")["inputs"][str(pool)] == fingerprint(pool)
    assert load_language_model(run / "v1/choice/policy.ckpt").config.dim == 16
    assert (
        load_reward_model(run / "v1/ppo/last.ckpt").config.dim == 16
    )  # its value network is not the teacher's


def test_what_another_run_made_with_the_same_command_and_inputs_is_linked_and_only_that(
    done: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ran = tmp_path / "run", []
    monkeypatch.setattr(driver, "execute", lambda args: (ran.append(args[0:2]), main(args)))
    words = [f"--share=[{done / 'run'}]", "--until=v1/pool"]
    rlhf(tmp_path, config_of(start), *words, "--sampling.per_prompt=2")
    assert [line[:2] for line in ran] == [["rlhf", "pool"]]  # the one stage whose command differs
    for name in ("reward_safety/last.ckpt", "best_of_k/answers"):
        assert fingerprint(run / "v1" / name) == fingerprint(done / "run/v1" / name)
    assert manifest(run, "v1/best_of_k")["made_in"] == str(done / "run")
    theirs, ours = (read_curve(out / "v1/reward_safety", "val/accuracy") for out in (done / "run", run))
    assert theirs.y and ours == theirs
    assert str(done / "run") not in json.dumps(manifest(run, "v1/best_of_k")["command"])
    ran.clear()
    rlhf(tmp_path, config_of(start), "--until=v1/pool", "--sampling.per_prompt=2")  # it is this run's now
    assert ran == []
    (tmp_path / "other").mkdir()
    rlhf(tmp_path / "other", config_of(start), *words[:1], "--until=v1/ratings", "--ratings.noise=0.5")
    assert [line[0] for line in ran] == ["collect"]


def test_a_stage_is_made_again_with_what_depends_on_it_and_ends_the_same(
    done: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ran = done / "run", []
    before = read(run / "v2/choice/choice.json")
    monkeypatch.setattr(driver, "execute", lambda args: (ran.append(args[:2]), main(args)))
    rlhf(done, config_of(start), "--redo=v2/choice")
    assert [words[-1].partition("=")[0] for words in ran] == ["choose", "compare", "--run"]
    assert read(run / "v2/choice/choice.json") == before

"""RejectionSamplingModule: K answers per prompt, scored, written whole, the best merged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest

from llama2_pl.data.batches import PromptBatch
from llama2_pl.modules import PretrainModule, RejectionSamplingModule, RewardModule
from llama2_pl.modules.answer_files import read_rows
from llama2_pl.modules.rejection_sampling import best_sample, merge_winners
from llama2_pl.text.chat import Dialog


@pytest.fixture
def build(config, save, tokenizer_path, tmp_path):
    files = {
        "policy": save(PretrainModule(config), "policy.ckpt"),
        "helpfulness_reward": save(RewardModule(config), "helpfulness.ckpt"),
        "safety_reward": save(RewardModule(config), "safety.ckpt"),
        "tokenizer": tokenizer_path,
        "out": str(tmp_path / "out"),
    }

    def make(**options) -> RejectionSamplingModule:
        defaults = {"samples_per_prompt": 4, "temperatures": (1.0,), "max_new_tokens": 5}
        return RejectionSamplingModule(**{**files, **defaults, **options})

    return make


class Prompts(L.LightningDataModule):
    """Prompts with their dialogues, as PromptDataModule holds them."""

    def __init__(self, batches, loader) -> None:
        super().__init__()
        self.batches, self.loader = batches, loader
        self.rows = [SimpleNamespace(prompt=Dialog.of([("user", f"question {i}")])) for i in range(16)]

    def predict_dataloader(self):
        return self.loader(self.batches)


def sample(trainer, make, module, batches) -> list[dict]:
    results = trainer().predict(module, datamodule=Prompts(batches, make.loader))
    return [row for rows in results for row in rows]


def test_each_prompt_has_k_scored_answers_shared_by_the_temperatures(trainer, make, build):
    module = build(samples_per_prompt=6, temperatures=(0.7, 1.0, 1.3))
    rows = sample(trainer, make, module, [make.prompts(3)])
    assert [row["index"] for row in rows] == [0, 1, 2]
    temperatures = [s["temperature"] for s in rows[0]["samples"]]
    assert temperatures == [0.7, 0.7, 1.0, 1.0, 1.3, 1.3]
    tagged, plain = rows[0]["samples"], rows[1]["samples"]
    assert all(s["score"] == pytest.approx(s["safety"], abs=1e-6) and s["from_safety"] for s in tagged)
    assert all(s["score"] == pytest.approx(s["helpfulness"], abs=1e-6) for s in plain)
    assert rows[1]["messages"] == [{"role": "user", "content": "question 1"}]


def test_temperatures_that_do_not_share_evenly_are_refused(build):
    with pytest.raises(ValueError, match="samples_per_prompt is 4 and there are 3 temperatures"):
        build(temperatures=(0.7, 1.0, 1.3))


def test_answers_do_not_depend_on_the_batch_size(trainer, make, build, tmp_path):
    whole = sample(trainer, make, build(out=str(tmp_path / "a")), [make.prompts(4)])
    apart = sample(trainer, make, build(out=str(tmp_path / "b")), [make.prompts(2), make.prompts(2, first=2)])
    for one, other in zip(whole, apart, strict=True):
        assert [s["ids"] for s in one["samples"]] == [s["ids"] for s in other["samples"]]
        # the rounding of a matrix product depends on its number of rows
        assert [s["score"] for s in one["samples"]] == pytest.approx(
            [s["score"] for s in other["samples"]], abs=1e-5
        )


def test_the_seed_changes_the_answers(trainer, make, build, tmp_path):
    first = sample(trainer, make, build(), [make.prompts(2)])
    other = sample(trainer, make, build(seed=1, out=str(tmp_path / "b")), [make.prompts(2)])
    assert [s["ids"] for s in first[0]["samples"]] != [s["ids"] for s in other[0]["samples"]]


def test_a_second_run_skips_finished_batches_and_makes_the_missing_one(trainer, make, build, monkeypatch):
    batches = [make.prompts(2), make.prompts(2, first=2)]
    rows = sample(trainer, make, build(), batches)
    folder = Path(build().hparams["out"])
    assert sorted(p.name for p in folder.iterdir()) == ["batch-000000.json", "batch-000001.json"]
    (folder / "batch-000001.json").unlink()  # as after a kill
    answered = []
    original = RejectionSamplingModule.answer
    monkeypatch.setattr(
        RejectionSamplingModule,
        "answer",
        lambda self, batch: answered.extend(batch.index.tolist()) or original(self, batch),
    )
    assert sample(trainer, make, build(), batches) == rows
    assert answered == [2, 3]


def test_another_division_into_batches_answers_only_what_is_left(trainer, make, build, monkeypatch):
    halves = [make.prompts(4), make.prompts(4, first=4)]
    rows = sample(trainer, make, build(), halves)
    folder = Path(build().hparams["out"])
    (folder / "batch-000001.json").unlink()  # as after a kill
    answered = []
    original = RejectionSamplingModule.answer
    monkeypatch.setattr(
        RejectionSamplingModule,
        "answer",
        lambda self, batch: answered.extend(batch.index.tolist()) or original(self, batch),
    )
    # batch 1 of three has prompts of both halves
    thirds = [make.prompts(3), make.prompts(3, first=3), make.prompts(2, first=6)]
    again = sample(trainer, make, build(), thirds)
    assert answered == [4, 5, 6, 7]
    assert [row["samples"][0]["ids"] for row in again] == [row["samples"][0]["ids"] for row in rows]
    assert [row["index"] for row in read_rows(str(folder))] == list(range(8))
    # one file of all eight: nothing is answered, and no file changes
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(sample(trainer, make, build(), [make.prompts(8)])) == 8
    assert answered == [4, 5, 6, 7] and {path: path.read_bytes() for path in folder.iterdir()} == files


def test_a_file_that_is_written_again_keeps_the_answers_of_another_division(trainer, make, build):
    sample(trainer, make, build(), [make.prompts(2), make.prompts(2, first=2)])
    # the second file, of prompts 2 and 3, is now that of 4 to 7
    sample(trainer, make, build(), [make.prompts(4), make.prompts(4, first=4)])
    folder = build().hparams["out"]
    assert [row["index"] for row in read_rows(folder)] == list(range(8))


def test_a_small_nucleus_says_the_likeliest_token(trainer, make, build):
    rows = sample(trainer, make, build(top_p=1e-6), [make.prompts(2)])
    assert all(s["ids"] == row["samples"][0]["ids"] for row in rows for s in row["samples"])


def flipped(data: bytes) -> bytes:
    place = data.index(b'"score": ') + 12  # a digit
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "flipped bit in a score": flipped,
    "cut": lambda data: data[:-9],
    "no UTF-8": lambda data: data.replace(b'"run"', b'"r\xe9n"'),
    "no object": lambda _: b"[1]",
}


@pytest.mark.parametrize("way", DAMAGE)
def test_a_damaged_file_is_named_and_made_again_and_gives_no_winners(trainer, make, build, way):
    module = build()
    rows = sample(trainer, make, module, [make.prompts(2)])
    path = Path(module.hparams["out"]) / "batch-000000.json"
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[way](whole))
    with pytest.raises(ValueError, match=r"batch-000000\.json: damaged"):
        read_rows(str(path.parent))
    with pytest.warns(UserWarning, match=r"batch-000000\.json: damaged.*its prompts are answered again"):
        assert sample(trainer, make, build(), [make.prompts(2)]) == rows
    assert path.read_bytes() == whole


def test_files_of_other_settings_are_not_taken_for_finished(trainer, make, build):
    sample(trainer, make, build(), [make.prompts(2)])
    rows = sample(trainer, make, build(samples_per_prompt=2), [make.prompts(2)])
    assert len(rows[0]["samples"]) == 2


def test_the_best_is_the_highest_score_among_finished_answers():
    def answer(score, finished=True, text="yes"):
        return {"score": score, "finished": finished, "text": text}

    assert best_sample([answer(1), answer(3), answer(2)]) == 1
    assert best_sample([answer(1), answer(9, finished=False), answer(5, text=""), answer(2)]) == 3
    assert best_sample([answer(1, finished=False)]) is None


def test_an_answer_of_control_tags_alone_does_not_win():
    """They are cut before fine-tuning, and what would be left is an empty answer."""
    samples = [{"score": 1.0, "finished": True, "text": "yes"}]
    samples += [
        {"score": 9.0, "finished": True, "text": text} for text in ("[INST]", " <<SYS>> [/INST]\n", "\x00")
    ]
    assert best_sample(samples) == 0


def written(folder: Path, rows: list[dict], run: str = "a") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    (folder / f"batch-{number:06d}.json").write_text(json.dumps({"run": run, "rows": rows}))
    return str(folder)


def row(index: int, texts: list[str], best: int | None) -> dict:
    question = [{"role": "user", "content": f"q{index}"}]
    samples = [{"text": text, "score": 0.0, "finished": True} for text in texts]
    return {"index": index, "messages": question, "samples": samples, "best": best}


def test_winners_of_all_folders_become_dialogues(tmp_path):
    first = written(tmp_path / "v1", [row(0, ["a", "b"], 1), row(1, ["c"], None)])
    second = written(tmp_path / "v2", [row(0, ["no [INST] tags"], 0)], run="b")
    out = tmp_path / "winners.jsonl"
    assert merge_winners([first, second], str(out)) == 2
    answers = [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert answers[0] == [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "b"}]
    assert "[INST]" not in answers[1][1]["content"]


def test_merging_two_runs_in_one_folder_is_refused(tmp_path):
    written(tmp_path / "v1", [row(0, ["a"], 0)], run="a")
    folder = written(tmp_path / "v1", [row(1, ["b"], 0)], run="b")
    with pytest.raises(ValueError, match=r"batch-000001\.json: of another run"):
        merge_winners(folder, str(tmp_path / "out.jsonl"))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no batch-\*\.json"):
        merge_winners(str(tmp_path), str(tmp_path / "out.jsonl"))


def test_prompts_of_a_plain_loader_are_answered_too(trainer, make, build):
    batch: PromptBatch = make.prompts(2)
    (rows,) = trainer().predict(build(), make.loader([batch]))
    assert rows[0]["messages"] is None and len(rows[0]["samples"]) == 4


def test_a_prompt_without_room_for_an_answer_is_refused_before_the_first_answer(trainer, make, build, config):
    prompts = Prompts([make.prompts(2)], make.loader)
    prompts.longest = config.max_seq_len - 4
    with pytest.raises(ValueError, match=f"max_prompt_len to at most {config.max_seq_len - 5}"):
        trainer().predict(build(), datamodule=prompts)


def test_a_prompt_that_a_reward_model_cannot_read_is_refused_before_the_first_answer(
    trainer, make, build, config, save
):
    prompts = Prompts([make.prompts(2)], make.loader)
    prompts.longest = 28
    short = save(RewardModule(replace(config, max_seq_len=32)), "short.ckpt")
    with pytest.raises(ValueError, match=r"max_seq_len 32 of helpfulness_reward; .* at most 27"):
        trainer().predict(build(helpfulness_reward=short), datamodule=prompts)

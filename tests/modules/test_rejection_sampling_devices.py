"""Rejection sampling killed on one device and finished on two: no prompt lost, none answered differently or twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest

from llama2_pl.data import PromptDataModule
from llama2_pl.modules import PretrainModule, RejectionSamplingModule, RewardModule
from llama2_pl.modules.answer_files import read_rows

PROMPTS, BATCH, K = 7, 2, 3


@pytest.fixture
def settings(config, save, tokenizer_path, tmp_path) -> tuple[dict, dict]:
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": f"cat {n}"}], "is_safety": n % 3 == 0} for n in range(PROMPTS)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = {
        "policy": save(PretrainModule(config), "policy.ckpt"),
        "helpfulness_reward": save(RewardModule(config), "helpfulness.ckpt"),
        "safety_reward": save(RewardModule(config), "safety.ckpt"),
        "tokenizer": tokenizer_path,
        "out": str(tmp_path / "out"),
        "samples_per_prompt": K,
        "max_new_tokens": 5,
    }
    return module, {"prompts": str(prompts), "tokenizer": tokenizer_path, "batch_size": BATCH}


def answers(rows: list[dict]) -> dict[int, list]:
    return {row["index"]: [sample["ids"] for sample in row["samples"]] for row in rows}


def test_a_run_killed_on_one_device_is_finished_on_two(trainer, settings, tmp_path, monkeypatch):
    module, data = settings
    whole = {**module, "out": str(tmp_path / "whole")}
    trainer().predict(RejectionSamplingModule(**whole), datamodule=PromptDataModule(**data))
    expected = answers(read_rows(whole["out"]))
    assert list(expected) == list(range(PROMPTS)) and all(len(ids) == K for ids in expected.values())

    original = RejectionSamplingModule.answer

    def killed_at_the_third_batch(self, batch):
        if 4 in batch.index.tolist():
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(RejectionSamplingModule, "answer", killed_at_the_third_batch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer().predict(RejectionSamplingModule(**module), datamodule=PromptDataModule(**data))
    assert sorted(answers(read_rows(module["out"]))) == [0, 1, 2, 3]

    monkeypatch.undo()
    for rank in range(2):  # as DDP on two devices, one after the other
        kwargs = {"num_replicas": 2, "rank": rank}
        monkeypatch.setattr(
            L.Trainer, "distributed_sampler_kwargs", property(lambda self, kwargs=kwargs: kwargs)
        )
        rows = trainer(use_distributed_sampler=False).predict(
            RejectionSamplingModule(**module), datamodule=PromptDataModule(**data)
        )
        assert [row["index"] for batch in rows for row in batch] == [[0, 2, 4, 6], [1, 3, 5]][rank]
    # two prompts to a file before the kill, and one after, when a batch had one missing prompt for each rank
    assert len(list(Path(module["out"]).glob("batch-*.json"))) == 2 + 3
    assert answers(read_rows(module["out"])) == expected


def test_a_run_on_fewer_devices_does_not_repeat_the_prompts_of_files_left_behind(settings, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for number, index in enumerate(
        [[0, 1], [2, 3], [2], [3]]
    ):  # the last two are from when there were two ranks
        rows = [{"index": i, "messages": None, "samples": [], "best": None} for i in index]
        (folder / f"batch-{number:06d}.json").write_text(json.dumps({"run": "a", "rows": rows}))
    assert [row["index"] for row in read_rows(str(folder))] == [0, 1, 2, 3]


@pytest.mark.parametrize("change", ["prompts", "reward"])
def test_answers_to_other_prompts_or_by_another_reward_model_are_not_taken(
    trainer, settings, save, config, change
):
    module, data = settings

    def run() -> list[dict]:
        trainer().predict(RejectionSamplingModule(**module), datamodule=PromptDataModule(**data))
        return read_rows(module["out"])

    before = run()
    assert run() == before
    if change == "prompts":
        path = Path(data["prompts"])
        path.write_text(path.read_text().replace("cat 0", "dog 0"))
        assert run()[0]["messages"][0]["content"] == "dog 0"
    else:
        save(RewardModule(config), "helpfulness.ckpt")  # same path, other weights
        after = run()
        assert answers(after) == answers(before)
        assert after[1]["samples"][0]["score"] != before[1]["samples"][0]["score"]


SHARDED = """
import json
import sys
import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from llama2_pl.data import PromptDataModule
from llama2_pl.modules import RejectionSamplingModule

module, data = json.loads(sys.argv[1])
strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_progress_bar=False)
trainer.predict(RejectionSamplingModule(**module), datamodule=PromptDataModule(**data))
"""


def test_sharded_ranks_with_unequal_work_wait_for_each_other(trainer, settings, tmp_path):
    """Rank 0 has prompts 0, 2, 4, 6 and rank 1 has 1, 3, 5; of these only 3, 4 and 5 are left to answer."""
    module, data = settings
    trainer().predict(
        RejectionSamplingModule(**module), datamodule=PromptDataModule(**{**data, "batch_size": 3})
    )
    expected = answers(read_rows(module["out"]))
    (Path(module["out"]) / "batch-000001.json").unlink()
    assert sorted(answers(read_rows(module["out"]))) == [0, 1, 2, 6]
    (tmp_path / "sample.py").write_text(SHARDED)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "sample.py", json.dumps([{**module, "scoring_batch": 2}, data])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert answers(read_rows(module["out"])) == expected

"""The position in the data under a real Trainer: nothing lost, nothing repeated, however a run is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.tuner import Tuner

from llama2_pl.data import CorpusDataModule, DialogueDataModule
from llama2_pl.text import Tokenizer

MakeData = Callable[..., CorpusDataModule]


@pytest.fixture
def make_data(tmp_path: Path, tokenizer: Tokenizer, write_rows, sentence) -> MakeData:
    path = write_rows("corpus.jsonl", [{"text": sentence(i, 30)} for i in range(60)])

    def make(**options) -> CorpusDataModule:
        defaults = {
            "sources": {"web": {"path": path}},
            "seq_len": 32,
            "batch_size": 2,
            "num_batches": 20,
            "val_fraction": 0.1,
        }
        cache = str(tmp_path / "cache")
        return CorpusDataModule(tokenizer=str(tokenizer.path), cache_dir=cache, **{**defaults, **options})

    return make


def every(batches: int, folder: Path, accumulate: int = 1) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=batches // accumulate, save_top_k=-1)


def whole_run(make_trainer, recorder, data: CorpusDataModule, **options) -> list[list[int]]:
    model = recorder()
    make_trainer(**{"max_epochs": 1, **options}).fit(model, datamodule=data)
    return model.seen


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_ten_batches_and_ten_more_are_the_same_as_twenty(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path, accumulate: int, num_workers: int
) -> None:
    expected = whole_run(make_trainer, recorder, make_data(), accumulate_grad_batches=accumulate)
    assert len(expected) == len({tuple(b) for b in expected}) == 20

    first, second = recorder(), recorder()
    options = {"accumulate_grad_batches": accumulate}
    trainer = make_trainer(max_steps=10 // accumulate, **options)
    trainer.fit(first, datamodule=make_data(num_workers=num_workers))
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    trainer = make_trainer(max_steps=20 // accumulate, **options)
    trainer.fit(second, datamodule=make_data(num_workers=num_workers), ckpt_path=tmp_path / "cut.ckpt")
    assert first.seen + second.seen == expected
    assert trainer.global_step == 20 // accumulate


def test_a_run_begins_at_the_first_batch_after_lightnings_tuner_has_changed_the_batch_size(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the tuner leaves and removes a checkpoint of step 0 here
    model, data, trainer = recorder(), make_data(), make_trainer(max_epochs=1)
    found = Tuner(trainer).scale_batch_size(model, datamodule=data, steps_per_trial=1, max_trials=3)
    assert found == data.batch_size == 8  # 2, 4, 8
    model.seen.clear()
    trainer.fit(model, datamodule=data)
    assert model.seen == whole_run(make_trainer, recorder, make_data(batch_size=8))


@pytest.mark.parametrize("cut", [1, 10, 19])
def test_a_checkpoint_written_between_batches_resumes_after_its_last_batch(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path, cut: int
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())
    callbacks = [every(cut, tmp_path / "ckpt")]
    trainer = make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=callbacks)
    trainer.fit(recorder(), datamodule=make_data())
    model = recorder()
    make_trainer(max_epochs=1).fit(
        model, datamodule=make_data(), ckpt_path=tmp_path / "ckpt" / f"step={cut}.ckpt"
    )
    assert model.seen == expected[cut:]


def test_a_checkpoint_of_an_exception_repeats_the_batch_that_failed(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())

    class FailsAtSeven(recorder):
        def training_step(self, batch, batch_idx: int):
            loss = super().training_step(batch, batch_idx)
            if len(self.seen) == 7:
                raise OSError("disk")
            return loss

    save = ModelCheckpoint(tmp_path, "cut", save_on_exception=True)
    with pytest.raises(OSError, match="disk"):
        trainer = make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[save])
        trainer.fit(FailsAtSeven(), datamodule=make_data())
    model = recorder()
    [checkpoint] = tmp_path.glob("*.ckpt")
    make_trainer(max_epochs=1).fit(model, datamodule=make_data(), ckpt_path=checkpoint)
    assert model.seen == expected[6:]


def test_validation_in_between_and_two_interruptions_lose_nothing(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())
    seen, checkpoint = [], None
    for stop in (6, 13, 20):
        model = recorder()
        trainer = make_trainer(max_steps=stop, limit_val_batches=1, val_check_interval=4)
        trainer.fit(model, datamodule=make_data(), ckpt_path=checkpoint)
        checkpoint = tmp_path / f"{stop}.ckpt"
        trainer.save_checkpoint(checkpoint)
        seen += model.seen
        assert model.validated
    assert seen == expected


@pytest.mark.parametrize("way", ["after fit", "every n steps", "epoch end"])
def test_a_finished_run_can_be_made_longer(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path, way: str
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())
    callbacks = {
        "after fit": [],
        "every n steps": [every(10, tmp_path)],
        "epoch end": [ModelCheckpoint(tmp_path, "{step}", save_on_train_epoch_end=True)],
    }[way]
    # num_batches comes from max_steps, so the first run's pass is over at 10
    trainer = make_trainer(max_steps=10, enable_checkpointing=bool(callbacks), callbacks=callbacks)
    trainer.fit(recorder(), datamodule=make_data(num_batches=None))
    if way == "after fit":
        trainer.save_checkpoint(tmp_path / "step=10.ckpt")
    model = recorder()
    trainer = make_trainer(max_steps=20)
    trainer.fit(model, datamodule=make_data(num_batches=None), ckpt_path=tmp_path / "step=10.ckpt")
    assert model.seen == expected[10:]


def test_reading_estimated_stepping_batches_early_does_not_restart_the_data(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    class ReadsEarly(recorder):
        def configure_optimizers(self):
            self.estimate = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    expected = whole_run(make_trainer, recorder, make_data())
    trainer = make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[every(10, tmp_path)])
    trainer.fit(recorder(), datamodule=make_data())
    model = ReadsEarly()
    make_trainer(max_epochs=1).fit(model, datamodule=make_data(), ckpt_path=tmp_path / "step=10.ckpt")
    assert model.seen == expected[10:] and model.estimate == 20


@pytest.mark.filterwarnings("error:.*not resumable.*")
def test_lightning_sees_that_the_loader_is_resumable(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    make_trainer(max_steps=4).fit(recorder(), datamodule=make_data(), ckpt_path=tmp_path / "cut.ckpt")


def test_a_loader_handed_over_without_its_data_module_refuses_to_resume(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    def loader():
        data = make_data()
        data.setup()
        return data.train_dataloader()

    expected = whole_run(make_trainer, recorder, make_data())
    trainer, model = make_trainer(max_steps=3), recorder()
    trainer.fit(model, train_dataloaders=loader())
    assert model.seen == expected[:3]

    data = make_data()
    trainer = make_trainer(max_steps=3)
    trainer.fit(recorder(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"after 3 batches and the data stands at 0.*datamodule="):
        make_trainer(max_steps=6).fit(recorder(), train_dataloaders=loader(), ckpt_path=tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    ("key", "options"),
    [("seed", {"seed": 1}), ("batch_size", {"batch_size": 4}), ("seq_len", {"seq_len": 16})],
)
def test_changed_data_is_refused_by_name(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path, key: str, options: dict
) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(
        ValueError, match=rf"data\.{key} is .* the checkpoint was trained with .* set data\.{key} back"
    ):
        make_trainer(max_steps=6).fit(
            recorder(), datamodule=make_data(**options), ckpt_path=tmp_path / "cut.ckpt"
        )


def test_a_changed_source_is_refused_with_its_file_and_a_moved_one_is_announced(
    make_trainer, recorder, make_data: MakeData, write_rows, sentence, tmp_path: Path
) -> None:
    trainer, cut = make_trainer(max_steps=3), tmp_path / "cut.ckpt"
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(cut)

    def resume(sources: dict) -> None:
        make_trainer(max_steps=4).fit(recorder(), datamodule=make_data(sources=sources), ckpt_path=cut)

    moved = write_rows("moved.jsonl", [{"text": sentence(i, 30)} for i in range(60)])
    with pytest.warns(
        UserWarning,
        match=r"data\.sources\.web\.path is .*moved\.jsonl from here on and was .*corpus\.jsonl, with",
    ):
        resume({"web": {"path": moved}})
    other = write_rows("other.jsonl", [{"text": sentence(i, 31)} for i in range(60)])
    with pytest.raises(
        ValueError,
        match=r"data\.sources\.web\.path: \S*other\.jsonl is not what .* \(then \S*corpus\.jsonl\).*give the same",
    ):
        resume({"web": {"path": other}})
    with pytest.raises(
        ValueError, match=r"data\.sources\.web\.weight is 2 and the checkpoint was trained with 1"
    ):
        resume({"web": {"path": moved, "weight": 2}})
    with pytest.raises(ValueError, match=r"data\.sources is 'books, web' and .* with 'web'"):
        resume({"web": {"path": moved}, "books": {"path": other}})


def test_another_accumulation_is_refused_by_name(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    path = tmp_path / "cut.ckpt"
    trainer = make_trainer(max_steps=3, accumulate_grad_batches=2)
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(path)
    with pytest.raises(
        ValueError,
        match=r"trainer\.accumulate_grad_batches is 1 and the checkpoint was trained with 2.*set it back",
    ):
        make_trainer(max_steps=6).fit(recorder(), datamodule=make_data(), ckpt_path=path)
    make_trainer(limit_val_batches=1).validate(recorder(), datamodule=make_data(), ckpt_path=path)


def test_a_scheduled_accumulation_is_no_change(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    """Lightning's scheduler sets the window when an epoch starts, after the checkpoint is read."""
    expected, path = whole_run(make_trainer, recorder, make_data()), tmp_path / "cut.ckpt"
    for steps, batches in ((3, expected[:6]), (5, expected[6:10])):
        model = recorder()
        trainer = make_trainer(max_steps=steps, callbacks=[GradientAccumulationScheduler({0: 2})])
        trainer.fit(model, datamodule=make_data(), ckpt_path=path if path.exists() else None)
        trainer.save_checkpoint(path)
        assert model.seen == batches


def test_what_may_change_is_accepted(make_trainer, recorder, make_data: MakeData, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=3)
    trainer.fit(recorder(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    data = make_data(num_batches=30, val_batches=1, num_workers=1)
    make_trainer(max_steps=6).fit(recorder(), datamodule=data, ckpt_path=tmp_path / "cut.ckpt")
    # validation with other data asks nothing of the position
    make_trainer(limit_val_batches=1).validate(
        recorder(), datamodule=make_data(seed=5), ckpt_path=tmp_path / "cut.ckpt"
    )


def test_a_cut_inside_an_accumulation_window_warns(make_trainer, recorder, make_data: MakeData) -> None:
    data = make_data()
    trainer = make_trainer(max_steps=3, accumulate_grad_batches=2)
    trainer.fit(recorder(), datamodule=data)
    state = data.state_dict()
    assert state["batches"] == 6
    fresh = make_data()
    fresh.setup()
    fresh.load_state_dict(state)
    with pytest.warns(UserWarning, match="after 7 batches, inside an accumulation window of 2"):
        fresh.load_state_dict({**state, "batches": 7})


def test_the_state_is_plain(make_data: MakeData) -> None:
    data = make_data()
    data.setup()
    state = data.state_dict()
    assert set(state.pop("paths")) == {"tokenizer", "sources.web.path"}
    assert all(type(value) in (int, float, str) for value in state.values())


def test_a_checkpoint_gives_the_data_module_back(
    make_trainer, recorder, make_data: MakeData, tmp_path: Path
) -> None:
    data = make_data()
    trainer = make_trainer(max_steps=2)
    trainer.fit(recorder(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = CorpusDataModule.load_from_checkpoint(tmp_path / "x.ckpt")
    loaded.setup()
    assert loaded.settings() == data.settings()


def test_without_a_trainer_the_state_moves_the_loader(make_data: MakeData) -> None:
    data, resumed = make_data(), make_data()
    data.setup()
    resumed.setup()
    resumed.load_state_dict({**data.state_dict(), "batches": 15})
    tail = [b.tokens.tolist() for b in resumed.train_dataloader()]
    assert tail == [b.tokens.tolist() for b in data.train_dataloader()][15:]


def test_fast_dev_run_trains_one_batch_and_an_overfit_run_the_same_one(
    make_trainer, recorder, make_data: MakeData
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())
    model = recorder()
    make_trainer(fast_dev_run=True, limit_val_batches=1.0).fit(model, datamodule=make_data(num_batches=None))
    assert model.seen == expected[:1] and len(model.validated) == 1
    model = recorder()
    make_trainer(overfit_batches=2, max_epochs=3).fit(model, datamodule=make_data())
    assert model.seen == expected[:2] * 3


def test_limited_epochs_go_on_where_the_one_before_stopped(
    make_trainer, recorder, make_data: MakeData
) -> None:
    expected = whole_run(make_trainer, recorder, make_data())
    assert whole_run(make_trainer, recorder, make_data(), limit_train_batches=5, max_epochs=4) == expected


def test_two_fits_of_one_data_module_both_start_at_the_beginning(
    make_trainer, recorder, make_data: MakeData
) -> None:
    data = make_data()
    assert whole_run(make_trainer, recorder, data) == whole_run(make_trainer, recorder, data)


def test_dialogue_epochs_hold_every_dialogue_once_over_three_interruptions(
    make_trainer, recorder, tokenizer: Tokenizer, write_rows, sentence, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": sentence(i, 2)}, {"role": "assistant", "content": sentence(i)}]}
            for i in range(40)]  # fmt: skip
    path = write_rows("sft.jsonl", rows)

    class Counts(recorder):
        def training_step(self, batch, batch_idx: int):
            # None: each row is one document, and padding
            ids_of_rows = -(batch.tokens == 0).int() if batch.document_ids is None else batch.document_ids
            for tokens, ids in zip(batch.tokens, ids_of_rows, strict=True):
                self.seen += [tokens[ids == d].tolist() for d in range(int(ids.max()) + 1)]
            return self.weight.sum()

    def data() -> DialogueDataModule:
        args = {"seq_len": 128, "batch_size": 3, "epochs": 2, "cache_dir": str(tmp_path / "c")}
        return DialogueDataModule(path, str(tokenizer.path), **args)

    probe = data()
    probe.setup()
    total, seen, checkpoint = probe.num_train_batches, [], None
    for stop in (2, 3, total - 1, total):
        model, trainer = Counts(), make_trainer(max_steps=stop)
        trainer.fit(model, datamodule=data(), ckpt_path=checkpoint)
        checkpoint = tmp_path / f"{stop}.ckpt"
        trainer.save_checkpoint(checkpoint)
        seen += [tuple(document) for document in model.seen]
    assert len(set(seen[:40])) == len(set(seen[40:])) == 40 and set(seen[:40]) == set(seen[40:])
    assert seen[:40] != seen[40:]

"""Resuming: exact with dropout too, other shapes and seeds refused by name, other rates announced and used."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.checkpoints.schema import KEY, SCHEMA
from llama2_pl.data.base import NumberedDataModule
from llama2_pl.modules import PPOModule, PretrainModule
from llama2_pl.modules.optimizer import cosine_with_warmup
from llama2_pl.modules.resume import changed_options, random_states, restore_random


class Dropped(PretrainModule):
    """A user's module with dropout in its embedding."""

    def configure_model(self):
        super().configure_model()
        self.model.backbone.embedding.register_forward_hook(
            lambda _, __, out: nn.functional.dropout(out, 0.5)
        )


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture
def half(config, trainer, make, tmp_path):
    """A function: module class -> a checkpoint after 2 of 4 steps, the weights after 4 without a stop, more batches."""

    def train(kind=PretrainModule, **options):
        batches, path = [make.tokens(seed=n) for n in range(4)], str(tmp_path / "half.ckpt")

        class SaveAt2(L.Callback):
            def on_train_batch_end(self, run, *_):
                if run.global_step == 2:
                    run.save_checkpoint(path)

        torch.manual_seed(0)
        whole = kind(config, lr=1e-2, warmup_steps=1, **options)
        trainer(max_steps=4, callbacks=[SaveAt2()]).fit(whole, make.loader(batches))
        return path, weights(whole), batches[2:] * 2

    return train


def test_dropout_goes_on_as_if_there_had_been_no_stop(config, trainer, make, half):
    path, expected, rest = half(Dropped)
    torch.manual_seed(99)
    resumed = Dropped(config, lr=1e-2, warmup_steps=1)
    trainer(max_steps=4).fit(resumed, make.loader(rest), ckpt_path=path)
    found = weights(resumed)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 64), ("n_layers", 3), ("vocab_size", 300), ("rope_theta", 5e5), ("max_seq_len", 128)],
)
def test_another_shape_is_refused_by_name(config, trainer, make, half, field, value):
    path, _, rest = half()
    other = PretrainModule(replace(config, **{field: value}), lr=1e-2, warmup_steps=1)
    option = field if field == "max_seq_len" else f"backbone.{field}"
    with pytest.raises(ValueError, match=rf"model\.{option} is {value!r} and the checkpoint's model has"):
        trainer(max_steps=4).fit(other, make.loader(rest), ckpt_path=path)


def test_another_seed_of_the_samples_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.seed is 2 and the checkpoint was trained with 1: set it back"
    ):
        changed_options({"seed": 2, "lr": 1.0}, {"seed": 1, "lr": 1.0})
    assert "seed" in PPOModule.__init__.__annotations__


def test_another_seed_of_everything_is_refused_by_name(config, trainer, make, monkeypatch, tmp_path):
    """Restored generators would leave it without effect."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    path, batches = tmp_path / "half.ckpt", [make.tokens(seed=n) for n in range(4)]
    run = trainer(max_steps=2)
    run.fit(PretrainModule(config, warmup_steps=1), make.loader(batches))
    run.save_checkpoint(path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    with pytest.raises(ValueError, match="seed_everything is 2 and the run was started with 1: set it back"):
        trainer(max_steps=4).fit(PretrainModule(config, warmup_steps=1), make.loader(batches), ckpt_path=path)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    trainer(max_steps=4).fit(PretrainModule(config, warmup_steps=1), make.loader(batches), ckpt_path=path)


def test_a_new_rate_and_length_are_announced_and_used(config, trainer, make, half):
    """By hand: step 2 of a run of 6 with 1 step of warm-up, at the new peak and the new end."""
    path, _, rest = half()
    resumed = PretrainModule(config, lr=4e-3, warmup_steps=1, weight_decay=0.3)
    run = trainer(max_steps=6)
    with pytest.warns(UserWarning) as said:
        run.fit(resumed, make.loader(rest * 2), ckpt_path=path)
    text = "\n".join(str(w.message) for w in said)
    assert "model.lr is 0.004 from here on; the checkpoint was trained with 0.01" in text
    assert "model.weight_decay is 0.3" in text and "trainer.max_steps is 6 and was 4" in text
    groups = run.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    expected = 4e-3 * cosine_with_warmup(6, 1, 6, 0.1)
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("form", ["optimizer", "optimizers", "lists", "schedules in dicts", "dicts"])
def test_a_new_rate_is_used_whatever_form_configure_optimizers_returns(config, trainer, make, tmp_path, form):
    class Mine(PretrainModule):
        def configure_optimizers(self):
            made = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
            schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.5)
            forms = {
                "optimizer": made,
                "optimizers": [made],
                "lists": ([made], [schedule]),
                "schedules in dicts": ([made], [{"scheduler": schedule}]),
                "dicts": ({"optimizer": made, "lr_scheduler": schedule},),
            }
            return forms[form]

    path, batches = tmp_path / "half.ckpt", [make.tokens(seed=n) for n in range(4)]
    run = trainer(max_steps=2)
    run.fit(Mine(config, lr=0.1), make.loader(batches))
    run.save_checkpoint(path)
    run = trainer(max_steps=3)
    with pytest.warns(UserWarning, match=r"model\.lr is 0\.2 from here on"):
        run.fit(Mine(config, lr=0.2), make.loader(batches), ckpt_path=path)
    expected = 0.2 if form in ("optimizer", "optimizers") else 0.1
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def test_another_precision_or_clipping_is_announced(config, trainer, make, half):
    path, _, rest = half()
    resumed = PretrainModule(config, lr=1e-2, warmup_steps=1)
    with pytest.warns(UserWarning) as said:
        trainer(max_steps=3, precision="bf16-mixed", gradient_clip_val=0.5).fit(
            resumed, make.loader(rest), ckpt_path=path
        )
    text = "\n".join(str(w.message) for w in said)
    assert "trainer.precision is 'bf16-mixed' from here on; the checkpoint was trained with '32-true'" in text
    assert "trainer.gradient_clip_val is 0.5 from here on; the checkpoint was trained with None" in text


def test_the_first_resumed_step_has_the_new_rate(config, trainer, make, half):
    """Adam's step is the rate times a number that the rate does not change: half the rate, half the way."""
    path, _, rest = half()
    moved = []
    for lr in (1e-2, 5e-3):
        resumed = PretrainModule(config, lr=lr, warmup_steps=1, weight_decay=0.0)
        trainer(max_steps=3).fit(resumed, make.loader(rest), ckpt_path=path)
        start = torch.load(path, weights_only=True)["state_dict"]
        name = "model.backbone.layers.0.feed_forward.w2.weight"
        moved.append((weights(resumed)[name] - start[name]).double())
    torch.testing.assert_close(moved[1], moved[0] / 2, rtol=1e-3, atol=1e-7)


def test_a_finished_run_resumed_changes_nothing(config, trainer, make, half):
    path, expected, rest = half()
    done = PretrainModule(config, lr=1e-2, warmup_steps=1)
    first = trainer(max_steps=4)
    first.fit(done, make.loader(rest), ckpt_path=path)
    first.save_checkpoint(path)
    again = PretrainModule(config, lr=1e-2, warmup_steps=1)
    run = trainer(max_steps=4)
    run.fit(again, make.loader(rest), ckpt_path=path)
    assert run.global_step == 4
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in expected.items())


def test_last_ckpt_holds_the_end_of_a_run_between_two_intervals_too(config, trainer, make, tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_last=True, save_top_k=0)
    module = PretrainModule(config)
    run = trainer(max_steps=4, callbacks=[saver], enable_checkpointing=True)
    run.fit(module, make.loader([make.tokens(seed=n) for n in range(4)]))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4
    assert all(torch.equal(content["state_dict"][name], tensor) for name, tensor in weights(module).items())


@pytest.mark.parametrize("interval", [2, 3])
def test_a_finished_pass_resumed_writes_nothing_and_goes_on_where_its_data_is_longer(
    config, trainer, make, tmp_path, interval
):
    class Data(NumberedDataModule):
        def __init__(self, length):
            super().__init__(batch_size=2, num_workers=0)
            self.length = length

        def settings(self):
            return {}

        def train_batches(self):
            return [make.tokens(seed=n) for n in range(self.length)]

    class See(L.Callback):
        def on_train_batch_start(self, run, module, batch, n):
            seen.append(batch.tokens)

    def fit(length, **options):
        saver = ModelCheckpoint(tmp_path, every_n_train_steps=interval, save_last=True, save_top_k=0,
                                enable_version_counter=False)  # fmt: skip
        run = trainer(max_epochs=1, callbacks=[saver, See()], enable_checkpointing=True)
        run.fit(PretrainModule(config), datamodule=Data(length), **options)
        return run.global_step

    def files():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}

    seen = []
    assert fit(4) == 4
    before, seen = files(), []
    assert fit(4, ckpt_path="last") == 4
    assert files() == before and not seen
    assert fit(6, ckpt_path="last") == 6
    assert [tokens.tolist() for tokens in seen] == [make.tokens(seed=n).tokens.tolist() for n in (4, 5)]


def test_an_older_checkpoint_is_brought_up_to_date_and_a_newer_one_refused(config, trainer, make, half):
    path, expected, rest = half()
    content = torch.load(path, weights_only=True)
    assert content[KEY] == SCHEMA
    before = {
        key: value for key, value in content.items() if key not in (KEY, "tokens_seen", "random", "max_steps")
    }
    torch.save(before, path)
    load_language_model(path)
    resumed = PretrainModule(config, lr=1e-2, warmup_steps=1)
    trainer(max_steps=4).fit(resumed, make.loader(rest), ckpt_path=path)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in expected.items())
    torch.save({**content, KEY: SCHEMA + 1}, path)
    for load in (load_language_model, PretrainModule.load_from_checkpoint):
        with pytest.raises(ValueError, match=f"schema version {SCHEMA + 1} .*update llama2_pl"):
            load(path)


def test_numpy_goes_on_with_the_second_of_the_two_normal_numbers_that_it_makes_at_a_time():
    np.random.seed(0)
    np.random.normal()
    state = random_states()
    expected = np.random.normal(size=3)
    np.random.seed(1)
    restore_random(state, rank=0, world=1)
    assert np.random.normal(size=3).tolist() == expected.tolist()


def test_every_rank_gets_its_own_generators_back():
    torch.manual_seed(5)
    mine, other = (
        random_states()[0],
        {**random_states()[0], "torch": torch.Generator().manual_seed(6).get_state()},
    )
    expected = torch.Generator().manual_seed(6)
    restore_random([mine, other], rank=1, world=2)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    restore_random([mine, other], rank=0, world=1)  # another number of processes: nothing is put back

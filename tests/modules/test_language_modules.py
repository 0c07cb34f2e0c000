"""PretrainModule and SFTModule in a real Trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from llama2_pl.data.base import NumberedDataModule
from llama2_pl.data.batches import Batch
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel
from llama2_pl.modules import PretrainModule, SFTModule
from tests.objectives.plain import next_token_loss


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def fresh(config, kind: type[PretrainModule] = PretrainModule, **options) -> PretrainModule:
    """A module with built networks, of the same weights each time."""
    L.seed_everything(0, verbose=False)
    module = kind(config, **{"lr": 1e-2, "warmup_steps": 1, **options})
    module.configure_model()
    return module


def assert_same_weights(module, expected, atol: float) -> None:
    for name, value in weights(expected).items():
        torch.testing.assert_close(
            weights(module)[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


def test_networks_are_built_once_and_not_before_configure_model(config):
    module = PretrainModule(config)
    assert not list(module.parameters())
    module.configure_model()
    first = module.model
    module.configure_model()
    assert module.model is first


def test_a_preset_name_or_a_dict_is_a_backbone_too(config):
    assert PretrainModule("tiny").hparams["backbone"]["dim"] == 64  # type: ignore[arg-type]
    assert PretrainModule(config.to_dict()).hparams["backbone"] == config.to_dict()


def test_unequal_micro_batches_give_the_step_of_one_big_batch(config, trainer, make):
    # 4 micro-batches with 11, 1, 5 and 0 targets per row; a mean of means would weigh the 1 like the 11.
    batches = [make.tokens(targets=n, seed=n) for n in (11, 1, 5, 0)]
    accumulated, whole = fresh(config), fresh(config)
    options = {"max_steps": 1, "gradient_clip_val": 1.0}
    trainer(accumulate_grad_batches=4, **options).fit(accumulated, make.loader(batches))
    trainer(**options).fit(whole, make.loader([joined(batches)]))
    assert_same_weights(accumulated, whole, atol=1e-6)


def test_an_incomplete_last_window_is_a_mean_over_its_own_targets(config, trainer, make):
    # 6 batches by 4: the second step has two batches, though Lightning divides them by 4.
    # A huge clip value leaves the gradients alone; SGD shows their size, which AdamW would hide.
    class WithSGD(PretrainModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = [make.tokens(targets=1 + n, seed=n) for n in range(6)]
    accumulated, whole = fresh(config, WithSGD), fresh(config, WithSGD)
    trainer(accumulate_grad_batches=4, max_epochs=1).fit(accumulated, make.loader(batches))
    trainer(max_epochs=1).fit(whole, make.loader([joined(batches[:4]), joined(batches[4:])]))
    assert_same_weights(accumulated, whole, atol=1e-6)


def test_clipping_sees_the_gradient_of_the_mean(config, trainer, make):
    norms = []

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item() if grads else 0.0)

    options = {"max_steps": 2, "callbacks": [Watch()], "gradient_clip_val": 0.01}
    trainer(**options).fit(fresh(config), make.loader([make.tokens()] * 2))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_reaches_to_the_end_of_batches_that_a_callback_adds(config, trainer, make):
    class Data(L.LightningDataModule):
        num_train_batches = 4

        def train_dataloader(self):
            return make.loader([make.tokens()] * self.num_train_batches)

    class Adds(L.Callback):
        def on_fit_start(self, trainer, module):
            trainer.datamodule.num_train_batches = 8

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 1e-2)

    rates: list[float] = []
    module = PretrainModule(config, lr=1e-2, warmup_steps=2, min_lr_ratio=0.1)
    trainer(max_epochs=1, callbacks=[Adds()]).fit(module, datamodule=Data())
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 6)) for k in range(1, 7)]
    assert rates == pytest.approx([0.5, 1.0, *cosine])


def test_logged_loss_is_the_mean_over_targets_and_tokens_add_up(config, trainer, make):
    batches = [make.tokens(targets=11, seed=1), make.tokens(targets=1, seed=2)]
    module = fresh(config)
    with torch.no_grad():
        sums = [next_token_loss(module(b.tokens), b.tokens, b.loss_mask) for b in batches]
    run = trainer(accumulate_grad_batches=2, max_steps=1)
    run.fit(module, make.loader(batches))
    expected = sum(s.item() for s, _ in sums) / 24  # 2 rows x (11 + 1) targets
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert run.callback_metrics["train/tokens"].item() == 48
    assert run.callback_metrics["train/lr"].item() == pytest.approx(1e-2)


def test_ranks_that_train_on_the_same_rows_count_their_tokens_once(config, trainer, make, monkeypatch):
    """Those of a tensor-parallel group: a sum over two ranks holds each number twice."""
    monkeypatch.setattr(PretrainModule, "sum_over_ranks", lambda self, part: 2 * part)
    monkeypatch.setattr(PretrainModule, "copies_of_a_batch", lambda self: 2)
    module = fresh(config)
    trainer(max_steps=3).fit(module, make.loader([make.tokens(rows=2, length=12)] * 3))
    assert int(module.tokens_seen) == 3 * 24


def test_validation_and_test_weigh_by_target(config, trainer, make):
    batches = [
        make.tokens(targets=11, seed=1),
        make.tokens(targets=1, seed=2),
        make.tokens(targets=0, seed=3),
    ]
    module = fresh(config)
    with torch.no_grad():
        whole = joined(batches)
        total, count = next_token_loss(module(whole.tokens), whole.tokens, whole.loss_mask)
    (logged,) = trainer().validate(module, make.loader(batches), verbose=False)
    assert logged["val/loss"] == pytest.approx((total / count).item(), rel=1e-5)
    assert logged["val/ppl"] == pytest.approx(math.exp((total / count).item()), rel=1e-5)
    (tested,) = trainer().test(module, make.loader(batches), verbose=False)
    assert tested == {"test/loss": logged["val/loss"], "test/ppl": logged["val/ppl"]}


def test_a_step_never_makes_the_host_wait_for_the_device(config, make, monkeypatch):
    # On the meta device there are no values: whatever asks for one, as .item() or picking rows by a mask, raises.
    module = fresh(config).to("meta")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.setdefault(name, value))
    monkeypatch.setattr(module, "sum_over_ranks", lambda partial: partial)
    module.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, accumulate_grad_batches=2)
    for batch in (make.tokens(), make.tokens(targets=3)):
        batch = batch._replace(document_ids=torch.tensor([[0] * 7 + [1] * 5] * 2))
        module.training_step(Batch(*(t.to("meta") for t in batch)), 0).backward()
    module.on_before_optimizer_step(optimizer)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    assert logged["train/loss"].is_meta and module.model.head.weight.grad.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        logged["train/loss"].item()


def test_rows_of_one_document_each_need_no_mask(config, make):
    module = fresh(config)
    batch = make.tokens(targets=6)
    ids = torch.zeros(2, 12, dtype=torch.int32)
    ids[1, 7:] = -1  # padding, where nothing counts
    masked, two = batch._replace(document_ids=ids), ids.clone()
    two[0, 5:] = 1
    data = NumberedDataModule(batch_size=2, num_workers=0)
    plain = data.on_before_batch_transfer(masked, 0)
    assert plain.document_ids is None
    assert data.on_before_batch_transfer(batch._replace(document_ids=two), 0).document_ids is two
    for ours, with_mask in zip(module.loss(plain), module.loss(masked), strict=True):
        torch.testing.assert_close(ours, with_mask)
    assert module.loss(batch._replace(document_ids=two))[0] != module.loss(plain)[0]


def test_sft_memorises_a_few_answers(config, trainer, make):
    batch = make.tokens(rows=4, targets=8)
    module = SFTModule(config, lr=1e-2)
    run = trainer(max_steps=60)
    run.fit(module, make.loader([batch] * 60))
    assert run.callback_metrics["train/loss"] < 0.1
    predicted = module(batch.tokens).argmax(-1)[:, :-1]
    assert (predicted == batch.tokens[:, 1:])[batch.loss_mask[:, 1:]].float().mean() > 0.98


def test_prompt_tokens_are_no_targets(config, trainer, make):
    # Only the last token of each row counts; giving other *targets* to the rest, with the same inputs, is
    # done by changing token 11, which is no input of any counted position but its own.
    batch = make.tokens(rows=2, length=12, targets=6)
    changed = batch._replace(tokens=batch.tokens.clone())
    changed.tokens[:, 8:] = (changed.tokens[:, 8:] + 5) % 200 + 3
    modules = [fresh(config), fresh(config)]
    for module, data in zip(modules, [batch, changed], strict=True):
        trainer(max_steps=1).fit(module, make.loader([data]))
    for name, expected in weights(modules[0]).items():
        torch.testing.assert_close(
            weights(modules[1])[name],
            expected,
            rtol=0,
            atol=1e-7,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_packed_documents_do_not_see_each_other(config, make):
    module = fresh(config)
    batch = make.tokens(rows=1, length=10)
    documents = torch.tensor([[0] * 4 + [1] * 6], dtype=torch.int32)
    other = batch.tokens.clone()
    other[:, :4] = 7
    for tokens in (batch.tokens, other):
        mask = batch.loss_mask & (documents == 1)
        mask[:, 4] = False
        loss, _ = module.loss(Batch(tokens, mask, documents))
        alone, _ = module.loss(Batch(tokens[:, 4:], mask[:, 4:], torch.zeros(1, 6, dtype=torch.int32)))
        torch.testing.assert_close(loss, alone)


def test_predicted_logits_of_a_packed_document_are_those_of_it_alone(config, trainer, make):
    batch = make.tokens(rows=1, length=10)
    packed = batch._replace(document_ids=torch.tensor([[0] * 4 + [1] * 6], dtype=torch.int32))
    alone = Batch(batch.tokens[:, 4:], batch.loss_mask[:, 4:], None)
    together, wanted = trainer().predict(fresh(config), make.loader([packed, alone]))
    torch.testing.assert_close(together[:, 4:], wanted)


def test_two_runs_of_two_steps_equal_one_of_four_to_the_last_bit(config, trainer, make, tmp_path):
    batches = [make.tokens(seed=n) for n in range(4)]
    whole, path = fresh(config, warmup_steps=2), str(tmp_path / "half.ckpt")
    trainer(max_steps=4).fit(whole, make.loader(batches))

    class StopAt2(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 2

    half = trainer(max_steps=4, callbacks=[StopAt2()], min_epochs=0)
    half.fit(fresh(config, warmup_steps=2), make.loader(batches))
    assert half.global_step == 2
    half.save_checkpoint(path)
    resumed = PretrainModule(config, lr=1e-2, warmup_steps=2)  # other random weights, to be replaced
    run = trainer(max_steps=4)
    # a plain loader is not forwarded by Lightning: its first batch is the next one
    run.fit(resumed, make.loader(batches[2:] * 2), ckpt_path=path)
    for name, expected in weights(whole).items():
        assert torch.equal(weights(resumed)[name], expected), name
    assert run.callback_metrics["train/tokens"].item() == 4 * 24


def test_init_from_gives_the_weights(config, trainer, make, save):
    start = fresh(config)
    path = save(start, "start.ckpt")
    L.seed_everything(1, verbose=False)
    module = SFTModule(config, init_from=path, lr=0.0, weight_decay=0.0)
    trainer(max_steps=1).fit(module, make.loader([make.tokens()]))
    assert all(torch.equal(weights(module)[name], value) for name, value in weights(start).items())


def test_init_from_another_architecture_names_the_field(config, trainer, make, save):
    path = save(fresh(config), "start.ckpt")
    wider = SFTModule({**config.to_dict(), "n_layers": 3}, init_from=path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start\.ckpt: its n_layers is 2 and this run asks for 3"):
        trainer(max_steps=1).fit(wider, make.loader([make.tokens()]))


@pytest.mark.parametrize(
    ("longest", "vocabulary", "said"),
    [
        (65, 290, "longest row of the data has 65 tokens and model's max_seq_len is 64: set data.max_len"),
        (
            64,
            100,
            "vocab_size of model's backbone is 100 and data.tokenizer .* has 290 pieces: set vocab_size to",
        ),
    ],
)
def test_data_that_the_network_cannot_read_is_refused_before_the_first_step(
    config, trainer, make, tokenizer_path, longest, vocabulary, said
):
    class Data(L.LightningDataModule):
        tokenizer = tokenizer_path

        def train_dataloader(self):
            raise AssertionError("asked for a batch")

    data = Data()
    data.longest = longest  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=said):
        trainer(max_steps=1).fit(PretrainModule(replace(config, vocab_size=vocabulary)), datamodule=data)


def test_init_from_takes_the_same_sizes_written_otherwise(config, trainer, make, save):
    # as an imported checkpoint gives its FFN, and every query head a kv head
    same = replace(config, n_kv_heads=4, multiple_of=config.ffn_hidden)
    path = save(PretrainModule(same), "pretrain.ckpt")
    module = SFTModule(replace(config, n_kv_heads=None), init_from=path)
    trainer(max_steps=1).fit(module, make.loader([make.tokens()]))


def test_init_from_with_a_longer_context_reads_as_if_built_for_it_and_a_shorter_one_is_refused(
    config, trainer, make, save
):
    """Llama 2 A.3.5: from 2048 tokens to 4096 in fine-tuning."""
    start = fresh(config)
    path, long = save(start, "start.ckpt"), {**config.to_dict(), "max_seq_len": 128}
    module = SFTModule(long, init_from=path, lr=0.0, weight_decay=0.0)  # type: ignore[arg-type]
    trainer(max_steps=1).fit(module, make.loader([make.tokens(length=100)]))
    built = LanguageModel(ModelConfig.of(long))
    built.load_state_dict(start.model.state_dict())
    tokens = make.tokens(length=100).tokens
    assert torch.equal(module.model(tokens), built(tokens))
    assert module.model.config == module.model.backbone.rope.config == built.config
    with pytest.raises(ValueError, match="max_seq_len is 64"):
        start.model(tokens)
    short = SFTModule({**long, "max_seq_len": 32}, init_from=path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"its max_seq_len is 64 and this run asks for 32"):
        trainer(max_steps=1).fit(short, make.loader([make.tokens()]))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 5e-3},
        {"min_lr_ratio": 0.9},
        {"warmup_steps": 2},
        {"betas": (0.5, 0.5)},
        {"eps": 1e-1},
        {"weight_decay": 5.0},
    ],
)
def test_each_hyper_parameter_changes_the_weights(config, trainer, make, change):
    batches, results = [make.tokens(seed=n) for n in range(3)], []
    for options in ({}, change):
        module = fresh(config, **options)
        trainer(max_steps=3).fit(module, make.loader(batches))
        results.append(module.model.backbone.layers[0].attention.wq.weight.detach().clone())
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (PretrainModule, ["warmup_steps"]),
        (SFTModule, ["min_warmup_steps", "warmup_ratio"]),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_said_with_the_options_of_the_stage(config, monkeypatch, kind, own):
    module = kind(config, **{own[0]: 4})
    module.configure_model()
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(max_steps=4))
    with pytest.warns(UserWarning, match=f"4 steps and the run has 4: .*; lower model.{' or '.join(own)}$"):
        module.configure_optimizers()
    assert set(own) <= set(module.hparams)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_runs_in_lower_precision_and_dry(config, trainer, make, precision):
    run = trainer(fast_dev_run=2, precision=precision)
    run.fit(fresh(config), make.loader([make.tokens()] * 2), make.loader([make.tokens()] * 2))
    assert run.callback_metrics["train/loss"].isfinite() and run.callback_metrics["val/loss"].isfinite()


def test_weights_made_on_a_mesh_have_the_distribution_of_plain_ones(config, trainer, make):
    # On a mesh networks are made on the meta device and initialised afterwards, layer by layer.
    from lightning.pytorch.strategies import ModelParallelStrategy

    found = {}

    class Look(L.Callback):
        def on_fit_start(self, trainer, module):
            found.update({name: p.std().item() for name, p in module.named_parameters()})
            found["angles"] = module.model.backbone.rope.angles

    strategy = ModelParallelStrategy(1, 1, process_group_backend="gloo")
    module = PretrainModule(config)
    run = trainer(max_steps=1, strategy=strategy, callbacks=[Look()])
    run.fit(module, make.loader([make.tokens()]))
    torch.distributed.destroy_process_group()
    plain = fresh(config)
    assert torch.equal(found["angles"], plain.model.backbone.rope.angles)
    for name, parameter in plain.named_parameters():
        assert found[name] == pytest.approx(parameter.std().item(), rel=0.25, abs=1e-9), name

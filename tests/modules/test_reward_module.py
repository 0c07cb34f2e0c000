"""RewardModule: losses, reports and a run that learns."""

from __future__ import annotations

import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from llama2_pl.data.batches import PreferenceBatch
from llama2_pl.data.unpadded import pack_pairs
from llama2_pl.evaluation.scoring import score_padded
from llama2_pl.modules import PretrainModule, RewardModule

NAN = float("nan")


def fresh(config, **options) -> RewardModule:
    L.seed_everything(0, verbose=False)
    module = RewardModule(config, **options)
    module.configure_model()
    return module


def test_it_learns_which_rows_are_chosen(config, trainer, make):
    module = fresh(config, lr=3e-3)
    batches = [make.pairs(8, seed=n) for n in range(25)]
    trainer(max_steps=25).fit(module, make.loader(batches))
    (logged,) = trainer().validate(module, make.loader([make.pairs(16, seed=99)]), verbose=False)
    assert logged["val/accuracy"] == 1.0
    assert logged["val/loss"] < 0.3


def test_the_score_is_read_at_the_last_real_token(config, make):
    module, batch = fresh(config), make.pairs(3)
    scores = module(batch.tokens, batch.lengths)
    for row, length in enumerate(batch.lengths.tolist()):
        alone = module.model(batch.tokens[row : row + 1, :length])[0, -1]
        torch.testing.assert_close(scores[row], alone, rtol=1e-5, atol=1e-6)
    padded = batch.tokens.clone()
    padded[torch.arange(10) >= batch.lengths[:, None]] = 77
    torch.testing.assert_close(module(padded, batch.lengths), scores)


def test_the_loss_follows_margin_and_safety_weight(config):
    # chosen 1, rejected 0, significantly better: margins 0, 1, 3 -> 0.313262, 0.693147, 2.126928;
    # safe 1 costs 0.313262 and unsafe 0 costs ln 2: their mean is 0.503205
    scores, rating = torch.tensor([1.0, 0.0]), torch.tensor([0])
    is_safe = torch.tensor([1.0, 0.0])
    for margin, loss in {"none": 0.313262, "small": 0.693147, "large": 2.126928}.items():
        module = RewardModule(config, margin=margin)  # type: ignore[arg-type]
        assert module.loss(scores, rating, is_safe).item() == pytest.approx(loss, abs=1e-5)
    module = RewardModule(config, margin="none", safety_loss_weight=2.0)
    assert module.loss(scores, rating, is_safe).item() == pytest.approx(0.313262 + 2 * 0.503205, abs=1e-5)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1)])
def test_micro_batches_of_any_sizes_and_labels_take_the_step_of_one_batch(config, trainer, make, sizes):
    class Descent(RewardModule):
        """SGD: Adam would hide the gradient's size."""

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    def trained(batches, **options):
        L.seed_everything(0, verbose=False)
        module = Descent(config, safety_loss_weight=1.0)
        trainer(max_epochs=1, **options).fit(module, make.loader(batches))
        return module.state_dict()

    def both_sides(one, other):
        return torch.cat([rows for side in zip(one.chunk(2), other.chunk(2), strict=True) for rows in side])

    # every label in the first micro-batch, one in the second
    some, few = sizes
    first = make.pairs(some, seed=1, is_safe=torch.tensor([1.0] * some + [0.0] * some))
    second = make.pairs(few, seed=2, is_safe=torch.tensor([NAN] * (2 * few - 1) + [0.0]))
    whole = PreferenceBatch(
        both_sides(first.tokens, second.tokens),
        both_sides(first.lengths, second.lengths),
        torch.cat([first.rating, second.rating]),
        both_sides(first.is_safe, second.is_safe),
        torch.cat([first.source, second.source]),
    )
    expected = trained([whole])
    assert (expected["model.head.weight"] - fresh(config).model.head.weight).abs().max() > 1e-2
    # by 4, the window is the run's last and not full, and Lightning divides by 4 all the same
    for accumulated in (2, 4):
        found = trained([first, second], accumulate_grad_batches=accumulated)
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_safety_labels_teach_the_sign_of_the_score(config, trainer, make):
    # Every chosen row is safe and every rejected row unsafe: recall of unsafe at score 0.5 becomes 1.
    labels = torch.tensor([1.0] * 8 + [0.0] * 8)
    batches = [make.pairs(8, seed=n, is_safe=labels) for n in range(25)]
    module = fresh(config, lr=3e-3, safety_loss_weight=1.0)
    trainer(max_steps=25).fit(module, make.loader(batches))
    (logged,) = trainer().validate(
        module, make.loader([make.pairs(8, seed=99, is_safe=labels)]), verbose=False
    )
    assert logged["val/unsafe_recall"] == 1.0


def test_the_figures_by_hand(config, monkeypatch):
    # chosen, rejected, rating, source, chosen safe, rejected safe; in two batches
    first = torch.tensor([[2.0, 1.0, 0, 0, 1.0, 0.0], [0.0, 1.0, 0, 1, NAN, NAN]])
    second = torch.tensor([[3.0, -1.0, 3, 1, 0.0, 0.0]])
    module, logged, drawn = RewardModule(config), {}, {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: None)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))

    class Wandb(WandbLogger):
        def __init__(self):
            pass

        def log_table(self, key, columns, data):  # type: ignore[override]
            drawn[key] = (columns, data)

    data = SimpleNamespace(sources=["meta"])
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(datamodule=data, loggers=[Wandb()]))
    for rows in (first, second):
        module.val_metrics.update(*rows.unbind(1))
    module.on_validation_epoch_end()
    # sigmoid(1), sigmoid(1) (wrong) and sigmoid(4): the bins 0.7-0.8 and 0.9-1.0
    assert logged == {
        "val/accuracy": pytest.approx(2 / 3),
        "val/pairs": 3,
        "val/accuracy/significantly_better": 0.5,
        "val/pairs/significantly_better": 2,
        "val/accuracy/negligibly_better": 1.0,
        "val/pairs/negligibly_better": 1,
        "val/accuracy/meta": 1.0,
        "val/accuracy/source_1": 0.5,
        "val/accuracy/safe_over_unsafe": 1.0,
        "val/accuracy/both_unsafe": 1.0,
        # of three unsafe rows that with score -1 is found, those with 1 and 3 are missed
        "val/unsafe_recall": pytest.approx(1 / 3),
        "val/calibration_error": pytest.approx((2 * (0.731059 - 0.5) + (1 - 0.982014)) / 3, abs=1e-5),
    }
    columns, rows = drawn["val/accuracy_by_source"]
    ratings = ["significantly better", "better", "slightly better", "negligibly better"]
    assert columns == ["source", *ratings, "all", "pairs"]
    assert rows == [["meta", 1.0, None, None, None, 1.0, 1], ["source_1", 0.0, None, None, 1.0, 0.5, 2]]
    assert [count for *_, count in drawn["val/calibration"][1]] == [2, 1]
    assert sum(share for *_, share in drawn["val/score_histogram"][1]) == pytest.approx(1)
    logged.clear()
    module.on_validation_epoch_end()
    assert logged == {}  # no pair since: nothing to say


def test_validation_loss_is_over_all_pairs(config, trainer, make):
    module = fresh(config)
    batches = [make.pairs(8, seed=1), make.pairs(2, seed=2)]
    (logged,) = trainer().validate(module, make.loader(batches), verbose=False)
    with torch.no_grad():
        differences = []
        for batch in batches:
            chosen, rejected = module(batch.tokens, batch.lengths).chunk(2)
            margin = torch.tensor([1, 2 / 3, 1 / 3, 0])[batch.rating]
            differences += (chosen - rejected - margin).tolist()
    expected = sum(math.log(1 + math.exp(-d)) for d in differences) / 10
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_one_validation_pair_is_enough(config, trainer, make):
    module, batch = fresh(config), make.pairs(1)  # significantly better: margin 1
    (logged,) = trainer().validate(module, make.loader([batch]), verbose=False)
    with torch.no_grad():
        gap = torch.sub(*module(batch.tokens, batch.lengths).chunk(2)).item()
    assert logged["val/loss"] == pytest.approx(math.log(1 + math.exp(1 - gap)), rel=1e-5)
    assert logged["val/pairs"] == 1 and logged["val/accuracy"] == float(gap > 0)


def test_unrated_pairs_count_in_the_accuracy_and_in_that_of_no_rating(config, trainer, make):
    module, batch = fresh(config), make.pairs(4)._replace(rating=torch.tensor([-1, 2, -1, 0]))

    class Data(L.LightningDataModule):
        default_rating = 1

        def val_dataloader(self):
            return make.loader([batch])

    (logged,) = trainer().validate(module, datamodule=Data(), verbose=False)
    with torch.no_grad():
        gaps = torch.sub(*module(batch.tokens, batch.lengths).chunk(2))
    assert logged["val/pairs"] == 4 and logged["val/accuracy"] == (gaps > 0).float().mean()
    counts = {name: value for name, value in logged.items() if name.startswith("val/pairs/")}
    assert counts == {"val/pairs/significantly_better": 1, "val/pairs/slightly_better": 1}
    assert logged["val/accuracy/slightly_better"] == float(gaps[1] > 0)
    # margins 1, 2/3, 1/3, 0; the loss is that of training, where the default rating stands in
    differences = (gaps - torch.tensor([2 / 3, 1 / 3, 2 / 3, 1.0])).tolist()
    expected = sum(math.log(1 + math.exp(-d)) for d in differences) / 4
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_test_logs_what_validation_does_under_its_own_name(config, trainer, make):
    module, batches = fresh(config), [make.pairs(8, seed=1), make.pairs(2, seed=2)]
    (validated,) = trainer().validate(module, make.loader(batches), verbose=False)
    (tested,) = trainer().test(module, make.loader(batches), verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}
    assert "test/accuracy" in tested


def test_it_starts_from_the_backbone_of_a_chat_checkpoint(config, trainer, make, save):
    chat = PretrainModule(config)
    path = save(chat, "chat.ckpt")
    L.seed_everything(5, verbose=False)
    module = RewardModule(config, init_from=path, lr=0.0)
    trainer(max_steps=1).fit(module, make.loader([make.pairs()]))
    for name, value in chat.model.backbone.state_dict().items():
        assert torch.equal(module.model.backbone.state_dict()[name], value), name


def test_warm_up_is_three_percent_and_at_least_five_steps(config):
    module = RewardModule(config)
    assert (module.warmup(50), module.warmup(1000), module.warmup(1001)) == (5, 30, 31)  # of 30.03
    assert RewardModule(config, min_warmup_steps=20).warmup(50) == 20
    assert RewardModule(config, warmup_ratio=0.5).warmup(50) == 25


def test_it_runs_dry_and_in_bfloat16(config, trainer, make):
    run = trainer(fast_dev_run=True, precision="bf16-mixed")
    run.fit(fresh(config), make.loader([make.pairs()]), make.loader([make.pairs()]))
    assert run.callback_metrics["train/loss"].isfinite() and run.callback_metrics["val/loss"].isfinite()


def test_a_step_never_makes_the_host_wait_for_the_device(config, make, monkeypatch):
    # On the meta device there are no values: whatever asks for one raises.
    module = RewardModule(config, safety_loss_weight=1.0)
    module.configure_model()
    module.to("meta")
    logged = {}
    for name in ("log", "log_dict"):
        monkeypatch.setattr(module, name, lambda *given, name=name, **_: logged.update({name: given}))
    monkeypatch.setattr(module, "sum_over_ranks", lambda partial: partial)
    module.trainer = run = L.Trainer(accelerator="cpu", devices=1, logger=False)
    run.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
    module.training_step(PreferenceBatch(*(t.to("meta") for t in make.pairs()[:-1])), 0).backward()
    assert module.model.head.weight.grad.is_meta and logged["log"][1].is_meta


@pytest.mark.parametrize("shared", [0, 3, 8])
def test_rows_packed_without_padding_have_the_same_scores_and_gradients(config, make, shared):
    batch = make.pairs(12, seed=3)
    batch.lengths[::2] //= 2  # two of them fit into a row
    batch.tokens[12:, :shared] = batch.tokens[:12, :shared]  # the prompt; 8: also of rows that end before
    batch.tokens[torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]] = 0
    packing = pack_pairs(batch.tokens.numpy(), batch.lengths.numpy())
    assert packing is not None and packing.document_ids.numel() < batch.tokens.numel()
    assert (packing.branches is not None) == (shared > 0)
    module, found = fresh(config), []
    for plan in (None, packing):
        module.zero_grad()
        scores = module(batch.tokens, batch.lengths, plan)
        module.loss(scores, batch.rating, batch.is_safe).backward()
        found.append([scores.detach(), *(p.grad.clone() for p in module.parameters())])
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-6, rtol=0)
    for packed, padded in zip(found[1][1:], found[0][1:], strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-6, rtol=1e-4)


def test_training_validation_and_prediction_read_packed_rows(config, trainer, make, monkeypatch):
    module, seen = fresh(config), []

    def watched(*given):
        seen.append(given[3])
        return score_padded(*given)

    monkeypatch.setattr("llama2_pl.modules.reward.score_padded", watched)
    batch = make.pairs(12, seed=3)
    batch.lengths[::2] //= 2  # two of them fit into a row
    packed = batch._replace(packing=pack_pairs(batch.tokens.numpy(), batch.lengths.numpy()))
    run = trainer(max_steps=1)
    run.fit(module, make.loader([packed]), make.loader([packed]))
    (scores,) = run.predict(module, make.loader([packed]))
    (padded,) = run.predict(module, make.loader([batch]))
    torch.testing.assert_close(scores.logit, padded.logit, atol=1e-6, rtol=0)
    assert len(seen) == 4 and seen[3] is None
    assert all(torch.equal(plan.document_ids, packed.packing.document_ids) for plan in seen[:3])


def test_predictions_are_logits_and_their_sigmoids(config, trainer, make):
    module, batch = fresh(config), make.pairs(3)
    (scores,) = trainer().predict(module, make.loader([batch]))
    with torch.no_grad():
        logit = module(batch.tokens, batch.lengths)
    torch.testing.assert_close(scores.logit, logit)
    assert scores.sigmoid.tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in logit.tolist()])


def test_tokens_are_counted_without_padding_and_over_restarts(config, trainer, make, tmp_path):
    batches = [make.pairs(4, seed=n) for n in range(3)]
    counts = [int(batch.lengths.sum()) for batch in batches]
    first = trainer(max_steps=2)
    first.fit(fresh(config), make.loader(batches))
    assert first.callback_metrics["train/tokens"] == counts[0] + counts[1]
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer(max_steps=3)
    module = fresh(config)
    second.fit(module, make.loader(batches), ckpt_path=tmp_path / "half.ckpt")
    assert module.tokens_seen == counts[0] + counts[1] + counts[0]  # a plain loader starts over

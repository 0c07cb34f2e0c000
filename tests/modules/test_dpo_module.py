"""DPOModule against a literal computation, and a run that learns."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch

from llama2_pl.data.batches import PreferenceBatch
from llama2_pl.data.unpadded import pack_pairs
from llama2_pl.modules import DPOModule, PretrainModule

BETA = 0.3


@pytest.fixture
def policy(config, save) -> str:
    L.seed_everything(0, verbose=False)
    return save(PretrainModule(config), "policy.ckpt")


def pairs(count: int, seed: int = 0) -> PreferenceBatch:
    """Prompts of three tokens; chosen answers hold small ids, rejected ones large ids, of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(10, 250, (count, 3), generator=generator)
    chosen = torch.randint(10, 100, (count, 6), generator=generator)
    rejected = torch.randint(150, 250, (count, 6), generator=generator)
    tokens = torch.cat([torch.cat([prompt, chosen], 1), torch.cat([prompt, rejected], 1)])
    lengths = torch.randint(5, 10, (2 * count,), generator=generator)
    tokens[torch.arange(9) >= lengths[:, None]] = 0
    unknown = torch.full((2 * count,), float("nan"))
    return PreferenceBatch(tokens, lengths, torch.arange(count) % 4, unknown, torch.zeros(count).long())


def literal_loss(policy, reference, batch: PreferenceBatch) -> torch.Tensor:
    """Equation 7, a pair and a token at a time, over the answers after the three tokens of the prompt."""
    count, losses = len(batch.rating), []

    def answer_logprob(model, row: int) -> torch.Tensor:
        ids = batch.tokens[row, : batch.lengths[row]]
        distributions = model(ids[None])[0].log_softmax(-1)
        return sum((distributions[t - 1, ids[t]] for t in range(3, len(ids))), torch.tensor(0.0))

    for n in range(count):
        chosen = answer_logprob(policy, n) - answer_logprob(reference, n)
        rejected = answer_logprob(policy, count + n) - answer_logprob(reference, count + n)
        losses.append(-torch.log(1 / (1 + torch.exp(-BETA * (chosen - rejected)))))
    return sum(losses, torch.tensor(0.0)) / count


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradient_are_those_of_the_equation(policy, trainer, make, monkeypatch, packed):
    module, batch = DPOModule(policy, beta=BETA, lr=1e-2), pairs(4)
    if packed:
        batch = batch._replace(packing=pack_pairs(batch.tokens.numpy(), batch.lengths.numpy()))
        assert batch.packing is not None and batch.packing.branches is not None
    trainer(max_steps=3).fit(module, make.loader([pairs(4, seed=n) for n in range(3)]))  # away from the start
    reference = module._reference[0]
    module.zero_grad()  # a fit leaves its last step's gradients
    expected = literal_loss(module.policy, reference, batch)
    gradients = torch.autograd.grad(expected, list(module.policy.parameters()))
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    loss = module._judged(batch, "train")
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - math.log(2)) > 0.01
    for parameter, gradient in zip(module.policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_it_starts_at_margin_zero_and_the_margin_rises(policy, trainer, make):
    module, held_out = DPOModule(policy, beta=BETA, lr=1e-2), make.loader([pairs(16, seed=99)])
    (before,) = trainer().validate(module, held_out, verbose=False)
    assert before == {"val/loss": pytest.approx(math.log(2)), "val/accuracy": 0.0, "val/margin": 0.0}
    start = {name: value.clone() for name, value in module._reference[0].state_dict().items()}
    trainer(max_steps=25).fit(module, make.loader([pairs(8, seed=n) for n in range(25)]))
    (after,) = trainer().validate(module, held_out, verbose=False)
    assert after["val/margin"] > 1.0 and after["val/accuracy"] == 1.0 and after["val/loss"] < 0.4
    for name, value in module._reference[0].state_dict().items():
        assert torch.equal(value, start[name]), name


def test_test_logs_what_validation_does_and_predictions_are_implicit_rewards(policy, trainer, make):
    module = DPOModule(policy, beta=BETA, lr=1e-2)
    trainer(max_steps=3).fit(module, make.loader([pairs(4, seed=n) for n in range(3)]))
    held_out = make.loader([pairs(4, seed=99)])
    (validated,) = trainer().validate(module, held_out, verbose=False)
    (tested,) = trainer().test(module, held_out, verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}
    (rewards,) = trainer().predict(module, held_out)
    chosen, rejected = rewards.chunk(2)
    assert (chosen - rejected).mean().item() == pytest.approx(validated["val/margin"], rel=1e-5)


def test_in_bfloat16_it_learns_and_the_reference_stays(policy, trainer, make):
    module, losses = DPOModule(policy, beta=1.0, lr=1e-2), []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(trainer.callback_metrics["train/loss"].item())

    run = trainer(max_steps=10, precision="bf16-mixed", callbacks=[Watch()])
    run.fit(module, make.loader([pairs(8, seed=n) for n in range(10)]))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-2)
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.5
    start = torch.load(policy)["state_dict"]
    for name, value in module._reference[0].state_dict().items():
        assert torch.equal(value, start[f"model.{name}"]), name
    assert all(not torch.equal(p, start[f"model.{name}"]) for name, p in module.policy.named_parameters())


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_beta_scales_the_margin(policy, trainer, make, beta):
    module = DPOModule(policy, beta=beta, lr=0.0)
    trainer(max_steps=1).fit(module, make.loader([pairs(2)]))
    with torch.no_grad():
        module.policy.head.weight[150:250] -= 0.1
        policy_logprobs, reference_logprobs = module.logprobs(pairs(2))
    (logged,) = trainer().validate(module, make.loader([pairs(2)]), verbose=False)
    chosen, rejected = (policy_logprobs - reference_logprobs).chunk(2)
    assert logged["val/margin"] == pytest.approx(beta * (chosen - rejected).mean().item(), rel=1e-4)


def test_a_resumed_run_refuses_another_start(config, policy, trainer, make, save, tmp_path):
    run, path = trainer(max_steps=1), str(tmp_path / "run.ckpt")
    run.fit(DPOModule(policy), make.loader([pairs(2)]))
    run.save_checkpoint(path)
    trainer(max_steps=2).fit(DPOModule(policy), make.loader([pairs(2)] * 2), ckpt_path=path)
    torch.manual_seed(7)
    other = save(PretrainModule(config), "policy.ckpt")
    with pytest.raises(ValueError, match=r"policy\.ckpt: its weights are not those this run started from"):
        trainer(max_steps=2).fit(DPOModule(other), make.loader([pairs(2)] * 2), ckpt_path=path)

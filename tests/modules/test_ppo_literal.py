"""One whole PPO iteration against a literal slow reference: one answer, one token at a time, AdamW by hand."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
from llama2_pl.modules import PPOModule, PretrainModule, RewardModule

BETA, LAM, GAMMA, CLIP, VALUE_CLIP, COEFFICIENT = 0.3, 0.9, 0.99, 0.05, 0.02, 0.5
LR, DECAY, BETAS, EPS, LARGEST_NORM, EPOCHS = 5e-3, 0.1, (0.9, 0.95), 1e-5, 0.5, 2
PROMPTS, NEW, END = 6, 7, 1


@pytest.fixture
def files(config, save, tokenizer_path):
    L.seed_everything(0, verbose=False)
    policy = PretrainModule(config)
    policy.configure_model()
    policy.model.head.weight.data[:10] *= 20  # a few tokens share half of the probability, END among them
    return {
        "policy": save(policy, "policy.ckpt"),
        "helpfulness_reward": save(RewardModule(config), "helpfulness.ckpt"),
        "safety_reward": save(RewardModule(config), "safety.ckpt"),
        "tokenizer": tokenizer_path,
    }


class Watched(PPOModule):
    """Keeps the answers and the losses; an answer ends by a token that this policy likes."""

    def setup(self, stage):
        super().setup(stage)
        self.eos_id = END

    def sample(self, prompts, generator):
        self.rollout = super().sample(prompts, generator)
        return self.rollout

    def learn(self, experience, generator):
        self.logged = super().learn(experience, generator)
        return self.logged


def whitened(numbers: list[float]) -> list[float]:
    mean = sum(numbers) / len(numbers)
    spread = math.sqrt(sum((x - mean) ** 2 for x in numbers) / len(numbers) + 1e-8)
    return [(x - mean) / spread for x in numbers]


def log_probability(model, ids: list[int], at: int) -> torch.Tensor:
    """Of the token at a position, from everything before it, one answer alone."""
    logits = model(torch.tensor([ids[:at]]))[0, -1]
    return F.log_softmax(logits, dim=-1)[ids[at]]


def value_before(model, ids: list[int], at: int) -> torch.Tensor:
    return model(torch.tensor([ids[:at]]))[0, -1]


def score_of(model, ids: list[int]) -> float:
    return model(torch.tensor([ids]))[0, -1].item()


class AdamWByHand:
    """Loshchilov and Hutter 2019, algorithm 2, with the decay on matrices alone."""

    def __init__(self, parameters) -> None:
        self.parameters = list(parameters)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def step(self, gradients) -> None:
        self.steps += 1
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
        shrink = min(1.0, LARGEST_NORM / (norm + 1e-6))
        for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
            g = g * shrink
            m.mul_(BETAS[0]).add_((1 - BETAS[0]) * g)
            v.mul_(BETAS[1]).add_((1 - BETAS[1]) * g * g)
            upward = m / (1 - BETAS[0] ** self.steps)
            spread = (v / (1 - BETAS[1] ** self.steps)).sqrt() + EPS
            with torch.no_grad():
                if p.ndim >= 2:
                    p.mul_(1 - LR * DECAY)
                p.sub_(LR * upward / spread)


def literal_iteration(files, answers, prompts, finished, is_safety):
    """(policy, value, [(policy loss, value loss) of each epoch]) after Llama 2 §3.2.3, written out."""
    policy, reference = load_language_model(files["policy"]), load_language_model(files["policy"])
    value = load_reward_model(files["helpfulness_reward"])
    torch.nn.init.zeros_(value.head.weight)
    helpfulness = load_reward_model(files["helpfulness_reward"])
    safety = load_reward_model(files["safety_reward"])
    places = [range(len(p), len(ids)) for p, ids in zip(prompts, answers, strict=True)]

    with torch.no_grad():
        old = [
            [log_probability(policy, a, t).item() for t in p] for a, p in zip(answers, places, strict=True)
        ]
        start = [
            [log_probability(reference, a, t).item() for t in p] for a, p in zip(answers, places, strict=True)
        ]
        values = [[value_before(value, a, t).item() for t in p] for a, p in zip(answers, places, strict=True)]
        scores = []
        for ids, tagged in zip(answers, is_safety, strict=True):
            safe, helpful = score_of(safety, ids), score_of(helpfulness, ids)
            scores.append(safe if tagged or 1 / (1 + math.exp(-safe)) < 0.15 else helpful)

    rewards = [score - (not end) for score, end in zip(whitened(scores), finished, strict=True)]
    advantages, returns = [], []
    for row in range(len(answers)):
        count = len(places[row])
        shaped = [-BETA * (old[row][t] - start[row][t]) for t in range(count)]
        shaped[-1] += rewards[row]
        estimates, later = [0.0] * count, 0.0
        for t in reversed(range(count)):
            following = values[row][t + 1] if t + 1 < count else 0.0
            later = shaped[t] + GAMMA * following - values[row][t] + GAMMA * LAM * later
            estimates[t] = later
        advantages.append(estimates)
        returns.append([a + v for a, v in zip(estimates, values[row], strict=True)])
    flat = whitened([a for row in advantages for a in row])
    advantages = [[flat.pop(0) for _ in row] for row in advantages]

    optimizer = AdamWByHand([*policy.parameters(), *value.parameters()])
    losses = []
    for _ in range(EPOCHS):
        gain, errors, tokens = torch.zeros(()), torch.zeros(()), 0
        for row, ids in enumerate(answers):
            for n, t in enumerate(places[row]):
                ratio = (log_probability(policy, ids, t) - old[row][n]).exp()
                kept = min(max(ratio, torch.tensor(1 - CLIP)), torch.tensor(1 + CLIP))
                gain = gain + min(ratio * advantages[row][n], kept * advantages[row][n])
                now, before, goal = value_before(value, ids, t), values[row][n], returns[row][n]
                near = before + min(max(now - before, torch.tensor(-VALUE_CLIP)), torch.tensor(VALUE_CLIP))
                errors = errors + max((now - goal) ** 2, (near - goal) ** 2)
                tokens += 1
        policy_loss, value_loss = -gain / tokens, 0.5 * errors / tokens
        gradients = torch.autograd.grad(policy_loss + COEFFICIENT * value_loss, optimizer.parameters)
        optimizer.step(gradients)
        losses.append((policy_loss.item(), value_loss.item()))
    return policy, value, losses


def test_an_iteration_equals_the_literal_one(trainer, make, files):
    module = Watched(
        **files, lr=LR, beta=BETA, lam=LAM, gamma=GAMMA, clip=CLIP, value_clip=VALUE_CLIP,
        value_coefficient=COEFFICIENT, max_new_tokens=NEW, minibatch_size=PROMPTS, epochs=EPOCHS,
        betas=BETAS, eps=EPS, weight_decay=DECAY, max_grad_norm=LARGEST_NORM,
    )  # fmt: skip
    batch = make.prompts(PROMPTS)
    trainer(max_epochs=1).fit(module, make.loader([batch]))
    rollout = module.rollout
    answers = [ids[:n] for ids, n in zip(rollout.tokens.tolist(), rollout.lengths.tolist(), strict=True)]
    finished = rollout.finished.tolist()
    assert any(finished) and not all(finished)  # both kinds of answers are in the comparison

    policy, value, losses = literal_iteration(
        files, answers, batch.prompts, finished, batch.is_safety.tolist()
    )
    for logged, (policy_loss, value_loss) in zip(module.logged, losses, strict=True):
        assert logged["policy_loss"].item() == pytest.approx(policy_loss, abs=1e-5)
        assert logged["value_loss"].item() == pytest.approx(value_loss, abs=1e-5)
    assert module.logged[1]["clip_fraction"] > 0.05  # the second epoch is beyond the clip
    for ours, literal in ((module.policy, policy), (module.value, value)):
        for (name, a), b in zip(ours.named_parameters(), literal.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")

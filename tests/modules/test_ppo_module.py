"""PPOModule: one training_step is one iteration."""

from __future__ import annotations

import copy
import math

import lightning as L
import pytest
import torch

from llama2_pl.callbacks import LossGuard
from llama2_pl.model.parallel import weights_fingerprint
from llama2_pl.modules import PPOModule, PretrainModule, RewardModule
from llama2_pl.modules.policy import Scored, seeded

WANTED = 42  # the token that the toy reward likes


@pytest.fixture
def files(config, save, tokenizer_path):
    """Checkpoints of a policy and two reward models."""
    L.seed_everything(0, verbose=False)
    return {
        "policy": save(PretrainModule(config), "policy.ckpt"),
        "helpfulness_reward": save(RewardModule(config), "helpfulness.ckpt"),
        "safety_reward": save(RewardModule(config), "safety.ckpt"),
        "tokenizer": tokenizer_path,
    }


@pytest.fixture
def build(files):
    def make(kind: type[PPOModule] = PPOModule, **options) -> PPOModule:
        return kind(**{**files, "lr": 1e-3, "max_new_tokens": 6, "minibatch_size": 4, **options})

    return make


class LikesOneToken(PPOModule):
    """Reward: how often WANTED is in the answer."""

    def score(self, rollout, is_safety):
        count = ((rollout.tokens == WANTED) & rollout.response_mask).sum(1).float()
        return Scored(count, count, count, torch.zeros_like(is_safety))


class Metrics(L.Callback):
    """Keeps what each iteration logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        self.seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def run(trainer, make, module, iterations=1, prompts=8, **options) -> list[dict[str, float]]:
    metrics = Metrics()
    batches = [make.prompts(prompts)] * iterations
    callbacks = [metrics, *options.pop("callbacks", [])]
    trainer(max_epochs=1, callbacks=callbacks, **options).fit(module, make.loader(batches))
    return metrics.seen


def test_reward_rises_where_it_is_easy_to_learn(trainer, make, build):
    module = build(LikesOneToken, lr=1e-2, beta=0.0, max_new_tokens=8, minibatch_size=16, truncated="score")
    seen = run(trainer, make, module, iterations=20, prompts=32)
    first, last = seen[0]["ppo/reward"], seen[-1]["ppo/reward"]
    assert first < 0.2 and last > 1.0
    assert seen[-1]["ppo/kl"] > seen[0]["ppo/kl"] + 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_at_the_start_the_ratio_is_1_and_the_kl_0(trainer, make, build, temperature):
    (seen,) = run(trainer, make, build(temperature=temperature))
    assert seen["ppo/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert seen["ppo/first_ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert seen["ppo/kl"] == pytest.approx(0.0, abs=1e-5)
    assert seen["ppo/sampler_gap"] < 1e-4


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_at_the_start_the_ratio_is_1_in_bfloat16_too(trainer, make, build, files, precision):
    # Decided answers, in whose log-probabilities bfloat16 rounds by far more than the 1e-3 that is asked for.
    checkpoint = torch.load(files["policy"])
    checkpoint["state_dict"]["model.head.weight"] *= 30
    torch.save(checkpoint, files["policy"])

    class JudgedInFull(PPOModule):
        """What the test must see: log-probabilities of another precision than training's."""

        def read_rollout(self, rollout):
            trained, self.policy = self.policy, copy.deepcopy(self.policy).float()
            with torch.autocast("cpu", enabled=False):
                outputs = super().read_rollout(rollout)
            self.policy = trained
            return outputs

    (seen,) = run(trainer, make, build(), precision=precision)
    (other,) = run(trainer, make, build(JudgedInFull), precision=precision)
    assert seen["ppo/first_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert seen["ppo/first_ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert other["ppo/first_ratio_max"] > 1.005


def test_the_samplers_logprobs_save_a_pass_and_teach_the_same(trainer, make, build):
    readings: list[int] = []

    class Counted(PPOModule):
        def read_rollout(self, rollout):
            hidden = self.policy.hidden
            self.policy.hidden = lambda *a, **k: (readings.append(self.iteration), hidden(*a, **k))[1]
            outputs = super().read_rollout(rollout)
            del self.policy.hidden
            return outputs

    recomputed, sampler = build(Counted), build(Counted, old_logprobs="sampler")
    before = run(trainer, make, recomputed, iterations=2)
    assert readings == [0, 1]
    after = run(trainer, make, sampler, iterations=2)
    assert readings == [0, 1], "the policy read the answers before the updates"
    for ours, theirs in zip(recomputed.policy.parameters(), sampler.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert after[1]["ppo/first_ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert after[1]["ppo/kl"] == pytest.approx(before[1]["ppo/kl"], abs=1e-3)
    # of the same answers, before and during the updates
    assert after[0]["ppo/entropy"] == pytest.approx(before[0]["ppo/entropy"], rel=0.01)
    assert "ppo/sampler_gap" in before[0] and "ppo/sampler_gap" not in after[0]


def test_the_samplers_logprobs_are_those_of_temperature_1(build):
    with pytest.raises(ValueError, match=r"old_logprobs is sampler and temperature 0\.7: .* sample at 1"):
        build(old_logprobs="sampler", temperature=0.7)


def test_the_ratio_is_1_again_at_each_iteration_but_not_at_each_minibatch(trainer, make, build):
    ratios = []

    class Watched(PPOModule):
        def losses(self, minibatch):
            loss, logged = super().losses(minibatch)
            ratios.append(logged["ratio_max"].item())
            return loss, logged

    run(trainer, make, build(Watched, lr=1e-2), iterations=2)
    assert ratios[0] == pytest.approx(1, abs=1e-5) and ratios[2] == pytest.approx(1, abs=1e-5)
    assert abs(ratios[1] - 1) > 1e-4 and abs(ratios[3] - 1) > 1e-4


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_matrix_learns_in_every_minibatch(trainer, make, build, precision):
    # Under autocast, casts cached by passes without gradients would leave weights without any, and casts
    # cached before a step would hide it from the next minibatch.
    module, before, still = build(lr=1e-2), {}, []

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            before.update({name: p.detach().clone() for name, p in module.named_parameters()})

        def on_before_optimizer_step(self, trainer, module, optimizer):
            still.append({n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()})

    seen = run(trainer, make, module, precision=precision, callbacks=[Watch()])
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert seen[0]["ppo/first_ratio_max"] == pytest.approx(1.0, abs=1e-5 if precision == "32-true" else 0.1)
    assert seen[0]["ppo/approx_kl"] > 1e-4  # the second minibatch saw the first one's step
    # Nothing goes through the value's head while it is zero.
    assert still[0] == {n for n in before if n.startswith("value.backbone")} and len(still) > 1
    assert not any(still[1:])


def test_frozen_models_stay_out_of_the_checkpoint_and_do_not_move(trainer, make, build):
    module = build()
    reference = {}

    class Watch(L.Callback):
        def on_fit_start(self, trainer, module):
            reference.update(before=weights_fingerprint(module.reference))

    run(trainer, make, module, callbacks=[Watch()])
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy", "value"}
    assert module.rewards is not None and module.rewards.safety is not None
    for network in (module.rewards.helpfulness, module.rewards.safety, module.reference):
        assert not any(p.requires_grad for p in network.parameters()) and not network.training
    assert weights_fingerprint(module.reference) == reference["before"]
    assert weights_fingerprint(module.policy) != reference["before"]


def test_optimizer_steps_are_one_per_minibatch(trainer, make, build):
    run_ = trainer(max_epochs=1)
    run_.fit(build(minibatch_size=4, epochs=3), make.loader([make.prompts(8)] * 2))
    assert run_.global_step == 2 * 3 * 2
    assert [group["weight_decay"] for group in run_.optimizers[0].param_groups] == [0.1, 0.0, 0.1, 0.0]


def test_value_init_chooses_where_the_value_network_starts(config, trainer, make, build, files):
    helpfulness = torch.load(files["helpfulness_reward"])["state_dict"][
        "model.backbone.layers.0.attention.wq.weight"
    ]
    policy = torch.load(files["policy"])["state_dict"]["model.backbone.layers.0.attention.wq.weight"]
    found = {}
    for init in ("helpfulness_reward", "policy", "random"):
        module = build(value_init=init, lr=0.0, weight_decay=0.0)
        run(trainer, make, module)
        found[init] = module.value.backbone.layers[0].attention.wq.weight
    assert torch.equal(found["helpfulness_reward"], helpfulness)
    assert torch.equal(found["policy"], policy)
    assert not torch.equal(found["random"], policy) and not torch.equal(found["random"], helpfulness)


@pytest.mark.parametrize("init", ["helpfulness_reward", "policy", "random"])
def test_the_first_advantages_are_the_whitened_rewards_themselves(trainer, make, build, init):
    module = build(value_init=init, gamma=1.0, lam=1.0, beta=0.0, whiten_advantages=False, truncated="score")
    (seen,) = run(trainer, make, module)
    iteration = module.last_iteration
    rewards, mask = iteration.scored.scores, iteration.experience.mask
    whitened = (rewards - rewards.mean()) / rewards.std(correction=0)
    expected = whitened[:, None].expand(mask.shape)[mask]
    torch.testing.assert_close(iteration.experience.advantages[mask], expected, atol=1e-4, rtol=1e-4)
    assert seen["ppo/explained_variance"] == pytest.approx(0, abs=1e-5)


def test_a_resumed_run_equals_an_unbroken_one_to_the_last_bit(trainer, make, build, tmp_path):
    batches = [make.prompts(8, first=8 * n) for n in range(4)]
    whole = build(lr=1e-2)
    trainer(max_epochs=1).fit(whole, make.loader(batches))
    half = trainer(max_epochs=1, limit_train_batches=2)
    half.fit(build(lr=1e-2), make.loader(batches))
    path = str(tmp_path / "half.ckpt")
    half.save_checkpoint(path)
    resumed = build(lr=1e-2)
    trainer(max_epochs=2, limit_train_batches=2).fit(resumed, make.loader(batches[2:]), ckpt_path=path)
    assert resumed.iteration == 4
    for name, parameter in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], parameter), name


def test_resuming_from_another_starting_policy_is_refused(config, trainer, make, build, save, tmp_path):
    first = trainer(max_epochs=1)
    first.fit(build(), make.loader([make.prompts(8)]))
    path = str(tmp_path / "first.ckpt")
    first.save_checkpoint(path)
    torch.manual_seed(7)
    other = build(policy=save(PretrainModule(config), "other.ckpt"))
    with pytest.raises(ValueError, match=r"other\.ckpt: its weights are not those this run started from"):
        trainer(max_epochs=2).fit(other, make.loader([make.prompts(8)]), ckpt_path=path)


@pytest.mark.parametrize("option", ["helpfulness_reward", "safety_reward"])
def test_resuming_with_another_reward_model_is_refused(config, trainer, make, build, save, tmp_path, option):
    first = trainer(max_epochs=1)
    first.fit(build(), make.loader([make.prompts(8)]))
    path = str(tmp_path / "first.ckpt")
    first.save_checkpoint(path)
    torch.manual_seed(7)
    other = build(**{option: save(RewardModule(config), "other.ckpt")}, value_init="policy")
    with pytest.raises(ValueError, match=rf"other\.ckpt: .* give the original file as {option}"):
        trainer(max_epochs=2).fit(other, make.loader([make.prompts(8)]), ckpt_path=path)


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 5.0},
        {"clip": 0.001},
        {"value_clip": None},
        {"value_lr": 1e-2},
        {"value_coefficient": 5.0},
        {"gamma": 0.5},
        {"lam": 0.2},
        {"temperature": 0.5},
        {"max_new_tokens": 3},
        {"minibatch_size": 8},
        {"epochs": 2},
        {"safety_threshold": 0.99},
        {"whiten_advantages": False},
        {"truncated": "score"},
        {"truncated": "drop"},
        {"max_grad_norm": 0.01},
        {"seed": 1},
        {"safety_reward": None},
    ],
    ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()),
)
def test_each_hyper_parameter_changes_the_weights(trainer, make, build, baseline, change):
    module = build(**{**BASELINE, **change})
    run(trainer, make, module, iterations=2)
    assert any(
        not torch.equal(p, baseline[name])
        for name, p in module.named_parameters()
        if p.shape == baseline[name].shape
    )


# The value's error must exceed value_clip and the ratio leave 1 +- clip for those two to matter.
BASELINE = {"lr": 2e-2, "value_clip": 0.01, "epochs": 1, "value_coefficient": 1.0}


@pytest.fixture
def baseline(trainer, make, build):
    module = build(**BASELINE)
    run(trainer, make, module, iterations=2)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_an_answer_that_was_cut_off_is_treated_as_the_option_says(trainer, make, build):
    # Three answers score 1, 2, 3; the last was cut off. Whitened: -1.2247, 0, 1.2247.
    from llama2_pl.modules.experience import answer_rewards

    scores, finished = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])

    def rewards(option):
        return answer_rewards(scores, finished, option, lambda x: x).tolist()

    assert rewards("score") == pytest.approx([-1.2247, 0, 1.2247], abs=1e-4)
    assert rewards("penalise") == pytest.approx([-1.2247, 0, 0.2247], abs=1e-4)
    assert rewards("drop") == pytest.approx([-1, 1, 0], abs=1e-4)


def test_the_log_is_of_all_answers_those_that_are_dropped_too(trainer, make, build):
    class HalfEnd(PPOModule):
        def sample(self, prompts, generator):
            return super().sample(prompts, generator)._replace(finished=torch.arange(len(prompts)) % 2 == 0)

    kept, dropped = (run(trainer, make, build(HalfEnd, truncated=way))[0] for way in ("score", "drop"))
    assert kept["ppo/eos_rate"] == 0.5
    for name in ("response_length", "kl_per_token", "entropy", "sampler_gap"):
        assert dropped[f"ppo/{name}"] == kept[f"ppo/{name}"], name


def test_without_a_safety_model_helpfulness_decides_even_on_tagged_prompts(trainer, make, build):
    (seen,) = run(trainer, make, build(safety_reward=None))
    assert seen["ppo/reward"] == pytest.approx(seen["ppo/helpfulness"])
    assert "ppo/safety" not in seen and seen["ppo/from_safety"] == 0.0


def test_a_score_that_is_no_number_is_logged_under_its_name_on_every_rank(trainer, make, build):
    class Overflows(PPOModule):
        def score(self, rollout, is_safety):
            return Scored(*(x * torch.nan for x in super().score(rollout, is_safety)[:3]), is_safety)

    (seen,) = run(trainer, make, build(Overflows))
    assert all(math.isnan(seen[f"ppo/{name}"]) for name in ("reward", "helpfulness", "safety"))


def test_greedy_answers_are_refused(build):
    with pytest.raises(ValueError, match=r"temperature is 0: .* above 0"):
        build(temperature=0)


def test_tagged_prompts_are_scored_by_the_safety_model(trainer, make, build):
    # Half of the prompts are tagged, and no tiny model's score comes near sigmoid 0.15.
    (seen,) = run(trainer, make, build())
    assert seen["ppo/from_safety"] == 0.5


def test_held_out_prompts_are_answered_alike_each_time(trainer, make, build):
    module, prompts = build(lr=0.0, weight_decay=0.0), [make.prompts(4)]
    first = trainer(max_epochs=1)
    first.fit(module, make.loader(prompts), make.loader(prompts))
    reward = first.callback_metrics["val/reward"].item()
    second = trainer(max_epochs=1)
    second.fit(build(lr=0.0, weight_decay=0.0), make.loader(prompts * 2), make.loader(prompts))
    assert second.callback_metrics["val/reward"].item() == reward


def test_test_answers_held_out_prompts_as_validation_does_and_predict_names_the_module_that_does(
    trainer, make, build
):
    module, prompts = build(), [make.prompts(4)]
    (validated,) = trainer().validate(module, make.loader(prompts), verbose=False)
    (tested,) = trainer().test(module, make.loader(prompts), verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}
    with pytest.raises(ValueError, match="PPOModule predicts nothing: give RejectionSamplingModule"):
        trainer().predict(module, make.loader(prompts))


def test_a_dry_run_works(trainer, make, build):
    trainer(fast_dev_run=True).fit(build(), make.loader([make.prompts(4)]), make.loader([make.prompts(4)]))


def test_seeds_depend_on_every_number_and_repeat():
    draws = {
        torch.rand(1, generator=seeded(*numbers)).item() for numbers in [(0, 1), (1, 0), (0, 1, 0), (0, 1)]
    }
    assert len(draws) == 3


def test_the_tokens_that_were_trained_on_are_counted(trainer, make, build):
    module, run_ = build(epochs=2), trainer(max_epochs=1)
    lengths = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            lengths.append(int(module.last_iteration.rollout.lengths.sum()))

    run_.callbacks.append(Watch())
    run_.fit(module, make.loader([make.prompts(4), make.prompts(4)]))
    assert run_.callback_metrics["ppo/tokens"] == 2 * sum(lengths)  # prompts and answers, twice each


def test_the_guard_leaves_a_sound_run_alone_and_keeps_a_bad_score_from_the_weights(trainer, make, build):
    """The loss lies around zero, so that a multiple of its median would be no spike."""

    class Unsound(PPOModule):
        def score(self, rollout, is_safety):
            scored = super().score(rollout, is_safety)
            return scored._replace(scores=scored.scores * math.nan)

    def trained(kind: type[PPOModule], *callbacks: L.Callback) -> tuple[PPOModule, str]:
        module = build(kind)
        run(trainer, make, module, iterations=3, callbacks=list(callbacks))
        return module, weights_fingerprint(module.policy)

    guard = LossGuard(spike=1.01, warmup=1)
    assert trained(PPOModule, guard)[1] == trained(PPOModule)[1] and guard.events == []
    module, weights = trained(Unsound, guard := LossGuard())
    assert weights == weights_fingerprint(module.reference)
    assert len(guard.events) == 3 * 2 and {event.kind for event in guard.events} == {"loss"}

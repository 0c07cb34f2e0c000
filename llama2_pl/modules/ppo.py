"""PPO. Llama 2 §3.2.3."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
from llama2_pl.data.batches import PromptBatch
from llama2_pl.generation.sampler import Rollout, generate
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel, ScalarModel
from llama2_pl.model.parallel import weights_fingerprint
from llama2_pl.modules.base import plain_arguments
from llama2_pl.modules.experience import (
    Experience,
    Iteration,
    NetworkOutputs,
    OldLogprobs,
    answer_rewards,
    counted_tokens,
    policy_logprobs,
    read_rollout,
    state_values,
)
from llama2_pl.modules.optimizer import adamw, decay_groups
from llama2_pl.modules.policy import PolicyModule, Scored, seeded
from llama2_pl.modules.start import with_scalar_head
from llama2_pl.objectives import ppo
from llama2_pl.objectives.reward import Truncated, whiten


class PPOModule(PolicyModule):
    """Maximise the whitened reward minus beta times the KL to the starting policy.

    Llama 2 §3.2.3: 512 prompts per iteration, one answer each; minibatches of 64, one step on each; clip 0.2;
    AdamW, constant rate 1e-6, weight decay 0.1, clipping 1.0; beta 0.01 (34B and 70B: 0.005); 200 to 400
    iterations. Value network, GAE, and what WHITEN averages over are not stated: see each argument.

    One `training_step` is one iteration (manual optimization), so `trainer.max_steps` counts minibatches and
    logged steps count iterations. The starting policy and the reward models are frozen and not in the checkpoint:
    a resumed run reads them from their files and refuses one whose weights have changed.
    One optimizer holds policy and value: Lightning counts every optimizer's step.

    Args:
        policy: checkpoint to start from, which is also the reference of the KL.
        helpfulness_reward: checkpoint of the helpfulness reward model.
        tokenizer: path of a SentencePiece tokenizer.model.
        safety_reward: checkpoint of the safety reward model; None: helpfulness alone.
        value_init: what the value network's backbone starts from. Our choice, as Stiennon et al. 2020: the helpfulness
            reward model, which already tells good states from bad. "policy", or "random": its size alone. The head
            starts at zero, the mean of the whitened rewards: a reward model's own scores lie elsewhere, and for the
            first iterations a constant would tell returns better than they do.
        lr: of the policy.
        value_lr: of the value network; None: the policy's.
        beta: weight of the KL penalty.
        clip: of the probability ratio.
        value_clip: of the change of a value; None: not clipped.
        value_coefficient: weight of the value loss, which shares the gradient clipping with the policy's.
        gamma: discount; our choice 1, an answer has no natural clock.
        lam: GAE's lambda; our choice 0.95.
        temperature: of the sampled answers; also of the distribution that is trained.
        max_new_tokens: most tokens of an answer, EOS included.
        minibatch_size: answers per optimizer step, over all devices.
        epochs: passes over an iteration's answers.
        safety_threshold: below this safety score an answer counts as unsafe.
        whiten_advantages: over the iteration's response tokens; our choice True.
        truncated: answers cut off at max_new_tokens: "score", "penalise" (our choice) or "drop".
        old_logprobs: of the answers under the policy that sampled them, the ratio's denominator and the KL's first
            term. "recomputed" (our choice) by a pass of their own, which rounds as training does: the first ratio is
            1. "sampler": as noted while sampling, without that pass; for temperature 1.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of every matrix; gains of norms do not decay.
        max_grad_norm: gradient clipping, over both networks.
        scoring_batch: answers read together without gradients.
        generation_batch: most answers sampled together; None: all.
        seed: of samples and minibatches; with the iteration's number it fixes them.
        policy_backbone: size of the policy; read from its file.
        value_backbone: size of the value network; read from its file.
    """

    value: ScalarModel
    last_iteration: Iteration | None = None
    """What the last training step made, for callbacks; not in checkpoints."""

    def __init__(
        self,
        policy: str,
        helpfulness_reward: str,
        tokenizer: str,
        safety_reward: str | None = None,
        value_init: Literal["helpfulness_reward", "policy", "random"] = "helpfulness_reward",
        lr: float = 1e-6,
        value_lr: float | None = None,
        beta: float = 0.01,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.1,
        gamma: float = 1.0,
        lam: float = 0.95,
        temperature: float = 1.0,
        max_new_tokens: int = 512,
        minibatch_size: int = 64,
        epochs: int = 1,
        safety_threshold: float = 0.15,
        whiten_advantages: bool = True,
        truncated: Truncated = "penalise",
        old_logprobs: OldLogprobs = "recomputed",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
        max_grad_norm: float = 1.0,
        scoring_batch: int = 64,
        generation_batch: int | None = None,
        seed: int = 0,
        policy_backbone: ModelConfig | None = None,
        value_backbone: ModelConfig | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                f"temperature is {temperature}: PPO trains the distribution that it samples from, and greedy answers "
                "have none; give a number above 0"
            )
        if old_logprobs == "sampler" and temperature != 1:
            raise ValueError(
                f"old_logprobs is sampler and temperature {temperature}: the sampler notes log-probabilities at "
                "temperature 1; sample at 1, or take recomputed ones"
            )
        self.save_hyperparameters(plain_arguments(locals()))
        self.automatic_optimization = False
        self.iteration = 0
        # In a tuple, so that it is no child of this module: not in checkpoints, not among the parameters.
        self._reference: tuple[LanguageModel, ...] = ()
        self._frozen: dict[str, str] = {}  # option: fingerprint of its file's weights

    # -- networks and optimizer

    def setup(self, stage: str) -> None:
        if stage == "predict":
            raise ValueError(
                "PPOModule predicts nothing: give RejectionSamplingModule, whose predict writes answers"
            )
        super().setup(stage)
        if not self._reference:
            reference = load_language_model(self.hparams["policy"], tokenizer=self.tokenizer)
            self._reference = (self.frozen(reference),)
            assert self.rewards is not None
            networks = {"policy": reference, **self.rewards.named()}
            self._frozen = {option: weights_fingerprint(network) for option, network in networks.items()}

    @property
    def reference(self) -> LanguageModel:
        """The frozen starting policy, to which the KL is measured; there once a Trainer has set the module up."""
        return self._reference[0]

    def build_networks(self) -> None:
        if not self.attached:
            self.policy = self.fresh(LanguageModel, self.saved_config("policy_backbone"))
            self.value = self.fresh(ScalarModel, self.saved_config("value_backbone"))
            return
        policy = load_language_model(self.hparams["policy"], tokenizer=self.tokenizer)
        value = self.starting_value(policy)
        self.remember_configs(policy_backbone=policy.config, value_backbone=value.config)
        self.policy, self.value = self.distributed(policy), self.distributed(value)

    def starting_value(self, policy: LanguageModel) -> ScalarModel:
        """The value network as value_init says."""
        init = self.hparams["value_init"]
        if init == "helpfulness_reward":
            value = load_reward_model(self.hparams["helpfulness_reward"], tokenizer=self.tokenizer)
        else:
            value = with_scalar_head(policy)
        if init == "random":
            value.backbone.reset_parameters()
        nn.init.zeros_(value.head.weight)
        return value

    def configure_optimizers(self) -> Any:
        """One AdamW at constant rates. Llama 2 §3.2.3."""
        hp = self.hparams
        value_lr = hp["lr"] if hp["value_lr"] is None else hp["value_lr"]
        groups = decay_groups(self.policy.parameters(), hp["lr"], hp["weight_decay"])
        groups += decay_groups(self.value.parameters(), value_lr, hp["weight_decay"])
        return adamw(groups, hp["betas"], hp["eps"])

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> the policy's logits (B, T, V)."""
        return self.policy(tokens)

    # -- one iteration

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One iteration: sample, score, weigh each token, update."""
        generator = seeded(self.hparams["seed"], self.iteration, self.data_rank())
        rollout = self.sample(batch.prompts, generator)
        scored = self.score(rollout, batch.is_safety)
        outputs = self.read_rollout(rollout)
        experience = self.experience(rollout, scored, outputs)
        losses = self.learn(experience, generator)
        self.log_iteration("ppo", rollout, scored, outputs)
        self.log_updates(experience, losses)
        tokens = self.count_tokens(rollout.lengths.sum() * self.hparams["epochs"])
        self.log("ppo/tokens", tokens, batch_size=len(rollout.tokens))
        self.last_iteration = Iteration(self.iteration, rollout, scored, outputs, experience, losses)
        self.iteration += 1

    def sample(self, prompts: list[list[int]], generator: torch.Generator) -> Rollout:
        """One answer per prompt."""
        hp = self.hparams
        return generate(
            self.policy,
            prompts,
            max_new_tokens=hp["max_new_tokens"],
            eos_id=self.eos_id,
            temperature=hp["temperature"],
            generator=generator,
            max_batch=hp["generation_batch"],
        )

    def read_rollout(self, rollout: Rollout) -> NetworkOutputs:
        """Log-probabilities, values and entropy before the updates."""
        hp = self.hparams
        policy = self.policy if hp["old_logprobs"] == "recomputed" else None
        return read_rollout(
            rollout, policy, self.reference, self.value, hp["temperature"], hp["scoring_batch"]
        )

    def experience(self, rollout: Rollout, scored: Scored, outputs: NetworkOutputs) -> Experience:
        """R~ = WHITEN(LOGIT(R_c)), minus beta KL on each token, turned into advantages and returns."""
        hp = self.hparams
        mask = counted_tokens(rollout, hp["truncated"])
        rewards = answer_rewards(scored.scores, rollout.finished, hp["truncated"], self.sum_over_ranks)
        kl = ppo.kl_estimate(outputs.logprobs, outputs.reference)
        shaped = ppo.shape_rewards(rewards, kl, mask, hp["beta"])
        advantages, returns = ppo.gae(shaped, outputs.values, mask, hp["gamma"], hp["lam"])
        if hp["whiten_advantages"]:
            advantages = whiten(advantages, mask, total=self.sum_over_ranks)
        return Experience(rollout.tokens, mask, outputs.logprobs, outputs.values, advantages, returns, shaped)

    def learn(self, experience: Experience, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """One optimizer step per minibatch; what each of them logged."""
        size, ranks = self.hparams["minibatch_size"], self.data_ranks()
        if size % ranks:
            raise ValueError(
                f"minibatch_size is {size}, over all devices, and there are {ranks} data-parallel ranks: give a "
                f"multiple of {ranks}"
            )
        orders = [
            torch.randperm(len(experience.tokens), generator=generator) for _ in range(self.hparams["epochs"])
        ]
        groups = [rows for order in orders for rows in order.split(size // ranks)]
        return [self.learn_minibatch(minibatch) for minibatch in experience.minibatches(groups)]

    def learn_minibatch(self, minibatch: Experience) -> dict[str, Tensor]:
        """Losses, backward, clipping, step."""
        optimizer: Any = self.optimizers()
        loss, logged = self.losses(minibatch)
        # So that each response token of all ranks weighs the same, however many a rank has.
        tokens = minibatch.mask.sum().float()
        share = tokens * self.trainer.world_size / self.sum_over_ranks(tokens.clone()).clamp(min=1)
        optimizer.zero_grad()
        self.manual_backward(loss * share)
        self.clip_gradients(
            optimizer,
            gradient_clip_val=self.hparams["max_grad_norm"],
            gradient_clip_algorithm="norm",
        )
        optimizer.step()
        # Autocast keeps cast copies of the weights until training_step ends: they are old now.
        torch.clear_autocast_cache()
        return logged

    def losses(self, minibatch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped policy loss plus the weighted value loss, and both for the log."""
        hp, mask = self.hparams, minibatch.mask
        # Also those of the passes without gradients, through which none would flow.
        torch.clear_autocast_cache()
        packed, temperature = minibatch.packing, hp["temperature"]
        logprobs, entropy = policy_logprobs(self.policy, minibatch.tokens, mask, temperature, packed)
        values = state_values(self.value, minibatch.tokens, mask, packed)
        policy_loss, stats = ppo.ppo_policy_loss(
            logprobs, minibatch.logprobs, minibatch.advantages, mask, hp["clip"]
        )
        value_loss = ppo.ppo_value_loss(values, minibatch.values, minibatch.returns, mask, hp["value_clip"])
        losses = {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}
        logged = {**losses, "entropy": ppo.masked_mean(entropy, mask), **stats._asdict()}
        return policy_loss + hp["value_coefficient"] * value_loss, logged

    # -- held-out prompts

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Reward and KL of held-out prompts decide when to stop."""
        self.answer_held_out(batch, batch_idx, "val")

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.answer_held_out(batch, batch_idx, "test")

    def answer_held_out(self, batch: PromptBatch, batch_idx: int, stage: str) -> None:
        """Answer held-out prompts with the same randomness each time."""
        generator = seeded(self.hparams["seed"], -1 - batch_idx, self.data_rank())
        rollout = self.sample(batch.prompts, generator)
        self.log_iteration(stage, rollout, self.score(rollout, batch.is_safety), self.read_rollout(rollout))

    # -- log and state

    def log_iteration(self, stage: str, rollout: Rollout, scored: Scored, outputs: NetworkOutputs) -> None:
        """Means over answers; the KL is the sum over an answer's tokens, in nats."""
        mask = rollout.response_mask
        kl = ppo.kl_estimate(outputs.logprobs, outputs.reference)
        measured = {
            "reward": scored.scores.mean(),
            "helpfulness": scored.helpfulness.mean(),
            "safety": scored.safety.mean(),
            "from_safety": scored.from_safety.float().mean(),
            "kl": kl.sum(1).mean(),
            "kl_per_token": ppo.masked_mean(ppo.kl_estimate(outputs.logprobs, outputs.reference, "k3"), mask),
            "response_length": mask.sum(1).float().mean(),
            "eos_rate": rollout.finished.float().mean(),
        }
        if outputs.entropy is not None and outputs.at_one is not None:
            measured["entropy"] = ppo.masked_mean(outputs.entropy, mask)
            # What the sampler says of its own tokens: apart from rounding it must agree.
            measured["sampler_gap"] = ppo.masked_mean((rollout.logprobs - outputs.at_one).abs(), mask)
        # By the models, never by the values: ranks that log different names reduce one under another's, and then hang.
        if self.rewards is not None and self.rewards.safety is None:
            del measured["safety"]
        logged = {f"{stage}/{name}": value for name, value in measured.items()}
        self.log_dict(logged, batch_size=len(mask), sync_dist=True)

    def log_updates(self, experience: Experience, losses: list[dict[str, Tensor]]) -> None:
        """Means over the minibatches, and the ratio of the first, which must be 1."""
        means = {name: torch.stack([step[name] for step in losses]).mean() for name in losses[0]}
        measured = {
            "policy_loss": means["policy_loss"],
            "value_loss": means["value_loss"],
            "clip_fraction": means["clip_fraction"],
            "approx_kl": means["approx_kl"],
            "first_ratio": losses[0]["ratio_mean"],
            "first_ratio_max": losses[0]["ratio_max"],
            "explained_variance": ppo.explained_variance(
                experience.values, experience.returns, experience.mask
            ),
        }
        if self.hparams["old_logprobs"] == "sampler":  # nobody read the answers before they were learned from
            measured["entropy"] = means["entropy"]
        logged = {f"ppo/{name}": value for name, value in measured.items()}
        self.log_dict(logged, batch_size=len(experience.tokens), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["ppo"] = {"iteration": self.iteration, "frozen": self._frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the iteration's number; refuse another starting policy or reward model than those of the run."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["ppo"]
        self.iteration = saved["iteration"]
        frozen = saved.get("frozen", {"policy": saved.get("reference", "")})  # "reference": before 0.1.0
        for option in [
            option for option in frozen if self._frozen and self._frozen.get(option) != frozen[option]
        ]:
            why = (
                "the KL is measured to it" if option == "policy" else "its rewards are what was learned from"
            )
            raise ValueError(
                f"{self.hparams[option]}: its weights are not those this run started from, and {why}; give the "
                f"original file as {option}, or start a new run"
            )

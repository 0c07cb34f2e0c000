"""Numbers that no run can want are refused by every module's constructor."""

from __future__ import annotations

import pytest

from llama2_pl.modules import (
    DPOModule,
    PPOModule,
    PretrainModule,
    RejectionSamplingModule,
    RewardModule,
    SFTModule,
)

WRONG = [
    *((kind, "lr", -1.0, "0 or more") for kind in (PretrainModule, SFTModule, RewardModule, DPOModule, PPOModule)),
    (PretrainModule, "weight_decay", -1.0, "0 or more"),
    (PretrainModule, "lr", float("nan"), "0 or more"),
    (PretrainModule, "min_lr_ratio", 10.0, "a share from 0 to 1"),
    (PretrainModule, "warmup_steps", -3, "0 or more"),
    (PretrainModule, "betas", [0.9, 1.0], "from 0 up to, not including, 1"),
    (SFTModule, "warmup_ratio", 3.0, "a share from 0 to 1"),
    (PPOModule, "minibatch_size", 0, "1 or more"),
    (PPOModule, "epochs", 0, "1 or more"),
    (PPOModule, "scoring_batch", 0, "1 or more"),
    (PPOModule, "generation_batch", 0, "1 or more"),
    (PPOModule, "clip", -1.0, "a number above 0"),
    (RejectionSamplingModule, "samples_per_prompt", 0, "1 or more"),
    (RejectionSamplingModule, "temperatures", [1.0, -1.0], "0 or more"),
]  # fmt: skip


def build(kind, config, **options):
    needed = {
        DPOModule: {"policy": "p"},
        PPOModule: {"policy": "p", "helpfulness_reward": "r", "tokenizer": "t"},
        RejectionSamplingModule: {"policy": "p", "helpfulness_reward": "r", "tokenizer": "t", "out": "o"},
    }
    return kind(**needed.get(kind, {"backbone": config}), **options)


@pytest.mark.parametrize(("kind", "option", "value", "allowed"), WRONG)
def test_a_number_outside_its_range_is_refused_with_the_range(config, kind, option, value, allowed):
    with pytest.raises(ValueError) as refusal:
        build(kind, config, **{option: value})
    assert str(refusal.value).startswith(f"model.{option} is {value}")
    assert str(refusal.value).endswith(f": give {allowed}")


@pytest.mark.parametrize("kind", [PretrainModule, SFTModule, RewardModule, DPOModule, PPOModule])
def test_the_ends_of_a_range_are_in_it(config, kind):
    build(kind, config, lr=0.0, weight_decay=0, betas=(0, 0.0))

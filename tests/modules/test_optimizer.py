"""Schedule, decay groups and the length of a run."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from llama2_pl.modules.optimizer import adamw, cosine_with_warmup, decay_groups, planned_steps


def test_warm_up_is_linear_and_its_last_step_has_the_peak():
    assert [cosine_with_warmup(step, 4, 100, 0.1) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_cosine_passes_its_middle_and_ends_at_the_final_rate():
    # 10 steps, 2 of warm-up: 8 steps from 1 to 0.1; half-way (step 5) the mean 0.55; step 9 has 0.1.
    rates = [cosine_with_warmup(step, 2, 10, 0.1) for step in range(12)]
    assert rates[5] == pytest.approx(0.55)
    assert rates[9:] == pytest.approx([0.1, 0.1, 0.1])
    assert rates[1:10] == sorted(rates[1:10], reverse=True)


def test_without_warm_up_the_first_step_trains():
    assert 0.9 < cosine_with_warmup(0, 0, 10, 0.1) < 1.0


def test_gains_do_not_decay_and_matrices_do():
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.RMSNorm(2))
    decayed, free = decay_groups(network.parameters(), lr=0.5, weight_decay=0.1)
    assert [p.shape for p in decayed["params"]] == [torch.Size([2, 3])]
    assert (decayed["weight_decay"], free["weight_decay"], free["lr"]) == (0.1, 0.0, 0.5)
    assert [p.shape for p in free["params"]] == [torch.Size([2])]
    optimizer = adamw([decayed, free], (0.9, 0.95), 1e-5)
    assert optimizer.defaults["betas"] == (0.9, 0.95) and optimizer.defaults["eps"] == 1e-5
    assert all(group["fused"] for group in optimizer.param_groups)


def test_gradients_may_be_clipped_under_fp16_scaling_too():
    optimizer = adamw(decay_groups(nn.Linear(3, 2).parameters(), lr=0.5, weight_decay=0.1), (0.9, 0.95), 1e-5)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    precision.clip_gradients(optimizer, 1.0)  # raises for an optimizer that says it unscales by itself


def run(**attributes) -> Any:
    defaults = {"max_steps": -1, "max_epochs": 1, "accumulate_grad_batches": 1, "limit_train_batches": 1.0}
    return SimpleNamespace(**{**defaults, "datamodule": None, **attributes})


def test_the_length_of_a_run_is_max_steps_or_the_data_modules():
    data = SimpleNamespace(num_train_batches=10)
    assert planned_steps(run(max_steps=7, datamodule=data)) == 7
    assert planned_steps(run(datamodule=data, accumulate_grad_batches=4)) == 3  # 4 + 4 + 2 batches
    assert planned_steps(run(datamodule=data, max_epochs=2)) == 20
    assert planned_steps(run(datamodule=data, limit_train_batches=4)) == 4
    assert planned_steps(run(datamodule=data, limit_train_batches=0.5)) == 5


def test_a_run_of_unknown_length_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"max_steps is -1 .*set trainer\.max_steps"):
        planned_steps(run())

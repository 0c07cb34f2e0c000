"""A module that is given another module's batches says which it needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llama2_pl.modules import DPOModule, PPOModule, PretrainModule, RejectionSamplingModule, RewardModule


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_reward_model_on_rows_of_text_names_the_data_that_it_needs(config, trainer, make, stage):
    run = getattr(trainer(max_steps=1), stage)
    said = r"RewardModule needs PreferenceBatch \(as PreferenceDataModule gives\) and got Batch: give it that data"
    with pytest.raises(ValueError, match=said):
        run(RewardModule(config), make.loader([make.tokens()]))


def test_each_module_takes_its_own_batch_and_no_other(make):
    batches = {"Batch": make.tokens(), "PreferenceBatch": make.pairs(), "PromptBatch": make.prompts()}
    takes = {
        PretrainModule: "Batch",
        RewardModule: "PreferenceBatch",
        DPOModule: "PreferenceBatch",
        PPOModule: "PromptBatch",
        RejectionSamplingModule: "PromptBatch",
    }
    for kind, own in takes.items():
        module = kind.__new__(kind)
        for name, batch in batches.items():
            if name == own:
                module._refuse_other_batch(batch)
            else:
                with pytest.raises(ValueError, match=f"{kind.__name__} needs {own} .* and got {name}"):
                    module._refuse_other_batch(batch)


def test_a_batch_of_the_users_own_type_is_taken(config, trainer, make):
    own = SimpleNamespace(**make.tokens()._asdict())
    trainer(max_steps=1).fit(PretrainModule(config), make.loader([own]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_loss_mask_of_numbers_is_refused(config, trainer, make, dtype):
    batch = make.tokens()
    batch = batch._replace(loss_mask=batch.loss_mask.to(dtype))
    with pytest.raises(ValueError, match=rf"loss_mask of the Batch is {dtype} and must be torch\.bool"):
        trainer(max_steps=1).fit(PretrainModule(config), make.loader([batch]))

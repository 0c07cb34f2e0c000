"""Where tools run: the device and precision that were asked for, and one error where they cannot be had."""

from __future__ import annotations

import pytest
import torch

from llama2_pl import LanguageModel, ModelConfig
from llama2_pl.checkpoints.hardware import Hardware

TINY = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=64, multiple_of=16, max_seq_len=32)


def test_bf16_weights_give_nearly_the_logits_of_fp32():
    model, tokens = LanguageModel(TINY), torch.arange(3, 20)[None]
    full = Hardware("cpu").place(model)(tokens)
    half = Hardware("cpu", "bf16-true").place(model)(tokens)
    assert model.head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.02, rtol=0.02)
    assert not torch.equal(half.float(), full)


def test_auto_is_fp32_on_a_cpu_whatever_the_file_holds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model = Hardware().place(LanguageModel(TINY).bfloat16().train())
    assert model.head.weight.dtype == torch.float32 and model.head.weight.device.type == "cpu"
    assert not model.training


@pytest.mark.parametrize(
    ("device", "words"), [("gpu", "'gpu': give auto, cpu, cuda or cuda:N"), ("cuda:1", "torch sees 0 GPUs")]
)
def test_a_device_that_is_not_there_is_refused_by_name(device, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=words):
        Hardware(device).place(LanguageModel(TINY))

"""Which precision and which library a processor gets."""

from __future__ import annotations

import pytest
import torch

from llama2_pl.generation.decoder import Matrix
from llama2_pl.model import processor

ZEN_2 = {"cpu_name": "AMD EPYC 7742", "avx2": True, "avx512_f": False, "avx512_bf16": False}
ZEN_4 = {"cpu_name": "AMD EPYC 9654", "avx2": True, "avx512_f": True, "avx512_bf16": True}
SKYLAKE = {"cpu_name": "Intel Xeon Gold 6148", "avx2": True, "avx512_f": True, "avx512_bf16": False}
SAPPHIRE_RAPIDS = {**SKYLAKE, "cpu_name": "Intel Xeon Platinum 8480+", "avx512_bf16": True, "amx_bf16": True}
GRAVITON_3 = {"architecture": "arm64", "bf16": True, "sve_bf16": True}


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    """Pretends a processor, with a oneDNN that multiplies bf16 or does not."""

    def pretend(found: dict, packs_bf16: bool = True) -> None:
        monkeypatch.setattr(processor, "capabilities", lambda: found)
        monkeypatch.setattr(processor, "packs", lambda dtype: packs_bf16)

    return pretend


@pytest.mark.parametrize(
    ("found", "bf16", "onednn"),
    [
        (ZEN_2, False, False),
        (ZEN_4, True, True),
        (SKYLAKE, False, False),
        (SAPPHIRE_RAPIDS, True, False),
        (GRAVITON_3, True, False),
        ({}, False, False),
    ],
)
def test_bf16_wants_units_and_onednn_an_amd_with_avx_512(cpu, found, bf16, onednn) -> None:
    cpu(found)
    assert processor.has_bf16_units("cpu") is bf16
    assert processor.best_precision("cpu") == ("bf16-mixed" if bf16 else "32-true")
    assert processor.onednn_beats_mkl() is onednn


def test_units_that_no_library_uses_are_none(cpu) -> None:
    cpu(GRAVITON_3, packs_bf16=False)  # as on a Mac
    assert processor.best_precision("cpu") == "32-true"


@pytest.mark.parametrize("units", [True, False])
def test_a_gpu_is_asked_about_its_own_units_and_not_their_emulation(monkeypatch, units) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or units
    )
    assert processor.best_precision("cuda") == ("bf16-mixed" if units else "32-true")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert processor.best_precision() == processor.best_precision("cuda")


def test_of_other_devices_nothing_is_known() -> None:
    assert processor.best_precision("mps") == "32-true"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_multiplies_by_every_type_on_every_processor(monkeypatch, dtype) -> None:
    x, weight = torch.randn(16, 24), torch.randn(8, 24)
    expected = x.to(dtype).double() @ weight.to(dtype).double().t()
    for known in (processor.packs, lambda dtype: False):
        monkeypatch.setattr("llama2_pl.generation.decoder.packs", known)
        matrix = Matrix(weight.to(dtype), rows=16)
        assert matrix.packed is known(dtype)
        torch.testing.assert_close(matrix(x).double(), expected, rtol=0.01, atol=0.05)

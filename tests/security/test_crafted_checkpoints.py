"""Checkpoints of strangers: refused with a reason, and no command of theirs is run."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import corpus  # type: ignore[import-not-found]  # put on the path by conftest.py
import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import CheckpointException

from llama2_pl.checkpoints.hugging_face import from_hugging_face
from llama2_pl.checkpoints.ours import load_language_model, load_reward_model
from llama2_pl.checkpoints.untrusted import check_shards
from llama2_pl.checkpoints.verified import sha256
from llama2_pl.data.batches import Batch
from llama2_pl.modules import SFTModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:.*validation_step"),
]


@pytest.mark.parametrize("craft", [*corpus.CHECKPOINTS, *corpus.SHARDED], ids=lambda craft: craft.__name__)
def test_a_crafted_checkpoint_is_refused_and_runs_nothing(craft: Callable, tmp_path: Path) -> None:
    crafted = craft(tmp_path)
    with pytest.raises(ValueError, match=crafted.refusal):
        crafted.open()
    assert not corpus.marker(tmp_path).exists()


def test_the_crafted_commands_do_run_where_a_pickle_is_loaded_as_it_comes(tmp_path: Path) -> None:
    """Without this the tests above could pass on a harmless corpus."""
    folders = {name: tmp_path / name for name in ("ckpt", "metadata", "value")}
    for folder in folders.values():
        folder.mkdir()
    corpus.command_in_optimizer_state(folders["ckpt"])
    torch.load(folders["ckpt"] / "crafted.ckpt", weights_only=False)
    corpus.command_as_metadata(folders["metadata"])
    with pytest.raises(CheckpointException):  # torch goes on with what the command gave back
        dcp.load({"x": torch.ones(1)}, checkpoint_id=folders["metadata"] / "crafted.ckpt", no_dist=True)
    corpus.command_as_optimizer_value(folders["value"])
    state = {"optimizer_0": {"param_groups": [{"lr": 0.0}]}}
    dcp.load(state, checkpoint_id=folders["value"] / "crafted.ckpt", no_dist=True)
    assert all(corpus.marker(folder).exists() for folder in folders.values())


@pytest.mark.parametrize(
    "craft",
    [
        corpus.command_in_meta_pt,
        corpus.command_as_metadata,
        corpus.command_inside_metadata,
        corpus.metadata_that_changes_a_class,
        corpus.shard_outside_the_folder,
        corpus.shards_shorter_than_their_tensors,
    ],
    ids=lambda craft: craft.__name__,
)
@pytest.mark.parametrize("load", [load_language_model, load_reward_model])
def test_a_network_out_of_a_crafted_folder_is_refused_too(
    craft: Callable, load: Callable, tmp_path: Path
) -> None:
    craft(tmp_path)
    with pytest.raises(ValueError, match=r"crafted\.ckpt"):
        load(tmp_path / "crafted.ckpt")
    assert not corpus.marker(tmp_path).exists()


def test_good_folders_pass_and_a_value_of_the_optimizer_is_not_read_for_a_network(tmp_path: Path) -> None:
    good = corpus.sharded(tmp_path)
    check_shards(good)
    expected = corpus.weights()
    for name, tensor in load_language_model(good).state_dict().items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name
    (tmp_path / "b").mkdir()
    corpus.command_as_optimizer_value(tmp_path / "b")
    load_language_model(tmp_path / "b" / "crafted.ckpt")
    assert not corpus.marker(tmp_path / "b").exists()


def test_the_cache_of_hugging_face_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    corpus.exported(snapshot).rename(snapshot / "1234")
    (snapshot / "1234" / "model.safetensors").rename(blobs / "5678")
    (snapshot / "1234" / "model.safetensors").symlink_to("../../blobs/5678")
    assert from_hugging_face(snapshot / "1234").config.dim == corpus.CONFIG.dim


def module_and_trainer(folder: Path, strategy: str) -> tuple[SFTModule, L.Trainer]:
    """A training of one step on one process."""
    plan = ModelParallelStrategy(1, 1, process_group_backend="gloo") if strategy == "sharded" else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=plan,
        max_steps=1,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return SFTModule(corpus.CONFIG, min_warmup_steps=1), trainer


def data() -> torch.utils.data.DataLoader:
    tokens = torch.arange(16).view(2, 8)
    batch = Batch(
        tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.int32)
    )
    return torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["one file", "sharded"])
def test_resuming_a_crafted_checkpoint_through_lightning_is_refused_and_runs_nothing(
    strategy: str, tmp_path: Path
) -> None:
    """Of each kind a checkpoint as Lightning writes it, resumed; then with commands in it."""
    path = tmp_path / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, trainer = module_and_trainer(tmp_path, strategy)
        trainer.fit(module, data())
        trainer.save_checkpoint(path)
        module, trainer = module_and_trainer(tmp_path, strategy)
        trainer.fit(module, data(), ckpt_path=path)
        assert trainer.global_step == 1
        for number, attack in enumerate(ATTACKS[strategy]):
            attack(path, tmp_path)
            if path.is_dir():  # who crafts a folder crafts its hashes too
                hashes = {file.name: sha256(file) for file in path.iterdir() if file.name != "manifest.json"}
                (path / "manifest.json").write_text(json.dumps({"sha256": hashes}))
            module, trainer = module_and_trainer(tmp_path, strategy)
            with pytest.raises(ValueError, match=rf"last\.ckpt.*{corpus.UNREADABLE}"):
                trainer.fit(module, data(), ckpt_path=path)
            assert not corpus.marker(tmp_path).exists(), number


def _in_optimizer(path: Path, folder: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["param_groups"].append(corpus.Command(folder))
    torch.save(content, path)


def _as_meta(path: Path, folder: Path) -> None:
    content = torch.load(path / "meta.pt", weights_only=True)
    torch.save({**content, "loops": corpus.Command(folder)}, path / "meta.pt")


def _as_metadata(path: Path, folder: Path) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(corpus.Command(folder)))


ATTACKS = {"one file": [_in_optimizer], "sharded": [_as_meta, _as_metadata]}


@pytest.mark.parametrize("how", ["compressed", "bytearray"])
def test_a_small_file_that_would_take_much_memory_is_refused_by_name(how: str, tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.ckpt", tmp_path / "last.ckpt"
    torch.save({"x": torch.zeros(10)}, plain)
    bomb = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little") + b"\x85R."
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for part in old.infolist():
            replaced = how == "bytearray" and part.filename.endswith("data.pkl")
            kind = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
            new.writestr(part.filename, bomb if replaced else old.read(part), compress_type=kind)
    module, trainer = module_and_trainer(tmp_path, "one file")
    with pytest.raises(ValueError, match=r"last\.ckpt: .*(compressed|not a readable weights file)"):
        trainer.fit(module, data(), ckpt_path=path)
    with pytest.raises(ValueError, match=r"last\.ckpt: .*(compressed|not a readable weights file)"):
        load_language_model(path)

"""Crafted files: each function writes one into a folder, and says how it is opened and what must be answered.

`CHECKPOINTS`, `SHARDED` and `READERS` list them; `make chaos` and tests/security open every one. What a crafted file
wants is that a file named `marker` appears beside it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from llama2_pl.checkpoints.hugging_face import from_hugging_face, to_hugging_face
from llama2_pl.checkpoints.meta import from_meta
from llama2_pl.checkpoints.ours import load_language_model
from llama2_pl.checkpoints.untrusted import check_shards
from llama2_pl.data.readers import read_dialogues, read_documents, read_prompts
from llama2_pl.model.config import ModelConfig
from llama2_pl.model.heads import LanguageModel

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=32, multiple_of=8, max_seq_len=16)
UNREADABLE = "not a readable weights file"


class Crafted(NamedTuple):
    """A crafted file on disk.

    Attributes:
        open: reads it as the system does; must raise ValueError.
        refusal: pattern of the error's text.
    """

    open: Callable[[], Any]
    refusal: str


class Command:
    """An object whose pickle asks for a shell command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{marker(self.folder)}'",)


def marker(folder: Path) -> Path:
    """What a command of a crafted file would leave."""
    return folder / "marker"


def weights() -> dict[str, torch.Tensor]:
    """A good state_dict."""
    torch.manual_seed(0)
    return {f"model.{name}": tensor for name, tensor in LanguageModel(CONFIG).state_dict().items()}


def content(**changes: Any) -> dict[str, Any]:
    """A good checkpoint with changes."""
    return {"state_dict": weights(), "hyper_parameters": {"backbone": CONFIG.to_dict()}, **changes}


def _ckpt(folder: Path, what: Any, refusal: str = UNREADABLE) -> Crafted:
    path = folder / "crafted.ckpt"
    torch.save(what, path)
    return Crafted(lambda: load_language_model(path), rf"crafted\.ckpt: .*{refusal}")


# -- checkpoints of one file


def bare_pickle(folder: Path) -> Crafted:
    (folder / "crafted.ckpt").write_bytes(pickle.dumps(Command(folder)))
    return Crafted(lambda: load_language_model(folder / "crafted.ckpt"), UNREADABLE)


def pickle_of_old_torch(folder: Path) -> Crafted:
    path = folder / "crafted.ckpt"
    torch.save(content(callbacks=Command(folder)), path, _use_new_zipfile_serialization=False)
    return Crafted(lambda: load_language_model(path), UNREADABLE)


def command_in_hyper_parameters(folder: Path) -> Crafted:
    return _ckpt(folder, content(hyper_parameters={"backbone": CONFIG.to_dict(), "note": Command(folder)}))


def command_in_optimizer_state(folder: Path) -> Crafted:
    return _ckpt(folder, content(optimizer_states=[{"state": {}, "param_groups": [Command(folder)]}]))


def command_in_callbacks(folder: Path) -> Crafted:
    return _ckpt(folder, content(callbacks={"ModelCheckpoint": Command(folder)}))


def stretched_tensor(folder: Path) -> Crafted:
    """One number shown as a matrix of 2^40."""
    config = {**CONFIG.to_dict(), "vocab_size": 2**36}
    huge = {name: torch.zeros(1).expand(2**36, 16) for name in ("backbone.embedding", "head")}
    tensors = {**weights(), **{f"model.{name}.weight": tensor for name, tensor in huge.items()}}
    return _ckpt(folder, content(state_dict=tensors, hyper_parameters={"backbone": config}), "claim")


def too_many_layers(folder: Path) -> Crafted:
    config = {**CONFIG.to_dict(), "n_layers": 10**9}
    return _ckpt(folder, content(hyper_parameters={"backbone": config}), "1000000000 layers")


def too_long_context(folder: Path) -> Crafted:
    config = {**CONFIG.to_dict(), "max_seq_len": 10**12}
    return _ckpt(folder, content(hyper_parameters={"backbone": config}), "a context of 1000000000000 tokens")


def too_wide(folder: Path) -> Crafted:
    config = {**CONFIG.to_dict(), "dim": 2**62}
    return _ckpt(folder, content(hyper_parameters={"backbone": config}), "(no network has|asks for)")


def config_that_is_none(folder: Path) -> Crafted:
    return _ckpt(folder, content(hyper_parameters={"backbone": 7}), "backbone")


def weights_of_integers(folder: Path) -> Crafted:
    tensors = {**weights(), "model.head.weight": torch.ones(32, 16, dtype=torch.int8)}
    return _ckpt(folder, content(state_dict=tensors), r"head\.weight is torch\.int8")


def weights_that_are_no_tensors(folder: Path) -> Crafted:
    return _ckpt(folder, content(state_dict={"model.head.weight": 1}), "not those of a LightningModule")


def compressed_archive(folder: Path) -> Crafted:
    """A .ckpt whose pickle is 50 MB of zeros in 50 kB."""
    path = folder / "crafted.ckpt"
    torch.save(content(), path)
    with zipfile.ZipFile(path) as file:
        parts = {part.filename: file.read(part) for part in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data + b"\0" * 50_000_000 if name.endswith("data.pkl") else data)
    return Crafted(lambda: load_language_model(path), "is compressed")


# -- folders of shards


def sharded(folder: Path, optimizer: Any = 0.1) -> Path:
    """A good sharded checkpoint with an optimizer's value."""
    path = folder / "crafted.ckpt"
    state = {"state_dict": weights(), "optimizer_0": {"param_groups": [{"lr": optimizer}]}}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    torch.save({"hyper_parameters": {"backbone": CONFIG.to_dict()}, "global_step": 1}, path / "meta.pt")
    return path


def _shards(path: Path, refusal: str = UNREADABLE) -> Crafted:
    """Looked through before a resume; `load_language_model` of it is tested beside."""
    return Crafted(lambda: check_shards(path), refusal)


def _rewrite(path: Path, change: Callable[[Metadata], Any]) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    changed = change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata if changed is None else changed))


def _move(metadata: Metadata, index: MetadataIndex, name: str) -> None:
    metadata.storage_data[index].relative_path = name


def command_in_meta_pt(folder: Path) -> Crafted:
    path = sharded(folder)
    torch.save(
        {"hyper_parameters": {"backbone": CONFIG.to_dict()}, "loops": Command(folder)}, path / "meta.pt"
    )
    return _shards(path)


def command_as_metadata(folder: Path) -> Crafted:
    path = sharded(folder)
    _rewrite(path, lambda _: Command(folder))
    return _shards(path)


def command_inside_metadata(folder: Path) -> Crafted:
    path = sharded(folder)
    _rewrite(path, lambda metadata: setattr(metadata, "planner_data", Command(folder)))
    return _shards(path)


def command_in_the_metadata_of_a_rank(folder: Path) -> Crafted:
    """torch reads it where it cannot read `.metadata`."""
    path = sharded(folder)
    (path / "__0.metadata").write_bytes(pickle.dumps(Command(folder)))
    return _shards(path, "a second list beside")


def command_as_optimizer_value(folder: Path) -> Crafted:
    return _shards(sharded(folder, Command(folder)))


def metadata_that_changes_a_class(folder: Path) -> Crafted:
    """BUILD on a class: `Metadata.version = "x"` for the rest of the process."""
    path = sharded(folder)
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (path / ".metadata").write_bytes(
        b"\x80\x02" + name + b"N}X\x07\x00\x00\x00versionX\x01\x00\x00\x00xs\x86b."
    )
    return _shards(path)


def shard_outside_the_folder(folder: Path) -> Crafted:
    path = sharded(folder)
    (folder / "elsewhere").write_bytes((path / "__0_0.distcp").read_bytes())
    _rewrite(path, lambda m: [_move(m, index, "../elsewhere") for index in m.storage_data][:0] or None)
    return _shards(path, r"'\.\./elsewhere' is outside its folder")


def shard_that_is_a_link(folder: Path) -> Crafted:
    path = sharded(folder)
    (path / "__0_0.distcp").rename(folder / "elsewhere")
    (path / "__0_0.distcp").symlink_to(folder / "elsewhere")
    return _shards(path, "is outside its folder")


def shards_shorter_than_their_tensors(folder: Path) -> Crafted:
    path = sharded(folder)

    def stretch(metadata: Metadata) -> None:
        metadata.state_dict_metadata["state_dict.model.head.weight"].size = torch.Size([2**40, 16])

    _rewrite(path, stretch)
    return _shards(path, "claim")


# -- Hugging Face and Meta folders


def exported(folder: Path, **options: Any) -> Path:
    """A good Hugging Face folder."""
    model = LanguageModel(CONFIG)
    to_hugging_face(model, folder / "hf", **options)
    return folder / "hf"


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _hugging_face(path: Path, refusal: str) -> Crafted:
    return Crafted(lambda: from_hugging_face(path), refusal)


def _index(folder: Path, file: str) -> Path:
    path = exported(folder, max_shard_bytes=4000)
    index = path / "model.safetensors.index.json"
    _edit(index, weight_map={**json.loads(index.read_text())["weight_map"], "lm_head.weight": file})
    return path


def index_to_a_parent_folder(folder: Path) -> Crafted:
    return _hugging_face(_index(folder, "../x.safetensors"), "not the name of a")


def index_to_an_absolute_path(folder: Path) -> Crafted:
    return _hugging_face(_index(folder, "/etc/x.safetensors"), "not the name of a")


def index_to_a_pickle(folder: Path) -> Crafted:
    path = _index(folder, "pytorch_model.bin")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Command(folder)))
    return _hugging_face(path, "not the name of a")


def weights_that_are_a_link(folder: Path) -> Crafted:
    path = exported(folder)
    (path / "model.safetensors").rename(folder / "elsewhere.safetensors")
    (path / "model.safetensors").symlink_to(folder / "elsewhere.safetensors")
    return _hugging_face(path, "is outside its folder")


def shard_of_an_index_that_is_a_link(folder: Path) -> Crafted:
    path = exported(folder, max_shard_bytes=4000)
    shard = min(path.glob("*.safetensors"))
    shard.rename(folder / "elsewhere.safetensors")
    shard.symlink_to("../elsewhere.safetensors")
    return _hugging_face(path, "is outside its folder")


def pickle_beside_config(folder: Path) -> Crafted:
    path = exported(folder)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Command(folder)))
    return _hugging_face(path, "pickles")


def shard_that_is_missing(folder: Path) -> Crafted:
    path = exported(folder, max_shard_bytes=4000)
    min(path.glob("*.safetensors")).unlink()
    return _hugging_face(path, "the index names this file and it is missing")


def tensor_too_many(folder: Path) -> Crafted:
    path = exported(folder)
    file = path / "model.safetensors"
    save_file({**load_file(file), "extra": torch.ones(1)}, file)
    return _hugging_face(path, r"extra \[1\] has no place")


def tensor_of_another_type(folder: Path) -> Crafted:
    path = exported(folder)
    file = path / "model.safetensors"
    save_file({**load_file(file), "model.norm.weight": torch.ones(16, dtype=torch.int64)}, file)
    return _hugging_face(path, r"model\.norm\.weight is of type I64")


def header_longer_than_its_file(folder: Path) -> Crafted:
    path = exported(folder)
    file = path / "model.safetensors"
    file.write_bytes((2**60).to_bytes(8, "little") + file.read_bytes()[8:])
    return _hugging_face(path, "not a whole safetensors file")


def config_of_many_layers(folder: Path) -> Crafted:
    path = exported(folder)
    _edit(path / "config.json", num_hidden_layers=10**9)
    return _hugging_face(path, "1000000000 layers")


def config_of_many_positions(folder: Path) -> Crafted:
    path = exported(folder)
    _edit(path / "config.json", max_position_embeddings=10**12)
    return _hugging_face(path, "a context of 1000000000000 tokens")


def config_of_endless_width(folder: Path) -> Crafted:
    path = exported(folder)
    _edit(path / "config.json", hidden_size=10**400)
    return _hugging_face(path, r"config\.json: ")


def pickle_of_meta(folder: Path) -> Crafted:
    """A Meta folder, not trusted: no pickle of a stranger is opened."""
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(Command(folder)))
    return Crafted(lambda: load_language_model(folder), "--trust_checkpoint=true")


def pickle_of_meta_trusted(folder: Path) -> Crafted:
    """The same, trusted: it is opened, and nothing in it is run."""
    torch.save({"tok_embeddings.weight": torch.ones(2), "x": Command(folder)}, folder / "consolidated.00.pth")
    (folder / "params.json").write_text("{}")
    return Crafted(lambda: from_meta(folder, trust_checkpoint=True), UNREADABLE)


# -- files of the data readers


def _rows(path: Path, data: bytes, refusal: str) -> Crafted:
    path.write_bytes(data)
    return Crafted(lambda: list(read_dialogues(path)), rf"{path.name}.*{refusal}")


def gzip_bomb(folder: Path) -> Crafted:
    return _rows(folder / "rows.jsonl.gz", gzip.compress(b" " * 20_000_000), "max_ratio 200")


def gzip_bomb_in_a_gzip(folder: Path) -> Crafted:
    """A small file of members one after the other, each a bomb."""
    return _rows(folder / "rows.jsonl", gzip.compress(b" " * 2_000_000) * 20, "max_ratio 200")


def xz_file(folder: Path) -> Crafted:
    return _rows(folder / "rows.jsonl.xz", lzma.compress(b" " * 20_000_000), "xz.*unpack it")


def bzip2_file(folder: Path) -> Crafted:
    return _rows(folder / "rows.jsonl.bz2", bz2.compress(b" " * 20_000_000), "bzip2.*unpack it")


def zip_file(folder: Path) -> Crafted:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../rows.jsonl", b" " * 20_000_000)
    return _rows(folder / "rows.zip", buffer.getvalue(), "zip.*unpack it")


def csv_bomb(folder: Path) -> Crafted:
    path = folder / "prompts.csv.gz"
    path.write_bytes(gzip.compress(b"prompt\n" + b"x" * 20_000_000))
    return Crafted(lambda: list(read_prompts(path)), r"prompts\.csv\.gz.*(max_ratio|max_line_bytes)")


def tar_bomb(folder: Path) -> Crafted:
    path = folder / "corpus.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        _add(archive, "a.txt", b"a" * 20_000_000)
    return Crafted(lambda: list(read_documents(path)), r"corpus\.tar\.gz.*max_ratio 200")


def sparse_tar(folder: Path) -> Crafted:
    """Members of a gigabyte that are nothing but holes: no bytes in the archive."""
    path = folder / "corpus.tar"
    header = tarfile.TarInfo("hole.txt")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0" % (200 * 2**20) + b"%011o\0" % 0  # one empty piece at the end
    block[483:495] = b"%011o\0" % (200 * 2**20)  # the size with the hole
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + b"\0" * 1024)
    return Crafted(lambda: list(read_documents(path)), r"corpus\.tar:0: hole\.txt: .*sparse")


def tar_that_leaves_the_folder(folder: Path) -> Path:
    """Members with names and links out of the folder, and one good document: only that is to be read."""
    path = folder / "corpus.tar"
    with tarfile.open(path, "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "link.txt"), (tarfile.LNKTYPE, "hard.txt")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        pipe = tarfile.TarInfo("pipe.txt")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
        _add(archive, "../../escaped.txt", b"kept in memory\n")
    return path


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


CHECKPOINTS: tuple[Callable[[Path], Crafted], ...] = (
    bare_pickle,
    pickle_of_old_torch,
    command_in_hyper_parameters,
    command_in_optimizer_state,
    command_in_callbacks,
    stretched_tensor,
    too_many_layers,
    too_long_context,
    too_wide,
    config_that_is_none,
    weights_of_integers,
    weights_that_are_no_tensors,
    compressed_archive,
    index_to_a_parent_folder,
    index_to_an_absolute_path,
    index_to_a_pickle,
    weights_that_are_a_link,
    shard_of_an_index_that_is_a_link,
    pickle_beside_config,
    shard_that_is_missing,
    tensor_too_many,
    tensor_of_another_type,
    header_longer_than_its_file,
    config_of_many_layers,
    config_of_many_positions,
    config_of_endless_width,
    pickle_of_meta,
    pickle_of_meta_trusted,
)
SHARDED: tuple[Callable[[Path], Crafted], ...] = (
    command_in_meta_pt,
    command_as_metadata,
    command_inside_metadata,
    command_in_the_metadata_of_a_rank,
    command_as_optimizer_value,
    metadata_that_changes_a_class,
    shard_outside_the_folder,
    shard_that_is_a_link,
    shards_shorter_than_their_tensors,
)
READERS: tuple[Callable[[Path], Crafted], ...] = (
    gzip_bomb,
    gzip_bomb_in_a_gzip,
    xz_file,
    bzip2_file,
    zip_file,
    csv_bomb,
    tar_bomb,
    sparse_tar,
)

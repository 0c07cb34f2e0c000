"""What a checkpoint of a stranger may make this process do: give tensors and plain values, of the size that it has.

Pickles name functions to call. torch.load calls none with weights_only, but torch's reader of sharded folders knows no
such limit: it unpickles `.metadata`, and every stored value that is no tensor, as they come.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from llama2_pl.checkpoints.sharded import verified_folder
from llama2_pl.checkpoints.verified import previous_of


def _joined(*parts: str) -> str:
    return "/".join(parts)


_RECORDS = (
    dcp_metadata.BytesStorageMetadata,
    dcp_metadata.ChunkStorageMetadata,
    dcp_metadata.Metadata,
    dcp_metadata.MetadataIndex,
    dcp_metadata.StorageMeta,
    dcp_metadata.TensorProperties,
    dcp_metadata.TensorStorageMetadata,
    _StorageInfo,
)
# With dtypes, all that the `.metadata` of a sharded folder names. Each only makes a value.
_NAMES = {(record.__module__, record.__qualname__): record for record in _RECORDS}
_NAMES |= {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    (dcp_metadata.__name__, "_MEM_FORMAT_ENCODING"): dcp_metadata._MEM_FORMAT_ENCODING,
}
# The folder it was written to, which nobody reads: any text will do.
_NAMES |= {(module, "PosixPath"): _joined for module in ("pathlib", "pathlib._local")}


class _PlainUnpickler(pickle._Unpickler):
    """Makes the records of `.metadata` and nothing else.

    The written-out unpickler of the standard library and not the fast one, whose BUILD would set attributes of the
    classes themselves: with `parent` of a path class changed, a later write would go elsewhere.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _NAMES[module, name]

    def load_build(self) -> None:
        if type(self.stack[-2]) not in _RECORDS:
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-2]).__name__}")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


class PlainReader(dcp.FileSystemReader):
    """Reads a sharded folder as torch does, without calling what its pickles name."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        return metadata


def refuse_code(path: Path) -> str:
    """The text of an error about a file that is no tensors and plain types."""
    return (
        f"{path}: not a readable weights file: cut short, not written by torch.save, or with more in it than "
        "tensors and plain types; nothing that a checkpoint names is ever run"
    )


def read_torch(source: Path) -> Any:
    """What torch.save wrote, tensors mapped and not yet read; nothing in the file is run."""
    try:
        refuse_bombs(source)
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile) as error:
        # torch's own message offers weights_only=False, which runs what is in the file.
        raise ValueError(refuse_code(source)) from error


def refuse_bombs(path: Path) -> None:
    """Raise ValueError where a small file would take much memory: torch stores without compression and no bytearray.

    `weights_only` lets a pickle make a bytearray of any length; plain types of ours have none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        packed = next((part.filename for part in parts if part.compress_type), None)
        if packed is not None:
            raise ValueError(
                f"{path}: {packed} in it is compressed, which torch.save never does; fetch it again"
            )
        pickles = [part for part in parts if part.filename.endswith("data.pkl")]
        if any(b"bytearray" in file.read(part) for part in pickles):
            raise ValueError(refuse_code(path))


def check_storage(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless all are dense floating-point numbers that their file is long enough to hold.

    One stored number can be shown as a matrix of them, and a kilobyte so claim all memory.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise ValueError(f"{path}: {name} is {tensor.dtype}, {tensor.layout}; weights are dense floats")
    claimed, there = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > there:
        raise ValueError(
            f"{path}: its tensors claim {claimed} bytes and the file has {there}; fetch it again"
        )


def inside(folder: Path, name: str, source: Path) -> Path:
    """The file of this name in the folder; ValueError where the name, or a link there, leaves it.

    Links from a snapshot to the blobs of the same repository are how Hugging Face's cache keeps files.
    """
    base, target = folder.resolve(), (folder / name).resolve()
    homes = [base, base.parent.parent / "blobs"] if base.parent.name == "snapshots" else [base]
    if Path(name).is_absolute() or ".." in Path(name).parts or not any(map(target.is_relative_to, homes)):
        raise ValueError(
            f"{source}: {name!r} is outside its folder {folder}; a checkpoint reads only its own files, so put the "
            "file itself there"
        )
    return folder / name


def read_metadata(folder: Path) -> Metadata:
    """The `.metadata` of a sharded folder, its files inside the folder and as long as its tensors claim."""
    path = inside(folder, ".metadata", folder / ".metadata")
    try:
        with path.open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        stored = metadata.storage_data.values()
        if any(info.transform_descriptors for info in stored):
            raise pickle.UnpicklingError("it is compressed, which Lightning never asks for")
        files = {str(info.relative_path) for info in stored}
        claimed = sum(map(_nbytes, metadata.state_dict_metadata.values()))
    except Exception as error:  # a damaged pickle fails in any way there is
        raise ValueError(f"{refuse_code(path)} ({error})") from error
    there = sum(inside(folder, name, path).stat().st_size for name in files)
    if claimed > there:
        raise ValueError(
            f"{path}: its tensors claim {claimed} bytes and the files have {there}; fetch it again"
        )
    return metadata


def _nbytes(entry: Any) -> int:
    if not isinstance(entry, TensorStorageMetadata):
        return 0
    return abs(math.prod(entry.size)) * entry.properties.dtype.itemsize


def check_shards(folder: Path) -> None:
    """Raise ValueError where a pickle of a sharded folder would run something: `.metadata`, meta.pt, stored values.

    torch unpickles each value that is no tensor (an optimizer's learning rate) without a limit, so all are tried
    here with one.
    """
    # Where it cannot read `.metadata`, torch takes that of one rank.
    for other in sorted(folder.glob("__*.metadata")):
        raise ValueError(f"{other}: a second list beside .metadata, which Lightning never writes; remove it")
    metadata = read_metadata(folder)
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            continue
        path = folder / info.relative_path
        try:
            with path.open("rb") as file:
                file.seek(info.offset)
                value = file.read(min(info.length, path.stat().st_size))
            torch.load(io.BytesIO(value), weights_only=True)
        except Exception as error:  # as above
            raise ValueError(f"{refuse_code(path)} ({index.fqn})") from error
    read_torch(inside(folder, "meta.pt", folder / "meta.pt"))


def guard_loading(strategy: Any) -> None:
    """Make a Trainer's strategy refuse checkpoints that would run something; a second call changes nothing.

    Lightning hands the path of a checkpoint to nobody before its strategy has read it, so the reading is wrapped.
    """
    load = strategy.load_checkpoint
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_plain(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if weights_only is False:  # said by the caller of Trainer.fit, who thereby trusts the file
            return load(checkpoint_path, weights_only=False)
        if any(map(Path.is_dir, (Path(checkpoint_path), previous_of(Path(checkpoint_path))))):
            checkpoint_path = verified_folder(
                Path(checkpoint_path), strategy.global_rank, strategy.world_size
            )
            check_shards(checkpoint_path)
        for file in (Path(checkpoint_path), previous_of(Path(checkpoint_path))):
            if file.is_file():
                refuse_bombs(file)
        try:
            return load(checkpoint_path, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(refuse_code(Path(checkpoint_path))) from error

    strategy.load_checkpoint = load_plain

"""The options inside a SentencePiece model file.

Read off the protobuf wire format, since SentencePiece tells them to no one and its proto classes need protobuf.
"""

from __future__ import annotations

from collections.abc import Iterator


def specs(model: bytes) -> tuple[dict[int, int], dict[int, int]]:
    """Integer fields of the TrainerSpec (field 2) and the NormalizerSpec (field 3) of a ModelProto."""
    parts = {
        number: value for number, value in _fields(model) if number in (2, 3) and isinstance(value, bytes)
    }
    trainer, normalizer = (
        {number: value for number, value in _fields(parts.get(part, b"")) if isinstance(value, int)}
        for part in (2, 3)
    )
    return trainer, normalizer


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of one protobuf message: (number, int) or (number, bytes)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            size, at = _varint(message, at)
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at

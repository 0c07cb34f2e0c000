"""Files that hold many documents: tar archives, parquet, WikiExtractor output, Stack Exchange dumps."""

from __future__ import annotations

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llama2_pl.data.readers.common import Raw, Reading
from llama2_pl.data.readers.files import check_ratio, open_bounded, text_lines
from llama2_pl.data.readers.markup import strip_html

_DOC = re.compile(r'<doc id="[^"]*" url="[^"]*" title="(.*)">$')


def tar_members(path: Path, how: Reading) -> Iterator[Raw]:
    """(name, bytes) of every regular file of the archive, in order; links and devices are passed over."""
    limit = how.limits.max_document_bytes
    try:
        with open_bounded(path, how.limits) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for index, member in enumerate(archive):
                source = archive.extractfile(member) if member.isfile() else None
                if source is None:
                    continue
                if member.issparse():
                    # its holes are bytes that no limit on what is read would see
                    yield Raw(index, problem=f"{member.name}: a sparse file; pack it again without --sparse")
                elif member.size > limit:
                    yield Raw(index, problem=f"{member.name}: larger than {limit} bytes (max_document_bytes)")
                else:
                    yield Raw(index, (member.name, source.read()))
    except tarfile.TarError as error:
        raise ValueError(f"{how.name}: broken tar archive ({error}); fetch it again") from error


def parquet_rows(path: Path, column: str, how: Reading) -> Iterator[Raw]:
    """Cells of one column of a parquet file, a batch at a time, with the limits on size and ratio.

    A column says how long it is unpacked, before it is. Cells that repeat are stored once, however long: so they are
    read by their number in the dictionary, made one at a time, and counted.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{how.name}: reading parquet needs pyarrow: pip install 'llama2-pl[data]'"
        ) from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        if column not in names:
            raise ValueError(f"{how.name}: no column {column!r} in {names}; pass text_key")
        with pyarrow.parquet.ParquetFile(path, read_dictionary=[column]) as file:
            packed = path.stat().st_size
            check_ratio(_unpacked_bytes(file.metadata, column), packed, how.name, how.limits)
            index = total = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for cell in batch.column(0):
                    value = cell.as_py()
                    total += len(value) if isinstance(value, (str, bytes)) else 0
                    check_ratio(total, packed, how.name, how.limits)
                    yield Raw(index, value)
                    index += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{how.name}: not a readable parquet file: {error}") from error


def _unpacked_bytes(metadata: Any, column: str) -> int:
    """What the file says of the column's length before compression."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def wikiextractor_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """Texts of the ``<doc ...>`` elements, the title line kept; a document of a title alone gives ""."""
    start, lines = Raw(0), []
    for raw in text_lines(path, how):
        if raw.problem is not None:
            yield raw
        elif raw.value.startswith("<doc ") and _DOC.match(raw.value):
            if start.line:
                yield Raw(start.line, problem="the <doc> has no </doc>")
            start, lines = raw, []
        elif raw.value == "</doc>" and start.line:
            body = "\n".join(lines).strip()
            title, _, rest = body.partition("\n")
            yield Raw(start.line, f"{title}\n{rest.rstrip()}\n" if rest.strip() else "")
            start = Raw(0)
        elif start.line:
            lines.append(raw.value)
        elif raw.value.strip():
            yield Raw(raw.line, problem=f"text outside <doc>: {raw.value[:40]!r}")
    if start.line:
        yield Raw(start.line, problem="the file ends inside this <doc>; it is cut short")


class _Post(NamedTuple):
    line: int
    score: int
    text: str


def stackexchange_rows(path: Path, how: Reading) -> Iterator[Raw]:
    """One text a question of a Stack Exchange Posts.xml: title, question, answers by falling score.

    Llama 1 §2.1: HTML tags go, answers stand from the highest score to the lowest. Each line is parsed alone,
    so a document type declaration or an entity of its own has no say; the stripped text of the dump is held in
    memory, since an answer may come long after its question.
    """
    questions: dict[str, _Post] = {}
    answers: dict[str, list[_Post]] = {}
    for raw in text_lines(path, how):
        if raw.problem is not None:
            yield raw
        elif raw.value.lstrip().startswith("<row"):
            try:
                _file_post(raw, questions, answers)
            except (ElementTree.ParseError, KeyError, ValueError) as error:
                yield Raw(raw.line, problem=f"not a <row/> of posts: {type(error).__name__} {error}")
    for key, question in questions.items():
        best_first = sorted(answers.get(key, []), key=lambda post: -post.score)
        yield Raw(question.line, "\n\n".join([question.text, *(post.text for post in best_first)]) + "\n")


def _file_post(raw: Raw, questions: dict[str, _Post], answers: dict[str, list[_Post]]) -> None:
    """Put the post of one line where it belongs; posts that are neither question nor answer are tag wikis."""
    row = ElementTree.fromstring(raw.value.strip()).attrib
    if row["PostTypeId"] not in ("1", "2"):
        return
    text = strip_html(row["Body"])
    if row["PostTypeId"] == "1":
        questions[row["Id"]] = _Post(
            raw.line, int(row["Score"]), f"{row.get('Title', '').strip()}\n\n{text}".strip()
        )
    else:
        answers.setdefault(row["ParentId"], []).append(_Post(raw.line, int(row["Score"]), text))

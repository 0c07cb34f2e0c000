"""The tokenizer against SentencePiece itself, published ids, and its own promises."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2_pl.text import Tokenizer, train_tokenizer


def test_real_tokenizer_gives_the_published_vectors(llama: Tokenizer, tokenizer_data: Path) -> None:
    rows = (tokenizer_data / "llama2" / "vectors.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        assert llama.encode(row["text"]) == row["ids"]
        assert llama.decode(row["ids"]) == row["decoded"]
    assert len(rows) > 1000


def test_real_tokenizer_gives_the_ids_of_llama_cpp(llama: Tokenizer, tokenizer_data: Path) -> None:
    folder = tokenizer_data / "llama2"
    inputs = (
        (folder / "ggml-vocab-llama-spm.gguf.inp")
        .read_text(encoding="utf-8")
        .split("\n__ggml_vocab_test__\n")
    )
    outputs = (folder / "ggml-vocab-llama-spm.gguf.out").read_text().split("\n")
    for text, ids in zip(inputs, outputs, strict=False):
        assert llama.encode(text) == [int(i) for i in ids.split()]
    assert len(inputs) > 40


def test_real_tokenizer_has_the_sizes_and_ids_of_the_paper(llama: Tokenizer) -> None:
    assert (llama.vocab_size, llama.unk_id, llama.bos_id, llama.eos_id, llama.pad_id) == (32_000, 0, 1, 2, -1)
    assert llama.sha256 == "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
    assert (llama.piece(29871), llama.piece(13), llama.piece(3)) == ("▁", "<0x0A>", "<0x00>")


def test_encode_equals_sentencepiece_with_bos_and_eos_by_number(tiny: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tiny.path))
    for text in ("def f(x): return 12", "  two  spaces ", "é\n\tx", ""):
        ids = processor.encode(text)
        assert tiny.encode(text) == ids
        assert tiny.encode(text, bos=True, eos=True) == [1, *ids, 2]


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x0A>", "a</s><s>b"])
def test_text_never_becomes_a_control_token(tiny: Tokenizer, text: str) -> None:
    assert not {0, 1, 2} & set(tiny.encode(text))
    assert tiny.decode(tiny.encode(text)) == text


def test_decode_leaves_control_tokens_out(tiny: Tokenizer) -> None:
    assert tiny.decode(tiny.encode("return self", bos=True, eos=True)) == "return self"
    assert tiny.decode([1, *tiny.encode("a"), 2, 1, *tiny.encode("b")]) == "a b"


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40).filter(lambda s: "▁" not in s))
def test_any_unicode_text_round_trips_through_byte_fallback(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text)) == text


def test_digits_are_single_and_newline_is_a_byte(tiny: Tokenizer) -> None:
    pieces = [tiny.piece(i) for i in range(tiny.vocab_size)]
    assert not [p for p in pieces[259:] if any(c.isdigit() for c in p) and len(p.strip("▁")) > 1]
    assert "0" in pieces
    assert tiny.piece(tiny.encode("\n")[-1]) == "<0x0A>"


def test_training_uses_the_options_of_the_released_model(tiny: Tokenizer, tokenizer_data: Path) -> None:
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    ours, released = proto.ModelProto(), proto.ModelProto()
    ours.ParseFromString(tiny.path.read_bytes())
    released.ParseFromString((tokenizer_data / "llama2" / "tokenizer.model").read_bytes())
    # where the two must differ: where the text came from, its size, and how many threads trained it
    free = {"input", "model_prefix", "vocab_size", "num_threads", "input_format"}
    for field in proto.TrainerSpec.DESCRIPTOR.fields_by_name:
        if field not in free:
            assert getattr(ours.trainer_spec, field) == getattr(released.trainer_spec, field), field
    for field in proto.NormalizerSpec.DESCRIPTOR.fields_by_name:
        assert getattr(ours.normalizer_spec, field) == getattr(released.normalizer_spec, field), field
    assert ours.trainer_spec.vocab_size == len(ours.pieces) == 700


def test_training_twice_gives_the_same_file(texts: list[str], tmp_path: Path) -> None:
    first, second = (train_tokenizer(texts, tmp_path / n, vocab_size=400, num_threads=1) for n in "ab")
    assert first.sha256 == second.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    rows = (tmp_path / "a" / "tokenizer.vocab").read_text(encoding="utf-8").split("\n")
    assert [row.split("\t")[0] for row in rows[:-1]] == [first.piece(i) for i in range(400)]
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"tokenizer.model", "tokenizer.vocab"}


def test_files_and_texts_may_be_mixed(texts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(texts[0], encoding="utf-8")
    mixed = train_tokenizer([file, *texts[1:]], tmp_path / "m", vocab_size=400, num_threads=1)
    assert mixed.sha256 == train_tokenizer(texts, tmp_path / "t", vocab_size=400, num_threads=1).sha256


def test_a_text_without_line_breaks_is_not_passed_over(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["wonderful tokens " * 5000], tmp_path, vocab_size=290, num_threads=1)
    assert len(tokenizer.encode("wonderful")) < 4


def test_vocabulary_larger_than_the_text_allows_says_how_large_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size 5000 is too large for this text: at most \d+"):
        train_tokenizer(["a few words and no more"] * 9, tmp_path, vocab_size=5000)
    with pytest.raises(ValueError, match=r"too small for the characters of this text: at least \d+"):
        train_tokenizer(["".join(map(chr, range(0x4E00, 0x5000)))], tmp_path, vocab_size=300)
    with pytest.raises(ValueError, match="vocab_size 259"):
        train_tokenizer(["a"], tmp_path, vocab_size=259)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(["", "\n"], tmp_path, vocab_size=300)
    assert list(tmp_path.iterdir()) == []


def test_bad_training_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.txt.*UTF-8"):
        train_tokenizer([file], tmp_path, vocab_size=300)


def test_the_name_of_a_file_is_not_taken_for_its_text(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some text")
    with pytest.raises(
        ValueError, match=r"corpus.txt' is taken for a text and is the name of a file: give Path"
    ):
        train_tokenizer([str(tmp_path / "corpus.txt")], tmp_path / "out", vocab_size=270)


def test_models_that_cannot_hold_the_format_are_refused_with_what_was_found(tokenizer_data: Path) -> None:
    unigram = tokenizer_data / "sentencepiece" / "test_model.model"
    with pytest.raises(ValueError, match=r"test_model\.model: .*unigram, not BPE; it has no byte fallback"):
        Tokenizer(unigram)
    assert Tokenizer(unigram, require_llama=False).vocab_size == 1000
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(tokenizer_data / "llama2" / "LICENSE")
    with pytest.raises(ValueError, match="no such tokenizer file"):
        Tokenizer(tokenizer_data / "absent.model")


def test_other_numbers_for_bos_and_eos_are_refused(texts: list[str], tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[2].split("\n")),
        model_prefix=str(tmp_path / "m"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        bos_id=2,
        eos_id=1,
        minloglevel=2,
    )
    with pytest.raises(
        ValueError, match=r"BOS and EOS are 2 and 1, not 1 and 2; .*leading space or removes spaces"
    ):
        Tokenizer(tmp_path / "m.model")


def test_what_is_not_text_is_refused(tiny: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 1"):
        tiny.encode("a\ud800")
    with pytest.raises(ValueError, match="expected text, got int"):
        tiny.encode(3)  # type: ignore[arg-type]
    for outside in (-1, 700):
        with pytest.raises(ValueError, match=f"id {outside} is outside the vocabulary of 700"):
            tiny.decode([outside])


def test_survives_pickle_and_deepcopy_for_data_workers(tiny: Tokenizer) -> None:
    for other in (pickle.loads(pickle.dumps(tiny)), copy.deepcopy(tiny)):
        assert other.encode("return") == tiny.encode("return")
        assert other.sha256 == tiny.sha256

"""`llama2-pl tokenizer train`."""

from __future__ import annotations

from pathlib import Path

from llama2_pl.text.tokenizer import train_tokenizer


def train(files: list[str] | str, out: str, vocab_size: int = 32_000, seed: int = 0) -> None:
    """Train a SentencePiece BPE tokenizer with Llama 2's options (Llama 2 §2.1).

    Args:
        files: a UTF-8 text file or a list of them; each line is a sentence.
        out: folder for tokenizer.model and tokenizer.vocab.
        vocab_size: pieces in all, with 3 control pieces and 256 bytes.
        seed: of the sample of lines that training looks at.
    """
    files = [files] if isinstance(files, str) else files
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ValueError(
            f"--files: {missing[0]} is not a file; give text files, as in --files '[a.txt, b.txt]'"
        )
    tokenizer = train_tokenizer([Path(file) for file in files], out, vocab_size=vocab_size, seed=seed)
    print(f"wrote {out}/tokenizer.model: {tokenizer.vocab_size} pieces")

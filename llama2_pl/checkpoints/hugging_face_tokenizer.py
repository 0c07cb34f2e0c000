"""tokenizer.json and tokenizer_config.json out of a SentencePiece tokenizer.model.

Written by hand, so that an export needs neither transformers nor tokenizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece

_UNK, _BOS, _EOS = "<unk>", "<s>", "</s>"

# The ids are those of llama2_pl.text.chat: each turn apart with BOS, each answer ended by EOS, the system message in
# the first user turn. A text with a control tag, in any case and spacing, could forge a turn, and this tokenizer would
# read "<s>" in it as BOS.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- set bare = message['content'].lower().split() | join -%}
  {%- for tag in ['[inst]', '[/inst]', '<<sys>>', '<</sys>>'] -%}
    {%- if tag in bare -%}
      {{- raise_exception('a message holds the control tag ' ~ tag) -}}
    {%- endif -%}
  {%- endfor -%}
  {%- for token in [bos_token, eos_token, '<unk>'] -%}
    {%- if token in message['content'] -%}
      {{- raise_exception('a message holds the control tag ' ~ token) -}}
    {%- endif -%}
  {%- endfor -%}
{%- endfor -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\\n' ~ messages[0]['content'] ~ '\\n<</SYS>>\\n\\n' -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
  {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
  {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
    {{- raise_exception('roles: an optional system message, then user and assistant in turn') -}}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ ((system if loop.first else '') ~ message['content']) | trim ~ ' [/INST]' -}}
  {%- else -%}
    {{- ' ' ~ message['content'] | trim ~ ' ' ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""


def tokenizer_config_json(max_seq_len: int, pads: bool = False) -> dict[str, Any]:
    """Names the class that takes tokenizer.json as it stands; LlamaTokenizer would rebuild it another way.

    With `pads` batches are padded with <unk>, as a reward model's config.json says; Llama 2 itself pads with nothing.
    """
    return {
        **({"pad_token": _UNK} if pads else {}),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BOS,
        "eos_token": _EOS,
        "unk_token": _UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }


def tokenizer_json(path: Path) -> dict[str, Any]:
    """The SentencePiece BPE model as the tokenizers library reads it."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(i, text) for i, text in enumerate((_UNK, _BOS, _EOS))],
        # SentencePiece puts a space before a text, here before each text between special tokens: each turn of a chat.
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _with_bos(),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": _merges(model),
        },
    }


def _merges(model: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first: SentencePiece stores scores, not merges."""
    scores = {
        model.id_to_piece(i): model.get_score(i)
        for i in range(model.get_piece_size())
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
    }
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [(left, right) for left, right in splits if left in scores and right in scores]
    return merges


def _special(number: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": True}


def _with_bos() -> dict[str, Any]:
    """BOS before a text, as transformers' users of Llama expect; chats bring their own."""
    bos = {"SpecialToken": {"id": _BOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {_BOS: {"id": _BOS, "ids": [1], "tokens": [_BOS]}},
    }

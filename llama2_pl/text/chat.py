"""Dialogues to ids and loss mask, in Meta's format.

Llama 2 §3.3 (system message), A.5; the released generation code: every finished (user, answer) pair is
encoded on its own as ``BOS [INST] user [/INST] answer EOS``, the system message inside the first user turn. §3.1 has "a
special token" between prompt and answer and does not say which; the code has the text ``[/INST]``, and so have we.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from llama2_pl.text.tags import TagPolicy, guard
from llama2_pl.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
TrainOn = Literal["answers", "last_answer"]

BEGIN_INSTRUCTION, END_INSTRUCTION = "[INST]", "[/INST]"
BEGIN_SYSTEM, END_SYSTEM = "<<SYS>>\n", "\n<</SYS>>\n\n"


class Message(NamedTuple):
    """One message of a dialogue."""

    role: Role
    content: str


class Dialog(NamedTuple):
    """At most one system message, then user and assistant in turn."""

    messages: tuple[Message, ...]

    @staticmethod
    def of(messages: Iterable[tuple[Role, str]]) -> Dialog:
        """``Dialog.of([("user", "Hi"), ("assistant", "Hello.")])``; the roles are checked when it is encoded."""
        return Dialog(tuple(Message(role, content) for role, content in messages))

    def then(self, role: Role, content: str) -> Dialog:
        """This dialogue with one more message."""
        return Dialog((*self.messages, Message(role, content)))


class EncodedDialog(NamedTuple):
    """Ids of a dialogue; ``loss_mask`` is True on the tokens to be learned."""

    tokens: list[int]
    loss_mask: list[bool]


def encode_dialog(
    dialog: Dialog, tokenizer: Tokenizer, *, train_on: TrainOn = "answers", tags: TagPolicy = "refuse"
) -> EncodedDialog:
    """Ids and loss mask of a dialogue that ends with an answer.

    Llama 2 §3.1: the loss is on answers only. §3.3: Ghost Attention trains on the last answer only.

    The mask is True on everything after ``[/INST]``, the EOS included (without it the model would never
    learn to stop), and False on BOS, prompt and system message.

    Args:
        dialog: roles in turn; others, and a last message that is the user's, raise ValueError.
        tokenizer: gives the ids.
        train_on: "answers", or "last_answer" alone.
        tags: a control tag in a text could forge a turn; "refuse" it with ValueError, or "neutralise" it, which puts
            round brackets for its own.
    """
    if train_on not in get_args(TrainOn):
        raise ValueError(f"train_on {train_on!r}: choose one of {', '.join(get_args(TrainOn))}")
    pairs, last = _pairs(dialog, tags)
    if last is not None:
        raise ValueError("the dialogue ends with a user message: give an answer, or use encode_prompt")
    tokens: list[int] = []
    loss_mask: list[bool] = []
    for index, (user, answer) in enumerate(pairs):
        prompt, reply = _encode_user(user, tokenizer), _encode_answer(answer, tokenizer)
        trained = train_on == "answers" or index == len(pairs) - 1
        tokens += prompt + reply
        loss_mask += [False] * len(prompt) + [trained] * len(reply)
    return EncodedDialog(tokens, loss_mask)


def encode_prompt(dialog: Dialog, tokenizer: Tokenizer, *, tags: TagPolicy = "refuse") -> list[int]:
    """Ids of a dialogue that ends with a user message, ready for the model to answer.

    Meta's generation.py. They are always a prefix of what ``encode_dialog`` gives once the answer is known.

    Args:
        dialog: roles in turn, the user's message last; others raise ValueError.
        tokenizer: gives the ids.
        tags: as for ``encode_dialog``.
    """
    pairs, last = _pairs(dialog, tags)
    if last is None:
        raise ValueError("a prompt ends with a user message, and this dialogue ends with an answer")
    history = [_encode_user(user, tokenizer) + _encode_answer(answer, tokenizer) for user, answer in pairs]
    return [token for turn in history for token in turn] + _encode_user(last, tokenizer)


def system_tokens(dialog: Dialog, tokenizer: Tokenizer, *, tags: TagPolicy = "refuse") -> range:
    """Which of a dialogue's ids are its system message, without the tags around it."""
    system, _ = split_system(dialog)
    if not system:
        raise ValueError("the dialogue has no system message: start it with one")
    text = guard(system[0].content, "system", 0, tags)
    head = f"{BEGIN_INSTRUCTION} {BEGIN_SYSTEM}"
    # the line breaks around it are pieces of their own, so it is encoded alike with and without what follows
    return range(len(tokenizer.encode(head, bos=True)), len(tokenizer.encode(head + text, bos=True)))


def truncate_dialog(
    dialog: Dialog, tokenizer: Tokenizer, max_tokens: int, *, tags: TagPolicy = "refuse"
) -> Dialog:
    """The dialogue without as many of its oldest turns as it takes to encode to ``max_tokens`` or fewer.

    Our choice: the system message stays, since it must hold throughout, and so does the last turn.
    A dialogue whose last turn alone is too long cannot be cut and raises ValueError.

    Args:
        dialog: ends with either role.
        tokenizer: counts the tokens.
        max_tokens: most that are left, BOS, EOS and the format's own among them.
        tags: as for ``encode_dialog``.
    """
    system, turns = split_system(dialog)
    pairs, last = _pairs(dialog, tags)
    droppable = len(pairs) if last is not None else len(pairs) - 1
    length = 0
    for dropped in range(droppable + 1):
        kept = Dialog((*system, *turns[2 * dropped :]))
        length = _encoded_length(kept, tokenizer, tags)
        if length <= max_tokens:
            return kept
    raise ValueError(
        f"the last turn has {length} tokens with its system message and the limit is {max_tokens}: "
        "raise max_tokens or skip this dialogue"
    )


def split_system(dialog: Dialog) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(system message or nothing, the other messages)."""
    at = 1 if dialog.messages and dialog.messages[0].role == "system" else 0
    return dialog.messages[:at], dialog.messages[at:]


def validate_roles(dialog: Dialog) -> None:
    """Raise ValueError, with index and role, unless roles are [system], user, assistant, user, ..."""
    system, turns = split_system(dialog)
    if not turns:
        raise ValueError("the dialogue has no user message")
    for index, message in enumerate(turns, start=len(system)):
        expected = ("user", "assistant")[(index - len(system)) % 2]
        if message.role != expected:
            raise ValueError(
                f"message {index} has role {message.role!r} where {expected!r} must stand: "
                "an optional system message comes first, then user and assistant take turns"
            )
        if not isinstance(message.content, str):
            raise ValueError(
                f"message {index} ({message.role}) has {type(message.content).__name__} for its text"
            )


def _pairs(dialog: Dialog, tags: TagPolicy) -> tuple[list[tuple[str, str]], str | None]:
    """The finished (user, answer) pairs and the unanswered user text, the system message folded in."""
    validate_roles(dialog)
    texts = [guard(m.content, m.role, index, tags) for index, m in enumerate(dialog.messages)]
    system, _ = split_system(dialog)
    if system:
        texts = [BEGIN_SYSTEM + texts[0] + END_SYSTEM + texts[1], *texts[2:]]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    return pairs, texts[-1] if len(texts) % 2 else None


def _encode_user(user: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(f"{BEGIN_INSTRUCTION} {user.strip()} {END_INSTRUCTION}", bos=True)


def _encode_answer(answer: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of an answer after ``[/INST]``, with the space before EOS.

    Encoded apart from its prompt so that the prompt at inference is always a prefix of the training ids.
    Meta encodes "[INST] u [/INST] a " in one call; the ids are the same, since the space that the tokenizer
    puts before a text is the space after ``[/INST]``, and no piece holds a space after another character.
    """
    return tokenizer.encode(f"{answer.strip()} ", eos=True)


def _encoded_length(dialog: Dialog, tokenizer: Tokenizer, tags: TagPolicy) -> int:
    if dialog.messages[-1].role == "user":
        return len(encode_prompt(dialog, tokenizer, tags=tags))
    return len(encode_dialog(dialog, tokenizer, tags=tags).tokens)

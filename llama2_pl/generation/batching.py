"""Continuous batching: rows that end make room for prompts that wait; each prompt is read once for all its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama2_pl.generation.decoder import Decoder, Prefilled
from llama2_pl.generation.picking import pick_tokens
from llama2_pl.generation.slots import Slots, static_shapes

PADDING_ID = 0  # any valid id: the model looks ids up before masks apply, so Meta's -1 would not do
PROMPT_TOKENS = 8192  # most that are read at once, padding included: bounds the memory of their activations
PADDED_SHARE = 0.2  # of a group of prompts
GPU_WIDTH = 128  # a graph reads a multiple of this many slots
GPU_STEPS = 8  # steps between two looks at which rows have ended, each of which waits for the GPU


class Sampled(NamedTuple):
    """Responses alone: ids and log-probabilities (R, max_new_tokens), how many of them count (R,)."""

    ids: Tensor
    logprobs: Tensor
    counts: Tensor


class SamplingParams(NamedTuple):
    """How tokens are chosen, and where a row ends."""

    eos_id: int
    temperature: float
    top_p: float


class Active(NamedTuple):
    """The rows being decoded, one to a place, (R,) each."""

    rows: Tensor  # where each is written
    tokens: Tensor  # the next token to be read
    positions: Tensor  # its position
    steps: Tensor  # how many tokens were sampled
    alive: Tensor  # no EOS yet


class PromptQueue:
    """Rows that wait, by prompt length: what is read together is little padded."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], samples: int) -> None:
        self.decoder, self.prompts, self.samples = decoder, prompts, samples
        self.order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        self.read = 0  # prompts of the order that have been read
        self.rest: tuple[Prefilled, Tensor, Tensor] | None = None

    def __bool__(self) -> bool:
        return self.rest is not None or self.read < len(self.order)

    def take(self, count: int) -> tuple[Prefilled, Tensor, Tensor]:
        """At most `count` rows: prompts that were read, the place of each row's prompt among them, and its row."""
        prefilled, place, rows = self.rest or self._prefill(-(-count // self.samples))
        self.rest = (prefilled, place[count:], rows[count:]) if len(rows) > count else None
        return prefilled, place[:count], rows[:count]

    def _prefill(self, most: int) -> tuple[Prefilled, Tensor, Tensor]:
        numbers = self._group(most)
        self.read += len(numbers)
        tensors = [torch.tensor(self.prompts[number], dtype=torch.int64) for number in numbers]
        tokens = pad_sequence(tensors, batch_first=True, padding_value=PADDING_ID)
        device = self.decoder.device
        lengths = torch.tensor([len(tensor) for tensor in tensors], device=device)
        samples = torch.arange(self.samples, device=device)
        rows = (torch.tensor(numbers, device=device)[:, None] * self.samples + samples).flatten()
        place = torch.arange(len(numbers), device=device).repeat_interleave(self.samples)
        return self.decoder.prefill(tokens.to(device), lengths), place, rows

    def _group(self, most: int) -> list[int]:
        """The next prompts of like length, one at least."""
        group: list[int] = []
        real = 0
        for number in self.order[self.read : self.read + most]:
            width = len(self.prompts[number])
            padded = width * (len(group) + 1)
            real += width
            if group and (padded > PROMPT_TOKENS or padded - real > PADDED_SHARE * padded):
                break
            group.append(number)
        return group


class ContinuousBatch:
    """Decodes what waits, at most `most` rows at a time.

    uniforms (R, N) are the rows' randomness: a row's tokens depend on its prompt and its uniforms alone.
    """

    def __init__(
        self, decoder: Decoder, queue: PromptQueue, uniforms: Tensor, params: SamplingParams, most: int
    ) -> None:
        device, (rows, self.limit) = decoder.device, uniforms.shape
        self.decoder, self.queue, self.params, self.most = decoder, queue, params, most
        self.lengths = torch.tensor([len(prompt) for prompt in queue.prompts], device=device)
        # One row more than there are: unused places of a CUDA graph's batch write there.
        self.uniforms = torch.cat([uniforms, uniforms.new_zeros(1, self.limit)])
        ids = torch.full(self.uniforms.shape, PADDING_ID, dtype=torch.int64, device=device)
        self.sampled = Sampled(ids, torch.zeros_like(self.uniforms), ids.new_zeros(rows + 1))
        unused = ids.new_zeros(4, most)
        self.active = Active(unused[0] + rows, unused[1], unused[2], unused[3], unused.new_zeros(most).bool())
        self.n = self.width = self.most_steps = (
            0  # rows, slots that the next step reads, tokens of the eldest
        )
        self.slots: Slots | None = None
        self.graphs = StepGraphs() if decoder.device.type == "cuda" and not decoder.split else None

    def run(self) -> Sampled:
        """Everything that waits."""
        while self.queue or self.n:
            # Not for each row that ends: a group of prompts costs less than as many single ones.
            if self.queue and (self.n == 0 or self.most - self.n >= self.most // 8):
                self._admit()
            if self.n:
                self._advance()
                self._compact()
        ids, logprobs, counts = self.sampled
        return Sampled(ids[:-1], logprobs[:-1], counts[:-1])

    def _admit(self) -> None:
        """Fill free places with rows that wait, and choose their first tokens."""
        while self.queue and self.n < self.most:
            prefilled, place, rows = self.queue.take(self.most - self.n)
            tokens = self._choose(
                prefilled.logits[place], rows, torch.zeros_like(rows), torch.ones_like(rows, dtype=torch.bool)
            )
            going = ((tokens != self.params.eos_id) & (self.limit > 1)).nonzero().squeeze(1)
            if not len(going):
                continue
            rows, place, tokens = rows[going], place[going], tokens[going]
            start, self.n = self.n, self.n + len(rows)
            positions, ones = self.lengths[rows // self.queue.samples], torch.ones_like(rows)
            state = Active(rows, tokens, positions, ones, ones.bool())
            for whole, part in zip(self.active, state, strict=True):
                whole[start : self.n] = part
            self.width, self.most_steps = max(self.width, int(positions.max()) + 1), max(self.most_steps, 1)
            target = torch.arange(start, self.n, device=rows.device)
            self._fitted(self.width).put(target, prefilled.keys, prefilled.values, place)

    def _fitted(self, width: int) -> Slots:
        if self.slots is None:
            decoder, longest = self.decoder, int(self.lengths.max())
            shape = (len(decoder.layers), self.most, decoder.kv_heads, decoder.head_dim)
            most = longest + self.limit - 1
            if static_shapes(decoder.device):  # strides too: kernels are planned for each
                most = -(-most // GPU_WIDTH) * GPU_WIDTH
            self.slots = Slots(*shape, most, decoder.dtype, decoder.device, decoder.compiled)
        self.slots.fit(width)
        return self.slots

    def _advance(self) -> None:
        """One step, or as many as may pass on a GPU before somebody looks."""
        slots = self._fitted(self.width)
        if slots.grows:
            self._step(self.n, slots.size)
            return
        steps = min(GPU_STEPS, self.limit - self.most_steps)
        rows = min(self.most, 1 << (self.n - 1).bit_length())
        width = min(-(-(self.width + steps - 1) // GPU_WIDTH) * GPU_WIDTH, slots.size)
        for _ in range(steps):
            if self.graphs is None:
                self._step(rows, width)
            else:
                self.graphs(self._step, rows, width)

    def _step(self, rows: int, width: int) -> None:
        """Read the last token of the first `rows` rows and choose the next; nothing here waits for a GPU."""
        assert self.slots is not None
        active = Active(*(part[:rows] for part in self.active))
        logits = self.decoder.step(active.tokens, active.positions, self.slots, width)
        tokens = self._choose(logits, active.rows, active.steps, active.alive)
        active.alive.logical_and_(tokens != self.params.eos_id)
        active.tokens.copy_(tokens)
        active.positions.add_(1)
        active.steps.add_(1)

    def _choose(self, logits: Tensor, rows: Tensor, steps: Tensor, alive: Tensor) -> Tensor:
        """Sample one more token of rows (R,), their number `steps` (R,), and write it down."""
        params, sampled = self.params, self.sampled
        uniforms = self.uniforms[rows, steps]
        tokens, logprobs = pick_tokens(logits, uniforms, params.temperature, params.top_p)
        sampled.ids[rows, steps] = tokens
        sampled.logprobs[rows, steps] = logprobs
        sampled.counts.index_add_(0, rows, alive.long())
        return tokens

    def _compact(self) -> None:
        """Put rows from the end into the places of those that have ended."""
        assert self.slots is not None
        n, active = self.n, self.active
        going = active.alive[:n] & (active.steps[:n] < self.limit)
        alive, positions, steps = torch.stack([going.long(), active.positions[:n], active.steps[:n]]).tolist()
        old = [place for place in range(n) if alive[place]]
        self.n = len(old)
        self.width = max((positions[place] for place in old), default=-1) + 1
        self.most_steps = max((steps[place] for place in old), default=0)
        free = [place for place in range(self.n) if not alive[place]]
        if free:
            source, target = (torch.tensor(x, device=going.device) for x in (old[-len(free) :], free))
            self.slots.move(source, target)
            for part in active:
                part[target] = part[source]
        if not self.slots.grows:
            active.rows[self.n :] = len(self.uniforms) - 1
            for part in (active.positions, active.steps, active.alive):
                part[self.n :] = 0


class StepGraphs:
    """CUDA graphs of a step, one for each number of rows and of slots: a small step's time is that of its launches.

    The first step of a size runs as it is, and warms up what a graph needs; the second is recorded. The step is given
    with each call: a batch that it belonged to would not be freed, with its cache and weights, when it is done.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle()  # one for all: nothing in it outlives a step

    def __call__(self, step: Callable[[int, int], None], rows: int, width: int) -> None:
        size = (rows, width)
        if size not in self.graphs:
            self.graphs[size] = None
            step(rows, width)
            return
        graph = self.graphs[size]
        if graph is None:
            graph = self.graphs[size] = torch.cuda.CUDAGraph()
            # Records, runs nothing. The loaders' threads may go on pinning memory.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                step(rows, width)
        graph.replay()

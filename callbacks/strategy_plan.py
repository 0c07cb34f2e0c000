"""Which strategy a training needs: bytes per device, worked out in the open.

Llama 2 §2.2 says only "custom training libraries"; the estimate is our choice, built from published counts
(Rajbhandari et al. 2020 for the states, Korthikanti et al. 2022 for activations) and rounded up; what sampling inside
a run holds is counted in strategy_sampling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from llama2_pl.callbacks.strategy_sampling import Sampling, held_while_sampling
from llama2_pl.callbacks.strategy_shape import Precision, Shape, block_bytes, bytes_of, shape_of
from llama2_pl.model.config import ModelConfig

Kind = Literal["single_device", "ddp", "fsdp2", "fsdp2_tp"]

GIB = 2**30
# Our choice: a tenth of a device is left to the CUDA context, NCCL's buffers and fragmentation.
USABLE_SHARE = 0.9
LOSS_CHUNK = 1024  # positions whose logits exist at a time, as in objectives.language


class Memory(NamedTuple):
    """Bytes on one device."""

    parameters: float
    gradients: float
    optimizer: float
    """AdamW's two moments."""
    working: float
    """What the computation copies: bf16 weights, and FSDP2's gathered weights and gradients not yet reduced."""
    activations: float
    logits: float
    copy: float = 0
    """The policy's weights as the decoder holds them while it samples."""
    cache: float = 0
    """Keys and values of the rows being sampled."""
    reading: float = 0
    """Of prompts: one block's activations, and keys and values that are not in the cache yet."""

    @property
    def total(self) -> float:
        """States, and the larger of what a pass and what sampling takes: the decoder is gone when answers are back."""
        states = self.parameters + self.gradients + self.optimizer
        return states + max(
            self.working + self.activations + self.logits, self.copy + self.cache + self.reading
        )


class Candidate(NamedTuple):
    """One way to spread the training, and what speaks against it ("" where nothing does)."""

    kind: Kind
    data_parallel: int
    tensor_parallel: int
    activation_checkpointing: bool
    memory: Memory
    against: str

    @property
    def name(self) -> str:
        names = {"single_device": "single device", "ddp": "DDP", "fsdp2": "FSDP2"}
        tensor = f"FSDP2 x{self.data_parallel} + TP x{self.tensor_parallel}"
        return names.get(self.kind, tensor) + (" + checkpointing" if self.activation_checkpointing else "")


class Job(NamedTuple):
    """What is to run, and on what.

    Attributes:
        shape: of the model.
        devices: per node.
        nodes: how many.
        memory_gib: per device.
        seq_len: tokens per row.
        micro_batch: rows per device and backward pass.
        precision: Lightning's.
        training: False for validation and prediction, which need no gradients and no optimizer.
        trained_networks: of this shape, with an optimizer (PPO: policy and value, 2).
        frozen_networks: of this shape, weights only (PPO: reference and two reward models, 3).
        global_batch: rows per optimizer step; more data-parallel devices than fill it are of no use.
        sampling: what the policy, of this shape, samples inside the run, each at its own time.
    """

    shape: Shape
    devices: int
    nodes: int
    memory_gib: float
    seq_len: int
    micro_batch: int
    precision: Precision
    training: bool
    trained_networks: int
    frozen_networks: int
    global_batch: int | None
    sampling: tuple[Sampling, ...] = ()

    @property
    def world(self) -> int:
        return self.devices * self.nodes


class Plan(NamedTuple):
    """The choice (None where nothing fits), every candidate looked at, in order, and the reason."""

    choice: Candidate | None
    candidates: tuple[Candidate, ...]
    job: Job
    why: str

    @property
    def table(self) -> str:
        """The candidates with their bytes, and the reason, for a person to read."""
        columns = (
            ("weights", 9),
            ("grads", 8),
            ("Adam", 8),
            ("working", 9),
            ("activ.", 8),
            ("logits", 8),
            *((("copy", 8), ("cache", 8), ("reading", 8)) if self.job.sampling else ()),
            ("GiB", 8),
        )
        lines = [f"{'strategy':<34}" + "".join(f"{name:>{width}}" for name, width in columns)]
        for c in self.candidates:
            sizes = zip([*c.memory[: len(columns) - 1], c.memory.total], columns, strict=True)
            figures = "".join(f"{size / GIB:>{width}.1f}" for size, (_, width) in sizes)
            lines.append(f"{c.name:<34}{figures}  {'<- chosen' if c == self.choice else c.against}".rstrip())
        if self.job.sampling:
            lines.append("GiB: weights, grads, Adam, and the larger of training's and of sampling's three")
        return "\n".join([*lines, self.why])


def choose_plan(
    model: ModelConfig | Mapping[str, Any] | str | int,
    *,
    devices: int = 1,
    nodes: int = 1,
    memory_gib: float = 80.0,
    seq_len: int | None = None,
    micro_batch: int = 1,
    precision: Precision = "bf16-mixed",
    training: bool = True,
    trained_networks: int = 1,
    frozen_networks: int = 0,
    global_batch: int | None = None,
    sampling: Sequence[Sampling] = (),
) -> Plan:
    """The plainest strategy that fits: what costs least communication and recomputation comes first.

    Order: single device or DDP, FSDP2, DDP and FSDP2 with activation checkpointing (a third more arithmetic), then
    FSDP2 with tensor parallelism of growing size inside a node.

    Args:
        model: config, its dict, a preset's name ("7B"), or a number of parameters alone.
        devices: per node.
        nodes: number of nodes.
        memory_gib: memory of one device in GiB (an A100 80 GB: 80).
        seq_len: tokens per row; by default the model's longest context.
        micro_batch: rows per device and backward pass.
        precision: "bf16-mixed" keeps weights, gradients and AdamW's moments in fp32, 16 bytes per parameter.
        training: False for validation and prediction.
        trained_networks: networks of this size with an optimizer; PPO has 2.
        frozen_networks: networks of this size without; PPO has 3.
        global_batch: rows per optimizer step; None: no limit.
        sampling: what is sampled from a network of this size inside the run, as PPO does.
    """
    shape = shape_of(model)
    job = Job(
        shape,
        devices,
        nodes,
        memory_gib,
        seq_len or shape.max_seq_len,
        micro_batch,
        precision,
        training,
        trained_networks,
        frozen_networks,
        global_batch,
        tuple(sampling),
    )
    _check(job)
    return plan_of(job, candidates(job))


def plan_of(job: Job, found: tuple[Candidate, ...]) -> Plan:
    """The first candidate that nothing speaks against."""
    choice = next((candidate for candidate in found if not candidate.against), None)
    where = f"{job.world} x {job.memory_gib:g} GiB"
    if choice is None:
        return Plan(None, found, job, f"nothing fits on {where}: {_way_out(job, found)}")
    passed = [f"{c.name} {c.against}" for c in found[: found.index(choice)]]
    reason = f"; {'; '.join(passed)}" if passed else ", the plainest"
    need = choice.memory.total / GIB
    return Plan(choice, found, job, f"{choice.name} on {where}: needs {need:.1f} GiB per device{reason}")


def candidates(job: Job) -> tuple[Candidate, ...]:
    """Every way to spread the job, plainest first."""
    if job.world == 1:
        return tuple(candidate(job, "single_device", 1, checkpointing) for checkpointing in (False, True))
    shards = [candidate(job, kind, 1, ac) for ac in (False, True) for kind in ("ddp", "fsdp2")]
    sizes = [size for size in (2, 4, 8, 16) if _tensor_parallel_works(job, size)]
    return (*shards, *(candidate(job, "fsdp2_tp", size, ac) for size in sizes for ac in (False, True)))


def candidate(job: Job, kind: Kind, tensor_parallel: int, checkpointing: bool) -> Candidate:
    """One way with its bytes and what speaks against it."""
    data_parallel = job.world // tensor_parallel
    memory = memory_per_device(job, kind, tensor_parallel, checkpointing)
    usable = USABLE_SHARE * job.memory_gib * GIB
    against = ""
    if memory.total > usable:
        against = f"needs {memory.total / GIB:.1f} GiB of {usable / GIB:.1f} usable"
    elif job.global_batch is not None and data_parallel * job.micro_batch > job.global_batch:
        against = f"has {data_parallel * job.micro_batch} rows per step, above the global batch of {job.global_batch}"
    return Candidate(kind, data_parallel, tensor_parallel, checkpointing, memory, against)


def memory_per_device(job: Job, kind: Kind, tensor_parallel: int, checkpointing: bool) -> Memory:
    """Bytes on one device, N parameters.

    States: weights and gradients 4 N each and AdamW 8 N in fp32 (half of all in bf16-true), over all devices with
    FSDP2, whole without. Working: the 2 N bf16 copies that autocast keeps; with FSDP2 instead the gathered weights
    (bf16) and unreduced gradients (fp32) of the embedding, the head and two blocks. Sampling: strategy_sampling.py.
    """
    shape, (wide, compute) = job.shape, bytes_of(job.precision)
    sharded = kind in ("fsdp2", "fsdp2_tp")
    share = job.world if sharded else 1
    trained = job.trained_networks * shape.parameters if job.training else 0
    weights = (job.trained_networks + job.frozen_networks) * shape.parameters
    if sharded:
        root = 2 * shape.vocab * shape.dim
        gathered = root + 2 * (shape.parameters - root) / shape.layers
        working = gathered * (compute + (wide if job.training else 0)) / tensor_parallel
    else:
        working = compute * shape.parameters if job.precision == "bf16-mixed" else 0
    sampled = held_while_sampling(
        shape, job.precision, job.sampling, sharded, job.world // tensor_parallel, tensor_parallel
    )
    return Memory(
        parameters=wide * weights / share,
        gradients=wide * trained / share,
        optimizer=2 * wide * trained / share,
        working=working,
        activations=_activations(job, compute, tensor_parallel, checkpointing or not job.training),
        logits=_logits(job),
        **sampled._asdict(),
    )


def _activations(job: Job, compute: int, tensor_parallel: int, checkpointing: bool) -> float:
    """Bytes kept for the backward pass.

    With checkpointing only each block's input, D, and one block in full while it is computed again.
    """
    shape, tokens = job.shape, job.micro_batch * job.seq_len
    block = block_bytes(shape, compute, tensor_parallel) * tokens
    if not job.training:
        return block
    if checkpointing:
        return shape.layers * shape.dim * tokens * compute + block
    return shape.layers * block


def _logits(job: Job) -> float:
    """Logits, their log-softmax and its gradient in fp32, for one chunk of positions."""
    positions = min(job.micro_batch * job.seq_len, LOSS_CHUNK)
    return positions * job.shape.vocab * 4 * (3 if job.training else 1)


def _tensor_parallel_works(job: Job, size: int) -> bool:
    """Inside a node, whose links are fast, and dividing heads and kv heads."""
    shape = job.shape
    return job.devices % size == 0 and shape.heads % size == 0 and shape.kv_heads % size == 0


def _way_out(job: Job, found: tuple[Candidate, ...]) -> str:
    """Fewest devices of this kind, or least memory per device, with which it would fit."""
    least = min(found, key=lambda c: c.memory.total)
    memory = f"{least.memory.total / USABLE_SHARE / GIB:.0f} GiB per device ({least.name})"
    for world in (2**power for power in range(1, 13)):
        devices = min(world, max(8, job.devices))
        larger = job._replace(devices=devices, nodes=world // devices)
        fits = [c for c in candidates(larger) if not c.against] if world > job.world else []
        if fits:
            return f"take {world} devices ({fits[0].name}), or {memory}{fewer_rows(job, candidates)}"
    return f"take {memory}, or a smaller seq_len or micro_batch{fewer_rows(job, candidates)}"


def fewer_rows(job: Job, ways: Callable[[Job], Sequence[Candidate]]) -> str:
    """How many rows sampled together would fit, where nothing else is in the way of one of these; otherwise ""."""
    rows = max((sampling.rows for sampling in job.sampling), default=1)
    while rows > 1:
        rows //= 2
        fewer = tuple(sampling._replace(rows=min(rows, sampling.rows)) for sampling in job.sampling)
        fits = [c for c in ways(job._replace(sampling=fewer)) if not c.against]
        if fits:
            return f", or sample at most {rows} rows together (generation_batch, max_batch; {fits[0].name})"
    return ""


def _check(job: Job) -> None:
    for name in ("devices", "nodes", "memory_gib", "seq_len", "micro_batch", "trained_networks"):
        if getattr(job, name) <= 0:
            raise ValueError(f"{name} is {getattr(job, name)}; it must be above 0")
    if job.frozen_networks < 0:
        raise ValueError(f"frozen_networks is {job.frozen_networks}; it must be 0 or more")
    for sampling in job.sampling:
        for name, value in sampling._asdict().items():
            if value is not None and value <= 0:
                raise ValueError(f"sampling: {name} is {value}; it must be above 0")
    if job.precision not in get_args(Precision):
        raise ValueError(f"precision {job.precision!r}: the estimate knows {', '.join(get_args(Precision))}")

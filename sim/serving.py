"""The serving engine of a scenario: who runs in a step, what memory it has, what its host costs.

What a scenario does not write follows the preset that it names (`sim.presets.resolved`); the
defaults here are those of the preset ``vllm`` on a large GPU.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sim.efficiency import Engine
from sim.schema import StrictModel
from sim.speculation import SpeculationChoice
from sim.units import Bytes, BytesPerSecond, Fraction, NonNegativeInt, PositiveInt, Seconds

Composition = Literal["mixed", "prefill_first"]
"""What a step is made of: prompts and answers together, or steps of prompts alone that go first."""
Admission = Literal["as_needed", "no_evict", "estimated"]
"""What is set aside for an answer before its request comes in: nothing, so that a sequence may
have to be preempted; the longest answer asked for; or a share of it that falls with time."""
Preemption = Literal["recompute", "swap"]
"""What becomes of the keys and values of a preempted sequence."""
Order = Literal["fcfs", "priority", "fair"]
"""Who is next in the waiting line."""
RankChoice = Literal["even", "fewest_waiting", "fewest_requests", "round_robin"]
"""Which attention rank a request goes to: as `sim.engine.lockstep.RankChoice` tells."""
FractionOf = Literal["total", "static", "free"]
"""What `ServingEngine.memory_fraction` is a share of.

``total`` (vLLM): the whole chip; weights, activations and the engine's own lie inside.
``static`` (SGLang): what is free before the weights are loaded; weights and the cache lie inside,
activations and graphs in the rest.
``free`` (TensorRT-LLM): what weights, activations and the engine leave; all of it for the cache.
"""


def _rising(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(above <= below for below, above in pairwise(sizes)):
        raise ValueError("sizes must rise")
    return sizes


Sizes = Annotated[tuple[PositiveInt, ...], AfterValidator(_rising)]
"""Batch sizes or token counts that something was compiled for, rising."""


class AnswerEstimate(StrictModel):
    """How much of the answers asked for an engine expects (``new_token_ratio`` in SGLang)."""

    initial_fraction: Fraction
    """Share of the longest answer, at first and whenever the engine has been idle."""
    least_fraction: Fraction
    """Share that it falls to."""
    decay_steps: PositiveInt
    """Decoding steps from the initial share to the least."""
    longest_counted_tokens: PositiveInt
    """Longer answers count as so long."""
    spare_steps: PositiveInt
    """Tokens that each running answer is expected to get beyond what it has when a preemption sets
    the share anew."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.least_fraction > self.initial_fraction:
            raise ValueError("least_fraction is above initial_fraction: the share can only fall")
        return self


class KvTier(StrictModel):
    """A place outside the chips where keys and values are kept for later requests."""

    name: str
    """What it is called in tables."""
    capacity_bytes: Annotated[Bytes, Field(gt=0)]
    """Of one replica; of all together where it is ``shared``."""
    read_bytes_per_s: BytesPerSecond
    """From the tier to the chips, of a replica; of all together where it is ``shared``."""
    write_bytes_per_s: BytesPerSecond
    """To the tier. What is written through can be fetched when it is there; what is written on
    eviction, at once."""
    latency_s: Seconds = 0.0
    """Before the first byte of a transfer."""
    shared: bool = False
    """Whether all replicas read and write the same one."""
    write: Literal["through", "on_eviction"] = "through"
    """Whether a block is written when its sequence ends, or when the tier above drops it."""

    @model_validator(mode="after")
    def _all_see_what_is_written(self) -> Self:
        if self.shared and self.write == "on_eviction":
            raise ValueError(
                "a shared tier is written through: what replicas drop comes at times of their own"
            )
        return self


class ServingEngine(StrictModel):
    """The serving engine of each replica: a preset, and what differs from it."""

    name: str = "vllm"
    """Id of a file in ``hardware/engines``: the preset."""
    kernels: Engine = "vllm"
    """Whose kernels and overheads apply."""

    # --- Who runs in a step.
    max_num_seqs: PositiveInt = 1024
    """Sequences that run at the same time, on each attention rank."""
    max_num_batched_tokens: PositiveInt = 8192
    """Tokens per step, of each attention rank and each micro-batch of a pipeline; longer prompts
    are computed in chunks. With ``prefill_first``, prompt tokens alone."""
    chunked_prefill: bool = True
    """Whether a prompt may be cut. If not, it waits for a step with room for all of it, and one
    that is longer than ``max_num_batched_tokens`` is rejected."""
    max_chunk_tokens: PositiveInt | None = None
    """Tokens of one prompt per step, where that is limited (``long_prefill_token_threshold``)."""
    max_prompts_per_step: PositiveInt | None = None
    """Prompts that may come in at one step, where that is limited."""
    rank_choice: RankChoice = "fewest_waiting"
    """How requests are dealt to the attention ranks of a replica (``attention_dp``), each with a
    batch and a KV cache of its own, all as slow as the slowest. ``even``: the ranks share one
    batch evenly, which is less to compute; with stages or context ranks it always counts."""
    composition: Composition = "mixed"
    """Whether prompts share steps with answers, or have steps of their own that go first."""
    expert_imbalance: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    """Coefficient of variation of the load of a single expert from period to period, on top of
    ``routing``; see `sim.routing.fullest_loads`."""
    speculation: SpeculationChoice | None = None
    """Draft tokens that the model checks several at a time; none unless given."""

    # --- Who comes in, and who has to leave.
    order: Order = "fcfs"
    """Who is next: by arrival, by priority, or by weighted shares of the tenants."""
    admission: Admission = "as_needed"
    """What is set aside for the answer of a request that comes in."""
    answer_estimate: AnswerEstimate | None = None
    """With ``admission: estimated``: the share of the longest answer that is set aside."""
    whole_prompt_must_fit: bool = True
    """Whether a request waits until there are free blocks for all of its prompt, or only for its
    first chunk."""
    watermark_fraction: Annotated[Fraction, Field(lt=1)] = 0.0
    """Share of the KV blocks that stays free when a request comes in."""
    preemption: Preemption = "recompute"
    """Whether a preempted sequence is computed again, or its cache is moved to host memory."""
    swap_bytes: Bytes = 0.0
    """Host memory of each replica for preempted sequences."""
    swap_bytes_per_s: BytesPerSecond | None = None
    """Between the chips of a replica and that memory, all chips together; that of the system's
    host memory unless given."""
    poll_interval_steps: PositiveInt = 1
    """Decoding steps between two looks for new requests (SGLang: ``--scheduler-recv-interval``). A
    step with prompts, and an idle engine, are followed by a look."""
    batch_wait_steps: NonNegativeInt = 0
    """Steps for which prompts wait for others to share theirs, at most, while sequences decode
    (TensorRT-LLM: ``batch_wait_timeout_iters``)."""
    batch_wait_fraction: Fraction = 0.0
    """Share of ``max_num_batched_tokens`` that prompts and answers of a step must reach for them to
    wait no longer (TensorRT-LLM: ``batch_wait_max_tokens_ratio``)."""
    max_queue_requests: NonNegativeInt | None = None
    """Requests that may wait at each replica; further ones are turned away. No limit unless
    given."""

    # --- The KV cache.
    block_tokens: PositiveInt = 16
    """Tokens per KV block."""
    prefix_caching: bool = True
    """Whether blocks of earlier requests are found again."""
    memory_fraction: Fraction = 0.9
    """Share of a chip's memory that the engine uses, as ``memory_fraction_of`` tells."""
    memory_fraction_of: FractionOf = "total"
    """What ``memory_fraction`` is a share of."""
    reserved_bytes: Bytes | None = None
    """Memory for communication buffers and the runtime; what vLLM logs unless given, and nothing
    for ``native`` kernels."""
    graph_bytes: Bytes = 0.0
    """Memory of captured graphs that the KV cache has to leave free."""
    sampler_copies: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.7
    """Peak memory of the sampler, in copies of the 32-bit logits of ``max_num_seqs`` sequences."""
    kv_blocks: PositiveInt | None = None
    """KV blocks of each attention rank, as the engine's log says or ``num_gpu_blocks_override``
    asks; counted from memory unless given."""
    null_blocks: NonNegativeInt = 1
    """Of those, blocks that no sequence ever gets."""
    offload_weights_bytes: Bytes = 0.0
    """Weights of each chip that lie in slower memory than the fastest, at most (``cpu_offload_gb``
    in vLLM)."""
    offload_kv_bytes: Bytes = 0.0
    """Room of each chip for keys and values in slower memory, read from there in every step."""
    kv_tiers: tuple[KvTier, ...] = ()
    """Where blocks are kept for later requests outside the chips, the nearest first."""
    max_model_len: PositiveInt | None = None
    """Longest prompt plus answer; what the model and the KV cache allow unless given."""

    # --- Shapes that were compiled beforehand.
    graph_sizes: Sizes = ()
    """Sequences for which a graph of a decoding step was captured: a batch is padded to the next
    size, and one beyond the last runs as it is. None: batches are never padded."""
    prefill_buckets: Sizes = ()
    """Token counts that steps with prompts are padded to. None: they are not."""
    decode_buckets: Sizes = ()
    """Sequences that decoding steps are padded to, without exception. None: they are not."""

    eager_prompts: bool = False
    """Whether steps with prompts have no graphs: the host launches their kernels one by one, and
    they take as long as it needs for that, at least."""

    # --- The host.
    host_step_s: Seconds | None = None
    """Time of the host per step; part of the fitted overhead unless given."""
    host_sequence_s: Seconds | None = None
    """Time of the host per sequence of a step; part of the fitted overhead unless given."""
    host_overlapped: bool = True
    """Whether the host prepares a step while the chips compute another."""
    steps_ahead: Annotated[int, Field(ge=0, le=1)] = 1
    """Steps that are decided before the results of the last one are known: a request that arrives
    while the chips are busy starts so many steps later."""

    @model_validator(mode="after")
    def _every_sequence_gets_its_token(self) -> Self:
        both = {"max_num_seqs", "max_num_batched_tokens"} <= self.model_fields_set
        if both and self.name.startswith("vllm"):  # others decode beside the budget by default
            problem = starved(self)
            if problem is not None:
                raise ValueError(problem)
        return self

    @property
    def usable_kv_blocks(self) -> int | None:
        """Blocks of each attention rank that sequences can get; none: counted from memory.

        >>> ServingEngine(kv_blocks=27_000).usable_kv_blocks  # vLLM keeps one to itself
        26999
        """
        return None if self.kv_blocks is None else max(0, self.kv_blocks - self.null_blocks)


def starved(engine: ServingEngine) -> str | None:
    """Say why some sequences would never get their token, if so."""
    shared = engine.composition == "mixed"
    if not shared or engine.max_num_batched_tokens >= engine.max_num_seqs:
        return None
    return (
        f"max_num_batched_tokens ({engine.max_num_batched_tokens}) is below max_num_seqs "
        f"({engine.max_num_seqs}): some sequences could never get their token"
    )


def padded(count: int, sizes: Sizes) -> int:
    """Round up to the next compiled size; beyond the last, nothing is added.

    >>> padded(9, (1, 2, 4, 8, 16)), padded(17, (1, 2, 4, 8, 16))
    (16, 17)
    """
    return next((size for size in sizes if size >= count), count)

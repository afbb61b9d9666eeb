"""What is left of a chip's memory for the KV cache, counted as the serving engine counts it.

A byte lies in one of the tiers that a chip can read: its own memory, the fastest tier first, and
then the memory of its host. What does not lie in the fastest tier was put elsewhere on purpose
(`EngineShare.offload_weights_bytes`), and every byte costs what its tier charges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sim.cost.context import INDEX_DTYPE, window_cap
from sim.cost.layers import state_bytes_per_sequence, weight_bytes_per_chip
from sim.hardware import Accelerator, MemoryTier, System
from sim.model import Model
from sim.parallelism import Parallelism, cached_elements, index_elements_per_token
from sim.precision import ACTIVATION_BYTES, Precision
from sim.routing import BALANCED, Routing
from sim.serving import FractionOf, ServingEngine
from sim.units import DTYPE_BYTES, GIB

SAMPLER_COPIES = 3.7
"""Peak of vLLM 0.19.0's sampler over the 32-bit logits of all sequences, fitted to its logs."""
PLAUSIBLE_FRACTION = 0.15
"""How far the blocks that an engine's log tells may be from those counted here without a note."""


class CacheUse(NamedTuple):
    """What one sequence takes of one chip's memory, in bytes."""

    growing_bytes: float
    """Per token of the whole context."""
    windowed_bytes: float = 0.0
    """Per token inside the sliding window, of layers that keep no others."""
    window_tokens: int | None = None
    state_bytes: float = 0.0
    """Whatever the context: states of linear attention."""


class KvBlocks(NamedTuple):
    """The cache of one chip cut into blocks of one size."""

    total: int
    """Blocks that fit; 0 when the model does not fit."""
    block_bytes: float
    growing: int
    """Blocks of a sequence for every ``block_tokens`` of its context."""
    windowed: int
    """The same until the sliding window is full."""
    fixed: int
    """Blocks of a sequence whatever its context."""


@dataclass(frozen=True)
class MemoryUse:
    """How the memory of one chip is divided, in bytes."""

    capacity_bytes: float
    """What a program can allocate on the empty chip, in the fastest tier."""
    budget_bytes: float
    """The share of it that the engine is told to use; all of it where the share is of what is
    left (``free``)."""
    weights_bytes: float
    """In all tiers."""
    activations_bytes: float
    """Peak of one step at the token budget."""
    engine_bytes: float
    """Communication buffers and runtime context."""
    cache: CacheUse
    offloaded_weights_bytes: float = 0.0
    """Of the weights: what lies in slower tiers."""
    offloaded_kv_bytes: float = 0.0
    """Room for keys and values in slower tiers."""
    fraction_of: FractionOf = "total"
    """What the engine's share is a share of."""
    cache_fraction: float = 1.0
    """Of what is left, the part that the cache gets; below 1 where the share is of that."""

    @property
    def usable_bytes(self) -> float:
        """What weights and cache may have of the fastest tier."""
        if self.fraction_of == "static":  # activations and the engine lie beside the budget
            return self.budget_bytes
        return self.budget_bytes - self.activations_bytes - self.engine_bytes

    @property
    def local_kv_bytes(self) -> float:
        """What the fastest tier has left for keys and values; negative where it is too small."""
        left = self.usable_bytes - (self.weights_bytes - self.offloaded_weights_bytes)
        return left * self.cache_fraction if left > 0 else left

    @property
    def kv_bytes(self) -> float:
        """What is left for keys and values; negative when the model does not fit."""
        local = self.local_kv_bytes
        return local + self.offloaded_kv_bytes if local >= 0 else local

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token of context, of the layers that keep all of it."""
        return self.cache.growing_bytes

    def kv_blocks(self, block_tokens: int) -> int:
        """Whole KV blocks that fit; 0 when the model does not fit.

        >>> use = MemoryUse(80.0, 72.0, 16.0, 2.0, 0.0, CacheUse(growing_bytes=0.25))
        >>> use.kv_bytes, use.kv_blocks(16)  # 54 / 4 blocks
        (54.0, 13)
        """
        return self.blocks(block_tokens).total

    def blocks(self, block_tokens: int, given: int | None = None) -> KvBlocks:
        """Cut the cache into blocks of the largest size that divides what all layers keep.

        ``given`` blocks, where an engine's own count is known (`ServingEngine.usable_kv_blocks`).

        30 bytes a token without a window and 20 with one are three and two blocks of 10 bytes a
        token; a state of 170 bytes takes five blocks of 40:

        >>> use = MemoryUse(80.0, 4072.0, 16.0, 2.0, 0.0, CacheUse(30.0, 20.0, 128, 170.0))
        >>> use.blocks(block_tokens=4)
        KvBlocks(total=101, block_bytes=40.0, growing=3, windowed=2, fixed=5)
        """
        growing, windowed, _, state = self.cache
        token_bytes = _common_measure(growing, windowed)
        block_bytes = token_bytes * block_tokens if token_bytes else state
        if not block_bytes:
            return KvBlocks(0, 0.0, 0, 0, 0)
        return KvBlocks(
            total=max(0, int(self.kv_bytes // block_bytes)) if given is None else given,
            block_bytes=block_bytes,
            growing=round(growing / token_bytes) if token_bytes else 0,
            windowed=round(windowed / token_bytes) if token_bytes else 0,
            fixed=math.ceil(state / block_bytes),
        )


def _common_measure(first: float, second: float) -> float:
    """Find the largest number that goes into both, by Euclid, up to rounding.

    >>> _common_measure(30.0, 20.0), _common_measure(30.0, 0.0)
    (10.0, 30.0)
    """
    while second > 1e-6 * first:
        first, second = second, math.fmod(first, second)
        if first - second <= 1e-6 * first:  # a remainder of all but nothing, from below
            second = 0.0
    return first


@dataclass(frozen=True)
class EngineShare:
    """The engine's settings that decide about memory."""

    memory_fraction: float
    """Of the chip's capacity (``gpu_memory_utilization`` in vLLM)."""
    engine_bytes: float
    """Held outside the model's tensors; `engine_bytes` gives what vLLM logs."""
    max_num_batched_tokens: int
    max_num_seqs: int
    offload_weights_bytes: float = 0.0
    """Weights of a chip that lie in slower tiers, at most (``cpu_offload_gb`` in vLLM)."""
    offload_kv_bytes: float = 0.0
    """Room for keys and values of a chip in slower tiers."""
    fraction_of: FractionOf = "total"
    """What ``memory_fraction`` is a share of."""
    sampler_copies: float = SAMPLER_COPIES
    """Peak of the sampler, in copies of the 32-bit logits of all sequences."""


def engine_share(engine: ServingEngine, parallelism: Parallelism) -> EngineShare:
    """Read an engine's settings that decide about memory.

    Parameters
    ----------
    engine : ServingEngine
        With the values of its preset (`sim.presets.resolved`).
    parallelism : Parallelism
        What the engine holds beside its tensors depends on it, unless that is given.
    """
    reserved = engine.reserved_bytes
    held = engine_bytes(parallelism) if reserved is None else reserved
    return EngineShare(
        memory_fraction=engine.memory_fraction,
        engine_bytes=held + engine.graph_bytes,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        offload_weights_bytes=engine.offload_weights_bytes,
        offload_kv_bytes=engine.offload_kv_bytes,
        fraction_of=engine.memory_fraction_of,
        sampler_copies=engine.sampler_copies,
    )


def memory_use(
    model: Model,
    parallelism: Parallelism,
    precision: Precision,
    accelerator: Accelerator,
    share: EngineShare,
    routing: Routing = BALANCED,
) -> MemoryUse:
    """Divide one chip's memory between weights, activations, the engine and the KV cache.

    The chip is the fullest one: of the pipeline stage with the most layers.

    Three ways to read the same share of 0.9, with 80 bytes of memory, 16 of weights, 3 of
    activations and 1 of the engine: ``total`` leaves 72 - 20 = 52 for the cache, ``static``
    0.9 x 79 - 16 = 55.1, ``free`` 0.9 x 60 = 54.
    """
    return divided(
        accelerator,
        share,
        weights=weight_bytes_per_chip(model, parallelism, precision, routing),
        activations=activation_bytes(model, parallelism, share),
        cache=cache_use(model, parallelism, precision),
    )


def divided(
    accelerator: Accelerator,
    share: EngineShare,
    *,
    weights: float,
    activations: float,
    cache: CacheUse,
) -> MemoryUse:
    """Divide one chip's memory when all that lies in it is known, in bytes."""
    capacity = accelerator.local_memory.capacity_bytes.value
    budgets: Mapping[FractionOf, float] = {
        "total": capacity * share.memory_fraction,
        "static": (capacity - share.engine_bytes) * share.memory_fraction,
        "free": capacity,
    }
    return MemoryUse(
        capacity_bytes=capacity,
        budget_bytes=budgets[share.fraction_of],
        weights_bytes=weights,
        activations_bytes=activations,
        engine_bytes=share.engine_bytes,
        cache=cache,
        offloaded_weights_bytes=min(share.offload_weights_bytes, weights),
        offloaded_kv_bytes=share.offload_kv_bytes,
        fraction_of=share.fraction_of,
        cache_fraction=share.memory_fraction if share.fraction_of == "free" else 1.0,
    )


def doubt_about_blocks(use: MemoryUse, block_tokens: int, blocks: int) -> str | None:
    """Say why a number of KV blocks that an engine is said to have is hard to believe, if it is.

    Half as many as 54 bytes of cache hold, in blocks of 16 tokens of a quarter byte:

    >>> use = MemoryUse(80.0, 72.0, 16.0, 2.0, 0.0, CacheUse(growing_bytes=0.25))
    >>> doubt_about_blocks(use, 16, 13)
    >>> doubt_about_blocks(use, 16, 6)
    'kv_blocks: 6 blocks of 16 tokens are given where the memory of the chip suggests 13'
    >>> doubt_about_blocks(use, 16, 17)
    'kv_blocks: 17 blocks of 16 tokens take 68 bytes, and the weights leave 64 of the chip'
    """
    counted, block_bytes, *_ = use.blocks(block_tokens)
    left = use.capacity_bytes - use.weights_bytes + use.offloaded_weights_bytes
    left += use.offloaded_kv_bytes
    start = f"kv_blocks: {blocks} blocks of {block_tokens} tokens"
    if blocks * block_bytes > left:
        asked = blocks * block_bytes
        return f"{start} take {asked:.0f} bytes, and the weights leave {left:.0f} of the chip"
    if abs(blocks - counted) > PLAUSIBLE_FRACTION * counted:
        return f"{start} are given where the memory of the chip suggests {counted}"
    return None


def cache_use(model: Model, parallelism: Parallelism, precision: Precision) -> CacheUse:
    """Count what a sequence takes of a chip: of the layers of one stage, the context uncut.

    Llama 3.1 70B at tp = 8 keeps one key and one value of 128 in each of 80 layers; a stage of
    half the layers keeps half of that.

    >>> from sim.catalog import open_catalog
    >>> llama = open_catalog().model("llama_3_1_70b")
    >>> fp8 = Precision(weights="fp8", kv_cache="fp8")
    >>> cache_use(llama, Parallelism(tp=8), fp8).growing_bytes == 80 * 256
    True
    >>> cache_use(llama, Parallelism(tp=8, pp=2), fp8).growing_bytes == 40 * 256
    True
    """
    window = window_cap(model)
    elements = cached_elements(model, parallelism.tp, window)
    stage = math.ceil(model.layers / parallelism.pp) / model.layers
    each = DTYPE_BYTES[precision.kv_cache] * stage
    index = index_elements_per_token(model)
    return CacheUse(
        (elements.growing - index) * each + index * DTYPE_BYTES[INDEX_DTYPE] * stage,
        elements.windowed * each,
        window if elements.windowed else None,
        state_bytes_per_sequence(model, parallelism, precision),
    )


def activation_bytes(model: Model, parallelism: Parallelism, share: EngineShare) -> float:
    """Peak activations of the step that vLLM profiles at start-up: all tokens, all sequences.

    First the forward pass, then the sampler; what is larger counts:

    - forward: per token four hidden vectors (residual, normed input, attention, output) and three
      inner ones (gate, up and their product), the latter cut over the tensor ranks;
    - sampler: the hidden vectors of the batch, and logits that are not cut: copies, scores and
      indices together `SAMPLER_COPIES` times the 32-bit logits of every sequence.

    Expert kernels keep a workspace of their own beside either: for each pick the larger of gate
    and up together or the output, and their product.

    The number of copies is fitted, the rest is the shape of the tensors. vLLM 0.19.0 logs the
    peak of 21 models on H100 (llm-d-planner, ``accuracy/accuracy_report.md``); dense ones are met
    within 4 %, mixtures within 10 %. vLLM 0.16 and earlier needed 2.5 times as much, because its
    sampler sorted all logits.

    Parameters
    ----------
    model : Model
    parallelism : Parallelism
    share : EngineShare

    Examples
    --------
    Llama 3.1 8B, 8192 tokens, 1024 sequences: hidden vectors of 8192 x 4096 x 2 bytes and 3.7
    times logits of 1024 x 128256 x 4 bytes are 1.87 GiB (vLLM logs 1.89 GiB).

    >>> from sim.catalog import open_catalog
    >>> share = EngineShare(0.9, 0.0, max_num_batched_tokens=8192, max_num_seqs=1024)
    >>> peak = activation_bytes(open_catalog().model("llama_3_1_8b"), Parallelism(tp=1), share)
    >>> round(peak) == 8192 * 4096 * 2 + round(3.7 * 1024 * 128256 * 4)
    True
    """
    tokens = -(-share.max_num_batched_tokens // parallelism.cp)
    inner = model.mlp_matrices * model.mlp_width / parallelism.tp
    forward = tokens * (4 * model.hidden + inner) * ACTIVATION_BYTES
    logits = share.max_num_seqs * model.vocabulary * DTYPE_BYTES["fp32"]
    sampler = tokens * model.hidden * ACTIVATION_BYTES + share.sampler_copies * logits
    return max(forward, sampler) + _expert_workspace_bytes(model, parallelism, tokens)


def _expert_workspace_bytes(model: Model, parallelism: Parallelism, tokens: int) -> float:
    """Workspace of the expert kernels for the picks that land on one chip.

    The tokens of all attention ranks meet, but engines run the experts of large prompts in
    pieces of one rank's budget (vLLM's ``fused_moe_chunk_size``, DeepEP's buffers).
    """
    moe = model.moe
    if moe is None:
        return 0.0
    picks = tokens * moe.experts_per_token / parallelism.ep * parallelism.attention_dp
    picks = min(picks, tokens * float(moe.experts_per_token))
    inner = moe.intermediate * parallelism.ep / parallelism.expert_ranks
    return picks * (max(2 * inner, moe.latent_hidden or model.hidden) + inner) * ACTIVATION_BYTES


def engine_bytes(parallelism: Parallelism) -> float:
    """Memory of one chip that vLLM 0.19.0 holds outside PyTorch, where nothing else is known.

    Its logs on H100 say 0.25 GiB on one chip, 2.07 to 2.21 GiB where chips are joined (buffers of
    NCCL, of the custom all-reduce and of its fusion with the norm); captured graphs, 0.5 to 1.9
    GiB, are not in the budget: they take what ``gpu_memory_utilization`` leaves free
    (llm-d-planner, ``accuracy/accuracy_report.md``).

    >>> engine_bytes(Parallelism(tp=1)) / GIB, engine_bytes(Parallelism(tp=4)) / GIB
    (0.25, 2.1)
    """
    return (0.25 if parallelism.chips == 1 else 2.1) * GIB


def slower_tiers(accelerator: Accelerator, system: System) -> tuple[MemoryTier, ...]:
    """List the memory beside the fastest tier that a chip can read, the faster first."""
    host = () if system.host_memory is None else (system.host_memory,)
    return (*accelerator.memory[1:], *host)


class Detour(NamedTuple):
    """Seconds that a byte takes longer than from the fastest tier, on the average."""

    weights_s_per_byte: float = 0.0
    kv_s_per_byte: float = 0.0


NO_DETOUR = Detour()
"""Everything lies in the fastest tier."""


def detour(use: MemoryUse, accelerator: Accelerator, tiers: Sequence[MemoryTier]) -> Detour:
    """Price the bytes that were offloaded: weights fill the slower tiers first, then the cache.

    Reads of different tiers are taken to follow each other, not to overlap.

    Parameters
    ----------
    use : MemoryUse
    accelerator : Accelerator
    tiers : sequence of MemoryTier
        From `slower_tiers`; large enough for what is offloaded.
    """
    local_s = 1 / accelerator.local_memory.bandwidth_bytes_per_s.value
    weights, cache = use.offloaded_weights_bytes, use.offloaded_kv_bytes
    extra = [0.0, 0.0]
    free = [tier.capacity_bytes.value for tier in tiers]
    for kind, wanted in enumerate((weights, cache)):
        left = wanted
        for index, tier in enumerate(tiers):
            part = min(left, free[index])
            free[index] -= part
            left -= part
            slower_s = 1 / tier.bandwidth_bytes_per_s.value - local_s
            extra[kind] += part * max(slower_s, 0.0)
    per_weight = extra[0] / use.weights_bytes if weights else 0.0
    per_cached = extra[1] / use.kv_bytes if cache and use.kv_bytes > 0 else 0.0
    return Detour(per_weight, per_cached)

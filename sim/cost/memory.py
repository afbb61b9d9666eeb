"""What is left of a chip's memory for the KV cache, counted as the serving engine counts it."""

from dataclasses import dataclass

from sim.cost.work import ACTIVATION_BYTES, Precision, weight_bytes_per_chip
from sim.hardware import Accelerator
from sim.model import Model
from sim.parallelism import Parallelism, kv_elements_per_token_per_layer
from sim.units import DTYPE_BYTES


@dataclass(frozen=True)
class MemoryUse:
    """How the memory of one chip is divided, in bytes."""

    capacity_bytes: float
    """What a program can allocate on the empty chip."""
    budget_bytes: float
    """The share that the engine is told to use."""
    weights_bytes: float
    activations_bytes: float
    """Peak of one step at the token budget."""
    engine_bytes: float
    """Communication buffers, runtime context and captured graphs."""
    kv_bytes_per_token: float
    """Keys and values of one token, all layers."""

    @property
    def kv_bytes(self) -> float:
        """What is left for keys and values; negative when the model does not fit."""
        taken = self.weights_bytes + self.activations_bytes + self.engine_bytes
        return self.budget_bytes - taken

    def kv_blocks(self, block_tokens: int) -> int:
        """Whole KV blocks that fit; 0 when the model does not fit."""
        return max(0, int(self.kv_bytes // (self.kv_bytes_per_token * block_tokens)))


@dataclass(frozen=True)
class EngineShare:
    """The engine's settings that decide about memory."""

    memory_fraction: float
    """Of the chip's capacity (``gpu_memory_utilization`` in vLLM)."""
    engine_bytes: float
    max_num_batched_tokens: int
    max_num_seqs: int


def memory_use(
    model: Model,
    parallelism: Parallelism,
    precision: Precision,
    accelerator: Accelerator,
    share: EngineShare,
) -> MemoryUse:
    """Divide one chip's memory between weights, activations, the engine and the KV cache."""
    capacity = accelerator.memory.capacity_bytes.value
    elements = kv_elements_per_token_per_layer(model, parallelism.tp) * model.layers
    return MemoryUse(
        capacity_bytes=capacity,
        budget_bytes=capacity * share.memory_fraction,
        weights_bytes=weight_bytes_per_chip(model, parallelism, precision),
        activations_bytes=_activation_bytes(model, parallelism, share),
        engine_bytes=share.engine_bytes,
        kv_bytes_per_token=elements * DTYPE_BYTES[precision.kv_cache],
    )


def _activation_bytes(model: Model, parallelism: Parallelism, share: EngineShare) -> float:
    """Peak activations of the step that an engine profiles at start-up.

    Per token the residual, the normed input and the widest inner vector with its gated product
    live at the same time; the sampler holds two 32-bit copies of the logits of every sequence.
    """
    inner = model.dense_intermediate if model.dense_layers else 0
    if model.moe is not None:
        inner = max(inner, model.moe.experts_per_token * model.moe.intermediate)
    per_token = 2 * model.hidden + 3 * inner / parallelism.tp
    logits = 2 * share.max_num_seqs * model.vocabulary * DTYPE_BYTES["fp32"]
    return share.max_num_batched_tokens * per_token * ACTIVATION_BYTES + logits

"""What is left of a chip's memory for the KV cache, counted as the serving engine counts it."""

from dataclasses import dataclass

from sim.cost.layers import weight_bytes_per_chip
from sim.hardware import Accelerator
from sim.model import Model
from sim.parallelism import Parallelism, kv_elements_per_token
from sim.precision import ACTIVATION_BYTES, Precision
from sim.units import DTYPE_BYTES, GIB

SAMPLER_COPIES = 3.7
"""Peak of vLLM 0.19.0's sampler over the 32-bit logits of all sequences, fitted to its logs."""


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
    """Communication buffers and runtime context."""
    kv_bytes_per_token: float
    """Keys and values of one token, all layers."""

    @property
    def kv_bytes(self) -> float:
        """What is left for keys and values; negative when the model does not fit."""
        taken = self.weights_bytes + self.activations_bytes + self.engine_bytes
        return self.budget_bytes - taken

    def kv_blocks(self, block_tokens: int) -> int:
        """Whole KV blocks that fit; 0 when the model does not fit.

        >>> use = MemoryUse(80.0, 72.0, 16.0, 2.0, 0.0, kv_bytes_per_token=0.25)
        >>> use.kv_bytes, use.kv_blocks(16)  # 54 / 4 blocks
        (54.0, 13)
        """
        return max(0, int(self.kv_bytes // (self.kv_bytes_per_token * block_tokens)))


@dataclass(frozen=True)
class EngineShare:
    """The engine's settings that decide about memory."""

    memory_fraction: float
    """Of the chip's capacity (``gpu_memory_utilization`` in vLLM)."""
    engine_bytes: float
    """Held outside the model's tensors; `engine_bytes` gives what vLLM logs."""
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
    capacity = accelerator.local_memory.capacity_bytes.value
    elements = kv_elements_per_token(model, parallelism.tp)
    return MemoryUse(
        capacity_bytes=capacity,
        budget_bytes=capacity * share.memory_fraction,
        weights_bytes=weight_bytes_per_chip(model, parallelism, precision),
        activations_bytes=activation_bytes(model, parallelism, share),
        engine_bytes=share.engine_bytes,
        kv_bytes_per_token=elements * DTYPE_BYTES[precision.kv_cache],
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
    tokens = share.max_num_batched_tokens
    inner = model.mlp_matrices * model.mlp_width / parallelism.tp
    forward = tokens * (4 * model.hidden + inner) * ACTIVATION_BYTES
    logits = share.max_num_seqs * model.vocabulary * DTYPE_BYTES["fp32"]
    sampler = tokens * model.hidden * ACTIVATION_BYTES + SAMPLER_COPIES * logits
    return max(forward, sampler) + _expert_workspace_bytes(model, parallelism, tokens)


def _expert_workspace_bytes(model: Model, parallelism: Parallelism, tokens: int) -> float:
    """Workspace of the expert kernels for the picks that land on one chip."""
    moe = model.moe
    if moe is None:
        return 0.0
    picks = tokens * moe.experts_per_token / parallelism.ep
    inner = moe.intermediate * parallelism.ep / parallelism.tp
    return picks * (max(2 * inner, model.hidden) + inner) * ACTIVATION_BYTES


def engine_bytes(parallelism: Parallelism) -> float:
    """Memory of one chip that vLLM 0.19.0 holds outside PyTorch, where nothing else is known.

    Its logs on H100 say 0.25 GiB on one chip, 2.07 to 2.21 GiB where chips are joined (buffers of
    NCCL, of the custom all-reduce and of its fusion with the norm); captured graphs, 0.5 to 1.9
    GiB, are not in the budget: they take what ``gpu_memory_utilization`` leaves free
    (llm-d-planner, ``accuracy/accuracy_report.md``).

    >>> engine_bytes(Parallelism(tp=1)) / GIB, engine_bytes(Parallelism(tp=4)) / GIB
    (0.25, 2.1)
    """
    return (0.25 if parallelism.tp == 1 else 2.1) * GIB

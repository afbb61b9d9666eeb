"""The operators of linear attention (gated delta net, KDA, Mamba2, lightning) on one chip.

Heads are cut over the tensor ranks; key heads are copied where there are fewer of them.
"""

from sim.cost.operators import DenseGemm, Operator, StateUpdate
from sim.cost.stage import Stage
from sim.model import LinearAttention
from sim.precision import ACTIVATION_BYTES
from sim.units import DTYPE_BYTES, Dtype

STATE_DTYPE: Dtype = "fp32"
"""Format of the state matrices: SGLang's default, and what ``mamba_ssm_dtype`` of Qwen3.5 and
Nemotron asks of vLLM, which otherwise keeps them like the model. The taps of the convolution are
kept in 16 bits."""

CHUNK_TOKENS = 64
"""Tokens that a chunked scan takes together (flash-linear-attention)."""


def linear_attention(stage: Stage, attention: LinearAttention, suffix: str = "") -> list[Operator]:
    """List the operators of the layers of one group."""
    keys, values = _widths(stage, attention)
    mixed = 2 * keys + values
    matrix = _matrix_elements(stage, attention)
    state_bytes = layer_state_bytes(stage, attention)
    heads = stage.share(attention.value_heads)
    widths = 3 * attention.key_head_dim + 2 * attention.value_head_dim
    calls, taps = stage.calls(attention.layers), 2 * attention.conv_kernel * mixed
    read = (mixed + values) * ACTIVATION_BYTES  # queries, keys and values in, outputs out
    return [
        *_projections(stage, attention, suffix),
        # Prefill: three products with the state (old state read twice, new one made), and within
        # a chunk three as wide as keys and two as wide as values. States of chunks are written
        # and read in 16 bits.
        StateUpdate(
            f"linear_prefill{suffix}",
            calls,
            "prefill_tokens",
            state_bytes,
            flop_per_row=6.0 * matrix + 2.0 * CHUNK_TOKENS * heads * widths + taps,
            bytes_per_row=read + 2 * matrix * ACTIVATION_BYTES / CHUNK_TOKENS,
            conv_weights=attention.conv_kernel * mixed,
        ),
        # Decode: the state decays, is read by the key, corrected, and read by the query.
        StateUpdate(
            f"linear_decode{suffix}",
            calls,
            "decode_sequences",
            state_bytes,
            flop_per_row=7.0 * matrix + taps,
            bytes_per_row=read + 2 * state_bytes,
        ),
    ]


def layer_state_bytes(stage: Stage, attention: LinearAttention) -> float:
    """Bytes of the state of one sequence and layer on one chip.

    One of two chips of Qwen3-Next: 16 heads of 128 x 128 in 32 bits, and three taps in 16 bits
    for 2 x 1024 query and key and 2048 value channels.

    >>> from sim.catalog import open_catalog
    >>> from sim.parallelism import Parallelism
    >>> from sim.precision import Precision
    >>> model = open_catalog().model("qwen3_next_80b_a3b")
    >>> stage = Stage(model, Parallelism(tp=2), Precision(weights="fp8", kv_cache="fp8"))
    >>> (group,) = [group for group in model.attention if group.kind == "linear"]
    >>> layer_state_bytes(stage, group) == 16 * 128 * 128 * 4 + 3 * (2 * 1024 + 2048) * 2
    True
    """
    keys, values = _widths(stage, attention)
    taps = max(0, attention.conv_kernel - 1) * (2 * keys + values)
    return _matrix_elements(stage, attention) * DTYPE_BYTES[STATE_DTYPE] + taps * ACTIVATION_BYTES


def _widths(stage: Stage, attention: LinearAttention) -> tuple[int, int]:
    """Channels of keys and of values on one chip."""
    keys = stage.share(attention.key_heads) * attention.key_head_dim
    return keys, stage.share(attention.value_heads) * attention.value_head_dim


def _matrix_elements(stage: Stage, attention: LinearAttention) -> int:
    """Elements of the state matrices of one sequence and layer on one chip."""
    heads = stage.share(attention.value_heads)
    return heads * attention.key_head_dim * attention.value_head_dim


def _projections(stage: Stage, attention: LinearAttention, suffix: str) -> list[DenseGemm]:
    """One product of all that is projected from the hidden vector, those by a detour, the output.

    The narrow ends of detours are whole on every rank.
    """
    hidden, layers = stage.model.hidden, attention.layers
    keys, values = _widths(stage, attention)
    n = 2 * keys + values + attention.head_scalars * stage.share(attention.value_heads)
    detours: list[DenseGemm] = []
    if attention.output_gate:
        n += attention.output_gate_rank or values
        if attention.output_gate_rank is not None:
            name = f"linear_gate_up{suffix}"
            detours.append(stage.gemm(name, layers, values, attention.output_gate_rank))
    if attention.channel_decay_rank is not None:
        n += attention.channel_decay_rank
        name = f"linear_decay_up{suffix}"
        detours.append(stage.gemm(name, layers, keys, attention.channel_decay_rank))
    return [
        stage.gemm(f"linear_projection{suffix}", layers, n, hidden),
        *detours,
        stage.gemm(f"linear_output{suffix}", layers, hidden, values),
    ]

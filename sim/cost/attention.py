"""The operators of the attention layers of a model, group by group, on one chip."""

from sim.cost.compressed import compressed_attention
from sim.cost.context import context_collectives, index_operators, seen_tokens, sight
from sim.cost.latent import latent_attention
from sim.cost.linear import linear_attention
from sim.cost.operators import DecodeAttention, Operator, PrefillAttention
from sim.cost.stage import Stage
from sim.model import (
    Attention,
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
)
from sim.parallelism import kv_heads_per_chip
from sim.precision import ACTIVATION_BYTES
from sim.units import DTYPE_BYTES


def attention_operators(stage: Stage) -> list[Operator]:
    """List the operators of the attention layers of a model.

    Names of layers with a window end in ``_window``, with an indexer in ``_sparse``, with a
    compressed cache and no indexer in ``_compressed``; a number tells further groups apart.
    """
    found: list[Operator] = []
    endings: dict[str, int] = {}
    for group in stage.model.attention:
        kind = _kind(group)
        endings[kind] = endings.get(kind, 0) + 1
        count = "" if endings[kind] == 1 else f"_{endings[kind]}"
        if isinstance(group, LinearAttention):
            found += linear_attention(stage, group, count)
        elif isinstance(group, LatentAttention):
            found += latent_attention(stage, group, kind + count)
        elif isinstance(group, CompressedAttention):
            found += compressed_attention(stage, group, kind + count)
        else:
            found += _grouped_query_attention(stage, group, kind + count)
    return found


def _kind(group: Attention) -> str:
    """How the names of a group's operators end."""
    if isinstance(group, LinearAttention):
        return "_linear"
    if group.indexer is not None:
        return "_sparse"
    if seen_tokens(group) is not None:
        return "_window"
    return "_compressed" if isinstance(group, CompressedAttention) else ""


def _grouped_query_attention(
    stage: Stage, attention: GroupedQueryAttention, suffix: str
) -> list[Operator]:
    model, precision = stage.model, stage.precision
    heads = stage.share(attention.heads)
    kv_heads = kv_heads_per_chip(attention, stage.parallelism.tp)
    dim, layers = attention.head_dim, attention.layers
    gates = heads if attention.output_gate else 0
    n = (heads + gates + attention.kv_projections * kv_heads) * dim
    seen = sight(model, attention)
    cached = ACTIVATION_BYTES
    if not attention.reuses_kv:
        cached += DTYPE_BYTES[precision.kv_cache]
    found: list[Operator] = [
        stage.gemm("qkv_projection" + suffix, layers, n, model.hidden),
        stage.gemm("output_projection" + suffix, layers, model.hidden, heads * dim),
    ]
    found += index_operators(stage, attention, suffix)
    sent = 0 if attention.reuses_kv else 2 * kv_heads * dim
    prefix_bytes = 2 * kv_heads * dim * DTYPE_BYTES[precision.kv_cache]
    return [
        *found,
        PrefillAttention(
            "attention_prefill" + suffix,
            stage.calls(layers),
            "gqa",
            heads,
            dim,
            dim,
            precision.attention,
            precision.kv_cache,
            2 * dim * (heads * ACTIVATION_BYTES + kv_heads * cached),
            *seen,
            prefix_bytes_per_token=prefix_bytes if seen.whole else 0.0,
        ),
        DecodeAttention(
            "attention_decode" + suffix,
            stage.calls(layers),
            "gqa",
            heads,
            kv_heads,
            dim,
            dim,
            2 * kv_heads * dim,
            precision.kv_cache,
            *seen.shared_by(stage.parallelism.cp),
        ),
        *context_collectives(stage, layers, sent, heads, dim, suffix),
    ]

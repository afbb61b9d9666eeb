"""The operators of attention over compressed entries (DeepSeek-V4) on one chip.

One vector is key and value of all heads, so no rank can cut the cache. Queries see the latest
tokens as they are and entries that stand for several tokens each, all of them or an indexer's
picks. The gated sums that make entries are elementwise and left out.
"""

from dataclasses import replace

from sim.cost.context import Sight, context_collectives, index_operators, sight
from sim.cost.operators import DecodeAttention, DenseGemm, Operator, PrefillAttention
from sim.cost.stage import Stage, share
from sim.model import CompressedAttention
from sim.precision import ACTIVATION_BYTES
from sim.units import DTYPE_BYTES


def compressed_attention(
    stage: Stage, attention: CompressedAttention, suffix: str
) -> list[Operator]:
    """List the operators of the layers of one group."""
    precision, layers, dim = stage.precision, attention.layers, attention.head_dim
    heads, calls = stage.share(attention.heads), stage.calls(attention.layers)
    seen = _sight(stage, attention)
    moved = 2 * heads * dim * ACTIVATION_BYTES
    moved += dim * (ACTIVATION_BYTES + DTYPE_BYTES[precision.kv_cache])
    found: list[Operator] = [*_projections(stage, attention, suffix)]
    found += index_operators(stage, attention, suffix)
    return [
        *found,
        PrefillAttention(
            "attention_prefill" + suffix,
            calls,
            "mla",
            heads,
            dim,
            dim,
            precision.attention,
            precision.kv_cache,
            moved,
            *seen,
            prefix_bytes_per_token=_prefix_bytes(stage, attention, seen),
        ),
        DecodeAttention(
            "attention_decode" + suffix,
            calls,
            "mla",
            heads,
            1,
            dim,
            dim,
            dim,
            precision.kv_cache,
            *seen.shared_by(stage.parallelism.cp),
        ),
        *context_collectives(stage, layers, dim, heads, dim, suffix),
    ]


def _sight(stage: Stage, attention: CompressedAttention) -> Sight:
    """See the window as it is, and one key for every few tokens before it."""
    older = sight(stage.model, attention)
    if attention.compressed_tokens is None:
        return older
    per_key = older.tokens_per_key * attention.compressed_tokens
    entries = older.latest_keys // attention.compressed_tokens
    return Sight(older.windowed, per_key, attention.window_tokens + entries, older.picked)


def _prefix_bytes(stage: Stage, attention: CompressedAttention, seen: Sight) -> float:
    """Bytes that prompts read for each cached token of their prefix: its share of an entry."""
    if not seen.whole:
        return 0.0
    return attention.head_dim * DTYPE_BYTES[stage.precision.kv_cache] / seen.tokens_per_key


def _projections(stage: Stage, attention: CompressedAttention, suffix: str) -> list[DenseGemm]:
    """Products of queries, key and compressor, and the output by way of groups of heads."""
    hidden, layers, dim = stage.model.hidden, attention.layers, attention.head_dim
    rank = attention.output_lora_rank
    compressor = 0 if attention.compressed_tokens is None else attention.compressor_width
    down = attention.q_lora_rank + (1 + compressor) * dim
    heads = stage.share(attention.heads)
    groups = stage.share(attention.output_groups)
    grouped = stage.gemm("output_groups", layers, rank, share(heads, groups) * dim)
    joined = stage.share(attention.output_groups * rank)
    found = [
        stage.gemm("latent_down", layers, down, hidden),
        stage.gemm("query_up", layers, heads * dim, attention.q_lora_rank),
        replace(grouped, batch=groups),
        stage.gemm("output_projection", layers, hidden, joined),
    ]
    return [replace(product, name=product.name + suffix) for product in found]

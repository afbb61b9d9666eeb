"""The operators of multi-head latent attention (MLA) on one chip.

Two ways to the same output. Expanded: the latent vectors of a prompt become keys and values of all
heads, and attention is that of many narrow heads. Absorbed: the expansion goes into the query and
the output, and all heads share the latent as one wide key and value. Engines expand prompts and
absorb in decode; with an indexer they absorb always (vLLM and SGLang with FlashMLA's sparse
kernels), since every query has keys of its own.

For the absorbed products engines keep a 16-bit copy of the expansion (vLLM's ``W_UK_T`` and
``W_UV``) beside the original.
"""

from dataclasses import replace

from sim.cost.context import context_collectives, index_operators, sight
from sim.cost.operators import (
    DecodeAttention,
    DenseGemm,
    Operator,
    PrefillAttention,
    PrefixExpansion,
)
from sim.cost.stage import Stage
from sim.model import LatentAttention
from sim.precision import ACTIVATION_BYTES
from sim.units import DTYPE_BYTES


def latent_attention(stage: Stage, attention: LatentAttention, suffix: str) -> list[Operator]:
    """List the operators of the layers of one group."""
    products: list[Operator] = [*_projections(stage, attention, suffix)]
    products += index_operators(stage, attention, suffix)
    cached = attention.kv_lora_rank + attention.qk_rope_head_dim
    latent_bytes = cached * DTYPE_BYTES[stage.precision.kv_cache]
    products += [
        PrefixExpansion(product, latent_bytes)
        for product in products
        if isinstance(product, DenseGemm) and product.rows == "prefill_tokens"
    ]
    heads = stage.share(attention.heads)
    return [
        *products,
        _prefill(stage, attention, suffix),
        DecodeAttention(
            "attention_decode" + suffix,
            stage.calls(attention.layers),
            "mla",
            heads,
            1,
            cached,
            attention.kv_lora_rank,
            cached,
            stage.precision.kv_cache,
            *sight(stage.model, attention),
        ),
        *context_collectives(
            stage, attention.layers, cached, heads, attention.kv_lora_rank, suffix
        ),
    ]


def _projections(stage: Stage, attention: LatentAttention, suffix: str) -> list[DenseGemm]:
    hidden, layers = stage.model.hidden, attention.layers
    heads = stage.share(attention.heads)
    latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
    query_rank = attention.q_lora_rank or hidden
    down = (attention.q_lora_rank or 0) + latent + rope
    found = [
        stage.gemm("latent_down", layers, down, hidden),
        stage.gemm("query_up", layers, heads * attention.query_head_dim, query_rank),
        *_expansion(stage, attention, heads),
        stage.gemm("output_projection", layers, hidden, heads * attention.v_head_dim),
    ]
    if attention.output_gate:
        found.append(stage.gemm("output_gate", layers, heads * attention.v_head_dim, hidden))
    return [replace(product, name=product.name + suffix) for product in found]


def _expansion(stage: Stage, attention: LatentAttention, heads: int) -> list[DenseGemm]:
    """From the latent to the heads: as a product of prompts, and absorbed."""
    latent, nope, value = attention.kv_lora_rank, attention.qk_nope_head_dim, attention.v_head_dim
    expand = stage.gemm(
        "latent_up", attention.layers, heads * (nope + value), latent, "prefill_tokens"
    )
    absorbed = [
        replace(stage.unquantised(name, attention.layers, n, k), batch=heads)
        for name, n, k in (("absorb_query", latent, nope), ("absorb_value", value, latent))
    ]
    if attention.indexer is not None:  # the original lies idle
        return [replace(product, idle_dtype=expand.dtype) for product in absorbed]
    return [expand, *(replace(product, rows="decode_sequences") for product in absorbed)]


def _prefill(stage: Stage, attention: LatentAttention, suffix: str) -> PrefillAttention:
    heads, latent = stage.share(attention.heads), attention.kv_lora_rank
    if attention.indexer is None:
        score, value = attention.query_head_dim, attention.v_head_dim
        moved = 2.0 * heads * (score + value) * ACTIVATION_BYTES
    else:
        score, value = latent + attention.qk_rope_head_dim, latent
        moved = heads * (score + value) * ACTIVATION_BYTES
        moved += score * (ACTIVATION_BYTES + DTYPE_BYTES[stage.precision.kv_cache])
    return PrefillAttention(
        "attention_prefill" + suffix,
        stage.calls(attention.layers),
        "mla",
        heads,
        score,
        value,
        stage.precision.attention,
        stage.precision.kv_cache,
        moved,
        *sight(stage.model, attention),
    )

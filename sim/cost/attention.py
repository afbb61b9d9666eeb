"""The operators of attention, by kind, on one chip."""

from sim.cost.operators import DecodeAttention, DenseGemm, Operator, PrefillAttention
from sim.cost.work import Rows
from sim.errors import InternalError
from sim.model import GroupedQueryAttention, LatentAttention, Model
from sim.parallelism import Parallelism, kv_elements_per_token_per_layer, kv_heads_per_chip
from sim.precision import ACTIVATION_BYTES, Precision
from sim.units import DTYPE_BYTES


def attention_operators(
    model: Model, parallelism: Parallelism, precision: Precision
) -> list[Operator]:
    """List the operators of the attention layers of a model."""
    found: list[Operator] = []
    for group in model.attention:
        if isinstance(group, LatentAttention):
            found += _latent_attention(model, group, parallelism, precision)
        elif isinstance(group, GroupedQueryAttention):
            found += _grouped_query_attention(model, group, parallelism, precision)
        else:
            raise InternalError(f"no operators for attention of kind {group.kind}")
    return found


def _grouped_query_attention(
    model: Model,
    attention: GroupedQueryAttention,
    parallelism: Parallelism,
    precision: Precision,
) -> list[Operator]:
    heads = attention.heads // parallelism.tp
    kv_heads = kv_heads_per_chip(attention, parallelism.tp)
    dim, layers = attention.head_dim, attention.layers
    weights = precision.dense_weights
    gates = heads if attention.output_gate else 0
    n = (heads + gates + 2 * kv_heads) * dim
    windowed = attention.window_tokens is not None
    suffix = "_window" if windowed else ""
    cached = ACTIVATION_BYTES + DTYPE_BYTES[precision.kv_cache]
    return [
        DenseGemm("qkv_projection" + suffix, layers, "tokens", n, model.hidden, weights),
        DenseGemm(
            "output_projection" + suffix, layers, "tokens", model.hidden, heads * dim, weights
        ),
        PrefillAttention(
            "attention_prefill" + suffix,
            layers,
            "gqa",
            heads,
            dim,
            dim,
            precision.attention,
            precision.kv_cache,
            2 * dim * (heads * ACTIVATION_BYTES + kv_heads * cached),
            windowed=windowed,
        ),
        DecodeAttention(
            "attention_decode" + suffix,
            layers,
            "gqa",
            heads,
            kv_heads,
            dim,
            dim,
            kv_elements_per_token_per_layer(attention, parallelism.tp),
            precision.kv_cache,
            windowed=windowed,
        ),
    ]


def _latent_attention(
    model: Model, attention: LatentAttention, parallelism: Parallelism, precision: Precision
) -> list[Operator]:
    """MLA: prompts expand the latent into heads; decode absorbs the expansion into the query.

    Engines keep a 16-bit copy of the expansion for the absorbed products (vLLM's ``W_UK_T`` and
    ``W_UV``), so those GEMMs count as stored weights of their own.
    """
    heads = attention.heads // parallelism.tp
    latent = attention.kv_lora_rank
    rope = attention.qk_rope_head_dim
    query_rank = attention.q_lora_rank or model.hidden
    weights = precision.dense_weights

    def gemm(name: str, rows: Rows, n: int, k: int) -> DenseGemm:
        return DenseGemm(name, attention.layers, rows, n, k, weights)

    return [
        gemm("latent_down", "tokens", (attention.q_lora_rank or 0) + latent + rope, model.hidden),
        gemm("query_up", "tokens", heads * attention.query_head_dim, query_rank),
        gemm(
            "latent_up",
            "prefill_tokens",
            heads * (attention.qk_nope_head_dim + attention.v_head_dim),
            latent,
        ),
        DenseGemm(
            "absorb_query",
            attention.layers,
            "decode_sequences",
            n=latent,
            k=attention.qk_nope_head_dim,
            dtype="bf16",
            batch=heads,
        ),
        DenseGemm(
            "absorb_value",
            attention.layers,
            "decode_sequences",
            n=attention.v_head_dim,
            k=latent,
            dtype="bf16",
            batch=heads,
        ),
        gemm("output_projection", "tokens", model.hidden, heads * attention.v_head_dim),
        PrefillAttention(
            "attention_prefill",
            attention.layers,
            "mla",
            heads,
            attention.query_head_dim,
            attention.v_head_dim,
            precision.attention,
            precision.kv_cache,
            2 * heads * (attention.query_head_dim + attention.v_head_dim) * ACTIVATION_BYTES,
        ),
        DecodeAttention(
            "attention_decode",
            attention.layers,
            "mla",
            heads,
            1,
            latent + rope,
            latent,
            attention.kv_elements_per_token(),
            precision.kv_cache,
        ),
    ]

"""How much work one engine step is: FLOP and bytes per operator on one chip, no hardware.

The cost of a step depends on a handful of sums over its batch (`StepShape`), not on the
requests one by one. Each operator class below turns those sums into FLOP and bytes of memory
traffic on one chip; every argument may be a number or a NumPy array, so that the timer can
evaluate thousands of batch sizes in one call.

Conventions: one multiply-add is 2 FLOP; a weight is read once per step; activations cross
memory once per operator in 16 bits.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.model import GroupedQueryAttention, LatentAttention, MixtureOfExperts, Model
from sim.parallelism import Parallelism, kv_elements_per_token_per_layer, kv_heads_per_chip
from sim.schema import StrictModel
from sim.units import DTYPE_BYTES, Dtype

Number = float | npt.NDArray[np.float64]
"""A count that may be one number or an array of alternatives."""

Rows = Literal["tokens", "sequences", "decode_sequences", "prefill_tokens"]
"""The sum of the batch that sets the size of an operator."""

ACTIVATION_BYTES = DTYPE_BYTES["bf16"]
"""Activations move between operators in 16 bits whatever the weights are."""

_CONVERTED: frozenset[Dtype] = frozenset({"fp8", "int8", "nvfp4"})
"""Weight formats whose products take activations in the same format; others take 16 bits."""

_EXPERTS_ONLY: frozenset[Dtype] = frozenset({"mxfp4"})
"""Formats that quantise the routed experts alone; all else keeps 16 bits (gpt-oss model card)."""


def input_dtype(weights: Dtype) -> Dtype:
    """Format in which a matrix product reads its activations, by the format of its weights.

    A kernel may read them in another one (MXFP4 experts with FP8 activations): then its
    calibration says so, and `DenseGemm.work` and `ExpertGemm.work` are told.

    >>> input_dtype("fp8"), input_dtype("int4")
    ('fp8', 'bf16')
    """
    return weights if weights in _CONVERTED else "bf16"


class Precision(StrictModel):
    """Number formats of a served model."""

    weights: Dtype
    """Linear layers and experts; embeddings, router and LM head stay in 16 bits. MXFP4 is the
    format of the routed experts alone."""
    kv_cache: Dtype
    """Keys and values in memory."""
    attention: Dtype = "bf16"
    """Arithmetic of prefill attention; decode attention is bound by memory."""

    @property
    def dense_weights(self) -> Dtype:
        """Format of the linear layers outside the routed experts.

        >>> Precision(weights="mxfp4", kv_cache="bf16").dense_weights
        'bf16'
        """
        return "bf16" if self.weights in _EXPERTS_ONLY else self.weights


class StepShape(NamedTuple):
    """The sums over the batch of one step that its cost depends on.

    All fields count over the whole replica; each may be a number or an array.
    """

    decode_sequences: Number = 0
    """Sequences that produce one more token each."""
    decode_context_tokens: Number = 0
    """Keys those sequences attend to, their new token included, summed."""
    decode_window_tokens: Number = 0
    """The same with each sequence capped at the sliding window."""
    prefill_sequences: Number = 0
    """Prompts, or chunks of prompts, in the step."""
    prefill_tokens: Number = 0
    """Prompt tokens computed in the step."""
    prefill_pairs: Number = 0
    """Query-key pairs of those tokens under the causal mask."""
    prefill_window_pairs: Number = 0
    """The same with each query capped at the sliding window."""

    @property
    def tokens(self) -> Number:
        """Tokens that go through the linear layers."""
        return self.decode_sequences + self.prefill_tokens

    @property
    def sequences(self) -> Number:
        """Sequences for which logits are computed."""
        return self.decode_sequences + self.prefill_sequences

    def rows(self, kind: Rows) -> Number:
        """Give the sum of the batch that sets the size of an operator.

        >>> StepShape(decode_sequences=3, prefill_tokens=100).rows("tokens")
        103
        """
        counts: dict[Rows, Number] = {
            "tokens": self.tokens,
            "sequences": self.sequences,
            "decode_sequences": self.decode_sequences,
            "prefill_tokens": self.prefill_tokens,
        }
        return counts[kind]


class Work(NamedTuple):
    """Work of one call of an operator on one chip."""

    flop: Number
    """Floating-point operations."""
    bytes: Number
    """Memory traffic; for a collective, the size of the message."""


@dataclass(frozen=True)
class DenseGemm:
    """``y[rows, n] = x[rows, k] @ w[k, n]``, once or as a batch of equal products."""

    name: str
    calls: int
    """Calls per step: usually one per layer."""
    rows: Rows
    """Which sum of the batch is the number of rows."""
    n: int
    k: int
    dtype: Dtype
    batch: int = 1
    """Independent products in one call (heads of an absorbed projection)."""

    @property
    def weight_bytes(self) -> float:
        """Weights of one call on one chip."""
        return self.batch * self.n * self.k * DTYPE_BYTES[self.dtype]

    def work(self, shape: StepShape, inputs: Dtype | None = None) -> Work:
        """FLOP and bytes of one call; nothing at all when there are no rows.

        Parameters
        ----------
        shape : StepShape
        inputs : str, optional
            Format in which the kernel reads ``x``; that of `input_dtype` unless given.

        One token through the output projection of Llama 3.1 70B on one of eight chips, in FP8:
        2 * 8192 * 1024 = 16.8 MFLOP; 8192 * 1024 of weights, 1024 in and 8192 * 2 out make 8.4 MB.

        >>> gemm = DenseGemm("output_projection", 80, "tokens", n=8192, k=1024, dtype="fp8")
        >>> flop, moved = gemm.work(StepShape(decode_sequences=1))
        >>> int(flop), int(moved)
        (16777216, 8406016)
        """
        rows = shape.rows(self.rows)
        read = DTYPE_BYTES[inputs or input_dtype(self.dtype)]
        moved = self.batch * rows * (self.k * read + self.n * ACTIVATION_BYTES)
        return Work(
            flop=2 * self.batch * rows * self.n * self.k,
            bytes=self.weight_bytes * np.sign(rows) + moved,
        )


@dataclass(frozen=True)
class ExpertGemm:
    """The routed experts of one layer: gate, up and down projections as grouped GEMMs."""

    name: str
    calls: int
    hidden: int
    intermediate: int
    """Inner width on this chip."""
    experts: int
    """Routed experts of the layer, over all chips."""
    local_experts: int
    """Experts that this chip holds."""
    experts_per_token: int
    dtype: Dtype

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    @property
    def expert_bytes(self) -> float:
        """Weights of one expert on this chip."""
        return 3 * self.hidden * self.intermediate * DTYPE_BYTES[self.dtype]

    @property
    def weight_bytes(self) -> float:
        """Weights of one layer's experts on this chip."""
        return self.local_experts * self.expert_bytes

    def touched(self, tokens: Number) -> Number:
        """Local experts that at least one of the tokens visits, expected.

        With uniform independent routing an expert is missed by all T tokens with probability
        ``(1 - k/E)**T``. DeepSeek-V3 (256 experts, top 8) touches 57.4 of them with 8 tokens,
        ``256 * (1 - (248/256)**8)``; a router that dealt like cards would touch 64.

        >>> layer = ExpertGemm("experts", 58, 7168, 2048, 256, 256, 8, "fp8")
        >>> round(float(layer.touched(8)), 1)
        57.4
        """
        missed = (1 - self.experts_per_token / self.experts) ** np.asarray(tokens, dtype=float)
        return self.local_experts * (1 - missed)

    def visits(self, tokens: Number) -> Number:
        """Token-expert pairs that this chip computes, expected."""
        return tokens * (self.experts_per_token * self.local_experts / self.experts)

    def work(self, shape: StepShape, inputs: Dtype | None = None) -> Work:
        """FLOP and bytes of one layer's routed experts on this chip.

        Parameters
        ----------
        shape : StepShape
        inputs : str, optional
            Format in which the kernels read activations; that of `input_dtype` unless given.

        A token of DeepSeek-V3 visits 8 experts of three 7168 x 2048 matrices: 352 MB of weights
        in FP8, and beside them each visit moves 7168 * (1 + 2) + 2048 * (2 + 2 + 1) bytes.

        >>> layer = ExpertGemm("experts", 58, 7168, 2048, 256, 256, 8, "fp8")
        >>> flop, moved = layer.work(StepShape(decode_sequences=1))
        >>> flop == 8 * 6 * 7168 * 2048
        True
        >>> round(float(moved)) == 8 * (3 * 7168 * 2048 + 7168 * 3 + 2048 * 5)
        True
        """
        visits = self.visits(shape.tokens)
        read = DTYPE_BYTES[inputs or input_dtype(self.dtype)]
        per_visit = self.hidden * (read + ACTIVATION_BYTES)
        per_visit += self.intermediate * (2 * ACTIVATION_BYTES + read)
        moved = visits * per_visit
        return Work(
            flop=6 * visits * self.hidden * self.intermediate,
            bytes=self.touched(shape.tokens) * self.expert_bytes + moved,
        )


@dataclass(frozen=True)
class DecodeAttention:
    """Attention of one new token per sequence over its KV cache."""

    name: str
    calls: int
    kind: Literal["gqa", "mla"]
    heads: int
    """Query heads on this chip."""
    kv_heads: int
    """KV heads on this chip."""
    score_dim: int
    """Width of a query-key product."""
    value_dim: int
    """Width of a value."""
    kv_elements: int
    """Cached elements per token and layer on this chip."""
    kv_dtype: Dtype
    windowed: bool = False

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "decode_sequences"

    @property
    def bytes_per_context_token(self) -> float:
        """KV bytes read for each key."""
        return self.kv_elements * DTYPE_BYTES[self.kv_dtype]

    @property
    def flop_per_context_token(self) -> float:
        """FLOP for each key: scores and weighted values of all heads on this chip."""
        return 2.0 * self.heads * (self.score_dim + self.value_dim)

    def context_tokens(self, shape: StepShape) -> Number:
        """Keys that this layer attends to, summed over the sequences."""
        return shape.decode_window_tokens if self.windowed else shape.decode_context_tokens

    def work(self, shape: StepShape) -> Work:
        """FLOP and bytes of one layer: both proportional to the keys attended to.

        One of eight chips of Llama 3.1 70B keeps one KV head of 128: a key and a value in FP8
        are 256 bytes, and 8 query heads do 2 * 8 * (128 + 128) FLOP on them.

        >>> op = DecodeAttention("attention_decode", 80, "gqa", 8, 1, 128, 128, 256, "fp8")
        >>> op.work(StepShape(decode_sequences=1, decode_context_tokens=1024))
        Work(flop=4194304.0, bytes=262144.0)
        """
        context = self.context_tokens(shape)
        return Work(context * self.flop_per_context_token, context * self.bytes_per_context_token)


@dataclass(frozen=True)
class PrefillAttention:
    """Causal attention of prompt tokens over themselves and their cached prefix."""

    name: str
    calls: int
    kind: Literal["gqa", "mla"]
    heads: int
    score_dim: int
    value_dim: int
    dtype: Dtype
    kv_dtype: Dtype
    bytes_per_token: float
    """Queries, keys, values and outputs of a token, each moved once, and the cache written."""
    windowed: bool = False

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "prefill_tokens"

    def pairs(self, shape: StepShape) -> Number:
        """Query-key pairs of this layer, summed over the prompts."""
        return shape.prefill_window_pairs if self.windowed else shape.prefill_pairs

    def work(self, shape: StepShape) -> Work:
        """FLOP of the pairs, and the bytes of everything that moves once per token.

        >>> op = PrefillAttention("attention", 80, "gqa", 8, 128, 128, "bf16", "fp8", 4864.0)
        >>> op.work(StepShape(prefill_tokens=2, prefill_pairs=3)).flop == 3 * 2 * 8 * 256
        True
        """
        flop = self.pairs(shape) * 2 * self.heads * (self.score_dim + self.value_dim)
        return Work(flop, shape.prefill_tokens * self.bytes_per_token)


@dataclass(frozen=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activation: traffic with next to no arithmetic."""

    name: str
    calls: int
    elements_per_token: int
    """Elements read or written per token and layer on this chip."""

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def work(self, shape: StepShape) -> Work:
        """Bytes of one layer; one FLOP per element moved."""
        elements = shape.tokens * self.elements_per_token
        return Work(elements, elements * ACTIVATION_BYTES)


@dataclass(frozen=True)
class AllReduce:
    """Sum of the partial results of all tensor-parallel ranks, given to all of them."""

    name: str
    calls: int
    ranks: int
    bytes_per_token: float
    """Size of the buffer of a rank per token (the convention of nccl-tests)."""

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def work(self, shape: StepShape) -> Work:
        """No FLOP; ``bytes`` is the size of the buffer."""
        return Work(0.0, shape.tokens * self.bytes_per_token)


@dataclass(frozen=True)
class ExpertExchange:
    """One half of the all-to-all of expert parallelism: tokens to experts, or results back.

    Each rank holds ``1/ranks`` of the tokens of the step.
    """

    name: str
    calls: int
    half: Literal["dispatch", "combine"]
    ranks: int
    hidden: int
    experts_per_token: int
    element_bytes: float
    """Bytes per element on the wire."""

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def picked_bytes(self, tokens: Number) -> Number:
        """Bytes that a rank would send if every pick of an expert were a copy of its own.

        The size by which exchange kernels are measured: tokens of a rank times picks per token
        times the hidden vector. DeepSeek-V3, 128 tokens on each of 8 ranks, FP8:

        >>> op = ExpertExchange("expert_dispatch", 58, "dispatch", 8, 7168, 8, 1.0)
        >>> op.picked_bytes(8 * 128) == 128 * 8 * 7168
        True
        """
        return tokens / self.ranks * (self.experts_per_token * self.hidden * self.element_bytes)

    def sent_bytes(self, tokens: Number) -> Number:
        """Bytes that a rank sends when a token travels once to each rank that has its experts.

        The picks of a token fall on ``ranks * (1 - (1 - 1/ranks)**k)`` distinct ranks when they
        are random: 8 picks over 2 ranks meet 1.992 of them, its own included.

        >>> op = ExpertExchange("expert_dispatch", 58, "dispatch", 2, 1000, 8, 1.0)
        >>> op.sent_bytes(2)
        1992.1875
        """
        visited = self.ranks * (1 - (1 - 1 / self.ranks) ** self.experts_per_token)
        return tokens / self.ranks * (visited * self.hidden * self.element_bytes)

    def work(self, shape: StepShape) -> Work:
        """No FLOP; ``bytes`` is what one rank sends."""
        return Work(0.0, self.sent_bytes(shape.tokens))


Operator = (
    DenseGemm
    | ExpertGemm
    | DecodeAttention
    | PrefillAttention
    | Elementwise
    | AllReduce
    | ExpertExchange
)


def prefill_pairs(done_tokens: int, chunk_tokens: int, window_tokens: int | None = None) -> int:
    """Query-key pairs of a chunk of a prompt, under the causal mask and a sliding window.

    Parameters
    ----------
    done_tokens : int
        Prompt tokens already in the cache.
    chunk_tokens : int
        Prompt tokens computed now.
    window_tokens : int, optional
        Keys that a query sees at most, itself included.

    >>> prefill_pairs(0, 4)  # 1 + 2 + 3 + 4
    10
    >>> prefill_pairs(4, 2)  # 5 + 6
    11
    >>> prefill_pairs(0, 4, window_tokens=2)  # 1 + 2 + 2 + 2
    7
    """
    total = chunk_tokens * done_tokens + chunk_tokens * (chunk_tokens + 1) // 2
    if window_tokens is None:
        return total
    clipped = min(max(0, done_tokens + chunk_tokens - window_tokens), chunk_tokens)
    excess = done_tokens + chunk_tokens - window_tokens
    return total - (clipped * excess - clipped * (clipped - 1) // 2)


def operators(model: Model, parallelism: Parallelism, precision: Precision) -> tuple[Operator, ...]:
    """List the operators of one step of a model on one chip.

    The weights of the listed GEMMs are exactly what the chip stores for the layers and the LM
    head, which a test holds against `Model.total_parameters`.

    Llama 3.1 70B over eight chips: 8 of 64 query heads and 1 of 8 KV heads of 128 each, an
    eighth of the inner width of 28672 twice (gate and up), an eighth of the vocabulary.

    >>> from sim.catalog import open_catalog
    >>> llama = open_catalog().model("llama_3_1_70b")
    >>> listed = operators(llama, Parallelism(tp=8), Precision(weights="fp8", kv_cache="fp8"))
    >>> for op in listed:
    ...     if isinstance(op, DenseGemm):
    ...         print(op.calls, op.name, op.k, "x", op.n, op.dtype)
    80 qkv_projection 8192 x 1280 fp8
    80 output_projection 1024 x 8192 fp8
    80 mlp_gate_up 8192 x 7168 fp8
    80 mlp_down 3584 x 8192 fp8
    1 lm_head 8192 x 16032 bf16
    """
    attention = model.attention
    if isinstance(attention, LatentAttention):
        layers = _latent_attention(model, attention, parallelism, precision)
    else:
        layers = _grouped_query_attention(model, attention, parallelism, precision)
    layers += _mlp(model, parallelism, precision)
    if model.moe is not None:
        layers += _experts(model, parallelism, precision)
    layers += _glue(model, parallelism)
    head = DenseGemm(
        "lm_head",
        1,
        "sequences",
        n=_share(model.vocabulary, parallelism.tp),
        k=model.hidden,
        dtype="bf16",
    )
    return (*layers, head)


def weight_bytes_per_chip(model: Model, parallelism: Parallelism, precision: Precision) -> float:
    """Bytes of weights that each chip of a replica stores, input embedding included.

    Llama 3.1 70B in FP8 over 8 chips: an eighth of 80 layers of 855,638,016 weights (attention
    8192 * 10240 + 8192 * 8192, MLP 3 * 8192 * 28672) and of two 16-bit vocabulary matrices.

    >>> from sim.catalog import open_catalog
    >>> fp8 = Precision(weights="fp8", kv_cache="fp8")
    >>> model = open_catalog().model("llama_3_1_70b")
    >>> stored = weight_bytes_per_chip(model, Parallelism(tp=8), fp8)
    >>> stored == 80 * 855_638_016 / 8 + 2 * 2 * 128_256 * 8192 / 8
    True
    """
    stored = sum(
        op.calls * op.weight_bytes
        for op in operators(model, parallelism, precision)
        if isinstance(op, DenseGemm | ExpertGemm)
    )
    if not model.tied_embeddings:
        vocabulary = _share(model.vocabulary, parallelism.tp)
        stored += vocabulary * model.hidden * DTYPE_BYTES["bf16"]
    return stored


def _share(size: int, ranks: int) -> int:
    """Give the largest rank's part of a dimension that is cut over ranks."""
    return -(-size // ranks)


def _grouped_query_attention(
    model: Model,
    attention: GroupedQueryAttention,
    parallelism: Parallelism,
    precision: Precision,
) -> list[Operator]:
    heads = attention.heads // parallelism.tp
    kv_heads = kv_heads_per_chip(model, parallelism.tp)
    dim = attention.head_dim
    found: list[Operator] = [
        DenseGemm(
            "qkv_projection",
            model.layers,
            "tokens",
            n=(heads + 2 * kv_heads) * dim,
            k=model.hidden,
            dtype=precision.dense_weights,
        ),
        DenseGemm(
            "output_projection",
            model.layers,
            "tokens",
            n=model.hidden,
            k=heads * dim,
            dtype=precision.dense_weights,
        ),
    ]
    cached = ACTIVATION_BYTES + DTYPE_BYTES[precision.kv_cache]
    token_bytes = 2 * dim * (heads * ACTIVATION_BYTES + kv_heads * cached)
    for windowed, layers in _attention_layers(model, attention):
        suffix = "_window" if windowed else ""
        found.append(
            PrefillAttention(
                "attention_prefill" + suffix,
                layers,
                "gqa",
                heads,
                dim,
                dim,
                precision.attention,
                precision.kv_cache,
                token_bytes,
                windowed=windowed,
            )
        )
        found.append(
            DecodeAttention(
                "attention_decode" + suffix,
                layers,
                "gqa",
                heads,
                kv_heads,
                dim,
                dim,
                kv_elements_per_token_per_layer(model, parallelism.tp),
                precision.kv_cache,
                windowed=windowed,
            )
        )
    return found


def _attention_layers(model: Model, attention: GroupedQueryAttention) -> list[tuple[bool, int]]:
    """Say how many layers slide a window and how many see everything."""
    if attention.window_tokens is None:
        return [(False, model.layers)]
    full = attention.full_layers or 0
    return [(windowed, n) for windowed, n in ((False, full), (True, model.layers - full)) if n]


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
    weights = precision.dense_weights

    def gemm(name: str, rows: Rows, n: int, k: int) -> DenseGemm:
        return DenseGemm(name, model.layers, rows, n, k, weights)

    return [
        gemm("latent_down", "tokens", attention.q_lora_rank + latent + rope, model.hidden),
        gemm("query_up", "tokens", heads * attention.query_head_dim, attention.q_lora_rank),
        gemm(
            "latent_up",
            "prefill_tokens",
            heads * (attention.qk_nope_head_dim + attention.v_head_dim),
            latent,
        ),
        DenseGemm(
            "absorb_query",
            model.layers,
            "decode_sequences",
            n=latent,
            k=attention.qk_nope_head_dim,
            dtype="bf16",
            batch=heads,
        ),
        DenseGemm(
            "absorb_value",
            model.layers,
            "decode_sequences",
            n=attention.v_head_dim,
            k=latent,
            dtype="bf16",
            batch=heads,
        ),
        gemm("output_projection", "tokens", model.hidden, heads * attention.v_head_dim),
        PrefillAttention(
            "attention_prefill",
            model.layers,
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
            model.layers,
            "mla",
            heads,
            1,
            latent + rope,
            latent,
            attention.kv_elements_per_token(),
            precision.kv_cache,
        ),
    ]


def _mlp(model: Model, parallelism: Parallelism, precision: Precision) -> list[Operator]:
    if not model.dense_layers:
        return []
    width = _share(model.dense_intermediate, parallelism.tp)
    return _gated_mlp("mlp", model.dense_layers, model.hidden, width, precision)


def _gated_mlp(
    name: str, layers: int, hidden: int, width: int, precision: Precision
) -> list[Operator]:
    up = DenseGemm(f"{name}_gate_up", layers, "tokens", 2 * width, hidden, precision.dense_weights)
    down = DenseGemm(f"{name}_down", layers, "tokens", hidden, width, precision.dense_weights)
    return [up, down]


def _experts(model: Model, parallelism: Parallelism, precision: Precision) -> list[Operator]:
    moe = model.moe
    if moe is None:
        return []
    cut = parallelism.tp // parallelism.ep
    found: list[Operator] = [
        DenseGemm("router", model.moe_layers, "tokens", moe.experts, model.hidden, "bf16"),
        ExpertGemm(
            "experts",
            model.moe_layers,
            model.hidden,
            _share(moe.intermediate, cut),
            moe.experts,
            moe.experts // parallelism.ep,
            moe.experts_per_token,
            precision.weights,
        ),
    ]
    if moe.shared_experts:
        width = _share(moe.shared_width, parallelism.tp)
        found += _gated_mlp("shared_expert", model.moe_layers, model.hidden, width, precision)
    if parallelism.exchanges_tokens:
        found += _expert_exchange(moe, model, parallelism.ep, precision)
    return found


def _expert_exchange(
    moe: MixtureOfExperts, model: Model, ranks: int, precision: Precision
) -> list[Operator]:
    """Dispatch tokens to the ranks of their experts in the weights' format, combine in 16 bits.

    Below 8 bits the scales of many small blocks would have to travel too; DeepEP sends 8 bits.
    """
    dispatched = max(DTYPE_BYTES[input_dtype(precision.weights)], DTYPE_BYTES["fp8"])

    def half(name: Literal["dispatch", "combine"], element_bytes: float) -> ExpertExchange:
        return ExpertExchange(
            f"expert_{name}",
            model.moe_layers,
            name,
            ranks,
            model.hidden,
            moe.experts_per_token,
            element_bytes,
        )

    return [half("dispatch", dispatched), half("combine", ACTIVATION_BYTES)]


def _glue(model: Model, parallelism: Parallelism) -> list[Operator]:
    """Elementwise traffic of the layers and the all-reduces of tensor parallelism.

    Two fused residual-add-norms read and write two hidden vectors each; the gated activation
    reads two inner vectors and writes one; the rotary embedding reads and writes queries. The
    activation of routed experts is inside their measured kernels and not counted here.

    With experts dealt to the ranks, the all-reduce after attention becomes its two halves: a
    reduce-scatter before the exchange and an all-gather after it, so the one after the experts
    goes.
    """
    tp = parallelism.tp
    attention = model.attention
    query = attention.heads // tp * _query_width(model)
    inner = model.dense_intermediate * model.dense_layers
    if model.moe is not None:
        inner += model.moe.shared_width * model.moe_layers
    per_layer = 8 * model.hidden + 2 * query + 3 * inner // (model.layers * tp)
    found: list[Operator] = [Elementwise("norms_and_activations", model.layers, per_layer)]
    if tp > 1:
        reduces = 2 * model.layers - (model.moe_layers if parallelism.exchanges_tokens else 0)
        size = model.hidden * ACTIVATION_BYTES
        found.append(AllReduce("tensor_all_reduce", reduces, tp, size))
    return found


def _query_width(model: Model) -> int:
    attention = model.attention
    if isinstance(attention, LatentAttention):
        return attention.query_head_dim
    return attention.head_dim

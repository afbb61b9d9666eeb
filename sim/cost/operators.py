"""The operators of a step: how much arithmetic and traffic each does on one chip.

Conventions: one multiply-add is 2 FLOP; a weight is read once per step; activations cross
memory once per operator in 16 bits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.cost.work import Number, Rows, StepShape, Work
from sim.precision import ACTIVATION_BYTES, input_dtype
from sim.units import DTYPE_BYTES, Dtype


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

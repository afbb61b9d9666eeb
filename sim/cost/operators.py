"""The operators of a step: how much arithmetic and traffic each does on one chip.

Conventions: one multiply-add is 2 FLOP; a weight is read once per step; activations cross
memory once per operator in 16 bits. ``calls`` counts calls per step and pipeline stage: usually
one per layer of the stage, a fraction where stages have unlike layers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sim.cost.work import Number, Rows, Scope, StepShape, Work
from sim.parallelism import ChipGroup
from sim.precision import ACTIVATION_BYTES, input_dtype
from sim.routing import BALANCED, Routing
from sim.units import DTYPE_BYTES, Dtype

CollectiveOperation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]

ExchangeMode = Literal["auto", "low_latency", "high_throughput"]
"""Kernels of an expert exchange: one of DeepEP's two modes, or whichever is faster."""


@dataclass(frozen=True)
class DenseGemm:
    """``y[rows, n] = x[rows, k] @ w[k, n]``, once or as a batch of equal products."""

    name: str
    calls: float
    rows: Rows
    """Which sum of the batch is the number of rows."""
    n: int
    k: int
    dtype: Dtype
    batch: int = 1
    """Independent products in one call (heads of an absorbed projection)."""
    activation_dtype: Dtype | None = None
    """Format in which ``x`` is read, if the precision names one."""
    row_ranks: int = 1
    """Chips that share the rows: each takes its part of them and all of the weights."""
    rows_per_token: int = 1
    """Rows that each token of the batch stands for: the patches that an image token is made of."""
    idle_dtype: Dtype | None = None
    """Format of a second copy of the weights that is stored and never read."""
    scope: Scope = "rank"

    @property
    def weight_bytes(self) -> float:
        """Weights of one call that one chip stores."""
        copies = DTYPE_BYTES[self.dtype]
        if self.idle_dtype is not None:
            copies += DTYPE_BYTES[self.idle_dtype]
        return self.batch * self.n * self.k * copies

    def local_rows(self, shape: StepShape) -> Number:
        """Rows of one chip: all of them, or the largest part."""
        rows = shape.rows(self.rows) * self.rows_per_token
        return rows if self.row_ranks == 1 else np.ceil(np.asarray(rows) / self.row_ranks)

    def streamed_bytes(self, shape: StepShape) -> Number:
        """Weights that one call reads: all of them as soon as there is a row."""
        stored = self.batch * self.n * self.k * DTYPE_BYTES[self.dtype]
        return stored * np.sign(shape.rows(self.rows))

    def work(self, shape: StepShape, inputs: Dtype | None = None) -> Work:
        """FLOP and bytes of one call; nothing at all when there are no rows.

        Parameters
        ----------
        shape : StepShape
        inputs : str, optional
            Format in which the kernel reads ``x``; `activation_dtype` or else that of
            `input_dtype` unless given.

        One token through the output projection of Llama 3.1 70B on one of eight chips, in FP8:
        2 * 8192 * 1024 = 16.8 MFLOP; 8192 * 1024 of weights, 1024 in and 8192 * 2 out make 8.4 MB.

        >>> gemm = DenseGemm("output_projection", 80, "tokens", n=8192, k=1024, dtype="fp8")
        >>> flop, moved = gemm.work(StepShape(decode_sequences=1))
        >>> int(flop), int(moved)
        (16777216, 8406016)
        """
        rows = self.local_rows(shape)
        read = DTYPE_BYTES[inputs or self.activation_dtype or input_dtype(self.dtype)]
        moved = self.batch * rows * (self.k * read + self.n * ACTIVATION_BYTES)
        return Work(
            flop=2 * self.batch * rows * self.n * self.k,
            bytes=self.streamed_bytes(shape) + moved,
        )


@dataclass(frozen=True)
class ExpertGemm:
    """The routed experts of one layer on the slowest chip, or on the mean one, as grouped GEMMs.

    Gate (where there is one), up and down projections.
    """

    name: str
    calls: float
    hidden: int
    intermediate: int
    """Inner width on this chip."""
    experts: int
    """Routed experts of the layer, over all chips, each counted once."""
    local_experts: int
    """Experts that this chip holds, replicas included."""
    experts_per_token: int
    dtype: Dtype
    matrices: int = 3
    """Projections of one expert: 2 where there is no gate."""
    routing: Routing = BALANCED
    activation_dtype: Dtype | None = None
    """Format in which activations are read, if the precision names one."""
    scope: Scope = "group"
    mean_rank: bool = False
    """Whether it is the share of the mean rank, which energy counts, and not that of the slowest
    one, which the others wait for."""

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    @property
    def ranks(self) -> int:
        """Expert-parallel ranks."""
        return (self.experts + self.routing.redundant_experts) // self.local_experts

    @property
    def expert_bytes(self) -> float:
        """Weights of one expert on this chip."""
        return self.matrices * self.hidden * self.intermediate * DTYPE_BYTES[self.dtype]

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
        picks = self.experts_per_token
        if self.mean_rank:
            return self.routing.touched(tokens, self.experts, picks, 1) / self.ranks
        return self.routing.touched(tokens, self.experts, picks, self.ranks)

    def visits(self, tokens: Number) -> Number:
        """Token-expert pairs that this chip computes, expected."""
        if self.mean_rank:
            return np.multiply(tokens, self.experts_per_token / self.ranks)
        return self.routing.visits(tokens, self.experts, self.experts_per_token, self.ranks)

    def visited(self, shape: StepShape) -> Number:
        """Token-expert pairs of a step: `visits`, and more of them where a step says so."""
        visits = self.visits(shape.tokens)
        if shape.expert_load == 1.0:
            return visits
        most = shape.tokens * min(self.experts_per_token, self.local_experts)
        return np.minimum(np.multiply(visits, shape.expert_load), most)

    def streamed_bytes(self, shape: StepShape) -> Number:
        """Weights that one call reads: those of the touched experts."""
        return self.touched(shape.tokens) * self.expert_bytes

    def work(self, shape: StepShape, inputs: Dtype | None = None) -> Work:
        """FLOP and bytes of one layer's routed experts on this chip.

        Parameters
        ----------
        shape : StepShape
        inputs : str, optional
            Format in which the kernels read activations; `activation_dtype` or else that of
            `input_dtype` unless given.

        A token of DeepSeek-V3 visits 8 experts of three 7168 x 2048 matrices: 352 MB of weights
        in FP8, and beside them each visit moves 7168 * (1 + 2) + 2048 * (2 + 2 + 1) bytes.

        >>> layer = ExpertGemm("experts", 58, 7168, 2048, 256, 256, 8, "fp8")
        >>> flop, moved = layer.work(StepShape(decode_sequences=1))
        >>> flop == 8 * 6 * 7168 * 2048
        True
        >>> round(float(moved)) == 8 * (3 * 7168 * 2048 + 7168 * 3 + 2048 * 5)
        True
        """
        visits = self.visited(shape)
        read = DTYPE_BYTES[inputs or self.activation_dtype or input_dtype(self.dtype)]
        per_visit = self.hidden * (read + ACTIVATION_BYTES)
        per_visit += self.intermediate * ((self.matrices - 1) * ACTIVATION_BYTES + read)
        return Work(
            flop=2 * self.matrices * visits * self.hidden * self.intermediate,
            bytes=self.streamed_bytes(shape) + visits * per_visit,
        )


@dataclass(frozen=True)
class DecodeAttention:
    """Attention of one new token per sequence over its KV cache."""

    name: str
    calls: float
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
    """Whether it sees the keys of a sliding window, or the best ones of a sparse indexer."""
    tokens_per_key: float = 1.0
    """Tokens of context that share one key; infinite where no older key is seen at all."""
    latest_keys: int = 0
    """Keys that each query sees besides: a bound, met once the context is as long."""
    picked: bool = False
    """Whether every query has keys of its own, an indexer's picks."""
    scope: Scope = "rank"

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
        seen = shape.decode_window_tokens if self.windowed else shape.decode_context_tokens
        return seen / self.tokens_per_key + shape.decode_sequences * self.latest_keys

    def work(self, shape: StepShape) -> Work:
        """FLOP and bytes of one layer: both proportional to the keys attended to.

        Where several tokens of a sequence are verified at once, its keys are read once for all of
        them, unless each picks its own. The keys of the drafts themselves are left out.

        One of eight chips of Llama 3.1 70B keeps one KV head of 128: a key and a value in FP8
        are 256 bytes, and 8 query heads do 2 * 8 * (128 + 128) FLOP on them.

        >>> op = DecodeAttention("attention_decode", 80, "gqa", 8, 1, 128, 128, 256, "fp8")
        >>> op.work(StepShape(decode_sequences=1, decode_context_tokens=1024))
        Work(flop=4194304.0, bytes=262144.0)
        >>> op.work(StepShape(decode_sequences=1, decode_context_tokens=1024, queries=4))
        Work(flop=16777216.0, bytes=262144.0)
        """
        context = self.context_tokens(shape)
        reads = shape.queries if self.picked else 1
        return Work(
            context * (shape.queries * self.flop_per_context_token),
            context * (reads * self.bytes_per_context_token),
        )


@dataclass(frozen=True)
class PrefillAttention:
    """Causal attention of prompt tokens over themselves and their cached prefix."""

    name: str
    calls: float
    kind: Literal["gqa", "mla"]
    heads: int
    score_dim: int
    value_dim: int
    dtype: Dtype
    kv_dtype: Dtype
    bytes_per_token: float
    """Queries, keys, values and outputs of a token, each moved once, and the cache written."""
    windowed: bool = False
    """Whether it sees the keys of a sliding window, or the best ones of a sparse indexer."""
    tokens_per_key: float = 1.0
    """Tokens of context that share one key; infinite where no older key is seen at all."""
    latest_keys: int = 0
    """Keys that each query sees besides: a bound, met once the context is as long."""
    picked: bool = False
    """Whether every query has keys of its own, an indexer's picks."""
    prefix_bytes_per_token: float = 0.0
    """Keys and values of a token that was in the cache before, read once for each chunk."""
    scope: Scope = "rank"

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "prefill_tokens"

    @property
    def flop_per_pair(self) -> float:
        """FLOP of a query and a key: scores and weighted values of all heads on this chip."""
        return 2 * self.heads * (self.score_dim + self.value_dim)

    def prefix(self, shape: StepShape) -> Work:
        """FLOP and bytes that the cached prefix causes, which `work` counts too.

        Every token of a prompt meets every cached key of it; prompts of a step are taken to be of
        one length. Nothing for layers with a window or picks: they see no more than so many.
        """
        if not self.prefix_bytes_per_token:
            return Work(0.0, 0.0)
        cached = shape.prefill_context_tokens
        pairs = cached * shape.tokens_per_prompt / self.tokens_per_key
        return Work(pairs * self.flop_per_pair, cached * self.prefix_bytes_per_token)

    def pairs(self, shape: StepShape) -> Number:
        """Query-key pairs of this layer, summed over the prompts."""
        seen = shape.prefill_window_pairs if self.windowed else shape.prefill_pairs
        return seen / self.tokens_per_key + shape.prefill_tokens * self.latest_keys

    def work(self, shape: StepShape) -> Work:
        """FLOP of the pairs, and the bytes of everything that moves once per token or cached key.

        >>> op = PrefillAttention("attention", 80, "gqa", 8, 128, 128, "bf16", "fp8", 4864.0)
        >>> op.work(StepShape(prefill_tokens=2, prefill_pairs=3)).flop == 3 * 2 * 8 * 256
        True
        """
        moved = shape.prefill_tokens * self.bytes_per_token
        moved = moved + shape.prefill_context_tokens * self.prefix_bytes_per_token
        return Work(self.pairs(shape) * self.flop_per_pair, moved)


@dataclass(frozen=True)
class PatchAttention(PrefillAttention):
    """Attention of image patches, each of which sees all patches of its region.

    The batch counts tokens, each of which stands for some patches. An image of ``n`` tokens has
    ``n (n + 1) / 2`` pairs under the causal mask that a `StepShape` counts by, so twice these less
    ``n`` are its ``n * n`` pairs without a mask; that stays true where an image comes in pieces.
    """

    patches_per_token: int = 1
    region_patches: int | None = None
    """Patches of a region; none: the whole image."""
    images_per_prompt: int = 1
    """Images of one size that the tokens of a prompt come from, where regions are whole images."""

    def pairs(self, shape: StepShape) -> Number:
        """Pairs of a patch with each of its region, summed over all patches.

        Two images of 3 tokens of 4 patches: 2 x 12 x 12 pairs, or 24 x 8 in regions of 8.

        >>> two_images = StepShape(prefill_tokens=6, prefill_pairs=21)
        >>> heads = ("attention", 4, "gqa", 16, 80, 80, "bf16", "bf16", 0.0)
        >>> whole = PatchAttention(*heads, patches_per_token=4, images_per_prompt=2)
        >>> windows = PatchAttention(*heads, patches_per_token=4, region_patches=8)
        >>> whole.pairs(two_images), windows.pairs(two_images)
        (288.0, 192)
        """
        patches = self.patches_per_token
        if self.region_patches is not None:
            return shape.prefill_tokens * (patches * self.region_patches)
        squared = 2 * shape.prefill_pairs - shape.prefill_tokens
        return squared * (patches**2 / self.images_per_prompt)


LOGIT_BYTES = 2 * DTYPE_BYTES["fp32"]
"""A score of the indexer is written in 32 bits and read again by the selection."""


@dataclass(frozen=True)
class IndexScores:
    """The scores of sparse attention: every query against the index key of every earlier token.

    The indexer is not cut over tensor ranks: each computes all of its heads.
    """

    name: str
    calls: float
    rows: Literal["decode_sequences", "prefill_tokens"]
    heads: int
    head_dim: int
    dtype: Dtype
    """Format of index queries and keys, and of the arithmetic."""
    tokens_per_key: int = 1
    """Tokens of context that share one index key."""
    scope: Scope = "rank"

    @property
    def key_bytes(self) -> float:
        """Bytes of one index key."""
        return self.head_dim * DTYPE_BYTES[self.dtype]

    def keys(self, shape: StepShape) -> Number:
        """Query-key pairs: one for each key of the context of each query."""
        decoding = self.rows == "decode_sequences"
        pairs = shape.decode_context_tokens * shape.queries if decoding else shape.prefill_pairs
        return pairs / self.tokens_per_key

    def work(self, shape: StepShape) -> Work:
        """FLOP and bytes of one layer.

        A new token of DeepSeek-V3.2 with 1000 tokens of context: 64 heads of 128 meet 1000 index
        keys of 128 bytes, and 1000 scores of 4 bytes are written and read.

        >>> op = IndexScores("index_scores_decode", 61, "decode_sequences", 64, 128, "fp8")
        >>> op.work(StepShape(decode_sequences=1, decode_context_tokens=1000))
        Work(flop=16384000.0, bytes=136000.0)
        """
        keys = self.keys(shape)
        flop = keys * (2.0 * self.heads * self.head_dim)
        if self.rows == "decode_sequences":
            return Work(flop, keys * (self.key_bytes / shape.queries + LOGIT_BYTES))
        # prompts read each query and key once: blocks of queries share the keys
        key_bytes = self.key_bytes / self.tokens_per_key
        moved = shape.prefill_tokens * (self.heads * self.key_bytes + key_bytes)
        moved = moved + shape.prefill_context_tokens * key_bytes
        return Work(flop, moved + keys * LOGIT_BYTES)


@dataclass(frozen=True)
class StateUpdate:
    """Linear attention: a state of fixed size per sequence takes in tokens and is read.

    In decode the state of every sequence is read and written for its one new token; in prefill
    it is carried from chunk to chunk of a prompt while the tokens of a chunk meet each other.
    """

    name: str
    calls: float
    rows: Literal["decode_sequences", "prefill_tokens"]
    state_bytes: float
    """State of one sequence and layer on this chip."""
    flop_per_row: float
    bytes_per_row: float
    conv_weights: int = 0
    """Taps of the short convolution on this chip, counted with one of the two phases only."""
    scope: Scope = "rank"

    @property
    def weight_bytes(self) -> float:
        """Weights of one call that one chip stores, in 16 bits."""
        return self.conv_weights * ACTIVATION_BYTES

    def streamed_bytes(self, shape: StepShape) -> Number:
        """Weights that one call reads."""
        return self.weight_bytes * np.sign(shape.rows(self.rows))

    def work(self, shape: StepShape) -> Work:
        """FLOP and bytes of one layer.

        A sequence with drafts to verify is taken to read and write its state for each token, so
        that it can go back to the last one that is accepted.

        >>> op = StateUpdate("linear_decode", 1, "decode_sequences", 400.0, 700.0, 800.0)
        >>> op.work(StepShape(decode_sequences=2))
        Work(flop=1400.0, bytes=1600.0)
        """
        rows = shape.rows(self.rows)
        moved = rows * self.bytes_per_row
        if self.conv_weights:
            moved = moved + self.streamed_bytes(shape)
        return Work(rows * self.flop_per_row, moved)


@dataclass(frozen=True)
class PrefixExpansion:
    """Keys and values of the heads made again from the cached latents of a prompt's prefix.

    vLLM and SGLang gather the latents of the prefix for every chunk and expand them with the
    weights of ``product``, which the chip stores anyway.
    """

    product: DenseGemm
    """The expansion of the prompt's own tokens."""
    latent_bytes: float
    """Of one cached token and layer."""
    scope: Scope = "rank"

    @property
    def name(self) -> str:
        """What it is called among the operators of a step."""
        return f"{self.product.name}_prefix"

    @property
    def calls(self) -> float:
        """Once per layer, like the product."""
        return self.product.calls

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "prefix_tokens"

    def work(self, shape: StepShape) -> Work:
        """FLOP of the product, and the bytes of latents in, and keys and values out and in again.

        >>> expand = DenseGemm("up", 1, "prefill_tokens", n=256, k=512, dtype="bf16")
        >>> PrefixExpansion(expand, 576.0).work(StepShape(prefill_context_tokens=10))
        Work(flop=2621440, bytes=16000.0)
        """
        rows = shape.rows(self.rows)
        vectors = 2 * self.product.n * ACTIVATION_BYTES
        return Work(
            2 * rows * self.product.n * self.product.k, rows * (self.latent_bytes + vectors)
        )


@dataclass(frozen=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activation: traffic with next to no arithmetic."""

    name: str
    calls: float
    elements_per_token: float
    """Elements read or written per token and layer on this chip."""
    scope: Scope = "rank"

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def work(self, shape: StepShape) -> Work:
        """Bytes of one layer; one FLOP per element moved."""
        elements = shape.tokens * self.elements_per_token
        return Work(elements, elements * ACTIVATION_BYTES)


@dataclass(frozen=True)
class Collective:
    """An exchange between the chips of a group, in which each has one and the same part."""

    name: str
    calls: float
    operation: CollectiveOperation
    group: ChipGroup
    bytes_per_token: float
    """Payload per row, by the convention of nccl-tests: the buffer of a rank of an all-reduce; the
    whole buffer of an all-gather or a reduce-scatter; what a rank sends in an all-to-all; the
    message of a send."""
    rows: Rows = "tokens"
    scope: Scope = "rank"

    @property
    def ranks(self) -> int:
        """Chips that take part."""
        return self.group.ranks

    def payload_bytes(self, shape: StepShape) -> Number:
        """Size of the message of one call.

        >>> op = Collective("sum", 160, "all_reduce", ChipGroup(8, 1), 8192 * 2)
        >>> op.payload_bytes(StepShape(decode_sequences=3))
        49152
        """
        return shape.rows(self.rows) * self.bytes_per_token

    def work(self, shape: StepShape) -> Work:
        """No FLOP; ``bytes`` is the payload."""
        return Work(0.0, self.payload_bytes(shape))


@dataclass(frozen=True)
class Handover:
    """What a replica sends to another one at the end of a step, over a link of known rate."""

    name: str
    bytes_per_token: float
    """Of all chips of the replica together."""
    bytes_per_s: float
    """Of all chips of the replica together."""
    latency_s: float
    source: str
    """Which link it is, and how its rate is known."""
    calls: float = 1
    scope: Scope = "rank"

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def work(self, shape: StepShape) -> Work:
        """No FLOP; ``bytes`` is the message."""
        return Work(0.0, shape.tokens * self.bytes_per_token)


@dataclass(frozen=True)
class ExpertExchange:
    """One half of the all-to-all of expert parallelism: tokens to experts, or results back.

    Each rank holds ``1/ranks`` of the tokens of the group.
    """

    name: str
    calls: float
    half: Literal["dispatch", "combine"]
    group: ChipGroup
    hidden: int
    experts_per_token: int
    element_bytes: float
    """Bytes per element on the wire."""
    mode: ExchangeMode = "auto"
    experts: int | None = None
    """Routed experts on all ranks; none: so many that picks do not crowd each other out."""
    scope: Scope = "group"

    @property
    def ranks(self) -> int:
        """Expert-parallel ranks."""
        return self.group.ranks

    @property
    def rows(self) -> Rows:
        """What sets the size of this operator."""
        return "tokens"

    def picked_bytes(self, tokens: Number) -> Number:
        """Bytes that a rank would send if every pick of an expert were a copy of its own.

        The size by which exchange kernels are measured: tokens of a rank times picks per token
        times the hidden vector. DeepSeek-V3, 128 tokens on each of 8 ranks, FP8:

        >>> op = ExpertExchange("expert_dispatch", 58, "dispatch", ChipGroup(8, 1), 7168, 8, 1.0)
        >>> op.picked_bytes(8 * 128) == 128 * 8 * 7168
        True
        """
        return tokens / self.ranks * (self.experts_per_token * self.hidden * self.element_bytes)

    def sent_bytes(self, tokens: Number) -> Number:
        """Bytes that a rank sends when a token travels once to each rank that has its experts.

        Its own rank counts too. Picks are random and all different, so a rank without any of the
        token's experts has been missed by one draw after the other from fewer and fewer of them:
        2 picks of 8 experts on 4 ranks meet ``4 * (1 - 6/8 * 5/7)`` of the ranks.

        >>> dealt = ExpertExchange("x", 1, "dispatch", ChipGroup(4, 1), 7000, 2, 1.0, experts=8)
        >>> round(dealt.sent_bytes(4))
        13000

        Without a number of experts each draw is from all ranks: 8 picks over 2 ranks meet 1.992.

        >>> op = ExpertExchange("expert_dispatch", 58, "dispatch", ChipGroup(2, 1), 1000, 8, 1.0)
        >>> op.sent_bytes(2)
        1992.1875
        """
        missed = 1.0
        for drawn in range(self.experts_per_token):
            left = 1.0 if self.experts is None else 1 - drawn / self.experts
            missed *= max(0.0, 1 - 1 / (self.ranks * left))
        visited = self.ranks * (1 - missed)
        return tokens / self.ranks * (visited * self.hidden * self.element_bytes)

    def work(self, shape: StepShape) -> Work:
        """No FLOP; ``bytes`` is what one rank sends."""
        return Work(0.0, self.sent_bytes(shape.tokens))


Operator = (
    DenseGemm
    | ExpertGemm
    | DecodeAttention
    | PrefillAttention
    | IndexScores
    | StateUpdate
    | PrefixExpansion
    | Elementwise
    | Collective
    | Handover
    | ExpertExchange
)

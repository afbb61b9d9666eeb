"""What one step costs, counted the slow way: product by product, sequence by sequence, token by
token.

An independent reckoning to hold `sim.cost` against. It shares nothing with it but the schemas of
models, splits and number formats. The formulas are those of textbooks and papers:

- a product of a vector with a matrix of ``n x k`` weights takes ``2 n k`` FLOP;
- attention takes ``2 d`` FLOP per query head and key for the score and ``2 v`` for the value;
- tensor parallelism is that of Megatron-LM (arXiv:1909.08053), sequence parallelism that of
  arXiv:2205.05198;
- MLA is expanded for prompts and absorbed for decode (arXiv:2405.04434);
- sparse attention is absorbed for both, as every query has keys of its own (DeepSeek-V3.2);
- experts that are drawn without replacement are counted by the hypergeometric distribution.

Chips are those of the fullest pipeline stage, which has each kind of layer in proportion.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, comb
from typing import NamedTuple

from sim.model import (
    Attention,
    CompressedAttention,
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    Model,
    SparseIndexer,
)
from sim.parallelism import Parallelism
from sim.precision import Precision

SIZES = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 2 / 128,  # a 16-bit scale for 128 weights
    "nvfp4": 0.5 + 1 / 16,  # an 8-bit scale for 16 weights
    "mxfp4": 0.5 + 1 / 32,  # an 8-bit scale for 32 weights
}
"""Bytes per element."""
VECTOR = SIZES["bf16"]


class Sequence(NamedTuple):
    """A sequence in a step: tokens that are cached, and tokens that are computed now."""

    cached: int
    new: int
    decodes: bool

    def positions(self) -> range:
        """Positions of the tokens computed now; one at ``p`` sees ``p + 1`` tokens at most."""
        return range(self.cached, self.cached + self.new)


@dataclass
class Cost:
    """What one chip stores, does and says in one step."""

    stored_bytes: float = 0.0
    """Weights, the lookup tables included."""
    streamed_bytes: float = 0.0
    """Weights read."""
    flop: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By kind: products, experts, decode, prefill, index. Those of linear attention are left out:
    they depend on the algorithm."""
    state_bytes: float = 0.0
    """States of one sequence, whatever its length."""
    kv_read_bytes: float = 0.0
    """Keys, values and latents that decoding tokens read."""
    index_read_bytes: float = 0.0
    """Index keys that decoding tokens read."""
    state_moved_bytes: float = 0.0
    """States that decoding tokens read and write."""
    kv_stored_bytes: float = 0.0
    """Bytes that each token adds to the cache, windows left out."""
    wire_bytes: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Bytes that leave the chip, by axis, with the best algorithm of a switch."""


class Step(NamedTuple):
    """One step of one attention rank, and how many tokens those that share the experts have."""

    sequences: tuple[Sequence, ...]
    group_tokens: int


class Calculator:
    """Counts what one chip of a split model does for one step."""

    def __init__(self, model: Model, split: Parallelism, precision: Precision, step: Step) -> None:
        self.model, self.split, self.precision, self.step = model, split, precision, step
        self.dense = "bf16" if precision.weights == "mxfp4" else precision.weights
        self.kv = SIZES[precision.kv_cache]
        self.wire = SIZES[precision.collectives]
        self.cost = Cost()
        self.weight = 1.0

    def count(self) -> Cost:
        """Go through all layers of a stage, then through what lies before and behind them."""
        model, cost = self.model, self.cost
        stage_layers = ceil(model.layers / self.split.pp)
        chance = stage_layers / model.layers
        for group in model.attention:
            self.weight = group.layers * chance
            self.attention_layer(group)
        self.weight = model.dense_layers * chance
        for _ in range(model.mlp_matrices):
            self.product(model.hidden, self.cut(model.mlp_width), self.tokens())
        self.tensor_sum()
        self.weight = model.moe_layers * chance
        if model.moe is not None:
            self.experts(model.moe)
        self.weight = model.layers * chance
        if model.per_layer_embedding:
            # gate, projection, and this layer's columns of the projection for all of them
            for _ in range(3):
                self.product(model.hidden, model.per_layer_embedding, self.tokens())
        self.weight = 1.0
        self.vocabulary()
        if self.split.pp > 1:
            # hidden vector and residual; each tensor rank sends a slice, the receivers join them
            vectors = 2 * self.tokens() * model.hidden * self.wire
            cost.wire_bytes["pp"] += vectors / self.split.tp
            cost.wire_bytes["pp"] += vectors * (self.split.tp - 1) / self.split.tp
        return cost

    # --- The tokens of this chip.

    def tokens(self) -> float:
        """Tokens in the linear layers: context ranks share prompts, and all have the decodes."""
        return self.decoding() + self.prompt_tokens()

    def decoding(self) -> int:
        return sum(sequence.new for sequence in self.step.sequences if sequence.decodes)

    def prompt_tokens(self) -> float:
        new = sum(sequence.new for sequence in self.step.sequences if not sequence.decodes)
        return new / self.split.cp

    # --- Products.

    def product(self, wide: int, narrow: int, rows: float, dtype: str | None = None) -> None:
        """Multiply rows with a matrix that this chip stores, and reads if there is a row."""
        size = SIZES[dtype or self.dense]
        self.cost.flop["products"] += self.weight * 2 * rows * wide * narrow
        self.cost.stored_bytes += self.weight * wide * narrow * size
        if rows:
            self.cost.streamed_bytes += self.weight * wide * narrow * size

    def cut(self, size: int) -> int:
        """Part of the fullest tensor rank."""
        return ceil(size / self.split.tp)

    # --- Attention.

    def attention_layer(self, group: Attention) -> None:
        if isinstance(group, GroupedQueryAttention):
            self.grouped(group)
        elif isinstance(group, LatentAttention):
            self.latent(group)
        elif isinstance(group, CompressedAttention):
            self.compressed(group)
        else:
            self.linear(group)
        self.tensor_sum()

    def seen(self, window: int | None) -> Iterator[tuple[Sequence, int]]:
        """Keys that each token sees, token by token."""
        for sequence in self.step.sequences:
            for position in sequence.positions():
                keys = position + 1
                yield sequence, keys if window is None else min(keys, window)

    def attend(
        self, window: int | None, heads: int, decode: int, prefill: int, kv_elements: float
    ) -> None:
        """Count attention: widths of score and value together, for decode and for prompts."""
        for sequence, keys in self.seen(window):
            here = self.weight * keys / self.split.cp  # a context rank has its part of the keys
            if sequence.decodes:
                self.cost.flop["decode"] += here * heads * 2 * decode
                self.cost.kv_read_bytes += here * kv_elements * self.kv
            else:
                self.cost.flop["prefill"] += here * heads * 2 * prefill

    def grouped(self, group: GroupedQueryAttention) -> None:
        hidden, width, tokens = self.model.hidden, group.head_dim, self.tokens()
        heads = group.heads // self.split.tp
        kv_heads = max(1, group.kv_heads // self.split.tp)
        self.product(hidden, heads * width, tokens)  # queries
        if group.output_gate:
            self.product(hidden, heads * width, tokens)
        if not group.reuses_kv:
            for _ in range(1 if group.one_projection_for_kv else 2):
                self.product(hidden, kv_heads * width, tokens)
        self.product(heads * width, hidden, tokens)
        if group.norms_over_all_heads:  # a sum of squares of queries, and one of keys, in 32 bits
            ranks = self.split.tp
            sent = 2 * SIZES["fp32"] * tokens * 2 * (ranks - 1) / ranks
            self.cost.wire_bytes["norms"] += self.weight * sent
        picked = group.indexer.top_k_tokens if group.indexer else group.window_tokens
        self.attend(picked, heads, 2 * width, 2 * width, 2 * kv_heads * width)
        if not group.window_tokens and not group.reuses_kv:
            self.cost.kv_stored_bytes += self.weight * 2 * kv_heads * width * self.kv
        if group.indexer:
            self.index(group.indexer, hidden)
        self.context_exchange(0 if group.reuses_kv else 2 * kv_heads * width, heads, width)

    def latent(self, group: LatentAttention) -> None:
        hidden, tokens = self.model.hidden, self.tokens()
        heads, rank, rope = group.heads // self.split.tp, group.kv_lora_rank, group.qk_rope_head_dim
        nope, value = group.qk_nope_head_dim, group.v_head_dim
        if group.q_lora_rank is None:
            self.product(hidden, heads * (nope + rope), tokens)
        else:
            self.product(hidden, group.q_lora_rank, tokens)  # not cut
            self.product(group.q_lora_rank, heads * (nope + rope), tokens)
        self.product(hidden, rank + rope, tokens)  # not cut
        absorbed = self.decoding() + (self.prompt_tokens() if group.indexer else 0)
        expanded = tokens - absorbed
        up = rank * heads * (nope + value)
        # The projection of prompts, and its copy in 16 bits that the absorbed products use.
        self.product(up, 1, expanded)
        self.product(up, 1, absorbed, "bf16")
        self.product(heads * value, hidden, tokens)
        if group.output_gate:
            self.product(hidden, heads * value, tokens)
        picked = group.indexer.top_k_tokens if group.indexer else None
        of_latents = rank + rope + rank
        of_heads = of_latents if group.indexer else nope + rope + value
        self.attend(picked, heads, of_latents, of_heads, rank + rope)
        self.cost.kv_stored_bytes += self.weight * (rank + rope) * self.kv
        if group.indexer:
            self.index(group.indexer, group.q_lora_rank or hidden)
        self.context_exchange(rank + rope, heads, rank)

    def compressed(self, group: CompressedAttention) -> None:
        hidden, width, tokens = self.model.hidden, group.head_dim, self.tokens()
        heads, every = group.heads // self.split.tp, group.compressed_tokens
        self.product(hidden, group.q_lora_rank, tokens)
        self.product(group.q_lora_rank, heads * width, tokens)
        self.product(hidden, width, tokens)
        # Groups of heads lie on the ranks whole, or a group is cut over ranks.
        self.product(heads * width, group.output_lora_rank, tokens)
        groups = max(1, ceil(group.output_groups / self.split.tp))
        self.product(groups * group.output_lora_rank, hidden, tokens)
        if every:
            wide = 4 if group.overlapping else 2
            self.product(hidden, wide * width, tokens)
            self.cost.kv_stored_bytes += self.weight * width / every * self.kv
            if group.indexer:
                self.product(hidden, (wide - 1) * group.indexer.head_dim, tokens)
                self.index(group.indexer, group.q_lora_rank, every)
        for sequence in self.step.sequences:
            for position in sequence.positions():
                keys: float = min(position + 1, group.window_tokens)
                if every:
                    entries = (position + 1) / every
                    keys += min(entries, group.indexer.top_k_tokens) if group.indexer else entries
                here = self.weight * keys / self.split.cp
                kind = "decode" if sequence.decodes else "prefill"
                self.cost.flop[kind] += here * heads * 2 * 2 * width
                if sequence.decodes:
                    self.cost.kv_read_bytes += here * width * self.kv
        self.context_exchange(width, heads, width)

    def index(self, indexer: SparseIndexer, query_rank: int, every: int = 1) -> None:
        """Score every earlier key with all index heads, which no tensor rank shares."""
        tokens = self.tokens()
        self.product(query_rank, indexer.heads * indexer.head_dim, tokens)
        self.product(self.model.hidden, indexer.head_dim, tokens)
        self.product(self.model.hidden, indexer.heads, tokens)
        for sequence, keys in self.seen(None):
            here = self.weight * keys / every / self.split.cp
            self.cost.flop["index"] += here * 2 * indexer.heads * indexer.head_dim
            if sequence.decodes:
                self.cost.index_read_bytes += here * indexer.head_dim * SIZES["fp8"]
        # vLLM and SGLang keep index keys in FP8 whatever the rest of the cache has
        self.cost.kv_stored_bytes += self.weight * indexer.head_dim / every * SIZES["fp8"]

    def linear(self, group: LinearAttention) -> None:
        hidden, tokens = self.model.hidden, self.tokens()
        values = group.value_heads // self.split.tp
        keys = max(1, ceil(group.key_heads / self.split.tp))
        value_width, key_width = values * group.value_head_dim, keys * group.key_head_dim
        for width in (key_width, key_width, value_width):
            self.product(hidden, width, tokens)
        self.product(hidden, group.head_scalars * values, tokens)
        if group.output_gate:
            self.narrowly(group.output_gate_rank, value_width)
        if group.channel_decay_rank:
            self.narrowly(group.channel_decay_rank, key_width)
        self.product(value_width, hidden, tokens)
        mixed = 2 * key_width + value_width
        self.cost.stored_bytes += self.weight * mixed * group.conv_kernel * VECTOR
        if self.prompt_tokens():  # below a thousandth of what decode streams, which leaves it out
            self.cost.streamed_bytes += self.weight * mixed * group.conv_kernel * VECTOR
        state = values * group.key_head_dim * group.value_head_dim
        taps = max(0, group.conv_kernel - 1) * mixed
        held = self.weight * (state * SIZES["fp32"] + taps * VECTOR)
        self.cost.state_bytes += held
        for sequence in self.step.sequences:
            if sequence.decodes:
                self.cost.state_moved_bytes += 2 * held

    def narrowly(self, rank: int | None, width: int) -> None:
        """Project to some width, by way of a narrow one that every rank computes whole."""
        if rank is None:
            self.product(self.model.hidden, width, self.tokens())
        else:
            self.product(self.model.hidden, rank, self.tokens())
            self.product(rank, width, self.tokens())

    # --- Experts.

    def experts(self, moe: MixtureOfExperts) -> None:
        split, hidden = self.split, self.model.hidden
        exchanged = split.exchanges_tokens
        own = self.tokens() / split.tp if exchanged else self.tokens()
        own_rows = float(ceil(own)) if exchanged else own
        everybody = own_rows if exchanged else float(self.step.group_tokens)  # SGLang's order
        self.product(hidden, moe.experts, everybody, "bf16")
        width = moe.latent_hidden or hidden
        if moe.latent_hidden:
            self.product(hidden, width, own_rows)
            self.product(width, hidden, own_rows)
        if moe.shared_experts:
            inner = moe.shared_width if exchanged else self.cut(moe.shared_width)
            for _ in range(moe.matrices):
                self.product(hidden, inner, own_rows)
        self.routed(moe, width)
        if exchanged:
            self.all_to_all(moe, width)
        else:
            if split.attention_dp > 1:
                self.gathered_tokens(width)
            self.tensor_sum()

    def routed(self, moe: MixtureOfExperts, width: int) -> None:
        """Visits are shared evenly; an expert is read if any token of the group visits it."""
        split, dtype = self.split, self.precision.experts or self.precision.weights
        inner = ceil(moe.intermediate / split.expert_cut)
        matrix = width * inner * SIZES[dtype]
        expert = moe.matrices * matrix
        local = moe.experts // split.ep
        self.cost.stored_bytes += self.weight * local * expert
        visits, missed = 0.0, 1.0
        for _ in range(self.step.group_tokens):
            visits += moe.experts_per_token / split.ep
            missed *= 1 - moe.experts_per_token / moe.experts
        self.cost.flop["experts"] += self.weight * visits * moe.matrices * 2 * width * inner
        self.cost.streamed_bytes += self.weight * local * (1 - missed) * expert

    def all_to_all(self, moe: MixtureOfExperts, width: int) -> None:
        """Send each token once to every other rank with one of its experts, and back."""
        split = self.split
        local, picks = moe.experts // split.ep, moe.experts_per_token
        chance = 1 - comb(moe.experts - local, picks) / comb(moe.experts, picks)
        for element_bytes in (self.dispatched(), VECTOR):
            tokens = self.step.group_tokens / split.expert_ranks
            copies = (split.ep - 1) * chance * split.expert_cut  # to each part of a cut expert
            sent = tokens * copies * width * element_bytes
            self.cost.wire_bytes["experts"] += self.weight * sent
        # The parts of the tokens come together again. That the sum after the attention need only
        # be scattered is known to the layers that have both.
        self.gather("tp", self.tokens(), split.tp)
        both = sum(group.layers for group in self.model.attention) + self.model.dense_layers
        both += self.model.moe_layers - self.model.layers
        saved = min(1.0, max(0, both) / self.model.moe_layers)
        self.gather("tp", -saved * self.tokens(), split.tp)

    def dispatched(self) -> float:
        """Bytes of an element on its way to the experts: as they read it, but 8 bits at least."""
        weights = self.precision.experts or self.precision.weights
        return 1.0 if weights in ("fp8", "int8", "nvfp4") else VECTOR

    # --- Exchanges.

    def gather(self, axis: str, rows: float, ranks: int) -> None:
        """Gather the hidden vectors of some tokens, or scatter them, which says as much."""
        sent = rows * self.model.hidden * self.wire * (ranks - 1) / ranks
        self.cost.wire_bytes[axis] += self.weight * sent

    def tensor_sum(self) -> None:
        """Add up the partial results of the tensor ranks: a scatter and a gather."""
        for _ in range(2):
            self.gather("tp", self.tokens(), self.split.tp)

    def gathered_tokens(self, width: int) -> None:
        """Bring the tokens of all attention ranks together and take the results apart."""
        ranks = self.split.attention_dp
        for _ in range(2):
            sent = self.step.group_tokens * width * self.wire * (ranks - 1) / ranks
            self.cost.wire_bytes["attention_dp"] += self.weight * sent

    def context_exchange(self, kv_elements: int, heads: int, value_dim: int) -> None:
        """Pass all keys around the ring for prompts, and combine the results of decode."""
        ranks = self.split.cp
        if ranks == 1:
            return
        new = sum(s.new for s in self.step.sequences if not s.decodes)
        sent = new * kv_elements * self.wire * (ranks - 1) / ranks
        # the output of each head, and the logarithm of its sum in 32 bits
        output = heads * (value_dim * self.wire + SIZES["fp32"])
        sent += self.decoding() * output * 2 * (ranks - 1) / ranks
        self.cost.wire_bytes["cp"] += self.weight * sent

    # --- Before and behind the layers.

    def vocabulary(self) -> None:
        model, split = self.model, self.split
        rows = sum(s.new if s.decodes else 1 for s in self.step.sequences)
        table = self.cut(model.vocabulary) * model.hidden
        embedding = head = table * VECTOR
        self.cost.flop["products"] += 2 * rows * table
        self.cost.streamed_bytes += head if rows else 0
        others = model.max_positions * model.hidden * VECTOR if model.learned_positions else 0.0
        others += (
            self.cut(model.vocabulary) * model.layers * (model.per_layer_embedding or 0) * VECTOR
        )
        if split.pp == 1:
            both = embedding if model.tied_embeddings else embedding + head
            self.cost.stored_bytes += both + others
        else:
            self.cost.stored_bytes += max(embedding + others, head)

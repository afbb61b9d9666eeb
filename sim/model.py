"""Model architectures: shapes, parameter counts and KV bytes, with no hardware in sight.

A `Model` is one file of ``workloads/models``. Everything derived from its fields is exact
arithmetic; norms, biases and router biases (below 0.01 % of the parameters) are left out.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.encoder import ImageEncoder
from sim.figures import Figure
from sim.schema import StrictModel
from sim.units import NonNegativeInt, PositiveInt


class SparseIndexer(StrictModel):
    """A light scorer that picks the keys each query may see (DeepSeek sparse attention).

    It scores one key of its own per token, or per entry of a compressed cache, against all of
    the context.
    """

    heads: PositiveInt
    head_dim: PositiveInt
    top_k_tokens: PositiveInt
    """Keys (entries of a compressed cache) that a query attends to at most."""
    block_tokens: PositiveInt = 1
    """Keys are picked in blocks of so many; ``top_k_tokens`` counts keys, not blocks."""

    def parameters(self, hidden: int, query_rank: int) -> int:
        """Weights of the query, key and head-weight projections of one layer.

        Parameters
        ----------
        hidden : int
        query_rank : int
            Width of what the queries are projected from.
        """
        return self.heads * self.head_dim * query_rank + hidden * (self.head_dim + self.heads)


class GroupedQueryAttention(StrictModel):
    """Multi-head, grouped-query or multi-query attention, with or without a sliding window."""

    kind: Literal["gqa"]
    layers: PositiveInt
    """Layers of this kind."""
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key/value heads: equal to ``heads`` for MHA, 1 for MQA."""
    head_dim: PositiveInt
    window_tokens: PositiveInt | None = None
    """Keys that these layers see at most; none means the whole context."""
    output_gate: bool = False
    """Whether a gate as wide as the queries multiplies the output (Qwen3-Next)."""
    one_projection_for_kv: bool = False
    """Whether one projection gives keys and values (Gemma 4, full layers). Both are cached all the
    same, because only keys are rotated."""
    reuses_kv: bool = False
    """Whether the layers read the cache of an earlier layer: they project no keys and values and
    store none (Gemma 4 E2B)."""
    norms_over_all_heads: bool = False
    """Whether queries and keys are normalised over all heads together (MiniMax-M2), so that tensor
    ranks have to add up their squares; else each head is by itself, or not at all."""
    indexer: SparseIndexer | None = None
    """Picks the keys of sparse attention; none: every key counts."""

    def parameters(self, hidden: int) -> int:
        """Weights of the QKV and output projections of one layer.

        >>> gqa = GroupedQueryAttention(kind="gqa", layers=1, heads=64, kv_heads=8, head_dim=128)
        >>> gqa.parameters(8192) == 8192 * (64 + 2 * 8) * 128 + 64 * 128 * 8192
        True
        """
        gates = self.heads if self.output_gate else 0
        qkv = hidden * (self.heads + gates + self.kv_projections * self.kv_heads) * self.head_dim
        index = 0 if self.indexer is None else self.indexer.parameters(hidden, hidden)
        return qkv + self.heads * self.head_dim * hidden + index

    @property
    def kv_projections(self) -> int:
        """Projections of the width of all KV heads: keys and values, one for both, or none."""
        if self.reuses_kv:
            return 0
        return 1 if self.one_projection_for_kv else 2

    def kv_elements_per_token(self) -> int:
        """Count stored elements per token and layer: key and value per KV head, and index key.

        Layers that reuse a cache store nothing, and still read as much as the others.

        >>> GroupedQueryAttention(
        ...     kind="gqa", layers=1, heads=64, kv_heads=8, head_dim=128
        ... ).kv_elements_per_token()
        2048
        """
        if self.reuses_kv:
            return 0
        index = 0 if self.indexer is None else self.indexer.head_dim
        return 2 * self.kv_heads * self.head_dim + index


class LatentAttention(StrictModel):
    """Multi-head latent attention (MLA) of DeepSeek-V2 and later (arXiv:2405.04434)."""

    kind: Literal["mla"]
    layers: PositiveInt
    """Layers of this kind."""
    heads: PositiveInt
    q_lora_rank: PositiveInt | None = None
    """Width of the compressed queries; none where they are not compressed (V2-Lite)."""
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt
    output_gate: bool = False
    """Whether a gate as wide as the values multiplies the output (Kimi K3)."""
    indexer: SparseIndexer | None = None
    """Picks the keys of sparse attention; none: every key counts."""

    def parameters(self, hidden: int) -> int:
        """Weights of the down, up and output projections of one layer.

        >>> mla = LatentAttention(kind="mla", layers=61, heads=128, q_lora_rank=1536,
        ...                       kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        ...                       v_head_dim=128)
        >>> mla.parameters(7168) / 1e6  # 187 million a layer, 11.4 billion over 61 layers
        187.10528
        """
        if self.q_lora_rank is None:
            query = hidden * self.heads * self.query_head_dim
        else:
            query = self.q_lora_rank * (hidden + self.heads * self.query_head_dim)
        down = hidden * (self.kv_lora_rank + self.qk_rope_head_dim)
        up = self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_head_dim)
        value_sided = 2 if self.output_gate else 1
        found = query + down + up + value_sided * self.heads * self.v_head_dim * hidden
        if self.indexer is not None:
            found += self.indexer.parameters(hidden, self.q_lora_rank or hidden)
        return found

    @property
    def query_head_dim(self) -> int:
        """Width of one expanded query head: the part without and the part with rotation."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def kv_elements_per_token(self) -> int:
        """Count cached elements per token and layer: latent, shared rotary key, index key.

        >>> LatentAttention(kind="mla", layers=1, heads=128, q_lora_rank=1536, kv_lora_rank=512,
        ...                 qk_nope_head_dim=128, qk_rope_head_dim=64,
        ...                 v_head_dim=128).kv_elements_per_token()
        576
        """
        index = 0 if self.indexer is None else self.indexer.head_dim
        return self.kv_lora_rank + self.qk_rope_head_dim + index


class CompressedAttention(StrictModel):
    """Attention over a window and over entries that each stand for several tokens (DeepSeek-V4).

    One vector per token or entry is key and value of all heads. The window holds the latest
    tokens as they are; every ``compressed_tokens`` tokens a gated sum of them becomes one entry
    that stays for good. The output is projected in groups of heads, by way of a low rank.
    """

    kind: Literal["compressed"]
    layers: PositiveInt
    """Layers of this kind."""
    heads: PositiveInt
    head_dim: PositiveInt
    """Width of a query head, and of the key that is the value too."""
    q_lora_rank: PositiveInt
    output_groups: PositiveInt
    """Groups of heads, each with an output projection of its own."""
    output_lora_rank: PositiveInt
    """Width that each group is projected to before the output projection joins them."""
    window_tokens: PositiveInt
    """Latest tokens that are seen as they are."""
    compressed_tokens: PositiveInt | None = None
    """Tokens that become one entry; none: layers that see the window alone."""
    overlapping: bool = False
    """Whether an entry also takes in the tokens of the one before it (a projection as wide
    again)."""
    indexer: SparseIndexer | None = None
    """Picks the entries of sparse attention; none: every entry counts."""

    def parameters(self, hidden: int) -> int:
        """Weights of the query, key, output, compressor and indexer projections of one layer.

        A layer of DeepSeek-V4-Flash that sees the window alone: queries 1024 x (4096 + 64 x 512),
        key 4096 x 512, output 64 x 512 x 1024 and 8 x 1024 x 4096.

        >>> CompressedAttention(kind="compressed", layers=2, heads=64, head_dim=512,
        ...                     q_lora_rank=1024, output_groups=8, output_lora_rank=1024,
        ...                     window_tokens=128).parameters(4096)
        106954752
        """
        query = self.q_lora_rank * (hidden + self.heads * self.head_dim)
        output = self.output_lora_rank * (self.heads * self.head_dim + self.output_groups * hidden)
        found = query + hidden * self.head_dim + output
        if self.compressed_tokens is not None:
            found += hidden * self.compressor_width * self.head_dim
        if self.indexer is not None:
            found += self.indexer.parameters(hidden, self.q_lora_rank)
            found += hidden * (self.compressor_width - 1) * self.indexer.head_dim
        return found

    @property
    def compressor_width(self) -> int:
        """Projections of a compressor: content and gate, twice where entries overlap."""
        return 4 if self.overlapping else 2

    def kv_elements_per_token(self) -> int:
        """Count stored elements per token and layer, a share of an entry and of its index key.

        >>> CompressedAttention(kind="compressed", layers=21, heads=64, head_dim=512,
        ...                     q_lora_rank=1024, output_groups=8, output_lora_rank=1024,
        ...                     window_tokens=128, compressed_tokens=4, overlapping=True,
        ...                     indexer=SparseIndexer(heads=64, head_dim=128, top_k_tokens=512),
        ...                     ).kv_elements_per_token()  # (512 + 128) / 4
        160
        """
        if self.compressed_tokens is None:
            return 0
        index = 0 if self.indexer is None else self.indexer.head_dim
        return -(-(self.head_dim + index) // self.compressed_tokens)

    def window_elements(self) -> int:
        """Count elements of the window of one sequence and layer."""
        return self.window_tokens * self.head_dim


class LinearAttention(StrictModel):
    """A state of fixed size in place of a cache: gated delta net, KDA, Mamba2, lightning.

    Mamba2 in these words: groups are key heads, the state size is their width, the convolution
    runs over B, C and x, and z is the output gate.
    """

    kind: Literal["linear"]
    layers: PositiveInt
    """Layers of this kind."""
    key_heads: PositiveInt
    key_head_dim: PositiveInt
    value_heads: PositiveInt
    value_head_dim: PositiveInt
    conv_kernel: NonNegativeInt = 0
    """Taps of the short convolution over queries, keys and values; 0 where there is none."""
    output_gate: bool = True
    """Whether a gate as wide as the values multiplies the output."""
    output_gate_rank: PositiveInt | None = None
    """Width through which the output gate is projected (Kimi Linear); none: no such detour."""
    head_scalars: NonNegativeInt = 2
    """Scalars that each value head takes from a token: 2 (decay and update) in a gated delta net,
    1 in KDA (update) and Mamba2 (step)."""
    channel_decay_rank: PositiveInt | None = None
    """Width through which a decay for every key channel is projected (KDA); none: decay is one of
    the scalars of a head."""

    def parameters(self, hidden: int) -> int:
        """Weights of the query, key, value, gate, decay and output projections of one layer.

        The Mamba2 of Nemotron-3-Nano: z and x of 4096, B and C of 8 x 128, a step for each of 64
        heads; four taps over x, B and C; an output projection.

        >>> mamba2 = LinearAttention(kind="linear", layers=23, key_heads=8, key_head_dim=128,
        ...                          value_heads=64, value_head_dim=64, conv_kernel=4,
        ...                          head_scalars=1)
        >>> mamba2.parameters(2688) == 2688 * (2 * 4096 + 2 * 1024 + 64) + 6144 * 4 + 4096 * 2688
        True
        """
        keys, values = self._widths()
        mixed = 2 * keys + values
        found = hidden * (mixed + self.head_scalars * self.value_heads)
        found += mixed * self.conv_kernel + values * hidden
        if self.output_gate:
            found += _projected(hidden, values, self.output_gate_rank)
        if self.channel_decay_rank is not None:
            found += _projected(hidden, keys, self.channel_decay_rank)
        return found

    def state_elements(self) -> int:
        """Count state elements per sequence and layer: one matrix per value head, and the taps.

        >>> LinearAttention(kind="linear", layers=45, key_heads=16, key_head_dim=128,
        ...                 value_heads=64, value_head_dim=128, conv_kernel=4).state_elements()
        1085440
        """
        keys, values = self._widths()
        taps = max(0, self.conv_kernel - 1)
        return self.value_heads * self.key_head_dim * self.value_head_dim + taps * (
            2 * keys + values
        )

    def _widths(self) -> tuple[int, int]:
        return self.key_heads * self.key_head_dim, self.value_heads * self.value_head_dim

    def kv_elements_per_token(self) -> int:
        """Nothing grows with the context."""
        return 0


def _projected(width: int, to: int, by_way_of: int | None) -> int:
    """Weights of a projection, in one step or through a narrower width."""
    return width * to if by_way_of is None else by_way_of * (width + to)


Attention = Annotated[
    GroupedQueryAttention | LatentAttention | CompressedAttention | LinearAttention,
    Field(discriminator="kind"),
]


class MixtureOfExperts(StrictModel):
    """Routed and shared experts that replace the MLP in most layers."""

    layers: PositiveInt
    """Layers with routed experts."""
    experts: PositiveInt
    """Routed experts per layer."""
    experts_per_token: PositiveInt
    """Routed experts that each token visits (top-k)."""
    intermediate: PositiveInt
    """Inner width of one routed expert."""
    gated: bool = True
    """Whether experts have a gate projection beside the up projection."""
    latent_hidden: PositiveInt | None = None
    """Width of what routed experts read and write, where a projection leads down to it and another
    back, once per layer (latent MoE); the width of the model unless given."""
    shared_experts: NonNegativeInt = 0
    """Experts that every token visits."""
    shared_intermediate: PositiveInt | None = None
    """Inner width of one shared expert; that of a routed one unless given."""

    @property
    def matrices(self) -> int:
        """Projections of one expert: up and down, and the gate where there is one."""
        return 3 if self.gated else 2

    @property
    def shared_width(self) -> int:
        """Inner width of all shared experts of a layer together."""
        return self.shared_experts * (self.shared_intermediate or self.intermediate)


class Published(StrictModel):
    """Counts that the vendor or another source states, to hold the shape against."""

    parameters: Figure[float] | None = None
    """All of them."""
    active_parameters: Figure[float] | None = None
    """Parameters that one token meets."""
    kv_bytes_per_token: Figure[float] | None = None
    """In 16 bits, of the layers whose cache grows with the context."""


class Model(StrictModel):
    """One transformer (one file of ``workloads/models``)."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other names of the same shape: fine-tunes, quantised copies, spellings of benchmarks."""
    family: str
    source: str
    """Where the shape was read."""
    estimate: bool = False
    """True where the vendor has not published the shape."""
    layers: PositiveInt
    hidden: PositiveInt
    attention: Annotated[tuple[Attention, ...], Field(min_length=1)]
    """Groups of layers by their kind of attention; layers of no group have none."""
    mlp_intermediate: PositiveInt | None = None
    """Inner width of the dense MLP; none where no layer has one."""
    mlp_layers: NonNegativeInt | None = None
    """Layers with a dense MLP; those without experts unless given."""
    gated_mlp: bool = True
    """Whether the MLP has a gate projection beside the up projection."""
    moe: MixtureOfExperts | None = None
    mtp_layers: NonNegativeInt = 0
    """Layers that predict further tokens; their weights are not counted here."""
    vocabulary: PositiveInt
    max_positions: PositiveInt
    """Longest context in tokens."""
    learned_positions: bool = False
    """Whether every position has a learned vector (OPT)."""
    tied_embeddings: bool = False
    """Whether the LM head is the input embedding."""
    per_layer_embedding: PositiveInt | None = None
    """Width of the vector that a table gives every layer for every token (Gemma 4 E2B)."""
    encoder: ImageEncoder | None = None
    """Turns images into tokens of the prompt; its weights count apart from all others."""
    published: Published = Published()

    @model_validator(mode="after")
    def _layers_add_up(self) -> Self:
        attending = sum(group.layers for group in self.attention)
        if attending > self.layers:
            raise ValueError(f"attention has {attending} layers, the model has {self.layers}")
        if self.moe_layers + self.dense_layers > self.layers:
            both = f"{self.moe_layers} with experts and {self.dense_layers} with an MLP"
            raise ValueError(f"{both} are more layers than the {self.layers} of the model")
        if self.dense_layers and self.mlp_intermediate is None:
            raise ValueError(f"mlp_intermediate is missing: {self.dense_layers} layers are dense")
        if self.encoder is not None and self.encoder.projector[-1] != self.hidden:
            width = self.encoder.projector[-1]
            raise ValueError(f"encoder.projector ends with {width}, but hidden is {self.hidden}")
        return self

    def is_called(self, name: str) -> bool:
        """Tell whether a name, such as that of a measured run, stands for this shape.

        >>> from sim.catalog import open_catalog
        >>> open_catalog().model("llama_3_1_70b").is_called("meta-llama/Llama-3.3-70B-Instruct")
        True
        """
        return name == self.name or name in self.aliases

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return 0 if self.moe is None else self.moe.layers

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return self.layers - self.moe_layers if self.mlp_layers is None else self.mlp_layers

    @property
    def mlp_width(self) -> int:
        """Inner width of the dense MLP; 0 where no layer has one."""
        return self.mlp_intermediate or 0 if self.dense_layers else 0

    @property
    def mlp_matrices(self) -> int:
        """Projections of one dense MLP."""
        return 3 if self.gated_mlp else 2

    @property
    def embedding_parameters(self) -> int:
        """Weights of one vocabulary matrix (input embedding or LM head)."""
        return self.vocabulary * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert."""
        if self.moe is None:
            return 0
        width = self.moe.latent_hidden or self.hidden
        return self.moe.matrices * width * self.moe.intermediate

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention of all layers."""
        return sum(group.layers * group.parameters(self.hidden) for group in self.attention)

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers but the routed experts: what every token meets."""
        mlp = self.dense_layers * self.mlp_matrices * self.hidden * self.mlp_width
        # Each layer gates its vector and projects it back; one product finds those of all layers.
        per_layer = 3 * self.layers * self.hidden * (self.per_layer_embedding or 0)
        found = self.attention_parameters + mlp + per_layer
        if self.moe is None:
            return found
        shared = self.moe.matrices * self.hidden * self.moe.shared_width
        router = self.hidden * self.moe.experts
        latent = 2 * self.hidden * (self.moe.latent_hidden or 0)
        return found + self.moe_layers * (shared + router + latent)

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        experts = 0 if self.moe is None else self.moe.experts
        return self.moe_layers * experts * self.expert_parameters

    @property
    def total_parameters(self) -> int:
        """All weights, input embedding and LM head included."""
        tables = self.vocabulary_parameters + self.table_parameters
        return self.linear_parameters + self.routed_parameters + tables

    @property
    def vocabulary_parameters(self) -> int:
        """Weights of input embedding and LM head together."""
        return self.embedding_parameters * (1 if self.tied_embeddings else 2)

    @property
    def table_parameters(self) -> int:
        """Weights of the tables beside the input embedding, of which a token reads one row."""
        positions = self.max_positions * self.hidden if self.learned_positions else 0
        return positions + self.vocabulary * self.layers * (self.per_layer_embedding or 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token meets: input embedding and LM head count, other tables not."""
        routed = 0 if self.moe is None else self.moe.experts_per_token * self.expert_parameters
        return self.linear_parameters + self.moe_layers * routed + self.vocabulary_parameters

    @property
    def growing_kv_elements_per_token(self) -> int:
        """Cached elements per token, all layers whose cache grows with the whole context."""
        return sum(
            group.layers * group.kv_elements_per_token()
            for group in self.attention
            if not (isinstance(group, GroupedQueryAttention) and group.window_tokens)
        )

    @property
    def window_tokens(self) -> int | None:
        """Widest sliding window of any layer; none where no layer slides."""
        windows = [
            group.window_tokens
            for group in self.attention
            if isinstance(group, GroupedQueryAttention) and group.window_tokens
        ]
        return max(windows, default=None)

"""Model architectures: shapes, parameter counts and KV bytes, with no hardware in sight.

A `Model` is one file of ``workloads/models``. Everything derived from its fields is exact
arithmetic; norms, biases and router biases (below 0.01 % of the parameters) are left out.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sim.figures import Figure
from sim.schema import StrictModel
from sim.units import NonNegativeInt, PositiveInt


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

    def parameters(self, hidden: int) -> int:
        """Weights of the QKV and output projections of one layer.

        >>> gqa = GroupedQueryAttention(kind="gqa", layers=1, heads=64, kv_heads=8, head_dim=128)
        >>> gqa.parameters(8192) == 8192 * (64 + 2 * 8) * 128 + 64 * 128 * 8192
        True
        """
        gates = self.heads if self.output_gate else 0
        qkv = hidden * (self.heads + gates + 2 * self.kv_heads) * self.head_dim
        return qkv + self.heads * self.head_dim * hidden

    def kv_elements_per_token(self) -> int:
        """Count cached elements per token and layer: one key and one value per KV head.

        >>> GroupedQueryAttention(
        ...     kind="gqa", layers=1, heads=64, kv_heads=8, head_dim=128
        ... ).kv_elements_per_token()
        2048
        """
        return 2 * self.kv_heads * self.head_dim


class SparseIndexer(StrictModel):
    """A light scorer that picks the keys each query may see (DeepSeek sparse attention)."""

    heads: PositiveInt
    head_dim: PositiveInt
    top_k_tokens: PositiveInt
    """Keys that a query attends to at most."""

    def parameters(self, hidden: int, query_rank: int) -> int:
        """Weights of the query, key and head-weight projections of one layer."""
        return self.heads * self.head_dim * query_rank + hidden * (self.head_dim + self.heads)


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
        found = query + down + up + self.heads * self.v_head_dim * hidden
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


class LinearAttention(StrictModel):
    """A state of fixed size in place of a cache: gated delta net, Mamba2, lightning attention."""

    kind: Literal["linear"]
    layers: PositiveInt
    """Layers of this kind."""
    key_heads: PositiveInt
    key_head_dim: PositiveInt
    value_heads: PositiveInt
    value_head_dim: PositiveInt
    conv_kernel: int = 0
    """Taps of the short convolution over queries, keys and values; 0 where there is none."""

    def parameters(self, hidden: int) -> int:
        """Weights of the query, key, value, gate and output projections of one layer.

        Per value head two scalars more steer decay and update.
        """
        keys, values = self._widths()
        mixed = 2 * keys + values
        gates = 2 * self.value_heads
        return hidden * (mixed + values + gates) + mixed * self.conv_kernel + values * hidden

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


Attention = Annotated[
    GroupedQueryAttention | LatentAttention | LinearAttention, Field(discriminator="kind")
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
    shared_experts: int = 0
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
    active_parameters: Figure[float] | None = None
    """Parameters that one token meets."""
    kv_bytes_per_token: Figure[float] | None = None
    """In 16 bits, of the layers whose cache grows with the context."""


class Model(StrictModel):
    """One transformer (one file of ``workloads/models``)."""

    name: str
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
    tied_embeddings: bool = False
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
        return self

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
        return 0 if self.moe is None else self.moe.matrices * self.hidden * self.moe.intermediate

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention of all layers."""
        return sum(group.layers * group.parameters(self.hidden) for group in self.attention)

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers but the routed experts: what every token meets."""
        mlp = self.dense_layers * self.mlp_matrices * self.hidden * self.mlp_width
        if self.moe is None:
            return self.attention_parameters + mlp
        shared = self.moe.matrices * self.hidden * self.moe.shared_width
        router = self.hidden * self.moe.experts
        return self.attention_parameters + mlp + self.moe_layers * (shared + router)

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts of all layers."""
        experts = 0 if self.moe is None else self.moe.experts
        return self.moe_layers * experts * self.expert_parameters

    @property
    def total_parameters(self) -> int:
        """All weights, input embedding and LM head included."""
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.linear_parameters + self.routed_parameters + embeddings

    @property
    def active_parameters(self) -> int:
        """Weights that one token meets, input embedding and LM head included."""
        routed = 0 if self.moe is None else self.moe.experts_per_token * self.expert_parameters
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return self.linear_parameters + self.moe_layers * routed + embeddings

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

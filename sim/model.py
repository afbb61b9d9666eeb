"""Model architectures: shapes, parameter counts and KV bytes, with no hardware in sight.

A `Model` is one file of ``workloads/models``. Everything derived from its fields is exact
arithmetic; norms, biases and router biases (below 0.01 % of the parameters) are left out.
"""

from typing import Annotated, Literal

from pydantic import Field

from sim.schema import StrictModel
from sim.units import PositiveInt


class GroupedQueryAttention(StrictModel):
    """Multi-head, grouped-query or multi-query attention, with or without a sliding window."""

    kind: Literal["gqa"]
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key/value heads: equal to ``heads`` for MHA, 1 for MQA."""
    head_dim: PositiveInt
    window_tokens: PositiveInt | None = None
    """Keys that a sliding-window layer sees; none means the whole context."""
    full_layers: int | None = None
    """Layers that see the whole context when ``window_tokens`` is set; the others slide."""

    def parameters(self, hidden: int) -> int:
        """Weights of the QKV and output projections of one layer.

        >>> gqa = GroupedQueryAttention(kind="gqa", heads=64, kv_heads=8, head_dim=128)
        >>> gqa.parameters(8192) == 8192 * (64 + 2 * 8) * 128 + 64 * 128 * 8192
        True
        """
        qkv = hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        return qkv + self.heads * self.head_dim * hidden

    def kv_elements_per_token(self) -> int:
        """Count cached elements per token and layer: one key and one value per KV head.

        >>> GroupedQueryAttention(
        ...     kind="gqa", heads=64, kv_heads=8, head_dim=128
        ... ).kv_elements_per_token()
        2048
        """
        return 2 * self.kv_heads * self.head_dim


class LatentAttention(StrictModel):
    """Multi-head latent attention (MLA) of DeepSeek-V2 and later (arXiv:2405.04434)."""

    kind: Literal["mla"]
    heads: PositiveInt
    q_lora_rank: PositiveInt
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt

    def parameters(self, hidden: int) -> int:
        """Weights of the down, up and output projections of one layer.

        >>> mla = LatentAttention(kind="mla", heads=128, q_lora_rank=1536, kv_lora_rank=512,
        ...                       qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
        >>> mla.parameters(7168) / 1e6  # 187 million a layer, 11.4 billion over 61 layers
        187.10528
        """
        query = hidden * self.q_lora_rank + self.q_lora_rank * self.heads * self.query_head_dim
        down = hidden * (self.kv_lora_rank + self.qk_rope_head_dim)
        up = self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_head_dim)
        return query + down + up + self.heads * self.v_head_dim * hidden

    @property
    def query_head_dim(self) -> int:
        """Width of one expanded query head: the part without and the part with rotation."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def kv_elements_per_token(self) -> int:
        """Count cached elements per token and layer: the latent and the shared rotary key.

        >>> LatentAttention(kind="mla", heads=128, q_lora_rank=1536, kv_lora_rank=512,
        ...                 qk_nope_head_dim=128, qk_rope_head_dim=64,
        ...                 v_head_dim=128).kv_elements_per_token()
        576
        """
        return self.kv_lora_rank + self.qk_rope_head_dim


Attention = Annotated[GroupedQueryAttention | LatentAttention, Field(discriminator="kind")]


class MixtureOfExperts(StrictModel):
    """Routed and shared experts that replace the MLP in most layers."""

    experts: PositiveInt
    """Routed experts per layer."""
    experts_per_token: PositiveInt
    """Routed experts that each token visits (top-k)."""
    intermediate: PositiveInt
    """Inner width of one routed expert."""
    shared_experts: int = 0
    """Experts that every token visits."""
    shared_intermediate: PositiveInt | None = None
    """Inner width of one shared expert; that of a routed one unless given."""
    first_dense_layers: int = 0
    """Leading layers that keep a dense MLP."""

    @property
    def shared_width(self) -> int:
        """Inner width of all shared experts of a layer together."""
        return self.shared_experts * (self.shared_intermediate or self.intermediate)


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
    attention: Attention
    dense_intermediate: PositiveInt
    """Inner width of the gated MLP of a dense layer."""
    moe: MixtureOfExperts | None = None
    vocabulary: PositiveInt
    max_positions: PositiveInt
    """Longest context in tokens."""
    tied_embeddings: bool = False

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return 0 if self.moe is None else self.layers - self.moe.first_dense_layers

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return self.layers - self.moe_layers

    @property
    def embedding_parameters(self) -> int:
        """Weights of one vocabulary matrix (input embedding or LM head)."""
        return self.vocabulary * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert: gate, up and down projection."""
        return 0 if self.moe is None else 3 * self.hidden * self.moe.intermediate

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers but the routed experts: what every token meets."""
        attention = self.layers * self.attention.parameters(self.hidden)
        mlp = self.dense_layers * 3 * self.hidden * self.dense_intermediate
        if self.moe is None:
            return attention + mlp
        each = 3 * self.hidden * self.moe.shared_width + self.hidden * self.moe.experts
        return attention + mlp + self.moe_layers * each

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

"""How one replica of a model is split over the chips of a system."""

from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from sim.model import Attention, GroupedQueryAttention, LinearAttention, Model
from sim.schema import StrictModel
from sim.units import PositiveInt

Axis = Literal["tp", "attention_dp", "experts", "cp", "pp"]
"""A way in which the chips of a replica work together."""


class ChipGroup(NamedTuple):
    """Chips of a replica that exchange data: ``ranks`` chips, each ``stride`` after the last."""

    ranks: int
    stride: int


class Parallelism(StrictModel):
    """The split of one replica over its chips, and where the routed experts live.

    A replica has ``pp`` stages; a stage has ``cp * attention_dp * tp`` chips. The experts of a
    layer live on the ``attention_dp * tp`` chips of one context-parallel rank together.
    """

    tp: PositiveInt
    """Tensor-parallel ranks: attention and dense layers are cut over them."""
    pp: PositiveInt = 1
    """Pipeline stages: each has its share of the layers."""
    attention_dp: PositiveInt = 1
    """Data-parallel attention ranks: each has sequences of its own, and all share the experts."""
    cp: PositiveInt = 1
    """Context-parallel ranks: each has its share of every prompt and of its KV cache."""
    ep: PositiveInt = 1
    """Expert-parallel ranks, a divisor of ``attention_dp * tp``: whole experts are dealt to so
    many ranks; what is left of the chips cuts each expert."""
    sequence_parallel: bool = False
    """Whether norms and residuals are cut over the tensor ranks by tokens (the all-reduce then
    becomes a reduce-scatter and an all-gather)."""
    micro_batches: PositiveInt | None = None
    """Batches that a pipeline works on at the same time; one per stage unless given."""
    expert_exchange: Literal["all_reduce", "all_to_all"] = "all_reduce"
    """How tokens meet experts that were dealt out. ``all_reduce``: every rank has all tokens and
    computes its own experts' part, which is summed up (vLLM, SGLang and TensorRT-LLM with tensor
    parallel attention; with data-parallel attention the tokens are gathered and the results
    scattered); ``all_to_all``: the ranks send their tokens to their experts and back (DeepEP)."""

    @model_validator(mode="after")
    def _experts_are_dealt_evenly(self) -> Self:
        if self.expert_ranks % self.ep:
            msg = (
                f"ep is {self.ep} but must divide the attention_dp * tp = {self.expert_ranks} "
                "chips that share the experts"
            )
            raise ValueError(msg)
        return self

    @property
    def expert_ranks(self) -> int:
        """Chips that share the experts of a layer."""
        return self.attention_dp * self.tp

    @property
    def expert_cut(self) -> int:
        """Chips over which each expert is cut."""
        return self.expert_ranks // self.ep

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens travel to the ranks of their experts."""
        return self.ep > 1 and self.expert_exchange == "all_to_all"

    @property
    def stage_chips(self) -> int:
        """Chips of one pipeline stage."""
        return self.cp * self.attention_dp * self.tp

    @property
    def chips(self) -> int:
        """Chips of one replica."""
        return self.pp * self.stage_chips

    def group(self, axis: Axis) -> ChipGroup:
        """Give the chips that work together along an axis.

        Chips are numbered with the tensor ranks innermost, then attention ranks, context ranks
        and stages. ``experts`` are the tensor and the attention ranks together.

        >>> split = Parallelism(tp=4, attention_dp=2, pp=3)
        >>> split.group("tp"), split.group("attention_dp"), split.group("pp")
        (ChipGroup(ranks=4, stride=1), ChipGroup(ranks=2, stride=4), ChipGroup(ranks=3, stride=8))
        """
        groups: dict[Axis, ChipGroup] = {
            "tp": ChipGroup(self.tp, 1),
            "attention_dp": ChipGroup(self.attention_dp, self.tp),
            "experts": ChipGroup(self.expert_ranks, 1),
            "cp": ChipGroup(self.cp, self.expert_ranks),
            "pp": ChipGroup(self.pp, self.stage_chips),
        }
        return groups[axis]


def problems(parallelism: Parallelism, model: Model, domain_chips: int) -> list[str]:
    """Say which rules a split breaks, in words; an empty list means that it is legal.

    Parameters
    ----------
    parallelism : Parallelism
    model : Model
    domain_chips : int
        Chips that one scale-up domain joins.

    >>> from sim.catalog import open_catalog
    >>> llama = open_catalog().model("llama_3_1_70b")
    >>> problems(Parallelism(tp=8), llama, domain_chips=8)
    []
    >>> problems(Parallelism(tp=16), llama, domain_chips=8)
    ['tp is 16 but the scale-up domain joins 8 chips']
    >>> problems(Parallelism(tp=3), llama, domain_chips=8)[0]
    '64 query heads cannot be cut over tp = 3 ranks'
    """
    tp = parallelism.tp
    found = []
    if tp > domain_chips:
        found.append(f"tp is {tp} but the scale-up domain joins {domain_chips} chips")
    for group in model.attention:
        found += _uneven_heads(group, tp)
    if parallelism.ep > 1 and model.moe is None:
        found.append(f"ep is {parallelism.ep} but the model has no experts")
    if model.moe is not None and model.moe.experts % parallelism.ep:
        found.append(f"{model.moe.experts} experts cannot be dealt to ep = {parallelism.ep} ranks")
    return found


def _uneven_heads(group: Attention, tp: int) -> list[str]:
    """Say which heads of a group of layers cannot be cut over the tensor ranks."""
    heads = group.value_heads if isinstance(group, LinearAttention) else group.heads
    found = []
    if heads % tp:
        found.append(f"{heads} query heads cannot be cut over tp = {tp} ranks")
    if isinstance(group, GroupedQueryAttention):
        kv_heads = group.kv_heads
        if max(kv_heads, tp) % min(kv_heads, tp):
            found.append(f"{kv_heads} KV heads and tp = {tp}: one must divide the other")
    return found


def kv_heads_per_chip(group: Attention, tp: int) -> int:
    """KV heads that each tensor rank stores: at least one, so heads are copied when tp is larger.

    The latent of MLA is shared by all heads, so every rank keeps all of it.
    """
    return max(1, group.kv_heads // tp) if isinstance(group, GroupedQueryAttention) else 1


def kv_elements_per_token_per_layer(group: Attention, tp: int) -> int:
    """Return the elements cached per token and layer on one chip.

    Llama 3.1 70B has 8 KV heads of 128: at tp = 8 each chip keeps one key and one value head.

    >>> from sim.catalog import open_catalog
    >>> group = open_catalog().model("llama_3_1_70b").attention[0]
    >>> kv_elements_per_token_per_layer(group, tp=8)
    256
    """
    if isinstance(group, GroupedQueryAttention):
        return 2 * kv_heads_per_chip(group, tp) * group.head_dim
    return group.kv_elements_per_token()


def kv_elements_per_token(model: Model, tp: int) -> int:
    """Elements cached per token on one chip, all layers; a window counts like the whole context.

    >>> from sim.catalog import open_catalog
    >>> kv_elements_per_token(open_catalog().model("llama_3_1_70b"), tp=8) == 80 * 256
    True
    """
    return sum(
        group.layers * kv_elements_per_token_per_layer(group, tp) for group in model.attention
    )

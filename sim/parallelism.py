"""How one replica of a model is split over the chips of a system."""

from typing import Literal, Self

from pydantic import model_validator

from sim.model import LatentAttention, Model
from sim.schema import StrictModel
from sim.units import PositiveInt


class Parallelism(StrictModel):
    """The split of one replica: tensor parallel ranks, and where the routed experts live."""

    tp: PositiveInt
    """Tensor-parallel ranks: every layer is cut over them. Chips of a replica = ``tp``."""
    ep: PositiveInt = 1
    """Expert-parallel ranks: 1 cuts each expert over the tensor ranks, ``tp`` deals whole
    experts to the ranks."""
    expert_exchange: Literal["all_reduce", "all_to_all"] = "all_reduce"
    """How tokens meet experts that were dealt out. ``all_reduce``: every rank has all tokens and
    computes its own experts' part, which is summed up (vLLM, SGLang and TensorRT-LLM with tensor
    parallel attention); ``all_to_all``: the ranks share the tokens out and send them to their
    experts and back (DeepEP and the like)."""

    @model_validator(mode="after")
    def _experts_are_cut_or_dealt(self) -> Self:
        if self.ep not in (1, self.tp):
            msg = f"ep is {self.ep} but must be 1 or equal to tp ({self.tp})"
            raise ValueError(msg)
        return self

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens travel to the ranks of their experts."""
        return self.ep > 1 and self.expert_exchange == "all_to_all"

    @property
    def chips(self) -> int:
        """Chips of one replica."""
        return self.tp


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
    heads = model.attention.heads
    if heads % tp:
        found.append(f"{heads} query heads cannot be cut over tp = {tp} ranks")
    if not isinstance(model.attention, LatentAttention):
        kv_heads = model.attention.kv_heads
        if max(kv_heads, tp) % min(kv_heads, tp):
            found.append(f"{kv_heads} KV heads and tp = {tp}: one must divide the other")
    if parallelism.ep > 1 and model.moe is None:
        found.append(f"ep is {parallelism.ep} but the model has no experts")
    if model.moe is not None and model.moe.experts % parallelism.ep:
        found.append(f"{model.moe.experts} experts cannot be dealt to ep = {parallelism.ep} ranks")
    return found


def kv_heads_per_chip(model: Model, tp: int) -> int:
    """KV heads that each tensor rank stores: at least one, so heads are copied when tp is larger.

    The latent of MLA is shared by all heads, so every rank keeps all of it.
    """
    if isinstance(model.attention, LatentAttention):
        return 1
    return max(1, model.attention.kv_heads // tp)


def kv_elements_per_token_per_layer(model: Model, tp: int) -> int:
    """Return the elements cached per token and layer on one chip.

    Llama 3.1 70B has 8 KV heads of 128: at tp = 8 each chip keeps one key and one value head.

    >>> from sim.catalog import open_catalog
    >>> kv_elements_per_token_per_layer(open_catalog().model("llama_3_1_70b"), tp=8)
    256
    """
    attention = model.attention
    if isinstance(attention, LatentAttention):
        return attention.kv_elements_per_token()
    return 2 * kv_heads_per_chip(model, tp) * attention.head_dim

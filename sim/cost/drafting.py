"""The operators of small drafters that stand on a model: EAGLE heads and MTP modules.

Both are one decoder layer of the model's width with a product before it that joins the hidden
vector of the model with the embedding of the token, and the model's own LM head behind it.

- MTP (DeepSeek-V3, arXiv:2412.19437, section 2.2): a layer like the last ones of the model, experts
  included, behind a projection of two vectors to one. Where a model has one module, engines run it
  again for every further draft (vLLM and SGLang); with more of them each makes one draft.
- EAGLE (arXiv:2401.15077): a dense layer behind such a projection. EAGLE-3 (arXiv:2503.01840) joins
  three hidden vectors of the model to one, its queries, keys and values come from two vectors, and
  its vocabulary may be smaller.

A draft model of its own needs nothing of this: `sim.cost.layers.operators` lists it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from sim.cost.context import seen_tokens
from sim.cost.layers import operators
from sim.cost.memory import CacheUse, cache_use
from sim.cost.operators import DenseGemm, ExpertGemm, Operator, StateUpdate
from sim.cost.stage import Stage
from sim.errors import InputError
from sim.model import Attention, LinearAttention, Model
from sim.parallelism import Parallelism
from sim.precision import Precision
from sim.routing import BALANCED, Routing


@dataclass(frozen=True)
class EagleHead:
    """The shape of an EAGLE head, as far as it is not that of its model."""

    version: Literal[1, 3] = 3
    intermediate: int | None = None
    """Inner width of its MLP; that of the model's dense layers unless given."""
    vocabulary: int | None = None
    """Tokens that it can draft, with an LM head of its own; the model's head unless given."""
    attention: Attention | None = None
    """Its attention; that of the model's layers which see the whole context unless given."""


@dataclass(frozen=True)
class DraftLayer:
    """A drafter that stands on a model: its operators, and what it keeps in memory."""

    operators: tuple[Operator, ...]
    """Of one pass."""
    weight_bytes: float
    """Of one chip, without what it shares with the model (embedding, LM head)."""
    cache: CacheUse
    """What a sequence takes of one chip beside the model's own cache."""


def eagle(
    model: Model, head: EagleHead, parallelism: Parallelism, precision: Precision
) -> DraftLayer:
    """Build an EAGLE head of a model.

    Parameters
    ----------
    model : Model
    head : EagleHead
    parallelism : Parallelism
        Of the model; its tensor ranks cut the head too, and stages do not matter.
    precision : Precision

    Raises
    ------
    InputError
        The model has no dense layer and the head no inner width.
    """
    width = head.intermediate or model.mlp_intermediate
    if width is None:
        raise InputError(
            f"{model.name} has no dense layers that an EAGLE head could be like: give the inner "
            "width of the head's MLP, or take another method",
            key="method",
        )
    attention = head.attention or _lasting(model)
    layer = _one_layer(model, attention).model_copy(
        update={
            "mlp_intermediate": width,
            "mlp_layers": 1,
            "moe": None,
            "vocabulary": head.vocabulary or model.vocabulary,
        }
    )
    joined = 2 if head.version == 1 else 3
    listed = _listed(layer, joined, _on_one_stage(parallelism, dense=True), precision, BALANCED)
    if head.version == 3:
        listed = tuple(_reading_two_vectors(op, model.hidden) for op in listed)
    own_head = head.vocabulary is not None
    return _kept(
        layer, listed, _on_one_stage(parallelism, dense=True), precision, own_head=own_head
    )


def mtp(
    model: Model, parallelism: Parallelism, precision: Precision, routing: Routing = BALANCED
) -> DraftLayer:
    """Build the module that predicts further tokens of a model which was trained with one.

    Parameters
    ----------
    model : Model
    parallelism : Parallelism
        Of the model; stages do not matter.
    precision : Precision
    routing : Routing

    Raises
    ------
    InputError
        The model has no such module.
    """
    if not model.mtp_layers:
        raise InputError(
            f"{model.name} has no MTP module (mtp_layers is 0): speculate with an EAGLE head, a "
            "draft model or n-grams",
            key="method",
        )
    split = _on_one_stage(parallelism, dense=model.moe is None)
    layer = _one_layer(model, _lasting(model))
    kept = _kept(
        layer, _listed(layer, 2, split, precision, routing), split, precision, own_head=False
    )
    modules = model.mtp_layers
    cache = kept.cache._replace(
        growing_bytes=kept.cache.growing_bytes * modules,
        windowed_bytes=kept.cache.windowed_bytes * modules,
        state_bytes=kept.cache.state_bytes * modules,
    )
    return replace(kept, weight_bytes=kept.weight_bytes * modules, cache=cache)


def _lasting(model: Model) -> Attention:
    """Give the attention of the layers that see the whole context, else of the last ones."""
    whole = (
        group
        for group in model.attention
        if not isinstance(group, LinearAttention) and seen_tokens(group) is None
    )
    return next(whole, model.attention[-1])


def _one_layer(model: Model, attention: Attention) -> Model:
    """Make a model of one layer with the width and the experts of another."""
    moe = None if model.moe is None else model.moe.model_copy(update={"layers": 1})
    return model.model_copy(
        update={
            "layers": 1,
            "attention": (attention.model_copy(update={"layers": 1}),),
            "mlp_layers": 0 if moe is not None else 1,
            "moe": moe,
            "per_layer_embedding": None,
            "mtp_layers": 0,
        }
    )


def _on_one_stage(parallelism: Parallelism, *, dense: bool) -> Parallelism:
    """Lay a drafter over the chips of one stage; without experts there are none to deal out."""
    changes: dict[str, object] = {"pp": 1, "micro_batches": None}
    if dense:
        changes |= {"ep": 1, "expert_exchange": "all_reduce"}
    return parallelism.model_copy(update=changes)


def _listed(
    layer: Model, joined: int, parallelism: Parallelism, precision: Precision, routing: Routing
) -> tuple[Operator, ...]:
    """List one pass: the product that joins vectors, the layer, the LM head."""
    stage = Stage(layer, parallelism, precision, routing)
    join = stage.unquantised("join_vectors", 1, layer.hidden, joined * layer.hidden)
    return (join, *operators(layer, parallelism, precision, routing))


def _reading_two_vectors(operator: Operator, hidden: int) -> Operator:
    """Let queries, keys and values come from the hidden vector and the embedding together."""
    if not isinstance(operator, DenseGemm) or operator.k != hidden:
        return operator
    if not operator.name.startswith(("qkv_projection", "latent_down")):
        return operator
    return replace(operator, k=2 * hidden)


def _kept(
    layer: Model,
    listed: tuple[Operator, ...],
    parallelism: Parallelism,
    precision: Precision,
    *,
    own_head: bool,
) -> DraftLayer:
    stored = [
        op.calls * op.weight_bytes
        for op in listed
        if isinstance(op, DenseGemm | ExpertGemm | StateUpdate) and (own_head or op.scope != "head")
    ]
    return DraftLayer(listed, sum(stored), cache_use(layer, parallelism, precision))

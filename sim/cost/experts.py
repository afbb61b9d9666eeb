"""The operators of a mixture of experts on the slowest chip.

Two ways to bring tokens to experts that were dealt out (`Parallelism.expert_exchange`):

- ``all_reduce``: every chip sees all tokens of the ranks that share the experts, which
  data-parallel attention has to gather first, and computes its own experts' part; the parts are
  summed up. Shared experts are cut over the tensor ranks and see the tokens of their own rank.
- ``all_to_all``: each chip has its part of the tokens, also among the tensor ranks of one attention
  rank; it routes them, sends them to their experts and gets the results back. Shared experts are
  copied to every chip (DeepSeek: 9 routed and 1 shared expert per chip; vLLM and SGLang with
  DeepEP likewise).
"""

from dataclasses import replace
from typing import Literal

from sim.cost.mlp import mlp_products
from sim.cost.operators import DenseGemm, ExpertExchange, ExpertGemm, Operator
from sim.cost.stage import Stage, share
from sim.errors import InputError
from sim.model import MixtureOfExperts
from sim.parallelism import ChipGroup
from sim.precision import ACTIVATION_BYTES, input_dtype
from sim.units import DTYPE_BYTES


def expert_operators(stage: Stage) -> list[Operator]:
    """List the operators of routed and shared experts; none for a dense model.

    Raises
    ------
    InputError
        When the experts with their replicas cannot be dealt out evenly.
    """
    moe = stage.model.moe
    if moe is None:
        return []
    found: list[Operator] = [_router(stage, moe), _routed(stage, moe), *_latent(stage, moe)]
    found += _shared(stage, moe)
    if stage.parallelism.exchanges_tokens:
        found += [_exchange(stage, moe, "dispatch"), _exchange(stage, moe, "combine")]
    return found


def _row_ranks(stage: Stage) -> int:
    """Chips of an attention rank that share its tokens on their way to the experts."""
    return stage.parallelism.tp if stage.parallelism.exchanges_tokens else 1


def _router(stage: Stage, moe: MixtureOfExperts) -> DenseGemm:
    router = stage.unquantised("router", moe.layers, moe.experts, stage.model.hidden)
    if stage.parallelism.exchanges_tokens:
        return replace(router, row_ranks=_row_ranks(stage))
    return replace(router, scope="group")


def _routed(stage: Stage, moe: MixtureOfExperts) -> ExpertGemm:
    parallelism, routing = stage.parallelism, stage.routing
    slots = moe.experts + routing.redundant_experts
    if slots % parallelism.ep:
        raise InputError(
            f"redundant_experts is {routing.redundant_experts}: {slots} experts and replicas "
            f"cannot be dealt to ep = {parallelism.ep} ranks",
            key=["routing.redundant_experts", "parallelism.ep"],
        )
    weights = stage.precision.expert_weights
    return ExpertGemm(
        "experts",
        stage.calls(moe.layers),
        moe.latent_hidden or stage.model.hidden,
        share(moe.intermediate, parallelism.expert_cut),
        moe.experts,
        slots // parallelism.ep,
        moe.experts_per_token,
        weights,
        matrices=moe.matrices,
        routing=routing,
        activation_dtype=stage.activations(weights),
    )


def _latent(stage: Stage, moe: MixtureOfExperts) -> list[DenseGemm]:
    """Projections to the narrower vectors of latent experts and back, whole on every chip."""
    if moe.latent_hidden is None:
        return []
    hidden, latent = stage.model.hidden, moe.latent_hidden
    down = stage.gemm("expert_latent_down", moe.layers, latent, hidden)
    up = stage.gemm("expert_latent_up", moe.layers, hidden, latent)
    return [replace(product, row_ranks=_row_ranks(stage)) for product in (down, up)]


def _shared(stage: Stage, moe: MixtureOfExperts) -> list[DenseGemm]:
    if not moe.shared_width:
        return []
    exchanges = stage.parallelism.exchanges_tokens
    width = moe.shared_width if exchanges else stage.share(moe.shared_width)
    ranks = _row_ranks(stage)
    return mlp_products("shared_expert", stage, moe.layers, width, moe.matrices, ranks)


def _exchange(
    stage: Stage, moe: MixtureOfExperts, half: Literal["dispatch", "combine"]
) -> ExpertExchange:
    """Dispatch tokens in the format that the experts read, combine in 16 bits.

    Below 8 bits the scales of many small blocks would have to travel too; DeepEP sends 8 bits, and
    its scales (one of 32 bits for 128 elements) are left out, as in the sizes it is measured by.
    Where experts are cut too, a token goes to all parts of an expert and each sends its summand.
    """
    parallelism = stage.parallelism
    weights = stage.precision.expert_weights
    read = DTYPE_BYTES[stage.activations(weights) or input_dtype(weights)]
    dispatched = max(min(read, ACTIVATION_BYTES), DTYPE_BYTES["fp8"])
    return ExpertExchange(
        f"expert_{half}",
        stage.calls(moe.layers),
        half,
        ChipGroup(parallelism.ep, parallelism.expert_cut),
        moe.latent_hidden or stage.model.hidden,
        moe.experts_per_token,
        dispatched if half == "dispatch" else ACTIVATION_BYTES,
        parallelism.exchange_mode,
        moe.experts,
    )

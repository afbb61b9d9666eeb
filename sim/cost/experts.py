"""The operators of a mixture of experts on one chip."""

from typing import Literal

from sim.cost.mlp import mlp_operators, share
from sim.cost.operators import DenseGemm, ExpertExchange, ExpertGemm, Operator
from sim.model import MixtureOfExperts, Model
from sim.parallelism import Parallelism
from sim.precision import ACTIVATION_BYTES, Precision, input_dtype
from sim.units import DTYPE_BYTES


def expert_operators(
    model: Model, parallelism: Parallelism, precision: Precision
) -> list[Operator]:
    """List the operators of routed and shared experts; none for a dense model."""
    moe = model.moe
    if moe is None:
        return []
    found: list[Operator] = [
        DenseGemm("router", model.moe_layers, "tokens", moe.experts, model.hidden, "bf16"),
        ExpertGemm(
            "experts",
            model.moe_layers,
            model.hidden,
            share(moe.intermediate, parallelism.expert_cut),
            moe.experts,
            moe.experts // parallelism.ep,
            moe.experts_per_token,
            precision.expert_weights,
        ),
    ]
    if moe.shared_experts:
        width = share(moe.shared_width, parallelism.tp)
        found += mlp_operators(
            "shared_expert", model.moe_layers, model.hidden, width, moe.matrices, precision
        )
    if parallelism.exchanges_tokens:
        found += _expert_exchange(moe, model, parallelism.ep, precision)
    return found


def _expert_exchange(
    moe: MixtureOfExperts, model: Model, ranks: int, precision: Precision
) -> list[Operator]:
    """Dispatch tokens to the ranks of their experts in the weights' format, combine in 16 bits.

    Below 8 bits the scales of many small blocks would have to travel too; DeepEP sends 8 bits.
    """
    dispatched = max(DTYPE_BYTES[input_dtype(precision.expert_weights)], DTYPE_BYTES["fp8"])

    def half(name: Literal["dispatch", "combine"], element_bytes: float) -> ExpertExchange:
        return ExpertExchange(
            f"expert_{name}",
            model.moe_layers,
            name,
            ranks,
            model.hidden,
            moe.experts_per_token,
            element_bytes,
        )

    return [half("dispatch", dispatched), half("combine", ACTIVATION_BYTES)]

"""How many kernels the operators of a model launch."""

from dataclasses import replace

import pytest

from sim.catalog import open_catalog
from sim.cost.launches import launches
from sim.cost.layers import operators as operators_of
from sim.cost.operators import DenseGemm, ExpertGemm, Operator, PrefillAttention
from sim.parallelism import Parallelism
from sim.precision import Precision

CATALOG = open_catalog()


def operators(model: str, weights: str) -> list[Operator]:
    precision = Precision.model_validate({"weights": weights, "kv_cache": "bf16"})
    return list(operators_of(CATALOG.model(model), Parallelism(tp=1), precision))


def named(listed: list[Operator], name: str) -> Operator:
    (found,) = [op for op in listed if op.name == name]
    return found


class TestProducts:
    @pytest.mark.parametrize(("weights", "expected"), [("bf16", 1), ("fp8", 2), ("nvfp4", 2)])
    def test_activations_are_quantised_first(self, weights: str, expected: int) -> None:
        assert launches(named(operators("llama_3_1_8b", weights), "mlp_down")) == expected

    def test_not_where_weights_alone_are_narrow(self) -> None:
        """Weights of four bits are widened inside the kernel."""
        product = DenseGemm("up", 1, "tokens", n=64, k=64, dtype="int4")
        assert launches(product) == 1
        assert launches(replace(product, activation_dtype="fp8")) == 2


class TestLayers:
    def test_a_mixture_launches_more_than_a_dense_layer(self) -> None:
        listed = operators("mixtral_8x7b", "bf16")
        (experts,) = [op for op in listed if isinstance(op, ExpertGemm)]
        assert launches(experts) == 6
        assert launches(named(listed, "router")) == 1

    def test_latent_attention_has_small_kernels_around_it(self) -> None:
        by_kind = {
            op.kind: launches(op)
            for model in ("deepseek_r1", "llama_3_1_8b")
            for op in operators(model, "fp8")
            if isinstance(op, PrefillAttention)
        }
        assert by_kind == {"mla": 7, "gqa": 1}

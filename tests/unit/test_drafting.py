"""Drafters that stand on a model: what they store, keep and do, by hand from published shapes."""

import pytest

from sim.catalog import open_catalog
from sim.cost.drafting import DraftLayer, EagleHead, eagle, mtp
from sim.cost.operators import DecodeAttention, DenseGemm, ExpertGemm
from sim.cost.work import StepShape
from sim.errors import InputError
from sim.parallelism import Parallelism
from sim.precision import Precision

CATALOG = open_catalog()
LLAMA = CATALOG.model("llama_3_1_70b")
DEEPSEEK = CATALOG.model("deepseek_r1")
WIDE = Precision(weights="bf16", kv_cache="bf16")
FP8 = Precision(weights="fp8", kv_cache="fp8")
ONE = Parallelism(tp=1)


def products(drafter: DraftLayer) -> dict[str, tuple[int, int]]:
    """Widths of the products of a pass."""
    return {op.name: (op.k, op.n) for op in drafter.operators if isinstance(op, DenseGemm)}


class TestEagle:
    LAYER = 8192 * (64 + 2 * 8) * 128 + 8192 * 8192 + 3 * 8192 * 28672

    def test_the_first_version_joins_two_vectors_before_a_layer(self) -> None:
        head = eagle(LLAMA, EagleHead(version=1), ONE, WIDE)
        assert head.weight_bytes == 2 * (self.LAYER + 2 * 8192 * 8192)
        assert products(head)["join_vectors"] == (2 * 8192, 8192)
        assert products(head)["lm_head"] == (8192, 128_256)

    def test_the_third_joins_three_and_attends_from_two(self) -> None:
        head = eagle(LLAMA, EagleHead(version=3, vocabulary=32_000), ONE, WIDE)
        # a fusion of three vectors, queries, keys and values from two, an LM head of its own
        more = 3 * 8192 * 8192 + 8192 * (64 + 2 * 8) * 128 + 32_000 * 8192
        assert head.weight_bytes == 2 * (self.LAYER + more)
        assert products(head)["lm_head"] == (8192, 32_000)

    def test_its_cache_is_that_of_one_layer(self) -> None:
        head = eagle(LLAMA, EagleHead(), Parallelism(tp=8), FP8)
        assert head.cache.growing_bytes == 2 * 128
        (decode,) = (op for op in head.operators if isinstance(op, DecodeAttention))
        assert decode.work(StepShape(1, 1000)).bytes == 1000 * 256

    def test_stages_do_not_matter(self) -> None:
        split = Parallelism(tp=2, pp=4)
        assert eagle(LLAMA, EagleHead(), split, FP8) == eagle(
            LLAMA, EagleHead(), Parallelism(tp=2), FP8
        )

    def test_on_experts_it_is_dense(self) -> None:
        split = Parallelism(tp=8, ep=8)
        head = eagle(DEEPSEEK, EagleHead(intermediate=18_432), split, FP8)
        assert not [op for op in head.operators if isinstance(op, ExpertGemm)]
        assert products(head)["mlp_gate_up"] == (7168, 2 * 18_432 // 8)

    def test_a_model_without_dense_layers_gives_no_width(self) -> None:
        with pytest.raises(InputError, match="inner width"):
            eagle(CATALOG.model("gpt_oss_120b"), EagleHead(), ONE, FP8)


class TestMtp:
    def test_the_module_of_deepseek_has_11_5_billion_parameters(self) -> None:
        """DeepSeek-V3 and R1 state 14 B with embedding and head, which the model shares.

        187.1 M of attention, 257 experts of 3 x 7168 x 2048, a router, 2 x 7168 x 7168 in 16 bits.
        """
        module = mtp(DEEPSEEK, ONE, FP8)
        quantised = 187_105_280 + 257 * 3 * 7168 * 2048
        # beside the original the expansion of latents is kept in 16 bits, as in all layers
        copy = 512 * 128 * 256
        wide = 7168 * 256 + 2 * 7168 * 7168 + copy
        assert module.weight_bytes == quantised + 2 * wide
        assert 11.4e9 < quantised + wide - copy < 11.7e9

    def test_its_cache_is_that_of_one_layer(self) -> None:
        assert mtp(DEEPSEEK, ONE, FP8).cache.growing_bytes == 576

    def test_its_experts_are_touched_by_every_token(self) -> None:
        module = mtp(DEEPSEEK, Parallelism(tp=8, ep=8), FP8)
        (experts,) = (op for op in module.operators if isinstance(op, ExpertGemm))
        assert (experts.calls, experts.local_experts, experts.experts) == (1, 32, 256)

    def test_hybrids_draft_by_a_layer_that_sees_the_whole_context(self) -> None:
        hybrid = CATALOG.model("qwen3_next_80b_a3b")
        module = mtp(hybrid.model_copy(update={"mtp_layers": 1}), ONE, FP8)
        assert [op.name for op in module.operators if isinstance(op, DecodeAttention)] == [
            "attention_decode"
        ]

    def test_several_modules_take_their_memory_each(self) -> None:
        three = DEEPSEEK.model_copy(update={"mtp_layers": 3})
        one, all_three = mtp(DEEPSEEK, ONE, FP8), mtp(three, ONE, FP8)
        assert all_three.operators == one.operators
        assert all_three.weight_bytes == 3 * one.weight_bytes
        assert all_three.cache.growing_bytes == 3 * one.cache.growing_bytes

    def test_a_model_without_one_says_so(self) -> None:
        with pytest.raises(InputError, match="no MTP module"):
            mtp(LLAMA, ONE, FP8)

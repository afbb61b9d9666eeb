"""Work of single operators by hand."""

import math

import numpy as np
import pytest

from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertExchange,
    ExpertGemm,
    IndexScores,
    PrefillAttention,
    StateUpdate,
)
from sim.cost.work import StepShape
from sim.parallelism import ChipGroup
from sim.routing import Routing

EXPERTS = ExpertGemm("e", 1, 1000, 500, 64, 8, 4, "fp8")
"""One of eight ranks with eight experts of 1.5 MB each."""


class TestDenseGemm:
    def test_activations_are_read_in_the_format_that_was_asked_for(self) -> None:
        shape = StepShape(decode_sequences=10)
        usual = DenseGemm("g", 1, "tokens", n=100, k=200, dtype="int4")
        asked = DenseGemm("g", 1, "tokens", n=100, k=200, dtype="int4", activation_dtype="fp8")
        # 10 rows of 200 activations: one byte less of each
        assert usual.work(shape).bytes - asked.work(shape).bytes == 10 * 200
        # what the kernel was measured with goes first
        assert asked.work(shape, "bf16") == usual.work(shape)

    def test_int4_weights_carry_a_scale_for_each_group(self) -> None:
        gemm = DenseGemm("g", 1, "tokens", n=128, k=1000, dtype="int4")
        assert gemm.weight_bytes == 1000 * (128 / 2 + 2)

    @pytest.mark.parametrize(("dtype", "bits"), [("nvfp4", 4 + 8 / 16), ("mxfp4", 4 + 8 / 32)])
    def test_block_scales_of_4_bit_floats(self, dtype: str, bits: float) -> None:
        gemm = DenseGemm("g", 1, "tokens", n=64, k=64, dtype=dtype)  # type: ignore[arg-type]
        assert gemm.weight_bytes == 64 * 64 * bits / 8

    def test_rows_that_are_shared(self) -> None:
        shared = DenseGemm("g", 1, "tokens", n=100, k=200, dtype="fp8", row_ranks=8)
        own = DenseGemm("g", 1, "tokens", n=100, k=200, dtype="fp8")
        # 17 rows over 8 chips: three on the fullest, and every one reads the weights
        ours, theirs = (
            op.work(StepShape(decode_sequences=n)) for op, n in ((shared, 17), (own, 3))
        )
        assert ours == theirs

    def test_a_copy_that_lies_idle_is_stored_and_not_read(self) -> None:
        gemm = DenseGemm("g", 1, "tokens", n=100, k=200, dtype="bf16", idle_dtype="fp8")
        assert gemm.weight_bytes == 20_000 * (2 + 1)
        assert gemm.streamed_bytes(StepShape(decode_sequences=1)) == 20_000 * 2
        assert gemm.streamed_bytes(StepShape()) == 0


class TestExpertGemm:
    def test_reads_the_weights_of_touched_experts(self) -> None:
        shape = StepShape(decode_sequences=16)
        touched = 8 * (1 - (60 / 64) ** 16)
        assert EXPERTS.streamed_bytes(shape) == pytest.approx(touched * 3 * 1000 * 500)
        assert EXPERTS.weight_bytes == 8 * 3 * 1000 * 500

    def test_experts_without_a_gate(self) -> None:
        op = ExpertGemm("e", 1, 1000, 500, 4, 4, 4, "fp8", matrices=2)
        flop, moved = op.work(StepShape(decode_sequences=2))
        # 8 visits of two products; each reads 1000, writes 500 in 16 bits, reads 500, writes 1000
        assert flop == 8 * 2 * 2 * 1000 * 500
        assert moved == pytest.approx(4 * 1e6 + 8 * (1000 + 500 * 2 + 500 + 1000 * 2))

    def test_a_skewed_router_makes_the_slowest_rank_slower(self) -> None:
        routing = Routing(skew=0.8, sampling_noise=False)
        skewed = ExpertGemm("e", 1, 1000, 500, 64, 8, 4, "fp8", routing=routing)
        many = StepShape(prefill_tokens=10_000)
        hottest = routing.hottest_over_mean(64, 4, 8)
        assert hottest > 1.1
        assert skewed.work(many).flop == pytest.approx(hottest * EXPERTS.work(many).flop)

    def test_replicas_are_stored(self) -> None:
        # 64 experts and 16 replicas on 8 ranks
        op = ExpertGemm("e", 1, 1000, 500, 64, 10, 4, "fp8", routing=Routing(redundant_experts=16))
        assert op.ranks == 8
        assert op.weight_bytes == 10 * 1.5e6


class TestSparseAttention:
    """DeepSeek-V3.2: 128 heads, latents of 512 + 64, index keys of 128, 2048 keys picked."""

    SCORES = IndexScores("s", 1, "decode_sequences", 64, 128, "fp8")
    DECODE = DecodeAttention("a", 1, "mla", 128, 1, 576, 512, 576, "fp8", windowed=True)

    def test_decode_reads_all_index_keys_and_few_others(self) -> None:
        shape = StepShape(1, 100_000, 2048)
        # 128 bytes of index key, a score of 4 bytes written and read
        assert self.SCORES.work(shape).bytes == 100_000 * (128 + 8)
        assert self.DECODE.work(shape).bytes == 2048 * 576
        assert self.SCORES.work(shape).flop == 100_000 * 2 * 64 * 128
        assert self.DECODE.work(shape).flop == 2048 * 2 * 128 * (576 + 512)

    def test_prompts_score_every_pair(self) -> None:
        op = IndexScores("s", 1, "prefill_tokens", 64, 128, "fp8")
        shape = StepShape(prefill_tokens=10, prefill_pairs=55)
        assert op.work(shape).flop == 55 * 2 * 64 * 128
        # each token brings 64 index queries and a key; each pair has a score
        assert op.work(shape).bytes == 10 * 65 * 128 + 55 * 8

    def test_compressed_index_keys(self) -> None:
        op = IndexScores("s", 1, "decode_sequences", 64, 128, "fp8", tokens_per_key=4)
        assert op.work(StepShape(1, 1000)).flop == 250 * 2 * 64 * 128


class TestKeys:
    """What a query sees besides the two sums that a step knows."""

    SHAPE = StepShape(3, 3 * 5000, 3 * 2048, 1, 100, 5050, 5050)

    def test_entries_of_several_tokens_and_the_latest_as_they_are(self) -> None:
        op = DecodeAttention(
            "a", 1, "mla", 1, 1, 1, 1, 1, "fp8", True, tokens_per_key=4, latest_keys=128
        )
        assert op.context_tokens(self.SHAPE) == 3 * (2048 / 4 + 128)

    def test_a_narrower_window_than_the_model_s_widest(self) -> None:
        op = DecodeAttention(
            "a", 1, "gqa", 1, 1, 1, 1, 1, "fp8", tokens_per_key=math.inf, latest_keys=128
        )
        assert op.context_tokens(self.SHAPE) == 3 * 128
        prompt = PrefillAttention(
            "a", 1, "gqa", 1, 1, 1, "bf16", "fp8", 1.0, tokens_per_key=math.inf, latest_keys=128
        )
        assert prompt.pairs(self.SHAPE) == 100 * 128


class TestStateUpdate:
    def test_taps_of_the_convolution_are_read_once(self) -> None:
        op = StateUpdate("s", 1, "prefill_tokens", 400.0, 10.0, 20.0, conv_weights=50)
        assert op.weight_bytes == 100
        assert op.work(StepShape(prefill_tokens=3)) == (30.0, 60.0 + 100)
        assert op.work(StepShape()) == (0, 0)


class TestCollective:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [("tokens", 103), ("sequences", 4), ("decode_sequences", 3), ("prefill_tokens", 100)],
    )
    def test_payload_by_rows(self, rows: str, expected: int) -> None:
        op = Collective("c", 1, "send", ChipGroup(2, 8), 10.0, rows)  # type: ignore[arg-type]
        shape = StepShape(decode_sequences=3, prefill_sequences=1, prefill_tokens=100)
        assert op.payload_bytes(shape) == expected * 10
        assert op.work(shape) == (0.0, expected * 10)


class TestExchange:
    def test_deepep_by_hand(self) -> None:
        """128 tokens on each of 8 ranks, 8 picks, vectors of 7168: 7.34 MB in FP8."""
        op = ExpertExchange("x", 58, "dispatch", ChipGroup(8, 1), 7168, 8, 1.0)
        # DeepEP's README: 77 us at 98 GB/s; the scales that travel along are the rest
        assert op.picked_bytes(8 * 128) / 98e9 == pytest.approx(77e-6, rel=0.04)

    def test_bytes_by_hand(self) -> None:
        op = ExpertExchange("x", 1, "dispatch", ChipGroup(4, 1), 1000, 2, element_bytes=1)
        # 40 tokens on 4 ranks: 10 each, two picks each of 1000 bytes
        assert op.picked_bytes(40) == 10 * 2 * 1000
        # two random picks of four ranks meet 1 + 3/4 distinct ones
        assert op.sent_bytes(40) == pytest.approx(10 * 1.75 * 1000, rel=1e-12)
        assert op.work(StepShape(decode_sequences=40)).bytes == op.sent_bytes(40)

    def test_a_rank_is_sent_a_token_once(self) -> None:
        """Draw picks at random and count the distinct ranks that they fall on."""
        rng = np.random.default_rng(7)
        ranks, picks, tokens = 8, 8, 20_000
        drawn = rng.integers(ranks, size=(tokens, picks))
        distinct = np.mean([np.unique(row).size for row in drawn])
        op = ExpertExchange("x", 1, "dispatch", ChipGroup(ranks, 1), 1, picks, 1.0)
        assert op.sent_bytes(ranks) == pytest.approx(distinct, rel=0.005)


@pytest.mark.parametrize(
    "op",
    [
        DenseGemm("g", 1, "tokens", 10, 10, "fp8", row_ranks=2),
        EXPERTS,
        TestSparseAttention.SCORES,
        TestSparseAttention.DECODE,
        StateUpdate("s", 1, "decode_sequences", 4.0, 1.0, 8.0, conv_weights=3),
        Elementwise("n", 1, 100.5),
        Collective("c", 1, "all_reduce", ChipGroup(2, 1), 10.0),
        ExpertExchange("x", 1, "combine", ChipGroup(2, 1), 10, 2, 2.0),
    ],
    ids=lambda op: op.name,
)
def test_arrays_are_many_steps_at_once(op: Collective) -> None:
    counts, contexts = np.array([0.0, 1.0, 7.0]), np.array([0.0, 100.0, 900.0])
    flop, moved = op.work(StepShape(counts, contexts, contexts))
    each = [op.work(StepShape(n, c, c)) for n, c in zip(counts, contexts, strict=True)]
    assert np.broadcast_to(flop, 3) == pytest.approx([work.flop for work in each], rel=1e-12)
    assert np.broadcast_to(moved, 3) == pytest.approx([work.bytes for work in each], rel=1e-12)

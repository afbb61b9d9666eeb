"""Padded sizes, time of the host and drafts by hand, on a chip of round figures."""

from dataclasses import replace

import pocket_chip
import pytest

from sim.cost.execution import PLAIN, Execution, HostTime, Padding, Speculation
from sim.cost.operators import (
    DecodeAttention,
    DenseGemm,
    ExpertGemm,
    IndexScores,
    Operator,
    PrefillAttention,
    PrefixExpansion,
)
from sim.cost.shares import Shares
from sim.cost.table import StepTable
from sim.cost.timer import ELEMENTWISE_EFFICIENCY, StepTimer
from sim.cost.work import StepShape
from sim.efficiency import EngineKernels, MlaDecodeKernel
from sim.errors import InputError
from sim.overhead import NO_OVERHEAD, EngineOverhead
from sim.parallelism import Parallelism

GEMM = DenseGemm("gemm", 10, "tokens", n=1000, k=1000, dtype="fp8")
HEAD = DenseGemm("head", 1, "sequences", n=1000, k=1000, dtype="fp8", scope="head")
DECODE = DecodeAttention("decode", 10, "gqa", 8, 1, 100, 100, 200, "fp8")
EXPERTS = ExpertGemm("experts", 10, 1000, 500, 16, 16, 2, "fp8")
PREFILL = PrefillAttention(
    "prefill", 10, "gqa", 8, 100, 100, "bf16", "fp8", 5000.0, prefix_bytes_per_token=200.0
)
PLACE = pocket_chip.WHOLE


def timer(
    *operators: Operator,
    execution: Execution = PLAIN,
    overhead: EngineOverhead = NO_OVERHEAD,
    shares: Shares = PLACE,
) -> StepTimer:
    """Build the timer of some operators, run in some way."""
    plain = pocket_chip.timer(*operators, overhead=overhead, shares=shares)
    placement = plain.placement._replace(execution=execution)
    return StepTimer(
        plain.operators, plain.accelerator, plain.kernels, plain.network, overhead, placement
    )


class TestPadding:
    GRAPHS = Execution(Padding(decode_sizes=(1, 2, 4, 8), eager_layer_s=1e-6))

    def test_products_see_the_size_of_the_graph_and_attention_the_sequences(self) -> None:
        padded, plain = timer(GEMM, DECODE, execution=self.GRAPHS), timer(GEMM, DECODE)
        shape = StepShape(decode_sequences=5, decode_context_tokens=5000)
        assert padded.time(GEMM, shape) == plain.time(GEMM, StepShape(decode_sequences=8))
        assert padded.time(DECODE, shape) == plain.time(DECODE, shape)

    def test_logits_are_those_of_the_sequences(self) -> None:
        padded, plain = timer(HEAD, execution=self.GRAPHS), timer(HEAD)
        shape = StepShape(decode_sequences=5)
        assert padded.time(HEAD, shape) == plain.time(HEAD, shape)

    def test_a_step_beyond_all_graphs_is_launched_layer_by_layer(self) -> None:
        padded, plain = timer(GEMM, DECODE, execution=self.GRAPHS), timer(GEMM, DECODE)
        shape = StepShape(decode_sequences=9, decode_context_tokens=9)
        # ten layers with attention, 1 us each
        assert padded.seconds(shape) == pytest.approx(plain.seconds(shape) + 10e-6, rel=1e-12)

    def test_steps_with_prompts_have_sizes_of_their_own(self) -> None:
        padded = timer(GEMM, execution=Execution(Padding(prefill_sizes=(16, 64))))
        shape = StepShape(3, 0, 0, 1, 20, 210)
        whole = timer(GEMM).time(GEMM, StepShape(prefill_tokens=64))
        assert padded.time(GEMM, shape) == whole
        alone = StepShape(decode_sequences=3)
        assert padded.time(GEMM, alone) == timer(GEMM).time(GEMM, alone)

    def test_compiled_shapes_attend_to_padding(self) -> None:
        static = Execution(Padding(decode_sizes=(8,), prefill_sizes=(64,), static=True))
        compiled, plain = timer(DECODE, PREFILL, execution=static), timer(DECODE, PREFILL)
        shape = StepShape(decode_sequences=2, decode_context_tokens=1000)
        full = StepShape(decode_sequences=8, decode_context_tokens=4000)
        assert compiled.time(DECODE, shape).seconds == plain.time(DECODE, full).seconds
        prompt = StepShape(prefill_sequences=1, prefill_tokens=40, prefill_pairs=40 * 41 // 2)
        bucket = StepShape(prefill_sequences=1, prefill_tokens=64, prefill_pairs=64 * 65 // 2)
        assert compiled.time(PREFILL, prompt).seconds == pytest.approx(
            float(plain.time(PREFILL, bucket).seconds), rel=1e-12
        )

    def test_every_attention_rank_fills_up(self) -> None:
        ranks = Shares(Parallelism(tp=1, attention_dp=4), 64, context_spread=0.0)
        group = replace(EXPERTS, local_experts=4)
        padded = timer(group, execution=self.GRAPHS, shares=ranks)
        # ten sequences are three on the fullest rank, padded to four: sixteen tokens
        alone = timer(group).time_once(group, StepShape(prefill_tokens=16))
        assert padded.time(group, StepShape(decode_sequences=10)).seconds == alone.seconds

    def test_a_bucket_that_is_too_small_is_refused(self) -> None:
        strict = timer(GEMM, execution=Execution(Padding(prefill_sizes=(32,), strict=True)))
        with pytest.raises(InputError, match="may have 64 tokens but the largest bucket has 32"):
            StepTable.compile(strict, lambda row: row.seconds, lambda s: s, max_num_seqs=8)

    @pytest.mark.parametrize("sizes", [(0, 4), (4, 2), (2, 2)])
    def test_sizes_rise(self, sizes: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="positive and rise"):
            Padding(decode_sizes=sizes)


class TestHost:
    SHAPE = StepShape(decode_sequences=100)

    def test_the_chip_waits_for_it(self) -> None:
        slow = timer(GEMM, execution=Execution(host=HostTime(1e-3, 1e-5)))
        assert slow.seconds(self.SHAPE) == pytest.approx(timer(GEMM).seconds(self.SHAPE) + 2e-3)
        assert [row.name for row in slow.explain(self.SHAPE)] == ["gemm", "host", "engine_overhead"]

    def test_it_is_hidden_behind_the_chip(self) -> None:
        alone = timer(GEMM).seconds(self.SHAPE)  # 59 us, see test_timer
        assert alone == pytest.approx(59e-6)
        for step_s, said in ((50e-6, 59e-6), (90e-6, 90e-6)):
            beside = timer(GEMM, execution=Execution(host=HostTime(step_s, overlapped=True)))
            assert beside.seconds(self.SHAPE) == pytest.approx(said)

    def test_each_attention_rank_has_a_host_of_its_own(self) -> None:
        ranks = Shares(Parallelism(tp=1, attention_dp=4), 64)
        slow = timer(GEMM, execution=Execution(host=HostTime(0.0, 1e-5)), shares=ranks)
        assert slow.host_s(StepShape(decode_sequences=9, prefill_sequences=1)) == pytest.approx(
            3e-5
        )


class TestLaunches:
    """Ten products and the head's, with inputs quantised: 22 kernels of 10 us take 220 us."""

    LAW = NO_OVERHEAD.model_copy(update={"launch_s": 1e-5})
    EAGER = Execution(eager_prompts=True)
    PROMPT = StepShape(prefill_sequences=1, prefill_tokens=20)

    def test_a_short_step_with_prompts_takes_as_long_as_its_launches(self) -> None:
        eager = timer(GEMM, HEAD, execution=self.EAGER, overhead=self.LAW)
        assert timer(GEMM, HEAD).seconds(self.PROMPT) < 220e-6
        assert eager.seconds(self.PROMPT) == pytest.approx(220e-6)
        waiting = {row.name: row.seconds for row in eager.explain(self.PROMPT)}["launches"]
        assert waiting == pytest.approx(220e-6 - timer(GEMM, HEAD).seconds(self.PROMPT))

    def test_a_long_one_hides_them(self) -> None:
        long = StepShape(prefill_sequences=1, prefill_tokens=20_000)
        eager = timer(GEMM, HEAD, execution=self.EAGER, overhead=self.LAW)
        assert timer(GEMM, HEAD).seconds(long) > 220e-6
        assert eager.seconds(long) == timer(GEMM, HEAD).seconds(long)

    def test_graphs_hold_steps_that_decode_and_all_steps_of_compiled_code(self) -> None:
        decoding = StepShape(decode_sequences=5)
        eager = timer(GEMM, HEAD, execution=self.EAGER, overhead=self.LAW)
        assert eager.seconds(decoding) == timer(GEMM, HEAD).seconds(decoding)
        compiled = timer(GEMM, HEAD, overhead=self.LAW)
        assert compiled.seconds(self.PROMPT) == timer(GEMM, HEAD).seconds(self.PROMPT)


class TestDrafts:
    THREE = Execution(speculation=Speculation(3))

    def test_every_sequence_brings_its_drafts(self) -> None:
        """Eight sequences with three drafts each are 32 tokens, and as many rows of logits."""
        drafted, plain = (
            timer(GEMM, HEAD, EXPERTS, execution=self.THREE),
            timer(GEMM, HEAD, EXPERTS),
        )
        shape, many = StepShape(decode_sequences=8), StepShape(decode_sequences=32)
        for op in (GEMM, HEAD, EXPERTS):
            assert drafted.time(op, shape) == plain.time(op, many)

    def test_keys_are_read_once_and_met_by_all(self) -> None:
        row = timer(DECODE, execution=self.THREE).time(DECODE, StepShape(4, 10_000))
        assert row.memory_s == pytest.approx(10 * 2e6 / 1e12)
        assert row.compute_s == pytest.approx(4 * 10 * 32e6 / 200e12)
        assert row.seconds == pytest.approx(10 * (1e-6 + 4e-6 + 4 * 0.32e-6))

    def test_picked_keys_are_read_by_each_query(self) -> None:
        picking = replace(DECODE, picked=True)
        row = timer(picking, execution=self.THREE).time(picking, StepShape(4, 10_000))
        assert row.memory_s == pytest.approx(4 * 10 * 2e6 / 1e12)

    def test_index_keys_are_read_once_and_scores_written_by_each(self) -> None:
        index = IndexScores("index", 1, "decode_sequences", 64, 128, "fp8")
        work = index.work(StepShape(1, 1000, queries=4))
        assert work.flop == 4 * 1000 * 2 * 64 * 128
        assert work.bytes == 1000 * 128 + 4 * 1000 * 8

    def test_latent_heads_of_all_queries_lie_in_tiles_together(self) -> None:
        kernel = MlaDecodeKernel(
            compute_dtype="fp8", head_tile=16, law=pocket_chip.DECODE_LAW, fit=pocket_chip.FIT
        )
        op = DecodeAttention("latent", 1, "mla", 20, 1, 576, 512, 576, "fp8")
        latent = pocket_chip.timer(op, kernels=EngineKernels(mla_decode={"fp8": kernel}))
        row = latent.time_once(op, StepShape(2, 1000, queries=4))
        # 80 heads are five whole tiles: no padding, where 20 would fill 32 places
        assert row.compute_s == pytest.approx(4 * 0.2176e-6)
        assert row.seconds == pytest.approx(1e-6 + 2 * 4 * 0.2176e-6 + 2 * 0.576e-6)

    def test_a_drafter_takes_its_passes_one_after_the_other(self) -> None:
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-5, "sequence_s": 1e-6})
        drafter = timer(DECODE, GEMM, overhead=slow)
        speculating = timer(GEMM, execution=Execution(speculation=Speculation(3, drafter)))
        shape = StepShape(decode_sequences=8, decode_context_tokens=4000)
        plain = timer(GEMM, DECODE)
        first = shape._replace(queries=4)
        gemm_s = float(plain.time_once(GEMM, first).seconds) + 2 * float(
            plain.time_once(GEMM, shape).seconds
        )
        rows = {row.name: row for row in speculating.explain(shape)}
        assert list(rows) == [
            "gemm",
            "draft_decode",
            "draft_gemm",
            "draft_overhead",
            "engine_overhead",
        ]
        assert rows["draft_gemm"].seconds == pytest.approx(gemm_s)
        assert rows["draft_gemm"].calls == 30
        # the context is read by all three passes, and met four times in the first
        read_s, met_s = 10 * 4000 * 200 / 1e12 * 2, 10 * 4000 * 3200 / 200e12 * 2
        assert rows["draft_decode"].seconds == pytest.approx(30e-6 + 3 * read_s + 6 * met_s)
        assert rows["draft_overhead"].seconds == pytest.approx(3 * (1e-5 + 8e-6))

    def test_a_draft_model_has_no_verified_tokens_to_read(self) -> None:
        drafter = timer(GEMM)
        one = Speculation(3, drafter, reads_verified=False)
        shape = StepShape(decode_sequences=8)
        (row, _) = timer(GEMM, execution=Execution(speculation=one)).drafts(shape)
        assert row.seconds == pytest.approx(3 * float(drafter.time(GEMM, shape).seconds))

    def test_prompts_go_through_the_drafter_once(self) -> None:
        drafter = timer(GEMM)
        speculating = timer(GEMM, execution=Execution(speculation=Speculation(3, drafter)))
        shape = StepShape(prefill_sequences=1, prefill_tokens=50, prefill_pairs=1275)
        assert speculating.drafts(shape)[0].seconds == drafter.time(GEMM, shape).seconds

    def test_stages_and_drafts_do_not_go_together(self) -> None:
        with pytest.raises(InputError, match=r"parallelism\.pp to 1"):
            timer(GEMM, execution=self.THREE, shares=Shares(Parallelism(tp=1, pp=2), 64))

    def test_no_drafts_are_no_speculation(self) -> None:
        with pytest.raises(InputError, match="draft_tokens is 0"):
            Speculation(0)


class TestCachedPrefix:
    def test_reading_it_is_hidden_behind_enough_queries(self) -> None:
        """200 bytes a key take 0.25 ns at 80 %; a query of 3200 FLOP takes 0.064 ns at 50 %.

        So four queries cannot hide it.
        """
        for chunk in (1, 3, 4, 8):
            alone = StepShape(prefill_sequences=1, prefill_tokens=chunk, prefill_pairs=1000 * chunk)
            after = alone._replace(prefill_context_tokens=1000)
            waits = max(0.0, 200e-12 / ELEMENTWISE_EFFICIENCY - chunk * 3200 / 50e12)
            prefill = timer(PREFILL)
            longer = float(prefill.time(PREFILL, after).seconds)
            longer -= float(prefill.time(PREFILL, alone).seconds)
            assert longer == pytest.approx(10 * 1000 * waits, abs=1e-12)

    def test_its_bytes_are_traffic(self) -> None:
        shape = StepShape(prefill_sequences=2, prefill_tokens=8, prefill_context_tokens=1000)
        assert timer(PREFILL).time(PREFILL, shape).bytes == 10 * (8 * 5000 + 1000 * 200)

    def test_latents_are_expanded_again(self) -> None:
        up = DenseGemm("up", 10, "prefill_tokens", n=1000, k=500, dtype="bf16")
        again = PrefixExpansion(up, 600.0)
        row = timer(up, again).time(again, StepShape(prefill_context_tokens=1000))
        assert row.name == "up_prefix"
        # a row: 1e6 FLOP at 50 TFLOP/s, 1000 in and 2000 bytes out at 0.5 TB/s; then attention
        # reads 2000 bytes, and the gathering 600, at 80 % of 1 TB/s
        row_s = 1e6 / 50e12 + 3000 / 0.5e12 + 2600 / 0.8e12
        assert row.seconds == pytest.approx(10 * 1000 * row_s, rel=1e-6)
        assert row.flop == 10 * 1000 * 2 * 1000 * 500

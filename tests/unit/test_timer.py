"""Times of single operators by hand on a chip of round figures, and what the engine adds."""

from dataclasses import replace

import numpy as np
import pocket_chip
import pytest

from sim.cost.memory import Detour
from sim.cost.operators import (
    Collective,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertGemm,
    IndexScores,
    Operator,
    PrefillAttention,
    StateUpdate,
)
from sim.cost.shares import Shares
from sim.cost.table import StepTable
from sim.cost.timer import ELEMENTWISE_EFFICIENCY, SCAN_EFFICIENCY, OperatorTime
from sim.cost.work import StepShape
from sim.efficiency import EngineKernels, MlaDecodeKernel
from sim.errors import InternalError
from sim.overhead import NO_OVERHEAD
from sim.parallelism import ChipGroup, Parallelism

GEMM = DenseGemm("gemm", 10, "tokens", n=1000, k=1000, dtype="fp8")
DECODE = DecodeAttention("decode", 10, "gqa", 8, 1, 100, 100, 200, "fp8")
PREFILL = PrefillAttention("prefill", 10, "gqa", 8, 100, 100, "bf16", "fp8", 5000.0)
EXPERTS = ExpertGemm("experts", 10, 1000, 500, 4, 4, 4, "fp8")
REDUCE = Collective("reduce", 20, "all_reduce", ChipGroup(2, 1), 2000.0)


def priced(operator: Operator, shape: StepShape) -> OperatorTime:
    return pocket_chip.timer(operator).time(operator, shape)


class TestByHand:
    def test_dense_product(self) -> None:
        row = priced(GEMM, StepShape(decode_sequences=100))
        # 2 * 100 * 1e6 FLOP at 200 TFLOP/s: 1 us; 1 MB + 0.1 MB in + 0.2 MB out at 1 TB/s: 1.3 us
        assert row.compute_s == pytest.approx(10 * 1e-6)
        assert row.memory_s == pytest.approx(10 * 1.3e-6)
        # half the peaks, added up, a floor of 1 us, and 0.1e6 activations read at 2, written at 1
        assert row.seconds == pytest.approx(10 * (1e-6 + 2e-6 + 2.6e-6 + 0.3e-6))
        assert row.flop == 10 * 2e8
        assert row.bytes == 10 * 1.3e6

    def test_16_bit_products_convert_nothing(self) -> None:
        wide = DenseGemm("gemm", 1, "tokens", n=1000, k=1000, dtype="bf16")
        row = priced(wide, StepShape(decode_sequences=100))
        # 0.2 GFLOP at 50 TFLOP/s and (2 + 0.2 + 0.2) MB at 0.5 TB/s
        assert row.seconds == pytest.approx(1e-6 + 4e-6 + 4.8e-6)

    def test_experts(self) -> None:
        row = priced(EXPERTS, StepShape(prefill_tokens=10))
        # every token visits all four experts: 40 visits of 6 * 1000 * 500 FLOP
        assert row.compute_s == pytest.approx(10 * 40 * 3e6 / 200e12)
        # 4 experts of 1.5 MB, and per visit 1000 * (1 + 2) + 500 * (2 + 2 + 1) bytes
        assert row.memory_s == pytest.approx(10 * (6e6 + 40 * 5500) / 1e12)
        # a hidden vector read and written is 3000 bytes: for 40 visits and for 10 tokens
        vectors_s = (40 + 10) * 3000 / 1e12
        assert row.seconds == pytest.approx(10 * (1e-5 + 2 * 0.6e-6 + 2 * 6.22e-6 + vectors_s))

    def test_decode_attention(self) -> None:
        row = priced(DECODE, StepShape(decode_sequences=4, decode_context_tokens=10_000))
        # 10,000 keys and values of 100 bytes each; 4 * 8 * 100 FLOP on each at the FP8 peak
        assert row.memory_s == pytest.approx(10 * 2e6 / 1e12)
        assert row.compute_s == pytest.approx(10 * 32e6 / 200e12)
        assert row.seconds == pytest.approx(10 * (1e-6 + 4e-6 + 0.32e-6))

    def test_prefill_attention(self) -> None:
        row = priced(PREFILL, StepShape(prefill_tokens=1000, prefill_pairs=500_500))
        assert row.compute_s == pytest.approx(10 * 500_500 * 3200 / 100e12)
        assert row.seconds == pytest.approx(10 * (1e-6 + 2 * 16.016e-6 + 5e-6))

    def test_latent_decode_pays_for_whole_tiles_of_heads(self) -> None:
        law = pocket_chip.DECODE_LAW.model_copy(update={"idle_rows": 2.0, "row_s": 1e-6})
        kernel = MlaDecodeKernel(compute_dtype="fp8", head_tile=16, law=law, fit=pocket_chip.FIT)
        op = DecodeAttention("latent", 1, "mla", 20, 1, 576, 512, 576, "fp8")
        timer = pocket_chip.timer(op, kernels=EngineKernels(mla_decode={"fp8": kernel}))
        row = timer.time(op, StepShape(decode_sequences=2, decode_context_tokens=1000))
        # 2 * 20 * (576 + 512) FLOP a key at 200 TFLOP/s; 20 heads are two tiles, 32 heads.
        assert row.compute_s == pytest.approx(0.2176e-6)
        assert row.memory_s == pytest.approx(0.576e-6)
        # Half the peaks. Two sequences read at (1 + 2/2), their four tiles compute at (1 + 2/4)
        # of the full rate; each tile costs 1 us, the call 1 us.
        compute_s = 0.2176e-6 * 32 / 20 * 2 * (1 + 2 / 4)
        memory_s = 0.576e-6 * 2 * (1 + 2 / 2)
        assert row.seconds == pytest.approx(1e-6 + 4e-6 + compute_s + memory_s)

    def test_a_kernel_that_masks_its_window_computes_the_whole_triangle(self) -> None:
        kernel = pocket_chip.VLLM.prefill_attention[0].model_copy(
            update={"windowed": True, "masked": True}
        )
        op = replace(PREFILL, windowed=True)
        timer = pocket_chip.timer(op, kernels=EngineKernels(prefill_attention=(kernel,)))
        shape = StepShape(
            prefill_sequences=1,
            prefill_tokens=60,
            prefill_pairs=60 * 61 // 2,
            prefill_window_pairs=60 * 10,
        )
        row = timer.time(op, shape)
        # What is asked for is the window; what is waited for are all pairs, at half the peak.
        assert row.flop == 10 * 600 * 3200
        assert row.seconds == pytest.approx(10 * (1e-6 + 2 * 1830 * 3200 / 100e12 + 0.3e-6))
        table = StepTable.compile(timer, lambda row: row.seconds, lambda s: s, max_num_seqs=8)
        assert table.per_window_pair == 0.0
        assert float(table.fixed(shape) + table.attended(shape)) == pytest.approx(row.seconds)

    def test_elementwise(self) -> None:
        op = Elementwise("norms", 10, elements_per_token=4000)
        row = priced(op, StepShape(decode_sequences=100))
        # 0.4e6 elements of 2 bytes
        assert row.seconds == pytest.approx(10 * 0.8e-6 / ELEMENTWISE_EFFICIENCY)
        assert row.source.startswith("assumed")

    def test_all_reduce(self) -> None:
        row = priced(REDUCE, StepShape(decode_sequences=100))
        # 0.2 MB at 10 us plus 10 ps a byte, twice per layer
        assert row.seconds == pytest.approx(20 * (1e-5 + 2e-6))
        assert (row.compute_s, row.memory_s) == (0.0, 0.0)


class TestNothingToDo:
    @pytest.mark.parametrize("operator", [GEMM, DECODE, PREFILL, EXPERTS, REDUCE])
    def test_costs_nothing(self, operator: Operator) -> None:
        row = priced(operator, StepShape())
        assert (row.seconds, row.flop, row.bytes) == (0.0, 0.0, 0.0)

    def test_is_not_listed(self) -> None:
        timer = pocket_chip.timer(GEMM, DECODE, PREFILL)
        decoding = timer.explain(StepShape(decode_sequences=1, decode_context_tokens=1))
        assert [row.name for row in decoding] == ["gemm", "decode", "engine_overhead"]


class TestEngine:
    def test_kernels_inside_an_engine_keep_a_share_of_their_floors(self) -> None:
        half = NO_OVERHEAD.model_copy(update={"floor_fraction": 0.5})
        shape = StepShape(decode_sequences=100)
        alone = pocket_chip.timer(GEMM).time(GEMM, shape).seconds
        inside = pocket_chip.timer(GEMM, overhead=half).time(GEMM, shape).seconds
        assert alone - inside == pytest.approx(10 * 0.5e-6)

    def test_an_exchange_has_no_floor_to_save(self) -> None:
        none = NO_OVERHEAD.model_copy(update={"floor_fraction": 0.0})
        shape = StepShape(decode_sequences=100)
        seconds = [
            pocket_chip.timer(REDUCE, overhead=overhead).time(REDUCE, shape).seconds
            for overhead in (NO_OVERHEAD, none)
        ]
        assert seconds[0] == seconds[1]

    def test_each_layer_pays_its_overhead_once(self) -> None:
        """Not once per call of whatever is called most: an all-reduce runs twice per layer."""
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-3, "layer_s": 1e-4, "sequence_s": 1e-5})
        timer = pocket_chip.timer(GEMM, DECODE, PREFILL, REDUCE, overhead=slow)
        shape = StepShape(decode_sequences=3, prefill_sequences=2, prefill_tokens=50)
        assert timer.overhead_s(shape) == pytest.approx(1e-3 + 10 * 1e-4 + 5 * 1e-5)

    def test_windowed_and_full_layers_are_all_layers(self) -> None:
        sliding = DecodeAttention("slide", 6, "gqa", 8, 1, 100, 100, 200, "fp8", windowed=True)
        slow = NO_OVERHEAD.model_copy(update={"layer_s": 1e-4})
        assert pocket_chip.timer(DECODE, sliding, overhead=slow).overhead_s(
            StepShape(decode_sequences=1)
        ) == pytest.approx(16 * 1e-4)

    def test_rows_of_explain_add_up_to_the_step(self) -> None:
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-3, "floor_fraction": 0.3})
        timer = pocket_chip.timer(GEMM, DECODE, PREFILL, EXPERTS, REDUCE, overhead=slow)
        shape = StepShape(3, 5000, prefill_sequences=1, prefill_tokens=70, prefill_pairs=2485)
        total = sum(float(row.seconds) for row in timer.explain(shape))
        assert total == pytest.approx(timer.seconds(shape), rel=1e-12)


class TestBound:
    def test_many_rows_are_bound_by_arithmetic(self) -> None:
        assert priced(GEMM, StepShape(prefill_tokens=100_000)).bound == "compute"

    def test_few_rows_are_bound_by_memory(self) -> None:
        big = DenseGemm("gemm", 1, "tokens", n=10_000, k=10_000, dtype="fp8")
        assert priced(big, StepShape(decode_sequences=1)).bound == "memory"

    def test_tiny_products_are_bound_by_their_launch(self) -> None:
        tiny = DenseGemm("gemm", 1, "tokens", n=10, k=10, dtype="fp8")
        assert priced(tiny, StepShape(decode_sequences=1)).bound == "overhead"

    def test_an_exchange_is_bound_by_the_network(self) -> None:
        assert priced(REDUCE, StepShape(decode_sequences=1)).bound == "network"

    def test_the_engine_itself_is_overhead(self) -> None:
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-3})
        rows = pocket_chip.timer(GEMM, DECODE, overhead=slow).explain(StepShape(decode_sequences=1))
        assert rows[-1].name == "engine_overhead"
        assert rows[-1].bound == "overhead"


class TestKernelChoice:
    def test_the_format_of_activations_is_the_kernel_s(self) -> None:
        """The same MXFP4 experts read 16-bit activations in one engine and FP8 in the other."""
        experts = ExpertGemm("experts", 1, 1000, 500, 4, 4, 4, "mxfp4")
        shape = StepShape(prefill_tokens=10)
        moved = {
            engine: pocket_chip.timer(experts, engine=engine).time(experts, shape).bytes
            for engine in ("vllm", "trtllm")
        }
        # 40 visits; a visit reads 1000 + 500 activations in the kernel's format
        assert moved["vllm"] - moved["trtllm"] == pytest.approx(40 * 1500 * (2 - 1))

    def test_a_stand_in_is_named(self) -> None:
        row = pocket_chip.timer(GEMM, engine="trtllm").time(GEMM, StepShape(decode_sequences=1))
        assert row.source.startswith("fitted: vllm fp8")


class TestEnergy:
    def test_of_an_operator_by_hand(self) -> None:
        timer = pocket_chip.timer(GEMM)
        row = timer.time(GEMM, StepShape(decode_sequences=100))
        law = pocket_chip.calibration().power.law
        # 1000 W: 0.2 of it for 59 us, 0.6 for 10 us of arithmetic, 0.4 for 13 us of memory
        assert timer.joules(row, law) == pytest.approx(
            1000 * (0.2 * 59e-6 + 0.6 * 10e-6 + 0.4 * 13e-6)
        )

    def test_is_never_above_the_board_limit(self) -> None:
        timer = pocket_chip.timer(GEMM)
        row = OperatorTime("x", 1, 0.0, 0.0, 1e-3, 1e-3, 1e-3, "by hand")
        law = pocket_chip.calibration().power.law.model_copy(update={"compute_weight": 5.0})
        assert timer.joules(row, law) == pytest.approx(1000 * 1e-3)


class TestTable:
    def test_arrays_give_what_single_numbers_give(self) -> None:
        timer = pocket_chip.timer(GEMM, DECODE)
        counts = np.array([1.0, 7.0, 300.0])
        shapes = StepShape(counts, counts * 1000)
        rows = timer.time(DECODE, shapes).seconds
        singly = [timer.time(DECODE, StepShape(n, n * 1000)).seconds for n in counts.tolist()]
        assert rows == pytest.approx(singly, rel=1e-12)

    def test_an_empty_step_costs_nothing(self) -> None:
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-3, "layer_s": 1e-4})
        timer = pocket_chip.timer(GEMM, DECODE, PREFILL, overhead=slow)
        table = StepTable.compile(timer, lambda row: row.seconds, lambda s: s, max_num_seqs=8)
        nothing = StepShape()
        assert float(table.fixed(nothing) + table.attended(nothing)) == 0.0

    def test_head_and_layers_are_told_apart(self) -> None:
        odd = DenseGemm("odd", 1, "sequences", n=10, k=10, dtype="fp8")
        with pytest.raises(InternalError, match="odd is sized by sequences in scope rank"):
            StepTable.compile(
                pocket_chip.timer(odd), lambda row: row.seconds, lambda s: s, max_num_seqs=8
            )


HEAD = DenseGemm("lm_head", 1, "sequences", n=1000, k=1000, dtype="fp8", scope="head")
PIPELINE = Shares(Parallelism(tp=1, pp=4), chunk_tokens=8192)
RANKS = Shares(Parallelism(tp=1, attention_dp=4), chunk_tokens=8192, context_spread=0.0)


class TestSharedBatches:
    """Splits of a batch by hand: what one micro-batch costs, and how often."""

    def test_a_full_pipeline_takes_the_stage_once_for_each_micro_batch(self) -> None:
        shape = StepShape(decode_sequences=400)
        row = pocket_chip.timer(GEMM, shares=PIPELINE).time(GEMM, shape)
        # four micro-batches of 100; each as in the dense product by hand: 59 us in ten calls
        alone = priced(GEMM, StepShape(decode_sequences=100))
        assert row.seconds == pytest.approx(4 * float(alone.seconds))
        assert (row.calls, row.flop) == (40, 4 * float(alone.flop))

    def test_fewer_sequences_than_stages_leave_bubbles(self) -> None:
        timer = pocket_chip.timer(GEMM, HEAD, shares=PIPELINE)
        shape = StepShape(decode_sequences=3)
        one = StepShape(decode_sequences=1)
        stage_s, head_s = float(priced(GEMM, one).seconds), float(priced(HEAD, one).seconds)
        assert timer.seconds(shape) == pytest.approx(4 * stage_s + 3 * head_s)
        rows = {row.name: float(row.seconds) for row in timer.explain(shape)}
        assert rows["pipeline_bubble"] == pytest.approx(stage_s)
        assert rows["gemm"] == pytest.approx(3 * stage_s)
        assert rows["lm_head"] == pytest.approx(3 * head_s)

    def test_every_stage_pays_the_engine_each_time_it_runs(self) -> None:
        slow = NO_OVERHEAD.model_copy(update={"step_s": 1e-3, "layer_s": 1e-4, "sequence_s": 1e-5})
        timer = pocket_chip.timer(DECODE, overhead=slow, shares=PIPELINE)
        # ten layers a stage, four runs, four micro-batches of two sequences
        expected = 4 * (1e-3 + 10 * 1e-4) + 8 * 1e-5
        assert timer.overhead_s(StepShape(decode_sequences=8)) == pytest.approx(expected)

    def test_attention_ranks_share_sequences_and_the_group_sees_all_of_them(self) -> None:
        shape = StepShape(decode_sequences=100, decode_context_tokens=100_000)
        timer = pocket_chip.timer(GEMM, DECODE, EXPERTS, shares=RANKS)
        on_a_rank = StepShape(decode_sequences=25, decode_context_tokens=25_000)
        for op, seen in ((GEMM, on_a_rank), (DECODE, on_a_rank), (EXPERTS, shape)):
            assert timer.time(op, shape).seconds == pytest.approx(priced(op, seen).seconds)

    def test_the_fullest_rank_counts(self) -> None:
        shape = StepShape(decode_sequences=5, decode_context_tokens=5000)
        timer = pocket_chip.timer(DECODE, shares=RANKS)
        fullest = StepShape(decode_sequences=2, decode_context_tokens=2000)
        assert timer.time(DECODE, shape).seconds == pytest.approx(priced(DECODE, fullest).seconds)

    def test_context_ranks_share_keys_and_prompts_but_not_new_tokens(self) -> None:
        timer = pocket_chip.timer(GEMM, DECODE, PREFILL, shares=CONTEXT)
        shape = StepShape(8, 8000, prefill_sequences=1, prefill_tokens=400, prefill_pairs=80_200)
        seen = StepShape(8, 4000, prefill_sequences=1, prefill_tokens=200, prefill_pairs=40_100)
        for op in (GEMM, DECODE, PREFILL):
            assert timer.time(op, shape).seconds == pytest.approx(priced(op, seen).seconds)


CONTEXT = Shares(Parallelism(tp=1, cp=2), chunk_tokens=8192)


class TestSlowerMemory:
    """Weights and keys that lie elsewhere: 1 ps a byte in the chip's own memory."""

    def test_weights(self) -> None:
        shape = StepShape(decode_sequences=100)
        timer = pocket_chip.timer(GEMM, detour=Detour(weights_s_per_byte=4e-12))
        # 1 MB of weights, ten times; kernels reach half of the bandwidth
        slower_s = float(timer.time(GEMM, shape).seconds) - float(priced(GEMM, shape).seconds)
        assert slower_s == pytest.approx(10 * 1e6 * 4e-12 / 0.5)

    def test_only_experts_that_are_touched_are_fetched(self) -> None:
        few = ExpertGemm("experts", 1, 1000, 500, 64, 64, 1, "fp8")
        shape = StepShape(decode_sequences=1)
        timer = pocket_chip.timer(few, detour=Detour(weights_s_per_byte=4e-12))
        slower_s = float(timer.time(few, shape).seconds) - float(priced(few, shape).seconds)
        assert slower_s == pytest.approx(3 * 500_000 * 4e-12 / 0.5)

    def test_keys_and_values(self) -> None:
        shape = StepShape(decode_sequences=4, decode_context_tokens=10_000)
        timer = pocket_chip.timer(DECODE, detour=Detour(kv_s_per_byte=4e-12))
        slower_s = float(timer.time(DECODE, shape).seconds) - float(priced(DECODE, shape).seconds)
        assert slower_s == pytest.approx(10 * 10_000 * 200 * 4e-12 / 0.5)


class TestKernelsThatNobodyMeasured:
    def test_index_scores(self) -> None:
        op = IndexScores("scores", 2, "decode_sequences", 64, 128, "fp8")
        row = priced(op, StepShape(decode_sequences=1, decode_context_tokens=1000))
        # 64 heads of 128: 16.384 MFLOP at 200 TFLOP/s; 136 bytes a key at 1 TB/s
        assert row.compute_s == pytest.approx(2 * 16.384e6 / 200e12)
        assert row.memory_s == pytest.approx(2 * 136e3 / 1e12)
        assert row.seconds == pytest.approx(
            row.compute_s / SCAN_EFFICIENCY + row.memory_s / ELEMENTWISE_EFFICIENCY
        )
        assert row.source.startswith("assumed")

    def test_states(self) -> None:
        op = StateUpdate("state", 3, "decode_sequences", 400.0, 700.0, 800.0)
        row = priced(op, StepShape(decode_sequences=10))
        assert row.compute_s == pytest.approx(3 * 7000 / 100e12)
        assert row.memory_s == pytest.approx(3 * 8000 / 1e12)

    def test_layers_with_states_are_layers(self) -> None:
        decode = StateUpdate("state", 3, "decode_sequences", 400.0, 700.0, 800.0)
        prefill = StateUpdate("scan", 3, "prefill_tokens", 400.0, 700.0, 800.0)
        slow = NO_OVERHEAD.model_copy(update={"layer_s": 1e-4})
        timer = pocket_chip.timer(DECODE, decode, prefill, overhead=slow)
        assert timer.overhead_s(StepShape(decode_sequences=1)) == pytest.approx(13e-4)

"""Work of each operator by hand, and the same work as the laws were fitted to."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sim.calibration import kernels
from sim.calibration.kernels import Peaks
from sim.catalog import open_catalog
from sim.cost.layers import operators, weight_bytes_per_chip
from sim.cost.operators import (
    AllReduce,
    DecodeAttention,
    DenseGemm,
    Elementwise,
    ExpertExchange,
    ExpertGemm,
    Operator,
    PrefillAttention,
)
from sim.cost.work import StepShape, prefill_pairs
from sim.model import GroupedQueryAttention, Model
from sim.parallelism import Parallelism
from sim.precision import Precision, input_dtype
from sim.units import DTYPE_BYTES, Dtype

CATALOG = open_catalog()
PEAKS = Peaks(flop_per_s={"bf16": 100e12, "fp8": 200e12}, bandwidth_bytes_per_s=1e12, tdp_w=700.0)
SENT = Parallelism(tp=8, ep=8, expert_exchange="all_to_all")
FP8 = Precision(weights="fp8", kv_cache="fp8")
BF16 = Precision(weights="bf16", kv_cache="bf16")


def table(folder: Path, operation: str, header: str, row: str) -> Path:
    """Write one row as the published kernel tables have it."""
    (folder / "kernels").mkdir(exist_ok=True)
    text = f"hardware,framework,version,kernel_source,{header},latency_us\nX1,vllm,1.0,best,{row},9"
    (folder / "kernels" / f"aic_{operation}_x.csv").write_text(text, encoding="utf-8")
    return folder


def fitted(frame: pd.DataFrame, *columns: str) -> list[float]:
    """Speed-of-light times of the only row as the fit counts them."""
    assert len(frame) == 1
    return [float(frame.iloc[0][column]) for column in columns]


class TestSameWorkAsTheFit:
    """An operator counts FLOP and bytes as `sim.calibration.kernels` did for the fit."""

    @pytest.mark.parametrize(
        ("name", "dtype", "peak"),
        [("bfloat16", "bf16", 100e12), ("fp8", "fp8", 200e12), ("fp8_block", "fp8", 200e12)],
    )
    def test_dense_product(self, tmp_path: Path, name: str, dtype: Dtype, peak: float) -> None:
        data = table(tmp_path, "gemm", "gemm_dtype,m,n,k", f"{name},96,2000,3000")
        compute_s, memory_s = fitted(kernels.gemm(data, "X1", PEAKS), "compute_s", "memory_s")
        flop, moved = DenseGemm("g", 1, "tokens", n=2000, k=3000, dtype=dtype).work(
            StepShape(decode_sequences=96)
        )
        assert flop / peak == pytest.approx(compute_s, rel=1e-12)
        assert moved / 1e12 == pytest.approx(memory_s, rel=1e-12)

    @pytest.mark.parametrize(
        ("name", "weights", "inputs"),
        [
            ("bfloat16", "bf16", "bf16"),
            ("fp8_block", "fp8", "fp8"),
            ("int4_wo", "int4", "bf16"),
            ("w4a16_mxfp4", "mxfp4", "bf16"),
            ("w4a8_mxfp4_mxfp8", "mxfp4", "fp8"),
        ],
    )
    @pytest.mark.parametrize("split", [(1, 1), (4, 1), (1, 4)])
    def test_experts(
        self, tmp_path: Path, name: str, weights: Dtype, inputs: Dtype, split: tuple[int, int]
    ) -> None:
        tp, ep = split
        # 4096 tokens: the dealt-out router of the data and a random one both touch all 16 experts
        header = (
            "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
            "moe_tp_size,moe_ep_size,distribution"
        )
        data = table(tmp_path, "moe", header, f"{name},4096,1000,800,4,16,{tp},{ep},balanced")
        columns = ("compute_s", "memory_s", "pick_s", "token_s")
        expected = fitted(kernels.grouped_gemm(data, "X1", PEAKS), *columns)
        layer = ExpertGemm("e", 1, 1000, 800 // tp, 16, 16 // ep, 4, weights)
        flop, moved = layer.work(StepShape(prefill_tokens=4096), inputs)
        vector_s = 1000 * (2 + DTYPE_BYTES[inputs]) / 1e12
        peak = PEAKS.flop_per_s[inputs]  # these formats compute in that of their activations
        ours = [flop / peak, moved / 1e12, layer.visits(4096) * vector_s, 4096 * vector_s]
        assert ours == pytest.approx(expected, rel=1e-12)

    def test_one_token_touches_as_many_experts_as_it_picks(self, tmp_path: Path) -> None:
        header = (
            "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
            "moe_tp_size,moe_ep_size,distribution"
        )
        data = table(tmp_path, "moe", header, "bfloat16,1,1000,800,4,64,1,1,balanced")
        (memory_s,) = fitted(kernels.grouped_gemm(data, "X1", PEAKS), "memory_s")
        layer = ExpertGemm("e", 1, 1000, 800, 64, 64, 4, "bf16")
        moved = layer.work(StepShape(decode_sequences=1)).bytes
        assert moved / 1e12 == pytest.approx(memory_s, rel=1e-12)

    @pytest.mark.parametrize(("kv_name", "kv_dtype"), [("bfloat16", "bf16"), ("fp8", "fp8")])
    @pytest.mark.parametrize("window", [0, 128])
    def test_decode_attention(
        self, tmp_path: Path, kv_name: str, kv_dtype: Dtype, window: int
    ) -> None:
        header = (
            "attn_dtype,kv_cache_dtype,batch_size,kv_len,num_heads,num_key_value_heads,"
            "head_dim,window_size"
        )
        row = f"bfloat16,{kv_name},12,1000,16,2,128,{window}"
        data = table(tmp_path, "attention_decode", header, row)
        frame = kernels.decode_attention(data, "X1", PEAKS)
        expected = fitted(frame, "compute_s", "memory_s", "rows")
        op = DecodeAttention(
            "a", 1, "gqa", 16, 2, 128, 128, 2 * 2 * 128, kv_dtype, windowed=window > 0
        )
        shape = StepShape(12, 12 * 1000, 12 * 128)
        flop, moved = op.work(shape)
        rows = shape.decode_sequences * op.kv_heads
        peak = PEAKS.flop_per_s[kv_dtype]
        assert [flop / peak, moved / 1e12, rows] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(("kv_name", "kv_dtype"), [("bfloat16", "bf16"), ("fp8", "fp8")])
    @pytest.mark.parametrize("window", [0, 128])
    def test_prefill_attention(
        self, tmp_path: Path, kv_name: str, kv_dtype: Dtype, window: int
    ) -> None:
        header = (
            "attn_dtype,kv_cache_dtype,batch_size,isl,num_heads,num_key_value_heads,"
            "head_dim,window_size"
        )
        row = f"bfloat16,{kv_name},3,1000,16,8,64,{window}"
        data = table(tmp_path, "attention_prefill", header, row)
        expected = fitted(kernels.prefill_attention(data, "X1", PEAKS), "flop", "token_s")
        precision = Precision(weights="bf16", kv_cache=kv_dtype)
        listed = operators(SLIDING, Parallelism(tp=1), precision)
        full, sliding = [op for op in listed if isinstance(op, PrefillAttention)]
        op = sliding if window else full
        shape = StepShape(
            prefill_tokens=3000,
            prefill_pairs=3 * prefill_pairs(0, 1000),
            prefill_window_pairs=3 * prefill_pairs(0, 1000, 128),
        )
        flop, moved = op.work(shape)
        assert [flop, moved / 1e12] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize(("kv_name", "kv_dtype"), [("bfloat16", "bf16"), ("fp8", "fp8")])
    def test_latent_attention(self, tmp_path: Path, kv_name: str, kv_dtype: Dtype) -> None:
        precision = Precision(weights="fp8", kv_cache=kv_dtype)
        listed = operators(CATALOG.model("deepseek_r1"), Parallelism(tp=8), precision)
        decode = only(listed, DecodeAttention)
        prefill = only(listed, PrefillAttention)
        header = "mla_dtype,kv_cache_dtype,batch_size,kv_len,num_heads,tp_size"
        data = table(tmp_path, "mla_decode", header, f"bfloat16,{kv_name},12,1000,16,8")
        frame = kernels.mla_decode(data, "X1", PEAKS)
        expected = fitted(frame, "compute_s", "memory_s", "rows")
        shape = StepShape(decode_sequences=12, decode_context_tokens=12_000)
        flop, moved = decode.work(shape)
        peak = PEAKS.flop_per_s[kv_dtype]
        ours = [flop / peak, moved / 1e12, shape.decode_sequences * decode.kv_heads]
        assert ours == pytest.approx(expected, rel=1e-12)

        header = "mla_dtype,kv_cache_dtype,batch_size,isl,num_heads,tp_size"
        data = table(tmp_path, "mla_prefill", header, f"bfloat16,{kv_name},3,1000,16,8")
        expected = fitted(kernels.mla_prefill(data, "X1", PEAKS), "flop", "token_s")
        shape = StepShape(prefill_tokens=3000, prefill_pairs=3 * prefill_pairs(0, 1000))
        flop, moved = prefill.work(shape)
        assert [flop, moved / 1e12] == pytest.approx(expected, rel=1e-12)


def only(listed: tuple[Operator, ...], kind: type) -> Operator:
    (found,) = [op for op in listed if isinstance(op, kind)]
    return found


SLIDING = Model(
    name="Sliding",
    family="made up",
    source="by hand",
    layers=2,
    hidden=1024,
    attention=GroupedQueryAttention(
        kind="gqa", heads=16, kv_heads=8, head_dim=64, window_tokens=128, full_layers=1
    ),
    dense_intermediate=4096,
    vocabulary=1000,
    max_positions=8192,
)
"""One layer sees everything, the other 128 keys."""


class TestPrefillPairs:
    @pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 8, 100])
    @pytest.mark.parametrize("done", [0, 1, 4, 9])
    @pytest.mark.parametrize("chunk", [0, 1, 2, 7])
    def test_counts_what_each_query_sees(self, done: int, chunk: int, window: int | None) -> None:
        seen = [min(position + 1, window or 10**9) for position in range(done, done + chunk)]
        assert prefill_pairs(done, chunk, window) == sum(seen)

    def test_chunks_add_up_to_the_whole_prompt(self) -> None:
        parts = [(0, 512), (512, 512), (1024, 76)]
        assert sum(prefill_pairs(done, chunk) for done, chunk in parts) == 1100 * 1101 // 2


class TestWeights:
    @pytest.mark.parametrize("model_id", CATALOG.names("models"))
    def test_all_weights_but_the_input_embedding_are_in_the_products(self, model_id: str) -> None:
        model = CATALOG.model(model_id)
        listed = operators(model, Parallelism(tp=1), BF16)
        stored = sum(op.calls * op.weight_bytes for op in products(listed)) / 2
        # latent attention stores the expansion of the latent a second time, for decode
        twice = sum(op.calls * op.weight_bytes for op in products(listed) if "absorb" in op.name)
        assert stored - twice / 2 == model.total_parameters - model.embedding_parameters

    @pytest.mark.parametrize("tp", [1, 2, 4, 8])
    def test_chips_share_llama_without_overlap(self, tp: int) -> None:
        model = CATALOG.model("llama_3_1_70b")
        whole = 2 * model.total_parameters
        assert tp * weight_bytes_per_chip(model, Parallelism(tp=tp), BF16) == whole

    def test_more_ranks_than_kv_heads_copy_them(self) -> None:
        model = CATALOG.model("llama_3_1_70b")
        extra = 16 * weight_bytes_per_chip(model, Parallelism(tp=16), BF16)
        extra -= 2 * model.total_parameters
        # 16 ranks keep a key and a value head each: 8 heads of 128 too many of both, 80 layers
        assert extra == 80 * 8192 * (2 * 8 * 128) * 2

    @pytest.mark.parametrize("ep", [1, 8])
    def test_latent_attention_copies_what_it_cannot_cut(self, ep: int) -> None:
        model = CATALOG.model("deepseek_r1")
        spread = 8 * weight_bytes_per_chip(model, Parallelism(tp=8, ep=ep), BF16)
        alone = weight_bytes_per_chip(model, Parallelism(tp=1), BF16)
        # seven more copies of the down projection (1536 + 512 + 64 wide) and of the router
        copied = 7 * 7168 * (61 * (1536 + 576) + 58 * 256) * 2
        assert spread - alone == copied

    def test_experts_cost_the_same_dealt_or_cut(self) -> None:
        model = CATALOG.model("deepseek_r1")
        dealt, cut = (Parallelism(tp=8, ep=ep) for ep in (8, 1))
        assert weight_bytes_per_chip(model, dealt, FP8) == weight_bytes_per_chip(model, cut, FP8)

    def test_only_linear_layers_are_quantised(self) -> None:
        model = CATALOG.model("llama_3_1_8b")
        linear, vocabulary = model.linear_parameters, 2 * model.embedding_parameters
        stored = weight_bytes_per_chip(model, Parallelism(tp=1), FP8)
        assert stored == linear * 1 + vocabulary * 2

    def test_mxfp4_is_for_experts_alone(self) -> None:
        model = CATALOG.model("gpt_oss_120b")
        precision = Precision(weights="mxfp4", kv_cache="bf16")
        stored = weight_bytes_per_chip(model, Parallelism(tp=1), precision)
        rest = model.total_parameters - model.routed_parameters
        # four bits and an eight-bit scale for every 32 of them
        assert stored == model.routed_parameters * (4 + 8 / 32) / 8 + rest * 2


def products(listed: tuple[Operator, ...]) -> list[DenseGemm | ExpertGemm]:
    return [op for op in listed if isinstance(op, DenseGemm | ExpertGemm)]


class TestOperators:
    def test_flop_of_a_token_is_twice_the_weights_it_meets(self) -> None:
        model = CATALOG.model("deepseek_r1")
        listed = operators(model, Parallelism(tp=1), BF16)
        shape = StepShape(prefill_sequences=1, prefill_tokens=1)
        flop = sum(op.calls * op.work(shape).flop for op in products(listed))
        assert flop == 2 * (model.active_parameters - model.embedding_parameters)

    def test_absorbed_decode_meets_as_many_weights_as_prefill(self) -> None:
        listed = operators(CATALOG.model("deepseek_r1"), Parallelism(tp=1), BF16)
        prompt = StepShape(prefill_sequences=1, prefill_tokens=1)
        decode = StepShape(decode_sequences=1)
        by_shape = [
            sum(op.calls * op.work(shape).flop for op in products(listed))
            for shape in (prompt, decode)
        ]
        assert by_shape[0] == by_shape[1]

    def test_windowed_and_full_layers_are_priced_apart(self) -> None:
        precision = Precision(weights="mxfp4", kv_cache="bf16")
        listed = operators(CATALOG.model("gpt_oss_120b"), Parallelism(tp=1), precision)
        decode = [op for op in listed if isinstance(op, DecodeAttention)]
        assert [(op.windowed, op.calls) for op in decode] == [(False, 18), (True, 18)]
        shape = StepShape(2, decode_context_tokens=2 * 5000, decode_window_tokens=2 * 128)
        assert [op.context_tokens(shape) for op in decode] == [10_000, 256]

    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            (Parallelism(tp=8), 2 * 61),
            (Parallelism(tp=8, ep=8), 2 * 61),
            (Parallelism(tp=8, ep=8, expert_exchange="all_to_all"), 2 * 61 - 58),
        ],
    )
    def test_sending_tokens_saves_the_all_reduce_after_the_experts(
        self, split: Parallelism, expected: int
    ) -> None:
        listed = operators(CATALOG.model("deepseek_r1"), split, FP8)
        reduce = only(listed, AllReduce)
        assert reduce.calls == expected
        assert reduce.work(StepShape(decode_sequences=3)).bytes == 3 * 7168 * 2

    def test_one_chip_exchanges_nothing(self) -> None:
        listed = operators(CATALOG.model("deepseek_r1"), Parallelism(tp=1), FP8)
        assert not [op for op in listed if isinstance(op, AllReduce | ExpertExchange)]

    def test_elementwise_traffic_of_llama_by_hand(self) -> None:
        listed = operators(CATALOG.model("llama_3_1_70b"), Parallelism(tp=8), FP8)
        moved = only(listed, Elementwise).work(StepShape(decode_sequences=1)).bytes
        # two norms of four hidden vectors, queries in and out, two inner vectors in and one out
        assert moved == (8 * 8192 + 2 * 8 * 128 + 3 * 28672 // 8) * 2

    def test_activation_of_routed_experts_is_not_counted_twice(self) -> None:
        model = CATALOG.model("mixtral_8x7b")  # no dense layer and no shared expert
        listed = operators(model, Parallelism(tp=1), BF16)
        elements = only(listed, Elementwise).elements_per_token
        assert elements == 8 * model.hidden + 2 * model.attention.heads * 128

    def test_nothing_to_do_is_no_work(self) -> None:
        for op in operators(CATALOG.model("deepseek_r1"), SENT, FP8):
            assert op.work(StepShape()) == (0, 0), op.name


class TestExchange:
    @pytest.mark.parametrize(
        ("weights", "dispatched"), [("bf16", 2.0), ("fp8", 1.0), ("nvfp4", 1.0), ("int4", 2.0)]
    )
    def test_results_come_back_in_16_bits(self, weights: Dtype, dispatched: float) -> None:
        precision = Precision(weights=weights, kv_cache="fp8")
        listed = operators(CATALOG.model("deepseek_r1"), SENT, precision)
        halves = [op for op in listed if isinstance(op, ExpertExchange)]
        assert [op.half for op in halves] == ["dispatch", "combine"]
        assert [op.element_bytes for op in halves] == [dispatched, 2.0]

    def test_bytes_by_hand(self) -> None:
        op = ExpertExchange(
            "x", 1, "dispatch", 4, hidden=1000, experts_per_token=2, element_bytes=1
        )
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
        op = ExpertExchange("x", 1, "dispatch", ranks, 1, picks, 1.0)
        assert op.sent_bytes(ranks) == pytest.approx(distinct, rel=0.005)


def test_formats_of_activations() -> None:
    assert [input_dtype(w) for w in ("fp8", "nvfp4", "int8")] == ["fp8", "nvfp4", "int8"]
    assert [input_dtype(w) for w in ("bf16", "fp16", "int4", "mxfp4")] == ["bf16"] * 4


def test_rows_of_a_step() -> None:
    shape = StepShape(decode_sequences=5, prefill_sequences=2, prefill_tokens=700)
    assert shape.rows("tokens") == 705
    assert shape.rows("sequences") == 7
    assert shape.rows("decode_sequences") == 5
    assert shape.rows("prefill_tokens") == 700

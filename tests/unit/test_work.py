"""Sums over a batch, and the same work of an operator as the laws were fitted to."""

from pathlib import Path

import pandas as pd
import pytest

from sim.calibration import kernels
from sim.calibration.kernels import Peaks
from sim.catalog import open_catalog
from sim.cost.layers import operators
from sim.cost.operators import (
    DecodeAttention,
    DenseGemm,
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
        assert isinstance(decode, DecodeAttention)
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
    attention=(
        GroupedQueryAttention(kind="gqa", layers=1, heads=16, kv_heads=8, head_dim=64),
        GroupedQueryAttention(
            kind="gqa", layers=1, heads=16, kv_heads=8, head_dim=64, window_tokens=128
        ),
    ),
    mlp_intermediate=4096,
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


def test_formats_of_activations() -> None:
    assert [input_dtype(w) for w in ("fp8", "nvfp4", "int8")] == ["fp8", "nvfp4", "int8"]
    assert [input_dtype(w) for w in ("bf16", "fp16", "int4", "mxfp4")] == ["bf16"] * 4


def test_rows_of_a_step() -> None:
    shape = StepShape(decode_sequences=5, prefill_sequences=2, prefill_tokens=700)
    assert shape.rows("tokens") == 705
    assert shape.rows("sequences") == 7
    assert shape.rows("decode_sequences") == 5
    assert shape.rows("prefill_tokens") == 700

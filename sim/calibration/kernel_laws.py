"""The laws of the kernels of one chip: six families, fitted for each engine and number format.

Rows that would say something else than the law is for are left out, each with its reason:
kernels timed with their launch, opt-in modes, shards run with a badly chosen kernel.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from sim.calibration import kernels
from sim.calibration.kernels import FORMATS, Peaks
from sim.calibration.regression import (
    Array,
    Knob,
    columns,
    regress,
    relative_errors,
    residual_report,
    times,
)
from sim.efficiency import (
    DecodeAttentionKernel,
    DecodeAttentionLaw,
    Engine,
    EngineKernels,
    GemmFormat,
    GemmKernel,
    GemmLaw,
    GroupedGemmKernel,
    GroupedGemmLaw,
    MlaPrefillKernel,
    PrefillAttentionKernel,
    PrefillAttentionLaw,
)
from sim.units import MB, MICROSECOND_S, Dtype

SMALLEST_WEIGHT = 1_000_000
"""Dense products with fewer weights than this are not those of a served model."""
LAUNCH_BOUND_S = 50 * MICROSECOND_S
"""If nine calls in ten take longer, the kernel was timed with its launch from Python."""
STREAMED_WEIGHT_BYTES = 100 * MB
"""Weights of this size cannot stay in a cache between two calls."""
FP8_COMPUTE_RATIO = 1.1
"""An fp8 cache that makes prefill this much faster means that it computes in fp8."""
SHARDING_LOSS = 1.2
"""A shard that takes this many times the whole layer was run with a badly chosen kernel."""
MANY_TOKENS = 1024
"""With this many tokens every expert of a measured layer has work, whatever the router."""

_EFFICIENCY = Knob(0.7, 0.01, 1.0)
_FLOOR = Knob(5e-6, 1e-7, 1e-3)
_SHARPNESS = Knob(2.0, 1.0, 8.0)
_SLOWDOWN = Knob(1.0, 1e-3, 1e3, zero_at_low=True)


@dataclass
class EngineBlocks:
    """The kernels of one engine while they are being collected."""

    gemm: dict[GemmFormat, GemmKernel] = field(default_factory=dict)
    grouped_gemm: dict[GemmFormat, GroupedGemmKernel] = field(default_factory=dict)
    decode_attention: dict[Dtype, DecodeAttentionKernel] = field(default_factory=dict)
    prefill_attention: list[PrefillAttentionKernel] = field(default_factory=list)
    mla_decode: dict[Dtype, DecodeAttentionKernel] = field(default_factory=dict)
    mla_prefill: dict[Dtype, MlaPrefillKernel] = field(default_factory=dict)

    def frozen(self) -> EngineKernels:
        """Everything collected so far."""
        return EngineKernels(
            gemm=self.gemm,
            grouped_gemm=self.grouped_gemm,
            decode_attention=self.decode_attention,
            prefill_attention=tuple(self.prefill_attention),
            mla_decode=self.mla_decode,
            mla_prefill=self.mla_prefill,
        )


@dataclass
class Study:
    """One accelerator under study: its data, its peaks, and what has been found so far."""

    data_dir: Path
    chip: str
    peaks: Peaks
    engines: dict[Engine, EngineBlocks] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)

    def blocks(self, engine: Engine) -> EngineBlocks:
        """Find or open what was found of one engine."""
        return self.engines.setdefault(engine, EngineBlocks())

    def groups(
        self, frame: pd.DataFrame, family: str, keys: list[str]
    ) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
        """Go through the rows of each engine and key, leaving out what was timed by its launch."""
        for names, rows in _grouped(frame, ["engine", *keys]):
            fastest = float(rows["time_s"].quantile(0.1))
            if fastest > LAUNCH_BOUND_S:
                self.excluded[f"{family} {' '.join(str(name) for name in names)}"] = (
                    f"launch-bound: nine calls in ten take more than {fastest * 1e6:.0f} us "
                    "whatever their size; not what a CUDA graph runs"
                )
                continue
            yield names, rows


class KernelLaws(NamedTuple):
    """What was found of the kernels of one chip."""

    engines: Mapping[Engine, EngineKernels]
    excluded: Mapping[str, str]
    """What was left out, and why."""


def fit_kernels(data_dir: Path, chip: str, peaks: Peaks) -> KernelLaws:
    """Fit every family of kernels that was measured on a chip.

    Parameters
    ----------
    data_dir
        Folder with ``kernels/aic_*.csv``.
    chip
        What the chip is called there.
    peaks
        Datasheet figures of the chip.

    Raises
    ------
    InputError
        If a family has no rows of the chip.
    """
    study = Study(data_dir, chip, peaks)
    for fit_family in (
        _fit_gemm,
        _fit_grouped_gemm,
        _fit_decode_attention,
        _fit_prefill_attention,
        _fit_mla_decode,
        _fit_mla_prefill,
    ):
        fit_family(study)
    engines = {name: blocks.frozen() for name, blocks in sorted(study.engines.items())}
    return KernelLaws(engines, study.excluded)


def _fit_gemm(study: Study) -> None:
    frame = kernels.gemm(study.data_dir, study.chip, study.peaks)
    frame = frame[frame["n"] * frame["k"] >= SMALLEST_WEIGHT]
    knobs = {
        "floor_s": _FLOOR,
        "compute_efficiency": _EFFICIENCY,
        "memory_efficiency": _EFFICIENCY,
        "depth_s": Knob(5e-10, 1e-13, 1e-8, zero_at_low=True),
        "sharpness": _SHARPNESS,
    }
    for (engine, name), rows in study.groups(frame, "gemm", ["format"]):
        converts = FORMATS[name].activation != "bf16"
        law = regress(
            GemmLaw,
            knobs | {"conversion_slowdown": _SLOWDOWN} if converts else knobs,
            _gemm_times,
            rows,
            fixed={} if converts else {"conversion_slowdown": 0.0},
        )
        forecast_s = _gemm_times(law, rows)
        fit = residual_report(rows, forecast_s, ["m", "n", "k"], _gemm_note(rows, forecast_s))
        dtypes = FORMATS[name]
        study.blocks(engine).gemm[name] = GemmKernel(
            compute_dtype=dtypes.compute,
            weight_dtype=dtypes.weight,
            activation_dtype=dtypes.activation,
            law=law,
            fit=fit,
        )


def _gemm_times(law: GemmLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "compute_s", "memory_s", "depth", "conversion_s"))


def _gemm_note(rows: pd.DataFrame, forecast_s: Array) -> str:
    """Check weight streaming apart: big weights and few rows, where no cache can help."""
    chosen = ((rows["weight_bytes"] >= STREAMED_WEIGHT_BYTES) & (rows["m"] <= 64)).to_numpy()
    errors = relative_errors(forecast_s[chosen], times(rows)[chosen])
    text = (
        f"n*k >= {SMALLEST_WEIGHT}; weights of 100 MB and more at m <= 64: "
        f"median APE {errors['median_ape']:.3f}, bias {errors['bias']:+.3f}"
    )
    if FORMATS[rows["format"].iloc[0]].activation != "bf16":
        text += "; floor and conversion include the kernel that quantises activations"
    return text


def _fit_grouped_gemm(study: Study) -> None:
    frame = kernels.grouped_gemm(study.data_dir, study.chip, study.peaks)
    opt_in = frame["kernel_source"].str.contains("min_latency")
    for (engine, name), _ in _grouped(frame[opt_in], ["engine", "format"]):
        study.excluded[f"grouped_gemm {engine} {name} min_latency"] = (
            "an opt-in mode in which every rank computes all tokens: expert parallelism does not "
            "make it faster"
        )
    frame = frame[~opt_in]
    shape = ["hidden_size", "inter_size", "topk", "num_experts"]
    knobs = {
        "floor_s": Knob(2e-5, 1e-7, 1e-3),
        "compute_efficiency": _EFFICIENCY,
        "memory_efficiency": _EFFICIENCY,
        "sharpness": _SHARPNESS,
        "pick_slowdown": _SLOWDOWN,
        "token_slowdown": _SLOWDOWN,
    }
    for (engine, name), all_rows in _grouped(frame, ["engine", "format"]):
        balanced = all_rows[all_rows["distribution"] == "balanced"]
        rows, dropped = _without_broken_shards(balanced, shape)
        law = regress(GroupedGemmLaw, knobs, _grouped_gemm_times, rows)
        ranges = ["num_tokens", *shape, "moe_tp_size", "moe_ep_size"]
        note = f"balanced router; {dropped} rows left out whose shard was slower than the layer"
        dtypes = FORMATS[name]
        study.blocks(engine).grouped_gemm[name] = GroupedGemmKernel(
            compute_dtype=dtypes.compute,
            weight_dtype=dtypes.weight,
            activation_dtype=dtypes.activation,
            law=law,
            fit=residual_report(rows, _grouped_gemm_times(law, rows), ranges, note),
            skew_slowdown=_skew_slowdown(all_rows, [*ranges, "kernel_source"]),
        )


def _grouped_gemm_times(law: GroupedGemmLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "compute_s", "memory_s", "pick_s", "token_s"))


def _without_broken_shards(rows: pd.DataFrame, shape: list[str]) -> tuple[pd.DataFrame, int]:
    """Leave out the series of a shard that takes longer than the layer it is a part of."""
    most = rows["num_tokens"].max()
    shard = [*shape, "moe_tp_size", "moe_ep_size"]
    largest = rows[rows["num_tokens"] == most].set_index(shard)["time_s"]
    parts = largest.reset_index()
    whole = parts[(parts["moe_tp_size"] == 1) & (parts["moe_ep_size"] == 1)]
    compared = parts.merge(whole[[*shape, "time_s"]], on=shape, suffixes=("", "_whole"))
    broken = compared[compared["time_s"] > SHARDING_LOSS * compared["time_s_whole"]]
    index = pd.MultiIndex.from_frame(rows[shard])
    kept = rows[~index.isin(pd.MultiIndex.from_frame(broken[shard]))]
    return kept, len(rows) - len(kept)


def _skew_slowdown(rows: pd.DataFrame, keys: list[str]) -> dict[str, float]:
    """Compare each skewed router with the balanced one, shape by shape; median of the ratios.

    Only where every expert has work: with few tokens a skewed router touches fewer experts.
    """
    full = rows[rows["num_tokens"] >= MANY_TOKENS]
    typical = full.pivot_table(index=keys, columns="distribution", values="time_s")
    skewed = [name for name in typical.columns if name != "balanced"]
    return {
        str(name): round(float((typical[name] / typical["balanced"]).median()), 3)
        for name in skewed
    }


_DECODE_KNOBS = {
    "floor_s": _FLOOR,
    "memory_efficiency": _EFFICIENCY,
    "idle_rows": Knob(4.0, 1e-2, 1e3, zero_at_low=True),
    "row_s": Knob(3e-9, 1e-12, 1e-6, zero_at_low=True),
}


def _fit_decode_attention(study: Study) -> None:
    """Fit grouped-query decode: memory-bound at every group size measured, up to 16."""
    frame = kernels.decode_attention(study.data_dir, study.chip, study.peaks)
    ranges = ["batch_size", "kv_len", "num_heads", "kv_heads", "head_dim"]
    unseen = {"compute_efficiency": 1.0, "sharpness": _SHARPNESS.high}
    for (engine, kv_dtype), rows in study.groups(frame, "decode_attention", ["kv_dtype"]):
        grouped = rows[(rows["kv_heads"] < rows["num_heads"]) & (rows["window_size"] == 0)]
        law = regress(
            DecodeAttentionLaw, _DECODE_KNOBS, _decode_times, grouped, unseen, _by_time(grouped)
        )
        multi_head = rows[(rows["kv_heads"] == rows["num_heads"]) & (rows["window_size"] == 0)]
        windowed = rows[rows["window_size"] > 0]
        note = (
            "grouped-query heads, no window; long calls weigh more; not fitted: "
            f"window of 128, {_check(law, windowed)}; multi-head, {_check(law, multi_head)}"
        )
        study.blocks(engine).decode_attention[kv_dtype] = DecodeAttentionKernel(
            compute_dtype=kv_dtype,
            law=law,
            fit=residual_report(grouped, _decode_times(law, grouped), ranges, note),
        )


def _fit_mla_decode(study: Study) -> None:
    """Fit latent decode: all heads share one cache, so many heads on a chip are compute-bound."""
    frame = kernels.mla_decode(study.data_dir, study.chip, study.peaks)
    ranges = ["batch_size", "kv_len", "num_heads"]
    knobs = _DECODE_KNOBS | {"compute_efficiency": _EFFICIENCY, "sharpness": _SHARPNESS}
    for (engine, kv_dtype), rows in study.groups(frame, "mla_decode", ["kv_dtype"]):
        law = regress(DecodeAttentionLaw, knobs, _decode_times, rows)
        study.blocks(engine).mla_decode[kv_dtype] = DecodeAttentionKernel(
            compute_dtype=kv_dtype,
            law=law,
            fit=residual_report(rows, _decode_times(law, rows), ranges, None),
        )


def _by_time(rows: pd.DataFrame) -> Array:
    """Weigh long calls more: some kernels bend where the law is straight, and long calls count."""
    weights: Array = np.clip(times(rows) / LAUNCH_BOUND_S, None, 4.0) ** 0.25
    return weights


def _decode_times(law: DecodeAttentionLaw, rows: pd.DataFrame) -> Array:
    return law.seconds(**columns(rows, "rows", "memory_s", "compute_s"))


def _check(law: DecodeAttentionLaw, rows: pd.DataFrame) -> str:
    """Say how a law does on rows it was not fitted to."""
    if rows.empty:
        return "no rows"
    return _said(_decode_times(law, rows), rows)


def _said(forecast_s: Array, rows: pd.DataFrame) -> str:
    errors = relative_errors(forecast_s, times(rows))
    return f"{len(rows)} rows: median APE {errors['median_ape']:.3f}, bias {errors['bias']:+.3f}"


def _fit_prefill_attention(study: Study) -> None:
    frame = kernels.prefill_attention(study.data_dir, study.chip, study.peaks)
    ranges = ["batch_size", "isl", "num_heads", "kv_heads"]
    keys = ["attention_dtype", "head_dim", "kv_dtype"]
    bf16_efficiency: dict[tuple[Engine, int], float] = {}
    for names, rows in study.groups(frame, "prefill_attention", keys):
        engine, attention_dtype, head_dim, kv_dtype = names
        whole, windowed = rows[rows["window_size"] == 0], rows[rows["window_size"] > 0]
        law, compute_dtype = _fit_prefill(
            study.peaks, whole, attention_dtype, bf16_efficiency.get((engine, head_dim))
        )
        if kv_dtype == "bf16":
            bf16_efficiency[engine, head_dim] = law.compute_efficiency
        forecast = _prefill_forecast(study.peaks, compute_dtype)
        note = None
        if not windowed.empty:
            said = _said(forecast(law, windowed), windowed)
            note = f"no window; not fitted: window of 128, {said}"
        study.blocks(engine).prefill_attention.append(
            PrefillAttentionKernel(
                attention_dtype=attention_dtype,
                kv_dtype=kv_dtype,
                head_dim=int(head_dim),
                compute_dtype=compute_dtype,
                law=law,
                fit=residual_report(whole, forecast(law, whole), ranges, note),
            )
        )


def _fit_mla_prefill(study: Study) -> None:
    frame = kernels.mla_prefill(study.data_dir, study.chip, study.peaks)
    bf16_efficiency: dict[Engine, float] = {}
    for (engine, kv_dtype), rows in study.groups(frame, "mla_prefill", ["kv_dtype"]):
        law, compute_dtype = _fit_prefill(study.peaks, rows, "bf16", bf16_efficiency.get(engine))
        if kv_dtype == "bf16":
            bf16_efficiency[engine] = law.compute_efficiency
        forecast_s = _prefill_forecast(study.peaks, compute_dtype)(law, rows)
        study.blocks(engine).mla_prefill[kv_dtype] = MlaPrefillKernel(
            compute_dtype=compute_dtype,
            law=law,
            fit=residual_report(rows, forecast_s, ["batch_size", "isl", "num_heads"], None),
        )


def _fit_prefill(
    peaks: Peaks, rows: pd.DataFrame, asked: Dtype, bf16_efficiency: float | None
) -> tuple[PrefillAttentionLaw, Dtype]:
    """Fit prefill attention, and find out whether an fp8 cache made it compute in fp8.

    Groups come sorted, so the bf16 cache of the same engine and heads was fitted just before.
    """
    law = _fit_prefill_as(peaks, rows, asked)
    if asked == "bf16" and bf16_efficiency is not None:
        slack = _fit_prefill_as(peaks, rows, "fp8")
        gain = slack.compute_efficiency * peaks.flop_per_s["fp8"]
        if gain > FP8_COMPUTE_RATIO * bf16_efficiency * peaks.flop_per_s["bf16"]:
            return slack, "fp8"
    return law, asked


def _fit_prefill_as(peaks: Peaks, rows: pd.DataFrame, dtype: Dtype) -> PrefillAttentionLaw:
    knobs = {
        "floor_s": Knob(1e-5, 1e-7, 1e-3),
        "compute_efficiency": _EFFICIENCY,
        "token_slowdown": _SLOWDOWN,
    }
    forecast = _prefill_forecast(peaks, dtype)
    return regress(PrefillAttentionLaw, knobs, forecast, rows)


def _prefill_forecast(
    peaks: Peaks, dtype: Dtype
) -> Callable[[PrefillAttentionLaw, pd.DataFrame], Array]:
    def forecast(law: PrefillAttentionLaw, rows: pd.DataFrame) -> Array:
        compute_s = rows["flop"].to_numpy(dtype=float) / peaks.flop_per_s[dtype]
        return law.seconds(compute_s=compute_s, token_s=rows["token_s"].to_numpy(dtype=float))

    return forecast


def _grouped(
    frame: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    for names, rows in frame.groupby(keys):
        yield cast("tuple[Any, ...]", names), rows

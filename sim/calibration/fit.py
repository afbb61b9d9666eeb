"""Fit the laws of one accelerator to its measured kernels and write the calibration file.

What is left out of a fit, and why, is written into the file beside what is kept. No row is held
out here: the residuals say how well simple laws describe the measured kernels, and forecasts of
whole serving runs are checked elsewhere. To redo it, with your own rows in the same columns::

    python -m sim.calibration.fit DATA_DIR --accelerator h100_sxm --out hardware/calibrations
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import typer
import yaml
from rich.console import Console
from rich.table import Table

from sim.calibration import collectives, kernels
from sim.calibration.kernels import FORMATS, Peaks
from sim.calibration.regression import (
    Array,
    Knob,
    regress,
    relative_errors,
    residual_report,
    times,
)
from sim.efficiency import (
    Calibration,
    Collective,
    DecodeAttentionKernel,
    DecodeAttentionLaw,
    Engine,
    EngineKernels,
    Exchange,
    Fit,
    GemmFormat,
    GemmKernel,
    GemmLaw,
    GroupedGemmKernel,
    GroupedGemmLaw,
    MlaPrefillKernel,
    Operation,
    PowerFit,
    PowerLaw,
    PrefillAttentionKernel,
    PrefillAttentionLaw,
)
from sim.errors import InputError
from sim.units import KB, MB, MICROSECOND_S, Dtype

DATE = "2026-11-20"
"""Day on which the measurements were collected."""
METHOD = (
    "soft-L1 fit of log time; coefficients to 4 digits; residuals are of the rounded law on the "
    "rows it was fitted to, none held out"
)

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
WIDE_GROUPS = (16, 32, 64, 72)
"""Chips of one domain beyond eight, for racks whose collectives were measured on four."""


class Subject(NamedTuple):
    """What an accelerator is called in the data, and what stands in where it was not measured."""

    chip: str
    power: str
    """The accelerator whose power was measured."""
    sister: str | None
    """The accelerator whose collectives show what eight chips cost over four."""
    exchange_chip: str | None
    """Name in the data of the chip whose NVLink expert exchange was measured over many chips."""


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "h100_sxm": Subject("H100-SXM", power="h200_sxm", sister=None, exchange_chip=None),
        "h200_sxm": Subject("H200-SXM", power="h200_sxm", sister=None, exchange_chip=None),
        "b200_sxm": Subject("B200-SXM", power="b200_sxm", sister=None, exchange_chip=None),
        "gb300": Subject("GB300", power="b200_sxm", sister="b200_sxm", exchange_chip="GB200"),
    }
)

PREFERENCE: Mapping[Engine, tuple[Engine, ...]] = MappingProxyType(
    {
        "trtllm": ("trtllm", "sglang", "vllm"),
        "vllm": ("vllm", "trtllm", "sglang"),
        "sglang": ("sglang", "vllm", "trtllm"),
    }
)

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


def fit_accelerator(data_dir: Path, accelerator: str, peaks: Mapping[str, Peaks]) -> Calibration:
    """Fit all laws of one accelerator.

    Parameters
    ----------
    data_dir
        Folder with ``comms.csv`` and ``kernels/aic_*.csv``.
    accelerator
        Id of the accelerator: a key of `SUBJECTS`.
    peaks
        Datasheet figures of the accelerator and of those that stand in for it, by id.

    Returns
    -------
    calibration
        What ``hardware/calibrations/<accelerator>.yaml`` holds.

    Raises
    ------
    InputError
        If the accelerator has no measurements or a file is missing.
    """
    if accelerator not in SUBJECTS:
        raise InputError(f"no measurements of {accelerator}; there are {', '.join(SUBJECTS)}")
    subject = SUBJECTS[accelerator]
    study = Study(data_dir, subject.chip, peaks[accelerator])
    study.excluded["all_reduce *_eager"] = "launch-bound: timed with its launch from Python"
    for fit_family in (
        _fit_gemm,
        _fit_grouped_gemm,
        _fit_decode_attention,
        _fit_prefill_attention,
        _fit_mla_decode,
        _fit_mla_prefill,
    ):
        fit_family(study)
    used = {dtypes.compute for dtypes in FORMATS.values()} & set(study.peaks.flop_per_s)
    return Calibration(
        accelerator=accelerator,
        about=(
            f"Kernels and collectives measured on {subject.chip} by NVIDIA AIConfigurator "
            "(Apache-2.0, commit 095f58a51c4c) in CUDA graphs through each engine's own kernels"
        ),
        date=DATE,
        method=METHOD,
        peak_flop_per_s={name: study.peaks.flop_per_s[name] for name in sorted(used)},
        bandwidth_bytes_per_s=study.peaks.bandwidth_bytes_per_s,
        kernels={name: blocks.frozen() for name, blocks in sorted(study.engines.items())},
        preference=PREFERENCE,
        collectives=_fit_collectives(data_dir, subject),
        expert_exchange=_fit_exchanges(data_dir, subject),
        power=_fit_power(data_dir, accelerator, subject, peaks[subject.power]),
        excluded=study.excluded,
    )


def _fit_gemm(study: Study) -> None:
    frame = _named(kernels.gemm(study.data_dir, study.chip, study.peaks))
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
    return law.seconds(**_columns(rows, "compute_s", "memory_s", "depth", "conversion_s"))


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
    frame = _named(kernels.grouped_gemm(study.data_dir, study.chip, study.peaks))
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
    return law.seconds(**_columns(rows, "compute_s", "memory_s", "pick_s", "token_s"))


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
    frame = _named(kernels.decode_attention(study.data_dir, study.chip, study.peaks))
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
    frame = _named(kernels.mla_decode(study.data_dir, study.chip, study.peaks))
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
    return law.seconds(**_columns(rows, "rows", "memory_s", "compute_s"))


def _check(law: DecodeAttentionLaw, rows: pd.DataFrame) -> str:
    """Say how a law does on rows it was not fitted to."""
    if rows.empty:
        return "no rows"
    return _said(_decode_times(law, rows), rows)


def _said(forecast_s: Array, rows: pd.DataFrame) -> str:
    errors = relative_errors(forecast_s, times(rows))
    return f"{len(rows)} rows: median APE {errors['median_ape']:.3f}, bias {errors['bias']:+.3f}"


def _fit_prefill_attention(study: Study) -> None:
    frame = _named(kernels.prefill_attention(study.data_dir, study.chip, study.peaks))
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
    frame = _named(kernels.mla_prefill(study.data_dir, study.chip, study.peaks))
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


def _fit_collectives(
    data_dir: Path, subject: Subject
) -> dict[Operation, dict[str, dict[int, Collective]]]:
    frame = kernels.collectives(data_dir, subject.chip)
    sister = None
    if subject.sister is not None:
        sister = kernels.collectives(data_dir, SUBJECTS[subject.sister].chip)
    found: dict[Operation, dict[str, dict[int, Collective]]] = {}
    for operation, libraries in collectives.OPERATIONS.items():
        found[operation] = {}
        for library, series in libraries.items():
            laws = collectives.fit_series(frame, series)
            if sister is not None:
                laws |= _widened(laws[4], collectives.fit_series(sister, series))
            found[operation][library] = laws
    return found


def _widened(four: Collective, sister: Mapping[int, Collective]) -> dict[int, Collective]:
    """Forecast eight chips and more of a domain whose collectives were measured on four."""
    size = np.geomspace(KB, 1000 * MB, 40)
    eight = collectives.scale_up(four, sister[4], sister[8], size)
    start_step_s = min(float(sister[8].law.seconds(0.0) - sister[4].law.seconds(0.0)), 1e-3)
    wide = {n: collectives.widen(eight, start_step_s, n) for n in WIDE_GROUPS}
    return {8: eight} | wide


def _fit_exchanges(
    data_dir: Path, subject: Subject
) -> dict[Exchange, dict[str, dict[int, Collective]]]:
    frame = collectives.with_prepare(kernels.collectives(data_dir, subject.chip))
    if subject.exchange_chip is not None:
        stand_in = collectives.with_prepare(kernels.collectives(data_dir, subject.exchange_chip))
        frame = pd.concat([frame, stand_in[stand_in["op"].str.startswith("moe_alltoall")]])
    found: dict[Exchange, dict[str, dict[int, Collective]]] = {}
    for half, libraries in collectives.EXCHANGES.items():
        laws = {name: collectives.fit_series(frame, each) for name, each in libraries.items()}
        if subject.exchange_chip is not None:
            text = f"measured on {subject.exchange_chip}, same NVLink; dispatch with its planning"
            nvlink = laws["trtllm_nvlink"]
            laws["trtllm_nvlink"] = {n: collectives.note(law, text) for n, law in nvlink.items()}
        found[half] = {name: law for name, law in laws.items() if law}
    return found


def _fit_power(data_dir: Path, accelerator: str, subject: Subject, peaks: Peaks) -> PowerFit:
    rows = _named(kernels.power(data_dir, SUBJECTS[subject.power].chip, peaks))
    rows = _steady(rows[rows["memory_utilization"] <= 1.0])
    rows = rows.assign(time_s=rows["load_fraction"])
    knobs = {
        "active_fraction": Knob(0.2, 0.01, 0.9),
        "compute_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
        "memory_weight": Knob(0.8, 1e-3, 5.0, zero_at_low=True),
    }
    law = regress(PowerLaw, knobs, _power_fraction, rows)
    inherited = None if subject.power == accelerator else subject.power
    return PowerFit(
        law=law,
        fit=residual_report(
            rows,
            _power_fraction(law, rows),
            ["compute_utilization", "memory_utilization", "power_w"],
            "residuals of power / board limit; dense products; of rows with like utilization the "
            "half with more power: many others looped too briefly for the sensor and read low",
        ),
        inherited_from=inherited,
    )


def _power_fraction(law: PowerLaw, rows: pd.DataFrame) -> Array:
    load = _columns(rows, "compute_utilization", "memory_utilization")
    return law.watts(tdp_w=1.0, idle_w=0.0, busy=np.ones(len(rows)), **load)


def _steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows that the sensor saw in full: the upper half among rows of like load."""
    cell = [(rows[name] * 5.0).round() for name in ("compute_utilization", "memory_utilization")]
    reached = rows.groupby(cell)["load_fraction"].transform(lambda each: each.median())
    return rows[rows["load_fraction"] >= reached]


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``origin``: what a row is cited as."""
    origin = frame["source"] + ", " + frame["framework"] + " " + frame["version"]
    return frame.assign(origin=origin)


def _columns(rows: pd.DataFrame, *names: str) -> dict[str, Any]:
    return {name: rows[name].to_numpy(dtype=float) for name in names}


def _grouped(
    frame: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    for names, rows in frame.groupby(keys):
        yield cast("tuple[Any, ...]", names), rows


def to_yaml(calibration: Calibration, command: str) -> str:
    """Write a calibration as the text of its file.

    Parameters
    ----------
    calibration
        What was fitted.
    command
        The command that made it, for the header.
    """
    header = (
        f"# Fitted laws of {calibration.accelerator}: how far measured kernels stay from the "
        "datasheet.\n"
        "# Fitted numbers only; sourced facts are in hardware/accelerators. Laws: "
        "sim/efficiency.py.\n"
        f"# Made by: {command}\n"
        "# Do not edit by hand: change the data or the fit and make it again.\n"
    )
    data = calibration.model_dump(mode="json", exclude_none=True)
    body = yaml.dump(_without_empty(data), sort_keys=False, width=100, default_flow_style=None)
    return header + body


def _without_empty(node: Any) -> Any:
    """Drop mappings and lists that hold nothing."""
    if not isinstance(node, dict):
        return node
    kept = {key: _without_empty(value) for key, value in node.items()}
    return {key: value for key, value in kept.items() if value not in ({}, [])}


def catalogue_peaks(accelerator: str) -> Peaks:
    """Read the datasheet peaks of an accelerator from the catalogue."""
    from sim.catalog import open_catalog  # noqa: PLC0415  (peaks given by hand need no catalogue)

    entry = open_catalog().accelerator(accelerator)
    return Peaks(
        flop_per_s={name: figure.value for name, figure in entry.peak_flop_per_s.items()},
        bandwidth_bytes_per_s=entry.memory.bandwidth_bytes_per_s.value,
        tdp_w=entry.power.tdp_w.value,
    )


def fits(calibration: Calibration) -> Iterator[tuple[str, Fit]]:
    """Go through everything that was fitted to measurements of this accelerator.

    Parameters
    ----------
    calibration
        What was fitted.

    Yields
    ------
    name, fit
        A name such as ``trtllm gemm fp8``, and its residuals.
    """
    for engine, blocks in calibration.kernels.items():
        for name, fit in _kernel_fits(blocks):
            yield f"{engine} {name}", fit
    yield from _collective_fits(calibration.collectives)
    yield from _collective_fits(calibration.expert_exchange)
    yield "power", calibration.power.fit


def _kernel_fits(blocks: EngineKernels) -> Iterator[tuple[str, Fit]]:
    for family in ("gemm", "grouped_gemm", "decode_attention", "mla_decode", "mla_prefill"):
        for name, kernel in getattr(blocks, family).items():
            yield f"{family} {name}", kernel.fit
    for prefill in blocks.prefill_attention:
        dtypes = f"{prefill.attention_dtype}/kv {prefill.kv_dtype}"
        yield f"prefill_attention {dtypes} d={prefill.head_dim}", prefill.fit


def _collective_fits(
    group: Mapping[Any, Mapping[str, Mapping[int, Collective]]],
) -> Iterator[tuple[str, Fit]]:
    for operation, libraries in group.items():
        for library, laws in libraries.items():
            for chips, law in laws.items():
                if law.fit is not None:
                    yield f"{library} {operation} x{chips}", law.fit


def residual_table(calibration: Calibration) -> Table:
    """Show the residuals of every fitted law."""
    table = Table(title=calibration.accelerator)
    for heading in ("law", "rows", "median APE", "p90 APE", "bias"):
        table.add_column(heading)
    for name, fit in fits(calibration):
        figures = (f"{fit.median_ape:.3f}", f"{fit.p90_ape:.3f}", f"{fit.bias:+.3f}")
        table.add_row(name, str(fit.rows), *figures)
    return table


def main(
    data_dir: Annotated[Path, typer.Argument(help="Folder with comms.csv and kernels/.")],
    accelerator: Annotated[str, typer.Option(help="Id in hardware/accelerators.")],
    out: Annotated[Path, typer.Option(help="Folder to write <accelerator>.yaml to.")],
) -> None:
    """Fit the laws of one accelerator to measured kernels."""
    subject = SUBJECTS.get(accelerator)
    needed = {accelerator} if subject is None else {accelerator, subject.power}
    peaks = {name: catalogue_peaks(name) for name in sorted(needed)}
    calibration = fit_accelerator(data_dir, accelerator, peaks)
    command = (
        f"python -m sim.calibration.fit DATA_DIR --accelerator {accelerator} "
        "--out hardware/calibrations"
    )
    (out / f"{accelerator}.yaml").write_text(to_yaml(calibration, command), encoding="utf-8")
    Console(stderr=True).print(residual_table(calibration))


if __name__ == "__main__":
    typer.run(main)

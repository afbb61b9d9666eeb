"""The laws of the kernels of one chip: six families, fitted for each engine and number format.

`problems` lists every group of measured rows that gets a law of its own; `fit_kernels` fits them
all. Rows that would say something else than the law is for are left out, each with its reason:
kernels timed with their launch, opt-in modes, shards run with a badly chosen kernel, operands
that stayed in the cache between two calls.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd

from sim.calibration import kernels
from sim.calibration.expert_rows import (
    SHAPE,
    sibling_layers,
    without_narrow_routers,
    without_untuned_series,
)
from sim.calibration.kernels import NotMeasuredError, Peaks, formats_of
from sim.calibration.problems import (
    DECODE,
    GEMM,
    GROUPED_GEMM,
    PREFILL,
    Problem,
    plain_prefill,
    with_memory_of,
    without_conversion,
    without_routing,
)
from sim.calibration.regression import relative_errors, residual_report, times
from sim.efficiency import (
    DecodeAttentionKernel,
    DecodeAttentionLaw,
    Engine,
    EngineKernels,
    Fit,
    GemmKernel,
    GemmLaw,
    GroupedGemmKernel,
    GroupedGemmLaw,
    MlaDecodeKernel,
    MlaPrefillKernel,
    PrefillAttentionKernel,
    PrefillAttentionLaw,
)
from sim.precision import GemmFormat, compute_dtype
from sim.schema import StrictModel
from sim.units import MB, MICROSECOND_S, Dtype

SMALLEST_WEIGHT = 1_000_000
"""Dense products with fewer weights than this are not those of a served model."""
LAUNCH_BOUND_S = 50 * MICROSECOND_S
"""If nine calls in ten take longer, the kernel was timed with its launch from Python."""
STREAMED_WEIGHT_BYTES = 100 * MB
"""Weights of this size cannot stay in a cache between two calls."""
CACHE_MARGIN = 1.5
"""Operands of this many caches do not stay in the cache between two calls."""
SHORT_S = 3 * MICROSECOND_S
"""Memory traffic of this time at full rate hardly shows in the time of a kernel."""
FP8_COMPUTE_RATIO = 1.1
"""An fp8 cache that makes prefill this much faster means that it computes in fp8."""
SHARDING_LOSS = 1.2
"""A shard that takes this many times the whole layer was run with a badly chosen kernel."""
SHARDING_GAIN = 0.8
"""Shards that take this part of the layer do the work of the whole layer."""
MANY_TOKENS = 1024
"""With this many tokens every expert of a measured layer has work, whatever the router."""
MASKED_RATIO = 0.5
"""A kernel masks its window if all pairs leave this part of the error that the window's leave."""
QUERY_TILE = 128
"""Queries that prefill attention handles together; fewer over a long prefix take as long."""
FEWEST_ROWS = 10
"""Fewer measurements than this give no law."""

LawT = TypeVar("LawT", bound=StrictModel)


@dataclass
class EngineBlocks:
    """The kernels of one engine while they are being collected."""

    gemm: dict[GemmFormat, GemmKernel] = field(default_factory=dict)
    grouped_gemm: dict[GemmFormat, GroupedGemmKernel] = field(default_factory=dict)
    decode_attention: list[DecodeAttentionKernel] = field(default_factory=list)
    prefill_attention: list[PrefillAttentionKernel] = field(default_factory=list)
    mla_decode: dict[Dtype, MlaDecodeKernel] = field(default_factory=dict)
    mla_prefill: dict[Dtype, MlaPrefillKernel] = field(default_factory=dict)

    def frozen(self) -> EngineKernels:
        """Everything collected so far."""
        return EngineKernels(
            gemm=self.gemm,
            grouped_gemm=self.grouped_gemm,
            decode_attention=tuple(self.decode_attention),
            prefill_attention=tuple(self.prefill_attention),
            mla_decode=self.mla_decode,
            mla_prefill=self.mla_prefill,
        )


@dataclass
class Study:
    """One accelerator under study: its data, its peaks, and what is left out of its laws."""

    data_dir: Path
    chip: str
    peaks: Peaks
    cache_bytes: float = 0.0
    """Cache that is fast enough to show in the times; 0: it hardly does."""
    launch_bound_s: float = LAUNCH_BOUND_S
    siblings: tuple[str, ...] = ()
    """Chips of like multiprocessors and memory, as the data call them."""
    excluded: dict[str, str] = field(default_factory=dict)

    def groups(
        self, frame: pd.DataFrame, family: str, keys: list[str]
    ) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
        """Go through the rows of each engine and key, leaving out what was timed by its launch."""
        for names, rows in _grouped(frame, ["engine", *keys]):
            what = f"{family} {' '.join(str(name) for name in names)}"
            fastest = float(rows["time_s"].quantile(0.1))
            if fastest > self.launch_bound_s and len(rows) > MANY_ROWS:
                self.excluded[what] = (
                    f"launch-bound: nine calls in ten take more than {fastest * 1e6:.0f} us "
                    "whatever their size; not what a CUDA graph runs"
                )
                continue
            kept = self.streamed(rows)
            if len(kept) < FEWEST_ROWS:
                self.excluded[what] = f"only {len(kept)} rows"
            else:
                yield names, kept

    def streamed(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Leave out memory-bound rows whose operands stayed in the cache between two calls."""
        if not self.cache_bytes or "memory_s" not in frame:
            return frame
        moved = frame["memory_s"] * self.peaks.bandwidth_bytes_per_s
        bound = (frame["memory_s"] > frame["compute_s"]) & (frame["memory_s"] > SHORT_S)
        return frame[~(bound & (moved < CACHE_MARGIN * self.cache_bytes))]

    def cache_note(self) -> str:
        """Say what `streamed` left out."""
        if not self.cache_bytes:
            return ""
        return (
            f"; memory-bound rows of less than {CACHE_MARGIN * self.cache_bytes / MB:.0f} MB left "
            "out: they stayed in the cache"
        )


MANY_ROWS = 100
"""A series of fewer rows may be of large shapes only, and long without waiting for its launch."""


@dataclass(frozen=True)
class Group(Generic[LawT]):
    """Measured rows that get one law, and the kernel that the law becomes."""

    engine: Engine
    family: str
    """The field of `EngineKernels`."""
    name: str
    """What tells it from others of its family."""
    rows: pd.DataFrame
    problem: Problem[LawT]
    ranges: tuple[str, ...]
    note: str | None
    kernel: dict[str, Any]
    """Fields of the kernel beside its law and its fit."""

    @property
    def dtype(self) -> str:
        """Number formats alone: its name without head size and window."""
        return self.name.partition(" d=")[0]

    def report(self, law: LawT) -> Fit:
        """Say how well the law holds on the rows of the group."""
        forecast_s = self.problem.forecast(law, self.rows)
        note = self.note
        if self.family == "gemm":
            note = f"{note}; {_streaming(self.rows, self.problem.forecast(law, self.rows))}"
        return residual_report(self.rows, forecast_s, self.ranges, note)


class KernelLaws(NamedTuple):
    """What was found of the kernels of one chip."""

    engines: Mapping[Engine, EngineKernels]
    excluded: Mapping[str, str]
    """What was left out, and why."""


def fit_kernels(study: Study) -> KernelLaws:
    """Fit every family of kernels that was measured on a chip.

    Raises
    ------
    InputError
        If a file of the data cannot be read.
    """
    engines: dict[Engine, EngineBlocks] = {}
    for group in groups(study):
        law = group.problem.fit(group.rows)
        blocks = engines.setdefault(group.engine, EngineBlocks())
        _keep(blocks, group, law)
    frozen = {name: blocks.frozen() for name, blocks in sorted(engines.items())}
    return KernelLaws(frozen, study.excluded)


def _keep(blocks: EngineBlocks, group: Group[Any], law: Any) -> None:
    """Put a fitted law where its kernel belongs."""
    fields = group.kernel | {"law": law, "fit": group.report(law)}
    match group.family:
        case "gemm":
            blocks.gemm[cast("GemmFormat", group.name)] = GemmKernel(**fields)
        case "grouped_gemm":
            blocks.grouped_gemm[cast("GemmFormat", group.name)] = GroupedGemmKernel(**fields)
        case "decode_attention":
            blocks.decode_attention.append(DecodeAttentionKernel(**fields))
        case "prefill_attention":
            blocks.prefill_attention.append(PrefillAttentionKernel(**fields))
        case "mla_decode":
            blocks.mla_decode[cast("Dtype", group.name)] = MlaDecodeKernel(**fields)
        case _:
            blocks.mla_prefill[cast("Dtype", group.name)] = MlaPrefillKernel(**fields)


def groups(study: Study) -> Iterator[Group[Any]]:
    """Go through all groups of rows of a chip that get a law.

    What is left out is written to ``study.excluded`` on the way.
    """
    for family in (
        _gemm,
        _grouped_gemm,
        _decode_attention,
        _prefill_attention,
        _mla_decode,
        _mla_prefill,
    ):
        try:
            yield from family(study)
        except NotMeasuredError:
            study.excluded[family.__name__.removeprefix("_")] = "not measured on this chip"


def _gemm(study: Study) -> Iterator[Group[GemmLaw]]:
    frame = kernels.gemm(study.data_dir, study.chip, study.peaks)
    frame = frame[frame["n"] * frame["k"] >= SMALLEST_WEIGHT]
    for (engine, name), rows in study.groups(frame, "gemm", ["format"]):
        dtypes = formats_of(study.peaks)[name]
        converts = dtypes.activation != "bf16"
        note = f"n*k >= {SMALLEST_WEIGHT}" + study.cache_note()
        if converts:
            note += "; floor and conversion include the kernel that quantises activations"
        yield Group(
            engine,
            "gemm",
            name,
            rows,
            GEMM if converts else without_conversion(GEMM),
            ("m", "n", "k"),
            note,
            {
                "compute_dtype": dtypes.compute,
                "weight_dtype": dtypes.weight,
                "activation_dtype": dtypes.activation,
            },
        )


def _streaming(rows: pd.DataFrame, forecast_s: Any) -> str:
    """Check weight streaming apart: big weights and few rows, where no cache can help."""
    chosen = ((rows["weight_bytes"] >= STREAMED_WEIGHT_BYTES) & (rows["m"] <= 64)).to_numpy()
    if not chosen.any():
        return "no weights of 100 MB and more at m <= 64"
    errors = relative_errors(forecast_s[chosen], times(rows)[chosen])
    return (
        "weights of 100 MB and more at m <= 64: "
        f"median APE {errors['median_ape']:.3f}, bias {errors['bias']:+.3f}"
    )


def _grouped_gemm(study: Study) -> Iterator[Group[GroupedGemmLaw]]:
    frame = kernels.grouped_gemm(study.data_dir, study.chip, study.peaks)
    opt_in = frame["kernel_source"].str.contains("min_latency")
    for (engine, name), _ in _grouped(frame[opt_in], ["engine", "format"]):
        study.excluded[f"grouped_gemm {engine} {name} min_latency"] = (
            "an opt-in mode in which every rank computes all tokens: expert parallelism does not "
            "make it faster"
        )
    ranges = ("num_tokens", *SHAPE, "moe_tp_size", "moe_ep_size")
    like_chips = sibling_layers(study.data_dir, study.siblings)
    for (engine, name), all_rows in _grouped(frame[~opt_in], ["engine", "format"]):
        rows, router = _one_router(study.streamed(all_rows))
        if len(rows) < FEWEST_ROWS:
            study.excluded[f"grouped_gemm {engine} {name}"] = f"only {len(rows)} rows"
            continue
        rows, shards = _without_whole_shards(rows)
        bare = rows["kernel_source"].str.startswith("deepgemm_grouped").all()
        rows, narrow = (rows, 0) if bare else without_narrow_routers(rows)
        known = like_chips[(like_chips["engine"] == engine) & (like_chips["format"] == name)]
        rows, untuned = without_untuned_series(rows, known)
        rows, dropped = _without_broken_shards(rows, SHAPE)
        note = f"{router}; {dropped} rows left out whose shard was slower than the layer"
        if narrow:
            note += f"; {narrow} rows left out whose router does not reach all experts"
        if untuned:
            note += f"; {untuned} rows left out that a like chip runs with a better kernel"
        if shards:
            note += (
                f"; {shards} rows of expert parallelism left out: a rank computes all tokens of "
                "the layer"
            )
        problem = GROUPED_GEMM
        if bare:
            problem = without_routing(GROUPED_GEMM)
            note += "; gather, activation and scatter were not measured: their cost is assumed"
        dtypes = formats_of(study.peaks)[name]
        yield Group(
            engine,
            "grouped_gemm",
            name,
            rows,
            problem,
            ranges,
            note + study.cache_note(),
            {
                "compute_dtype": dtypes.compute,
                "weight_dtype": dtypes.weight,
                "activation_dtype": dtypes.activation,
                "skew_slowdown": _skew_slowdown(all_rows, [*ranges, "kernel_source"]),
            },
        )


def _one_router(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Take the rows of the balanced router, or of the mildest skew that was measured."""
    balanced = rows[rows["distribution"] == "balanced"]
    if not balanced.empty:
        return balanced, "balanced router"
    mildest = min(rows["distribution"].unique(), default="balanced")
    alone = rows[(rows["distribution"] == mildest) & (rows["moe_ep_size"] == 1)]
    return alone, (
        f"no balanced router measured, {mildest} instead, without expert parallelism: its ranks "
        "are the busiest ones"
    )


def _without_whole_shards(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Leave out expert parallelism where it does not make a rank's part smaller."""
    most = rows[rows["num_tokens"] == rows["num_tokens"].max()]
    whole = most[(most["moe_ep_size"] == 1) & (most["moe_tp_size"] == 1)]
    parts = most[(most["moe_ep_size"] > 1) & (most["moe_tp_size"] == 1)]
    compared = parts.merge(whole[[*SHAPE, "time_s"]], on=SHAPE, suffixes=("", "_whole"))
    if compared.empty:
        return rows, 0
    if (compared["time_s"] / compared["time_s_whole"]).median() < SHARDING_GAIN:
        return rows, 0
    kept = rows[rows["moe_ep_size"] == 1]
    return kept, len(rows) - len(kept)


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
    if "balanced" not in typical:
        return {}
    skewed = [name for name in typical.columns if name != "balanced"]
    return {
        str(name): round(float((typical[name] / typical["balanced"]).median()), 3)
        for name in skewed
    }


def _decode_attention(study: Study) -> Iterator[Group[DecodeAttentionLaw]]:
    """Grouped-query decode; groups of up to 128 query heads per KV head show some arithmetic."""
    frame = kernels.decode_attention(study.data_dir, study.chip, study.peaks)
    ranges = ("batch_size", "kv_len", "num_heads", "kv_heads")
    grouped = frame[frame["kv_heads"] < frame["num_heads"]]
    grouped = grouped.assign(windowed=grouped["window_size"] > 0)
    keys = ["kv_dtype", "head_dim", "windowed"]
    whole: dict[Any, DecodeAttentionLaw] = {}
    for (engine, dtype, dim, windowed), rows in study.groups(grouped, "decode_attention", keys):
        key = (engine, dtype, dim)
        problem, seen = DECODE, "no window"
        if not windowed:
            whole[key] = DECODE.fit(rows)
        elif key in whole:
            problem = with_memory_of(whole[key], DECODE)
            seen = f"window of {rows['window_size'].max():.0f}, memory as without one"
        note = f"grouped-query heads, {seen}; long calls weigh more"
        yield Group(
            engine,
            "decode_attention",
            f"kv {dtype} d={dim}{' window' if windowed else ''}",
            rows,
            problem,
            ranges,
            note + study.cache_note(),
            {
                "kv_dtype": dtype,
                "head_dim": int(dim),
                "windowed": bool(windowed),
                "compute_dtype": compute_dtype(dtype, study.peaks.flop_per_s),
            },
        )


def _mla_decode(study: Study) -> Iterator[Group[DecodeAttentionLaw]]:
    """Latent decode: all heads share one cache, so many heads on a chip are compute-bound."""
    frame = kernels.mla_decode(study.data_dir, study.chip, study.peaks)
    ranges = ("batch_size", "kv_len", "num_heads")
    for (engine, dtype), measured in study.groups(frame, "mla_decode", ["kv_dtype"]):
        computed = compute_dtype(dtype, study.peaks.flop_per_s)
        # One number of heads does not show what a tile of them costs: they are one tile then.
        tiled = measured["num_heads"].min() < measured["num_heads"].max()
        rows = measured if tiled else measured.assign(tiles=1.0)
        kernel = {"compute_dtype": computed, "head_tile": kernels.HEAD_TILE if tiled else None}
        note = study.cache_note().removeprefix("; ") or None
        yield Group(engine, "mla_decode", dtype, rows, DECODE, ranges, note, kernel)


def _prefill_attention(study: Study) -> Iterator[Group[PrefillAttentionLaw]]:
    frame = kernels.prefill_attention(study.data_dir, study.chip, study.peaks)
    frame = frame.assign(windowed=frame["window_size"] > 0)
    note = None
    ranges: tuple[str, ...] = ("batch_size", "isl", "num_heads", "kv_heads")
    if "prefix" in frame:
        ranges += ("prefix",)
        frame = frame[(frame["prefix"] == 0) | (frame["isl"] >= QUERY_TILE)]
        note = f"chunks of fewer than {QUERY_TILE} tokens over a prefix left out: they pay a tile"
    keys = ["attention_dtype", "head_dim", "windowed", "kv_dtype"]
    wide: dict[Any, float] = {}
    for names, measured in study.groups(frame, "prefill_attention", keys):
        engine, attention, dim, windowed, dtype = names
        masked = bool(windowed) and _computes_whole(measured, study.peaks)
        rows = measured.assign(flop=measured["whole_flop"]) if masked else measured
        computed = _prefill_compute(study, rows, attention, dtype, (engine, dim, windowed), wide)
        window = " window" if windowed else ""
        size = f"window of {rows['window_size'].max():.0f}"
        if masked:
            size += ", masked: all pairs are computed"
        yield Group(
            engine,
            "prefill_attention",
            f"{attention}/kv {dtype} d={dim}{window}",
            _in(study.peaks, rows, computed),
            PREFILL,
            ranges,
            size if windowed else note,
            {
                "attention_dtype": attention,
                "kv_dtype": dtype,
                "head_dim": int(dim),
                "windowed": bool(windowed),
                "masked": masked,
                "compute_dtype": computed,
            },
        )


def _computes_whole(rows: pd.DataFrame, peaks: Peaks) -> bool:
    """Find out whether a kernel masks its window: the whole triangle tells its times better."""
    found = []
    for flop in ("flop", "whole_flop"):
        counted = _in(peaks, rows.assign(flop=rows[flop]), "bf16")
        forecast_s = PREFILL.forecast(plain_prefill(counted), counted)
        found.append(float(np.abs(np.log(forecast_s / times(rows))).mean()))
    return found[1] < MASKED_RATIO * found[0]


def _mla_prefill(study: Study) -> Iterator[Group[PrefillAttentionLaw]]:
    frame = kernels.mla_prefill(study.data_dir, study.chip, study.peaks)
    wide: dict[Any, float] = {}
    for (engine, dtype), rows in study.groups(frame, "mla_prefill", ["kv_dtype"]):
        computed = _prefill_compute(study, rows, "bf16", dtype, (engine,), wide)
        found = _in(study.peaks, rows, computed)
        ranges = ("batch_size", "isl", "num_heads")
        kernel = {"compute_dtype": computed}
        yield Group(engine, "mla_prefill", dtype, found, PREFILL, ranges, None, kernel)


def _prefill_compute(
    study: Study, rows: pd.DataFrame, asked: Dtype, kv: Dtype, key: Any, wide: dict[Any, float]
) -> Dtype:
    """Find out in what prefill computes: an fp8 cache makes some kernels compute in fp8.

    Groups come sorted, so the rate over a bf16 cache of the same kernel was noted in ``wide``
    just before.
    """
    computed = compute_dtype(asked, study.peaks.flop_per_s)
    if asked != "bf16" or computed != "bf16":
        return computed
    peaks = study.peaks.flop_per_s
    if kv == "bf16":
        law = plain_prefill(_in(study.peaks, rows, "bf16"))
        wide[key] = law.compute_efficiency * peaks["bf16"]
    elif "fp8" in peaks and key in wide:
        law = plain_prefill(_in(study.peaks, rows, "fp8"))
        if law.compute_efficiency * peaks["fp8"] > FP8_COMPUTE_RATIO * wide[key]:
            return "fp8"
    return computed


def _in(peaks: Peaks, rows: pd.DataFrame, dtype: Dtype) -> pd.DataFrame:
    """Count the arithmetic of prefill rows from the peak of a dtype."""
    return rows.assign(compute_s=rows["flop"] / peaks.flop_per_s[dtype])


def _grouped(
    frame: pd.DataFrame, keys: list[str]
) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    for names, rows in frame.groupby(keys):
        yield cast("tuple[Any, ...]", names), rows

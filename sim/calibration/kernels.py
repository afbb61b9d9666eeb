"""Measured kernels as tidy frames: one row a measurement, with its speed-of-light times.

The input is a folder of CSV files, times of one call on one chip in microseconds, of the sources
that `sim.calibration.sources` reads. Every reader returns a frame with `KEYS`, the shape of the
operation, ``time_s``, and the speed-of-light columns that the matching law of `sim.efficiency`
takes.

What counts as work is decided here, once. The cost model of the simulator must count it the same
way, or the fitted efficiencies mean something else. A chip without arithmetic in a format is
counted as widening it to 16 bits (`sim.precision.compute_dtype`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
import pandas as pd

from sim.calibration import sources
from sim.calibration.measured_tables import Table, read_table
from sim.errors import InputError
from sim.precision import FORMATS, Format, GemmFormat, compute_dtype
from sim.units import DTYPE_BYTES, MICROSECOND_S, Dtype

KEYS = ("chip", "engine", "version", "origin")
"""Columns that every frame of kernels carries: who measured what, and what a row is cited as."""

MLA_LATENT = 512
MLA_ROPE = 64
MLA_QK = 192
MLA_V = 128
"""Head sizes of DeepSeek-V2/V3 multi-head latent attention (arXiv:2405.04434, section 2.1)."""
HEAD_TILE = 16
"""Query heads that share one instruction of latent decode: the rows of a matrix fragment of NVIDIA
tensor cores (PTX ISA, mma.m16n8k16). Fewer heads cost as much."""


class NotMeasuredError(InputError):
    """A chip has no rows of an operation."""


@dataclass(frozen=True)
class Peaks:
    """The datasheet figures that speed-of-light times are counted from."""

    flop_per_s: Mapping[Dtype, float]
    bandwidth_bytes_per_s: float
    tdp_w: float


_FORMAT_NAMES: Mapping[str, GemmFormat] = MappingProxyType(
    {
        "bfloat16": "bf16",
        "fp8": "fp8",
        "fp8_block": "fp8_block",
        "sq": "int8",
        "int8_wo": "int8_bf16",
        "nvfp4": "nvfp4",
        "w4a16_mxfp4": "mxfp4_bf16",
        "w4a8_mxfp4_mxfp8": "mxfp4_fp8",
        "int4_wo": "int4_bf16",
    }
)
_DTYPE_NAMES: Mapping[str, Dtype] = MappingProxyType({"bfloat16": "bf16", "fp8": "fp8"})


def gemm(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Dense matrix products y[m, n] = x[m, k] w[k, n].

    Counted: ``2 m n k`` flop; weights, inputs in the format, and bf16 outputs once each; and for
    formats that convert them, activations read in bf16 and written in the format.
    """
    frame = _read(data_dir, "gemm", chip)
    frame["format"] = frame["gemm_dtype"].map(_FORMAT_NAMES)
    m, n, k = (frame[name].astype(float) for name in ("m", "n", "k"))
    weight_bytes, activation_bytes = _format_bytes(frame["format"], peaks)
    moved = n * k * weight_bytes + m * k * activation_bytes + m * n * DTYPE_BYTES["bf16"]
    converted = m * k * _conversion_bytes(frame["format"], peaks)
    frame["weight_bytes"] = n * k * weight_bytes
    frame["compute_s"] = 2.0 * m * n * k / _format_peak(frame["format"], peaks)
    frame["memory_s"] = moved / peaks.bandwidth_bytes_per_s
    frame["depth"] = k
    frame["conversion_s"] = converted / peaks.bandwidth_bytes_per_s
    return frame


def grouped_gemm(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Routed expert layers on one rank; rows of all router distributions.

    A ``balanced`` router in this data deals tokens out like cards: ``min(experts, picks)``
    experts are touched (seen in the times: 16 tokens with top-8 of 128 experts cost as much as
    64 tokens), and a rank that gets any gets at least one pick. Counted: ``6 * picks * hidden *
    inter`` flop (gate, up and down), the weights of touched experts, and for each pick the hidden
    vector in and out and the two sides of the activation.
    """
    frame = expert_times(data_dir, chip)
    weight_bytes, activation_bytes = _format_bytes(frame["format"], peaks)
    hidden = frame["hidden_size"].astype(float)
    inter = frame["inter_size"] / frame["moe_tp_size"]
    picks = np.maximum(frame["num_tokens"] * frame["topk"] / frame["moe_ep_size"], 1.0)
    most = np.minimum(frame["num_experts"] / frame["moe_ep_size"], np.ceil(picks))
    touched = np.minimum(most, _skewed_touched(frame))
    bf16 = DTYPE_BYTES["bf16"]
    per_pick = hidden * (activation_bytes + bf16) + inter * (2.0 * bf16 + activation_bytes)
    moved = touched * 3.0 * hidden * inter * weight_bytes + picks * per_pick
    vector_s = hidden * (bf16 + activation_bytes) / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = 6.0 * picks * hidden * inter / _format_peak(frame["format"], peaks)
    frame["memory_s"] = moved / peaks.bandwidth_bytes_per_s
    frame["pick_s"] = picks * vector_s
    frame["token_s"] = frame["num_tokens"] * vector_s
    frame["local_experts"] = np.maximum(frame["num_experts"] / frame["moe_ep_size"], 1.0)
    return frame


def expert_times(data_dir: Path, chip: str) -> pd.DataFrame:
    """Routed expert layers as they were measured, without what light would take."""
    frame = _read(data_dir, "moe", chip)
    frame["format"] = frame["moe_dtype"].map(_FORMAT_NAMES)
    return frame


def _skewed_touched(frame: pd.DataFrame) -> "pd.Series[float]":
    """Experts touched on a rank by a skewed router, expected; without bound for a balanced one.

    ``power_law_a`` picks the expert of rank ``i`` with a chance in proportion to ``i**-a``.
    """
    exponents = frame["distribution"].str.extract(sources.SKEWED)[0].astype(float)
    touched = np.full(len(frame), np.inf)
    routers = frame[["num_experts", "topk"]].assign(exponent=exponents).reset_index(drop=True)
    for router, same in routers.groupby([*routers.columns]):
        experts, topk, exponent = cast("tuple[float, float, float]", router)
        rows = same.index.to_numpy()
        weights = np.arange(1.0, experts + 1.0) ** -exponent
        chance = np.minimum(topk * weights / weights.sum(), 1.0)
        tokens = frame["num_tokens"].to_numpy(dtype=float)[rows]
        touched[rows] = (1.0 - (1.0 - chance) ** tokens[:, None]).sum(axis=1)
    return pd.Series(touched / frame["moe_ep_size"], index=frame.index).clip(lower=1.0)


def decode_attention(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """One new token per sequence over cached keys and values.

    Counted: keys and values of ``min(kv_len, window)`` positions once per KV head, and
    ``4 * heads * head_dim`` flop per position at the peak of the cache's dtype.
    """
    frame = _attention(_read(data_dir, "attention_decode", chip))
    positions = frame["batch_size"] * _windowed(frame["kv_len"], frame["window_size"])
    element_bytes = frame["kv_dtype"].map(DTYPE_BYTES)
    cached = positions * 2.0 * frame["kv_heads"] * frame["head_dim"] * element_bytes
    work = 4.0 * positions * frame["num_heads"] * frame["head_dim"]
    frame["rows"] = (frame["batch_size"] * frame["kv_heads"]).astype(float)
    frame["tiles"] = 1.0
    frame["memory_s"] = cached / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = work / _dtype_peak(frame["kv_dtype"], peaks)
    return frame


def prefill_attention(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Causal attention over prompts, some with a cached prefix before them.

    Counted: ``4 * pairs * heads * head_dim`` flop, a pair being a query and a key it may see
    (``whole_flop``: with no regard to a window, which is what a kernel that masks it computes);
    queries and outputs in bf16, keys and values in bf16 and again in the cache's dtype.
    """
    frame = _attention(_read(data_dir, "attention_prefill", chip))
    length = frame["isl"].astype(float)
    seen = _windowed(length, frame["window_size"])
    prefix = length * frame["prefix"] if "prefix" in frame else 0.0
    pairs = seen * (seen + 1.0) / 2.0 + (length - seen) * seen + prefix
    whole_pairs = length * (length + 1.0) / 2.0 + prefix
    bf16 = DTYPE_BYTES["bf16"]
    element_bytes = frame["kv_dtype"].map(DTYPE_BYTES)
    per_token = 2.0 * bf16 * frame["num_heads"] + 2.0 * frame["kv_heads"] * (bf16 + element_bytes)
    moved = frame["batch_size"] * length * per_token * frame["head_dim"]
    frame["attention_dtype"] = frame["attn_dtype"].map(_DTYPE_NAMES)
    per_pair = 4.0 * frame["batch_size"] * frame["num_heads"] * frame["head_dim"]
    frame["flop"] = per_pair * pairs
    frame["whole_flop"] = per_pair * whole_pairs
    frame["token_s"] = moved / peaks.bandwidth_bytes_per_s
    return frame


def mla_decode(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Decode of multi-head latent attention with absorbed projections.

    Counted per cached position: 576 elements once for all heads, and ``2 * heads * (576 + 512)``
    flop at the peak of the cache's dtype, with heads padded to whole tiles of `HEAD_TILE`.
    """
    frame = _read(data_dir, "mla_decode", chip)
    frame["kv_dtype"] = frame["kv_cache_dtype"].map(_DTYPE_NAMES)
    positions = (frame["batch_size"] * frame["kv_len"]).astype(float)
    cached = positions * (MLA_LATENT + MLA_ROPE) * frame["kv_dtype"].map(DTYPE_BYTES)
    frame["tiles"] = np.ceil(frame["num_heads"] / HEAD_TILE)
    work = 2.0 * positions * frame["tiles"] * HEAD_TILE * (2 * MLA_LATENT + MLA_ROPE)
    frame["rows"] = frame["batch_size"].astype(float)
    frame["memory_s"] = cached / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = work / _dtype_peak(frame["kv_dtype"], peaks)
    return frame


def mla_prefill(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Prefill of multi-head latent attention with keys and values expanded per head.

    Counted: ``2 * pairs * heads * (192 + 128)`` flop; queries, keys, values and outputs in bf16.
    """
    frame = _read(data_dir, "mla_prefill", chip)
    frame["kv_dtype"] = frame["kv_cache_dtype"].map(_DTYPE_NAMES)
    length = frame["isl"].astype(float)
    heads = frame["num_heads"].astype(float)
    moved = frame["batch_size"] * length * heads * 2.0 * (MLA_QK + MLA_V) * DTYPE_BYTES["bf16"]
    pairs = frame["batch_size"] * length * (length + 1.0) / 2.0
    frame["flop"] = 2.0 * pairs * heads * (MLA_QK + MLA_V)
    frame["token_s"] = moved / peaks.bandwidth_bytes_per_s
    return frame


def power(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Board power while one dense product loops, with how busy arithmetic and memory were.

    Only dense products: their flop and bytes are known without a guess about caches. Columns:
    ``load_fraction`` (power over the board limit), ``compute_utilization``,
    ``memory_utilization``.
    """
    table = _power_table(sources.power_file(data_dir / "kernels"))
    frame = table.frame[table.frame["hardware"] == chip].copy()
    if frame.empty:
        raise InputError(
            f"{table.path}: no power of a dense product on {chip}; there is power of "
            f"{', '.join(sources.chips_in(table)) or 'no chip'}. {POWER_INSTEAD}"
        )
    shape = frame["shape"].str.extract(_PRODUCT).astype(float)
    frame["format"] = frame["dtype"].map(_FORMAT_NAMES)
    weight_bytes, activation_bytes = _format_bytes(frame["format"], peaks)
    m, n, k = shape["m"], shape["n"], shape["k"]
    moved = n * k * weight_bytes + m * k * activation_bytes + m * n * DTYPE_BYTES["bf16"]
    time_s = frame["latency_us"] * MICROSECOND_S
    work_s = 2.0 * m * n * k / _format_peak(frame["format"], peaks)
    frame["load_fraction"] = frame["power_w"] / frame["power_limit_w"]
    frame["compute_utilization"] = work_s / time_s
    frame["memory_utilization"] = moved / peaks.bandwidth_bytes_per_s / time_s
    frame["weight_bytes"] = n * k * weight_bytes
    return _signed(frame, table.path)


_PRODUCT = r"m=(?P<m>[1-9]\d*) n=(?P<n>[1-9]\d*) k=(?P<k>[1-9]\d*)"
POWER_INSTEAD = (
    "To take the law of a chip in the catalogue, give the folder a subjects.yaml whose subject "
    "says 'power_lent_by: h200_sxm' instead of power"
)
"""What to do where no power was measured."""


def _power_table(path: Path) -> Table:
    """Read the dense products of a file of power; where the sensor told nothing, none."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; it has the power that was measured. {POWER_INSTEAD}"
        )
    every = read_table(path, "rows of power")
    every = every.checked(texts=("hardware", "framework", "version", "op", "dtype", "shape"))
    every.need("power_w", "power_limit_w")
    told = every.frame[["power_w", "power_limit_w"]].notna().all(axis="columns")
    table = every.where(told & (every.frame["op"] == "gemm"))
    shapeless = ~table.frame["shape"].str.fullmatch(_PRODUCT)
    table.refuse("shape", shapeless, "is no product such as m=16 n=2048 k=4096")
    return table.checked(amounts=("latency_us", "power_w", "power_limit_w"))


def _read(data_dir: Path, operation: sources.Operation, chip: str) -> pd.DataFrame:
    """All rows of one operation on one chip, from whichever files hold them."""
    found = [
        _signed(frame.assign(time_s=frame["latency_us"] * MICROSECOND_S), path)
        for path, frame in sources.read(data_dir / "kernels", operation, chip)
    ]
    if not found:
        raise NotMeasuredError(f"no rows of {operation} on {chip} under {data_dir / 'kernels'}")
    return pd.concat(found, ignore_index=True)


def _signed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the `KEYS` that the file calls something else."""
    return frame.assign(
        chip=frame["hardware"],
        engine=frame["framework"],
        origin=path.name + ", " + frame["framework"] + " " + frame["version"],
    )


def formats_of(peaks: Peaks) -> Mapping[GemmFormat, Format]:
    """Return every format as a chip with these peaks computes with it."""
    return {name: dtypes.on(peaks.flop_per_s) for name, dtypes in FORMATS.items()}


def _format_bytes(
    formats: "pd.Series[str]", peaks: Peaks
) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Bytes per weight and per activation of each row's format."""
    known = formats_of(peaks)
    weight = {name: dtypes.weight_bytes for name, dtypes in known.items()}
    activation = {name: dtypes.activation_bytes for name, dtypes in known.items()}
    return formats.map(weight), formats.map(activation)


def _format_peak(formats: "pd.Series[str]", peaks: Peaks) -> "pd.Series[float]":
    """Peak flop/s of what each row's format is computed in."""
    known = {name: peaks.flop_per_s[each.compute] for name, each in formats_of(peaks).items()}
    return formats.map(known)


def _dtype_peak(dtypes: "pd.Series[str]", peaks: Peaks) -> "pd.Series[float]":
    """Peak flop/s of what each row's dtype is computed in."""
    supported = peaks.flop_per_s
    known = {dtype: supported[compute_dtype(dtype, supported)] for dtype in DTYPE_BYTES}
    return dtypes.map(known)


def _conversion_bytes(formats: "pd.Series[str]", peaks: Peaks) -> "pd.Series[float]":
    """Bytes read and written per activation that is converted; 0 for formats that keep bf16."""
    bf16 = DTYPE_BYTES["bf16"]
    moved = {
        name: 0.0 if dtypes.activation == "bf16" else bf16 + dtypes.activation_bytes
        for name, dtypes in formats_of(peaks).items()
    }
    return formats.map(moved)


def _attention(frame: pd.DataFrame) -> pd.DataFrame:
    """Add KV heads (0 in the file: as many as query heads) and our name of the cache's dtype."""
    grouped = frame["num_key_value_heads"] > 0
    frame["kv_heads"] = frame["num_key_value_heads"].where(grouped, frame["num_heads"])
    frame["kv_dtype"] = frame["kv_cache_dtype"].map(_DTYPE_NAMES)
    return frame


def _windowed(length: "pd.Series[float]", window: "pd.Series[int]") -> "pd.Series[float]":
    """Positions that are visible from the end: all of them if the window is 0."""
    return length.where(window <= 0, np.minimum(length, window)).astype(float)

"""Measured kernels as tidy frames: one row a measurement, with its speed-of-light times.

The input is a folder of CSV files as NVIDIA AIConfigurator publishes them (``kernels/aic_*.csv``,
times of one call on one chip in microseconds) beside ``comms.csv`` (collectives). Every reader
returns a frame with `KEYS`, the shape of the operation, ``time_s``, and the speed-of-light
columns that the matching law of `sim.efficiency` takes.

What counts as work is decided here, once. The cost model of the simulator must count it the same
way, or the fitted efficiencies mean something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from sim.efficiency import GemmFormat
from sim.errors import InputError
from sim.units import DTYPE_BYTES, MICROSECOND_S, Dtype

KEYS = ("chip", "engine", "version", "origin")
"""Columns that every frame of kernels carries: who measured what, and what a row is cited as."""

MLA_LATENT = 512
MLA_ROPE = 64
MLA_QK = 192
MLA_V = 128
"""Head sizes of DeepSeek-V2/V3 multi-head latent attention (arXiv:2405.04434, section 2.1)."""


@dataclass(frozen=True)
class Peaks:
    """The datasheet figures that speed-of-light times are counted from."""

    flop_per_s: Mapping[Dtype, float]
    bandwidth_bytes_per_s: float
    tdp_w: float


class FormatDtypes(NamedTuple):
    """What a GEMM format computes in, stores weights in, and turns activations to."""

    compute: Dtype
    weight: Dtype
    activation: Dtype


FORMATS: Mapping[GemmFormat, FormatDtypes] = MappingProxyType(
    {
        "bf16": FormatDtypes("bf16", "bf16", "bf16"),
        "fp8": FormatDtypes("fp8", "fp8", "fp8"),
        "fp8_block": FormatDtypes("fp8", "fp8", "fp8"),
        "nvfp4": FormatDtypes("nvfp4", "nvfp4", "nvfp4"),
        "mxfp4_bf16": FormatDtypes("bf16", "mxfp4", "bf16"),
        "mxfp4_fp8": FormatDtypes("fp8", "mxfp4", "fp8"),
        "int4_bf16": FormatDtypes("bf16", "int4", "bf16"),
    }
)

_FORMAT_NAMES: Mapping[str, GemmFormat] = MappingProxyType(
    {
        "bfloat16": "bf16",
        "fp8": "fp8",
        "fp8_block": "fp8_block",
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
    weight_bytes, activation_bytes = _format_bytes(frame["format"])
    moved = n * k * weight_bytes + m * k * activation_bytes + m * n * DTYPE_BYTES["bf16"]
    frame["weight_bytes"] = n * k * weight_bytes
    frame["compute_s"] = 2.0 * m * n * k / _format_peak(frame["format"], peaks)
    frame["memory_s"] = moved / peaks.bandwidth_bytes_per_s
    frame["depth"] = k
    frame["conversion_s"] = m * k * _conversion_bytes(frame["format"]) / peaks.bandwidth_bytes_per_s
    return frame


def grouped_gemm(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Routed expert layers on one rank; rows of all router distributions.

    A ``balanced`` router in this data deals tokens out like cards: ``min(experts, picks)``
    experts are touched (seen in the times: 16 tokens with top-8 of 128 experts cost as much as
    64 tokens), and a rank that gets any gets at least one pick. Counted: ``6 * picks * hidden *
    inter`` flop (gate, up and down), the weights of touched experts, and for each pick the hidden
    vector in and out and the two sides of the activation.
    """
    frame = _read(data_dir, "moe", chip)
    frame["format"] = frame["moe_dtype"].map(_FORMAT_NAMES)
    weight_bytes, activation_bytes = _format_bytes(frame["format"])
    hidden = frame["hidden_size"].astype(float)
    inter = frame["inter_size"] / frame["moe_tp_size"]
    picks = np.maximum(frame["num_tokens"] * frame["topk"] / frame["moe_ep_size"], 1.0)
    touched = np.minimum(frame["num_experts"] / frame["moe_ep_size"], np.ceil(picks))
    bf16 = DTYPE_BYTES["bf16"]
    per_pick = hidden * (activation_bytes + bf16) + inter * (2.0 * bf16 + activation_bytes)
    moved = touched * 3.0 * hidden * inter * weight_bytes + picks * per_pick
    vector_s = hidden * (bf16 + activation_bytes) / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = 6.0 * picks * hidden * inter / _format_peak(frame["format"], peaks)
    frame["memory_s"] = moved / peaks.bandwidth_bytes_per_s
    frame["pick_s"] = picks * vector_s
    frame["token_s"] = frame["num_tokens"] * vector_s
    return frame


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
    frame["memory_s"] = cached / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = work / frame["kv_dtype"].map(peaks.flop_per_s)
    return frame


def prefill_attention(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Causal attention over whole prompts without a cached prefix.

    Counted: ``4 * pairs * heads * head_dim`` flop, a pair being a query and a key it may see;
    queries and outputs in bf16, keys and values in bf16 and again in the cache's dtype.
    """
    frame = _attention(_read(data_dir, "attention_prefill", chip))
    length = frame["isl"].astype(float)
    seen = _windowed(length, frame["window_size"])
    pairs = frame["batch_size"] * (seen * (seen + 1.0) / 2.0 + (length - seen) * seen)
    bf16 = DTYPE_BYTES["bf16"]
    element_bytes = frame["kv_dtype"].map(DTYPE_BYTES)
    per_token = 2.0 * bf16 * frame["num_heads"] + 2.0 * frame["kv_heads"] * (bf16 + element_bytes)
    moved = frame["batch_size"] * length * per_token * frame["head_dim"]
    frame["attention_dtype"] = frame["attn_dtype"].map(_DTYPE_NAMES)
    frame["flop"] = 4.0 * pairs * frame["num_heads"] * frame["head_dim"]
    frame["token_s"] = moved / peaks.bandwidth_bytes_per_s
    return frame


def mla_decode(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Decode of multi-head latent attention with absorbed projections.

    Counted per cached position: 576 elements once for all heads, and ``2 * heads * (576 + 512)``
    flop at the peak of the cache's dtype.
    """
    frame = _read(data_dir, "mla_decode", chip)
    frame["kv_dtype"] = frame["kv_cache_dtype"].map(_DTYPE_NAMES)
    positions = (frame["batch_size"] * frame["kv_len"]).astype(float)
    cached = positions * (MLA_LATENT + MLA_ROPE) * frame["kv_dtype"].map(DTYPE_BYTES)
    work = 2.0 * positions * frame["num_heads"] * (2 * MLA_LATENT + MLA_ROPE)
    frame["rows"] = frame["batch_size"].astype(float)
    frame["memory_s"] = cached / peaks.bandwidth_bytes_per_s
    frame["compute_s"] = work / frame["kv_dtype"].map(peaks.flop_per_s)
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


def collectives(data_dir: Path, chip: str) -> pd.DataFrame:
    """Read collectives and expert exchanges of one chip: ``op, library, chips, bytes, time_s``."""
    path = data_dir / "comms.csv"
    frame = _csv(path)
    frame = frame[(frame["hardware"] == chip) & (frame["time_us"] > 0.0)].copy()
    tokens = frame["notes"].astype(str).str.extract(r"tokens/rank=(\d+)")[0]
    return pd.DataFrame(
        {
            "op": frame["op"],
            "library": frame["implementation"],
            "chips": frame["n_chips"].astype(int),
            "dtype": frame["dtype"],
            "tokens": tokens.astype(float),
            "bytes": frame["bytes"],
            "time_s": frame["time_us"] * MICROSECOND_S,
            "source": path.name,
        }
    )


def power(data_dir: Path, chip: str, peaks: Peaks) -> pd.DataFrame:
    """Board power while one dense product loops, with how busy arithmetic and memory were.

    Only dense products: their flop and bytes are known without a guess about caches. Columns:
    ``load_fraction`` (power over the board limit), ``compute_utilization``,
    ``memory_utilization``.
    """
    path = data_dir / "kernels" / "aic_power.csv"
    frame = _csv(path)
    frame = frame[(frame["hardware"] == chip) & (frame["op"] == "gemm")].copy()
    shape = frame["shape"].str.extract(r"m=(?P<m>\d+) n=(?P<n>\d+) k=(?P<k>\d+)").astype(float)
    frame["format"] = frame["dtype"].map(_FORMAT_NAMES)
    weight_bytes, activation_bytes = _format_bytes(frame["format"])
    m, n, k = shape["m"], shape["n"], shape["k"]
    moved = n * k * weight_bytes + m * k * activation_bytes + m * n * DTYPE_BYTES["bf16"]
    time_s = frame["latency_us"] * MICROSECOND_S
    work_s = 2.0 * m * n * k / _format_peak(frame["format"], peaks)
    frame["load_fraction"] = frame["power_w"] / frame["power_limit_w"]
    frame["compute_utilization"] = work_s / time_s
    frame["memory_utilization"] = moved / peaks.bandwidth_bytes_per_s / time_s
    frame["weight_bytes"] = n * k * weight_bytes
    return _signed(frame, path)


def _read(data_dir: Path, operation: str, chip: str) -> pd.DataFrame:
    """All rows of one operation on one chip, from whichever file holds them."""
    for path in sorted((data_dir / "kernels").glob(f"aic_{operation}_*.csv")):
        frame = _csv(path)
        mine = frame[frame["hardware"] == chip].copy()
        if not mine.empty:
            mine["time_s"] = mine["latency_us"] * MICROSECOND_S
            return _signed(mine, path)
    raise InputError(f"no rows of {operation} on {chip} under {data_dir / 'kernels'}")


def _signed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the `KEYS` that the file calls something else."""
    frame["chip"] = frame["hardware"]
    frame["engine"] = frame["framework"]
    frame["origin"] = path.name + ", " + frame["framework"] + " " + frame["version"]
    return frame


def _csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file; it holds measurements that the fit needs")
    return pd.read_csv(path, dtype={"version": str})  # Version 1.0 is no number.


def _format_bytes(formats: "pd.Series[str]") -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Bytes per weight and per activation of each row's format."""
    weight = {name: DTYPE_BYTES[dtypes.weight] for name, dtypes in FORMATS.items()}
    activation = {name: DTYPE_BYTES[dtypes.activation] for name, dtypes in FORMATS.items()}
    return formats.map(weight), formats.map(activation)


def _format_peak(formats: "pd.Series[str]", peaks: Peaks) -> "pd.Series[float]":
    """Peak flop/s of each row's format; missing where the chip has none."""
    known = {
        name: peaks.flop_per_s[dtypes.compute]
        for name, dtypes in FORMATS.items()
        if dtypes.compute in peaks.flop_per_s
    }
    return formats.map(known)


def _conversion_bytes(formats: "pd.Series[str]") -> "pd.Series[float]":
    """Bytes read and written per activation that is converted; 0 for formats that keep bf16."""
    bf16 = DTYPE_BYTES["bf16"]
    moved = {
        name: 0.0 if dtypes.activation == "bf16" else bf16 + DTYPE_BYTES[dtypes.activation]
        for name, dtypes in FORMATS.items()
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

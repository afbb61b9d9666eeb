"""The files of measured kernels, each in its own columns, brought to one set of columns.

The common columns are those of NVIDIA AIConfigurator (``aic_*.csv``): ``hardware``, ``framework``,
``version``, ``kernel_source``, ``latency_us`` and the shape of the operation. ``rackcast measure``
writes the same (``measured_*.csv``). Rows of other sources are renamed to them; a framework is the
engine whose kernels were timed.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pandas as pd

from sim.errors import InputError

Operation = Literal[
    "gemm", "moe", "attention_decode", "attention_prefill", "mla_decode", "mla_prefill"
]

INFERSIM = {"framework": "sglang", "version": "as timed by InferSim f2293da"}
"""InferSim times the kernels that SGLang calls: DeepGEMM, FlashAttention-3, FlashInfer."""
DEEPGEMM = {"framework": "sglang", "version": "DeepGEMM 327ec92"}
LLMSERVINGSIM = {"framework": "vllm", "version": "0.19.0"}

_NAMES = {"bf16": "bfloat16", "fp8": "fp8"}


def read(folder: Path, operation: Operation, chip: str) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Give the rows of one operation on one chip, file by file.

    Parameters
    ----------
    folder
        Where the CSV files are.
    operation
    chip
        What the chip is called in the files.

    Yields
    ------
    path, frame
        Only files that have such rows.
    """
    own = folder / f"measured_{operation}.csv"
    for path in (*sorted(folder.glob(f"aic_{operation}_*.csv")), *([own] if own.is_file() else [])):
        yield from _present(path, _of_chip(path, chip))
    for name, reader in _OTHERS.get(operation, {}).items():
        path = folder / name
        if path.is_file():
            yield from _present(path, reader(_of_chip(path, chip)))


def power_file(folder: Path) -> Path:
    """Name the file of measured power: one's own where there is one."""
    own = folder / "measured_power.csv"
    return own if own.is_file() else folder / "aic_power.csv"


def read_csv(path: Path) -> pd.DataFrame:
    """Read a file of measurements; a version such as 1.0 stays text."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; it holds measurements that the fit needs")
    return pd.read_csv(path, dtype={"version": str})


def _of_chip(path: Path, chip: str) -> pd.DataFrame:
    frame = read_csv(path)
    return frame[frame["hardware"] == chip].copy()


def _present(path: Path, frame: pd.DataFrame) -> Iterator[tuple[Path, pd.DataFrame]]:
    if not frame.empty:
        yield path, frame


def _infersim_gemm(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[frame["kind"] == "deepgemm_fp8_gemm"]
    return rows.assign(gemm_dtype="fp8_block", kernel_source=rows["kind"], **INFERSIM)


def _infersim_moe(frame: pd.DataFrame) -> pd.DataFrame:
    """Both products of the experts of a rank, without the activation and the gather around them."""
    rows = frame[frame["kind"].str.startswith("deepgemm_grouped")]
    return rows.assign(
        moe_dtype="fp8_block",
        kernel_source=rows["kind"],
        num_tokens=rows["tokens_per_expert"] * rows["num_experts"] / rows["topk"],
        inter_size=rows["intermediate_size"],
        moe_tp_size=1,
        moe_ep_size=rows["num_experts"] / rows["num_local_experts"],
        distribution="balanced",
        latency_us=rows["latency_us"] + rows["down_proj_us"],
        **INFERSIM,
    )


def _infersim_attention(kind: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def reader(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame[frame["op"] == kind]
        shape = rows["shape"].str.split("-", expand=True).reindex(columns=range(3)).astype(float)
        length = {"kv_len" if kind.endswith("decode") else "isl": rows["seq_len_or_kv_len"]}
        return rows.assign(
            kernel_source=rows["op"],
            attn_dtype="bfloat16",
            kv_cache_dtype=rows["kv_dtype"].fillna("bf16").map(_NAMES),
            num_heads=shape[0],
            num_key_value_heads=shape[1],
            head_dim=shape[2].fillna(0).astype(int),
            window_size=0,
            **length,
            **INFERSIM,
        )

    return reader


def _deepgemm(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[frame["kind"].str.startswith("Normal")]
    return rows.assign(
        gemm_dtype="fp8_block",
        kernel_source="deepgemm",
        m=rows["m_per_group"],
        latency_us=rows["time_us_derived"],
        **DEEPGEMM,
    )


_LLAMA_8B = MappingProxyType(
    {
        "qkv_proj": (6144, 4096),
        "o_proj": (4096, 4096),
        "gate_up_proj": (28672, 4096),
        "down_proj": (4096, 14336),
        "lm_head": (128256, 4096),
    }
)
"""Columns and rows of the dense layers of Llama 3.1 8B (its config.json on Hugging Face)."""


def _llmservingsim_gemm(frame: pd.DataFrame) -> pd.DataFrame:
    rows = _llama_8b(frame[frame["layer"].isin(_LLAMA_8B)])
    return rows.assign(
        gemm_dtype="bfloat16",
        kernel_source=rows["layer"],
        m=rows["tokens"],
        n=rows["layer"].map({name: shape[0] for name, shape in _LLAMA_8B.items()}),
        k=rows["layer"].map({name: shape[1] for name, shape in _LLAMA_8B.items()}),
        latency_us=rows["time_us"],
        **LLMSERVINGSIM,
    )


def _llmservingsim_decode(frame: pd.DataFrame) -> pd.DataFrame:
    rows = _llama_8b(frame[(frame["prefill_chunk"] == 0) & (frame["n_decode"] > 0)])
    return _llmservingsim_attention(rows).assign(
        batch_size=rows["n_decode"], kv_len=rows["kv_decode"]
    )


def _llmservingsim_prefill(frame: pd.DataFrame) -> pd.DataFrame:
    rows = _llama_8b(frame[(frame["prefill_chunk"] > 0) & (frame["n_decode"] == 0)])
    return _llmservingsim_attention(rows).assign(
        batch_size=1, isl=rows["prefill_chunk"], prefix=rows["kv_prefill"]
    )


def _llmservingsim_attention(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(
        kernel_source="attention",
        attn_dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        num_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        window_size=0,
        latency_us=rows["time_us"],
        **LLMSERVINGSIM,
    )


def _llama_8b(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["model"] == "meta-llama/Llama-3.1-8B") & (frame["tp"] == 1)]


_OTHERS: Mapping[Operation, Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]]] = (
    MappingProxyType(
        {
            "gemm": {
                "infersim_gemm.csv": _infersim_gemm,
                "deepgemm_h800.csv": _deepgemm,
                "llmservingsim_v1_layers.csv": _llmservingsim_gemm,
            },
            "moe": {"infersim_gemm.csv": _infersim_moe},
            "attention_decode": {
                "infersim_attention.csv": _infersim_attention("mha_decode"),
                "llmservingsim_v1_attention.csv": _llmservingsim_decode,
            },
            "attention_prefill": {
                "infersim_attention.csv": _infersim_attention("mha_prefill"),
                "llmservingsim_v1_attention.csv": _llmservingsim_prefill,
            },
            "mla_decode": {"infersim_attention.csv": _infersim_attention("mla_decode")},
            "mla_prefill": {"infersim_attention.csv": _infersim_attention("mla_prefill")},
        }
    )
)

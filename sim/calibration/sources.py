"""The files of measured kernels, each in its own columns, brought to one set of columns.

The common columns are those of NVIDIA AIConfigurator (``aic_*.csv``): ``hardware``, ``framework``,
``version``, ``kernel_source``, ``latency_us`` and the shape of the operation. ``rackcast measure``
writes the same (``measured_*.csv``). Rows of other sources are renamed to them; a framework is the
engine whose kernels were timed.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import pandas as pd

from sim.calibration.measured_tables import Table, read_table
from sim.efficiency import Engine
from sim.errors import InputError

Operation = Literal[
    "gemm", "moe", "attention_decode", "attention_prefill", "mla_decode", "mla_prefill"
]

INFERSIM = {"framework": "sglang", "version": "as timed by InferSim f2293da"}
"""InferSim times the kernels that SGLang calls: DeepGEMM, FlashAttention-3, FlashInfer."""
DEEPGEMM = {"framework": "sglang", "version": "DeepGEMM 327ec92"}
LLMSERVINGSIM = {"framework": "vllm", "version": "0.19.0"}

SKEWED = r"power_law_(\d+(?:\.\d+)?)"
"""Name of a router whose expert of rank i gets tokens in proportion to i to the power of minus
this number."""

_Reader = Callable[[Table], pd.DataFrame]
"""Brings the rows of a file to the common columns."""
_NAMES = {"bf16": "bfloat16", "fp8": "fp8"}


class _Columns(NamedTuple):
    """What a fit reads of an operation, beside who measured it."""

    texts: tuple[str, ...]
    amounts: tuple[str, ...]
    counts: tuple[str, ...] = ()
    """Where 0 says something: no window, as many KV heads as query heads."""


_HEADS = ("num_heads", "head_dim")
_GROUPS = ("num_key_value_heads", "window_size")
_COLUMNS: Mapping[Operation, _Columns] = MappingProxyType(
    {
        "gemm": _Columns(("gemm_dtype",), ("m", "n", "k")),
        "moe": _Columns(
            ("moe_dtype", "distribution"),
            (
                *("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"),
                *("moe_tp_size", "moe_ep_size"),
            ),
        ),
        "attention_decode": _Columns(
            ("kv_cache_dtype",), ("batch_size", "kv_len", *_HEADS), _GROUPS
        ),
        "attention_prefill": _Columns(
            ("attn_dtype", "kv_cache_dtype"), ("batch_size", "isl", *_HEADS), _GROUPS
        ),
        "mla_decode": _Columns(("kv_cache_dtype",), ("batch_size", "kv_len", "num_heads")),
        "mla_prefill": _Columns(("kv_cache_dtype",), ("batch_size", "isl", "num_heads")),
    }
)


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

    Raises
    ------
    InputError
        A column is missing or a cell is wrong, be it of another chip.
    """
    for path in _common(folder, operation):
        yield from _present(path, _common_rows(path, operation), chip)
    for name, reader in _OTHERS.get(operation, {}).items():
        path = folder / name
        if path.is_file():
            table = read_table(path, f"rows of {operation}").checked(texts=("hardware",))
            yield from _present(path, reader(table), chip)


def power_file(folder: Path) -> Path:
    """Name the file of measured power: one's own where there is one."""
    own = folder / "measured_power.csv"
    return own if own.is_file() else folder / "aic_power.csv"


def chips_seen(folder: Path) -> tuple[str, ...]:
    """List the chips that the files of kernels have rows of."""
    paths = {path for operation in _COLUMNS for path in _common(folder, operation)}
    others = {folder / name for readers in _OTHERS.values() for name in readers}
    paths |= {path for path in others if path.is_file()}
    found = (chips_in(read_table(path, "rows of kernels")) for path in paths)
    return tuple(sorted({chip for chips in found for chip in chips}))


def chips_in(table: Table) -> tuple[str, ...]:
    """List the chips that a file has rows of."""
    return tuple(sorted(table.checked(texts=("hardware",)).frame["hardware"].unique()))


def _common(folder: Path, operation: Operation) -> list[Path]:
    """List the files of an operation that have the common columns."""
    own = folder / f"measured_{operation}.csv"
    return [*sorted(folder.glob(f"aic_{operation}_*.csv")), *([own] if own.is_file() else [])]


def _common_rows(path: Path, operation: Operation) -> pd.DataFrame:
    asked = _COLUMNS[operation]
    table = read_table(path, f"rows of {operation}")
    # rackcast measure begins all of its files, also those of what it is not asked for.
    if table.frame.empty and not path.name.startswith("measured_"):
        raise InputError(f"{path}:1: has a header and no rows; add what was measured or delete it")
    prefix = ("prefix",) if "prefix" in table.frame else ()
    table = table.checked(
        texts=("hardware", "framework", "version", "kernel_source", *asked.texts),
        amounts=("latency_us", *asked.amounts),
        counts=(*asked.counts, *prefix),
    )
    engines = get_args(Engine)
    unknown = ~table.frame["framework"].isin(engines)
    table.refuse("framework", unknown, f"is no engine that is known ({', '.join(engines)})")
    if "distribution" in asked.texts:
        dealt = table.frame["distribution"]
        odd = (dealt != "balanced") & ~dealt.str.fullmatch(SKEWED)
        table.refuse("distribution", odd, "is neither balanced nor a skew such as power_law_1.2")
    return table.frame


def _present(path: Path, frame: pd.DataFrame, chip: str) -> Iterator[tuple[Path, pd.DataFrame]]:
    own = frame[frame["hardware"] == chip].copy()
    if not own.empty:
        yield path, own


def _infersim_gemm(table: Table) -> pd.DataFrame:
    kind = table.checked(texts=("kind",)).frame["kind"]
    dense = table.where(kind == "deepgemm_fp8_gemm")
    rows = dense.checked(amounts=("m", "n", "k", "latency_us")).frame
    return rows.assign(gemm_dtype="fp8_block", kernel_source=rows["kind"], **INFERSIM)


def _infersim_moe(table: Table) -> pd.DataFrame:
    """Both products of the experts of a rank, without the activation and the gather around them."""
    kind = table.checked(texts=("kind",)).frame["kind"]
    experts = ("num_experts", "num_local_experts", "topk", "tokens_per_expert")
    shape = ("hidden_size", "intermediate_size")
    grouped = table.where(kind.str.startswith("deepgemm_grouped"))
    rows = grouped.checked(amounts=(*experts, *shape, "latency_us", "down_proj_us")).frame
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


def _infersim_attention(kind: str) -> _Reader:
    def reader(table: Table) -> pd.DataFrame:
        known = table.checked(texts=("op", "shape"))
        asked = known.where(known.frame["op"] == kind)
        shapeless = ~asked.frame["shape"].str.fullmatch(r"\d+-\d+(-\d+)?")
        asked.refuse("shape", shapeless, "is no list of sizes such as 32-8-128")
        asked.need("kv_dtype")
        rows = asked.checked(amounts=("batch_size", "seq_len_or_kv_len", "latency_us")).frame
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


def _deepgemm(table: Table) -> pd.DataFrame:
    kind = table.checked(texts=("kind",)).frame["kind"]
    normal = table.where(kind.str.startswith("Normal"))
    rows = normal.checked(amounts=("m_per_group", "n", "k", "time_us_derived")).frame
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


def _llmservingsim_gemm(table: Table) -> pd.DataFrame:
    known = _llama_8b(table.checked(texts=("layer",)))
    dense = known.where(known.frame["layer"].isin(_LLAMA_8B))
    rows = dense.checked(amounts=("tokens", "time_us")).frame
    return rows.assign(
        gemm_dtype="bfloat16",
        kernel_source=rows["layer"],
        m=rows["tokens"],
        n=rows["layer"].map({name: shape[0] for name, shape in _LLAMA_8B.items()}),
        k=rows["layer"].map({name: shape[1] for name, shape in _LLAMA_8B.items()}),
        latency_us=rows["time_us"],
        **LLMSERVINGSIM,
    )


def _llmservingsim_decode(table: Table) -> pd.DataFrame:
    mixed = _llmservingsim_batches(table)
    rows = mixed[(mixed["prefill_chunk"] == 0) & (mixed["n_decode"] > 0)]
    return _llmservingsim_attention(rows).assign(
        batch_size=rows["n_decode"], kv_len=rows["kv_decode"]
    )


def _llmservingsim_prefill(table: Table) -> pd.DataFrame:
    mixed = _llmservingsim_batches(table)
    rows = mixed[(mixed["prefill_chunk"] > 0) & (mixed["n_decode"] == 0)]
    return _llmservingsim_attention(rows).assign(
        batch_size=1, isl=rows["prefill_chunk"], prefix=rows["kv_prefill"]
    )


def _llmservingsim_batches(table: Table) -> pd.DataFrame:
    batch = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    return _llama_8b(table).checked(amounts=("time_us",), counts=batch).frame


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


def _llama_8b(table: Table) -> Table:
    whole = table.checked(texts=("model",), amounts=("tp",))
    model = whole.frame["model"] == "meta-llama/Llama-3.1-8B"
    return whole.where(model & (whole.frame["tp"] == 1))


_OTHERS: Mapping[Operation, Mapping[str, _Reader]] = MappingProxyType(
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

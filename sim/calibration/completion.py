"""What stands for the cells that a measured run leaves empty, and how a run tells of it.

A run is forecast with what its file tells. Where that is not enough for a forecast and something
is known of what was usual, the rule is here, and the run names what was assumed: a validation can
then tell runs that were described in full from those that were completed.
"""

from collections.abc import Mapping
from typing import NamedTuple

from sim.calibration.benchmarks.plain import Benchmark
from sim.calibration.machines import DTYPES, LIKE_VLLM, SYSTEMS
from sim.calibration.rows import Row, count
from sim.catalog import Catalog
from sim.model import Model
from sim.schema import did_you_mean
from sim.units import DTYPE_BYTES, Dtype

UNSTATED_FORM: Mapping[str, str] = {"H100-80GB (form factor not stated)": "H100-SXM-80GB"}
"""Boards that come in two forms: the one that eight of are sold in a server."""
UNSTATED_MEMORY: Mapping[str, tuple[str, ...]] = {
    "A100 (memory size not stated)": ("A100-SXM-40GB", "A100-SXM-80GB"),
}
"""Chips that come with more or less memory, the least first: the first that holds the weights.

LLM-Inference-Bench ran Llama-2-7B, with half a MiB of keys and values per token, on one A100 hardly
faster with 64 sequences of 1,024 tokens than with 32: beside the weights, 40 GB hold 16 GiB of them
and no more, 80 GB would hold all 32 GiB."""
NATIVE_DTYPES: Mapping[str, Dtype] = {
    "deepseek_r1": "fp8",
    "deepseek_v3_2": "fp8",
    "gpt_oss_120b": "mxfp4",
    "gpt_oss_20b": "mxfp4",
    "kimi_k2": "fp8",
    "kimi_k2_5": "int4",
    "minimax_m2_5": "fp8",
}
"""Formats in which models are published (``quantization_config`` of their config.json); all others
in 16 bits."""
_MXFP4 = "MXFP4 checkpoint"
"""How notes tell the format of the weights where the column has that of the arithmetic."""
_TOLD_IN_NAME: Mapping[str, Dtype] = {
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "fp8": "fp8",
    "int8": "int8",
    "int4": "int4",
}
WEIGHTS_FRACTION = 0.6
"""Share of the memory that weights take at most where tp is chosen: the rest is for sequences."""


LENGTHS = "lengths"
"""What is assumed of a run that does not tell how long its prompts and answers were."""


class Completed(NamedTuple):
    """A row without the gaps that a rule fills, and what was filled."""

    row: Row
    assumed: tuple[str, ...]
    """Such as ``tp`` or ``weights``; empty: the run was described in full."""


def completed(row: Row, model_id: str, benchmark: Benchmark, catalog: Catalog) -> Completed:
    """Fill the gaps of a row, each by its rule; gaps without a rule stay.

    Parameters
    ----------
    row : mapping
    model_id : str
        Its model in the catalogue.
    benchmark : Benchmark
        Knows which split is usual where none is given.
    catalog : Catalog
    """
    cells = dict(row)
    assumed: list[str] = []
    model = catalog.model(model_id)
    if row["hardware"] in UNSTATED_FORM:
        cells["hardware"] = UNSTATED_FORM[row["hardware"]]
        assumed.append("form factor")
    if _MXFP4 in row.get("notes", ""):
        cells["weight_dtype"] = "mxfp4"
    elif not row.get("weight_dtype"):
        cells["weight_dtype"] = _weights(row["model"], model_id)
        assumed.append("weights")
    if row["hardware"] in UNSTATED_MEMORY:
        cells["hardware"] = _machine(cells, model, catalog)
        assumed.append("memory")
    if not row["tp"]:
        cells["tp"] = _tp(cells, model, benchmark, catalog)
        assumed += ["tp"] if cells["tp"] else []
    if benchmark.own_lengths:
        assumed.append(LENGTHS)
    if any(engine in row["engine"].lower() for engine in LIKE_VLLM):
        assumed.append("engine")
    return Completed(cells, tuple(assumed))


def system_of(hardware: str, chips: int, catalog: Catalog) -> str | None:
    """Name the system that stands for a machine; none: there is none.

    Parameters
    ----------
    hardware : str
        As benchmarks call it, or an id of the catalogue: of a system, or of an accelerator, for
        which the smallest of its systems with enough chips stands, or the largest.
    chips : int
    catalog : Catalog

    Examples
    --------
    >>> from sim.catalog import open_catalog
    >>> system_of("h200_sxm", 4, open_catalog()), system_of("GB200", 4, open_catalog())
    ('h200_sxm_x8', 'gb200_nvl72')
    """
    if hardware in SYSTEMS:
        return SYSTEMS[hardware]
    systems = catalog.names("systems")
    if hardware in systems:
        return hardware
    sizes = {
        name: catalog.system(name).chips
        for name in systems
        if catalog.system(name).accelerator == hardware
    }
    enough = [name for name in sizes if sizes[name] >= chips]
    if enough:
        return min(enough, key=lambda name: sizes[name])
    return max(sizes, key=lambda name: sizes[name], default=None)


def why_no_system(hardware: str, catalog: Catalog) -> str:
    """Say that no system stands for a machine, and which names are near."""
    if not hardware:
        return "hardware is not given"
    stated = (*SYSTEMS, *UNSTATED_FORM, *UNSTATED_MEMORY)
    known = (*stated, *catalog.names("accelerators"), *catalog.names("systems"))
    return f"no system for {hardware}{did_you_mean(hardware, known, most=3)}"


def _weights(name: str, model_id: str) -> Dtype:
    """Read the format off the model's name, or take the one that it is published in."""
    told = next((dtype for word, dtype in _TOLD_IN_NAME.items() if word in name.lower()), None)
    return told or NATIVE_DTYPES.get(model_id, "bf16")


def _machine(row: Row, model: Model, catalog: Catalog) -> str:
    """Take the least memory that holds the weights."""
    choices = UNSTATED_MEMORY[row["hardware"]]
    chips = count(row, "num_chips")
    fits = (name for name in choices if _weights_fraction(row, name, model, chips, catalog) < 1)
    return next(fits, choices[-1])


def _tp(row: Row, model: Model, benchmark: Benchmark, catalog: Catalog) -> str:
    """Choose a tensor-parallel degree as the benchmark's people do; empty: they cannot be told."""
    chips = count(row, "num_chips")
    if benchmark.unstated_tp == "all_chips":
        return str(chips)
    if benchmark.unstated_tp is None or row.get("weight_dtype", "") not in DTYPES:
        return ""
    tp = 1
    while tp < chips and _weights_fraction(row, row["hardware"], model, tp, catalog) > (
        WEIGHTS_FRACTION
    ):
        tp = min(2 * tp, chips)
    return str(tp)


def _weights_fraction(row: Row, hardware: str, model: Model, chips: int, catalog: Catalog) -> float:
    """Share of the memory of so many chips that the weights take; 0 of chips that are unknown."""
    system = system_of(hardware, chips, catalog)
    if system is None or row["weight_dtype"] not in DTYPES:
        return 0.0
    chip = catalog.accelerator(catalog.system(system).accelerator)
    weight_bytes = model.total_parameters * DTYPE_BYTES[DTYPES[row["weight_dtype"]]]
    return weight_bytes / (chip.local_memory.capacity_bytes.value * chips)

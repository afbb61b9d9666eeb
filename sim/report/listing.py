"""The entries of the catalogue with the figures that a planner looks for first.

Rows hold SI numbers under names with their unit, as ``rackcast list --json`` prints them; columns
say how a terminal shows them. A figure that nobody published is None.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from sim.catalog import KINDS, Catalog, Kind
from sim.economics import PriceBook
from sim.efficiency import Engine
from sim.hardware import Accelerator, FullMesh, MemoryTier, System, Torus, Wafer
from sim.model import (
    Attention,
    CompressedAttention,
    GroupedQueryAttention,
    LinearAttention,
    Model,
)
from sim.report.formats import figure
from sim.report.listing_columns import Column, Listing, Row, count, number, text
from sim.report.listing_strategies import benchmarks, strategies
from sim.units import DTYPE_BYTES, GIGA, KILO, TERA, Dtype

SPECULATIVE = "speculative"
"""Said of a chip whose vendor has not published its figures."""
ESTIMATE = "estimate"
"""Said of a model whose vendor has not published its shape."""
USUAL_RENT = "on_demand"
"""Kind of rent that is listed."""

ABOUT: Mapping[Kind, str] = {
    "accelerators": "chips, as their vendors sell them",
    "systems": "what is bought or rented: hosts, racks, slices of a pod",
    "calibrations": "how far measured kernels of a chip stay from its peaks",
    "priors": "what stands in for measurements on the chips of a family",
    "overheads": "what a serving engine adds to its kernels",
    "residuals": "how far measured runs lie from forecasts",
    "engines": "what a serving engine does unless it is told otherwise",
    "prices": "prices of one market at one date",
    "models": "shapes of transformers",
    "lengths": "lengths and arrivals fitted to a recorded trace",
    "sessions": "sessions of several turns, fitted to recorded ones",
    "speculation": "how many drafted tokens a model accepts",
    "strategies": "ways to spend compute on one question",
    "quality": "benchmarks: how hard their questions are, how good the answers",
    "reliability": "how often things fail, and how long they take to come back",
    "measured": "published results that no fit has seen",
    "scenarios": "questions ready to run",
}
"""What the entries of a kind are."""


def listing(catalog: Catalog, kind: Kind) -> Listing:
    """List the entries of a kind, those that belong together beside each other."""
    detailed: Mapping[Kind, Callable[[Catalog], Listing]] = {
        "accelerators": _accelerators,
        "systems": _systems,
        "models": _models,
        "calibrations": _calibrations,
        "priors": _priors,
        "overheads": _overheads,
        "engines": _engines,
        "prices": _prices,
        "strategies": strategies,
        "quality": benchmarks,
        "scenarios": _scenarios,
    }
    return detailed[kind](catalog) if kind in detailed else _ids(catalog, kind)


def kinds(catalog: Catalog) -> Listing:
    """List the kinds, how many entries each has and what they are."""
    rows = [
        {"kind": kind, "entries": len(catalog.names(kind)), "about": ABOUT[kind]} for kind in KINDS
    ]
    columns = (text("kind"), count("entries"), text("about", "what they are"))
    return Listing(columns, tuple(rows), caption="`rackcast list KIND` lists the entries of one.")


# --- Chips and systems.


def _peak(heading: str, usual: Dtype, other: Dtype) -> Column:
    """Show the peak of a format, or that of another one, which is then named."""

    def write(row: Row) -> str:
        peaks = row["peak_flop_per_s"]
        if usual in peaks:
            return figure(peaks[usual] / TERA)
        return f"{figure(peaks[other] / TERA)} {other}" if other in peaks else ""

    return Column(heading, write, right=True)


def _accelerators(catalog: Catalog) -> Listing:
    rows = [_accelerator(catalog, entry_id) for entry_id in catalog.names("accelerators")]
    columns = (
        text("id"),
        text("memory_kind", "memory", folds=True),
        number("memory_bytes", "GB", GIGA),
        number("bandwidth_bytes_per_s", "TB/s", TERA),
        _peak("bf16", "bf16", "fp16"),
        _peak("8 bits", "fp8", "int8"),
        _peak("4 bits", "nvfp4", "mxfp4"),
        number("tdp_w", "W"),
        Column("calibration", _basis, folds=True),
    )
    caption = (
        "Memory: all tiers; GB and TB/s of the fastest. Peaks in TFLOP/s, dense; 8 bits: fp8, or "
        "int8 where it says so; 4 bits: nvfp4, or mxfp4. Calibration: fitted to kernels measured "
        "on the chip, or the prior of its family. "
        f"{SPECULATIVE.capitalize()}: figures that no vendor has published."
    )
    return Listing(columns, _by_generation(rows), "vendor", caption)


def _accelerator(catalog: Catalog, entry_id: str) -> Row:
    chip = catalog.accelerator(entry_id)
    memory = chip.local_memory
    return {
        "id": entry_id,
        "name": chip.name,
        "vendor": chip.vendor,
        "family": chip.family,
        "memory_kind": " + ".join(_kind_of_memory(tier) for tier in chip.memory),
        "memory_bytes": memory.capacity_bytes.value,
        "bandwidth_bytes_per_s": memory.bandwidth_bytes_per_s.value,
        "peak_flop_per_s": {dtype: peak.value for dtype, peak in chip.peak_flop_per_s.items()},
        "tdp_w": chip.power.tdp_w.value,
        "calibration": _calibration(catalog, entry_id, chip),
        "speculative": chip.speculative,
    }


def _kind_of_memory(tier: MemoryTier) -> str:
    """Name a memory without what joins it to the chip.

    >>> from sim.catalog import open_catalog
    >>> [_kind_of_memory(tier) for tier in open_catalog().accelerator("h100_sxm").memory]
    ['HBM3']
    """
    return re.split(r" over | with ", tier.kind)[0]


def _calibration(catalog: Catalog, entry_id: str, chip: Accelerator) -> str:
    """Say what the times of a chip rest on."""
    if entry_id in catalog.names("calibrations"):
        return "fitted"
    return f"prior of {chip.family}" if chip.family in catalog.names("priors") else "none"


def _basis(row: Row) -> str:
    return f"{row['calibration']}, {SPECULATIVE}" if row["speculative"] else str(row["calibration"])


def _systems(catalog: Catalog) -> Listing:
    book = _latest_book(catalog)
    rows = [_system(catalog, entry_id, book) for entry_id in catalog.names("systems")]
    columns = (
        text("id"),
        text("accelerator"),
        count("chips"),
        text("scale_up", "scale-up"),
        count("domain_chips", "domain"),
        number("scale_up_bytes_per_s", "up GB/s", GIGA),
        number("scale_out_bytes_per_s", "out GB/s", GIGA),
        number("provisioned_power_w", "kW", KILO),
        number("purchase_usd", "kUSD", KILO),
        number("rent_usd_per_chip_hour", "USD/h"),
    )
    name = "none" if book is None else book.name
    caption = (
        "Scale-up: * where an axis wraps. GB/s: what one chip sends at most within its domain (up) "
        "and beyond (out), one direction. kW: reserved per system. Prices: "
        f"{name}; kUSD to own a system, USD/h to rent a chip on demand. Empty: not known."
    )
    return Listing(columns, _by_generation(rows), "vendor", caption)


def _system(catalog: Catalog, entry_id: str, book: PriceBook | None) -> Row:
    system = catalog.system(entry_id)
    chip = catalog.accelerator(system.accelerator)
    owned = book.purchase_usd_per_system.get(entry_id) if book else None
    rents = book.rent_usd_per_chip_hour.get(system.accelerator, {}) if book else {}
    out = system.scale_out
    return {
        "id": entry_id,
        "name": system.name,
        "accelerator": system.accelerator,
        "vendor": chip.vendor,
        "family": chip.family,
        "bandwidth_bytes_per_s": chip.local_memory.bandwidth_bytes_per_s.value,
        "chips": system.chips,
        "scale_up": _topology(system),
        "domain_chips": system.domain_chips,
        "scale_up_bytes_per_s": _injection_bytes_per_s(system),
        "scale_out": out.kind if out else None,
        "scale_out_bytes_per_s": out.bandwidth_bytes_per_s.value if out else None,
        "host_power_w": system.host_power_w.value,
        "provisioned_power_w": system.provisioned_power_w.value,
        "purchase_usd": owned.value if owned else None,
        "rent_usd_per_chip_hour": rents[USUAL_RENT].value if USUAL_RENT in rents else None,
        "rents": sorted(rents),
    }


def _topology(system: System) -> str:
    """Name the network of a domain; of a torus its axes, * after those that wrap."""
    network = system.scale_up
    if network is None:
        return "none"
    if isinstance(network, Torus):
        axes = "x".join(f"{axis.chips}{'*' if axis.wraps else ''}" for axis in network.axes)
        return f"torus {axes}"
    return network.topology


def _injection_bytes_per_s(system: System) -> float | None:
    """Give what one chip can send at the same time over all its links, one direction."""
    network = system.scale_up
    if network is None or isinstance(network, Wafer):
        return None
    if isinstance(network, FullMesh):
        return (network.domain_chips - 1) * network.link_bandwidth_bytes_per_s.value
    if isinstance(network, Torus):
        return sum(
            axis.link_bandwidth_bytes_per_s.value * (2 if axis.chips > 2 else axis.chips - 1)
            for axis in network.axes
        )
    return network.bandwidth_bytes_per_s.value


def _latest_book(catalog: Catalog) -> PriceBook | None:
    books = [catalog.prices(entry_id) for entry_id in catalog.names("prices")]
    return max(books, key=lambda book: book.as_of, default=None)


def _by_generation(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Sort by vendor, then families and their chips by bandwidth: the older ones mostly first."""
    rows = list(rows)
    fastest: dict[str, float] = {}
    for row in rows:
        family = row["family"]
        fastest[family] = max(fastest.get(family, 0.0), row["bandwidth_bytes_per_s"])

    def place(row: Row) -> tuple[object, ...]:
        family = row["family"]
        chips = row.get("chips", 0)
        bandwidth = row["bandwidth_bytes_per_s"]
        return row["vendor"].lower(), fastest[family], family, bandwidth, chips, row["id"]

    return tuple(sorted(rows, key=place))


# --- Models.


def _models(catalog: Catalog) -> Listing:
    rows = [_model(entry_id, catalog.model(entry_id)) for entry_id in catalog.names("models")]
    columns = (
        text("id"),
        number("parameters", "total (1e9)", GIGA),
        number("active_parameters", "active", GIGA),
        text("attention", folds=True),
        text("experts"),
        number("kv_bytes_per_token", "KV kB/token", KILO),
        count("max_positions", "context"),
        Column("", lambda row: ESTIMATE if row["estimate"] else ""),
    )
    caption = (
        "Parameters: total, and active, those that one token meets. KV: in 16 bits, "
        f"of the layers whose cache grows with the context. "
        f"{ESTIMATE.capitalize()}: the vendor has not published the shape."
    )
    order = sorted(rows, key=lambda row: (row["family"].lower(), row["parameters"], row["id"]))
    return Listing(columns, tuple(order), caption=caption)


def _model(entry_id: str, model: Model) -> Row:
    moe = model.moe
    return {
        "id": entry_id,
        "name": model.name,
        "family": model.family,
        "layers": model.layers,
        "parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "attention": attention_in_words(model),
        "experts": "" if moe is None else f"{moe.experts_per_token} of {moe.experts}",
        "kv_bytes_per_token": model.growing_kv_elements_per_token * DTYPE_BYTES["bf16"],
        "max_positions": model.max_positions,
        "estimate": model.estimate,
    }


def attention_in_words(model: Model) -> str:
    """Name the kinds of attention of a model, those of most layers first, and sliding windows.

    >>> from sim.catalog import open_catalog
    >>> catalog = open_catalog()
    >>> attention_in_words(catalog.model("llama_3_1_70b"))
    'GQA'
    >>> attention_in_words(catalog.model("gpt_oss_120b"))  # every second layer slides
    'GQA + window'
    """
    layers: dict[str, int] = {}
    for group in model.attention:
        kind = _attention_kind(group)
        layers[kind] = layers.get(kind, 0) + group.layers
    words = sorted(layers, key=lambda kind: -layers[kind])
    sliding = [
        isinstance(group, GroupedQueryAttention) and group.window_tokens is not None
        for group in model.attention
    ]
    if all(sliding):
        return f"{' + '.join(words)} in a window"
    return " + ".join([*words, "window"] if any(sliding) else words)


def _attention_kind(group: Attention) -> str:
    if isinstance(group, LinearAttention):
        return "linear"
    if isinstance(group, CompressedAttention):
        return "compressed"
    sparse = "sparse " if group.indexer is not None else ""
    if not isinstance(group, GroupedQueryAttention):
        return f"{sparse}MLA"
    return sparse + {group.heads: "MHA", 1: "MQA"}.get(group.kv_heads, "GQA")


# --- What was fitted, and what is paid.


def _calibrations(catalog: Catalog) -> Listing:
    rows = []
    for entry_id in catalog.names("calibrations"):
        found = catalog.calibration(entry_id)
        if found is not None:
            rows.append({"id": entry_id, "date": found.date, "engines": ", ".join(found.kernels)})
    return Listing((text("id"), text("date", "data of"), text("engines")), tuple(rows))


def _priors(catalog: Catalog) -> Listing:
    rows = []
    for entry_id in catalog.names("priors"):
        found = catalog.prior(entry_id)
        if found is not None:
            rule = found.rule
            rows.append(
                {
                    "id": entry_id,
                    "donor": rule.donor,
                    "compute_ratio": rule.compute_ratio.value,
                    "memory_ratio": rule.memory_ratio.value,
                    "floor_ratio": rule.floor_ratio.value,
                    "spread_fraction": rule.spread_fraction.value,
                    "about": rule.about,
                }
            )
    columns = (
        text("id"),
        text("donor"),
        number("compute_ratio", "compute"),
        number("memory_ratio", "memory"),
        number("floor_ratio", "floors"),
        number("spread_fraction", "spread"),
        text("about", folds=True),
    )
    caption = (
        "Compute, memory: share of its peaks that a chip of the family reaches, over the donor's, "
        "unless rates of the chip itself are known. Floors: times of small work, over the donor's. "
        "Spread: typical relative error of one kernel."
    )
    return Listing(columns, tuple(rows), caption=caption)


def _overheads(catalog: Catalog) -> Listing:
    rows = []
    for entry_id in catalog.names("overheads"):
        found = catalog.overheads(cast("Engine", entry_id))  # ids of this kind are engines
        rows.append({"id": entry_id, "date": found.date, "families": ", ".join(found.families)})
    columns = (text("id"), text("date", "fitted"), text("families", "chip families"))
    return Listing(columns, tuple(rows))


def _engines(catalog: Catalog) -> Listing:
    rows = []
    for entry_id in catalog.names("engines"):
        preset = catalog.engine(entry_id)
        values = {key: setting.value for key, setting in preset.settings.items()}
        rows.append(
            {
                "id": entry_id,
                "version": preset.version,
                "date": preset.date,
                "kernels": values["kernels"],
                "max_num_seqs": values["max_num_seqs"],
                "max_num_batched_tokens": values["max_num_batched_tokens"],
                "block_tokens": values["block_tokens"],
                "composition": values["composition"],
                "admission": values["admission"],
                "confidence": preset.weakest,
                "about": preset.about,
            }
        )
    columns = (
        text("id"),
        text("version"),
        text("date", "as of"),
        text("kernels"),
        count("max_num_seqs", "seqs"),
        count("max_num_batched_tokens", "tokens"),
        count("block_tokens", "block"),
        text("composition", "steps", folds=True),
        text("admission", folds=True),
        text("confidence", "weakest"),
    )
    caption = (
        "Seqs, tokens: sequences that run and tokens of a step, at most, on a large chip; some "
        "engines take other values on smaller ones. Block: tokens of a KV block. Weakest: "
        "confidence of the least certain value."
    )
    return Listing(columns, tuple(rows), caption=caption)


def _prices(catalog: Catalog) -> Listing:
    rows = []
    for entry_id in catalog.names("prices"):
        book = catalog.prices(entry_id)
        rows.append(
            {
                "id": entry_id,
                "name": book.name,
                "as_of": book.as_of,
                "chips": len(book.rent_usd_per_chip_hour),
                "systems": len(book.purchase_usd_per_system),
            }
        )
    columns = (
        text("id"),
        text("name"),
        text("as_of", "as of"),
        count("chips", "chips to rent"),
        count("systems", "systems to own"),
    )
    return Listing(columns, tuple(rows))


def _scenarios(catalog: Catalog) -> Listing:
    rows = [
        {"id": entry_id, "question": str(catalog.located("scenarios", entry_id).data["question"])}
        for entry_id in catalog.names("scenarios")
    ]
    return Listing((text("id"), text("question", folds=True)), tuple(rows))


def _ids(catalog: Catalog, kind: Kind) -> Listing:
    return Listing((text("id"),), tuple({"id": entry_id} for entry_id in catalog.names(kind)))

"""GPUs and their like in the catalogue: figures checked against laws that the datasheets obey.

The right-hand sides come from how the parts are built (pins, links, engines and clocks), never
from the catalogue itself, so a slip of the pen in a YAML file fails here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sim.catalog
from sim.catalog import open_catalog
from sim.hardware import FullMesh, Switched
from sim.units import BITS_PER_BYTE, GB, GIGA, MIB, TERA

CATALOG = open_catalog()
HARDWARE = Path(sim.catalog.__file__).parents[1] / "hardware"

FAMILIES = {"ampere", "ada", "hopper", "blackwell", "rubin", "cdna2", "cdna3", "cdna4"} | {
    "gaudi",
    "xe",
    "rdu",
}
CHIPS = tuple(
    name for name in CATALOG.names("accelerators") if CATALOG.accelerator(name).family in FAMILIES
)
SYSTEMS = tuple(
    name for name in CATALOG.names("systems") if CATALOG.system(name).accelerator in CHIPS
)


def peaks(accelerator_id: str) -> dict[str, float]:
    figures = CATALOG.accelerator(accelerator_id).peak_flop_per_s
    return {str(dtype): figure.value for dtype, figure in figures.items()}


def figures_of(data: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping that carries a value, with its path."""
    if isinstance(data, dict):
        if "value" in data:
            yield path, data
        for key, inner in data.items():
            yield from figures_of(inner, f"{path}.{key}")
    elif isinstance(data, list):
        for index, inner in enumerate(data):
            yield from figures_of(inner, f"{path}[{index}]")


def test_the_wanted_chips_and_systems_are_here() -> None:
    wanted_chips = [
        "a100_sxm",
        "h100_pcie",
        "h100_sxm",
        "h800_sxm",
        "h20_sxm",
        "h200_sxm",
        "gh200",
        "b200_sxm",
        "b300_sxm",
        "gb200",
        "gb300",
        "vera_rubin",
        "vera_rubin_die",
        "l40s",
        "rtx_4090",
        "rtx_pro_6000",
        "jetson_thor",
        "mi250",
        "mi300x",
        "mi325x",
        "mi350x",
        "mi355x",
        "gaudi2",
        "gaudi3",
        "intel_max_1550",
        "arc_pro_b60",
        "sn40l",
    ]
    assert set(wanted_chips) <= set(CHIPS)
    # Each chip can be deployed: some system is made of it.
    assert {CATALOG.system(name).accelerator for name in SYSTEMS} == set(CHIPS)


# --- Memory.


@pytest.mark.parametrize(
    ("accelerator_id", "pins", "gbit_per_pin"),
    [
        # HBM: stacks x 1,024 pins. GDDR: the bus width of the card.
        ("a100_sxm", 5 * 1024, 3.186),
        ("h20_sxm", 5 * 1024, 6.25),
        ("h200_sxm", 6 * 1024, 6.25),
        ("mi250", 8 * 1024, 3.2),
        ("mi300x", 8 * 1024, 5.2),
        ("mi355x", 8 * 1024, 8.0),
        ("gaudi2", 6 * 1024, 3.2),
        ("gaudi3", 8 * 1024, 3.6),
        ("intel_max_1550", 8 * 1024, 3.2),
        ("l40s", 384, 18.0),
        ("rtx_4090", 384, 21.0),
        ("arc_pro_b60", 192, 19.0),
        ("jetson_thor", 256, 8.533),
    ],
)
def test_memory_bandwidth_is_pins_times_rate(
    accelerator_id: str, pins: int, gbit_per_pin: float
) -> None:
    bandwidth = CATALOG.accelerator(accelerator_id).local_memory.bandwidth_bytes_per_s.value
    assert bandwidth == pytest.approx(pins * gbit_per_pin * GIGA / BITS_PER_BYTE, rel=0.025)


@pytest.mark.parametrize(
    ("accelerator_id", "reported_mib"),
    # What nvidia-smi and hl-smi print, and two dies of 67,092,480 KB of rocminfo for MI250.
    [
        ("a100_sxm", 81_920),
        ("h100_pcie", 81_559),
        ("h800_sxm", 81_559),
        ("h20_sxm", 97_871),
        ("gh200", 97_871),
        ("b300_sxm", 275_040),
        ("gb200", 189_471),
        ("l40s", 46_068),
        ("rtx_4090", 24_564),
        ("rtx_pro_6000", 97_887),
        ("gaudi2", 98_304),
        ("gaudi3", 131_072),
        ("mi250", 2 * 65_536),
        ("mi300x", 196_608),
        ("mi325x", 262_144),
        ("mi355x", 294_912),
    ],
)
def test_a_program_gets_less_than_the_tool_reports(accelerator_id: str, reported_mib: int) -> None:
    """Drivers keep up to 3.6 % (ECC of GDDR6 and the 24 GB cards are the worst)."""
    capacity = CATALOG.accelerator(accelerator_id).local_memory.capacity_bytes.value
    assert 0.964 * reported_mib * MIB < capacity < reported_mib * MIB


@pytest.mark.parametrize("accelerator_id", CHIPS)
def test_memory_tiers_go_from_fast_to_slow(accelerator_id: str) -> None:
    tiers = CATALOG.accelerator(accelerator_id).memory
    rates = [tier.bandwidth_bytes_per_s.value for tier in tiers]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)


@pytest.mark.parametrize("accelerator_id", ["gh200", "gb200", "gb300", "vera_rubin"])
def test_the_second_tier_of_a_superchip_is_behind_its_link(accelerator_id: str) -> None:
    """NVLink-C2C: 450 GB/s one way for one Hopper, and for two Blackwell; 900 for two Rubin."""
    per_gpu = {"gh200": 450, "gb200": 450 / 2, "gb300": 450 / 2, "vera_rubin": 900 / 2}
    tier = CATALOG.accelerator(accelerator_id).memory[1]
    assert "C2C" in tier.kind
    assert tier.bandwidth_bytes_per_s.value <= per_gpu[accelerator_id] * GB


# --- Arithmetic.


@pytest.mark.parametrize(
    "accelerator_id",
    # The chips whose tensor units run fp8 at twice the rate of bf16.
    [
        "h100_pcie",
        "h100_sxm",
        "h800_sxm",
        "h20_sxm",
        "h200_sxm",
        "gh200",
        "b200_sxm",
        "b300_sxm",
        "gb200",
        "gb300",
        "l40s",
        "rtx_4090",
        "rtx_pro_6000",
        "jetson_thor",
        "mi300x",
        "mi325x",
        "mi350x",
        "mi355x",
        "gaudi2",
    ],
)
def test_fp8_doubles_bf16(accelerator_id: str) -> None:
    rates = peaks(accelerator_id)
    assert rates["fp8"] / rates["bf16"] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("accelerator_id", ["a100_sxm", "mi250", "intel_max_1550", "arc_pro_b60"])
def test_chips_without_fp8_units_claim_none(accelerator_id: str) -> None:
    assert {"fp8", "nvfp4", "mxfp4"}.isdisjoint(peaks(accelerator_id))


def test_fp4_formats_stand_where_hardware_has_them() -> None:
    """NVIDIA runs both formats from Blackwell on; CDNA 4 runs the OCP format alone."""
    for name in CHIPS:
        family, formats = CATALOG.accelerator(name).family, set(peaks(name))
        assert ("nvfp4" in formats) == (family in {"blackwell", "rubin"}), name
        assert ("mxfp4" in formats) == (family in {"blackwell", "rubin", "cdna4"}), name


@pytest.mark.parametrize(
    ("accelerator_id", "dtype", "expected_flop_per_s"),
    [
        # units x operations per clock x clock
        ("a100_sxm", "bf16", 108 * 2048 * 1.41e9),  # SMs x 1,024 FMA
        ("rtx_4090", "bf16", 128 * 512 * 2.52e9),  # SMs x 256 FMA at the boost clock
        ("rtx_pro_6000", "bf16", 188 * 1024 * 2.43e9),
        ("mi300x", "bf16", 304 * 2048 * 2.1e9),  # compute units x 1,024 FMA
        ("mi355x", "bf16", 256 * 4096 * 2.4e9),
        ("mi250", "bf16", 208 * 1024 * 1.7e9),
        ("intel_max_1550", "bf16", 1024 * 512 * 1.6e9),
        ("arc_pro_b60", "bf16", 160 * 256 * 2.4e9),
        ("jetson_thor", "fp32", 2560 * 2 * 1.575e9),
    ],
)
def test_peak_is_units_times_clock(
    accelerator_id: str, dtype: str, expected_flop_per_s: float
) -> None:
    assert peaks(accelerator_id)[dtype] == pytest.approx(expected_flop_per_s, rel=0.01)


@pytest.mark.parametrize("accelerator_id", CHIPS)
def test_nobody_measured_more_than_the_peak(accelerator_id: str) -> None:
    chip = CATALOG.accelerator(accelerator_id)
    for dtype, figure in chip.achieved.gemm_flop_per_s.items():
        share = figure.value / chip.peak_flop_per_s[dtype].value
        assert 0.4 < share < 1, (dtype, share)
    if chip.achieved.read_bytes_per_s is not None:
        share = chip.achieved.read_bytes_per_s.value / chip.local_memory.bandwidth_bytes_per_s.value
        assert 0.5 < share < 1


# --- Networks.


@pytest.mark.parametrize(
    ("system_id", "links", "gb_per_s"),
    [
        ("a100_sxm_x8", 12, 25),  # NVLink 3
        ("h100_sxm_x8", 18, 25),  # NVLink 4
        ("h200_sxm_x8", 18, 25),
        ("h20_sxm_x8", 18, 25),
        ("h800_sxm_x8", 8, 25),
        ("b200_sxm_x8", 18, 50),  # NVLink 5
        ("b300_sxm_x8", 18, 50),
        ("gb200_nvl72", 18, 50),
        ("gb300_nvl72", 18, 50),
        ("vera_rubin_nvl72", 36, 50),  # NVLink 6
        # PCIe 5: 32 GT/s a lane and PCIe 4: 16, in 130 bits for every 128.
        ("h100_pcie_x8", 16, 32 / 8 * 128 / 130),
        ("rtx_pro_6000_x8", 16, 32 / 8 * 128 / 130),
        ("arc_pro_b60_x8", 8, 32 / 8 * 128 / 130),
        ("l40s_x8", 16, 16 / 8 * 128 / 130),
    ],
)
def test_switched_bandwidth_is_links_times_rate(
    system_id: str, links: int, gb_per_s: float
) -> None:
    network = CATALOG.system(system_id).scale_up
    assert isinstance(network, Switched)
    assert network.bandwidth_bytes_per_s.value == pytest.approx(links * gb_per_s * GB, rel=0.005)


@pytest.mark.parametrize(
    ("system_id", "chip_gb_per_s"),
    [
        ("mi300x_x8", 448),  # 7 x 64
        ("mi325x_x8", 448),
        ("mi350x_x8", 535.5),  # 7 x 76.5
        ("mi355x_x8", 535.5),
        ("mi250_x4", 300),  # six links of 50 leave a module
        ("gaudi2_x8", 21 * 100 / 8),  # 21 ports of 100 Gb/s
        ("gaudi3_x8", 21 * 200 / 8),
        ("intel_max_1550_x4", 15 * 26.5),  # 15 of 16 links, five a pair
    ],
)
def test_mesh_links_of_a_chip_add_up(system_id: str, chip_gb_per_s: float) -> None:
    network = CATALOG.system(system_id).scale_up
    assert isinstance(network, FullMesh)
    total = (network.domain_chips - 1) * network.link_bandwidth_bytes_per_s.value
    assert total == pytest.approx(chip_gb_per_s * GB, rel=0.001)


@pytest.mark.parametrize("system_id", SYSTEMS)
def test_domains_fill_a_system_and_outrun_its_cards(system_id: str) -> None:
    system = CATALOG.system(system_id)
    assert system.chips % system.domain_chips == 0
    if system.scale_out is None or isinstance(system.scale_up, FullMesh | None):
        return
    assert isinstance(system.scale_up, Switched) or system.scale_up.topology == "dragonfly"
    assert system.scale_up.bandwidth_bytes_per_s.value > (
        system.scale_out.bandwidth_bytes_per_s.value
    )


@pytest.mark.parametrize("system_id", SYSTEMS)
def test_cards_come_in_sizes_that_are_sold(system_id: str) -> None:
    scale_out = CATALOG.system(system_id).scale_out
    if scale_out is None:
        # A kit that stands alone, and racks whose vendor does not say.
        assert system_id in {"jetson_thor_x1", "sn40l_x8", "sn40l_x16"}
        return
    card_bytes_per_s = scale_out.bandwidth_bytes_per_s.value * scale_out.shared_by_chips
    card_gbit = card_bytes_per_s * BITS_PER_BYTE / GIGA
    assert round(card_gbit) in {100, 200, 300, 400, 600, 800, 1600}, card_gbit


@pytest.mark.parametrize("system_id", SYSTEMS)
def test_host_memory_is_slower_than_the_memory_of_the_chip(system_id: str) -> None:
    system = CATALOG.system(system_id)
    if system.host_memory is not None:
        chip = CATALOG.accelerator(system.accelerator)
        host = system.host_memory.bandwidth_bytes_per_s.value
        # No PCIe link of 16 lanes carries more than 63 GB/s.
        assert host < 64 * GB < chip.local_memory.bandwidth_bytes_per_s.value


# --- Power.


@pytest.mark.parametrize("system_id", SYSTEMS)
def test_provisioned_power_covers_chips_and_host(system_id: str) -> None:
    system = CATALOG.system(system_id)
    chips_w = system.chips * CATALOG.accelerator(system.accelerator).power.tdp_w.value
    full_w = chips_w + system.host_power_w.value
    assert chips_w < full_w <= system.provisioned_power_w.value
    # Nobody reserves more than half as much again as everything at its limit.
    assert system.provisioned_power_w.value < 1.5 * full_w


@pytest.mark.parametrize("accelerator_id", CHIPS)
def test_idle_draws_a_part_of_the_limit(accelerator_id: str) -> None:
    power = CATALOG.accelerator(accelerator_id).power
    assert 0.04 < power.idle_w.value / power.tdp_w.value < 0.35


# --- Rubin, counted twice.


def test_both_readings_of_the_rubin_rack_are_one_rack() -> None:
    """72 packages and 144 dies: the same memory, arithmetic and power."""
    racks = [CATALOG.system(name) for name in ("vera_rubin_nvl72", "vera_rubin_nvl144")]
    assert [rack.chips for rack in racks] == [72, 144]
    totals = []
    for rack in racks:
        chip = CATALOG.accelerator(rack.accelerator)
        assert isinstance(rack.scale_up, Switched)
        assert rack.scale_out is not None
        totals.append(
            [
                rack.chips * value
                for value in (
                    chip.memory[0].capacity_bytes.value,
                    chip.memory[0].bandwidth_bytes_per_s.value,
                    chip.memory[1].capacity_bytes.value,
                    chip.memory[1].bandwidth_bytes_per_s.value,
                    *(figure.value for _, figure in sorted(chip.peak_flop_per_s.items())),
                    chip.power.tdp_w.value,
                    chip.power.idle_w.value,
                    rack.scale_up.bandwidth_bytes_per_s.value,
                    rack.scale_out.bandwidth_bytes_per_s.value,
                )
            ]
            + [rack.host_power_w.value, rack.provisioned_power_w.value]
        )
    assert totals[0] == pytest.approx(totals[1])
    # NVIDIA's rack page: 20.7 TB of HBM4, 54 TB of LPDDR5X.
    assert totals[0][0] == pytest.approx(20.7 * TERA, rel=0.005)
    assert totals[0][2] == pytest.approx(54 * TERA, rel=0.001)


# --- Sources.


@pytest.mark.parametrize(
    "path",
    [HARDWARE / "accelerators" / f"{name}.yaml" for name in CHIPS]
    + [HARDWARE / "systems" / f"{name}.yaml" for name in SYSTEMS],
    ids=lambda path: path.stem,
)
def test_every_figure_names_where_it_was_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "a comment says what is peculiar"
    assert "shared/" not in text
    kind = "accelerators" if path.parent.name == "accelerators" else "systems"
    data = CATALOG.located(kind, path.stem).data  # type: ignore[arg-type]
    found = dict(figures_of(data))
    assert len(found) >= 2
    for where, figure in found.items():
        source = figure["source"]
        assert len(source) > 15, (where, source)
        if "general knowledge" in source or re.search(r"\bno (page|measurement)\b", source):
            assert figure["confidence"] == "estimate", (where, source)

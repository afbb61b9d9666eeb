"""TPU, Neuron, wafer and LPU entries, and the price book, against laws they must obey.

Each expected value is a published total, or hand arithmetic on other published figures; none is
read from the files under test.
"""

import math
import re
from collections.abc import Iterator

import pytest

from sim.catalog import open_catalog
from sim.economics import PriceBook
from sim.hardware import Dragonfly, Switched, System, Torus, TorusAxis, Wafer
from sim.units import GB, GIB, GIGA, KIB, KILO, MIB, PETA, PFLOP, TB, TFLOP

CATALOG = open_catalog()
BOOK: PriceBook = CATALOG.prices("us_2026_11")

TPUS = ("tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e", "tpu_v7")
NEURON = ("trainium1", "trainium2", "trainium3", "inferentia2")
WAFERS = ("wse2", "wse3")
CHIPS = (*TPUS, *NEURON, *WAFERS, "groq_lpu", "asic_3nm_fp8")
SYSTEMS = tuple(
    name for name in CATALOG.names("systems") if CATALOG.system(name).accelerator in CHIPS
)


def torus(system: System) -> Torus:
    assert isinstance(system.scale_up, Torus)
    return system.scale_up


def link_gb_per_s(axis: TorusAxis) -> float:
    return axis.link_bandwidth_bytes_per_s.value / GB


def links_per_chip(axes: tuple[TorusAxis, ...]) -> int:
    """Two links an axis; a chip inside a line has two as well, one at the end of it has one."""
    return 2 * len(axes)


def figures(data: object, path: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Every figure below `data`, with where it stands."""
    if isinstance(data, dict):
        if "value" in data:
            yield path, data
        for key, value in data.items():
            yield from figures(value, f"{path}.{key}")
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from figures(value, f"{path}[{number}]")


def number(text: str) -> int:
    """Read '12,000'."""
    return int(text.rstrip(",").replace(",", ""))


def test_the_chips_have_systems() -> None:
    used = {CATALOG.system(name).accelerator for name in SYSTEMS}
    assert used == set(CHIPS)


# --- TPU networks: totals that Google publishes for pods and chips.


@pytest.mark.parametrize(
    ("system_id", "all_reduce_tb_per_s", "bisection_tb_per_s"),
    # docs.cloud.google.com/tpu/docs/v5e and v6e, per pod of 256 chips.
    [("tpu_v5e_256", 51.2, 1.6), ("tpu_v6e_256", 102.4, 3.2)],
)
def test_a_pod_has_the_published_bandwidth(
    system_id: str, all_reduce_tb_per_s: float, bisection_tb_per_s: float
) -> None:
    system = CATALOG.system(system_id)
    axes = torus(system).axes
    injected = system.chips * sum(2 * link_gb_per_s(axis) for axis in axes) * GB
    assert injected == pytest.approx(all_reduce_tb_per_s * TB)
    # A plane cuts every ring of one axis twice: 16 rings, 32 links, counted in one direction.
    axis = axes[0]
    rings = system.chips // axis.chips
    assert axis.wraps
    assert 2 * rings * link_gb_per_s(axis) * GB == pytest.approx(bisection_tb_per_s * TB)


def test_tpu_v4_links_add_up_to_its_pod() -> None:
    """docs.cloud.google.com/tpu/docs/v4: 1.1 PB/s of all-reduce and 24 TB/s of bisection."""
    axis = torus(CATALOG.system("tpu_v4_64")).axes[0]
    pod_chips = 16**3
    all_reduce = pod_chips * 6 * link_gb_per_s(axis) * GB
    # 1.229e15: the 1.1 of the table counts in units of 2**50, or its links are a little slower.
    assert all_reduce == pytest.approx(1.1 * 2**50, rel=0.02)
    assert 2 * 16 * 16 * link_gb_per_s(axis) * GB == pytest.approx(24 * TB, rel=0.1)


@pytest.mark.parametrize(
    ("system_id", "both_ways_gb_per_s", "links"),
    # "Bidirectional inter-chip interconnect bandwidth (per chip)" of each chip's page.
    [
        ("tpu_v5e_256", 400, 4),
        ("tpu_v6e_256", 800, 4),
        ("tpu_v5p_64", 1200, 6),
        ("tpu_v7_64", 1200, 6),
    ],
)
def test_links_of_a_chip_add_up_to_its_published_bandwidth(
    system_id: str, both_ways_gb_per_s: float, links: int
) -> None:
    axes = torus(CATALOG.system(system_id)).axes
    assert links_per_chip(axes) == links
    assert sum(2 * 2 * link_gb_per_s(axis) for axis in axes) == both_ways_gb_per_s


def test_links_wrap_where_google_says() -> None:
    """2D pods wrap axes of the full 16, optical switches wrap whole cubes of 4 x 4 x 4."""
    for name in SYSTEMS:
        system = CATALOG.system(name)
        if system.accelerator not in TPUS:
            continue
        axes = torus(system).axes
        shape = [axis.chips for axis in axes]
        if system.accelerator in ("tpu_v5e", "tpu_v6e"):
            expected = [length == 16 for length in shape]
        else:
            cube = len(shape) == 3 and all(length % 4 == 0 for length in shape)
            expected = [cube] * len(shape)
        assert [axis.wraps for axis in axes] == expected, name
        assert math.prod(shape) == system.chips


def test_a_measured_all_gather_stays_below_the_links() -> None:
    """178.8 GB/s into each TPU v7 of a 2 x 2 slice (AI-Hypercomputer/accelerator-microbenchmarks).

    In a 2 x 2 grid a chip has one link an axis.
    """
    axes = torus(CATALOG.system("tpu_v7_4")).axes
    assert [(axis.chips, axis.wraps) for axis in axes] == [(2, False), (2, False)]
    into_a_chip = sum(link_gb_per_s(axis) for axis in axes)
    assert 0.85 < 178.8 / into_a_chip < 1.0


@pytest.mark.parametrize(
    ("accelerator_id", "physical_gib"),
    [("tpu_v4", 32), ("tpu_v5e", 16), ("tpu_v5p", 96), ("tpu_v6e", 32), ("tpu_v7", 192)],
)
def test_a_tpu_runtime_keeps_a_little_memory(accelerator_id: str, physical_gib: int) -> None:
    capacity = CATALOG.accelerator(accelerator_id).local_memory.capacity_bytes.value
    assert 0.95 * physical_gib * GIB < capacity < physical_gib * GIB


def test_tpu_peaks_follow_their_matrix_units() -> None:
    """Only TPU v7 multiplies fp8 faster than bf16; int8 doubles the rate from v5e to v6e."""
    for name in TPUS:
        peaks = CATALOG.accelerator(name).peak_flop_per_s
        bf16 = peaks["bf16"].value
        if "int8" in peaks:
            assert peaks["int8"].value == pytest.approx((1 if name == "tpu_v4" else 2) * bf16, 0.01)
        if "fp8" in peaks:
            assert peaks["fp8"].value == (2 if name == "tpu_v7" else 1) * bf16


def test_the_pod_of_tpu_v7_has_its_published_exaflops() -> None:
    """42.5 EFLOP/s of fp8 and 1.77 PB of memory over 9,216 chips (Hot Chips 2025)."""
    chip = CATALOG.accelerator("tpu_v7")
    assert 9216 * chip.peak_flop_per_s["fp8"].value == pytest.approx(42.5e3 * PFLOP, rel=0.002)
    physical = 9216 * 192 * GB
    assert physical == pytest.approx(1.77 * PETA, rel=0.001)


# --- Neuron: instances and UltraServers against their chips.


def both_ways(axes: tuple[TorusAxis, ...]) -> float:
    return sum(2 * 2 * axis.link_bandwidth_bytes_per_s.value for axis in axes)


def test_neuronlink_adds_up_to_what_aws_publishes() -> None:
    inside = torus(CATALOG.system("trn2_48xl")).axes
    ultra = torus(CATALOG.system("trn2_ultraserver")).axes
    assert both_ways(inside) == 1024 * GB
    assert both_ways(ultra[2:]) == 256 * GB
    assert both_ways(ultra) == 1280 * GB
    assert [axis.chips for axis in ultra] == [4, 4, 4]
    assert both_ways(torus(CATALOG.system("trn1_32xl")).axes) == 384 * GB
    assert both_ways(torus(CATALOG.system("inf2_48xl")).axes) == 192 * GIB


def test_neuronlink_v3_is_lanes_of_pcie_gen5() -> None:
    """32 GT/s a lane are 4 GB/s in one direction before coding: 32 lanes inside, 16 between."""
    lane = 32 * GIGA / 8
    *inside, between = torus(CATALOG.system("trn2_ultraserver")).axes
    assert {axis.link_bandwidth_bytes_per_s.value for axis in inside} == {32 * lane}
    assert between.link_bandwidth_bytes_per_s.value == 16 * lane


def test_a_trn3_ultraserver_adds_up_to_its_published_totals() -> None:
    """Table of trn3-arch.rst for 144 chips."""
    system, chip = CATALOG.system("trn3_ultraserver"), CATALOG.accelerator("trainium3")
    assert system.chips == 36 * 4
    peaks = {name: figure.value for name, figure in chip.peak_flop_per_s.items()}
    assert 144 * peaks["fp8"] == 362_448 * TFLOP
    assert 144 * peaks["bf16"] == 96_624 * TFLOP
    assert 144 * peaks["fp32"] == 26_352 * TFLOP
    assert 144 * chip.local_memory.capacity_bytes.value == 20_736 * GIB
    assert 144 * chip.local_memory.bandwidth_bytes_per_s.value == pytest.approx(705.6 * TB)
    assert system.scale_out is not None
    assert 144 * system.scale_out.bandwidth_bytes_per_s.value == 28_800 * GIGA / 8


def test_trn3_links_stay_below_the_ceiling_of_the_chip() -> None:
    """Three levels of 256, 320 and 128 GB/s; 2.56 TB/s a chip both ways leave room for them."""
    scale_up = CATALOG.system("trn3_ultraserver").scale_up
    assert isinstance(scale_up, Switched)
    described = 256 + 320 + 128
    assert scale_up.bandwidth_bytes_per_s.value == described * GB
    assert described < 2560 / 2
    assert described % 64 == 0  # whole links of eight PCIe Gen6 lanes


@pytest.mark.parametrize(
    ("accelerator_id", "cores", "sbuf_mib", "memory_gib"),
    [
        ("trainium1", 2, 24, 16),
        ("inferentia2", 2, 24, 16),
        ("trainium2", 8, 28, 12),
        ("trainium3", 8, 32, 18),
    ],
)
def test_a_neuron_chip_is_the_sum_of_its_cores(
    accelerator_id: str, cores: int, sbuf_mib: int, memory_gib: int
) -> None:
    chip = CATALOG.accelerator(accelerator_id)
    assert chip.on_chip_bytes is not None
    assert chip.on_chip_bytes.value == cores * sbuf_mib * MIB
    assert chip.local_memory.capacity_bytes.value == cores * memory_gib * GIB


@pytest.mark.parametrize(
    ("accelerator_id", "engine_gb_per_s", "rel"),
    # Introduction to DMA with NKI: 16 engines a core of 27.2 GB/s, 38.4 from NeuronCore-v4 on.
    [("trainium1", 27.2, 0.02), ("inferentia2", 27.2, 0.02), ("trainium3", 38.4, 0.01)],
)
def test_dma_engines_of_the_cores_match_the_memory(
    accelerator_id: str, engine_gb_per_s: float, rel: float
) -> None:
    cores = 8 if accelerator_id == "trainium3" else 2
    engines = cores * 16 * engine_gb_per_s * GB
    bandwidth = CATALOG.accelerator(accelerator_id).local_memory.bandwidth_bytes_per_s.value
    assert bandwidth == pytest.approx(engines, rel=rel)


# --- Wafers and LPU.


@pytest.mark.parametrize(("accelerator_id", "cores"), [("wse2", 850_000), ("wse3", 900_000)])
def test_the_memory_of_a_wafer_is_that_of_its_cores(accelerator_id: str, cores: int) -> None:
    memory = CATALOG.accelerator(accelerator_id).local_memory
    assert memory.capacity_bytes.value == pytest.approx(cores * 48 * KIB, rel=0.05)
    assert memory.capacity_bytes.value <= cores * 48 * KIB
    # A core moves at most three 64-bit words a cycle, at about 1.1 GHz.
    per_core_and_cycle = memory.bandwidth_bytes_per_s.value / cores / 1.1e9
    assert 16 < per_core_and_cycle < 24


@pytest.mark.parametrize(
    ("accelerator_id", "cores", "lanes"), [("wse2", 850_000, 4), ("wse3", 900_000, 8)]
)
def test_the_peak_of_a_wafer_is_that_of_its_cores(
    accelerator_id: str, cores: int, lanes: int
) -> None:
    peaks = CATALOG.accelerator(accelerator_id).peak_flop_per_s
    assert peaks["fp16"].value == pytest.approx(cores * lanes * 2 * 1.1e9, rel=0.02)
    assert peaks["bf16"].value == peaks["fp16"].value


def test_the_headline_of_wse3_is_sparse() -> None:
    """125 PFLOP/s are printed everywhere; no dense unit of the wafer comes near."""
    assert CATALOG.accelerator("wse3").peak_flop_per_s["fp16"].value < 125 * PFLOP / 7


@pytest.mark.parametrize(("system_id", "fabric_pbit_per_s"), [("cs2_x1", 220), ("cs3_x1", 214)])
def test_a_wafer_box(system_id: str, fabric_pbit_per_s: float) -> None:
    system = CATALOG.system(system_id)
    assert isinstance(system.scale_up, Wafer)
    fabric = system.scale_up.fabric_bandwidth_bytes_per_s.value
    assert fabric == pytest.approx(fabric_pbit_per_s * PETA / 8)
    assert system.scale_out is not None
    assert system.scale_out.bandwidth_bytes_per_s.value == 12 * 100 * GIGA / 8
    assert system.provisioned_power_w.value == 23 * KILO


def test_groq_lpu_is_its_published_parts() -> None:
    chip, system = CATALOG.accelerator("groq_lpu"), CATALOG.system("groq_lpu_x576")
    # 220 MiB in the paper, 230 MB in the brochure.
    assert chip.local_memory.capacity_bytes.value == pytest.approx(230e6, rel=0.005)
    # Four matrix units of 320 x 320, two operations, 0.9 GHz.
    int8 = chip.peak_flop_per_s["int8"].value
    assert int8 == pytest.approx(4 * 320 * 320 * 2 * 0.9e9, rel=0.03)
    assert chip.peak_flop_per_s["fp16"].value == pytest.approx(int8 / 4, rel=0.01)
    scale_up = system.scale_up
    assert isinstance(scale_up, Dragonfly)
    # Seven links to the other chips of a node, four further; four lanes of 28 Gb/s each.
    assert scale_up.bandwidth_bytes_per_s.value == (7 + 4) * 4 * 28 * GIGA / 8
    assert system.chips == 72 * 8


# --- All of them.


@pytest.mark.parametrize("accelerator_id", CHIPS)
def test_nothing_measured_exceeds_its_peak(accelerator_id: str) -> None:
    chip = CATALOG.accelerator(accelerator_id)
    for dtype, figure in chip.achieved.gemm_flop_per_s.items():
        assert figure.confidence == "measured"
        assert 0.5 < figure.value / chip.peak_flop_per_s[dtype].value < 1.0
    assert chip.speculative == (accelerator_id == "asic_3nm_fp8")


@pytest.mark.parametrize("system_id", SYSTEMS)
def test_power_is_reserved_for_everything_that_runs(system_id: str) -> None:
    system = CATALOG.system(system_id)
    power = CATALOG.accelerator(system.accelerator).power
    assert 0 < power.idle_w.value < power.tdp_w.value
    running_w = system.chips * power.tdp_w.value + system.host_power_w.value
    assert running_w <= system.provisioned_power_w.value * (1 + 1e-9)
    assert system.provisioned_power_w.value < 2 * running_w


def test_slices_of_one_tpu_need_the_same_power_per_chip() -> None:
    for chip in TPUS:
        per_chip = {
            round(system.provisioned_power_w.value / system.chips, 6)
            for system in map(CATALOG.system, SYSTEMS)
            if system.accelerator == chip
        }
        assert len(per_chip) == 1, chip


def test_tpu_v7_slices_fill_the_power_of_the_pod() -> None:
    """10 MW for 9,216 chips (Hot Chips 2025)."""
    system = CATALOG.system("tpu_v7_64")
    assert 9216 / 64 * system.provisioned_power_w.value == pytest.approx(10e6, rel=0.001)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("accelerators", name) for name in CHIPS),
        *(("systems", name) for name in SYSTEMS),
        ("prices", "us_2026_11"),
    ],
)
def test_every_figure_has_a_source_that_a_reader_can_open(kind: str, name: str) -> None:
    found = list(figures(CATALOG.located(kind, name).data))  # type: ignore[arg-type]
    assert len(found) >= 4
    for path, figure in found:
        source = str(figure["source"])
        assert len(source) > 15, path
        for private in ("/work", "../shared", "facts/", "general knowledge"):
            assert private not in source, path
        if name == "asic_3nm_fp8" and "idle" not in path:
            assert source.startswith("SPECULATIVE"), path


# --- Prices.


def test_a_commitment_is_never_dearer_than_the_list_price() -> None:
    for chip, rents in BOOK.rent_usd_per_chip_hour.items():
        assert set(rents) <= {"on_demand", "commitment", "contract"}, chip
        by_kind = {kind: figure.value for kind, figure in rents.items()}
        dearest = by_kind.get("on_demand", math.inf)
        assert by_kind.get("commitment", 0) <= dearest, chip
        assert by_kind.get("contract", 0) <= dearest, chip


def test_every_rent_is_dated() -> None:
    for chip, rents in BOOK.rent_usd_per_chip_hour.items():
        for kind, figure in rents.items():
            assert figure.as_of is not None, (chip, kind)
            assert "2024" <= figure.as_of[:4] <= "2026", (chip, kind)


def test_three_years_of_a_tpu_cost_45_percent_of_its_list_price() -> None:
    """Google's own ratio for v5e (0.54 of 1.20), v6e (1.22 of 2.70) and v7 (5.40 of 12.00)."""
    for chip in TPUS:
        rents = BOOK.rent_usd_per_chip_hour[chip]
        ratio = rents["commitment"].value / rents["on_demand"].value
        assert ratio == pytest.approx(0.45, abs=0.005), chip


@pytest.mark.parametrize(
    ("system_id", "usd_per_instance_hour"),
    # SkyPilot's catalogue of AWS, us-east-1, and of Google, us-central1.
    [("trn1_32xl", 21.50), ("inf2_48xl", 12.98127), ("tpu_v6e_8", 21.60), ("tpu_v4_4", 12.88)],
)
def test_chips_of_an_instance_cost_what_the_instance_costs(
    system_id: str, usd_per_instance_hour: float
) -> None:
    system = CATALOG.system(system_id)
    rent = BOOK.rent_usd_per_chip_hour[system.accelerator]["on_demand"].value
    assert system.chips * rent == pytest.approx(usd_per_instance_hour, rel=0.005)


def test_what_is_not_sold_has_no_purchase_price() -> None:
    for name in SYSTEMS:
        if CATALOG.system(name).accelerator in (*TPUS, *NEURON):
            assert name not in BOOK.purchase_usd_per_system
    assert {"cs2_x1", "cs3_x1", "groq_lpu_x576"} <= set(BOOK.purchase_usd_per_system)


def test_a_derived_price_is_the_sum_in_its_source() -> None:
    """'8 x 12,000 for the chips + the 85,000 of the host' must make the price, and 8 the chips."""
    checked = []
    for name, figure in BOOK.purchase_usd_per_system.items():
        chips = re.match(r"(?:SPECULATIVE: )?(\d+) x ([\d,]+)", figure.source)
        if chips is None:
            continue
        assert int(chips[1]) == CATALOG.system(name).chips, name
        total = int(chips[1]) * number(chips[2])
        for count, price in re.findall(r"\+ (?:the )?(?:(\d+) x )?([\d,]{5,})", figure.source):
            total += int(count or 1) * number(price)
        assert figure.value == total, name
        checked.append(name)
    assert len(checked) >= 12


def test_a_system_costs_more_than_a_month_and_less_than_twelve_years_of_its_rent() -> None:
    """A slip of a factor of the chips or of a thousand leaves this band."""
    for name, figure in BOOK.purchase_usd_per_system.items():
        system = CATALOG.system(name)
        rents = BOOK.rent_usd_per_chip_hour.get(system.accelerator)
        if rents is None:
            continue
        dearest = max(rent.value for rent in rents.values())
        hours = figure.value / (system.chips * dearest)
        assert 730 < hours < 12 * 8766, (name, hours)

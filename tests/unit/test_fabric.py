"""Closed forms of collectives against messages counted link by link, and against figures that
vendors and others have published."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from link_loads import Chip, Grid, all_to_all_s, ring_gather_s, send_s
from small_systems import CARD_LATENCY_S, CARD_RATE, LATENCY_S, RATE, mesh, switched, system, torus

from sim.catalog import open_catalog
from sim.cost.fabric import WIRES, Fabric
from sim.errors import InfeasibleError, InputError
from sim.parallelism import ChipGroup

CATALOG = open_catalog()
SIZE = 64e6
SWITCHED = RATE * WIRES["switched"].efficiency
LINK = RATE * WIRES["mesh"].efficiency
CARD = CARD_RATE * WIRES["scale_out"].efficiency
START_S = {2: 4e-6, 4: 6e-6, 16: 12e-6}
"""Of a general library by ranks: 3 us and 1 us for each of 1, 3 and 7 + 2 steps."""
ROUND_8_S = LATENCY_S * 1.24
"""Latency of a round of an engine's own all-reduce over eight: 0.04 for each of six more ranks."""


def seconds(
    fabric: Fabric, operation: str, ranks: int, stride: int = 1, replica: int | None = None
) -> float:
    group = ChipGroup(ranks, stride)
    chips = ranks * stride if replica is None else replica
    return float(fabric.seconds(operation, group, chips, SIZE))  # type: ignore[arg-type]


class TestSwitched:
    """Ports counted by hand: what the busiest chip sends or receives in each round."""

    fabric = Fabric(system(switched(8)))

    @pytest.mark.parametrize("operation", ["all_gather", "reduce_scatter", "all_to_all"])
    def test_one_round_of_all_shards_but_the_own(self, operation: str) -> None:
        # three shards of 16 MB through a port of 70 GB/s
        expected = START_S[4] + LATENCY_S + 3 * 16e6 / SWITCHED
        assert seconds(self.fabric, operation, 4) == pytest.approx(expected)

    def test_large_all_reduce_is_two_rounds(self) -> None:
        expected = 2 * ROUND_8_S + 2 * 7 * 8e6 / SWITCHED
        assert seconds(self.fabric, "all_reduce", 8) == pytest.approx(expected)

    def test_small_all_reduce_is_one_round(self) -> None:
        small = float(self.fabric.seconds("all_reduce", ChipGroup(8, 1), 8, 1000.0))
        assert small == pytest.approx(ROUND_8_S + 7 * 1000.0 / SWITCHED)

    def test_switches_that_add_see_each_buffer_once(self) -> None:
        adding = Fabric(system(switched(8, reduces=True)))
        # a chip sends its 64 MB to the switch and 8 MB of result, and receives as much
        expected = 2 * ROUND_8_S + 72e6 / (RATE * WIRES["in_network"].efficiency)
        assert seconds(adding, "all_reduce", 8) == pytest.approx(expected)
        assert seconds(adding, "all_gather", 8) == seconds(self.fabric, "all_gather", 8)

    def test_groups_in_between_do_not_slow_each_other(self) -> None:
        assert seconds(self.fabric, "all_gather", 2, stride=4) == seconds(
            self.fabric, "all_gather", 2
        )

    def test_one_chip_has_nothing_to_exchange(self) -> None:
        assert seconds(self.fabric, "all_reduce", 1) == 0.0

    def test_cards_on_pcie_reach_less_and_have_no_kernels_of_their_own(self) -> None:
        pcie = Fabric(system(switched(8) | {"over_pcie": True}))
        rate = RATE * WIRES["pcie"].efficiency
        # 3 us and seven steps of a ring; then two rounds
        expected = 10e-6 + 2 * ROUND_8_S + 2 * 7 * 8e6 / rate
        assert seconds(pcie, "all_reduce", 8) == pytest.approx(expected)

    def test_a_dragonfly_is_compiled(self) -> None:
        network = {key: value for key, value in switched(8).items() if "reduction" not in key}
        groq = Fabric(system(network | {"topology": "dragonfly"}))
        rate = RATE * WIRES["dragonfly"].efficiency
        assert seconds(groq, "all_gather", 8) == pytest.approx(LATENCY_S + 7 * 8e6 / rate)


class TestMesh:
    def test_every_pair_has_a_link(self) -> None:
        """Links counted one by one: direct reduce-scatter and all-gather over 5 of 8 chips."""
        load = dict.fromkeys(permutations(range(5), 2), SIZE / 5)
        slowest = max(load.values()) / LINK
        five = seconds(Fabric(system(mesh(8))), "all_reduce", 5)
        assert five == pytest.approx(2 * (LATENCY_S * 1.12 + slowest))

    def test_mi300x_bus_bandwidth(self) -> None:
        """Seven links of 64 GB/s: 448 GB/s for eight chips, 192 for four, 64 for a pair; RCCL
        measured 312.9 and 47.7 GB/s over eight and two (stas00/ml-engineering)."""
        fabric = Fabric(CATALOG.system("mi300x_x8"))
        efficiency = WIRES["mesh"].efficiency
        for ranks, links, measured in ((8, 7, 312.9e9), (4, 3, None), (2, 1, 47.7e9)):
            huge = 1e12
            time_s = float(fabric.seconds("all_reduce", ChipGroup(ranks, 1), ranks, huge))
            bus = 2 * (ranks - 1) / ranks * huge / time_s
            assert bus == pytest.approx(links * 64e9 * efficiency, rel=1e-3)
            if measured is not None:
                assert bus == pytest.approx(measured, rel=0.07)

    def test_a_message_has_one_link(self) -> None:
        expected = START_S[2] + LATENCY_S + SIZE / LINK
        assert seconds(Fabric(system(mesh(8))), "send", 2) == pytest.approx(expected)


GRIDS = [
    ((4,), (True,), (1.0,)),
    ((5,), (True,), (1.0,)),
    ((6,), (False,), (1.0,)),
    ((2, 4), (False, False), (1.0, 1.0)),
    ((4, 4), (True, True), (1.0, 1.0)),
    ((4, 4), (True, False), (1.0, 1.0)),
    ((4, 6), (True, True), (1.0, 0.5)),
    ((3, 2, 4), (True, True, True), (1.0, 1.0, 0.5)),
    ((4, 4, 4), (True, True, True), (1.0, 1.0, 1.0)),
]


def grid_of(
    sizes: tuple[int, ...], wraps: tuple[bool, ...], rates: tuple[float, ...]
) -> tuple[Grid, Fabric]:
    reached = tuple(rate * RATE * WIRES["torus"].efficiency for rate in rates)
    fabric = Fabric(
        system(torus(sizes, wraps, [rate * RATE for rate in rates]), chips=math.prod(sizes))
    )
    return Grid(sizes, wraps, reached, LATENCY_S), fabric


def boxes(grid: Grid, fabric: Fabric) -> list[ChipGroup]:
    """All groups of two chips and more that fill a box, by trying all of them."""
    found = []
    for ranks, stride in product(range(2, grid.chips + 1), range(1, grid.chips)):
        if grid.chips % (ranks * stride) == 0:
            try:
                fabric.seconds("all_gather", ChipGroup(ranks, stride), grid.chips, SIZE)
            except InfeasibleError:
                continue
            found.append(ChipGroup(ranks, stride))
    return found


def rows(grid: Grid, group: ChipGroup, axis: int) -> list[list[Chip]]:
    """Members of all groups that differ only along an axis, in order."""
    found: dict[tuple[object, ...], list[Chip]] = {}
    for index, members in enumerate(grid.groups(*group)):
        for chip in map(grid.chip, members):
            found.setdefault((index, *chip[:axis], *chip[axis + 1 :]), []).append(chip)
    return list(found.values())


def gather_by_messages_s(grid: Grid, group: ChipGroup) -> float:
    """The best of: one axis after the other in any order, or as many parts as axes, each of which
    begins with another axis."""
    lines = {axis: rows(grid, group, axis) for axis in range(len(grid.sizes))}
    spanned = [axis for axis in lines if len(lines[axis][0]) > 1]

    def axis_s(axis: int, buffer: float) -> float:
        count = len(lines[axis][0])
        hops = (lines[axis][0][1][axis] - lines[axis][0][0][axis]) * count
        closed = grid.wraps[axis] and hops == grid.sizes[axis] > 2
        return ring_gather_s(grid, lines[axis], buffer / count, closed=closed)

    def left(before: tuple[int, ...] | list[int]) -> float:
        return SIZE / math.prod(len(lines[axis][0]) for axis in before)

    ways = [
        sum(axis_s(axis, left(order[:i])) for i, axis in enumerate(order))
        for order in permutations(spanned)
    ]
    count = len(spanned)
    turns = [spanned[first:] + spanned[:first] for first in range(count)]
    ways.append(
        sum(
            max(axis_s(turn[phase], left(turn[:phase]) / count) for turn in turns)
            for phase in range(count)
        )
    )
    return min(ways)


@pytest.mark.parametrize(("sizes", "wraps", "rates"), GRIDS)
class TestTorus:
    def test_gathering_is_what_the_links_carry(
        self, sizes: tuple[int, ...], wraps: tuple[bool, ...], rates: tuple[float, ...]
    ) -> None:
        grid, fabric = grid_of(sizes, wraps, rates)
        found = boxes(grid, fabric)
        assert found
        for group in found:
            expected = gather_by_messages_s(grid, group)
            for operation, passes in (("all_gather", 1), ("reduce_scatter", 1), ("all_reduce", 2)):
                time_s = seconds(fabric, operation, *group, replica=grid.chips)
                assert time_s == pytest.approx(passes * expected), (group, operation)

    def test_all_to_all_is_what_the_links_carry(
        self, sizes: tuple[int, ...], wraps: tuple[bool, ...], rates: tuple[float, ...]
    ) -> None:
        grid, fabric = grid_of(sizes, wraps, rates)
        for group in boxes(grid, fabric):
            expected = all_to_all_s(grid, *group, SIZE)
            time_s = seconds(fabric, "all_to_all", *group, replica=grid.chips)
            assert time_s == pytest.approx(expected), group

    def test_a_send_is_bounded_by_what_the_links_carry(
        self, sizes: tuple[int, ...], wraps: tuple[bool, ...], rates: tuple[float, ...]
    ) -> None:
        """Never below the counted load, and at most twice it: a shift by half a ring is counted as
        one way, and rows of which only the first half sends as if all did."""
        grid, fabric = grid_of(sizes, wraps, rates)
        for group in boxes(grid, fabric):
            counted = send_s(grid, *group, SIZE)
            time_s = seconds(fabric, "send", *group, replica=grid.chips)
            assert counted <= time_s * (1 + 1e-9), group
            assert time_s <= 2.0 * counted * (1 + 1e-9), group


class TestPods:
    def test_v5e_pod_has_51_tb_per_s_of_all_reduce(self) -> None:
        """Google counts 51.2 TB/s in a pod of 256 chips, 200 GB/s each: all four links."""
        fabric, huge = Fabric(CATALOG.system("tpu_v5e_256")), 1e13
        time_s = float(fabric.seconds("all_reduce", ChipGroup(256, 1), 256, huge))
        bus = 2 * 255 / 256 * huge / time_s
        assert 256 * bus == pytest.approx(51.2e12 * WIRES["torus"].efficiency, rel=1e-3)

    def test_v5e_pod_has_a_bisection_of_1_6_tb_per_s(self) -> None:
        """Half of what each chip sends to all crosses the middle, a quarter of all bytes each way:
        256 * 100 GB / 4 over 1.6 TB/s."""
        fabric, sent = Fabric(CATALOG.system("tpu_v5e_256")), 100e9
        time_s = float(fabric.seconds("all_to_all", ChipGroup(256, 1), 256, sent))
        crossing_s = 256 * sent / 4 / (1.6e12 * WIRES["torus"].efficiency)
        assert time_s == pytest.approx(crossing_s, rel=1e-3)

    def test_eight_of_a_ring_of_twelve_are_a_line(self) -> None:
        """The link at each end carries seven shards of 8 MB; the last one walks seven hops."""
        ring = Fabric(system(torus((12,), (True,)), chips=12))
        expected = 7 * (LATENCY_S + 8e6 / (RATE * WIRES["torus"].efficiency))
        assert seconds(ring, "all_gather", 8) == pytest.approx(expected)

    def test_a_group_that_is_no_box(self) -> None:
        fabric = Fabric(CATALOG.system("tpu_v5e_256"))
        with pytest.raises(InfeasibleError, match="6 chips is no box of a 16x16 torus"):
            seconds(fabric, "all_reduce", 6, replica=256)


class TestAcrossDomains:
    fabric = Fabric(system(switched(8)))

    def test_layers(self) -> None:
        """16 ranks on two hosts: a pass inside moves 7 shards of 8 MB, between the hosts each of
        eight cards exchanges half of 8 MB, one round; twice for an all-reduce."""
        inside_s = LATENCY_S + 7 * 8e6 / SWITCHED
        between_s = CARD_LATENCY_S + 4e6 / CARD
        layered_s = inside_s + between_s
        ring_s = 15 * CARD_LATENCY_S + max(15 / 16 * SIZE / (8 * CARD), 15 / 16 * SIZE / SWITCHED)
        expected = min(layered_s, ring_s)
        gathered = seconds(self.fabric, "all_gather", 16)
        assert gathered == pytest.approx(START_S[16] + expected)
        reduced = seconds(self.fabric, "all_reduce", 16)
        assert reduced == pytest.approx(START_S[16] + 2 * expected)

    def test_four_hosts_of_b200(self) -> None:
        """NCCL reached 381.8 GB/s of bus bandwidth over 32 B200 (stas00/ml-engineering)."""
        fabric, huge = Fabric(CATALOG.system("b200_sxm_x8")), 16e9
        time_s = float(fabric.seconds("all_reduce", ChipGroup(32, 1), 32, huge))
        assert 2 * 31 / 32 * huge / time_s == pytest.approx(381.8e9, rel=0.05)

    def test_all_to_all_leaves_by_the_cards(self) -> None:
        """Half of 64 MB goes to the other host, through a card a chip."""
        expected = START_S[16] + CARD_LATENCY_S + 32e6 / CARD
        assert seconds(self.fabric, "all_to_all", 16) == pytest.approx(expected)

    def test_a_send_to_the_next_host(self) -> None:
        expected = START_S[2] + CARD_LATENCY_S + SIZE / CARD
        assert seconds(self.fabric, "send", 2, stride=8) == pytest.approx(expected)

    def test_one_rank_on_each_of_four_hosts(self) -> None:
        """Nothing inside; two rounds of doubling, three quarters of the buffer on each card."""
        expected = START_S[4] + 2 * CARD_LATENCY_S + 0.75 * SIZE / CARD
        assert seconds(self.fabric, "all_gather", 4, stride=8) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("ranks", "stride", "replica", "inside"),
        [
            (8, 1, 8, 8),
            (6, 1, 6, 6),
            (3, 1, 24, 3),  # chips 6, 7, 8 are on two hosts
            (12, 1, 12, 6),
            (4, 4, 16, 2),
            (2, 16, 32, 1),
            (2, 8, 16, 1),
        ],
    )
    def test_who_shares_a_domain(self, ranks: int, stride: int, replica: int, inside: int) -> None:
        found = self.fabric.ranks_inside(ChipGroup(ranks, stride), replica)
        assert found == inside

    def test_chips_without_a_scale_up_network(self) -> None:
        alone = Fabric(system(None, chips=1))
        expected = START_S[2] + CARD_LATENCY_S + 0.5 * SIZE / CARD
        assert seconds(alone, "all_gather", 2) == pytest.approx(expected)

    def test_wafers_talk_through_their_cards(self) -> None:
        wafer = CATALOG.system("cs3_x1")
        assert wafer.scale_out is not None
        assert Fabric(wafer).crosses(ChipGroup(2, 1), 2)
        rate = wafer.scale_out.bandwidth_bytes_per_s.value * WIRES["scale_out"].efficiency
        expected = START_S[2] + wafer.scale_out.latency_s.value + SIZE / rate
        assert seconds(Fabric(wafer), "send", 2) == pytest.approx(expected)

    def test_no_network_between_domains(self) -> None:
        island = Fabric(system(switched(8), card=False))
        with pytest.raises(InputError, match=r"beyond its domain of 8.*no scale_out"):
            seconds(island, "all_reduce", 16)
        assert seconds(island, "all_reduce", 8) > 0


class TestAgainstMeasuredHosts:
    @pytest.mark.parametrize("accelerator", ["h100_sxm", "h200_sxm", "b200_sxm"])
    @pytest.mark.parametrize("operation", ["all_gather", "reduce_scatter", "all_to_all"])
    def test_half_a_gigabyte_over_eight_chips(self, accelerator: str, operation: str) -> None:
        """The assumption for chips that nobody measured, on chips that somebody did."""
        calibration = CATALOG.calibration(accelerator)
        assert calibration is not None
        law = calibration.collectives[operation]["nccl"][8].law  # type: ignore[index]
        fabric, size = Fabric(CATALOG.system(f"{accelerator}_x8")), 2.0**29
        assumed = float(fabric.seconds(operation, ChipGroup(8, 1), 8, size))  # type: ignore[arg-type]
        assert assumed == pytest.approx(float(law.seconds(size)), rel=0.15)

    @pytest.mark.parametrize("accelerator", ["h100_sxm", "h200_sxm", "b200_sxm"])
    def test_all_reduces_of_all_sizes(self, accelerator: str) -> None:
        """From 16 KB to half a gigabyte the fastest library of a host, half of them within 20 %."""
        calibration = CATALOG.calibration(accelerator)
        assert calibration is not None
        fabric, sizes = Fabric(CATALOG.system(f"{accelerator}_x8")), np.geomspace(16e3, 5e8, 30)
        misses = []
        for ranks in (2, 4, 8):
            libraries = calibration.collectives["all_reduce"].values()
            laws = [laws[ranks].law for laws in libraries if ranks in laws]
            measured = np.minimum.reduce([law.seconds(sizes) for law in laws])
            assumed = fabric.seconds("all_reduce", ChipGroup(ranks, 1), 8, sizes)
            misses.append(np.abs(assumed / measured - 1))
        assert np.median(np.concatenate(misses)) < 0.2


def test_many_sizes_at_once() -> None:
    fabric = Fabric(system(switched(8)))
    sizes = np.array([0.0, 1e3, 1e6, 1e9])
    together = fabric.seconds("all_reduce", ChipGroup(8, 1), 8, sizes)
    alone = [float(fabric.seconds("all_reduce", ChipGroup(8, 1), 8, size)) for size in sizes]
    assert together.tolist() == alone


def test_every_system_of_the_catalogue_has_a_price_for_its_own_chips() -> None:
    for name in CATALOG.names("systems"):
        entry = CATALOG.system(name)
        fabric = Fabric(entry)
        group = ChipGroup(entry.domain_chips, 1)
        time_s = float(fabric.seconds("all_reduce", group, entry.domain_chips, SIZE))
        assert (time_s > 0.0) == (entry.domain_chips > 1), name
        assert math.isfinite(time_s)

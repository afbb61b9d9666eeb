"""Which law prices an exchange between chips, and with which count of bytes."""

import numpy as np
import pocket_chip
import pytest
from pocket_chip import line
from small_systems import (
    CARD_LATENCY_S,
    CARD_RATE,
    LATENCY_S,
    RATE,
    mesh,
    switched,
    system,
    torus,
)

from sim.catalog import open_catalog
from sim.cost.comms import ACROSS_HOSTS, EXCHANGE_LIBRARIES, EXCHANGE_START_S, Left, Network
from sim.cost.fabric import WIRES, Fabric
from sim.cost.operators import ExpertExchange
from sim.efficiency import Collective, CollectiveLaw, CollectiveLine, Engine
from sim.errors import InputError
from sim.hardware import System
from sim.parallelism import ChipGroup

CATALOG = open_catalog()
EIGHT = ChipGroup(8, 1)
DISPATCH = ExpertExchange("dispatch", 1, "dispatch", EIGHT, 1000, 2, 1.0)
HOST = system(switched(8))

Laws = dict[str, dict[str, dict[int, Collective]]]


def network(engine: Engine = "vllm", host: System = HOST, **blocks: Laws) -> Network:
    empty: dict[str, Laws] = {"collectives": {}, "expert_exchange": {}}
    measured = pocket_chip.calibration(**{**empty, **blocks})
    return Network(host, "pocket", measured, engine)


class TestCollective:
    def test_the_faster_of_the_engine_s_own_and_nccl(self) -> None:
        own, nccl = line(2e-6, 1e-11), line(1e-5, 1e-12)
        net = network(collectives={"all_reduce": {"vllm": {8: own}, "nccl": {8: nccl}}})
        small_s, source = net.collective("all_reduce", EIGHT, 8, 1e3)
        large_s, _ = net.collective("all_reduce", EIGHT, 8, 1e7)
        assert float(small_s) == pytest.approx(2e-6 + 1e3 * 1e-11)
        assert float(large_s) == pytest.approx(1e-5 + 1e7 * 1e-12)
        assert source == "fitted: all_reduce over 8 chips, vllm or nccl"

    def test_another_engine_s_kernel_is_not_taken(self) -> None:
        blocks = {"all_reduce": {"trtllm": {8: line(1e-9, 1e-15)}, "nccl": {8: line(1e-5, 1e-12)}}}
        seconds, source = network(collectives=blocks).collective("all_reduce", EIGHT, 8, 1e3)
        assert float(seconds) == pytest.approx(1e-5 + 1e-9)
        assert source.endswith("chips, nccl")

    def test_intel_s_library(self) -> None:
        net = network("native", collectives={"all_gather": {"oneccl": {8: line(1e-5, 1e-12)}}})
        assert net.collective("all_gather", EIGHT, 8, 1.0)[1].endswith("8 chips, oneccl")

    def test_an_extrapolated_law_is_called_so(self) -> None:
        far = line(1e-5, 1e-12, extrapolated="by a rule")
        net = network(collectives={"all_reduce": {"nccl": {8: far}}})
        assert net.collective("all_reduce", EIGHT, 8, 1.0)[1].startswith("extrapolated: ")

    def test_many_sizes_at_once(self) -> None:
        two = CollectiveLaw(
            lines=(
                CollectiveLine(start_s=2e-6, seconds_per_byte=1e-11),
                CollectiveLine(start_s=5e-6, seconds_per_byte=1e-12),
            )
        )
        net = network(collectives={"all_reduce": {"nccl": {8: Collective(law=two)}}})
        seconds, _ = net.collective("all_reduce", EIGHT, 8, np.array([1e3, 1e6]))
        assert seconds == pytest.approx([2.01e-6, 6e-6])

    def test_another_number_of_chips_is_reckoned_from_the_datasheet(self) -> None:
        net = network(collectives={"all_reduce": {"nccl": {4: line(1e-5, 1e-12)}}})
        seconds, source = net.collective("all_reduce", EIGHT, 8, 64e6)
        assert float(seconds) == float(Fabric(HOST).seconds("all_reduce", EIGHT, 8, 64e6))
        assert source == (
            "assumed: all_reduce, alpha-beta over 8 chips of a switched domain of 8 (0.7 of line "
            "rate: NCCL over NVSwitch reaches 0.63 to 0.75 of line rate)"
        )

    def test_a_chip_without_a_calibration(self) -> None:
        host = system(torus((4, 2), (True, False)))
        seconds, source = Network(host, "pocket", None, "native").collective(
            "all_gather", EIGHT, 8, 64e6
        )
        assert float(seconds) == float(Fabric(host).seconds("all_gather", EIGHT, 8, 64e6))
        assert source == (
            "assumed: all_gather, alpha-beta over 8 chips of a 4x2 torus (0.9 of line rate: 45 of "
            "50 GB/s on a TPU link)"
        )

    def test_a_law_of_one_domain_is_not_taken_across_domains(self) -> None:
        laws: Laws = {"all_reduce": {"nccl": {16: line(1e-9, 1e-15)}}}
        seconds, source = network(collectives=laws).collective(
            "all_reduce", ChipGroup(16, 1), 16, 64e6
        )
        assert source.startswith("assumed: all_reduce, alpha-beta over 8 chips of a switched")
        assert "and 2 domains on test Ethernet (0.95 of line rate" in source
        assert float(seconds) > 1e-4

    def test_a_law_across_hosts_is_taken_there_and_nowhere_else(self) -> None:
        laws: Laws = {"all_reduce": {"nccl_hosts": {16: line(1e-4, 1e-11)}}}
        over_two = network(collectives=laws)
        assert over_two.collective("all_reduce", ChipGroup(16, 1), 16, 0.0)[1].startswith("fitted")
        # one rank on each of 16 hosts is not what was measured
        apart = over_two.collective("all_reduce", ChipGroup(16, 8), 128, 0.0)[1]
        assert apart.startswith("assumed: ")
        rack = network(host=system(switched(16), chips=16), collectives=laws)
        assert rack.collective("all_reduce", ChipGroup(16, 1), 16, 0.0)[1].startswith("assumed")

    def test_a_send_is_measured_in_pairs(self) -> None:
        laws: Laws = {
            "send": {"nccl": {2: line(1e-5, 1e-12)}, "nccl_hosts": {2: line(2e-5, 1e-10)}}
        }
        net = network(collectives=laws)
        within, beyond = ChipGroup(4, 2), ChipGroup(4, 8)
        assert float(net.collective("send", within, 8, 1e6)[0]) == pytest.approx(1e-5 + 1e-6)
        assert float(net.collective("send", beyond, 32, 1e6)[0]) == pytest.approx(2e-5 + 1e-4)

    def test_a_group_of_one(self) -> None:
        seconds, source = network().collective("all_reduce", ChipGroup(1, 1), 8, 1e6)
        assert float(seconds) == 0.0
        assert source == "one chip alone"

    def test_no_network_at_all(self) -> None:
        island = system(switched(8), card=False)
        with pytest.raises(InputError, match=r"small system: .* no scale_out; keep the replica"):
            network(host=island).collective("all_reduce", ChipGroup(16, 1), 16, 1.0)


MADE_FOR_IT: Laws = {"dispatch": {"deepep_low_latency": {8: line(1e-5, 1e-12)}}}
GENERAL: Laws = {"all_to_all": {"nccl": {8: line(1e-5, 1e-12)}}}
MODES: Laws = {
    "dispatch": {
        "deepep_low_latency": {8: line(1e-5, 1e-11)},
        "deepep_normal": {8: line(3e-5, 1e-12)},
    }
}


class TestDegraded:
    """Half of a network's bandwidth doubles the time of bytes and leaves the start-up alone."""

    HALF = Left(scale_up=0.5)

    def test_a_measured_law_pays_for_its_bytes_twice(self) -> None:
        laws = {"all_reduce": {"nccl": {4: line(1e-5, 1e-11)}}}
        sound = network(collectives=laws)
        for payload in (0.0, 1e6):
            weak, origin = sound.degraded(self.HALF).collective(
                "all_reduce", ChipGroup(4, 1), 4, payload
            )
            assert float(weak) == pytest.approx(1e-5 + 2 * payload * 1e-11)
            assert origin == sound.collective("all_reduce", ChipGroup(4, 1), 4, payload)[1]

    def test_so_does_a_time_from_the_datasheet(self) -> None:
        sound, group = network(collectives={}), ChipGroup(4, 1)
        weak = sound.degraded(self.HALF)

        def seconds(of: Network, payload: float) -> float:
            return float(of.collective("all_gather", group, 4, payload)[0])

        assert seconds(weak, 0.0) == seconds(sound, 0.0)
        slope = seconds(sound, 1e9) - seconds(sound, 0.0)
        assert seconds(weak, 1e9) - seconds(weak, 0.0) == pytest.approx(2 * slope)

    def test_links_between_hosts_are_their_own(self) -> None:
        sound = network(collectives={})
        across, inside = ChipGroup(16, 1), ChipGroup(8, 1)

        def seconds(of: Network, group: ChipGroup, payload: float) -> float:
            return float(of.collective("send", group, 16, payload)[0])

        weak = sound.degraded(Left(scale_out=0.25))
        assert seconds(weak, inside, 1e6) == seconds(sound, inside, 1e6)
        start_s = seconds(sound, across, 0.0)
        slope = seconds(sound, across, 1e9) - start_s
        assert seconds(weak, across, 1e9) - start_s == pytest.approx(4 * slope)

    def test_twice_degraded_is_degraded_by_both(self) -> None:
        laws = {"all_reduce": {"nccl": {4: line(1e-5, 1e-11)}}}
        weak = network(collectives=laws).degraded(self.HALF).degraded(self.HALF)
        seconds, _ = weak.collective("all_reduce", ChipGroup(4, 1), 4, 1e6)
        assert float(seconds) == pytest.approx(1e-5 + 4e-5)

    def test_an_exchange_of_experts_pays_too(self) -> None:
        laws = {"dispatch": {"deepep_low_latency": {8: line(1e-5, 1e-11)}}}
        sound = network(expert_exchange=laws)
        op = ExpertExchange("expert_dispatch", 58, "dispatch", ChipGroup(8, 1), 7168, 8, 1.0)
        times = [
            float(each.expert_exchange(op, 1024)[0]) for each in (sound, sound.degraded(self.HALF))
        ]
        assert times[1] - 1e-5 == pytest.approx(2 * (times[0] - 1e-5))

    @pytest.mark.parametrize("left", [0.0, -1.0, 1.5])
    def test_a_dead_link_is_no_slow_one(self, left: float) -> None:
        with pytest.raises(InputError, match="above 0 and at most 1"):
            network().degraded(Left(scale_out=left))


class TestExpertExchange:
    def test_a_kernel_made_for_it_counts_picks(self) -> None:
        net = network(expert_exchange=MADE_FOR_IT, collectives=GENERAL)
        seconds, source = net.expert_exchange(DISPATCH, 8000)
        # 1000 tokens on a rank, two picks each of 1000 bytes
        assert float(seconds) == pytest.approx(1e-5 + 2e6 * 1e-12)
        assert source == "fitted: dispatch over 8 chips, deepep_low_latency"

    def test_handling_a_message_counts_as_so_many_bytes(self) -> None:
        law = line(1e-5, 1e-12).model_copy(update={"message_bytes": 500.0})
        net = network(expert_exchange={"dispatch": {"deepep_normal": {8: law}}})
        # 2000 picks of 1000 + 500 bytes
        seconds, _ = net.expert_exchange(DISPATCH, 8000)
        assert float(seconds) == pytest.approx(1e-5 + 3e6 * 1e-12)

    def test_nccl_counts_what_a_rank_sends(self) -> None:
        seconds, source = network(collectives=GENERAL).expert_exchange(DISPATCH, 8000)
        # two random picks of eight ranks meet 1 + 7/8 of them
        assert float(seconds) == pytest.approx(1e-5 + 1.875e6 * 1e-12)
        assert source == "fitted: all_to_all over 8 chips, nccl"

    def test_only_this_half_and_this_number_of_chips(self) -> None:
        elsewhere: Laws = {
            "dispatch": {"deepep_low_latency": {4: line(1e-9, 1e-15)}},
            "combine": {"deepep_low_latency": {8: line(1e-9, 1e-15)}},
        }
        net = network(expert_exchange=elsewhere, collectives=GENERAL)
        assert net.expert_exchange(DISPATCH, 8)[1].endswith("nccl")

    def test_the_faster_mode_of_deepep(self) -> None:
        net = network(expert_exchange=MODES)
        few, many = (float(net.expert_exchange(DISPATCH, n)[0]) for n in (8, 80_000))
        assert few == pytest.approx(1e-5 + 2e3 * 1e-11)
        assert many == pytest.approx(3e-5 + 2e7 * 1e-12)

    def test_the_mode_that_was_asked_for(self) -> None:
        net = network(expert_exchange=MODES)
        group = DISPATCH.group
        slow = ExpertExchange("dispatch", 1, "dispatch", group, 1000, 2, 1.0, "high_throughput")
        fast = ExpertExchange("dispatch", 1, "dispatch", group, 1000, 2, 1.0, "low_latency")
        assert float(net.expert_exchange(slow, 8)[0]) == pytest.approx(3e-5 + 2e3 * 1e-12)
        assert float(net.expert_exchange(fast, 80_000)[0]) == pytest.approx(1e-5 + 2e7 * 1e-11)

    @pytest.mark.parametrize(
        ("engine", "preferred"), [("vllm", "deepep"), ("sglang", "deepep"), ("trtllm", "nvlink")]
    )
    def test_each_engine_runs_its_own_first_even_if_slower(
        self, engine: Engine, preferred: str
    ) -> None:
        slow, fast = line(1e-4, 1e-11), line(1e-6, 1e-13)
        own = preferred == "deepep"
        both: Laws = {
            "dispatch": {
                "deepep_low_latency": {8: slow if own else fast},
                "trtllm_nvlink": {8: fast if own else slow},
            }
        }
        seconds, source = network(engine, expert_exchange=both).expert_exchange(DISPATCH, 8)
        assert preferred in source
        assert float(seconds) > 1e-4

    def test_deepep_across_hosts(self) -> None:
        laws: Laws = {
            "dispatch": {
                "deepep_normal": {16: line(1e-9, 1e-15)},
                "deepep_normal_hosts": {16: line(5e-5, 1e-11)},
            }
        }
        net = network(expert_exchange=laws)
        wide = ExpertExchange("dispatch", 1, "dispatch", ChipGroup(16, 1), 1000, 2, 1.0)
        seconds, source = net.expert_exchange(wide, 16_000)
        assert float(seconds) == pytest.approx(5e-5 + 2e6 * 1e-11)
        assert source == "fitted: dispatch over 16 chips, deepep_normal"


class TestAssumedExchange:
    """8000 tokens of 1000 bytes over eight chips: 1000 on a rank, two picks each."""

    def test_inside_a_domain(self) -> None:
        seconds, source = network().expert_exchange(DISPATCH, 8000)
        port = RATE * WIRES["switched"].efficiency
        # a copy for each pick, against one for each of 1.875 ranks; seven eighths leave the chip
        low = EXCHANGE_START_S["low_latency"] + LATENCY_S + 2e6 * 7 / 8 / port
        high = EXCHANGE_START_S["high_throughput"] + LATENCY_S + 1.875e6 * 7 / 8 / port
        assert float(seconds) == pytest.approx(min(low, high))
        assert source.startswith("assumed: dispatch, start-up of DeepEP, alpha-beta over 8 chips")

    def test_a_mesh_has_a_link_for_each_rank(self) -> None:
        seconds, _ = network(host=system(mesh(8))).expert_exchange(DISPATCH, 8000)
        link = RATE * WIRES["mesh"].efficiency
        expected = EXCHANGE_START_S["low_latency"] + LATENCY_S + 2e6 / 8 / link
        assert float(seconds) == pytest.approx(expected)

    def test_across_hosts_one_copy_travels_to_each_host(self) -> None:
        """Eight picks over four hosts of eight meet 4 * (1 - 0.75**8) = 3.6 of them, of which
        three quarters are elsewhere; as copies of their own they would be 6."""
        wide = ChipGroup(32, 1)
        cards = CARD_RATE * WIRES["scale_out"].efficiency
        visited = 4 * (1 - 0.75**8)
        expected = {"low_latency": 6.0, "high_throughput": visited * 3 / 4}
        for mode, copies in expected.items():
            op = ExpertExchange("dispatch", 1, "dispatch", wide, 1000, 8, 1.0, mode)  # type: ignore[arg-type]
            seconds, _ = network().expert_exchange(op, 32 * 1000)
            start_s = EXCHANGE_START_S[mode]  # type: ignore[index]
            reckoned = start_s + CARD_LATENCY_S + copies * 1e6 / cards
            assert float(seconds) == pytest.approx(reckoned)

    def test_auto_is_the_faster_of_both(self) -> None:
        wide, tokens = ChipGroup(32, 1), np.array([32.0, 3200.0, 320_000.0])
        both = [
            network().expert_exchange(
                ExpertExchange("dispatch", 1, "dispatch", wide, 1000, 8, 1.0, mode), tokens
            )[0]
            for mode in ("low_latency", "high_throughput")
        ]
        auto = ExpertExchange("dispatch", 1, "dispatch", wide, 1000, 8, 1.0)
        seconds, _ = network().expert_exchange(auto, tokens)
        assert seconds.tolist() == np.minimum(*both).tolist()
        assert seconds[0] == both[0][0]
        assert seconds[2] == both[1][2]

    def test_an_engine_without_kernels_of_its_own(self) -> None:
        _, source = network("native", expert_exchange=MADE_FOR_IT).expert_exchange(DISPATCH, 8)
        assert source.startswith("assumed: ")


class TestCatalogue:
    def test_every_measured_exchange_library_has_an_engine(self) -> None:
        known = {
            name for groups in EXCHANGE_LIBRARIES.values() for group in groups for name in group
        }
        measured = {
            library
            for accelerator in CATALOG.names("calibrations")
            for libraries in (
                CATALOG.calibration(accelerator) or pocket_chip.calibration()
            ).expert_exchange.values()
            for library in libraries
        }
        assert {name.removesuffix(ACROSS_HOSTS) for name in measured} <= known

    @pytest.mark.parametrize(
        ("system", "engine", "library"),
        [
            ("h200_sxm_x8", "vllm", "deepep_low_latency or deepep_normal"),
            ("b200_sxm_x8", "vllm", "deepep_low_latency or deepep_normal"),
            ("b200_sxm_x8", "trtllm", "deepep_low_latency or deepep_normal"),
            ("gb300_nvl72", "vllm", "trtllm_nvlink"),
            ("gb300_nvl72", "trtllm", "trtllm_nvlink"),
        ],
    )
    def test_deepseek_over_eight_chips(self, system: str, engine: Engine, library: str) -> None:
        host = CATALOG.system(system)
        measured = CATALOG.calibration(host.accelerator)
        net = Network(host, host.accelerator, measured, engine)
        for half in ("dispatch", "combine"):
            op = ExpertExchange(half, 58, half, EIGHT, 7168, 8, 1.0)
            source = net.expert_exchange(op, 64)[1]
            assert source.startswith(f"fitted: {half} over 8 chips, {library}")

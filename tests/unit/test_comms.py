"""Which law prices an exchange between chips, and with which count of bytes."""

import numpy as np
import pocket_chip
import pytest
from pocket_chip import line

from sim.catalog import open_catalog
from sim.cost.comms import EXCHANGE_LIBRARIES, Network
from sim.cost.operators import AllReduce, ExpertExchange
from sim.deployment import deploy
from sim.efficiency import Collective, CollectiveLaw, CollectiveLine, Engine
from sim.errors import InputError
from sim.scenario import load_scenario

CATALOG = open_catalog()
REDUCE = AllReduce("reduce", 1, 8, bytes_per_token=1000.0)
DISPATCH = ExpertExchange("dispatch", 1, "dispatch", 8, 1000, 2, 1.0)


def network(
    engine: Engine = "vllm", **blocks: dict[str, dict[str, dict[int, Collective]]]
) -> Network:
    empty: dict[str, dict[str, dict[int, Collective]]] = {"collectives": {}, "expert_exchange": {}}
    return Network("pocket", pocket_chip.calibration(**{**empty, **blocks}), engine)


class TestAllReduce:
    def test_the_faster_of_the_engine_s_own_and_nccl(self) -> None:
        own, nccl = line(2e-6, 1e-11), line(1e-5, 1e-12)
        net = network(collectives={"all_reduce": {"vllm": {8: own}, "nccl": {8: nccl}}})
        small_s, source = net.all_reduce(REDUCE, 1)
        large_s, _ = net.all_reduce(REDUCE, 10_000)
        assert float(small_s) == pytest.approx(2e-6 + 1e3 * 1e-11)
        assert float(large_s) == pytest.approx(1e-5 + 1e7 * 1e-12)
        assert source == "fitted: all_reduce over 8 chips, vllm or nccl"

    def test_another_engine_s_kernel_is_not_taken(self) -> None:
        blocks = {"all_reduce": {"trtllm": {8: line(1e-9, 1e-15)}, "nccl": {8: line(1e-5, 1e-12)}}}
        seconds, source = network(collectives=blocks).all_reduce(REDUCE, 1)
        assert float(seconds) == pytest.approx(1e-5 + 1e-9)
        assert source.endswith("chips, nccl")

    def test_an_extrapolated_law_is_called_so(self) -> None:
        far = line(1e-5, 1e-12, extrapolated="by a rule")
        net = network(collectives={"all_reduce": {"nccl": {8: far}}})
        assert net.all_reduce(REDUCE, 1)[1].startswith("extrapolated: ")

    def test_many_sizes_at_once(self) -> None:
        two = CollectiveLaw(
            lines=(
                CollectiveLine(start_s=2e-6, seconds_per_byte=1e-11),
                CollectiveLine(start_s=5e-6, seconds_per_byte=1e-12),
            )
        )
        net = network(collectives={"all_reduce": {"nccl": {8: Collective(law=two)}}})
        seconds, _ = net.all_reduce(REDUCE, np.array([1.0, 1000.0]))
        assert seconds == pytest.approx([2.01e-6, 6e-6])

    def test_unknown_number_of_chips(self) -> None:
        net = network(
            collectives={"all_reduce": {"nccl": {2: line(1e-5, 1e-12), 4: line(1e-5, 1e-12)}}}
        )
        expected = "no calibration of all_reduce over 8 chips on pocket; it is known over 2, 4"
        with pytest.raises(InputError, match=expected):
            net.all_reduce(REDUCE, 1)

    def test_nothing_known_at_all(self) -> None:
        with pytest.raises(InputError, match="known over no number of chips"):
            network().all_reduce(REDUCE, 1)


MADE_FOR_IT = {"dispatch": {"deepep_low_latency": {8: line(1e-5, 1e-12)}}}
GENERAL = {"all_to_all": {"nccl": {8: line(1e-5, 1e-12)}}}


class TestExpertExchange:
    def test_a_kernel_made_for_it_counts_picks(self) -> None:
        net = network(expert_exchange=MADE_FOR_IT, collectives=GENERAL)
        seconds, source = net.expert_exchange(DISPATCH, 8000)
        # 1000 tokens on a rank, two picks each of 1000 bytes
        assert float(seconds) == pytest.approx(1e-5 + 2e6 * 1e-12)
        assert source == "fitted: dispatch over 8 chips, deepep_low_latency"

    def test_nccl_counts_what_a_rank_sends(self) -> None:
        seconds, source = network(collectives=GENERAL).expert_exchange(DISPATCH, 8000)
        # two random picks of eight ranks meet 1 + 7/8 of them
        assert float(seconds) == pytest.approx(1e-5 + 1.875e6 * 1e-12)
        assert source == "fitted: all_to_all over 8 chips, nccl"

    def test_only_this_half_and_this_number_of_chips(self) -> None:
        elsewhere = {
            "dispatch": {"deepep_low_latency": {4: line(1e-9, 1e-15)}},
            "combine": {"deepep_low_latency": {8: line(1e-9, 1e-15)}},
        }
        net = network(expert_exchange=elsewhere, collectives=GENERAL)
        assert net.expert_exchange(DISPATCH, 8)[1].endswith("nccl")

    def test_the_faster_mode_of_deepep(self) -> None:
        modes = {
            "dispatch": {
                "deepep_low_latency": {8: line(1e-5, 1e-11)},
                "deepep_normal": {8: line(3e-5, 1e-12)},
            }
        }
        net = network(expert_exchange=modes)
        few, many = (float(net.expert_exchange(DISPATCH, n)[0]) for n in (8, 80_000))
        assert few == pytest.approx(1e-5 + 2e3 * 1e-11)
        assert many == pytest.approx(3e-5 + 2e7 * 1e-12)

    @pytest.mark.parametrize(
        ("engine", "preferred"), [("vllm", "deepep"), ("sglang", "deepep"), ("trtllm", "nvlink")]
    )
    def test_each_engine_runs_its_own_first_even_if_slower(
        self, engine: Engine, preferred: str
    ) -> None:
        slow, fast = line(1e-4, 1e-11), line(1e-6, 1e-13)
        own = preferred == "deepep"
        both = {
            "dispatch": {
                "deepep_low_latency": {8: slow if own else fast},
                "trtllm_nvlink": {8: fast if own else slow},
            }
        }
        seconds, source = network(engine, expert_exchange=both).expert_exchange(DISPATCH, 8)
        assert preferred in source
        assert float(seconds) > 1e-4

    def test_unknown_number_of_chips(self) -> None:
        net = network(expert_exchange={"dispatch": {"trtllm_nvlink": {64: line(1e-5, 1e-12)}}})
        with pytest.raises(InputError, match=r"expert dispatch over 8 chips .* known over 64"):
            net.expert_exchange(DISPATCH, 8)


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
        assert measured == known

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
    def test_deepseek_over_eight_chips(self, system: str, engine: str, library: str) -> None:
        settings = [
            ("model", "deepseek_r1"),
            ("system", system),
            ("engine.name", engine),
            ("parallelism", "{tp: 8, ep: 8, expert_exchange: all_to_all}"),
        ]
        case = load_scenario(CATALOG.path("scenarios", "quickstart"), settings).cases[0]
        timer = deploy(case, CATALOG).timer
        halves = [op for op in timer.operators if isinstance(op, ExpertExchange)]
        sources = [timer.network.expert_exchange(op, 64)[1] for op in halves]
        assert sources == [
            f"fitted: {half} over 8 chips, {library}" for half in ("dispatch", "combine")
        ]

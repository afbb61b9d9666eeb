"""The scenarios of the catalogue's chips run as they are, and laws hold on what comes out."""

from collections.abc import Callable

import numpy as np
import pytest

from sim.catalog import open_catalog
from sim.cost.work import StepShape
from sim.deployment import deploy
from sim.forecast import forecast
from sim.report.data import RunTables
from sim.scenario import Case, Scenario, load_scenario
from sim.units import DTYPE_BYTES

CATALOG = open_catalog()
NAMES = [name for name in CATALOG.names("scenarios") if name.startswith("catalogue/")]


def watch(_: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


def scenario(name: str) -> Scenario:
    return load_scenario(CATALOG.path("scenarios", name))


@pytest.fixture(scope="module")
def run_of() -> Callable[[str], RunTables]:
    """Run a scenario once for all tests that look at it."""
    done: dict[str, RunTables] = {}

    def run(name: str) -> RunTables:
        if name not in done:
            done[name] = forecast(scenario(name), CATALOG, watch, manifest={})
        return done[name]

    return run


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read_bound_s(case: Case) -> float:
    """Time in which all chips of a replica read what one token meets: no token is faster."""
    system = CATALOG.system(case.system)
    memory = CATALOG.accelerator(system.accelerator).local_memory
    model = CATALOG.model(case.model)
    narrow = min(DTYPE_BYTES[case.precision.weights], DTYPE_BYTES[case.precision.expert_weights])
    met = model.active_parameters - 2 * model.embedding_parameters
    bandwidth = case.parallelism.chips * memory.bandwidth_bytes_per_s.value
    return met * narrow / bandwidth


class TestLaws:
    def test_every_request_is_served(self, name: str, run_of: Callable[[str], RunTables]) -> None:
        rows, cases = run_of(name).summary, scenario(name).cases
        sent = [case.workload.requests for case in cases if case.workload.kind == "closed_loop"]
        assert list(rows["completed_requests"]) == sent
        assert (rows["failed_requests"] == 0).all()

    def test_no_token_is_faster_than_its_weights(
        self, name: str, run_of: Callable[[str], RunTables]
    ) -> None:
        measured = run_of(name).summary.set_index("case")["tpot_s_p50"]
        for case in scenario(name).cases:
            assert measured[case.name] > read_bound_s(case), case.name

    def test_no_chip_beats_its_peaks(self, name: str, run_of: Callable[[str], RunTables]) -> None:
        rows = run_of(name).summary
        for column in ("mfu_fraction", "mbu_fraction", "utilization_fraction"):
            assert ((rows[column] > 0) & (rows[column] <= 1 + 1e-9)).all(), column

    def test_percentiles_are_in_order(self, name: str, run_of: Callable[[str], RunTables]) -> None:
        rows = run_of(name).summary
        for quantity in ("ttft_s", "tpot_s"):
            levels = rows[[f"{quantity}_{level}" for level in ("p50", "p95", "p99")]].to_numpy()
            assert (np.diff(levels, axis=1) >= 0).all(), quantity

    def test_tokens_pay_the_bill(self, name: str, run_of: Callable[[str], RunTables]) -> None:
        rows = run_of(name).summary
        tokens_per_s = rows["total_tokens_per_s_per_chip"] * rows["chips"]
        paid = rows["usd_per_mtok_total"] * tokens_per_s / 1e6 * 3600
        np.testing.assert_allclose(paid, rows["usd_per_hour"])
        assert (rows["usd_per_hour"] > 0).all()

    def test_power_lies_between_idle_and_all_at_their_limit(
        self, name: str, run_of: Callable[[str], RunTables]
    ) -> None:
        rows = run_of(name).summary.set_index("case")
        for case in scenario(name).cases:
            system = CATALOG.system(case.system)
            power = CATALOG.accelerator(system.accelerator).power
            used = int(rows["chips"][case.name]) / system.chips
            shares = used, float(np.ceil(used))  # chips, or whole systems, are charged
            host_w = system.host_power_w.value
            least = min(share * (host_w + system.chips * power.idle_w.value) for share in shares)
            most = max(share * (host_w + system.chips * power.tdp_w.value) for share in shares)
            drawn_w = rows["power_w_mean"][case.name]
            assert least * (1 - 1e-9) <= drawn_w <= most * (1 + 1e-9), case.name

    def test_a_chip_without_calibration_is_said_to_be_one(
        self, name: str, run_of: Callable[[str], RunTables]
    ) -> None:
        notes = run_of(name).notes
        for case in scenario(name).cases:
            chip = CATALOG.system(case.system).accelerator
            said = any(
                note.startswith(f"{case.name}: ") and "nothing was measured" in note
                for note in notes
            )
            assert said == (chip not in CATALOG.names("calibrations")), case.name


class TestFamilies:
    """What the datasheets alone decide."""

    @pytest.fixture
    def tpot_s(self, run_of: Callable[[str], RunTables]) -> Callable[[str, str], float]:
        def found(name: str, case: str) -> float:
            return float(run_of(f"catalogue/{name}").summary.set_index("case")["tpot_s_p50"][case])

        return found

    def test_narrower_weights_are_read_faster(self, tpot_s: Callable[[str, str], float]) -> None:
        """A decode step of 16 sequences on a Jetson reads 8.2e9 weights: 16, 8 or 4.5 bits each."""
        wide, half, quarter = (tpot_s("jetson", case) for case in ("16 bits", "FP8", "NVFP4"))
        assert quarter < half < wide
        assert wide / half <= 2
        assert wide / quarter <= 16 / 4.5

    def test_weights_that_lie_behind_a_link_come_over_it(
        self, tpot_s: Callable[[str, str], float]
    ) -> None:
        """70 GB at 384 GB/s take 182 ms; all of it in HBM is faster."""
        link = CATALOG.accelerator("gh200").memory[1].bandwidth_bytes_per_s.value
        slow = tpot_s("superchip_memory", "16 bits, 70 GB in CPU memory")
        assert slow > 70e9 / link
        assert slow > tpot_s("superchip_memory", "FP8, all in HBM")

    def test_more_bandwidth_is_not_slower_and_gains_no_more_than_there_is(
        self, tpot_s: Callable[[str, str], float]
    ) -> None:
        """MI325X: 6.0 instead of 5.3 TB/s. CS-3: 21 instead of 20 PB/s, twice the arithmetic."""
        ratio = tpot_s("cdna3", "8x MI300X") / tpot_s("cdna3", "8x MI325X")
        assert 1.0 <= ratio <= 6.0 / 5.3
        ratio = tpot_s("wafer", "8B on a CS-2") / tpot_s("wafer", "8B on a CS-3")
        assert 1.0 <= ratio <= 15.6 / 7.5

    def test_a_higher_power_limit_is_not_slower(self, tpot_s: Callable[[str, str], float]) -> None:
        """MI355X has 2,516 instead of 2,307 TFLOP/s in BF16, and the same memory.

        No step is slower. In a closed loop, which prompts come between whose answers moves the
        median by some ten thousandths either way.
        """
        slower, faster = (deploy(case, CATALOG).timer for case in scenario("catalogue/cdna4").cases)
        for tokens in (1, 64, 1_000, 8_000):
            for step in (
                StepShape(decode_sequences=min(tokens, 64), decode_context_tokens=64 * tokens),
                StepShape(prefill_sequences=1, prefill_tokens=tokens, prefill_pairs=tokens**2 / 2),
            ):
                assert faster.seconds(step) <= slower.seconds(step)
        ratio = tpot_s("cdna4", "8x MI350X") / tpot_s("cdna4", "8x MI355X")
        assert 0.999 <= ratio <= 5033 / 4614 + 1e-9

    def test_prompts_sum_up_longer_over_a_slower_link(self) -> None:
        """An H800 is an H100 with 200 instead of 450 GB/s of NVLink: a prompt of 2,000 tokens sums
        up 16 MB in each of 188 all-reduces, at least 188 x 2 x 16 MB x 7/8 / 200 GB/s = 27 ms.

        Whole prompts are not compared: kernels of one engine stand for H100, of another for H800.
        """
        prompt = StepShape(prefill_sequences=1, prefill_tokens=2000, prefill_pairs=2000**2 / 2)
        cases = {case.name: case for case in scenario("catalogue/hopper_export").cases}
        sums_s = {}
        for chip, link_bytes_per_s in (("8x H100", 450e9), ("8x H800", 200e9)):
            rows = deploy(cases[chip], CATALOG).explain(prompt)
            (sums_s[chip],) = (row.seconds for row in rows if row.name == "tensor_all_reduce")
            assert sums_s[chip] > 188 * 2 * 16e6 * 7 / 8 / link_bytes_per_s
        assert sums_s["8x H800"] > 1.5 * sums_s["8x H100"]

    def test_users_that_share_a_chain_do_not_get_faster(
        self, tpot_s: Callable[[str, str], float]
    ) -> None:
        assert tpot_s("lpu", "eight users") >= tpot_s("lpu", "one user")

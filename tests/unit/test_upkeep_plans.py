"""From the keys of a scenario to failures, scaling and spares in a run, and on the bill."""

from pathlib import Path

import numpy as np
import pytest
from small_scenarios import ONE_CASE, forecast_of, write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.deployment import IMBALANCE_PERIOD_STEPS
from sim.engine.stretch import Stretch
from sim.engine.ticks import Pace
from sim.errors import InfeasibleError, InputError
from sim.report.data import RunTables
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.upkeep_plans import UpkeepPlans, upkeep_plans

CATALOG = open_catalog()
BOOT = "boot: {provisioning_s: 5, warm_up_s: 3, weights_from: host}\n"
FOUR = ONE_CASE.replace("parallelism: {tp: 8}", "parallelism: {tp: 2}")
BROKEN = "faults: {chip: {mtbf_s: 60, repair_s: 10}}\n"


def service(folder: Path, text: str) -> Service:
    return service_of(load_scenario(write(folder, text)).cases[0], CATALOG)


def plans(folder: Path, text: str) -> UpkeepPlans:
    return upkeep_plans(service(folder, text), CATALOG)


def run(folder: Path, text: str, *, every_step: bool = False) -> RunTables:
    return forecast_of(write(folder, text), every_step=every_step)


class TestReplicas:
    """Eight chips, two for each replica: there is room for four."""

    @pytest.mark.parametrize(
        ("keys", "built", "serving"),
        [
            ("faults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 1}\n", 4, 3),
            ("replicas: 2\nfaults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 1}\n", 3, 2),
            ("autoscaling: {signal: waiting_requests, target: 2, max_replicas: 3}\n", 3, 1),
            (
                "replicas: 2\nautoscaling: {signal: waiting_requests, target: 2, max_replicas: 3}\n"
                "faults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 1}\n",
                4,
                2,
            ),
        ],
    )
    def test_all_that_could_ever_serve_are_built(
        self, tmp_path: Path, keys: str, built: int, serving: int
    ) -> None:
        found = plans(tmp_path, FOUR + BOOT + keys)
        assert found.service.replicas == built
        assert found.pools["serve"].wanted == serving

    def test_too_many_spares_do_not_fit(self, tmp_path: Path) -> None:
        keys = "replicas: 4\nfaults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 1}\n"
        with pytest.raises(
            InfeasibleError, match="4 replicas and 1 spare of 2 chips need 10 chips"
        ):
            plans(tmp_path, FOUR + BOOT + keys)

    def test_nobody_is_left_to_serve(self, tmp_path: Path) -> None:
        keys = "faults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 4}\n"
        with pytest.raises(InputError, match=r"faults\.spares is 4, and only 4 replicas fit"):
            plans(tmp_path, FOUR + BOOT + keys)

    def test_a_start_outside_of_the_range(self, tmp_path: Path) -> None:
        keys = "replicas: 4\nautoscaling: {signal: waiting_requests, target: 2, max_replicas: 3}\n"
        with pytest.raises(InputError, match=r"replicas is 4, outside .* \(1 to 3\)"):
            plans(tmp_path, FOUR + BOOT + keys)

    def test_pools_that_share_a_system_leave_room_for_spares(self, tmp_path: Path) -> None:
        """One prefill replica of two chips leaves six chips: two replicas and a spare."""
        keys = "pools: {prefill: {replicas: 1}, decode: {boot: {provisioning_s: 5, warm_up_s: 3, "
        keys += "weights_from: host}, faults: {chip: {mtbf_s: 60, repair_s: 1}, spares: 1}}}\n"
        found = plans(tmp_path, FOUR + keys)
        assert [pool.replicas for pool in found.service.pools] == [1, 3]
        assert set(found.pools) == {"decode"}
        assert found.pools["decode"].wanted == 2


class TestRefusals:
    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            (BROKEN, "nothing says how long one takes to come up: give boot"),
            (BOOT + "faults: {rates: nobody}\n", "nobody"),
            (
                BOOT + "faults: {chip: {mtbf_s: 60, repair_s: 1}, retry_keeps: kv}\n",
                r"faults\.retry_keeps is kv, but no store outlives a replica",
            ),
        ],
    )
    def test_what_is_not_known_is_said_before_anything_runs(
        self, tmp_path: Path, keys: str, words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            resolve(load_scenario(write(tmp_path, FOUR + keys)), CATALOG)

    def test_swapping_needs_a_link(self, tmp_path: Path) -> None:
        """The CPU memory of a Grace superchip is a tier of the chip: no host memory is listed."""
        keys = "max_num_seqs: 64, preemption: swap, swap_bytes: 1 GB"
        text = FOUR.replace("max_num_seqs: 64", keys).replace("tp: 2", "tp: 1")
        text = text.replace("h100_sxm_x8", "gb200_nvl72")
        with pytest.raises(InputError, match=r"give engine\.swap_bytes_per_s"):
            resolve(load_scenario(write(tmp_path, text)), CATALOG)
        stated = text.replace("1 GB", "1 GB, swap_bytes_per_s: 400 GB/s")
        resolve(load_scenario(write(tmp_path, stated)), CATALOG)


def test_over_a_slow_link_replicas_keep_the_load_of_their_experts(tmp_path: Path) -> None:
    """A slow link adds the same to a step in every period, whatever the load of the experts."""
    text = FOUR.replace("tp: 2", "tp: 4, ep: 4").replace("llama_3_1_70b", "mixtral_8x7b")
    text = text.replace("max_num_seqs: 64", "max_num_seqs: 64, expert_imbalance: 0.7")
    link = "faults: {link: {mtbf_s: 20, repair_s: 10}, link_network: scale_up, "
    found = service(tmp_path, text + BOOT + link + "link_bandwidth_fraction: 0.1}\n")
    slow_paces = upkeep_plans(found, CATALOG).pools["serve"].slow_paces
    assert slow_paces is not None

    def ticks(pace: Pace) -> list[int]:
        step = Stretch(16, 16 * 700, 0, 16, 0, 0)
        return [pace.line(step, period * IMBALANCE_PERIOD_STEPS)[0] for period in range(20)]

    loads = set()
    for seed, number in ((1, 0), (1, 1), (2, 0)):
        usual = ticks(found.pools[0].plan_for(seed).replica_pace(number))
        slow = ticks(slow_paces(seed)(number))
        (added,) = {late - soon for late, soon in zip(slow, usual, strict=True)}
        assert added > 0
        loads.add(tuple(usual))
    assert len(loads) == 3  # each draws for itself, in every run anew


class TestBill:
    """``charge: chips``: a replica that is switched off costs nothing, unless it is kept."""

    def usd_per_hour(self, folder: Path, keys: str) -> float:
        text = FOUR.replace("{book: us_2026_11}", "{book: us_2026_11, mode: rent, charge: chips}")
        return float(run(folder, text + BOOT + keys).summary["usd_per_hour"][0])

    def test_prepared_spares_are_paid_for(self, tmp_path: Path) -> None:
        steady = self.usd_per_hour(tmp_path, "replicas: 3\n")
        never = "replicas: 3\nfaults: {chip: {mtbf_s: 1e12, repair_s: 1}, spares: 1, spare: "
        cold, hot = (self.usd_per_hour(tmp_path, f"{never}{kind}}}\n") for kind in ("cold", "hot"))
        assert cold == pytest.approx(steady)
        assert hot / steady == pytest.approx(4 / 3)

    def test_what_an_autoscaler_leaves_off_is_not(self, tmp_path: Path) -> None:
        steady = self.usd_per_hour(tmp_path, "replicas: 1\n")
        scaled = "autoscaling: {signal: waiting_requests, target: 1000, max_replicas: 4}\n"
        assert self.usd_per_hour(tmp_path, scaled) == pytest.approx(steady)


class TestRuns:
    @pytest.mark.parametrize(
        "keys",
        [
            "faults: {chip: {mtbf_s: 60, repair_s: 10}, spares: 1, spare: hot}\n",
            "faults: {link: {mtbf_s: 20, repair_s: 10}, link_network: scale_up}\n",
            "autoscaling: {signal: outstanding_requests, target: 2, interval_s: 1, "
            "scale_in_cooldown_s: 2, max_replicas: 4}\n",
            "maintenance: [{start_s: 2, duration_s: 1, drain_s: 0.01, max_unavailable: 4}]\n",
            "faults: {engine: {mtbf_s: 10, repair_s: 2}, retry_keeps: nothing}\n"
            "patience: {timeout_s: 0.5, until: completion, max_retries: 1}\n",
        ],
    )
    def test_jumps_are_single_steps(self, tmp_path: Path, keys: str) -> None:
        text = (
            FOUR.replace("requests: 20", "requests: 300")
            .replace("rate_requests_per_s: 2", "rate_requests_per_s: 20")
            .replace("output_tokens: 10", "output_tokens: 60")
        )
        fast, slow = (run(tmp_path, text + BOOT + keys, every_step=each) for each in (False, True))
        for column in ("admit_s", "first_token_s", "done_s", "attempts", "replica"):
            np.testing.assert_array_equal(fast.requests[column], slow.requests[column])
        assert len(fast.requests) == 300

    def test_lost_answers_cost_more_than_lost_caches(self, tmp_path: Path) -> None:
        text = (
            FOUR.replace("requests: 20", "requests: 400")
            .replace("rate_requests_per_s: 2", "rate_requests_per_s: 20")
            .replace("output_tokens: 10", "output_tokens: 200")
            + BOOT
        )
        usd = []
        for kept in ("answer", "nothing"):
            keys = f"faults: {{chip: {{mtbf_s: 40, repair_s: 5}}, retry_keeps: {kept}}}\n"
            tables = run(tmp_path, text + keys)
            usd.append(float(tables.summary["lost_work_usd_per_hour"][0]))
            assert any("requests were broken off" in note for note in tables.notes)
            assert not any("Boot, failures" in note for note in tables.notes)
        assert 0 < usd[0] < usd[1]


class TestScalersThatStandBy:
    """One replica with two places gets twenty requests a second, of which it can do five or so."""

    def notes(self, folder: Path, scaling: str, rate: str = "20") -> list[str]:
        text = (
            FOUR.replace("requests: 20", "requests: 300")
            .replace("rate_requests_per_s: 2", f"rate_requests_per_s: {rate}")
            .replace("output_tokens: 10", "output_tokens: 60")
            .replace("max_num_seqs: 64", "max_num_seqs: 2")
        )
        scaling = f"autoscaling: {{interval_s: 1, max_replicas: 4, {scaling}}}\n"
        tables = run(folder, text + BOOT + scaling)
        return [note for note in tables.notes if "autoscaler" in note]

    @pytest.mark.parametrize(
        ("signal", "target"),
        [("kv_used_fraction", "0.8"), ("waiting_requests", "1000"), ("ttft_p95_s", "900")],
    )
    def test_a_signal_that_never_comes_near_its_target_is_told(
        self, tmp_path: Path, signal: str, target: str
    ) -> None:
        (note,) = self.notes(tmp_path, f"signal: {signal}, target: {target}")
        start = f"small: the autoscaler never added a replica: {signal} reached "
        assert note.startswith(start)
        seen = float(note.removeprefix(start).split()[0])
        assert 0 < seen < float(target)
        assert f"with a target of {target}, while " in note
        waiting = int(note.split(" requests waited and 2 ran")[0].split()[-1])
        assert 100 < waiting < 300
        if signal == "waiting_requests":  # of the one replica
            assert seen == pytest.approx(waiting, rel=0.005)

    @pytest.mark.parametrize(
        ("scaling", "rate"),
        [
            ("signal: waiting_requests, target: 5", "20"),  # it does add some
            ("signal: kv_used_fraction, target: 0.8, min_replicas: 4", "20"),  # there are no more
            ("signal: kv_used_fraction, target: 0.8", "0.5"),  # nobody waits
        ],
        ids=["scales", "full", "calm"],
    )
    def test_nothing_is_said_of_others(self, tmp_path: Path, scaling: str, rate: str) -> None:
        assert self.notes(tmp_path, scaling, rate) == []

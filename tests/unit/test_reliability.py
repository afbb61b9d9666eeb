"""Rates of failure, their laws, and how long a replica takes to come up."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from sim.errors import InputError
from sim.hardware import ScaleOut, Switched, System, Torus
from sim.reliability import (
    PARTS,
    Autoscaling,
    Boot,
    BootFacts,
    Faults,
    PartFaults,
    PartLaw,
    Reliability,
    RepairLaw,
    boot_time,
    chips_per_host,
    degraded,
    fault_laws,
)
from sim.schema import load_yaml, validate
from sim.seeds import stream
from sim.units import DAY_S, HOUR_S

HARDWARE = Path(__file__).resolve().parents[2] / "hardware"
FILES = sorted((HARDWARE / "reliability").glob("*.yaml"))
DRAWS = 20_000


def system(name: str) -> System:
    return validate(System, load_yaml(HARDWARE / "systems" / f"{name}.yaml"))


def entry(name: str) -> Reliability:
    return validate(Reliability, load_yaml(HARDWARE / "reliability" / f"{name}.yaml"))


# --- The catalogue.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_entry_is_valid_and_names_its_sources(path: Path) -> None:
    rates = validate(Reliability, load_yaml(path))
    parts = [getattr(rates, kind) for kind in PARTS]
    figures = [figure for part in parts if part for figure in (part.mtbf_s, part.repair_s)]
    if rates.boot is not None:
        figures += [rates.boot.provisioning_s, rates.boot.store_bytes_per_s, rates.boot.warm_up_s]
    assert figures
    assert all(len(figure.source) > 20 for figure in figures)


def test_an_entry_without_rates_is_refused() -> None:
    with pytest.raises(ValidationError, match="has no rates"):
        Reliability(name="nothing")


def test_the_llama_3_rates_are_the_counts_of_its_table() -> None:
    """Failures of n parts in 54 days: MTBF = n x 54 days / failures (arXiv:2407.21783, table 5)."""
    rates = entry("llama3_h100")
    chip = 148 + 72 + 19 + 17 + 6 + 6
    host = 32 + 3 + 3 + 2 + 2 + 2 + 2
    link = 35 + 7
    software = 54 + 7 + 2  # bugs, watchdog timeouts, dependencies: left out of the rates
    assert chip + host + link + software == 419
    assert rates.chip is not None and rates.host is not None and rates.link is not None
    for part, parts, failures in (
        (rates.chip, 16_384, chip),
        (rates.host, 16_384 / 8, host),
        (rates.link, 16_384, link),
    ):
        assert part.mtbf_s.value == pytest.approx(parts * 54 * DAY_S / failures, rel=1e-4)


def test_the_two_studies_differ_by_what_the_note_says() -> None:
    rates, research = entry("llama3_h100"), entry("research_a100")
    assert rates.chip is not None and rates.host is not None and rates.link is not None
    per_s = 8 / rates.chip.mtbf_s.value + 1 / rates.host.mtbf_s.value + 8 / rates.link.mtbf_s.value
    assert round(1 / per_s / DAY_S) == 311
    assert research.host is not None
    assert round(1 / per_s / research.host.mtbf_s.value, 1) == 6.6


# --- Laws.


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.5])
def test_lives_follow_a_weibull_law_of_the_stated_mean(shape: float) -> None:
    law = PartLaw(mtbf_s=1000.0, repair_s=1.0, shape=shape)
    rng = stream(11, "lives", int(10 * shape))
    lives = np.array([law.draw_life_s(rng) for _ in range(DRAWS)])
    scale = 1000.0 / math.gamma(1 + 1 / shape)
    assert stats.kstest(lives, stats.weibull_min(shape, scale=scale).cdf).pvalue > 0.01
    other = stats.weibull_min(1.1 * shape, scale=scale).cdf
    assert stats.kstest(lives, other).pvalue < 0.01  # the test would see another shape


@pytest.mark.parametrize("repair", ["fixed", "exponential", "lognormal"])
def test_repairs_take_the_stated_mean(repair: RepairLaw) -> None:
    law = PartLaw(1.0, repair_s=500.0, repair=repair, repair_sigma=0.8)
    rng = stream(12, "repairs", repair)
    drawn = np.array([law.draw_repair_s(rng) for _ in range(DRAWS)])
    half = 2.576 * drawn.std(ddof=1) / math.sqrt(DRAWS)
    assert abs(drawn.mean() - 500.0) <= half
    assert half < 0.03 * 500.0
    if repair == "lognormal":
        assert np.log(drawn).std() == pytest.approx(0.8, rel=0.02)


def test_the_scenario_wins_over_the_catalogue_and_says_what_does_not_fail() -> None:
    own = PartFaults(mtbf_s=50.0, repair_s=5.0, shape=2.0)
    found = fault_laws(Faults(rates="llama3_h100", chip=own), entry("llama3_h100"))
    assert found.laws["chip"] == PartLaw(50.0, 5.0, 2.0)
    assert found.laws["host"].mtbf_s == 57_700 * HOUR_S
    assert set(found.laws) == {"chip", "link", "host"}
    assert found.notes == ("Failures of these parts are not modelled: engine, rack.",)


def test_failures_can_be_made_more_frequent_and_say_so() -> None:
    own = PartFaults(mtbf_s=50.0, repair_s=5.0)
    found = fault_laws(Faults(chip=own, rate_factor=10.0), None)
    assert found.laws["chip"] == PartLaw(mtbf_s=5.0, repair_s=5.0)
    assert "10 times as often" in found.notes[-1]


def test_a_part_without_a_rate_is_named() -> None:
    with pytest.raises(InputError, match=r"faults.parts names rack.*give faults.rack"):
        fault_laws(Faults(rates="llama3_h100", parts=("rack",)), entry("llama3_h100"))
    with pytest.raises(InputError, match="has no rate of failure"):
        fault_laws(Faults(rates="vllm_cloud_boot"), entry("vllm_cloud_boot"))
    with pytest.raises(ValidationError, match="nothing fails"):
        Faults()


def test_limits_of_the_autoscaler_must_make_sense() -> None:
    with pytest.raises(ValidationError, match=r"min_replicas \(3\) is above max_replicas \(2\)"):
        Autoscaling(signal="waiting_requests", target=1.0, min_replicas=3, max_replicas=2)
    with pytest.raises(ValidationError, match="not below 1"):
        Autoscaling(signal="slo_attainment", target=1.0, max_replicas=2)


# --- Hosts and links.


def test_a_rack_must_say_how_large_its_hosts_are() -> None:
    own = PartFaults(mtbf_s=1.0, repair_s=1.0)
    assert chips_per_host(Faults(host=own), system("h100_sxm_x8")) == 8
    with pytest.raises(InputError, match="chips_per_host"):
        chips_per_host(Faults(host=own), system("gb200_nvl72"))
    assert chips_per_host(Faults(host=own, chips_per_host=4), system("gb200_nvl72")) == 4


def test_a_failed_link_leaves_a_share_of_one_network() -> None:
    host = system("h100_sxm_x8")
    faults = Faults(rates="any", link_bandwidth_fraction=0.5)
    slower = degraded(host, faults)
    assert isinstance(host.scale_out, ScaleOut) and isinstance(slower.scale_out, ScaleOut)
    assert slower.scale_out.bandwidth_bytes_per_s.value == 25e9  # of 400 Gb/s
    assert slower.scale_up == host.scale_up
    inside = degraded(host, faults.model_copy(update={"link_network": "scale_up"}))
    assert isinstance(inside.scale_up, Switched)
    assert inside.scale_up.bandwidth_bytes_per_s.value == 225e9
    assert inside.scale_out == host.scale_out


def test_all_axes_of_a_torus_slow_down() -> None:
    pod = system("tpu_v5p_64")
    half = Faults(rates="any", link_bandwidth_fraction=0.5, link_network="scale_up")
    slower = degraded(pod, half)
    assert isinstance(pod.scale_up, Torus) and isinstance(slower.scale_up, Torus)
    for before, after in zip(pod.scale_up.axes, slower.scale_up.axes, strict=True):
        ratio = after.link_bandwidth_bytes_per_s.value / before.link_bandwidth_bytes_per_s.value
        assert ratio == 0.5


def test_a_wafer_has_no_links_to_lose() -> None:
    faults = Faults(rates="any", link_network="scale_up")
    with pytest.raises(InputError, match="link_effect: down"):
        degraded(system("cs3_x1"), faults)


# --- Booting.


def llama_70b(chips: int = 8, per_host: int = 8) -> BootFacts:
    """140 GB of weights, dealt out evenly."""
    return BootFacts(140e9 / chips, chips, per_host, system("h100_sxm_x8"))


def test_a_boot_by_hand() -> None:
    """Store: 140 GB / 2.1 GB/s. Cards: 140 GB over 8 x 50 GB/s. Chips: 17.5 GB each at 51 GB/s."""
    boot = boot_time(Boot(rates="vllm_cloud_boot"), llama_70b(), entry("vllm_cloud_boot"))
    assert boot.legs_s["store"] == pytest.approx(140 / 2.1)
    assert boot.legs_s["network cards"] == pytest.approx(0.35)
    assert boot.legs_s["host to chip"] == pytest.approx(17.5 / 51)
    assert boot.slowest_leg == "store"
    assert boot.total_s == pytest.approx(180 + 140 / 2.1 + 64)
    assert boot.restart_s == pytest.approx(140 / 2.1 + 64)
    assert boot.notes == ()


def test_hosts_of_one_replica_load_side_by_side() -> None:
    rates = entry("vllm_cloud_boot")
    one, two = (
        boot_time(Boot(rates="vllm_cloud_boot"), llama_70b(chips), rates) for chips in (8, 16)
    )
    assert two.load_s == pytest.approx(one.load_s / 2)


def test_weights_in_the_hosts_memory_only_cross_its_links() -> None:
    boot = Boot(provisioning_s=0.0, warm_up_s=5.0, weights_from="host")
    assert boot_time(boot, llama_70b()).total_s == pytest.approx(5 + 17.5 / 51)


def test_every_link_can_be_given() -> None:
    boot = Boot(
        provisioning_s=1.0,
        warm_up_s=2.0,
        store_bytes_per_s=140e9,
        nic_bytes_per_s=70e9,
        host_memory_bytes_per_s=35e9,
        chip_link_bytes_per_s=17.5e9,
    )
    found = boot_time(boot, llama_70b())
    assert found.legs_s == pytest.approx(
        {"store": 1.0, "network cards": 2.0, "host memory": 4.0, "host to chip": 1.0}
    )
    assert found.total_s == pytest.approx(7.0)


def test_what_is_not_known_is_asked_for_or_said() -> None:
    with pytest.raises(InputError, match=r"boot\.store_bytes_per_s is not known"):
        boot_time(Boot(provisioning_s=1.0, warm_up_s=1.0), llama_70b())
    with pytest.raises(InputError, match=r"boot\.warm_up_s is not known"):
        boot_time(Boot(provisioning_s=1.0, store_bytes_per_s=1e9), llama_70b())
    with pytest.raises(InputError, match="says nothing about booting"):
        boot_time(Boot(rates="llama3_h100"), llama_70b(), entry("llama3_h100"))
    bare = system("h100_sxm_x8").model_copy(update={"scale_out": None, "host_memory": None})
    facts = BootFacts(1e9, 8, 8, bare)
    known = Boot(provisioning_s=1.0, warm_up_s=1.0, store_bytes_per_s=1e9)
    found = boot_time(known, facts)
    assert found.load_s == 8.0
    assert len(found.notes) == 2
    with pytest.raises(InputError, match="has no host_memory"):
        boot_time(known.model_copy(update={"weights_from": "host"}), facts)


@given(st.floats(1e8, 1e12), st.floats(1.0, 10.0), st.floats(1e6, 1e12))
def test_a_faster_store_never_boots_slower_and_no_link_is_beaten(
    store: float, faster: float, weights: float
) -> None:
    facts = BootFacts(weights, 8, 8, system_of_eight)
    slow, fast = (
        boot_time(Boot(provisioning_s=3.0, warm_up_s=4.0, store_bytes_per_s=rate), facts)
        for rate in (store, store * faster)
    )
    assert fast.total_s <= slow.total_s
    assert all(slow.load_s >= leg for leg in slow.legs_s.values())
    assert slow.load_s == slow.legs_s[slow.slowest_leg]


system_of_eight = system("h100_sxm_x8")

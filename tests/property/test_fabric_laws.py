"""Laws of every network: physics that no topology, group or size escapes."""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import composite

from sim.cost.fabric import Fabric
from sim.cost.operators import CollectiveOperation
from sim.errors import InfeasibleError
from sim.hardware import FullMesh, System, Torus
from sim.parallelism import ChipGroup

OPERATIONS: tuple[CollectiveOperation, ...] = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "send",
)
operations = st.sampled_from(OPERATIONS)
sizes = st.floats(0.0, 1e12)
factors = st.floats(1.0, 100.0)


def figure(value: object) -> dict[str, object]:
    return {"value": value, "source": "drawn", "confidence": "estimate"}


def system_of(network: dict[str, object], chips: int, scale: float, slow: float) -> System:
    """A system whose bandwidths are divided by ``scale`` and latencies multiplied by ``slow``."""

    def changed(node: object, name: str = "") -> object:
        if isinstance(node, list):
            return [changed(each) for each in node]
        if isinstance(node, dict):
            return {key: changed(value, key) for key, value in node.items()}
        if isinstance(node, float) and name.endswith("bandwidth_bytes_per_s"):
            return figure(node / scale)
        if isinstance(node, float) and name == "latency_s":
            return figure(node * slow)
        return figure(node) if name == "in_network_reduction" else node

    out = {"kind": "drawn", "bandwidth_bytes_per_s": 25e9, "latency_s": 5e-6}
    data = {"scale_up": network, "scale_out": out}
    return System.model_validate(
        {
            "name": "drawn",
            "accelerator": "pocket",
            "chips": chips,
            "host_power_w": figure(1.0),
            "provisioned_power_w": figure(1.0),
            **{key: changed(value) for key, value in data.items()},
        }
    )


@composite
def networks(draw: st.DrawFn) -> tuple[dict[str, object], int]:
    kind = draw(st.sampled_from(["switched", "dragonfly", "mesh", "torus"]))
    rate, latency_s = draw(st.floats(1e9, 1e12)), draw(st.floats(1e-7, 1e-5))
    if kind == "torus":
        axes = draw(st.lists(st.sampled_from([2, 3, 4, 8]), min_size=1, max_size=3))
        return {
            "topology": kind,
            "latency_s": latency_s,
            "axes": [
                {
                    "chips": chips,
                    "wraps": draw(st.booleans()),
                    "link_bandwidth_bytes_per_s": rate * draw(st.floats(0.2, 1.0)),
                }
                for chips in axes
            ],
        }, math.prod(axes)
    chips = draw(st.integers(2, 16))
    network: dict[str, object] = {"topology": kind, "domain_chips": chips, "latency_s": latency_s}
    if kind == "mesh":
        return network | {"link_bandwidth_bytes_per_s": rate}, chips
    network["bandwidth_bytes_per_s"] = rate
    if kind == "switched":
        network["in_network_reduction"] = draw(st.booleans())
        network["over_pcie"] = draw(st.booleans())
    return network, chips


@composite
def cases(draw: st.DrawFn) -> tuple[dict[str, object], int, ChipGroup, int]:
    """A network, its chips, a group and the chips of the replica."""
    network, chips = draw(networks())
    group = ChipGroup(draw(st.integers(2, 24)), draw(st.integers(1, 16)))
    replica = group.ranks * group.stride * draw(st.integers(1, 3))
    fabric = Fabric(system_of(network, chips, 1.0, 1.0))
    try:
        fabric.seconds("all_gather", group, replica, 1.0)
    except InfeasibleError:
        assume(False)
    return network, chips, group, replica


@given(cases(), operations, sizes, sizes)
def test_more_bytes_never_take_less_time(
    case: tuple[dict[str, object], int, ChipGroup, int],
    operation: CollectiveOperation,
    one: float,
    other: float,
) -> None:
    network, chips, group, replica = case
    fabric = Fabric(system_of(network, chips, 1.0, 1.0))
    low, high = fabric.seconds(operation, group, replica, np.sort([one, other]))
    assert 0.0 < low <= high * (1 + 1e-12)


@given(cases(), operations, sizes, factors, factors)
def test_slower_networks_never_take_less_time(
    case: tuple[dict[str, object], int, ChipGroup, int],
    operation: CollectiveOperation,
    size: float,
    scale: float,
    slow: float,
) -> None:
    network, chips, group, replica = case
    fast = Fabric(system_of(network, chips, 1.0, 1.0)).seconds(operation, group, replica, size)
    poor = Fabric(system_of(network, chips, scale, slow)).seconds(operation, group, replica, size)
    assert fast <= poor * (1 + 1e-12)


@given(cases(), operations, sizes, factors)
def test_twice_the_bytes_at_twice_the_rate(
    case: tuple[dict[str, object], int, ChipGroup, int],
    operation: CollectiveOperation,
    size: float,
    scale: float,
) -> None:
    network, chips, group, replica = case
    one = Fabric(system_of(network, chips, 1.0, 1.0)).seconds(operation, group, replica, size)
    other = Fabric(system_of(network, chips, scale, 1.0))
    np.testing.assert_allclose(other.seconds(operation, group, replica, size / scale), one)


@given(cases(), sizes)
def test_an_all_reduce_needs_no_more_than_its_two_halves(
    case: tuple[dict[str, object], int, ChipGroup, int], size: float
) -> None:
    network, chips, group, replica = case
    fabric = Fabric(system_of(network, chips, 1.0, 1.0))
    halves = [fabric.seconds(op, group, replica, size) for op in ("reduce_scatter", "all_gather")]
    assert fabric.seconds("all_reduce", group, replica, size) <= sum(halves) * (1 + 1e-12)


@given(cases(), sizes)
def test_nobody_receives_faster_than_all_its_links_carry(
    case: tuple[dict[str, object], int, ChipGroup, int], size: float
) -> None:
    """In an all-gather every chip takes in all shards but its own, whatever the algorithm."""
    network, chips, group, replica = case
    drawn = system_of(network, chips, 1.0, 1.0)
    inside = drawn.scale_up
    if isinstance(inside, Torus):
        links = [axis.link_bandwidth_bytes_per_s.value for axis in inside.axes]
        rate = 2 * sum(links)
    elif isinstance(inside, FullMesh):
        rate = inside.link_bandwidth_bytes_per_s.value * (chips - 1)
    else:
        assert inside is not None
        assert inside.topology in {"switched", "dragonfly"}
        rate = inside.bandwidth_bytes_per_s.value
    assert drawn.scale_out is not None
    rate += drawn.scale_out.bandwidth_bytes_per_s.value
    received = size * (group.ranks - 1) / group.ranks
    assert Fabric(drawn).seconds("all_gather", group, replica, size) >= received / rate

"""Systems with round figures, for tests of their networks."""

from collections.abc import Sequence
from typing import Any

from sim.hardware import System

RATE = 100e9
LATENCY_S = 2e-6
CARD_RATE = 10e9
CARD_LATENCY_S = 5e-6


def figure(value: object) -> dict[str, object]:
    return {"value": value, "source": "by hand", "confidence": "estimate"}


def system(
    scale_up: dict[str, Any] | None, *, chips: int = 8, card: bool = True, shared: int = 1
) -> System:
    """A system around a scale-up network, with network cards unless told."""
    data: dict[str, Any] = {
        "name": "small system",
        "accelerator": "pocket",
        "chips": chips,
        "scale_up": scale_up,
        "host_power_w": figure(1000.0),
        "provisioned_power_w": figure(5000.0),
    }
    if card:
        data["scale_out"] = {
            "kind": "test Ethernet",
            "bandwidth_bytes_per_s": figure(CARD_RATE),
            "latency_s": figure(CARD_LATENCY_S),
            "shared_by_chips": shared,
        }
    return System.model_validate(data)


def switched(domain: int, *, reduces: bool = False, rate: float = RATE) -> dict[str, Any]:
    return {
        "topology": "switched",
        "domain_chips": domain,
        "bandwidth_bytes_per_s": figure(rate),
        "latency_s": figure(LATENCY_S),
        "in_network_reduction": figure(reduces),
    }


def mesh(domain: int, *, rate: float = RATE) -> dict[str, Any]:
    return {
        "topology": "mesh",
        "domain_chips": domain,
        "link_bandwidth_bytes_per_s": figure(rate),
        "latency_s": figure(LATENCY_S),
    }


def torus(
    sizes: Sequence[int], wraps: Sequence[bool], rates: Sequence[float] | None = None
) -> dict[str, Any]:
    rates = rates or [RATE] * len(sizes)
    return {
        "topology": "torus",
        "axes": [
            {"chips": size, "wraps": wrap, "link_bandwidth_bytes_per_s": figure(rate)}
            for size, wrap, rate in zip(sizes, wraps, rates, strict=True)
        ],
        "latency_s": figure(LATENCY_S),
    }

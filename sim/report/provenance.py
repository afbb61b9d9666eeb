"""What a forecast rests on, fact by fact, and who says so."""

from collections.abc import Iterator

from sim.cost.work import StepShape
from sim.deployment import Deployment
from sim.figures import Figure
from sim.metrics.accounts import Accounts
from sim.routing import Routing
from sim.service import Service
from sim.units import GB, GIB, KW


def provenance(service: Service, books: Accounts) -> Iterator[dict[str, str]]:
    """Say what a forecast rests on: one row per fact, fit or assumption.

    The rows of a pool are marked with its role where there are several.
    """
    for pool in service.pools:
        mark = "" if len(service.pools) == 1 else f"{pool.role}: "
        for row in _of_pool(pool):
            yield row | {"item": mark + row["item"]}
    if service.kv_path is not None:
        path = service.kv_path
        for way, port in (("out of prefill", path.out_port), ("into decode", path.in_port)):
            rate = f"{port.bytes_per_s / GB:,.0f} GB/s a replica"
            yield _item(f"keys and values {way}", rate, port.source)
    for line in books.bill:
        yield _item(f"cost: {line.line}", f"{line.usd_per_hour:.2f} USD/h", line.source)


def _of_pool(deployment: Deployment) -> Iterator[dict[str, str]]:
    model, chip, memory = deployment.model, deployment.accelerator, deployment.memory
    yield _item("model", model.name, f"architecture: {model.source}")
    capacity, bandwidth = chip.local_memory.capacity_bytes, chip.local_memory.bandwidth_bytes_per_s
    yield _item("memory", f"{capacity.value / GIB:.1f} GiB", _cited(capacity))
    yield _item("memory bandwidth", f"{bandwidth.value / GB:,.0f} GB/s", _cited(bandwidth))
    dtype = deployment.compute_dtype
    peak = chip.peak_flop_per_s[dtype]
    yield _item(f"dense {dtype} peak", f"{peak.value:.3g} FLOP/s", _cited(peak))
    given = deployment.case.engine.reserved_bytes is not None
    reserved = "given" if given else "as vLLM logs it"
    yield _item(
        "KV cache",
        f"{deployment.kv_tokens:,} tokens per replica",
        f"memory less {memory.weights_bytes / GIB:.1f} GiB weights, "
        f"{memory.activations_bytes / GIB:.1f} GiB activations (computed) and "
        f"{memory.engine_bytes / GIB:.1f} GiB for the engine ({reserved}), per chip",
    )
    shape = StepShape(
        decode_sequences=1, decode_context_tokens=1, prefill_sequences=1, prefill_tokens=1
    )
    for row in deployment.explain(shape):
        yield _item(f"time of {row.name}", f"{row.calls} per step", row.source)
    if model.moe is not None:
        routing = deployment.case.routing
        yield _item("routing of experts", _told(routing), routing.source)
    power = deployment.power
    inherited = f", inherited from {power.inherited_from}" if power.inherited_from else ""
    yield _item(
        "power under load",
        f"median error {power.fit.median_ape:.1%}",
        f"fitted: {power.fit.source}{inherited}",
    )
    idle, host = chip.power.idle_w, deployment.system.host_power_w
    yield _item("idle power of a chip", f"{idle.value:.0f} W", _cited(idle))
    yield _item("power of the hosts", f"{host.value / KW:.2f} kW", _cited(host))


def _told(routing: Routing) -> str:
    """Put a law of routing into words.

    >>> _told(Routing(skew=0.5, redundant_experts=32, sampling_noise=False))
    'skew 0.5, 32 redundant experts'
    """
    popularity = f"skew {routing.skew:g}"
    if routing.power_law is not None:
        popularity = f"power law {routing.power_law:g}"
    elif routing.uniform:
        popularity = "even"
    more = f", {routing.redundant_experts} redundant experts" if routing.redundant_experts else ""
    return f"{popularity}{', with the luck of the draw' * routing.sampling_noise}{more}"


def _item(item: str, value: str, source: str) -> dict[str, str]:
    return {"item": item, "value": value, "source": source}


def _cited(figure: Figure[float]) -> str:
    return f"{figure.confidence}: {figure.source}"

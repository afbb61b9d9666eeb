"""Load, queues, KV use and power over the time of a run."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.engine.cluster import RunRecord
from sim.metrics.accounts import HANDOVER, Inventory, fleet_power_w
from sim.metrics.activity import Overlaps
from sim.metrics.embeddings import embedding_transfers
from sim.metrics.requests import last_completion_s, request_seconds
from sim.service import Service

Floats = npt.NDArray[np.float64]

TIMELINE_BINS = 120


def timeline_edges(requests: pd.DataFrame, record: RunRecord, bins: int = TIMELINE_BINS) -> Floats:
    """Cut the time of a run, to its last event, into equal bins."""
    return np.linspace(0.0, _last_event_s(requests, record) or 1.0, bins + 1)


def _last_event_s(requests: pd.DataFrame, record: RunRecord) -> float:
    """When the last request came or was answered, or a step, a transfer or an attempt ended."""
    times = (
        requests["arrival_s"].to_numpy(),
        record.stretches["end_s"],
        record.transfers["end_s"],
        record.losses["time_s"],
    )
    latest = (float(np.nanmax(each, initial=0.0)) for each in times)
    return max(last_completion_s(requests), *latest)


def timeline(
    service: Service, requests: pd.DataFrame, record: RunRecord, inventory: Inventory
) -> pd.DataFrame:
    """Load, queue, KV use and power over the time of the run, a row for each bin.

    Parameters
    ----------
    service : Service
    requests : DataFrame
    record : RunRecord
        For transfers and preemptions.
    inventory : Inventory
        Of the bins.
    """
    edges = inventory.edges
    width = float(edges[1] - edges[0])
    did, there = inventory.tally.service, inventory.there
    blocks = np.array([pool.kv_blocks for pool in service.pools])
    used, room = inventory.tally.pools.kv_block_s.sum(axis=0), blocks @ there.paid_s
    arrived, _ = np.histogram(requests["arrival_s"], edges)
    waiting_s = request_seconds(requests, "arrival_s", "admit_s", edges)
    power_w = [fleet_power_w(service, fleet, inventory) for fleet in service.fleets]
    return pd.DataFrame(
        {
            "start_s": edges[:-1],
            "end_s": edges[1:],
            "offered_requests_per_s": arrived / width,
            "output_tokens_per_s": did.output_tokens / width,
            "running_requests": did.running_s / width,
            "waiting_requests": waiting_s / width,
            "kv_used_fraction": _shares(used, room),
            "utilization_fraction": _shares(did.busy_s, there.paid_s.sum(axis=0)),
            "power_w": np.sum(power_w, axis=0),
            "replicas_up": there.up_s.sum(axis=0) / width,
            "replicas_booting": there.booting_s.sum(axis=0) / width,
            "replicas_down": there.down_s.sum(axis=0) / width,
            "preemptions": np.histogram(record.preemptions["start_s"], edges)[0],
            "cached_input_fraction": _cached_fraction(requests, edges),
            "kv_transfer_bytes_per_s": _moved_bytes(record, edges, handed=True) / width,
            "kv_offload_bytes_per_s": _moved_bytes(record, edges, handed=False) / width,
            "embedding_transfer_bytes_per_s": _embedding_bytes(service, record, edges) / width,
            **_by_pool(service, inventory, width),
        }
    )


def _by_pool(service: Service, inventory: Inventory, width: float) -> dict[str, Floats]:
    """Queue, load, use and replicas of each pool, where there are several."""
    if len(service.pools) == 1:
        return {}
    columns: dict[str, Floats] = {}
    did, paid_s = inventory.tally.pools, inventory.there.paid_s
    for place, pool in enumerate(service.pools):
        columns[f"{pool.role}_waiting_requests"] = did.waiting_s[place] / width
        columns[f"{pool.role}_running_requests"] = did.running_s[place] / width
        columns[f"{pool.role}_kv_used_fraction"] = _shares(
            did.kv_block_s[place], pool.kv_blocks * paid_s[place]
        )
        columns[f"{pool.role}_utilization_fraction"] = _shares(did.busy_s[place], paid_s[place])
        columns[f"{pool.role}_replicas_up"] = inventory.there.up_s[place] / width
    return columns


def _cached_fraction(requests: pd.DataFrame, edges: Floats) -> Floats:
    """Share of input tokens that were found in a cache, of the requests admitted in each bin."""
    admit_s = requests["admit_s"].to_numpy()
    known = ~np.isnan(admit_s)
    prompts, cached = (
        np.histogram(admit_s[known], edges, weights=requests[name].to_numpy(float)[known])[0]
        for name in ("input_tokens", "cached_tokens")
    )
    return _shares(cached, prompts)


def _moved_bytes(record: RunRecord, edges: Floats, *, handed: bool) -> Floats:
    """Bytes in each bin, spread evenly over the time of each transfer.

    Those that are handed over go between pools; the others to and from host memory and tiers.
    """
    transfers = record.transfers
    wanted = (transfers["kind"].astype(str) == HANDOVER) == handed
    start_s, end_s, moved = (transfers[name][wanted] for name in ("start_s", "end_s", "bytes"))
    return Overlaps(start_s, end_s, edges).sum(moved)


def _embedding_bytes(service: Service, record: RunRecord, edges: Floats) -> Floats:
    """Bytes in each bin that encoders send, spread evenly over the time of each transfer."""
    sent = embedding_transfers(service, record.stretches)
    return Overlaps(sent["start_s"], sent["end_s"], edges).sum(sent["bytes"])


def _shares(parts: Floats, wholes: Floats) -> Floats:
    """Divide; 0 where there is nothing to divide by."""
    nothing = np.zeros(np.shape(parts))
    return np.divide(parts, wholes, out=nothing, where=np.asarray(wholes) > 0)

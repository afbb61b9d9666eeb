"""What a service cost and bought inside the window of a run: energy, money and tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.deployment import Deployment
from sim.economics import (
    BillLine,
    Terms,
    TokenCost,
    Usage,
    bill,
    chips_charged,
    total_usd,
    usd_per_mtok,
)
from sim.engine.cluster import RunRecord
from sim.engine.records import Columns
from sim.metrics.activity import Tally, Totals, blocks_of, tally
from sim.metrics.availability import Availability, availability
from sim.metrics.embeddings import embedding_transfers
from sim.metrics.requests import Window, answers_inside
from sim.pools import Role
from sim.service import Fleet, Service

Floats = npt.NDArray[np.float64]

HANDOVER = "handover"
"""Kind of transfer from a prefill to a decode replica."""


@dataclass(frozen=True)
class Inventory:
    """What was there and what it did, between edges in time."""

    tally: Tally
    there: Availability

    @property
    def edges(self) -> Floats:
        """Edges in time, shape (bins + 1,)."""
        return self.tally.edges


def inventories(service: Service, record: RunRecord, *grids: Floats) -> tuple[Inventory, ...]:
    """Read the stretches of a run once, and add them up over one or more grids of time."""
    tallies = tally(service, blocks_of(record.stretches), *grids)
    return tuple(
        Inventory(found, availability(service, record.states, found.edges)) for found in tallies
    )


@dataclass(frozen=True)
class PoolAccounts:
    """The part of one pool."""

    role: Role
    utilization_fraction: float
    kv_used_fraction: float
    running_requests: float
    waiting_requests: float
    replicas_paid: float
    """Mean number of replicas that were not switched off."""
    chip_power_w: float
    """Of its chips, busy and idle."""
    usd: float
    prefill_share: float
    """Part of its busy time that prompts caused."""


@dataclass(frozen=True)
class LostWork:
    """Tokens that were computed and of no use; counts are those of the whole run."""

    usd: float
    """Part of the bill that went into those of the window, and into what was computed again."""
    input_tokens: int
    """Computed in prefill for attempts that ended without an answer."""
    output_tokens: int
    """Of the answers of those attempts."""
    tokens_by_cause: Mapping[str, int]
    """Both together, by how the attempts ended."""


@dataclass(frozen=True)
class Accounts:
    """What a run cost and bought inside its window."""

    window: Window
    utilization_fraction: float
    mfu_fraction: float
    mbu_fraction: float
    power_w: float
    """Of everything that is charged, before PUE."""
    chips_paid: float
    """Mean number of chips of replicas that were not switched off."""
    output_tokens: float
    """Delivered: of the answers of requests that were completed, sooner or later."""
    input_tokens: float
    """Of the prompts of those."""
    cached_input_fraction: float
    """Input tokens that were found in a cache, over all, answered or not."""
    bill: tuple[BillLine, ...]
    token_cost: TokenCost
    lost: LostWork
    kv_transfer_bytes: float
    embedding_transfer_bytes: float
    pools: tuple[PoolAccounts, ...]


def accounts(
    service: Service,
    window: Window,
    requests: pd.DataFrame,
    record: RunRecord,
    inventory: Inventory,
    terms: Sequence[Terms],
) -> Accounts:
    """Add up work, energy and money over the window of a run.

    Parameters
    ----------
    service : Service
    window : Window
    requests : DataFrame
    record : RunRecord
        For losses and transfers.
    inventory : Inventory
        Of the window: one bin.
    terms : sequence of Terms
        How each fleet of the service is paid for.
    """
    whole = inventory.tally.service
    power_w = [float(fleet_power_w(service, fleet, inventory)[0]) for fleet in service.fleets]
    bills = [
        _fleet_bill(service, fleet, inventory, watts, paid)
        for fleet, watts, paid in zip(service.fleets, power_w, terms, strict=True)
    ]
    pools = tuple(_pool_accounts(service, inventory, bills))
    read = requests[
        requests["first_token_s"].between(window.start_s, window.end_s, inclusive="right")
    ]
    answered = read["outcome"] == "completed"
    input_tokens = float(read.loc[answered, "input_tokens"].sum())
    lines = _together(bills)
    usd = total_usd(lines)
    share = sum(pool.usd * pool.prefill_share for pool in pools) / usd if usd > 0 else 0.0
    output_tokens = _delivered(float(whole.output_tokens[0]), requests, record.losses, window)
    cost = usd_per_mtok(usd, min(share, 1.0), input_tokens, output_tokens)
    return Accounts(
        window=window,
        utilization_fraction=_of(whole.busy_s[0], inventory.there.paid_s.sum()),
        mfu_fraction=_chip_weighted(service, inventory, _flop_s(service, inventory)),
        mbu_fraction=_chip_weighted(service, inventory, inventory.tally.pools.memory_s[:, 0]),
        power_w=math.fsum(power_w),
        chips_paid=_chips_paid(service, inventory),
        output_tokens=output_tokens,
        input_tokens=input_tokens,
        cached_input_fraction=_of(read["cached_tokens"].sum(), read["input_tokens"].sum()),
        bill=lines,
        token_cost=cost,
        lost=_lost_work(record.losses, requests, window, cost, whole),
        kv_transfer_bytes=_moved_bytes(record.transfers, window),
        embedding_transfer_bytes=_sent_bytes(service, record, window),
        pools=pools,
    )


def _delivered(
    produced_tokens: float, requests: pd.DataFrame, losses: Columns, window: Window
) -> float:
    """Count the output tokens of the window that belong to answers which were completed.

    Where no answer of the run was thrown away they are those that were produced. Where some were,
    the engine knows when they were thrown away and not when they were produced, and what it
    produced is of no use to tell them apart at the edges of the window: then each completed answer
    is spread evenly from its first token to its last.
    """
    if not losses["generated_tokens"].any():
        return produced_tokens
    return float(answers_inside(requests, window).sum())


def _chips_paid(service: Service, inventory: Inventory) -> float:
    """Mean number of chips whose replicas were not switched off; all of them, exactly, if none."""
    there = inventory.there
    return math.fsum(
        pool.chips * _of(paid, installed)
        for pool, paid, installed in zip(
            service.pools, there.paid_s[:, 0], there.installed_s[:, 0], strict=True
        )
    )


def fleet_power_w(service: Service, fleet: Fleet, inventory: Inventory) -> Floats:
    """Mean power of busy chips, idle chips and hosts of a fleet, of all that is charged.

    Returns
    -------
    power : array, shape (bins,)
    """
    widths_s, system = np.diff(inventory.edges), fleet.system
    chip_w: Floats = np.sum(
        [_pool_power_w(service, place, inventory) for place in fleet.places], axis=0
    )
    host_w = system.host_power_w.value * fleet.systems
    if service.case.prices.charge == "systems":
        spare = fleet.installed_chips - fleet.chips
        return chip_w + (_idle_w(fleet.pools[0]) * spare + host_w)
    paid = [_paid_chip_s(service, place, inventory) for place in fleet.places]
    mean_chips: Floats = np.sum(paid, axis=0) / widths_s
    return chip_w + host_w * mean_chips / fleet.installed_chips


def replicas_power_w(service: Service, inventory: Inventory) -> Floats:
    """Mean power of the chips of all replicas, busy or idle; hosts and chips beside them left out.

    Returns
    -------
    power : array, shape (bins,)
    """
    paid_s = inventory.there.paid_s
    pools_w = [
        _power_w(service, place, inventory, paid_s[place]) for place in range(len(service.pools))
    ]
    power_w: Floats = np.sum(pools_w, axis=0)
    return power_w


def _pool_power_w(service: Service, place: int, inventory: Inventory) -> Floats:
    """Mean power of the chips of a pool that are charged, busy or idle."""
    there, systems = inventory.there, service.case.prices.charge == "systems"
    present_s = (there.installed_s if systems else there.paid_s)[place]
    return _power_w(service, place, inventory, present_s)


def _power_w(service: Service, place: int, inventory: Inventory, present_s: Floats) -> Floats:
    """Mean power of the chips of a pool, of which so many seconds of replicas are there."""
    pool = service.pools[place]
    idle_s = np.maximum(present_s - inventory.tally.pools.busy_s[place], 0.0)
    idle_j = _idle_w(pool) * pool.chips_per_replica * idle_s
    power_w: Floats = (inventory.tally.pools.energy_j[place] + idle_j) / np.diff(inventory.edges)
    return power_w


def _idle_w(pool: Deployment) -> float:
    return float(pool.accelerator.power.idle_w.value)


def _paid_chip_s(service: Service, place: int, inventory: Inventory) -> Floats:
    """Chip-seconds of a pool in which its replicas were not switched off; shape (bins,)."""
    chip_s: Floats = inventory.there.paid_s[place] * service.pools[place].chips_per_replica
    return chip_s


def _fleet_bill(
    service: Service, fleet: Fleet, inventory: Inventory, power_w: float, terms: Terms
) -> tuple[BillLine, ...]:
    """Itemised cost of one fleet over the window."""
    span = float(np.diff(inventory.edges)[0])
    usage = Usage(span, fleet.chips, fleet.systems, power_w * span)
    charge = service.case.prices.charge
    charged: float = chips_charged(charge, usage, fleet.system.chips)
    if charge == "chips":
        paid = [_paid_chip_s(service, place, inventory)[0] for place in fleet.places]
        charged = math.fsum(paid) / span
    return bill(terms, usage, charged)


def _together(bills: Sequence[tuple[BillLine, ...]]) -> tuple[BillLine, ...]:
    """Add bills up line by line."""
    if len(bills) == 1:
        return bills[0]
    by_line: dict[str, list[BillLine]] = {}
    for line in (line for lines in bills for line in lines):
        by_line.setdefault(line.line, []).append(line)
    total = math.fsum(line.usd for lines in by_line.values() for line in lines)
    return tuple(
        BillLine(
            line=lines[0].line,
            usd=(usd := math.fsum(line.usd for line in lines)),
            usd_per_hour=math.fsum(line.usd_per_hour for line in lines),
            share_fraction=usd / total if total > 0 else 0.0,
            source="; ".join(dict.fromkeys(line.source for line in lines)),
        )
        for lines in by_line.values()
    )


def _pool_accounts(
    service: Service, inventory: Inventory, bills: Sequence[tuple[BillLine, ...]]
) -> list[PoolAccounts]:
    span = float(np.diff(inventory.edges)[0])
    usd = {}
    for fleet, lines in zip(service.fleets, bills, strict=True):
        paid = [float(_paid_chip_s(service, place, inventory)[0]) for place in fleet.places]
        for place, chip_s in zip(fleet.places, paid, strict=True):
            part = 1.0 if len(paid) == 1 else _of(chip_s, math.fsum(paid))
            usd[place] = total_usd(lines) * part
    return [
        _one_pool(service, place, inventory, span, usd[place])
        for place in range(len(service.pools))
    ]


def _one_pool(
    service: Service, place: int, inventory: Inventory, span: float, usd: float
) -> PoolAccounts:
    pool = service.pools[place]
    did = type(inventory.tally.pools)(*(values[place] for values in inventory.tally.pools))
    paid_s = float(inventory.there.paid_s[place, 0])
    unused = 0.0 if pool.role in ("serve", "decode") else 1.0  # a pool that did nothing
    busy_s = float(did.busy_s[0])
    return PoolAccounts(
        role=pool.role,
        utilization_fraction=_of(busy_s, paid_s),
        kv_used_fraction=_of(float(did.kv_block_s[0]), pool.kv_blocks * paid_s),
        running_requests=float(did.running_s[0]) / span,
        waiting_requests=float(did.waiting_s[0]) / span,
        replicas_paid=paid_s / span,
        chip_power_w=float(_pool_power_w(service, place, inventory)[0]),
        usd=usd,
        prefill_share=float(did.prefill_s[0]) / busy_s if busy_s > 0 else unused,
    )


def _flop_s(service: Service, inventory: Inventory) -> Floats:
    """Seconds that one chip of each pool would take for the FLOP of a replica's chips, at peak."""
    return np.array(
        [
            inventory.tally.pools.flop[place, 0] / pool.peak_flop_per_s / pool.chips_per_replica
            for place, pool in enumerate(service.pools)
        ]
    )


def _chip_weighted(service: Service, inventory: Inventory, used_s: Floats) -> float:
    """Share of the chips' time that some use of it would take at the peaks."""
    chips = np.array([pool.chips_per_replica for pool in service.pools])
    return _of(float(used_s @ chips), float(inventory.there.paid_s[:, 0] @ chips))


def _lost_work(
    losses: Columns, requests: pd.DataFrame, window: Window, cost: TokenCost, did: Totals
) -> LostWork:
    """Count what was computed and thrown away, and find its part of the bill.

    Of the money for prompts the share that such tokens are of all that prefill computed in the
    window, and likewise of the money for answers. Lost tokens count when they were lost, those that
    were computed again when the answer is complete.
    """
    inside = (losses["time_s"] > window.start_s) & (losses["time_s"] <= window.end_s)
    prompts, answers = losses["prefilled_tokens"], losses["generated_tokens"]
    done = requests["done_s"].between(window.start_s, window.end_s, inclusive="right")
    prefilled = float(prompts[inside].sum() + requests.loc[done, "recomputed_tokens"].sum())
    generated = float(answers[inside].sum())
    input_share = min(_of(prefilled, did.prefill_tokens[0]), 1.0)
    output_share = min(_of(generated, did.output_tokens[0]), 1.0)
    by_cause: dict[str, int] = {}
    for cause in np.unique(losses["cause"].astype(str)).tolist():
        mine = losses["cause"].astype(str) == cause
        by_cause[cause] = int(prompts[mine].sum() + answers[mine].sum())
    return LostWork(
        usd=cost.input_usd * input_share + cost.output_usd * output_share,
        input_tokens=int(prompts.sum()),
        output_tokens=int(answers.sum()),
        tokens_by_cause=by_cause,
    )


def _moved_bytes(transfers: Columns, window: Window) -> float:
    """Bytes that came from prefill to decode replicas inside the window."""
    arrived = (transfers["end_s"] > window.start_s) & (transfers["end_s"] <= window.end_s)
    handed = transfers["kind"].astype(str) == HANDOVER
    return float(transfers["bytes"][arrived & handed].sum())


def _sent_bytes(service: Service, record: RunRecord, window: Window) -> float:
    """Bytes of embeddings that came from encoders inside the window."""
    sent = embedding_transfers(service, record.stretches)
    arrived = (sent["end_s"] > window.start_s) & (sent["end_s"] <= window.end_s)
    return float(sent["bytes"][arrived].sum())


def _of(part: float, whole: float) -> float:
    """Give a share; 0 of nothing."""
    return float(part) / float(whole) if whole > 0 else 0.0

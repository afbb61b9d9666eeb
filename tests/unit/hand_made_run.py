"""A run of five stretches that tests can follow by hand.

Two replicas of two chips, on one system of eight::

    seconds    0   1   2   3   4   5   6   7   8   9   10
    replica 0  [-- a --][------- b -------][-- c --]
    replica 1              [------- d -------]     [ e ]

a computes a prompt (1 token out), b decodes one sequence for 4 steps (4), c decodes one and
computes a prompt (2), d decodes three for 2 steps (6), e computes two prompts (2): 15 tokens.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from sim.engine.cluster import RunRecord
from sim.engine.records import (
    LOSS_COLUMNS,
    REQUEST_COLUMNS,
    STATE_COLUMNS,
    TRANSFER_COLUMNS,
    Columns,
)
from sim.metrics.accounts import Inventory
from sim.metrics.activity import Activity, Overlaps, Tally, Totals
from sim.metrics.availability import availability
from sim.metrics.requests import request_table
from sim.service import Service

NAN = float("nan")


def stretches() -> dict[str, np.ndarray]:
    columns = {
        #                    a     b     c     d     e
        "replica": [0, 0, 0, 1, 1],
        "start_s": [0.0, 2.0, 6.0, 3.0, 9.0],
        "end_s": [2.0, 6.0, 8.0, 7.0, 10.0],
        "steps": [1, 4, 1, 2, 1],
        "decode_sequences": [0, 1, 1, 3, 0],
        "decode_context_tokens": [0.0, 26.0, 9.0, 189.0, 0.0],
        "decode_window_tokens": [0.0, 16.0, 4.0, 24.0, 0.0],
        "prefill_sequences": [1, 0, 1, 0, 2],
        "prefill_tokens": [4, 0, 2, 0, 5],
        "prefill_context_tokens": [0, 0, 0, 0, 0],
        "prefill_pairs": [10.0, 0.0, 3.0, 0.0, 9.0],
        "prefill_window_pairs": [10.0, 0.0, 3.0, 0.0, 9.0],
        "encode_tokens": [0, 0, 0, 0, 0],
        "encode_pairs": [0.0, 0.0, 0.0, 0.0, 0.0],
        "output_tokens": [1.0, 4.0, 2.0, 6.0, 2.0],
        "kv_used_blocks": [2, 4, 6, 8, 10],
        "waiting_requests": [0, 2, 0, 0, 0],
    }
    return {name: np.array(values) for name, values in columns.items()}


def hand_made_activity() -> Activity:
    """Shares, energy and work that are given, not computed."""
    return Activity(
        stretches=stretches(),
        prefill_share=np.array([1.0, 0.0, 0.75, 0.0, 1.0]),
        energy_j=np.array([1000.0, 2000.0, 1200.0, 1600.0, 500.0]),
        flop=np.array([8e12, 4e12, 4e12, 8e12, 1e12]),
        memory_s=np.array([0.5, 2.0, 1.0, 2.0, 1.0]),
    )


def table(columns: Any, **values: list[Any]) -> Columns:
    """Columns of a table of the engine; those that are not given are of zeros."""
    count = len(next(iter(values.values()), []))
    empty = {name: np.zeros(count, kind) for name, kind in columns.items()}
    return empty | {name: np.array(given, columns[name]) for name, given in values.items()}


def no_rows(columns: Any) -> Columns:
    return table(columns)


def pool(role: str = "serve", *, replicas: int = 2, **tables: Any) -> Any:
    """What the metrics read of a pool: replicas of two chips of 1 TFLOP/s on a system of 8."""
    return SimpleNamespace(
        role=role,
        case=SimpleNamespace(name="by hand", system="box", systems=1, faults=None),
        system=SimpleNamespace(chips=8, host_power_w=SimpleNamespace(value=1000.0)),
        accelerator=SimpleNamespace(power=SimpleNamespace(idle_w=SimpleNamespace(value=100.0))),
        replicas=replicas,
        chips_per_replica=2,
        chips=2 * replicas,
        kv_blocks=10,
        peak_flop_per_s=1e12,
        awake_w=0.0,
        **tables,
    )


def service(*pools: Any, charge: str = "systems", alone: tuple[str, ...] = ()) -> Service:
    """A service of one pool of two replicas, or of the pools given, which share one system.

    Those whose roles are ``alone`` have systems of their own.
    """
    found = pools or (pool(),)
    case = SimpleNamespace(
        name="by hand",
        model="toy",
        sharing_roles=tuple(each.role for each in found if each.role not in alone),
        measure=SimpleNamespace(warmup_fraction=0.25),
        prices=SimpleNamespace(charge=charge),
        slo=SimpleNamespace(ttft_s=2.0, tpot_s=1.0),
    )
    return Service(case, found)  # type: ignore[arg-type]


def record(**tables: Columns) -> RunRecord:
    """Requests in the order in which they left: 1, 0, rejected 4, 2, 3."""
    requests = table(
        REQUEST_COLUMNS,
        request_id=[1, 0, 4, 2, 3],
        arrival_s=[1.0, 0.0, 9.0, 5.0, 8.0],
        admit_s=[3.0, 0.0, NAN, 6.0, 9.0],
        first_token_s=[4.0, 2.0, NAN, 8.0, 10.0],
        done_s=[7.0, 6.0, NAN, 8.0, 10.0],
        input_tokens=[1000, 400, 9999, 200, 500],
        cached_tokens=[600, 0, 0, 100, 0],
        output_tokens=[7, 5, 9, 1, 1],
        replica=[1, 0, -1, 0, 1],
        outcome=["completed", "completed", "rejected", "completed", "completed"],
    )
    nothing = {
        "states": no_rows(STATE_COLUMNS),
        "transfers": no_rows(TRANSFER_COLUMNS),
        "losses": no_rows(LOSS_COLUMNS),
    }
    return RunRecord(requests, stretches(), **(nothing | tables))


def requests() -> pd.DataFrame:
    return request_table(record().requests, frontend_s=0.0)


def inventory(
    edges: np.ndarray, of: Service | None = None, states: Columns | None = None
) -> Inventory:
    """What was done between edges, of the hand-made activity, all by one pool."""
    work, columns = hand_made_activity(), stretches()
    overlaps = Overlaps(columns["start_s"], columns["end_s"], edges)
    totals = Totals(*(overlaps.sum(values)[None, :] for values in work.totals()))
    there = availability(of or service(), states or no_rows(STATE_COLUMNS), edges)
    return Inventory(Tally(edges, totals), there)

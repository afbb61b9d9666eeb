"""Windows, timelines, accounts and summaries of a hand-made run of five stretches.

`hand_made_run` draws it.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hand_made_run import (
    NAN,
    hand_made_activity,
    inventory,
    pool,
    record,
    requests,
    service,
    stretches,
    table,
)
from hypothesis import given
from hypothesis import strategies as st

from sim.cost.table import Array, StepTable
from sim.cost.timer import ONE_CHIP
from sim.economics import Purchase, Rental, Terms, total_usd
from sim.engine.clients import OpenLoop
from sim.engine.clock import TICKS_PER_S, to_ticks
from sim.engine.cluster import Cluster, PoolPlan, RunRecord
from sim.engine.plan import ReplicaPlan
from sim.engine.records import (
    LOSS_COLUMNS,
    PREEMPTION_COLUMNS,
    STATE_COLUMNS,
    TRANSFER_COLUMNS,
)
from sim.engine.requests import Request
from sim.engine.rules import SchedulerRules
from sim.engine.ticks import ConstantPace
from sim.metrics.accounts import Accounts, accounts, inventories
from sim.metrics.activity import Overlaps, activity, blocks_of, instant_s, tally, waited_s
from sim.metrics.availability import availability
from sim.metrics.requests import Window, measured_window, request_table
from sim.metrics.summary import pool_rows, summary_row, tenant_rows
from sim.metrics.timeline import timeline, timeline_edges
from sim.routing_policy import Slo
from sim.service import Service

ROWS = 21
"""Of the tables: up to 20 tokens in a step."""

RENT = Rental(3.6, "a quote")  # 0.001 USD per chip and second


def test_requests_are_put_in_order_with_their_latencies() -> None:
    frame = requests()
    assert frame["request_id"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(frame["ttft_s"], [2.0, 3.0, 3.0, 2.0, NAN])
    np.testing.assert_array_equal(frame["e2e_s"], [6.0, 6.0, 3.0, 2.0, NAN])
    # (6 - 2) / 4 and (7 - 4) / 6; an answer of one token has no time between tokens
    np.testing.assert_array_equal(frame["tpot_s"], [1.0, 0.5, NAN, NAN, NAN])


def test_clients_see_tokens_later_than_they_leave_the_engine() -> None:
    frame = request_table(record().requests, frontend_s=0.5)
    np.testing.assert_array_equal(frame["ttft_s"], [2.5, 3.5, 3.5, 2.5, NAN])
    np.testing.assert_array_equal(frame["e2e_s"], [6.5, 6.5, 3.5, 2.5, NAN])
    np.testing.assert_array_equal(frame["tpot_s"], requests()["tpot_s"])


def test_the_window_goes_from_the_warm_up_to_the_last_arrival() -> None:
    # a quarter of five arrivals is one whole one: the second is the first that counts
    window = measured_window(requests(), warmup_fraction=0.25)
    assert (window.start_s, window.end_s, window.duration_s) == (1.0, 9.0, 8.0)
    assert window.edges.tolist() == [1.0, 9.0]
    assert measured_window(requests(), warmup_fraction=0.0) == Window(0.0, 9.0)


def test_the_window_does_not_depend_on_the_order_of_the_requests() -> None:
    """Those of sessions are numbered session by session."""
    shuffled = requests().iloc[[3, 0, 4, 1, 2]]
    assert measured_window(shuffled, warmup_fraction=0.25) == Window(1.0, 9.0)


def test_a_burst_counts_as_a_whole() -> None:
    frame = requests().iloc[:4].assign(arrival_s=0.5)
    assert measured_window(frame, warmup_fraction=0.1) == Window(0.5, 10.0)


def test_a_run_in_which_nothing_completes_has_a_window_of_some_length() -> None:
    """Rates and costs divide by it; a second after the last arrival is as good as any."""
    assert measured_window(requests().iloc[:0], warmup_fraction=0.1) == Window(0.0, 1.0)
    frame = pd.DataFrame({"arrival_s": [0.0, 3.0], "done_s": [np.nan, np.nan]})
    assert measured_window(frame, warmup_fraction=0.1) == Window(0.0, 4.0)


def test_where_the_time_of_a_request_goes() -> None:
    """Engine times: they add up to the whole less the time outside of the engine."""
    frame = request_table(record().requests, frontend_s=0.5)
    np.testing.assert_array_equal(frame["queue_s"], [0.0, 2.0, 1.0, 1.0, NAN])
    np.testing.assert_array_equal(frame["prefill_s"], [2.0, 1.0, 2.0, 1.0, NAN])
    np.testing.assert_array_equal(frame["decode_s"], [4.0, 3.0, 0.0, 0.0, NAN])
    spent = frame["queue_s"] + frame["prefill_s"] + frame["decode_s"]
    np.testing.assert_allclose(spent, frame["e2e_s"] - 0.5)


def test_tenants_are_named() -> None:
    columns = record().requests | {"tenant": np.array([1, 0, 1, 0, 0], "i2")}
    frame = request_table(columns, 0.0, tenants=("search", "chat"))
    assert frame["tenant"].tolist() == ["search", "chat", "search", "search", "chat"]


def test_what_stretches_add_up_to() -> None:
    totals = hand_made_activity().totals()
    assert totals.busy_s.tolist() == [2.0, 4.0, 2.0, 4.0, 1.0]
    assert totals.prefill_s.tolist() == [2.0, 0.0, 1.5, 0.0, 1.0]
    assert totals.output_tokens.tolist() == [1.0, 4.0, 2.0, 6.0, 2.0]
    assert totals.running_s.tolist() == [2.0, 4.0, 4.0, 12.0, 2.0]
    assert totals.kv_block_s.tolist() == [4.0, 16.0, 12.0, 32.0, 10.0]
    assert totals.waiting_s.tolist() == [0.0, 8.0, 0.0, 0.0, 0.0]


def per_bin(values: list[float], edges: list[float]) -> list[float]:
    columns = stretches()
    overlaps = Overlaps(columns["start_s"], columns["end_s"], np.array(edges))
    return overlaps.sum(np.array(values)).tolist()  # type: ignore[no-any-return]


TOKENS = [1.0, 4.0, 2.0, 6.0, 2.0]


def test_quantities_are_spread_evenly_over_their_stretches() -> None:
    # from 1 to 9: half of a, all of b, c and d, nothing of e
    assert per_bin(TOKENS, [1.0, 9.0]) == [12.5]
    # between 2.5 and 3.5: a quarter of b's 4 s, an eighth of d's
    assert per_bin(TOKENS, [2.5, 3.5]) == [4.0 / 4 + 6.0 / 8]
    assert per_bin(TOKENS, [-5.0, 20.0]) == [15.0]
    assert per_bin(TOKENS, [10.0, 20.0, 30.0]) == [0.0, 0.0]


def test_what_takes_no_time_lies_in_one_bin() -> None:
    at = np.array([2.0])
    overlaps = Overlaps(at, at, np.array([0.0, 1.0, 3.0]))
    assert overlaps.sum(np.array([7.0])).tolist() == [0.0, 7.0]


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 120])
def test_bins_add_up(bins: int) -> None:
    edges = np.linspace(0.0, 10.0, bins + 1)
    found = inventory(edges).tally.service
    for values, wanted in zip(found, hand_made_activity().totals(), strict=True):
        assert values.sum() == pytest.approx(wanted.sum(), rel=1e-12)


def hand_made_timeline(bins: int) -> pd.DataFrame:
    edges = np.linspace(0.0, 10.0, bins + 1)
    return timeline(service(), requests(), record(), inventory(edges))


def test_a_timeline_in_bins_of_two_seconds() -> None:
    table = hand_made_timeline(bins=5)
    np.testing.assert_array_equal(
        timeline_edges(requests(), record(), 5), np.linspace(0.0, 10.0, 6)
    )
    assert table["start_s"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert table["end_s"].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    # arrivals at 0 and 1, none, 5, none, 8 and 9
    assert table["offered_requests_per_s"].tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]
    # a 1 | b 2, d 1.5 | b 2, d 3 | c 2, d 1.5 | e 2, over two seconds
    rates = [0.5, 1.75, 2.5, 1.75, 1.0]
    assert table["output_tokens_per_s"].tolist() == pytest.approx(rates)
    # a 1 x 2 s | b 1 x 2, d 3 x 1 | b 1 x 2, d 3 x 2 | c 2 x 2, d 3 x 1 | e 2 x 1
    running = [1.0, 2.5, 4.0, 3.5, 1.0]
    assert table["running_requests"].tolist() == pytest.approx(running)
    # busy seconds 2 | 3 | 4 | 3 | 1 of four each
    busy = [0.5, 0.75, 1.0, 0.75, 0.25]
    assert table["utilization_fraction"].tolist() == pytest.approx(busy)
    # used share of ten blocks times seconds: .2 x 2 | .4 x 2, .8 x 1 | .4 x 2, .8 x 2
    # | .6 x 2, .8 x 1 | 1 x 1, of four replica-seconds
    used = [0.1, 0.4, 0.6, 0.5, 0.25]
    assert table["kv_used_fraction"].tolist() == pytest.approx(used)
    # joules of busy replicas: a 1000 | b 1000, d 400 | b 1000, d 800 | c 1200, d 400 | e 500;
    # idle replicas 200 W for 2, 1, 0, 1, 3 s; four idle chips 400 W; the host 1000 W
    power = [
        (1000 + 400) / 2 + 1400,
        (1400 + 200) / 2 + 1400,
        1800 / 2 + 1400,
        (1600 + 200) / 2 + 1400,
        (500 + 600) / 2 + 1400,
    ]
    assert table["power_w"].tolist() == pytest.approx(power)


def test_a_timeline_shows_what_replicas_were_and_when_sequences_lost_their_place() -> None:
    """Replica 0 boots until 1 s; replica 1 is off from 3 to 5 s and down to the end of 7 s."""
    states = table(
        STATE_COLUMNS,
        replica=[0, 1, 1],
        state=["booting", "off", "down"],
        start_s=[0.0, 3.0, 5.0],
        end_s=[1.0, 5.0, 7.0],
    )
    lost = table(PREEMPTION_COLUMNS, request_id=[0, 0, 1], start_s=[1.0, 5.0, 5.5])
    found = inventory(np.linspace(0.0, 10.0, 6), states=states)
    rows = timeline(service(), requests(), record(preemptions=lost), found)
    assert rows["replicas_up"].tolist() == pytest.approx([1.5, 1.5, 1.0, 1.5, 2.0])
    assert rows["replicas_booting"].tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0, 0.0])
    assert rows["replicas_down"].tolist() == pytest.approx([0.0, 0.0, 0.5, 0.5, 0.0])
    assert rows["preemptions"].tolist() == [1, 0, 2, 0, 0]


def test_the_timeline_adds_up_to_the_run() -> None:
    table = hand_made_timeline(bins=77)
    width = 10.0 / 77
    totals = {name: float(table[name].sum() * width) for name in table.columns[2:]}
    assert totals["offered_requests_per_s"] == pytest.approx(5)
    assert totals["output_tokens_per_s"] == pytest.approx(15)
    assert totals["running_requests"] == pytest.approx(2 + 4 + 4 + 12 + 2)
    assert totals["utilization_fraction"] == pytest.approx(13 / 2)
    # all chips, 6300 J busy; seven idle replica-seconds; four chips and the host throughout
    assert totals["power_w"] == pytest.approx(6300 + 7 * 200 + 10 * (400 + 1000))


def served_one_at_a_time() -> RunRecord:
    """Two requests for one place: steps of 1 s, the second comes at 8 s and waits till 10 s.

    Each has a prompt of 20 tokens and an answer of 10, which end up as 29 cached tokens.
    """
    plan = ReplicaPlan(
        rules=SchedulerRules(max_num_seqs=1, max_num_batched_tokens=64),
        kv_blocks=10,
        block_tokens=16,
        pace=ConstantPace.of_seconds(1.0),
        max_model_len=160,
    )
    rows = [Request(0, 0, 20, 10), Request(1, to_ticks(8.0), 20, 10)]
    return Cluster([PoolPlan("serve", 1, plan)]).run(OpenLoop(rows))


def timeline_of(record: RunRecord, bins: int) -> pd.DataFrame:
    nothing = table_of()
    bare = service(pool(replicas=1, **priced(nothing, nothing, nothing, nothing)))
    frame = request_table(record.requests, frontend_s=0.0)
    (found,) = inventories(bare, record, timeline_edges(frame, record, bins))
    return timeline(bare, frame, record, found)


def test_waiting_requests_are_those_between_arrival_and_admission() -> None:
    table = timeline_of(served_one_at_a_time(), bins=10)
    # from 8 to 10 s one waits: the fifth bin of two seconds, and no other
    assert table["waiting_requests"].tolist() == pytest.approx([0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    assert table["running_requests"].tolist() == pytest.approx([1.0] * 10)


def test_kv_blocks_are_in_use_until_their_request_is_done() -> None:
    table = timeline_of(served_one_at_a_time(), bins=2)
    # two blocks of ten from the first step to the last: 20 to 29 tokens of 32
    assert table["kv_used_fraction"].tolist() == pytest.approx([0.2, 0.2])


def window_of(frame: pd.DataFrame) -> Window:
    return measured_window(frame, service().case.measure.warmup_fraction)


def books(
    of: Service | None = None,
    frame: pd.DataFrame | None = None,
    terms: Terms | None = None,
    run: RunRecord | None = None,
) -> Accounts:
    """Accounts of the hand-made run, from 1 to 9 s."""
    what, rows = of or service(), requests() if frame is None else frame
    window, ran = window_of(rows), run or record()
    found = inventory(window.edges, what, ran.states)
    return accounts(what, window, rows, ran, found, [terms or RENT] * len(what.fleets))


def test_accounts_of_whole_systems() -> None:
    found = books()
    assert found.window == Window(1.0, 9.0)
    # in the window a is busy for 1 s, b 4, c 2, d 4, e 0: 11 of 2 x 8 s
    assert found.utilization_fraction == pytest.approx(11 / 16)
    # half of a's 8 TFLOP, all of b, c and d: 20 TFLOP, 20 s of one chip of 2 x 8 x 2
    assert found.mfu_fraction == pytest.approx(20 / 32)
    assert found.mbu_fraction == pytest.approx((0.25 + 2.0 + 1.0 + 2.0) / 16)
    # busy 500 + 2000 + 1200 + 1600 J; two chips of 100 W for 5 idle s; four for 8 s; the host
    assert found.power_w == pytest.approx((5300 + 1000 + 3200) / 8 + 1000)
    assert found.output_tokens == pytest.approx(12.5)
    # first tokens at 2, 4 and 8 s; that of 10 s is too late
    assert found.input_tokens == 400 + 1000 + 200
    (line,) = found.bill
    assert (line.usd, line.usd_per_hour) == pytest.approx((8 * 8 * 0.001, 28.8))


def test_accounts_of_the_chips_in_use() -> None:
    found = books(service(charge="chips"))
    # half of the system is charged: no idle neighbours, half of the host
    assert found.power_w == pytest.approx((5300 + 1000) / 8 + 500)
    assert found.bill[0].usd_per_hour == pytest.approx(14.4)


def test_money_is_dealt_out_by_the_time_of_prompts_and_answers() -> None:
    found = books()
    # a prompt for 1 s, three quarters of c's 2 s: 2.5 of 11 busy seconds
    paid = 0.064
    cost = found.token_cost
    assert cost.input_usd == pytest.approx(paid * 2.5 / 11)
    assert cost.output_usd == pytest.approx(paid * 8.5 / 11)
    assert cost.usd_per_mtok_input == pytest.approx(paid * 2.5 / 11 / 0.0016)
    assert cost.usd_per_mtok_output == pytest.approx(paid * 8.5 / 11 / 0.0000125)
    assert cost.usd_per_mtok_total == pytest.approx(paid / 0.0016125)


def test_an_owner_pays_for_the_power_drawn() -> None:
    terms = Purchase(
        usd_per_system=0.0,
        chips_per_system=8,
        provisioned_w=0.0,
        depreciation_years=1.0,
        residual_fraction=0.0,
        cost_of_capital_fraction=0.0,
        network_fraction=0.0,
        operations_fraction=0.0,
        pue=1.25,
        electricity_usd_per_kwh=0.36,
        colocation_usd_per_kw_month=0.0,
        sources={},
    )
    found = books(terms=terms)
    usd = {line.line: line.usd for line in found.bill}
    # 2187.5 W for 8 s are 17,500 J, 21,875 J at the meter; 0.36 USD per 3.6 MJ
    assert usd["power"] == pytest.approx(21_875 * 1e-7)
    assert sum(usd.values()) == usd["power"]


def test_a_summary() -> None:
    found = books()
    row = summary_row(service(), requests(), found)
    assert {name: row[name] for name in ("case", "system", "model", "chips", "replicas")} == {
        "case": "by hand",
        "system": "box",
        "model": "toy",
        "chips": 4,
        "replicas": 2,
    }
    assert (row["completed_requests"], row["failed_requests"]) == (4, 1)
    assert row["duration_s"] == 8.0
    assert row["output_tokens_per_s"] == pytest.approx(12.5 / 8)
    assert row["output_tokens_per_s_per_chip"] == pytest.approx(12.5 / 8 / 4)
    assert row["total_tokens_per_s_per_chip"] == pytest.approx(1612.5 / 8 / 4)
    # requests 1, 2 and 3 arrive in the window and complete: 3, 3 and 2 s to the first token
    assert row["ttft_s_mean"] == pytest.approx(8 / 3)
    assert row["ttft_s_p50"] == 3.0
    assert row["ttft_s_p95"] == 3.0
    assert row["tpot_s_mean"] == row["tpot_s_p50"] == row["tpot_s_p99"] == 0.5
    assert row["interactivity_tokens_per_s"] == 2.0
    # end to end 2, 3 and 6 s: the 99th percentile is 98 % of the way from 3 to 6
    assert (row["e2e_s_p50"], row["e2e_s_p99"]) == pytest.approx((3.0, 3.0 + 0.98 * 3.0))
    # a first token in 2 s: request 3 alone, of four that arrive in the window, one rejected
    assert row["slo_attainment_fraction"] == pytest.approx(1 / 4)
    assert row["goodput_requests_per_s"] == pytest.approx(1 / 8)
    assert row["power_w_mean"] == pytest.approx(2187.5)
    assert row["energy_j_per_output_token"] == pytest.approx(17_500 / 12.5)
    assert row["usd_per_hour"] == pytest.approx(28.8)


def test_a_summary_says_how_long_requests_were_with_encoders_and_between_pools() -> None:
    """Requests 1, 2 and 3 are counted: 0 is before the window, and 4 was rejected."""
    frame = requests()
    frame["encode_s"] = frame["request_id"].map({0: 9.0, 1: 0.0, 2: 1.5, 3: 0.6, 4: 9.0})
    frame["handover_wait_s"] = frame["request_id"].map({0: 9.0, 1: 0.2, 2: 0.2, 3: 0.2, 4: 9.0})
    row = summary_row(service(), frame, books())
    # the 95th percentile is 90 % of the way from 0.6 to 1.5 s
    found = [row[f"encode_s_{name}"] for name in ("mean", "p50", "p95")]
    assert found == pytest.approx([0.7, 0.6, 0.6 + 0.9 * 0.9])
    found = [row[f"handover_wait_s_{name}"] for name in ("mean", "p50", "p95")]
    assert found == pytest.approx([0.2, 0.2, 0.2])


def test_both_targets_have_to_be_met() -> None:
    found = books()
    tight = service()
    tight.case.slo = SimpleNamespace(ttft_s=3.0, tpot_s=0.4)  # type: ignore[misc, assignment]
    # all three are in time; request 1 takes 0.5 s a token, the others have one token only
    assert summary_row(tight, requests(), found)["goodput_requests_per_s"] == pytest.approx(2 / 8)


def test_a_window_in_which_nothing_completes() -> None:
    """All that arrives in it is rejected: no latencies, no goodput, and no made-up zeros."""
    frame = requests()
    late = frame["request_id"] > 0
    frame.loc[late, "outcome"] = "rejected"
    frame.loc[late, ["admit_s", "first_token_s", "done_s", "ttft_s", "tpot_s", "e2e_s"]] = NAN
    row = summary_row(service(), frame, books(frame=frame))
    for name in ("ttft_s_mean", "ttft_s_p99", "tpot_s_p50", "interactivity_tokens_per_s"):
        assert np.isnan(row[name])
    assert row["slo_attainment_fraction"] == 0.0


def table_of(**terms: Any) -> StepTable:
    arrays = [name for name, kind in StepTable.__annotations__.items() if kind is Array]
    zeros = {name: np.zeros(ROWS) for name in arrays}
    slopes = {"per_pair": 0.0, "per_window_pair": 0.0}
    return StepTable(**{**zeros, **slopes, "shares": ONE_CHIP, **terms})


COUNTS = np.arange(float(ROWS))


def priced(
    seconds: StepTable, joules: StepTable, flop: StepTable, memory: StepTable
) -> dict[str, StepTable]:
    return {"seconds": seconds, "joules": joules, "flop": flop, "memory_seconds": memory}


def tables_by_hand() -> dict[str, StepTable]:
    return priced(
        seconds=table_of(by_tokens=1.0 * (COUNTS > 0), per_pair=0.5),
        joules=table_of(by_tokens=10.0 * COUNTS, by_sequences=COUNTS, per_window_pair=2.0),
        flop=table_of(by_decode=100.0 * COUNTS, per_context=np.full(ROWS, 3.0)),
        memory=table_of(by_prefill=COUNTS, per_window_context=np.full(ROWS, 0.25)),
    )


def test_stretches_are_priced_by_the_tables_of_the_pool() -> None:
    work = activity(pool(**tables_by_hand()), stretches())
    # per step 10 J a token and 1 J a sequence, 2 J per windowed pair; two chips; in order:
    # (40 + 1 + 20), 4 x (10 + 1), (30 + 2 + 6), 2 x (30 + 3), (50 + 2 + 18)
    assert work.energy_j.tolist() == [122.0, 88.0, 76.0, 132.0, 140.0]
    # 100 a step and decoding sequence, 3 a key, keys summed over the steps
    assert work.flop.tolist() == [0.0, 2 * (400 + 78), 2 * (100 + 27), 2 * (600 + 567), 0.0]
    # a prompt token 1, a windowed key 1/4: of one chip
    assert work.memory_s.tolist() == [4.0, 4.0, 2.0 + 1.0, 6.0, 5.0]


def test_a_mixed_step_is_shared_as_its_parts_would_take_alone() -> None:
    # c: the prompt alone 1 + 3 x 0.5 s, the decoding alone 1 s
    work = activity(pool(**tables_by_hand()), stretches())
    assert work.prefill_share.tolist() == [1.0, 0.0, 2.5 / 3.5, 0.0, 1.0]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_blocks_of_stretches_add_up_to_the_run(rows: int) -> None:
    what = service(pool(**tables_by_hand()))
    edges = np.array([0.0, 4.0, 10.0])
    at_once, in_blocks = (
        tally(what, blocks, edges)[0].service
        for blocks in ([stretches()], blocks_of(stretches(), rows))
    )
    # a, half of b and a quarter of d; the rest
    assert at_once.energy_j.tolist() == [122 + 44 + 33, 44 + 76 + 99 + 140]
    for one, other in zip(at_once, in_blocks, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-15)


def test_stretches_belong_to_the_pool_of_their_replica() -> None:
    """Replica 0 makes the first pool, replica 1 the second, whose steps cost nothing."""
    free = priced(*(table_of() for _ in range(4)))
    pools = pool("prefill", replicas=1, **tables_by_hand()), pool("decode", replicas=1, **free)
    (found,) = tally(service(*pools), [stretches()], np.array([0.0, 10.0]))
    assert found.pools.busy_s.tolist() == [[8.0], [5.0]]
    assert found.pools.energy_j.tolist() == [[122.0 + 88.0 + 76.0], [0.0]]
    assert found.service.output_tokens.tolist() == [15.0]


def test_a_closed_loop_leaves_out_two_requests_of_each_client() -> None:
    """Three clients send at once; then one request a second, so number 6 comes at 4 s."""
    arrivals = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, *np.arange(4.0, 20.0)]
    frame = pd.DataFrame({"arrival_s": arrivals, "done_s": np.array(arrivals) + 3.0})
    assert measured_window(frame, 0.1, clients=3) == Window(4.0, 19.0)
    assert measured_window(frame, 0.5, clients=3) == Window(9.0, 19.0)  # the longer warm-up
    # 22 requests of 6 clients are too few to leave 12 out
    assert measured_window(frame, 0.1, clients=6) == Window(0.0, 19.0)


def test_replicas_are_up_unless_something_else_is_said() -> None:
    states = table(
        STATE_COLUMNS,
        replica=[1, 1, 1, 2, 2],
        state=["off", "booting", "up", "down", "draining"],
        start_s=[0.0, 4.0, 6.0, 1.0, 3.0],
        end_s=[4.0, 6.0, 10.0, 3.0, 10.0],
    )
    what = service(pool("prefill"), pool("decode"))
    found = availability(what, states, np.array([0.0, 5.0, 10.0]))
    assert found.installed_s.tolist() == [[10.0, 10.0], [10.0, 10.0]]
    # replica 1 is off for 4 s; replica 2, of the second pool, is paid for while it is down
    assert found.paid_s.tolist() == [[6.0, 10.0], [10.0, 10.0]]
    assert found.up_s.tolist() == [[5.0, 9.0], [8.0, 10.0]]
    assert found.booting_s.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert found.down_s.tolist() == [[0.0, 0.0], [2.0, 0.0]]


def off_for_four_seconds() -> RunRecord:
    """Replica 1 is off from 3 to 7 s, whatever its stretch says."""
    off = table(STATE_COLUMNS, replica=[1], state=["off"], start_s=[3.0], end_s=[7.0])
    return record(states=off)


def test_chips_that_are_switched_off_are_not_paid_for() -> None:
    found = books(service(charge="chips"), run=off_for_four_seconds())
    # of 16 replica-seconds 12 are paid for: 2 chips x 12 s at 0.001 USD
    assert found.bill[0].usd == pytest.approx(0.024)
    # busy 5300 J, one idle second of two chips, and the host for 24 of 64 chip-seconds
    assert found.power_w == pytest.approx((5300 + 200) / 8 + 1000 * 24 / 64)
    assert found.utilization_fraction == pytest.approx(11 / 12)


def test_whole_systems_are_paid_for_whether_or_not_replicas_are_off() -> None:
    found = books(run=off_for_four_seconds())
    assert found.bill == books().bill
    assert found.power_w == books().power_w


def two_pools(**choices: Any) -> Service:
    return service(pool("prefill", replicas=1), pool("decode", replicas=1), **choices)


def books_of_pools(what: Service, terms: list[Terms]) -> Accounts:
    """Replica 0 as the first pool and replica 1 as the second, whose tables all cost nothing."""
    free = priced(*(table_of() for _ in range(4)))
    for each in what.pools:
        vars(each).update(free)
    window = window_of(requests())
    (found,) = inventories(what, record(), window.edges)
    return accounts(what, window, requests(), record(), found, terms)


def test_pools_on_one_system_share_its_bill_by_their_chips() -> None:
    found = books_of_pools(two_pools(), [RENT])
    first, second = found.pools
    assert (first.role, second.role) == ("prefill", "decode")
    assert first.usd == second.usd == pytest.approx(0.064 / 2)
    # a 1 s, b 4, c 2 of eight; d 4 of eight
    assert first.utilization_fraction == pytest.approx(7 / 8)
    assert second.utilization_fraction == pytest.approx(4 / 8)
    # 2 and 4 and 6 blocks of ten for 1, 4 and 2 s of eight; 8 for 4
    assert first.kv_used_fraction == pytest.approx((2 + 16 + 12) / 80)
    assert second.kv_used_fraction == pytest.approx(32 / 80)
    assert first.waiting_requests == pytest.approx(8 / 8)
    assert (first.chip_power_w, second.chip_power_w) == pytest.approx((200 / 8, 4 * 200 / 8))


def test_pools_on_systems_of_their_own_have_bills_of_their_own() -> None:
    dear = Rental(7.2, "a dearer quote")
    found = books_of_pools(two_pools(alone=("prefill", "decode")), [RENT, dear])
    assert [each.usd for each in found.pools] == pytest.approx([0.064, 0.128])
    (line,) = found.bill
    assert (line.usd, line.source) == (pytest.approx(0.192), "a quote; a dearer quote")
    # prompts pay for their pool by its time on them (tables that cost nothing: none)
    assert found.token_cost.input_usd + found.token_cost.output_usd == line.usd
    assert found.power_w == pytest.approx((200 + 800 + 12 * 100 * 8) / 8 + 2000)


def test_rows_of_pools_say_what_each_consists_of() -> None:
    what = two_pools()
    first, second = pool_rows(what, books_of_pools(what, [RENT]))
    assert (first["pool"], first["chips"], first["replicas"]) == ("prefill", 2, 1)
    assert (second["pool"], second["replicas_mean"]) == ("decode", 1.0)
    assert second["usd_per_hour"] == pytest.approx(14.4)


def test_the_timeline_of_several_pools_has_columns_of_each() -> None:
    what = two_pools()
    for each in what.pools:
        vars(each).update(priced(*(table_of() for _ in range(4))))
    (found,) = inventories(what, record(), np.linspace(0.0, 10.0, 6))
    rows = timeline(what, requests(), record(), found)
    # b has two waiting from 2 to 6 s
    assert rows["prefill_waiting_requests"].tolist() == pytest.approx([0, 2, 2, 0, 0])
    assert rows["decode_waiting_requests"].tolist() == [0.0] * 5
    assert rows["decode_utilization_fraction"].tolist() == pytest.approx([0, 0.5, 1, 0.5, 0.5])
    assert rows["replicas_up"].tolist() == [2.0] * 5


def test_a_summary_says_what_was_cached_and_moved() -> None:
    moved = table(
        TRANSFER_COLUMNS,
        kind=["handover", "swap", "handover", "handover"],
        start_s=[2.0, 3.0, 0.0, 8.0],
        end_s=[3.0, 4.0, 0.5, 9.5],
        bytes=[100.0, 7.0, 30.0, 50.0],
    )
    found = books(run=record(transfers=moved))
    row = summary_row(service(), requests(), found)
    # first tokens in the window: requests 0, 1 and 2, with 0, 600 and 100 of 1600 tokens cached
    assert row["cached_input_fraction"] == pytest.approx(700 / 1600)
    # between the pools, and there before 9 s and after 1 s
    assert row["kv_transfer_bytes"] == 100.0
    assert (row["rejected_requests"], row["timed_out_requests"], row["preemptions"]) == (1, 0, 0)


def losing(tokens: int, time_s: float = 9.0) -> RunRecord:
    lost = table(LOSS_COLUMNS, time_s=[time_s], cause=["failure"], generated_tokens=[tokens])
    return record(losses=lost)


def books_in(window: Window, run: RunRecord, produced: float | None = None) -> Accounts:
    """Accounts of the hand-made run in any window; ``produced``: tokens, if not as it says."""
    found = inventory(window.edges)
    if produced is not None:
        did = found.tally.pools._replace(output_tokens=np.array([[produced]]))
        found = replace(found, tally=replace(found.tally, pools=did))
    return accounts(service(), window, requests(), run, found, [RENT])


def test_of_what_is_produced_the_part_that_is_not_thrown_away_is_delivered() -> None:
    """15 tokens come out, the answers have 7 + 5 + 1 + 1: one is of no use."""
    whole = Window(-1.0, 11.0)
    assert books_in(whole, record()).output_tokens == 15
    assert books_in(whole, losing(1)).output_tokens == 15 - 1


@given(st.integers(1, 10**6))
def test_failures_do_not_make_tokens_cheaper(tokens: int) -> None:
    """The same answers in the same time for the same money cost the same."""
    whole = Window(-1.0, 11.0)
    clean = books_in(whole, record(), produced=14.0)
    failing = books_in(whole, losing(tokens), produced=14.0 + tokens)
    assert failing.bill == clean.bill
    assert failing.token_cost == clean.token_cost
    rows = [summary_row(service(), requests(), found) for found in (clean, failing)]
    for name in ("output_tokens_per_s", "total_tokens_per_s_per_chip", "energy_j_per_output_token"):
        assert rows[0][name] == rows[1][name]


def test_answers_at_the_edges_of_the_window_are_spread_over_their_time() -> None:
    # from 5 to 9 s: 1 of 4 s of request 0's five, 2 of 3 s of request 1's seven, request 2's one
    found = books_in(Window(5.0, 9.0), losing(1, time_s=20.0))
    assert found.output_tokens == pytest.approx(5 / 4 + 14 / 3 + 1)
    # of the first tokens that of request 2 alone
    assert found.input_tokens == 200


def test_tokens_that_nobody_gets_have_no_price() -> None:
    frame = requests().assign(outcome="timed_out")
    frame.loc[frame["request_id"] == 0, "done_s"] = 6.0  # the window goes on to the last arrival
    window = window_of(frame)
    found = accounts(service(), window, frame, losing(3), inventory(window.edges), [RENT])
    assert (found.output_tokens, found.input_tokens) == (0.0, 0.0)
    row = summary_row(service(), frame, found)
    assert row["output_tokens_per_s"] == 0.0
    for name in ("energy_j_per_output_token", "usd_per_mtok_input", "usd_per_mtok_output"):
        assert np.isnan(row[name])
    assert np.isnan(row["usd_per_mtok_total"])
    # what was found in caches is counted all the same: 700 of 1600 tokens
    assert row["cached_input_fraction"] == pytest.approx(700 / 1600)
    assert row["usd_per_hour"] == pytest.approx(28.8)


def test_throughput_per_chip_is_that_of_chips_that_are_on() -> None:
    found = books(run=off_for_four_seconds())
    # one of two replicas of two chips is off for 4 of 8 s
    assert found.chips_paid == pytest.approx(2 + 2 / 2)
    row = summary_row(service(), requests(), found)
    assert row["chips"] == 4
    assert row["output_tokens_per_s_per_chip"] == pytest.approx(12.5 / 8 / 3)
    assert row["total_tokens_per_s_per_chip"] == pytest.approx(1612.5 / 8 / 3)
    assert books().chips_paid == 4


def test_a_timeline_goes_on_to_the_last_event() -> None:
    """Whether the last to happen is an answer, an arrival, a step, a transfer or a loss."""
    frame = requests().assign(done_s=NAN)
    assert timeline_edges(frame, record(), 1).tolist() == [0.0, 10.0]  # e ends
    answered = frame.assign(done_s=[11.0, NAN, NAN, NAN, NAN])  # the client sees it later
    assert timeline_edges(answered, record(), 1).tolist() == [0.0, 11.0]
    late = frame.assign(arrival_s=frame["arrival_s"] + 4.0)
    assert timeline_edges(late, record(), 1).tolist() == [0.0, 13.0]
    assert timeline_edges(frame, losing(1, time_s=12.0), 1).tolist() == [0.0, 12.0]
    moved = table(TRANSFER_COLUMNS, start_s=[0.0], end_s=[14.0])
    assert timeline_edges(frame, record(transfers=moved), 1).tolist() == [0.0, 14.0]


def test_lost_work_costs_its_share_of_all_work() -> None:
    lost = table(
        LOSS_COLUMNS,
        time_s=[5.0, 6.0, 9.5],
        cause=["failure", "timed_out", "failure"],
        prefilled_tokens=[2, 1, 999],
        generated_tokens=[5, 0, 999],
    )
    found, cost = books(run=record(losses=lost)), books().token_cost
    # in the window prefill computed half of a's 4 tokens and c's 2; of 12.5 tokens out 5 were
    # thrown away; what was lost at 9.5 s is not in the window
    wanted = cost.input_usd * 3 / 4 + cost.output_usd * 5 / 12.5
    assert found.lost.usd == pytest.approx(wanted)
    assert (found.lost.input_tokens, found.lost.output_tokens) == (1002, 1004)
    assert found.lost.tokens_by_cause == {"failure": 2005, "timed_out": 1}
    row = summary_row(service(), requests(), found)
    assert (row["failure_lost_tokens"], row["timed_out_lost_tokens"]) == (2005, 1)
    assert (row["shed_lost_tokens"], row["other_lost_tokens"]) == (0, 0)
    assert row["lost_work_fraction"] == pytest.approx(wanted / total_usd(found.bill))
    assert books().lost.usd == 0.0


def test_what_is_computed_again_is_paid_for_twice() -> None:
    run = record()
    # of the requests that completed, 1 is done at 7 s, 3 at 10 s, after the window; 4 never
    run.requests["recomputed_tokens"][:] = [3, 0, 7, 0, 5]
    frame = request_table(run.requests, frontend_s=0.0)
    assert frame["recomputed_tokens"].tolist() == [0, 3, 0, 5, 0]
    found = books(frame=frame)
    assert found.lost.usd == pytest.approx(found.token_cost.input_usd * 3 / 4)
    assert summary_row(service(), frame, found)["recomputed_tokens"] == 8


@given(
    st.lists(st.integers(1, 10**13), min_size=2, max_size=60),
    st.integers(1, 5),
    st.integers(0, 59),
)
def test_replicas_that_never_rest_are_busy_all_the_time(
    steps: list[int], replicas: int, first: int
) -> None:
    """Sums of seconds, of steps that follow each other, come out above the time they took."""
    ends = np.cumsum([0, *steps]) / TICKS_PER_S
    what = service(pool(replicas=replicas))
    edges = np.array([ends[first % (ends.size - 1)], ends[-1]])
    unit_s = instant_s(what, edges)
    busy = sum(int(Overlaps(ends[:-1], ends[1:], edges).spent(unit_s)[0]) for _ in range(replicas))
    there = availability(what, table(STATE_COLUMNS), edges)
    assert busy * unit_s == there.paid_s[0, 0] == there.installed_s[0, 0]
    assert there.paid_s[0, 0] == pytest.approx(replicas * (edges[1] - edges[0]), rel=1e-14, abs=0)


def test_encoders_write_no_answers() -> None:
    what = service(pool("encode", replicas=1), pool("serve", replicas=1))
    for each in what.pools:
        vars(each).update(priced(*(table_of() for _ in range(4))))
    (found,) = inventories(what, record(), np.array([0.0, 10.0]))
    # replica 1 decodes three for two steps and computes prompts of five tokens that yield two
    assert found.tally.service.output_tokens.tolist() == [8.0]
    assert found.tally.service.prefill_tokens.tolist() == [5.0]


def test_tenants_share_the_cost_by_their_tokens() -> None:
    columns = record().requests | {"tenant": np.array([1, 0, 1, 0, 0], "i2")}
    frame = request_table(columns, 0.0, tenants=("search", "chat"))
    found = books(frame=frame)
    slo = Slo(ttft_s=2.0, tpot_s=1.0)
    search, chat = tenant_rows(frame, found, [slo, slo])
    # in the window: prompt tokens computed 400 + 100 and 400, answers 5 of request 0 (from 2 to
    # 6 s), 1 of request 2, and 7 of request 1; request 3 has its first token at 10 s
    cost = found.token_cost
    usd = cost.input_usd * 500 / 900 + cost.output_usd * 6 / 13
    assert search["usd_per_hour"] == pytest.approx(usd * 3600 / 8)
    assert search["share_fraction"] + chat["share_fraction"] == pytest.approx(1.0)  # type: ignore[operator]
    # requests 2 and 3, and 1 and 4, arrive in the window
    assert (search["requests"], search["completed_requests"]) == (2, 2)
    assert (chat["requests"], chat["rejected_requests"]) == (2, 1)
    assert search["goodput_requests_per_s"] == pytest.approx(1 / 8)
    assert chat["ttft_s_p50"] == 3.0


def test_time_that_no_table_knows_is_waited() -> None:
    """A second in ten is waited for; nothing where a table is right up to rounding, or too long."""
    busy_s, tabled_s = np.array([10.0, 10.0, 10.0, 0.0]), np.array([9.0, 10.0 - 1e-7, 11.0, 0.0])
    assert waited_s(busy_s, tabled_s).tolist() == [1.0, 0.0, 0.0, 0.0]

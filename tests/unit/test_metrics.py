"""Windows, timelines, accounts and summaries of a run of five stretches, all by hand.

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
import pytest

from sim.cost.table import Array, StepTable
from sim.cost.timer import ONE_CHIP
from sim.economics import Purchase, Rental
from sim.engine.clock import to_ticks
from sim.engine.cluster import Cluster, ReplicaPlan, RunRecord
from sim.engine.requests import Request
from sim.engine.scheduler import BatchLimits
from sim.engine.ticks import ConstantPace
from sim.metrics import (
    Activity,
    Window,
    accounts,
    activity,
    measured_window,
    request_table,
    summary_row,
    timeline,
)
from sim.overhead import NO_OVERHEAD

NAN = float("nan")
ROWS = 21
"""Of the tables: up to 20 tokens in a step."""


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
        "prefill_pairs": [10.0, 0.0, 3.0, 0.0, 9.0],
        "prefill_window_pairs": [10.0, 0.0, 3.0, 0.0, 9.0],
        "first_tokens": [1, 0, 1, 0, 2],
        "kv_used_blocks": [2, 4, 6, 8, 10],
        "waiting_requests": [0, 0, 0, 0, 0],
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


def deployment(*, charge: str = "systems", **tables: StepTable) -> Any:
    """What the metrics read of a deployment: 2 x 2 chips of 1 TFLOP/s on a system of 8."""
    return SimpleNamespace(
        case=SimpleNamespace(
            name="by hand",
            system="box",
            model="toy",
            systems=1,
            measure=SimpleNamespace(warmup_fraction=0.25),
            prices=SimpleNamespace(charge=charge),
            slo=SimpleNamespace(ttft_s=2.0, tpot_s=1.0),
        ),
        system=SimpleNamespace(chips=8, host_power_w=SimpleNamespace(value=1000.0)),
        accelerator=SimpleNamespace(power=SimpleNamespace(idle_w=SimpleNamespace(value=100.0))),
        replicas=2,
        chips_per_replica=2,
        chips=4,
        kv_blocks=10,
        peak_flop_per_s=1e12,
        **tables,
    )


def record() -> RunRecord:
    """Requests in the order in which they left: 1, 0, rejected 4, 2, 3."""
    columns = {
        "request_id": [1, 0, 4, 2, 3],
        "arrival_s": [1.0, 0.0, 9.0, 5.0, 8.0],
        "admit_s": [3.0, 0.0, NAN, 6.0, 9.0],
        "first_token_s": [4.0, 2.0, NAN, 8.0, 10.0],
        "done_s": [7.0, 6.0, NAN, 8.0, 10.0],
        "input_tokens": [1000, 400, 9999, 200, 500],
        "output_tokens": [7, 5, 9, 1, 1],
        "replica": [1, 0, -1, 0, 1],
        "preemptions": [0, 0, 0, 0, 0],
        "outcome": ["completed", "completed", "rejected", "completed", "completed"],
    }
    table = {name: np.array(values) for name, values in columns.items()}
    table["outcome"] = table["outcome"].astype(object)
    return RunRecord(table, stretches())


def requests() -> pd.DataFrame:
    return request_table(record(), NO_OVERHEAD)


RENT = Rental(3.6, "a quote")  # 0.001 USD per chip and second


def test_requests_are_put_in_order_with_their_latencies() -> None:
    frame = requests()
    assert frame["request_id"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(frame["ttft_s"], [2.0, 3.0, 3.0, 2.0, NAN])
    np.testing.assert_array_equal(frame["e2e_s"], [6.0, 6.0, 3.0, 2.0, NAN])
    # (6 - 2) / 4 and (7 - 4) / 6; an answer of one token has no time between tokens
    np.testing.assert_array_equal(frame["tpot_s"], [1.0, 0.5, NAN, NAN, NAN])


def test_clients_see_tokens_later_than_they_leave_the_engine() -> None:
    frame = request_table(record(), NO_OVERHEAD.model_copy(update={"frontend_s": 0.5}))
    np.testing.assert_array_equal(frame["ttft_s"], [2.5, 3.5, 3.5, 2.5, NAN])
    np.testing.assert_array_equal(frame["e2e_s"], [6.5, 6.5, 3.5, 2.5, NAN])
    np.testing.assert_array_equal(frame["tpot_s"], requests()["tpot_s"])


def test_the_window_goes_from_the_warm_up_to_the_last_arrival() -> None:
    # a quarter of five arrivals is one whole one: the second is the first that counts
    window = measured_window(requests(), warmup_fraction=0.25)
    assert (window.start_s, window.end_s, window.duration_s) == (1.0, 9.0, 8.0)
    assert window.edges.tolist() == [1.0, 9.0]
    assert measured_window(requests(), warmup_fraction=0.0) == Window(0.0, 9.0)


def test_a_burst_counts_as_a_whole() -> None:
    frame = requests().iloc[:4].assign(arrival_s=0.5)
    assert measured_window(frame, warmup_fraction=0.1) == Window(0.5, 10.0)


def test_a_run_in_which_nothing_completes_has_a_window_of_some_length() -> None:
    """Rates and costs divide by it; a second after the last arrival is as good as any."""
    assert measured_window(requests().iloc[:0], warmup_fraction=0.1) == Window(0.0, 1.0)
    frame = pd.DataFrame({"arrival_s": [0.0, 3.0], "done_s": [np.nan, np.nan]})
    assert measured_window(frame, warmup_fraction=0.1) == Window(0.0, 4.0)


def test_what_stretches_produce() -> None:
    work = hand_made_activity()
    assert work.busy_s.tolist() == [2.0, 4.0, 2.0, 4.0, 1.0]
    assert work.output_tokens.tolist() == [1.0, 4.0, 2.0, 6.0, 2.0]


def test_quantities_are_spread_evenly_over_their_stretches() -> None:
    work = hand_made_activity()
    # from 1 to 9: half of a, all of b, c and d, nothing of e
    assert work.per_bin(work.output_tokens, np.array([1.0, 9.0])).tolist() == [12.5]
    # between 2.5 and 3.5: a quarter of b's 4 s, an eighth of d's
    in_between = work.per_bin(work.output_tokens, np.array([2.5, 3.5]))
    assert in_between.tolist() == [4.0 / 4 + 6.0 / 8]
    everything = work.per_bin(work.output_tokens, np.array([-5.0, 20.0]))
    assert everything.tolist() == [15.0]
    beyond = work.per_bin(work.output_tokens, np.array([10.0, 20.0, 30.0]))
    assert beyond.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 120])
def test_bins_add_up(bins: int) -> None:
    work = hand_made_activity()
    edges = np.linspace(0.0, 10.0, bins + 1)
    for values in (work.output_tokens, work.busy_s, work.energy_j, work.flop):
        assert work.per_bin(values, edges).sum() == pytest.approx(values.sum(), rel=1e-12)


def test_a_timeline_in_bins_of_two_seconds() -> None:
    table = timeline(deployment(), requests(), hand_made_activity(), bins=5)
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


def test_the_timeline_adds_up_to_the_run() -> None:
    table = timeline(deployment(), requests(), hand_made_activity(), bins=77)
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
        limits=BatchLimits(max_num_seqs=1, max_num_batched_tokens=64),
        kv_blocks=10,
        block_tokens=16,
        window_tokens=None,
        pace=ConstantPace.of_seconds(1.0),
        max_model_len=160,
    )
    rows = [Request(0, 0, 20, 10), Request(1, to_ticks(8.0), 20, 10)]
    return Cluster(plan, replicas=1).run_open(iter(rows))


def timeline_of(record: RunRecord, bins: int) -> pd.DataFrame:
    nothing = table_of()
    bare = deployment(seconds=nothing, joules=nothing, flop=nothing, memory_seconds=nothing)
    bare.replicas = 1
    frame = request_table(record, NO_OVERHEAD)
    return timeline(bare, frame, activity(bare, record), bins)


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
    return measured_window(frame, deployment().case.measure.warmup_fraction)


def test_accounts_of_whole_systems() -> None:
    books = accounts(deployment(), window_of(requests()), requests(), hand_made_activity(), RENT)
    assert books.window == Window(1.0, 9.0)
    # in the window a is busy for 1 s, b 4, c 2, d 4, e 0: 11 of 2 x 8 s
    assert books.utilization_fraction == pytest.approx(11 / 16)
    # half of a's 8 TFLOP, all of b, c and d: 20 TFLOP, 20 s of one chip of 2 x 8 x 2
    assert books.mfu_fraction == pytest.approx(20 / 32)
    assert books.mbu_fraction == pytest.approx((0.25 + 2.0 + 1.0 + 2.0) / 16)
    # busy 500 + 2000 + 1200 + 1600 J; two chips of 100 W for 5 idle s; four for 8 s; the host
    assert books.power_w == pytest.approx((5300 + 1000 + 3200) / 8 + 1000)
    assert books.output_tokens == pytest.approx(12.5)
    # first tokens at 2, 4 and 8 s; that of 10 s is too late
    assert books.input_tokens == 400 + 1000 + 200
    (line,) = books.bill
    assert (line.usd, line.usd_per_hour) == pytest.approx((8 * 8 * 0.001, 28.8))


def test_accounts_of_the_chips_in_use() -> None:
    books = accounts(
        deployment(charge="chips"), window_of(requests()), requests(), hand_made_activity(), RENT
    )
    # half of the system is charged: no idle neighbours, half of the host
    assert books.power_w == pytest.approx((5300 + 1000) / 8 + 500)
    assert books.bill[0].usd_per_hour == pytest.approx(14.4)


def test_money_is_dealt_out_by_the_time_of_prompts_and_answers() -> None:
    books = accounts(deployment(), window_of(requests()), requests(), hand_made_activity(), RENT)
    # a prompt for 1 s, three quarters of c's 2 s: 2.5 of 11 busy seconds
    paid = 0.064
    cost = books.token_cost
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
    books = accounts(deployment(), window_of(requests()), requests(), hand_made_activity(), terms)
    usd = {line.line: line.usd for line in books.bill}
    # 2187.5 W for 8 s are 17,500 J, 21,875 J at the meter; 0.36 USD per 3.6 MJ
    assert usd["power"] == pytest.approx(21_875 * 1e-7)
    assert sum(usd.values()) == usd["power"]


def test_a_summary() -> None:
    books = accounts(deployment(), window_of(requests()), requests(), hand_made_activity(), RENT)
    row = summary_row(deployment(), requests(), books)
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


def test_both_targets_have_to_be_met() -> None:
    books = accounts(deployment(), window_of(requests()), requests(), hand_made_activity(), RENT)
    tight = deployment()
    tight.case.slo = SimpleNamespace(ttft_s=3.0, tpot_s=0.4)
    # all three are in time; request 1 takes 0.5 s a token, the others have one token only
    assert summary_row(tight, requests(), books)["goodput_requests_per_s"] == pytest.approx(2 / 8)


def test_a_window_in_which_nothing_completes() -> None:
    """All that arrives in it is rejected: no latencies, no goodput, and no made-up zeros."""
    frame = requests()
    late = frame["request_id"] > 0
    frame.loc[late, "outcome"] = "rejected"
    frame.loc[late, ["admit_s", "first_token_s", "done_s", "ttft_s", "tpot_s", "e2e_s"]] = NAN
    books = accounts(deployment(), window_of(frame), frame, hand_made_activity(), RENT)
    row = summary_row(deployment(), frame, books)
    for name in ("ttft_s_mean", "ttft_s_p99", "tpot_s_p50", "interactivity_tokens_per_s"):
        assert np.isnan(row[name])
    assert row["slo_attainment_fraction"] == 0.0


def table_of(**terms: Any) -> StepTable:
    arrays = [name for name, kind in StepTable.__annotations__.items() if kind is Array]
    zeros = {name: np.zeros(ROWS) for name in arrays}
    slopes = {"per_pair": 0.0, "per_window_pair": 0.0}
    return StepTable(**{**zeros, **slopes, "shares": ONE_CHIP, **terms})


COUNTS = np.arange(float(ROWS))


def test_stretches_are_priced_by_the_tables_of_the_deployment() -> None:
    seconds = table_of(by_tokens=1.0 * (COUNTS > 0), per_pair=0.5)
    joules = table_of(by_tokens=10.0 * COUNTS, by_sequences=COUNTS, per_window_pair=2.0)
    flop = table_of(by_decode=100.0 * COUNTS, per_context=np.full(ROWS, 3.0))
    memory = table_of(by_prefill=COUNTS, per_window_context=np.full(ROWS, 0.25))
    priced = deployment(seconds=seconds, joules=joules, flop=flop, memory_seconds=memory)
    work = activity(priced, record())
    # per step 10 J a token and 1 J a sequence, 2 J per windowed pair; two chips; in order:
    # (40 + 1 + 20), 4 x (10 + 1), (30 + 2 + 6), 2 x (30 + 3), (50 + 2 + 18)
    assert work.energy_j.tolist() == [122.0, 88.0, 76.0, 132.0, 140.0]
    # 100 a step and decoding sequence, 3 a key, keys summed over the steps
    assert work.flop.tolist() == [0.0, 2 * (400 + 78), 2 * (100 + 27), 2 * (600 + 567), 0.0]
    # a prompt token 1, a windowed key 1/4: of one chip
    assert work.memory_s.tolist() == [4.0, 4.0, 2.0 + 1.0, 6.0, 5.0]


def test_a_mixed_step_is_shared_as_its_parts_would_take_alone() -> None:
    # c: the prompt alone 1 + 3 x 0.5 s, the decoding alone 1 s
    seconds = table_of(by_tokens=1.0 * (COUNTS > 0), per_pair=0.5)
    other = table_of()
    priced = deployment(seconds=seconds, joules=other, flop=other, memory_seconds=other)
    assert activity(priced, record()).prefill_share.tolist() == [1.0, 0.0, 2.5 / 3.5, 0.0, 1.0]


def test_a_closed_loop_leaves_out_two_requests_of_each_client() -> None:
    """Three clients send at once; then one request a second, so number 6 comes at 4 s."""
    arrivals = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, *np.arange(4.0, 20.0)]
    frame = pd.DataFrame({"arrival_s": arrivals, "done_s": np.array(arrivals) + 3.0})
    assert measured_window(frame, 0.1, clients=3) == Window(4.0, 19.0)
    assert measured_window(frame, 0.5, clients=3) == Window(9.0, 19.0)  # the longer warm-up
    # 22 requests of 6 clients are too few to leave 12 out
    assert measured_window(frame, 0.1, clients=6) == Window(0.0, 19.0)

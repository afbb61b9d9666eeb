"""What a run leaves behind."""

import numpy as np
import pytest

from sim.engine.clock import TICKS_PER_S
from sim.engine.records import BLOCK_ROWS, REQUEST_COLUMNS, Recorder, Table, Work
from sim.engine.requests import Request


def test_rows_become_columns() -> None:
    table = Table({"number": "i8", "time_s": "f8", "name": "O"})
    table.append((1, 0.5, "one"))
    table.append((2, 1.5, "two"))
    columns = table.columns()
    assert {name: column.tolist() for name, column in columns.items()} == {
        "number": [1, 2],
        "time_s": [0.5, 1.5],
        "name": ["one", "two"],
    }
    table.append((3, 2.5, "three"))  # looking at it does not end it
    assert table.columns()["number"].tolist() == [1, 2, 3]


def test_an_empty_table_has_its_types() -> None:
    columns = Table({"number": "i4", "time_s": "f8", "name": "O"}).columns()
    assert [(len(column), column.dtype) for column in columns.values()] == [
        (0, np.dtype("i4")),
        (0, np.dtype("f8")),
        (0, np.dtype("O")),
    ]


@pytest.mark.parametrize("rows", [BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 5])
def test_blocks_are_put_together_in_order(rows: int) -> None:
    table = Table({"number": "i8"})
    for number in range(rows):
        table.append((number,))
    assert np.array_equal(table.columns()["number"], np.arange(rows))


def test_a_row_has_all_columns() -> None:
    table = Table({"number": "i8", "time_s": "f8"})
    table.append((1,))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        table.columns()


def test_what_has_not_happened_is_no_number() -> None:
    recorder = Recorder()
    request = Request(7, 3 * TICKS_PER_S, 10, 20)
    request.outcome = "rejected"
    recorder.request(request)
    columns = recorder.requests.columns()
    assert list(columns) == list(REQUEST_COLUMNS)
    row = {name: column[0] for name, column in columns.items()}
    assert (row["request_id"], row["arrival_s"], row["outcome"]) == (7, 3.0, "rejected")
    assert all(np.isnan(row[name]) for name in ("admit_s", "first_token_s", "done_s"))
    # nor has a request that was never with a replica one
    assert (row["replica"], row["prefill_replica"], row["session"]) == (-1, -1, -1)


def test_a_request_is_recorded_with_all_that_happened() -> None:
    request = Request(7, 0, 10, 20)
    ticks = range(1, 6)
    request.admit_tick, request.first_token_tick, request.done_tick = (
        tick * TICKS_PER_S for tick in (1, 2, 3)
    )
    request.transfer_ticks, request.preempted_ticks = (tick * TICKS_PER_S for tick in (4, 5))
    request.tenant, request.session, request.turn = 1, 2, 3
    request.cached_tokens, request.preemptions, request.attempts = 4, 5, 6
    # of 10 tokens 4 were cached: of 16 prefilled 10 are too many, one in place of a decode step
    request.prefilled_tokens, request.first_tokens = 16, 2
    request.replica, request.prefill_replica, request.outcome = 8, 9, "completed"
    recorder = Recorder()
    recorder.request(request)
    row = {name: column[0] for name, column in recorder.requests.columns().items()}
    times = ("admit_s", "first_token_s", "done_s", "transfer_s", "preempted_s")
    assert [row[name] for name in times] == list(ticks)
    rest = ("tenant", "session", "turn", "cached_tokens", "preemptions", "attempts")
    assert [row[name] for name in rest] == list(range(1, 7))
    assert (row["replica"], row["prefill_replica"], row["outcome"]) == (8, 9, "completed")
    assert row["recomputed_tokens"] == 9


def test_lost_work_is_counted_as_it_was_then() -> None:
    recorder = Recorder()
    request = Request(7, 0, 10, 20)
    request.prefilled_tokens, request.generated_tokens, request.first_tokens = 13, 4, 1
    recorder.loss(7, 2 * TICKS_PER_S, "failure", 3, Work.on(request))
    request.generated_tokens = 0
    recorder.loss(7, 3 * TICKS_PER_S, "failure", 3, Work(0, 0, 0, 0))  # nothing is no loss
    row = {name: column.tolist() for name, column in recorder.losses.columns().items()}
    assert row == {
        "replica": [3],
        "time_s": [2.0],
        "request_id": [7],
        "cause": ["failure"],
        "prefilled_tokens": [13],
        "generated_tokens": [4],
        "first_tokens": [1],
        "encoded_tokens": [0],
    }

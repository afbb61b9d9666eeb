"""Traffic of every kind of workload: prefixes, mixes, columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.workload.arrivals import BurstArrivals
from sim.workload.content import SYSTEM_STREAM, answer_after, first_tokens, in_part, tokens_of
from sim.workload.draw import draw, pilot
from sim.workload.kinds import OpenLoopWorkload, Workload
from sim.workload.mix import mixed
from sim.workload.requests import Traffic, as_tokens
from sim.workload.sharing import SharedPrefixes

WORKLOADS: TypeAdapter[Any] = TypeAdapter(Workload)
FIXED = {"kind": "fixed", "input_tokens": 100, "output_tokens": 10}
SESSIONS = {
    "turns": {"kind": "constant", "turns": 2},
    "first_tokens": {"kind": "constant", "tokens": 50},
    "new_tokens": {"kind": "constant", "tokens": 5},
    "answer_tokens": {"kind": "constant", "tokens": 3},
    "think": {"kind": "constant", "duration_s": 1.0},
    "system_tokens": 10,
    "max_context_tokens": 1000,
}


def traffic_of(seed: int = 1, **data: Any) -> Traffic:
    return draw(WORKLOADS.validate_python(data), open_catalog(), seed)


def open_loop(rate: float = 2.0, requests: int | None = 500, **more: Any) -> dict[str, Any]:
    arrivals = {"kind": "poisson", "rate_requests_per_s": rate}
    plain = {"kind": "open_loop", "lengths": FIXED, "arrivals": arrivals, "requests": requests}
    return plain | more


def sessions(count: int = 5) -> dict[str, Any]:
    arrivals = {"kind": "uniform", "rate_requests_per_s": 1.0}
    return {"kind": "sessions", "law": SESSIONS, "arrivals": arrivals, "sessions": count}


def test_zipf_prefixes_are_drawn_as_often_as_they_should() -> None:
    law = SharedPrefixes.model_validate(
        {"prefixes": 3, "tokens": {"kind": "constant", "tokens": 64}, "fraction": 0.5}
    )
    rngs = np.random.default_rng(1), np.random.default_rng(2)
    shared = law.share(*rngs, np.full(22_000, 100))
    counts = np.bincount(shared.contents.prefix + 1, minlength=4)
    # Half have none; of the others 6, 3 and 2 of 11 parts: 1, 1/2 and 1/3.
    expected = np.array([11_000, 6_000, 3_000, 2_000])
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize(("within", "tokens"), [(True, 100), (False, 164)])
def test_prefixes_stand_within_or_before_the_prompt(within: bool, tokens: int) -> None:
    sharing = {
        "prefixes": 1,
        "tokens": {"kind": "constant", "tokens": 64},
        "within_prompt": within,
    }
    first, second = list(traffic_of(**open_loop(requests=2, sharing=sharing)).rows())
    assert first.input_tokens == second.input_tokens == tokens
    assert first.content is not None
    assert second.content is not None
    assert tokens_of(first.content) == tokens
    assert first.content[0] == second.content[0] == (SYSTEM_STREAM, 0, 64)
    assert first.content[1][0] != second.content[1][0]
    assert first.answer is None


def test_a_prefix_longer_than_the_prompt_is_cut() -> None:
    sharing = {"prefixes": 1, "tokens": {"kind": "constant", "tokens": 640}}
    (row,) = traffic_of(**open_loop(requests=1, sharing=sharing)).rows()
    assert row.content == ((SYSTEM_STREAM, 0, 100),)


def test_images_lengthen_prompts_and_limits_cut_answers() -> None:
    images = {"tokens": {"kind": "constant", "tokens": 900}, "fraction": 0.5}
    traffic = traffic_of(**open_loop(requests=4_000, images=images, max_tokens=6))
    assert traffic.encode_tokens is not None
    with_images = traffic.encode_tokens == 900
    assert with_images.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4_000))
    assert set(traffic.input_tokens[with_images].tolist()) == {1000}
    assert set(traffic.input_tokens[~with_images].tolist()) == {100}
    assert {(row.output_tokens, row.max_tokens) for row in traffic.rows()} == {(6, 6)}


def test_a_mix_merges_by_arrival_and_knows_its_tenants() -> None:
    parts = {
        "chat": open_loop(3.0, 300),
        "batch": open_loop(1.0, 100, lengths=FIXED | {"input_tokens": 7}),
    }
    traffic = traffic_of(kind="mix", parts=parts)
    assert traffic.tenant_names == ("chat", "batch")
    assert traffic.arrival_s is not None
    assert traffic.tenant is not None
    assert np.all(np.diff(traffic.arrival_s) >= 0)
    assert np.bincount(traffic.tenant).tolist() == [300, 100]
    assert set(traffic.input_tokens[traffic.tenant == 1].tolist()) == {7}
    # The parts draw from streams of their own: another part moves none of them.
    alone = traffic_of(kind="mix", parts={"chat": parts["chat"]})
    assert alone.arrival_s is not None
    np.testing.assert_array_equal(traffic.arrival_s[traffic.tenant == 0], alone.arrival_s)


def test_parts_of_a_mix_share_no_token() -> None:
    sharing = {"prefixes": 2, "tokens": {"kind": "constant", "tokens": 64}}
    parts = {name: open_loop(2.0, 50, sharing=sharing) for name in ("a", "b")}
    traffic = traffic_of(kind="mix", parts=parts | {"s": sessions(), "t": sessions()})
    streams: dict[int, set[int]] = {}
    for row in traffic.rows():
        assert row.content is not None
        assert tokens_of(row.content) == row.input_tokens
        streams.setdefault(row.tenant, set()).update(run[0] for run in row.content)
    plans = traffic.sessions
    assert plans is not None
    for session in range(len(plans)):
        for turn in plans.turns_of(session):
            assert tokens_of(turn.content) == turn.input_tokens
            tenant = streams.setdefault(plans.tenant_of(session), set())
            tenant.update(run[0] for run in turn.content)
    assert sorted(streams) == [0, 1, 2, 3]
    every = [stream for found in streams.values() for stream in found]
    assert len(every) == len(set(every))


def test_sessions_of_a_mix_keep_their_turns_and_tenants() -> None:
    traffic = traffic_of(kind="mix", parts={"chat": open_loop(2.0, 10), "agent": sessions(3)})
    plans = traffic.sessions
    assert plans is not None
    assert [plans.tenant_of(session) for session in range(3)] == [1, 1, 1]
    assert [turn.input_tokens for turn in plans.turns_of(2)] == [60, 68]
    assert traffic.total_requests == 16


def test_a_closed_loop_cannot_be_merged() -> None:
    closed = traffic_of(kind="closed_loop", lengths=FIXED, requests=5, concurrency=2)
    assert (closed.clients, closed.arrival_s) == (2, None)
    with pytest.raises(InputError, match="part 'x' of the mix is a closed loop"):
        mixed({"x": closed})


def test_sessions_wait_and_grow() -> None:
    traffic = traffic_of(**sessions(3))
    assert len(traffic) == 0
    assert traffic.sessions is not None
    assert traffic.sessions.start_s.tolist() == [0.0, 1.0, 2.0]


def test_recorded_sessions_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.csv"
    data = sessions() | {"law": None, "path": missing}
    with pytest.raises(InputError, match="no such file"):
        traffic_of(**data)


def test_a_million_requests_take_little_memory() -> None:
    traffic = traffic_of(
        kind="mix",
        parts={
            name: open_loop(
                100.0,
                500_000,
                sharing={"prefixes": 8, "tokens": {"kind": "constant", "tokens": 64}},
            )
            for name in ("a", "b")
        },
    )
    # Arrivals take 8 bytes, lengths 4 and 4, tenants 2.
    assert traffic.nbytes == 18_000_000
    row = next(iter(traffic.rows()))
    assert row.input_tokens == 100


def test_rows_of_a_part_are_those_of_the_whole() -> None:
    sharing = {"prefixes": 4, "tokens": {"kind": "constant", "tokens": 64}}
    traffic = traffic_of(**open_loop(requests=50, sharing=sharing))
    chosen = np.array([40, 3, 17])
    rows = list(traffic.rows())
    assert list(traffic.take(chosen).rows()) == [rows[index] for index in chosen]


def test_pilot_requests_come_from_clients() -> None:
    workload = WORKLOADS.validate_python(open_loop())
    assert isinstance(workload, OpenLoopWorkload)
    traffic = pilot(workload, open_catalog(), 1, requests=30, clients=4)
    assert (len(traffic), traffic.clients, traffic.arrival_s) == (30, 4, None)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"kind": "mix", "parts": {}}, "at least 1 item"),
        ({"kind": "mix", "parts": {"a": open_loop(load_fraction=0.5)}}, "part 'a' gives load_fr"),
        ({"kind": "mix", "parts": {"a": {"kind": "closed_loop"}}}, "closed_loop"),
        (sessions() | {"law": None}, "traffic, law or path, one"),
        (sessions() | {"sessions": None}, "sessions, duration_s or both"),
        (sessions() | {"sessions": None, "duration_s": 5, "arrivals": BurstArrivals()}, "burst"),
        ({"kind": "trace", "format": "csv"}, "format"),
    ],
)
def test_bad_workloads_are_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        WORKLOADS.validate_python(data)


def test_no_request_and_no_path_are_said() -> None:
    with pytest.raises(InputError, match=r"no request arrives in 0\.001 s"):
        traffic_of(**open_loop(requests=None, duration_s=0.001))
    with pytest.raises(InputError, match=r"--set workload\.path=FILE"):
        traffic_of(kind="trace")


def test_columns_must_agree_and_numbers_fit() -> None:
    one, two = np.ones(1, np.int32), np.ones(2, np.int32)
    with pytest.raises(InputError, match="differ in length"):
        Traffic(one, two)
    with pytest.raises(InputError, match="at most 2147483647"):
        as_tokens(np.array([2**31]))


def test_contents_by_hand() -> None:
    content = ((-2, 0, 10), (3, 5, 20))
    assert answer_after(content) == (3, 25)
    assert first_tokens(in_part(content, 2), 12) == in_part(first_tokens(content, 12), 2)

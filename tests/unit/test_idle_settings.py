"""Settings without effect are told once, and only where they have none."""

from pathlib import Path

import pytest
from small_scenarios import ONE_CASE, forecast_of, write

from sim.catalog import open_catalog
from sim.idle_settings import idle_settings
from sim.scenario import load_scenario
from sim.service import service_of
from sim.workload.draw import draw

CATALOG = open_catalog()
TENANTS = """\
{kind: mix, parts: {
  chat: {kind: open_loop, lengths: {kind: fixed, input_tokens: 9, output_tokens: 9},
    arrivals: {kind: burst}, requests: 2},
  batch: {kind: open_loop, lengths: {kind: fixed, input_tokens: 9, output_tokens: 9},
    arrivals: {kind: burst}, requests: 2}}}
"""
SESSIONS = """\
{kind: sessions, arrivals: {kind: burst}, sessions: 2, law: {
  turns: {kind: constant, turns: 2}, first_tokens: {kind: constant, tokens: 9},
  new_tokens: {kind: constant, tokens: 9}, answer_tokens: {kind: constant, tokens: 9},
  think: {kind: constant, duration_s: 1}, max_context_tokens: 99}}
"""
SHARED = "{kind: shared_prefix, prefixes: 1, tokens: {kind: constant, tokens: 64}}"
POOLS = "{prefill: {replicas: 1, parallelism: {tp: 4}}, decode: {replicas: 1}}"
HALVES = ("parallelism.tp", "4")
Settings = list[tuple[str, str]]


def said(folder: Path, settings: Settings) -> list[str]:
    scenario = load_scenario(write(folder, ONE_CASE), settings)
    (case,) = scenario.cases
    service = service_of(case, CATALOG)
    return list(idle_settings(service, draw(case.workload, CATALOG, 1)))


def trace(folder: Path, column: str, *values: object) -> tuple[str, str]:
    rows = [f"0,10,3,{value}" for value in values]
    path = folder / "trace.csv"
    path.write_text("\n".join([f"t_s,input_tokens,output_tokens,{column}", *rows]))
    return ("workload", f"{{kind: trace, path: {path}}}")


PRIORITY: Settings = [("workload", TENANTS), ("tenants", "{batch: {priority: 3}}")]
WEIGHT: Settings = [("workload", TENANTS), ("tenants", "{batch: {weight: 3}}")]


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (PRIORITY, "tenants.batch.priority changes nothing without engine.order: priority"),
        (WEIGHT, "tenants.batch.weight changes nothing without engine.order: fair"),
        (
            [("engine.order", "priority")],
            "engine.order: priority changes nothing, as all requests have the same",
        ),
        (
            [("engine.order", "fair")],
            "engine.order: fair changes nothing, as all requests are of one tenant",
        ),
        (
            [("kv_transfer.overlap", "layerwise")],
            "kv_transfer changes nothing without a prefill and a decode pool",
        ),
        (
            [HALVES, ("replicas", "3"), ("pools", POOLS)],
            "replicas: 3 changes nothing, as each pool gives its own",
        ),
        (
            [("engine.swap_bytes", "1e9")],
            "engine.swap_bytes changes nothing without engine.preemption: swap",
        ),
        (
            [("router", "session_sticky")],
            "router: session_sticky goes by load alone, as no request is of a session",
        ),
        (
            [("router", "kv_aware")],
            "router: kv_aware goes by load alone, as no two prompts are known to begin alike",
        ),
        (
            [("router", "prefix_aware")],
            "router: prefix_aware goes by load alone, as no two prompts are known to begin alike",
        ),
        (
            [
                ("router", "kv_aware"),
                ("workload.sharing", SHARED),
                ("engine.prefix_caching", "false"),
            ],
            "router: kv_aware goes by load alone, as its replicas find no prefix in their caches",
        ),
    ],
)
def test_what_changes_nothing_is_said_once(tmp_path: Path, settings: Settings, note: str) -> None:
    (found,) = said(tmp_path, settings)
    assert found.startswith(f"small: {note}")


@pytest.mark.parametrize(
    "settings",
    [
        [],
        [*PRIORITY, ("engine.order", "priority")],
        [*WEIGHT, ("engine.order", "fair")],
        [HALVES, ("pools", POOLS), ("kv_transfer.overlap", "layerwise")],
        # the decode pool has the replicas of the case
        [HALVES, ("replicas", "1"), ("pools", "{prefill: {replicas: 1}, decode: {}}")],
        [("engine.swap_bytes", "1e9"), ("engine.preemption", "swap")],
        [("router", "session_sticky"), ("workload", SESSIONS)],
        [("router", "kv_aware"), ("workload", SESSIONS)],
        [("router", "prefix_aware"), ("workload.sharing", SHARED)],
        [("router", "power_of_two")],
    ],
)
def test_what_changes_something_is_not_said(tmp_path: Path, settings: Settings) -> None:
    assert said(tmp_path, settings) == []


def test_columns_of_a_trace(tmp_path: Path) -> None:
    ranked = trace(tmp_path, "priority", 1, 2)
    words = "small: the priorities of the trace change nothing without engine.order: priority."
    assert said(tmp_path, [ranked]) == [words]
    assert said(tmp_path, [ranked, ("engine.order", "priority")]) == []
    assert said(tmp_path, [trace(tmp_path, "priority", 2, 2)]) == []
    sticky = ("router", "session_sticky")
    assert said(tmp_path, [trace(tmp_path, "session", "a", "b"), sticky]) == []
    (note,) = said(tmp_path, [trace(tmp_path, "tenant", "a", "b"), sticky])
    assert "no request is of a session" in note
    aware = ("router", "kv_aware")
    assert said(tmp_path, [trace(tmp_path, "block_ids", "1", "1"), aware]) == []
    (note,) = said(tmp_path, [trace(tmp_path, "tenant", "a", "b"), aware])
    assert "no two prompts are known to begin alike" in note


def test_a_router_of_a_pool_is_named_with_it(tmp_path: Path) -> None:
    pools = POOLS.replace("decode: {", "decode: {router: session_sticky, ")
    (note,) = said(tmp_path, [HALVES, ("pools", pools)])
    assert note.startswith("small, decode: router: session_sticky goes by load alone")


def test_they_are_among_the_notes_of_a_run(tmp_path: Path) -> None:
    tables = forecast_of(write(tmp_path, ONE_CASE), [("router", "session_sticky")])
    assert sum("router: session_sticky goes by load" in note for note in tables.notes) == 1

"""Tenants of a scenario: who is served first, who is let in, who gives up and comes back."""

from pathlib import Path

import pytest
from small_scenarios import ONE_CASE, forecast_of, write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.engine.requests import Request
from sim.engine.waiting import FairLine, FcfsLine, PriorityLine
from sim.errors import InputError
from sim.report.data import RunTables
from sim.routing_policy import Backoff
from sim.scenario import Case, load_scenario
from sim.tenancy import backoff_s, tenancy_of

CATALOG = open_catalog()
TWO_TENANTS = (
    ONE_CASE[: ONE_CASE.index("workload:")]
    + """\
workload:
  kind: mix
  parts:
    chat:
      kind: open_loop
      lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
      arrivals: {kind: burst}
      requests: 20
    batch:
      kind: open_loop
      lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
      arrivals: {kind: burst}
      requests: 30
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""
)


def case_of(folder: Path, text: str) -> Case:
    return load_scenario(write(folder, text)).cases[0]


def run(folder: Path, text: str, *settings: tuple[str, str]) -> RunTables:
    return forecast_of(write(folder, text), settings)


class TestTenancy:
    def test_tenants_are_told_apart_by_their_index(self, tmp_path: Path) -> None:
        text = (
            TWO_TENANTS + "tenants: {batch: {priority: 3, weight: 2, slo: {ttft_s: 9, tpot_s: 9}}}"
        )
        tenancy = tenancy_of(case_of(tmp_path, text), ("chat", "batch"))
        assert tenancy.priorities == (None, 3)
        assert [slo.ttft_s for slo in tenancy.slos] == [1.0, 9.0]
        assert isinstance(tenancy.new_line("fair")(), FairLine)
        assert isinstance(tenancy.new_line("priority")(), PriorityLine)
        assert isinstance(tenancy.new_line("fcfs")(), FcfsLine)

    def test_without_wishes_nobody_watches(self, tmp_path: Path) -> None:
        tenancy = tenancy_of(case_of(tmp_path, ONE_CASE), ("all",))
        assert tenancy.patience(1) is None
        assert tenancy.door() is None

    def test_an_unknown_tenant_is_found_before_anything_runs(self, tmp_path: Path) -> None:
        path = write(tmp_path, TWO_TENANTS + "tenants: {chap: {priority: 1}}\n")
        with pytest.raises(InputError, match=r"tenants names 'chap'.*did you mean chat"):
            resolve(load_scenario(path), CATALOG)

    def test_tenants_of_a_trace_are_known_when_it_is_read(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("t_s,input_tokens,output_tokens,tenant\n0,10,5,a\n1,10,5,b\n")
        text = ONE_CASE[: ONE_CASE.index("workload:")] + (
            f"workload: {{kind: trace, path: {trace}}}\n"
            "slo: {ttft_s: 1 s, tpot_s: 100 ms}\nprices: {book: us_2026_11}\n"
        )
        resolve(load_scenario(write(tmp_path, text + "tenants: {c: {}}\n")), CATALOG)
        with pytest.raises(InputError, match="tenants names 'c'"):
            run(tmp_path, text + "tenants: {c: {}}\n")
        assert list(run(tmp_path, text + "tenants: {b: {}}\n").tenants["tenant"]) == ["a", "b"]


class TestWaiting:
    """Fifty requests at once, one at a time: the line alone decides who is answered when."""

    def mean_wait_s(self, folder: Path, *settings: tuple[str, str]) -> dict[str, float]:
        text = TWO_TENANTS + "tenants: {chat: {priority: 1}, batch: {priority: 0, weight: 9}}\n"
        tables = run(folder, text, ("engine.max_num_seqs", "1"), *settings)
        waits = tables.requests.groupby("tenant", observed=True)["queue_s"].mean()
        return {str(name): float(wait) for name, wait in waits.items()}

    def test_the_first_served_are_those_of_the_first_priority(self, tmp_path: Path) -> None:
        by_priority = self.mean_wait_s(tmp_path, ("engine.order", "priority"))
        as_they_come = self.mean_wait_s(tmp_path)
        assert by_priority["batch"] < by_priority["chat"]
        assert as_they_come["chat"] < as_they_come["batch"]

    def test_heavy_tenants_wait_less_under_fair_shares(self, tmp_path: Path) -> None:
        fair = self.mean_wait_s(tmp_path, ("engine.order", "fair"))
        assert fair["batch"] < fair["chat"]


class TestDoor:
    def test_a_short_queue_turns_requests_away(self, tmp_path: Path) -> None:
        """All come at once, before the first step: as many are taken as may wait."""
        tables = run(tmp_path, TWO_TENANTS, ("engine.max_queue_requests", "7"))
        assert tables.summary["shed_requests"][0] == 50 - 7
        assert tables.summary["completed_requests"][0] == 7

    def test_a_tenant_has_its_own_limit(self, tmp_path: Path) -> None:
        limit = "tenants: {batch: {max_outstanding_requests: 4}}\n"
        rows = run(tmp_path, TWO_TENANTS + limit).tenants.set_index("tenant")
        assert rows["shed_requests"].to_dict() == {"chat": 0, "batch": 26}

    def test_all_of_them_have_one_together(self, tmp_path: Path) -> None:
        tables = run(tmp_path, TWO_TENANTS + "max_outstanding_requests: 5\n")
        assert tables.summary["completed_requests"][0] == 5

    def test_who_is_turned_away_may_try_again(self, tmp_path: Path) -> None:
        again = "max_outstanding_requests: 5\npatience: {max_retries: 90, backoff: {first_s: 1}}\n"
        tables = run(tmp_path, TWO_TENANTS + again)
        assert tables.summary["completed_requests"][0] == 50
        assert tables.requests["attempts"].max() > 1


class TestBackoff:
    def test_jitter_varies_by_request_and_attempt_alone(self) -> None:
        law = Backoff(first_s=10.0, factor=1.0, jitter_fraction=0.5)
        waits = []
        for number in range(200):
            request = Request(number, 0, 1, 1)
            request.attempts = 2
            waits.append(backoff_s(law, 1, request))
            assert backoff_s(law, 1, request) == waits[-1]
        assert 5.0 <= min(waits) < 6.0
        assert 14.0 < max(waits) <= 15.0

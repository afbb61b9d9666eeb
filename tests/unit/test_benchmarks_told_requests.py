"""Runs that tell how many requests were sent: so many are simulated, and all of them count."""

from pathlib import Path

import pytest

from sim.calibration.benchmarks import benchmark_of
from sim.calibration.benchmarks.inferencex import DRAWN, InferenceX
from sim.calibration.benchmarks.plain import (
    MOST_TOLD_REQUESTS,
    OPEN_REQUESTS,
    ROUNDS,
    told_requests,
)
from sim.calibration.importers.table import as_csv
from sim.calibration.replay import replay
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import open_catalog
from sim.scenario import Case, Measure
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload

CATALOG = open_catalog()
ROW = {
    "row_id": "r1",
    "hardware": "H100-SXM-80GB",
    "num_chips": "1",
    "tp": "1",
    "model": "meta-llama/Llama-2-7b-hf",
    "weight_dtype": "fp16",
    "engine": "vLLM 0.11",
    "scenario": "concurrency",
    "isl": "16",
    "osl": "400",
    "concurrency": "8",
    "request_rate_qps": "",
    "output_tokens_per_s": "1000",
    "notes": "",
}
OPEN = {"scenario": "server", "request_rate_qps": "2", "concurrency": ""}
WHOLE = Measure(warmup_fraction=0.0)


def case_of(folder: Path, **change: str) -> Case:
    """Read a run, and let its benchmark say what its rates count."""
    row = ROW | change
    path = folder / "runs.csv"
    path.write_text(as_csv([row], tuple(ROW)), encoding="utf-8")
    (run,) = read_runs(path, CATALOG)
    assert isinstance(run, MeasuredRun), run
    return run.case.model_copy(update={"measure": benchmark_of(row).measure(row)})


def requests_of(case: Case) -> int | None:
    assert isinstance(case.workload, ClosedLoopWorkload | OpenLoopWorkload)
    return case.workload.requests


@pytest.mark.parametrize(
    ("notes", "requests"),
    [
        ("vLLM serving benchmark; 80 requests", 80),
        ("closed loop, 6400 prompts; experimental", 6400),
        ("all 50 requests are sent at once", 50),
        ("500 of 500 requests completed", 500),
        ("1 of 100 requests failed; 100 requests", 100),
        ("arrivals are held back beyond 64 requests at once", None),
        ("4 requests/s", None),
        ("128 requests per GPU", None),
        ("1.5 requests a second, 6,400 requests", None),
        ("0 requests", None),
        ("11 system prompts x 4 users", None),
        ("ten requests per client", None),
        ("", None),
    ],
)
def test_how_notes_tell_how_many_were_sent(notes: str, requests: int | None) -> None:
    assert told_requests({"notes": notes}) == requests


class TestWorkload:
    @pytest.mark.parametrize(
        ("notes", "requests"),
        [
            ("80 requests", 80),
            ("6400 prompts", 6400),
            ("5 requests", 5),  # fewer than clients
            ("90000 requests", MOST_TOLD_REQUESTS),
            ("", 8 * ROUNDS),
        ],
    )
    def test_clients_send_as_many(self, tmp_path: Path, notes: str, requests: int) -> None:
        assert requests_of(case_of(tmp_path, notes=notes)) == requests

    @pytest.mark.parametrize(
        ("notes", "requests"),
        [("320 prompts", 320), ("90000 requests", MOST_TOLD_REQUESTS), ("", OPEN_REQUESTS)],
    )
    def test_as_many_arrive_freely(self, tmp_path: Path, notes: str, requests: int) -> None:
        assert requests_of(case_of(tmp_path, notes=notes, **OPEN)) == requests

    @pytest.mark.parametrize("origin", ["origin IX", "origin NV", DRAWN])
    def test_what_is_told_wins_over_the_habit_of_a_benchmark(
        self, tmp_path: Path, origin: str
    ) -> None:
        assert requests_of(case_of(tmp_path, notes=f"{origin}; 24 requests")) == 24
        assert requests_of(case_of(tmp_path, notes=origin)) == 8 * InferenceX.rounds

    def test_fewer_rounds_have_more_of_them_wait_for_the_client(self) -> None:
        """Of 3 rounds a third start together and wait for half of the 20 others; of 10 a tenth."""
        told = {**ROW, "concurrency": "21", "notes": "origin IX; 63 requests"}
        alone = {**ROW, "concurrency": "1", "notes": "origin IX"}
        found = InferenceX().client_s(told) / InferenceX().client_s(alone)
        assert found == pytest.approx(1 + 20 / 2 / 3)
        untold = {**told, "notes": "origin IX"}
        found = InferenceX().client_s(untold) / InferenceX().client_s(alone)
        assert found == pytest.approx(1 + 20 / 2 / 10)


class TestRates:
    @pytest.mark.parametrize(
        ("change", "measure"),
        [
            ({"notes": "80 requests"}, WHOLE),
            ({"notes": "90000 requests"}, Measure()),  # what is simulated is a part of it
            ({"notes": ""}, Measure()),
            ({"notes": "80 requests", **OPEN}, Measure()),
        ],
    )
    def test_all_of_a_closed_loop_that_is_simulated_whole(
        self, change: dict[str, str], measure: Measure
    ) -> None:
        row = ROW | change
        assert benchmark_of(row).measure(row) == measure

    def test_seventeen_requests_of_eight_clients_take_the_time_of_three(
        self, tmp_path: Path
    ) -> None:
        """The last one runs alone while seven clients have nothing to send: 17 in three times.

        A run that does not tell them counts eight in each.
        """
        told = replay(case_of(tmp_path, notes="17 requests"), CATALOG, seed=1)
        request_s = told["ttft_s_mean"] + 399 * told["tpot_s_mean"]
        rate = told["output_tokens_per_s"]
        assert rate == pytest.approx(17 * 400 / (3 * request_s), rel=0.03)
        assert told["total_tokens_per_s"] == pytest.approx(rate * 416 / 400)

    def test_no_end_of_a_run_in_even_waves_makes_no_difference(self, tmp_path: Path) -> None:
        """Forty requests of eight clients are five waves, from the first arrival to the end."""
        whole, steady = (
            replay(case_of(tmp_path, notes=notes), CATALOG, seed=1) for notes in ("40 requests", "")
        )
        assert whole["tpot_s_mean"] == steady["tpot_s_mean"]
        rates = whole["output_tokens_per_s"], steady["output_tokens_per_s"]
        assert rates[0] == pytest.approx(rates[1], rel=0.01)

    def test_requests_in_lockstep_waves_have_an_exact_rate(self, tmp_path: Path) -> None:
        """Twelve clients and eight places: equal requests come and go in waves of eight.

        A place makes a token per time per token and none while prompts are computed, so that eight
        of them make no more than 8 / tpot; with prompts of 16 tokens hardly less. The edges of the
        steady part lie inside waves: whole requests by their end would be nine of each wave.
        """
        case = case_of(tmp_path, concurrency="12", notes="max_num_seqs 8")
        assert requests_of(case) == 12 * ROUNDS
        told = replay(case, CATALOG, seed=1)
        places = told["output_tokens_per_s"] * told["tpot_s_mean"]
        assert 0.97 * 8 < places <= 8 * 400 / 399

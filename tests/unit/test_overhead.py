"""What engines add to their kernels: choosing it, and finding it again in exact data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import sim.calibration.overhead_fit
from sim.calibration.overhead_fit import PRIOR, PRIOR_WEIGHT, ROBUST_SCALE, fit, fit_families
from sim.calibration.overheads import calibrated, grouped, usable, write_overheads
from sim.calibration.replay import replay
from sim.calibration.responses import PARAMETERS, Response, law_of, respond, responses, vector
from sim.calibration.runs import MeasuredRun, read_runs
from sim.catalog import open_catalog
from sim.deployment import deploy
from sim.efficiency import Fit
from sim.errors import InputError
from sim.overhead import NO_OVERHEAD, EngineOverhead, EngineOverheads, FamilyOverhead
from sim.schema import load_yaml, validate

CATALOG = open_catalog()
FIT = Fit(rows=7, median_ape=0.034, p90_ape=0.1, bias=0.0, ranges={}, source="TPOT of made-up runs")


def overhead(**fields: float) -> EngineOverhead:
    return NO_OVERHEAD.model_copy(update=fields)


def engine(**laws: EngineOverhead) -> EngineOverheads:
    fitted = {
        name: FamilyOverhead(law=law, models=("llama_3_1_70b",), fit=FIT)
        for name, law in laws.items()
    }
    return EngineOverheads(engine="vllm", about="", date="2026-11-21", method="", families=fitted)


class TestChoice:
    KNOWN = engine(
        hopper=overhead(step_s=1e-3, layer_s=2e-6, sequence_s=0.0, floor_fraction=0.4),
        blackwell=overhead(step_s=3e-3, layer_s=4e-6, sequence_s=2e-5, floor_fraction=0.8),
    )

    def test_a_fitted_family_has_its_own(self) -> None:
        chosen = self.KNOWN.of_family("hopper")
        assert chosen.law == self.KNOWN.families["hopper"].law
        assert chosen.source == "fitted: vllm on hopper, 7 runs, median error of TPOT 3.4%"

    def test_others_take_the_mean_and_say_so(self) -> None:
        chosen = self.KNOWN.of_family("rubin")
        wanted = overhead(step_s=2e-3, layer_s=3e-6, sequence_s=1e-5, floor_fraction=0.6)
        assert chosen.law.model_dump() == pytest.approx(wanted.model_dump())
        assert chosen.source == "assumed: mean of hopper, blackwell"

    def test_one_law_for_every_family(self) -> None:
        trial = self.KNOWN.with_law(NO_OVERHEAD)
        assert {trial.of_family(name).law for name in ("hopper", "blackwell")} == {NO_OVERHEAD}
        assert self.KNOWN.of_family("hopper").law.step_s == 1e-3

    def test_none_is_nothing(self) -> None:
        assert NO_OVERHEAD.seconds(layers=80.0, sequences=256.0) == 0.0
        assert NO_OVERHEAD.floor_fraction == 1.0

    def test_times_add_up_over_arrays(self) -> None:
        """1 ms, 80 layers of 10 us and 5 us for each sequence: 1.8 ms and 5 us more for each."""
        law = overhead(step_s=1e-3, layer_s=1e-5, sequence_s=5e-6)
        found = law.seconds(layers=80.0, sequences=np.array([0.0, 1.0, 200.0]))
        np.testing.assert_allclose(found, [1.8e-3, 1.805e-3, 2.8e-3])


class TestShipped:
    @pytest.mark.parametrize("name", CATALOG.names("overheads"))
    def test_fits_say_how_good_they_are(self, name: str) -> None:
        known = CATALOG.overheads_file(name)
        assert name.startswith(known.engine)
        for family in known.families.values():
            if family.fit is None:
                assert family.assumed is not None
                assert len(family.assumed) > 40
            else:
                assert family.fit.rows > 0
                assert 0 < family.fit.median_ape <= family.fit.p90_ape

    def test_the_vendors_own_engine_is_assumed_and_says_so(self) -> None:
        native = CATALOG.overheads("native")
        chosen = native.of_family("wafer")
        assert chosen.source.startswith("assumed: native on wafer: ")
        # Statically scheduled: tens of microseconds a step, also with 80 layers.
        for family in ("wafer", "lpu"):
            law = native.of_family(family).law
            assert law.seconds(layers=80.0, sequences=1.0) < 100e-6
        (said,) = chosen.limits("case", "llama_3_1_70b")
        assert "assumed" in said

    def test_the_vendors_own_engine_runs_on_its_own_chips_alone(self) -> None:
        with pytest.raises(InputError, match=r"native does not run on chips of family hopper.*tpu"):
            CATALOG.overheads("native").of_family("hopper")

    def test_a_law_has_one_origin(self) -> None:
        with pytest.raises(ValidationError, match="either fit or assumed"):
            FamilyOverhead(law=NO_OVERHEAD, fit=FIT, assumed="both")
        with pytest.raises(ValidationError, match="either fit or assumed"):
            FamilyOverhead(law=NO_OVERHEAD)

    def test_a_deployment_uses_that_of_its_chip(self, tmp_path: Path) -> None:
        (run,) = runs(tmp_path, ("llama_3_1_8b", 1, 4))
        step = deploy(run.case, CATALOG).timer.overhead
        assert step == CATALOG.overheads("vllm").of_family("hopper").law


# --- Exact data: runs measured in our own simulator, in which the overhead is known.

RUNS = (
    *(("llama_3_1_8b", 1, clients) for clients in (1, 8, 48)),
    *(("llama_3_1_8b", 4, clients) for clients in (1, 16)),
    *(("llama_3_1_70b", 4, clients) for clients in (1, 8, 48)),
    *(("llama_3_1_70b", 8, clients) for clients in (1, 16)),
)
HEADER = (
    "row_id,source_key,quality,hardware,num_chips,tp,model,weight_dtype,engine,scenario,isl,osl,"
    "concurrency,request_rate_qps,tpot_p50_ms,ttft_p50_ms"
)
AS_MEASURED = {
    "llama_3_1_8b": "Llama-3.1-8B",
    "llama_3_1_70b": "Llama-3.1-70B",
    "llama_3_1_405b": "Llama-3.1-405B",
}


def runs(folder: Path, *rows: tuple[str, int, int], load: str = "concurrency") -> list[MeasuredRun]:
    """Give closed loops, or open ones with a request every few seconds."""
    lines = [HEADER]
    for index, (model, tp, clients) in enumerate(rows):
        loads = f"{clients}," if load == "concurrency" else ",0.2"
        lines.append(
            f"r{index},ours,A,H100-SXM-80GB,{tp},{tp},{AS_MEASURED[model]},fp8,vllm,{load},"
            f"200,20,{loads},1,1"
        )
    path = folder / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    found = [run for run in read_runs(path, open_catalog()) if isinstance(run, MeasuredRun)]
    assert len(found) == len(rows)
    return found


def measured_with(law: EngineOverhead, found: list[MeasuredRun]) -> list[MeasuredRun]:
    """Replace what was measured by what a forecast with this overhead gives."""
    trial = CATALOG.with_overhead(law)

    def exact(run: MeasuredRun) -> Mapping[str, float]:
        told = replay(run.case, trial, seed=1)
        return {quantity: told[run.statistic[quantity]] for quantity in ("tpot", "ttft")}

    return [replace(run, measured=exact(run)) for run in found]  # type: ignore[arg-type]


PLAIN = [each.field for each in PARAMETERS if each.field not in ("dealt_layer_s", "launch_s")]
"""What tells in runs of models without experts on an engine whose prompts have graphs."""


def fitted_law(found: list[MeasuredRun]) -> EngineOverhead:
    files, _ = calibrated(found, CATALOG, jobs=1, rounds=5, from_scratch=True)
    assert list(files) == ["vllm"]
    return files["vllm"].families["hopper"].law


class TestFit:
    TRUTH = overhead(
        step_s=3e-3, layer_s=1e-5, sequence_s=4e-5, floor_fraction=0.2, frontend_s=0.0123
    )

    def test_exact_data_return_what_they_were_made_with(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No prior pulls; parameters that act alike have only their sum."""
        monkeypatch.setattr(sim.calibration.overhead_fit, "PRIOR_WEIGHT", 1e-5)
        found = measured_with(self.TRUTH, runs(tmp_path, *RUNS))
        law = fitted_law(found)
        assert law.step_s == pytest.approx(self.TRUTH.step_s, rel=0.1)
        assert law.frontend_s == pytest.approx(self.TRUTH.frontend_s, rel=0.1)
        trial = CATALOG.with_overhead(law)
        for run in found:
            told = replay(run.case, trial, seed=1)
            for quantity, measured in run.measured.items():
                assert told[run.statistic[quantity]] == pytest.approx(measured, rel=0.03)

    def test_the_prior_settles_what_runs_do_not_tell(self, tmp_path: Path) -> None:
        """Models without experts, prompts with graphs: nothing pulls at those two."""
        law = fitted_law(measured_with(self.TRUTH, runs(tmp_path, *RUNS[:4])))
        assert law.launch_s == pytest.approx(2e-5)
        assert law.dealt_layer_s == pytest.approx(1e-5)

    def test_runs_go_to_the_family_of_their_chip(self, tmp_path: Path) -> None:
        found = runs(tmp_path, *RUNS[:3], ("llama_3_1_405b", 1, 1))
        # 405 GB of weights do not fit on one chip of 80.
        kept = usable(found, CATALOG)
        assert [run.row_id for run in kept] == ["r0", "r1", "r2"]
        groups = grouped(responses(kept, CATALOG), CATALOG)
        assert {name: len(rows) for name, rows in groups["vllm"].items()} == {"hopper": 3}


class TestResponse:
    def test_first_order_answers_are_those_of_a_simulation(self, tmp_path: Path) -> None:
        """A run alone: every token takes a step, and the first one the time of its prompt."""
        (run,) = measured_with(overhead(), runs(tmp_path, ("llama_3_1_70b", 4, 1)))
        found = respond(run, CATALOG)
        assert found is not None
        other = overhead(
            step_s=2e-3, layer_s=8e-6, sequence_s=2e-5, floor_fraction=0.6, frontend_s=0.02
        )
        told = replay(run.case, CATALOG.with_overhead(other), seed=1)
        for quantity in ("tpot", "ttft"):
            exact = told[run.statistic[quantity]]
            assert found.at(quantity, vector(other)) == pytest.approx(exact, rel=0.01), quantity

    def test_a_law_survives_the_scales(self) -> None:
        law = overhead(step_s=1.23e-3, launch_s=4.5e-5, floor_fraction=0.25, frontend_s=0.0)
        assert law_of(vector(law)) == law


class TestHierarchy:
    """Made-up answers: TPOT is 10 ms and the steps' own time."""

    def response(self, run: MeasuredRun, measured_s: float) -> Response:
        slope = np.zeros(len(PARAMETERS))
        slope[0] = 1e-3
        told = replace(run, measured={"tpot": measured_s})
        law = overhead(step_s=1e-3)
        return Response(told, 8.0, 0.1, law, {"tpot": 0.011}, {"tpot": slope})

    def test_few_runs_are_pulled_to_the_engine_and_many_are_not(self, tmp_path: Path) -> None:
        """By hand, for errors within the robust scale: squares of both pulls are least together.

        A millisecond of 13 is log 1.08; one of the prior's half spread is 0.6 x 0.05 x 2.
        """
        (run,) = runs(tmp_path, RUNS[0])
        many = [self.response(run, 0.012) for _ in range(60)]  # 2 ms
        one, sixty = ([self.response(run, 0.013)] * count for count in (1, 60))  # 3 ms
        few = fit_families({"hopper": many, "blackwell": one})["blackwell"].scaled[0]
        more = fit_families({"hopper": many, "blackwell": sixty})["blackwell"].scaled[0]
        by_run, by_prior = np.log(13 / 12), PRIOR_WEIGHT * ROBUST_SCALE / 0.5
        assert few == pytest.approx(2 + by_run**2 / (by_run**2 + by_prior**2), abs=0.1)
        assert more == pytest.approx(3.0, abs=0.1)

    def test_errors_shrink_with_the_root_of_the_runs(self, tmp_path: Path) -> None:
        (run,) = runs(tmp_path, RUNS[0])
        rng = np.random.default_rng(1)
        scattered = [self.response(run, 0.012 * np.exp(x)) for x in rng.normal(0, 0.02, 6400)]
        small, large = fit(scattered[:400]), fit(scattered)
        ratio = np.sqrt(small.covariance[0, 0] / large.covariance[0, 0])
        assert ratio == pytest.approx(4.0, rel=0.15)
        # 2 % of 12 ms over the root of 6400, in units of a millisecond
        assert np.sqrt(large.covariance[0, 0]) == pytest.approx(0.24 / 80, rel=0.15)
        assert PRIOR[0] == 1.0


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    law = overhead(step_s=1.23e-3, layer_s=4.5e-6, sequence_s=0.0, floor_fraction=0.25)
    fitted = {"hopper": FamilyOverhead(law=law, models=("llama_3_1_70b",), fit=FIT)}
    known = EngineOverheads(engine="vllm", about="", date="", method="", families=fitted)
    path = write_overheads("vllm", known, tmp_path, "a test, 7 runs")
    assert path.name == "vllm.yaml"
    assert path.read_text(encoding="utf-8").startswith(
        "# Overheads of vllm. Made by: a test, 7 runs\n"
    )
    assert validate(EngineOverheads, load_yaml(path)) == known


def test_few_numbers_are_fitted_to_serving_runs() -> None:
    """At most twelve per chip family and engine, and none per model: kernels tell models apart."""
    for name in CATALOG.names("overheads"):
        for family, known in CATALOG.overheads_file(name).families.items():
            numbers = [value for value in known.law.model_dump().values() if value]
            assert len(numbers) <= len(PARAMETERS) <= 12, (name, family)

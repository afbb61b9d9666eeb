"""Scenarios: shared keys under cases, every mistake at its place, and settings that win."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_scenarios import CLOSED_LOOP, FOUR_CASES, ONE_CASE, write

from sim.catalog import open_catalog
from sim.errors import InputError
from sim.scenario import Scenario, load_scenario, scenario_json_schema
from sim.schema import load_yaml
from sim.serving import ServingEngine
from sim.workload.kinds import ClosedLoopWorkload, OpenLoopWorkload, TraceWorkload

SHIPPED = sorted(open_catalog().files["scenarios"].values())


def refused(path: Path, *settings: tuple[str, str]) -> list[str]:
    """Return the lines of the error, with the file's name in place of its path."""
    with pytest.raises(InputError) as caught:
        load_scenario(path, settings)
    return str(caught.value).replace(str(path), path.name).splitlines()


class TestCases:
    def test_a_file_without_cases_has_one_with_its_name(self, tmp_path: Path) -> None:
        scenario = load_scenario(write(tmp_path, ONE_CASE))
        assert [case.name for case in scenario.cases] == ["small"]
        assert scenario.header.seed == 1

    def test_a_case_overrides_what_it_names_and_keeps_the_rest(self, tmp_path: Path) -> None:
        cases = {case.name: case for case in load_scenario(write(tmp_path, FOUR_CASES)).cases}
        assert [case.system for case in cases.values()] == [
            "h100_sxm_x8",
            "h200_sxm_x8",
            "b200_sxm_x8",
            "h100_sxm_x8",
        ]
        halves = cases["H100, two halves"]
        assert (halves.parallelism.tp, cases["H100"].parallelism.tp) == (4, 8)
        # A mapping merges key by key: the engine keeps its name.
        assert (halves.engine.name, halves.engine.max_num_seqs) == ("vllm", 128)
        assert halves.workload == cases["H100"].workload

    def test_a_union_member_of_another_kind_replaces(self, tmp_path: Path) -> None:
        text = ONE_CASE + "cases:\n  - {name: open}\n  - name: closed\n" + CLOSED_LOOP
        opened, closed = load_scenario(write(tmp_path, text)).cases
        assert isinstance(opened.workload, OpenLoopWorkload)
        assert isinstance(closed.workload, ClosedLoopWorkload)
        assert (closed.workload.requests, closed.workload.concurrency) == (30, 3)

    def test_a_list_replaces(self, tmp_path: Path) -> None:
        text = ONE_CASE + (
            "curve: {concurrency_per_replica: [1, 2, 4]}\n"
            "cases:\n  - {name: a, curve: {concurrency_per_replica: [8]}}\n  - {name: b}\n"
        )
        a, b = load_scenario(write(tmp_path, text)).cases
        assert a.curve is not None
        assert b.curve is not None
        assert (a.curve.concurrency_per_replica, b.curve.concurrency_per_replica) == (
            (8,),
            (1, 2, 4),
        )


class TestMistakes:
    def test_a_misspelt_shared_key_is_reported_once_with_its_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, FOUR_CASES, ("max_num_seqs: 64", "max_num_seq: 64"))
        assert refused(path) == [
            "small.yaml:7: engine.max_num_seq: unknown key; did you mean max_num_seqs?"
        ]

    def test_a_mistake_in_a_case_is_at_the_line_of_the_case(self, tmp_path: Path) -> None:
        path = write(tmp_path, FOUR_CASES, ("{max_num_seqs: 128}", "{max_num_seqs: lots}"))
        assert refused(path) == ["small.yaml:21: engine.max_num_seqs: 'lots' is not a whole number"]

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            FOUR_CASES,
            ("question:", "seed: -1\nquestion:"),
            ("kind: poisson", "kind: poison"),
            ("{tp: 4}", "{tp: 0}"),
            ("1 s,", "fast,"),
        )
        found = refused(path)
        assert [re.match(r"small.yaml:(\d+): ([\w.]+)", line).groups() for line in found] == [
            ("2", "seed"),
            ("12", "workload.arrivals.kind"),
            ("14", "slo.ttft_s"),
            ("21", "parallelism.tp"),
        ]
        assert "did you mean poisson?" in found[1]
        assert "'fast' is not a duration" in found[2]

    def test_a_missing_key_of_a_case(self, tmp_path: Path) -> None:
        path = write(tmp_path, FOUR_CASES, ("- {name: H200, ", "- {nam: H200, "))
        assert refused(path) == [
            "small.yaml:17: name: missing key",
            "small.yaml:17: nam: unknown key; did you mean name?",
        ]

    def test_a_missing_header_key(self, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE, ("question: Does a small scenario run?\n", ""))
        assert refused(path) == ["small.yaml:1: question: missing key"]

    def test_two_cases_of_one_name(self, tmp_path: Path) -> None:
        path = write(tmp_path, FOUR_CASES, ("name: B200", "name: H100"))
        assert refused(path) == ["small.yaml:15: cases: two cases are called 'H100'"]

    @pytest.mark.parametrize("cases", ["[]", "4", "{a: {system: h200_sxm_x8}}"])
    def test_cases_that_are_no_list(self, tmp_path: Path, cases: str) -> None:
        path = write(tmp_path, ONE_CASE + f"cases: {cases}\n")
        assert refused(path) == ["small.yaml:15: cases: must be a list of at least one case"]

    def test_a_case_that_is_no_mapping(self, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE + "cases:\n  - {name: a}\n  - H200\n")
        assert refused(path) == ["small.yaml:17: cases.1: must be a mapping with a name"]

    def test_a_workload_with_two_rates(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            ONE_CASE,
            ("requests: 20", "requests: 20\n  load_fraction: 0.5\n  rate_requests_per_s: 3"),
        )
        assert refused(path) == [
            "small.yaml:8: workload: give rate_requests_per_s or load_fraction; "
            "set the other to null"
        ]

    def test_a_budget_below_the_batch(self, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE, ("64}", "64, max_num_batched_tokens: 63}"))
        (line,) = refused(path)
        assert line.startswith("small.yaml:7: engine: max_num_batched_tokens (63) is below")

    def test_a_curve_without_points(self, tmp_path: Path) -> None:
        path = write(tmp_path, ONE_CASE + "curve: {concurrency_per_replica: []}\n")
        (line,) = refused(path)
        assert line.startswith("small.yaml:15: curve.concurrency_per_replica: a list of 0")


class TestSettings:
    def test_a_shared_key_wins_over_the_cases(self, tmp_path: Path) -> None:
        scenario = load_scenario(write(tmp_path, FOUR_CASES), [("parallelism.tp", "2")])
        assert [case.parallelism.tp for case in scenario.cases] == [2, 2, 2, 2]

    def test_one_case(self, tmp_path: Path) -> None:
        settings = [("parallelism.tp", "2"), ("cases.0.parallelism.tp", "4")]
        scenario = load_scenario(write(tmp_path, FOUR_CASES), settings)
        assert [case.parallelism.tp for case in scenario.cases] == [4, 2, 2, 2]

    def test_a_case_with_a_workload_of_its_own_keeps_its_kind(self, tmp_path: Path) -> None:
        text = ONE_CASE + "cases:\n  - {name: open}\n  - name: closed\n" + CLOSED_LOOP
        scenario = load_scenario(write(tmp_path, text), [("workload.requests", "7")])
        assert [case.workload.kind for case in scenario.cases] == ["open_loop", "closed_loop"]
        assert [case.workload.requests for case in scenario.cases] == [7, 7]

    def test_a_whole_mapping(self, tmp_path: Path) -> None:
        scenario = load_scenario(write(tmp_path, FOUR_CASES), [("engine", "{name: trtllm}")])
        engines = {(case.engine.name, case.engine.max_num_seqs) for case in scenario.cases}
        assert engines == {("trtllm", ServingEngine().max_num_seqs)}

    def test_the_name_of_the_scenario_is_not_that_of_the_cases(self, tmp_path: Path) -> None:
        scenario = load_scenario(write(tmp_path, FOUR_CASES), [("name", "other"), ("seed", "5")])
        assert (scenario.header.name, scenario.header.seed) == ("other", 5)
        assert scenario.cases[0].name == "H100"

    def test_the_last_of_two_wins(self, tmp_path: Path) -> None:
        settings = [("seed", "1"), ("seed", "2")]
        assert load_scenario(write(tmp_path, ONE_CASE), settings).header.seed == 2

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("engine.max_num_seq", "3", "--set engine.max_num_seq: unknown key; did you mean"),
            ("enginee.name", "x", "--set enginee.name: enginee: unknown key; did you mean engine?"),
            ("cases", "[]", "--set cases: must be a list of at least one case"),
            ("cases.0", "3", "--set cases.0: must be a mapping with a name"),
            ("cases.9.model", "x", "--set cases.9.model: cases is a list of 4"),
            ("parallelism.tp", "0", "--set parallelism.tp: 0 is too small"),
            ("slo.ttft_s", "5 GB", "--set slo.ttft_s: '5 GB' is an amount of data"),
            ("model", "[a", "--set model: not valid YAML"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, key: str, value: str, message: str) -> None:
        (line,) = refused(write(tmp_path, FOUR_CASES), (key, value))
        assert line.startswith(message)


class TestTracePaths:
    TRACE = (
        "workload:\n  kind: trace\n  path: day.csv\n"
        "slo: {ttft_s: 1 s, tpot_s: 100 ms}\nprices: {book: us_2026_11}\n"
    )

    def path_of(self, scenario: Scenario) -> Path | None:
        (case,) = scenario.cases
        assert isinstance(case.workload, TraceWorkload)
        return case.workload.path

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        before = ONE_CASE[: ONE_CASE.index("workload:")]
        return write(tmp_path, before + self.TRACE)

    def test_in_the_file_it_starts_from_the_file(self, file: Path) -> None:
        assert self.path_of(load_scenario(file)) == file.parent / "day.csv"

    def test_in_a_setting_it_starts_from_the_working_directory(self, file: Path) -> None:
        scenario = load_scenario(file, [("workload.path", "night.csv")])
        assert self.path_of(scenario) == Path("night.csv")

    def test_an_absolute_one_stays(self, file: Path, tmp_path: Path) -> None:
        text = file.read_text(encoding="utf-8").replace("day.csv", str(tmp_path / "x" / "day.csv"))
        file.write_text(text, encoding="utf-8")
        assert self.path_of(load_scenario(file)) == tmp_path / "x" / "day.csv"

    def test_in_a_case_it_starts_from_the_file_too(self, file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        text += "cases:\n  - {name: a, workload: {path: other.csv}}\n"
        file.write_text(text, encoding="utf-8")
        assert self.path_of(load_scenario(file)) == file.parent / "other.csv"


# --- The JSON Schema that editors use.

KNOWN_WORDS = frozenset(
    {"$ref", "additionalProperties", "anyOf", "const", "discriminator", "enum", "items"}
    | {
        "maxItems",
        "minItems",
        "minProperties",
        "oneOf",
        "prefixItems",
        "properties",
        "required",
        "type",
    }
    | {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "pattern"}
    | {"$defs", "$schema", "default", "description", "examples", "format", "title"}
)
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def mismatches(value: Any, shape: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """Judge a value by the part of JSON Schema that ours uses; bounds of numbers aside."""
    assert set(shape) <= KNOWN_WORDS, set(shape) - KNOWN_WORDS
    if "$ref" in shape:
        name = shape["$ref"].removeprefix("#/$defs/")
        yield from mismatches(value, root["$defs"][name], root)
    for branches in (shape.get("anyOf"), shape.get("oneOf")):
        found = [list(mismatches(value, branch, root)) for branch in branches or ()]
        if found and all(found):
            yield from min(found, key=len)
    yield from scalar_mismatches(value, shape)
    if isinstance(value, dict):
        yield from mapping_mismatches(value, shape, root)
    if isinstance(value, list) and "items" in shape:
        for item in value:
            yield from mismatches(item, shape["items"], root)


def scalar_mismatches(value: Any, shape: Mapping[str, Any]) -> Iterator[str]:
    if "type" in shape and not isinstance(value, TYPES[shape["type"]]):
        yield f"{value!r} is no {shape['type']}"
    if "enum" in shape and value not in shape["enum"]:
        yield f"{value!r} is none of {shape['enum']}"
    if "const" in shape and value != shape["const"]:
        yield f"{value!r} is not {shape['const']!r}"


def mapping_mismatches(
    value: Mapping[str, Any], shape: Mapping[str, Any], root: Mapping[str, Any]
) -> Iterator[str]:
    yield from (f"{key} is missing" for key in shape.get("required", ()) if key not in value)
    for key, inner in value.items():
        known = shape.get("properties", {})
        if key in known:
            yield from mismatches(inner, known[key], root)
        elif shape.get("additionalProperties") is False:
            yield f"{key} is unknown"


class TestJsonSchema:
    SCHEMA = scenario_json_schema()

    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_it_accepts_every_shipped_scenario(self, path: Path) -> None:
        assert not list(mismatches(load_yaml(path).data, self.SCHEMA, self.SCHEMA))

    def test_it_accepts_shared_and_overriding_keys(self) -> None:
        assert not list(mismatches(load_yaml(FOUR_CASES).data, self.SCHEMA, self.SCHEMA))

    @pytest.mark.parametrize(
        ("old", "new", "found"),
        [
            ("engine:", "engin:", "engin is unknown"),
            ("max_num_seqs: 64", "max_num_seq: 64", "max_num_seq is unknown"),
            ("- {name: H200, ", "- {", "name is missing"),
            ("question: Does a small scenario run?\n", "", "question is missing"),
            (
                "name: vllm",
                "kernels: llama",
                "'llama' is none of ['trtllm', 'vllm', 'sglang', 'native']",
            ),
            ("requests: 20", "requests: many", "'many' is no integer"),
        ],
    )
    def test_it_refuses_what_we_refuse(self, old: str, new: str, found: str) -> None:
        assert old in FOUR_CASES
        data = load_yaml(FOUR_CASES.replace(old, new)).data
        assert found in list(mismatches(data, self.SCHEMA, self.SCHEMA))

    def test_every_key_is_explained_or_speaks_for_itself(self) -> None:
        """Editors show the descriptions: those of the blocks stand at the model they refer to."""
        bare = {
            key
            for key, shape in self.SCHEMA["properties"].items()
            if "description" not in shape and "$ref" not in str(shape)
        }
        assert bare == {"schema_version", "name"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_valid(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.header.name == path.stem
    assert scenario.header.question.strip().endswith("?")

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from sim.errors import InputError
from sim.schema import (
    KeyPath,
    Located,
    StrictModel,
    did_you_mean,
    json_schema,
    load_yaml,
    merge,
    set_path,
    validate,
)
from sim.units import Dtype, Fraction, PositiveInt, Seconds


class Poisson(StrictModel):
    kind: Literal["poisson"]
    rate: float


class Trace(StrictModel):
    kind: Literal["trace"]
    trace: Path
    """Called like its own kind: the hard case for positions."""
    speed: Annotated[float, Field(gt=0, le=1_048_576)] = 1.0


Arrivals = Annotated[Poisson | Trace, Field(discriminator="kind")]


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Engine(StrictModel):
    max_num_seqs: PositiveInt
    """Sequences in one batch."""
    block_tokens: Literal[16, 32] = 16
    dtype: Dtype = "bf16"
    role: Role = Role.DECODE


class Slo(StrictModel):
    ttft_s: Seconds
    tpot_s: Seconds | Literal["auto"] = "auto"
    knots: tuple[tuple[float, float], ...] = ()


class Tree(StrictModel):
    name: str
    children: tuple["Tree", ...] = ()


class Scenario(StrictModel):
    engine: Engine
    slo: Slo | None = None
    workload: Arrivals | None = None
    mix: tuple[Arrivals, ...] = ()
    pools: Mapping[str, Engine] = {}
    peaks: Mapping[Dtype, float] = {}
    tree: Tree | None = None
    share: Fraction = 1.0
    streaming: bool = True
    note: str = ""


def problems(text: str, model: type[StrictModel] = Scenario) -> list[str]:
    """Return what is wrong with `text`, one line per problem."""
    with pytest.raises(InputError) as caught:
        validate(model, load_yaml(text, "x.yaml"))
    return str(caught.value).splitlines()


def refusal(text: str | Path) -> list[str]:
    """Return why `text` is not strict YAML, one line per problem."""
    with pytest.raises(InputError) as caught:
        load_yaml(text, "x.yaml")
    return str(caught.value).splitlines()


# --- Strict YAML.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e12", 1e12),
        ("1E-3", 1e-3),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("256", 256),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("2026-11-20", "2026-11-20"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("=", "="),
        ("9" * 101, "9" * 101),
        ("'1e12'", "1e12"),
        ('"true"', "true"),
        ("3.35 TB/s", "3.35 TB/s"),
        ("|\n  5\n", "5\n"),
        ("[1, [on, 2.0]]", [1, ["on", 2.0]]),
        ("{b: 1e3}", {"b": 1000.0}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = load_yaml(f"a: {text}").data["a"]
    assert read == value
    assert type(read) is type(value)


def test_each_value_knows_the_line_of_its_key_or_item() -> None:
    located = load_yaml(
        "# a comment\n\na:\n  b:\n  - 1\n  -\n    c: 2\nd: {e: [5,\n  6]}\n", "x.yaml"
    )
    lines = {path: position.line for path, position in located.positions.items()}
    assert lines == {
        (): 3,
        ("a",): 3,
        ("a", "b"): 4,
        ("a", "b", 0): 5,
        ("a", "b", 1): 7,  # the item begins where its first key stands
        ("a", "b", 1, "c"): 7,
        ("d",): 8,
        ("d", "e"): 8,
        ("d", "e", 0): 8,
        ("d", "e", 1): 9,
    }
    assert str(located.position(("a", "b", 0))) == "x.yaml:5"


def test_what_is_missing_stands_where_its_parent_stands() -> None:
    located = load_yaml("top: 1\na:\n  b: 1\n", "x.yaml")
    assert located.position(("a", "missing", 0)).line == 2
    assert located.position(("missing",)).line == 1


def test_every_problem_of_the_strict_subset_is_told_at_once() -> None:
    text = """\
a: 1
b:
  c: 1
  c: 2
a: 3
1: x
true: y
? [z]
: 1
d: &anchor 5
e: *anchor
<<: {f: 1}
g: !!python/object 7
h: !!str 8
"""
    assert refusal(text) == [
        "x.yaml:4: b.c: repeated key; first at x.yaml:3",
        "x.yaml:5: a: repeated key; first at x.yaml:1",
        "x.yaml:6: 1: this key is not text; put it in quotes",
        "x.yaml:7: true: this key is not text; put it in quotes",
        "x.yaml:8: ?: this key is not text; put it in quotes",
        "x.yaml:10: d: anchors and aliases are not supported; write the value out",
        "x.yaml:11: e: anchors and aliases are not supported; write the value out",
        "x.yaml:12: <<: merge keys are not supported; write the values out",
        "x.yaml:13: g: tags (!) are not supported; put text in quotes",
        "x.yaml:14: h: tags (!) are not supported; put text in quotes",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml:1: the document is empty"),
        ("# nothing\n", "x.yaml:1: the document is empty"),
        ("---\n", "x.yaml:2: the document is empty"),
        ("\n- 1\n", "x.yaml:2: the document is a list; it must be a mapping (key: value)"),
        ("h100.yaml", "x.yaml:1: the document is 'h100.yaml'; it must be a mapping (key: value)"),
        ("a: 1\n\tb: 2", "x.yaml:2: not valid YAML: "),
        ("a: b: c", "x.yaml:1: not valid YAML: "),
        ("a: [1,\nb: 2", "x.yaml:3: not valid YAML: "),
        ("a: 'x", "x.yaml:1: not valid YAML: "),
        ("a: @x", "x.yaml:1: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: a second document begins here; a file holds one"),
        ("a: 1\nb: \x01\n", "x.yaml:2: control character '\\x01' in the text"),
        ("a: &a [*a]", "x.yaml:1: a: anchors and aliases are not supported"),
        ("a: " + 60 * "[" + 60 * "]", "x.yaml:1: nested more than 50 deep"),
        ("a: " + 100_000 * "[", "x.yaml:1: nested more than 50 deep"),
    ],
)
def test_a_document_that_cannot_be_read_says_where(text: str, message: str) -> None:
    assert refusal(text)[0].startswith(message)


yaml_like = st.text("ab:-?[]{}&*!|>'\"%@`#,. 01\n\t\\~é\x00\x85\u2028\ufeff\ud800") | st.text()


@given(yaml_like)
def test_any_text_is_read_or_refused_with_its_source(text: str) -> None:
    try:
        document = load_yaml(text, "x.yaml")
    except InputError as error:
        assert str(error).startswith("x.yaml:")
    else:
        assert set(document.positions) == set(paths(document.data))


def test_a_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "chip.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: \xc2\xb5\n")  # with a byte order mark
    located = load_yaml(file)
    assert located.data == {"name": "µ"}
    assert str(located.position(("name",))) == f"{file}:1"
    assert str(load_yaml(file, "chip").position(("name",))) == "chip:1"


def test_a_file_that_is_no_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "latin1.yaml"
    file.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    with pytest.raises(InputError) as caught:
        load_yaml(file)
    assert str(caught.value) == f"{file}:2: not UTF-8 text; save the file as UTF-8"


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == ["x.yaml: cannot be read: No such file or directory"]
    assert refusal(tmp_path) == ["x.yaml: cannot be read: Is a directory"]


# --- Validation.


def test_a_valid_document_becomes_a_typed_model() -> None:
    scenario = validate(
        Scenario,
        load_yaml(
            """\
engine: {max_num_seqs: 256, dtype: fp8, role: prefill}
slo: {ttft_s: 500 ms, tpot_s: 0.03, knots: [[1, 2], [3.5, 4]]}
workload: {kind: trace, trace: azure.csv, speed: 2}
mix: [{kind: poisson, rate: 3}]
pools: {a: {max_num_seqs: 1}}
tree: {name: root, children: [{name: leaf}]}
share: 10 %
"""
        ),
    )
    assert scenario.engine == Engine(max_num_seqs=256, dtype="fp8", role=Role.PREFILL)
    assert scenario.slo == Slo(ttft_s=0.5, tpot_s=0.03, knots=((1.0, 2.0), (3.5, 4.0)))
    assert scenario.workload == Trace(kind="trace", trace=Path("azure.csv"), speed=2.0)
    assert scenario.mix == (Poisson(kind="poisson", rate=3.0),)
    assert scenario.tree == Tree(name="root", children=(Tree(name="leaf"),))
    assert scenario.share == 0.1


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
slo:
  ttft_s: fast
  tpot_s: 700 W
  knots: [[1, x], [1, 2, 3]]
engine:
  max_num_seq: 256
  dtype: FP9
  block_tokens: 17
  role: decod
workload:
  kind: trace
  trace: 5
  speed: 0x1F
mix:
- kind: poison
  rate: 3
- rate: 5
- 7
- kind: poisson
  rate: 1e999
  colour: red
pools:
  a: {max_num_seqs: -4}
  b: 7
peaks: {fp88: 1, bf16: fast}
share: 120 %
streaming: yes
note: 2026
"""
    dtypes = "fp32, bf16, fp16, fp8, int8, int4, nvfp4, mxfp4"
    assert problems(text) == [
        "x.yaml:2: slo.ttft_s: 'fast' is not a duration; write e.g. '500 ms' or 0.5",
        "x.yaml:3: slo.tpot_s: '700 W' is a power, not a duration; write e.g. '500 ms' or 0.5;"
        " or '700 W' is not one of: auto",
        "x.yaml:4: slo.knots.0.1: 'x' is not a number",
        "x.yaml:4: slo.knots.1: a list of 3 is too long; it must have at most 2 items",
        "x.yaml:5: engine.max_num_seqs: missing key",
        "x.yaml:6: engine.max_num_seq: unknown key; did you mean max_num_seqs?",
        f"x.yaml:7: engine.dtype: 'FP9' is not one of: {dtypes}; did you mean fp8?",
        "x.yaml:8: engine.block_tokens: 17 is not one of: 16, 32",
        "x.yaml:9: engine.role: 'decod' is not one of: prefill, decode; did you mean decode?",
        "x.yaml:12: workload.trace: 5 is not a path",
        "x.yaml:13: workload.speed: '0x1F' is not a number",
        "x.yaml:15: mix.0.kind: 'poison' is not one of: poisson, trace; did you mean poisson?",
        "x.yaml:17: mix.1.kind: missing key; one of: poisson, trace",
        "x.yaml:18: mix.2: 7 is not a mapping",
        "x.yaml:20: mix.3.rate: inf is not a finite number",
        "x.yaml:21: mix.3.colour: unknown key; allowed keys: kind, rate",
        "x.yaml:23: pools.a.max_num_seqs: -4 is too small; it must be greater than 0",
        "x.yaml:24: pools.b: 7 is not a mapping",
        "x.yaml:25: peaks.fp88: unknown key; did you mean fp8?",
        "x.yaml:25: peaks.bf16: 'fast' is not a number",
        "x.yaml:26: share: '120 %' is too large; it must be at most 1",
        "x.yaml:27: streaming: 'yes' is neither true nor false",
        "x.yaml:28: note: 2026 is not text; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "x.yaml:1: engine: missing key"),
        ("engine:", "x.yaml:1: engine: null is not a mapping"),
        ("engine: 3", "x.yaml:1: engine: 3 is not a mapping"),
        ("{engine: {max_num_seqs: 1}, pools: 3}", "x.yaml:1: pools: 3 is not a mapping"),
        ("{engine: {max_num_seqs: 1}, mix: 3}", "x.yaml:1: mix: 3 is not a list"),
        ("engine: []", "x.yaml:1: engine: a list of 0 is not a mapping"),
        ("{engine: {max_num_seqs: true}}", "x.yaml:1: engine.max_num_seqs: true is not a whole"),
        ("{engine: {max_num_seqs: 1.0}}", "x.yaml:1: engine.max_num_seqs: 1.0 is not a whole"),
        ("{engine: {max_num_seqs: '1'}}", "x.yaml:1: engine.max_num_seqs: '1' is not a whole"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(text: str, message: str) -> None:
    assert problems(text)[0].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: 3", "x.yaml:2: workload.kind: 3 is not one of: poisson, trace"),
        ("kind: null", "x.yaml:2: workload.kind: null is not one of: poisson, trace"),
        (
            "kind: trace, trace: t.csv, speed: -1",
            "x.yaml:2: workload.speed: -1 is too small; it must be greater than 0",
        ),
        (
            "kind: trace, trace: t.csv, speed: 1e9",
            "x.yaml:2: workload.speed: 1000000000.0 is too large; it must be at most 1048576",
        ),
        ("kind: trace", "x.yaml:2: workload.trace: missing key"),
        (
            "kind: trace, trace: t.csv, colour: 1",
            "x.yaml:2: workload.colour: unknown key; allowed keys: kind, trace, speed",
        ),
    ],
)
def test_the_tag_of_a_union_is_no_part_of_the_path(text: str, message: str) -> None:
    assert problems(f"engine: {{max_num_seqs: 1}}\nworkload: {{{text}}}") == [message]


@pytest.mark.parametrize("text", ["'5'", "true", ".inf", ".nan", "1e999", "x"])
def test_a_number_is_a_finite_number_and_nothing_else(text: str) -> None:
    assert len(problems(f"{{kind: poisson, rate: {text}}}", Poisson)) == 1


def test_a_problem_inside_a_recursive_model_has_its_path() -> None:
    text = "engine: {max_num_seqs: 1}\ntree:\n  name: a\n  children:\n  - nam: b\n"
    assert problems(text) == [
        "x.yaml:5: tree.children.0.name: missing key",
        "x.yaml:5: tree.children.0.nam: unknown key; did you mean name?",
    ]


def test_the_words_of_a_models_own_check_are_kept() -> None:
    class Window(StrictModel):
        start_s: Seconds
        end_s: Seconds

        @model_validator(mode="after")
        def _check(self) -> "Window":
            if self.end_s <= self.start_s:
                raise ValueError(f"ends at {self.end_s:g} s, before it starts {{sic}}")
            return self

    class Run(StrictModel):
        window: Window

    assert problems("\nwindow: {start_s: 2, end_s: 1}", Run) == [
        "x.yaml:2: window: ends at 1 s, before it starts {sic}"
    ]
    assert problems("{start_s: 2, end_s: 1}", Window) == [
        "x.yaml:1: ends at 1 s, before it starts {sic}"
    ]


def test_an_error_outside_the_table_keeps_the_words_of_pydantic() -> None:
    class Named(StrictModel):
        name: Annotated[str, Field(pattern="^[a-z_{}]+$")]

    assert problems("name: '{A}'", Named) == [
        "x.yaml:1: name: '{A}': string should match pattern '^[a-z_{}]+$'"
    ]


def test_models_are_frozen_and_hashable() -> None:
    slo = Slo(ttft_s=0.5)
    with pytest.raises(ValidationError):
        slo.ttft_s = 1.0
    assert hash(slo) == hash(Slo(ttft_s=0.5))


def test_the_json_schema_carries_the_attribute_docstrings() -> None:
    schema = json_schema(Scenario)
    engine = schema["$defs"]["Engine"]
    assert schema["$schema"].endswith("2020-12/schema")
    assert engine["properties"]["max_num_seqs"]["description"] == "Sequences in one batch."
    assert engine["additionalProperties"] is False


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("max_num_seq", "; did you mean max_num_seqs?"),
        ("MAX_NUM_SEQS", "; did you mean max_num_seqs?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_a_suggestion_is_close_or_absent(name: str, tail: str) -> None:
    assert did_you_mean(name, ["max_num_seqs", "block_tokens"]) == tail


# --- merge, set_path and at.

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=16)
keys = st.sampled_from(["a", "b", "c", "kind", "on"]) | st.text("xyz.0:", min_size=1, max_size=3)
values = st.recursive(
    scalars | st.sampled_from(["", "on", "1e3", "3.35 TB/s", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
mappings = st.dictionaries(keys, values, max_size=4)


def located(data: Any, name: str = "x.yaml") -> Located:
    """Return `data` as read from a file that PyYAML wrote."""
    # Quoted text and '.inf' as plain text would differ between the dialects of YAML.
    return load_yaml(yaml.safe_dump(data, default_style=None, width=10**6), name)


def paths(data: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Return the path of every value in `data`, the root's first."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    return [path, *(found for key, value in items for found in paths(value, (*path, key)))]


def merged_by_hand(base: Any, override: Any) -> Any:
    """Return what `merge` promises, written the other way round."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    if "kind" in base and "kind" in override and base["kind"] != override["kind"]:
        return override
    both = {key: merged_by_hand(base[key], override[key]) for key in base if key in override}
    return {**base, **override, **both}


@given(mappings)
def test_every_value_has_a_position_and_nothing_else_has_one(data: dict[str, Any]) -> None:
    read = located(data)
    assert set(read.positions) == set(paths(read.data))
    assert all(position.line is not None for position in read.positions.values())


@given(mappings)
def test_merging_with_nothing_changes_nothing(data: dict[str, Any]) -> None:
    document, nothing = located(data), located({}, "empty.yaml")
    assert merge(document, nothing) == document
    laid_over = merge(nothing, document)
    assert laid_over.data == document.data
    assert all(
        laid_over.positions[path] == position
        for path, position in document.positions.items()
        if path
    )


@given(mappings)
def test_merging_with_itself_changes_nothing(data: dict[str, Any]) -> None:
    document = located(data)
    assert merge(document, document) == document


@given(mappings, mappings)
def test_the_override_wins_and_positions_follow(
    base_data: dict[str, Any], override_data: dict[str, Any]
) -> None:
    base, override = located(base_data, "base.yaml"), located(override_data, "override.yaml")
    merged = merge(base, override)
    assert merged.data == merged_by_hand(base.data, override.data)
    assert set(merged.positions) == set(paths(merged.data))
    for path in paths(override.data):
        value = override.at(path).data
        if not isinstance(value, dict):
            assert merged.at(path).data == value
            assert merged.position(path) == override.position(path)
    assert (base.data, override.data) == (
        located(base_data).data,
        located(override_data).data,
    )


def test_a_mapping_of_another_kind_replaces() -> None:
    base = load_yaml("workload: {kind: poisson, rate: 3}\nseed: 1\n", "base.yaml")
    other = load_yaml("workload: {kind: trace, trace: t.csv}\n")
    same = load_yaml("workload: {kind: poisson, burst: 2}\n")
    silent = load_yaml("workload: {rate: 4}\n")
    assert merge(base, other).data == {"workload": {"kind": "trace", "trace": "t.csv"}, "seed": 1}
    assert merge(base, same).data["workload"] == {"kind": "poisson", "rate": 3, "burst": 2}
    assert merge(base, silent).data["workload"] == {"kind": "poisson", "rate": 4}


def test_a_problem_of_a_merged_document_names_the_file_it_came_from() -> None:
    base = load_yaml("engine: {max_num_seqs: 1}\nslo: {ttft_s: 1}\n", "base.yaml")
    case = load_yaml("\n\nengine: {max_num_seqs: -1}\n", "case.yaml")
    with pytest.raises(InputError, match=r"^case\.yaml:3: engine\.max_num_seqs: -1 is too small"):
        validate(Scenario, merge(base, case))


@given(mappings, mappings)
def test_what_is_set_is_there_and_the_rest_is_as_it_was(
    data: dict[str, Any], value: dict[str, Any]
) -> None:
    document = located(data)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    for path in paths(document.data)[1:]:
        dotted = ".".join(str(key) for key in path)
        if len(dotted.split(".")) > len(path) or "" in dotted.split("."):
            continue  # a key with a dot in it cannot be named
        changed = set_path(document, dotted, text)
        assert changed.at(path).data == located(value).data
        assert {str(where) for where in changed.at(path).positions.values()} == {f"--set {dotted}"}
        assert set(changed.positions) == set(paths(changed.data))
        assert set_path(changed, dotted, yaml.safe_dump(document.at(path).data)).data == (
            document.data
        )
    assert document == located(data)


BASE = "engine: {max_num_seqs: 1}\nmix:\n- {kind: poisson, rate: 1}\nslo:\n"


@pytest.mark.parametrize(
    ("dotted", "text", "path", "value"),
    [
        ("engine.max_num_seqs", "8", ("engine", "max_num_seqs"), 8),
        ("engine.dtype", "fp8", ("engine", "dtype"), "fp8"),
        ("mix.0.rate", "1e3", ("mix", 0, "rate"), 1000.0),
        ("mix", "[]", ("mix",), []),
        ("mix.0", "{kind: trace, trace: t.csv}", ("mix", 0, "trace"), "t.csv"),
        ("slo.ttft_s", "500 ms", ("slo", "ttft_s"), "500 ms"),  # null holds what is put in
        ("tree.name", "on", ("tree", "name"), "on"),
        ("a.b.c", "", ("a", "b", "c"), None),
        ("pools.0", "1", ("pools", "0"), 1),  # a new key is text, a list is never made
    ],
)
def test_an_option_sets_one_value(dotted: str, text: str, path: KeyPath, value: Any) -> None:
    changed = set_path(load_yaml(BASE), dotted, text)
    assert changed.at(path).data == value
    assert str(changed.position(path)) == f"--set {dotted}"


@pytest.mark.parametrize(
    ("dotted", "text", "message"),
    [
        ("mix.1.rate", "1", "--set mix.1.rate: mix is a list of 1, which has no item '1'"),
        ("mix.-1.rate", "1", "--set mix.-1.rate: mix is a list of 1, which has no item '-1'"),
        ("mix.²", "1", "--set mix.²: mix is a list of 1, which has no item '²'"),
        ("mix.first", "1", "--set mix.first: mix is a list of 1, which has no item 'first'"),
        (
            "engine.max_num_seqs.x",
            "1",
            "--set engine.max_num_seqs.x: engine.max_num_seqs is 1, which holds no key 'x'",
        ),
        ("a..b", "1", "--set a..b: a key is empty"),
        ("", "1", "--set : a key is empty"),
        ("a", "[1", "--set a: not valid YAML: "),
        ("a", "{b: 1, b: 2}", "--set a: b: repeated key; first at --set a"),
        ("engine.max_num_seq", "1", "--set engine.max_num_seq: unknown key; did you mean max_num"),
        ("engine.max_num_seqs", "x", "--set engine.max_num_seqs: 'x' is not a whole number"),
        ("slo", "{ttft_s: fast}", "--set slo: slo.ttft_s: 'fast' is not a duration"),
        ("slo.tpot_s", "1", "--set slo.tpot_s: slo.ttft_s: missing key"),
    ],
)
def test_a_wrong_option_is_named_in_the_message(dotted: str, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Scenario, set_path(load_yaml(BASE.replace("slo:\n", "")), dotted, text))
    assert str(caught.value).startswith(message)


def test_a_part_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_yaml("a: 1").at(("b",))


class Ring(StrictModel):
    topology: Literal["ring"]
    chips: PositiveInt


class Star(StrictModel):
    topology: Literal["star"]
    arms: PositiveInt


class Network(StrictModel):
    scale_up: Ring | Star = Field(discriminator="topology")
    sizes: tuple[PositiveInt, ...] = Field(default=(), min_length=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scale_up: {topology: rong, chips: 2}",
            "n.yaml:1: scale_up.topology: 'rong' is not one of: ring, star; did you mean ring?",
        ),
        ("scale_up: {chips: 2}", "n.yaml:1: scale_up.topology: missing key; one of: ring, star"),
        (
            "scale_up: {topology: ring, arms: 2}",
            "n.yaml:1: scale_up.chips: missing key\n"
            "n.yaml:1: scale_up.arms: unknown key; allowed keys: topology, chips",
        ),
        (
            "scale_up: {topology: star, arms: 2}\nsizes: [0]",
            "n.yaml:2: sizes.0: 0 is too small; it must be greater than 0",
        ),
        (
            "scale_up: {topology: star, arms: 2}\nsizes: []",
            "n.yaml:2: sizes: a list of 0 is too short; it must have at least 1 items",
        ),
    ],
)
def test_unions_by_another_key_than_kind(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Network, load_yaml(text, "n.yaml"))
    assert str(caught.value) == message

"""The serving loop against hand arithmetic, with a model whose steps take a set time."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring_fakes import FakeClock, ScriptedModel

from sim.calibration.benchmarks.plain import told_requests
from sim.calibration.importers.table import as_csv
from sim.calibration.replay import replay
from sim.calibration.run_format import COLUMNS
from sim.calibration.runs import MeasuredRun, Skipped, read_runs
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.measuring.serving import Built, load_of, run_row
from sim.measuring.serving_loop import Load, serve
from sim.measuring.subject import cut_id, write_cut_model
from sim.measuring.transformer import Shape, cut_to, shape_of

SHAPE = Shape(
    layers=4,
    hidden=64,
    heads=8,
    kv_heads=2,
    head_dim=8,
    mlp_intermediate=128,
    vocabulary=1000,
)


@pytest.fixture(scope="module")
def catalog():
    return open_catalog()


def run(load, prefill_s=0.5, decode_s=1.0):
    clock = FakeClock(100.0)
    model = ScriptedModel(clock, prefill_s, decode_s, load.clients)
    return serve(model, load, clock), model


def test_two_clients_by_hand():
    """Prompts of 8 tokens take 4 s, a decode step 1 s; three requests of three tokens.

    ======  =====================  =====================================
    until   step                   what it did
    ======  =====================  =====================================
    4       prefill 0              first token of 0
    5       decode 0
    9       prefill 1              first token of 1
    10      decode 0, 1            0 done (three tokens); 2 arrives
    14      prefill 2              first token of 2
    15      decode 1, 2            1 done
    16      decode 2               2 done
    ======  =====================  =====================================
    """
    served, _ = run(Load(clients=2, requests=3, input_tokens=8, output_tokens=3))
    by_number = sorted(served.requests, key=lambda each: each.number)
    times = [(r.arrival_s, r.admit_s, r.first_token_s, r.done_s) for r in by_number]
    assert times == [
        (100.0, 100.0, 104.0, 110.0),
        (100.0, 105.0, 109.0, 115.0),
        (110.0, 110.0, 114.0, 116.0),
    ]
    assert [each.number for each in served.requests] == [0, 1, 2]
    assert served.ttft_s == [4.0, 9.0, 4.0]
    assert served.tpot_s == [3.0, 3.0, 1.0]
    assert served.e2e_s == [10.0, 15.0, 6.0]
    assert served.duration_s == 16.0
    assert served.output_tokens_per_s == 9 / 16
    assert (served.prefill_steps, served.decode_steps) == (3, 4)


def test_chunks_of_a_prompt_let_others_go_on():
    """Prompts of 4 tokens (0.5 s each) in chunks of 2, answers of 3; decode steps of 1 s.

    0 prefill 0 (2 of 4): 1 s. Prefill 0 (rest): first token at 2. Decode 0: 3. Chunk of 1: 4.
    Decode 0: 5, done; request 2 arrives. Rest of 1: first token at 6. Whole prompts would have
    answered 1 at 5, and held the second gap of 0 up for two seconds and not one.
    """
    load = Load(clients=2, requests=2, input_tokens=4, output_tokens=3, chunk_tokens=2)
    served, _ = run(load)
    first, second = served.requests
    assert (first.first_token_s, first.done_s) == (102.0, 105.0)
    assert (second.admit_s, second.first_token_s, second.done_s) == (103.0, 106.0, 108.0)


def test_answers_of_one_token_have_no_time_per_token():
    served, model = run(Load(clients=1, requests=2, input_tokens=8, output_tokens=1))
    assert served.ttft_s == [4.0, 4.0]
    assert served.tpot_s == []
    assert model.decoded_tokens == 0


@given(
    clients=st.integers(1, 6),
    requests=st.integers(1, 20),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 6),
    chunk=st.none() | st.integers(1, 5),
)
def test_requests_and_tokens_are_conserved(clients, requests, inputs, outputs, chunk):
    served, model = run(Load(clients, requests, inputs, outputs, chunk))
    assert sorted(each.number for each in served.requests) == list(range(requests))
    assert all(each.generated_tokens == outputs for each in served.requests)
    assert model.prompt_tokens == requests * inputs
    assert model.decoded_tokens == requests * (outputs - 1)
    for each in served.requests:
        assert each.arrival_s <= each.admit_s < each.first_token_s <= each.done_s
    # A client sends its next request when it has its answer: never more than they are.
    events = [(each.arrival_s, 1) for each in served.requests]
    events += [(each.done_s, -1) for each in served.requests]
    inside = 0
    for _, change in sorted(events):
        inside += change
        assert inside <= clients


def test_the_row_of_a_run():
    served, _ = run(Load(clients=2, requests=3, input_tokens=8, output_tokens=3))
    built = Built("small_4_layers", SHAPE, "Small with random weights", "fake_chip")
    row = run_row(built, served, 123.0, "torch 0.0")
    assert set(row) <= set(COLUMNS)
    assert row["output_tokens_per_s"] == 9 / 16
    # Eight tokens in for three out.
    assert row["total_tokens_per_s"] == pytest.approx(33 / 16)
    assert row["requests_per_s"] == 3 / 16
    assert row["ttft_p50_ms"] == 4000.0
    assert row["ttft_mean_ms"] == pytest.approx(17_000 / 3)
    assert row["tpot_p50_ms"] == 3000.0
    assert row["e2e_mean_ms"] == pytest.approx(31_000 / 3)
    assert (row["isl"], row["osl"], row["concurrency"]) == (8, 3, 2)
    assert row["power_w"] == 123.0
    assert (row["hardware"], row["engine"]) == ("fake_chip", "rackcast measuring loop, torch 0.0")
    assert told_requests({"notes": str(row["notes"])}) == 3
    for name, value in row.items():
        COLUMNS[name].read(str(value))


@pytest.mark.parametrize("text", ["3x", "0x8+3", "2x8", "2x8+3c0", "ax8+3", ""])
def test_a_load_that_is_none(text):
    with pytest.raises(InputError, match="write clients, input and output tokens as 16x1000"):
        load_of(text)


def test_layers_are_cut_to_the_memory():
    """A layer: 64 (2 x 8 + 2 x 2) 8 + 3 x 64 x 128 weights of 2 bytes, and 2 x 2 x 8 x 2 bytes
    of cache per token; two tables of 1000 x 64 weights."""
    layer_bytes, token_bytes, table_bytes = 2 * (10_240 + 24_576), 64, 2 * 2 * 64_000
    needed = table_bytes + 2 * (layer_bytes + 10 * token_bytes)
    assert cut_to(SHAPE, 10, needed).layers == 2
    assert cut_to(SHAPE, 10, needed - 1).layers == 1
    assert cut_to(SHAPE, 10, 1e12) == SHAPE
    with pytest.raises(InputError, match="not even one layer"):
        cut_to(SHAPE, 10, table_bytes)


def test_models_that_cannot_be_built(catalog):
    with pytest.raises(InputError, match="routed experts"):
        shape_of(catalog.model("mixtral_8x7b"))
    with pytest.raises(InputError, match=r"--layers 99: .* has 32"):
        shape_of(catalog.model("llama_3_1_8b"), 99)
    assert shape_of(catalog.model("llama_3_1_8b"), 3).layers == 3


@pytest.mark.parametrize("name", ["llama_3_1_8b", "mistral_7b_v0_3", "qwen3_8b"])
def test_weights_are_those_of_the_model(catalog, name):
    model = catalog.model(name)
    tables = (2 if not model.tied_embeddings else 1) * model.embedding_parameters
    whole = shape_of(model).weight_bytes / 2 - 2 * model.embedding_parameters + tables
    assert whole == pytest.approx(model.total_parameters, rel=1e-3)


def test_the_row_of_a_cut_model_is_forecast_as_an_engine_of_the_catalogue(catalog, tmp_path):
    """As the page says: the chip by its id, the model from the folder, another engine's name."""
    model = catalog.model("mistral_7b_v0_3")
    write_cut_model(model, "mistral_7b_v0_3", 2, tmp_path / "catalog")
    served, _ = run(Load(clients=2, requests=8, input_tokens=64, output_tokens=16))
    name = cut_id("mistral_7b_v0_3", 2)
    row = run_row(Built(name, SHAPE, "cut", "h200_sxm"), served, None, "torch 2.9.1+cu128")
    cells = {key: "" if value is None else str(value) for key, value in row.items()}
    known = open_catalog([tmp_path / "catalog"])
    path = tmp_path / "serving.csv"
    path.write_text(as_csv([cells | {"row_id": "r"}]), encoding="utf-8")
    (skipped,) = read_runs(path, known)
    assert isinstance(skipped, Skipped)
    assert "no engine for rackcast measuring loop" in skipped.reason
    named = re.sub(r"rackcast measuring loop, torch [^\"]*", "vllm 0.24", path.read_text())
    path.write_text(named, encoding="utf-8")
    (read,) = read_runs(path, known)
    assert isinstance(read, MeasuredRun), read
    assert (read.case.system, read.case.model) == ("h200_sxm_x8", name)
    assert read.case.workload.requests == 8
    assert read.forecasts(replay(read.case, known, seed=1)).keys() == read.measured.keys()

"""Measuring with PyTorch itself, on the processor; skipped where it is not installed."""

import csv
import json
import platform
import warnings

import pytest

from sim.calibration.subjects import read_subjects
from sim.catalog import open_catalog
from sim.errors import InputError
from sim.measuring.session import Wanted, measure
from sim.measuring.timing import Patience

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch without numpy and the like
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'rackcast[measure]'")

pytestmark = pytest.mark.filterwarnings("ignore")

from sim.measuring.collectives import CollectiveError, RankGroup  # noqa: E402
from sim.measuring.device import open_device  # noqa: E402
from sim.measuring.operators import Heads, TorchOperators  # noqa: E402
from sim.measuring.transformer import Shape, Transformer  # noqa: E402

SHAPE = Shape(
    layers=2,
    hidden=64,
    heads=8,
    kv_heads=2,
    head_dim=16,
    mlp_intermediate=128,
    vocabulary=500,
)
TINY = """\
name: Tiny
family: Tiny
source: made up for a test
layers: 3
hidden: 64
attention:
  - {kind: gqa, layers: 3, heads: 8, kv_heads: 2, head_dim: 16}
mlp_intermediate: 128
vocabulary: 500
max_positions: 4096
"""


@pytest.fixture
def device():
    found = open_device("cpu")
    found.cache_bytes = 1e5
    return found


def keys_of(model, slot, tokens):
    return model.keys[:, slot, :, :tokens].float()


def test_a_prompt_in_chunks_fills_the_cache_as_a_whole_one_does(device):
    model = Transformer(device, SHAPE)
    model.reserve(2, 128)
    model.prefill(0, 0, 100, last=True)
    model.prefill(1, 0, 33, last=False)
    model.prefill(1, 33, 67, last=True)
    whole, chunked = keys_of(model, 0, 100), keys_of(model, 1, 100)
    assert whole.abs().max() > 0.1
    assert (whole - chunked).abs().max() < 0.05 * whole.abs().max()


def test_decoding_a_token_is_prefilling_one_more(device):
    model = Transformer(device, SHAPE)
    model.reserve(2, 128)
    model.prefill(0, 0, 100, last=True)
    model.prefill(1, 0, 99, last=False)
    model.tokens[1] = model.prompt[99]
    model.decode([1])
    prefilled, decoded = keys_of(model, 0, 100)[:, :, 99], keys_of(model, 1, 100)[:, :, 99]
    assert prefilled.abs().max() > 0.1
    assert (prefilled - decoded).abs().max() < 0.05 * prefilled.abs().max()


def test_a_slot_that_is_not_decoded_keeps_its_cache(device):
    model = Transformer(device, SHAPE)
    model.reserve(2, 128)
    model.prefill(0, 0, 50, last=True)
    model.prefill(1, 0, 60, last=True)
    before = keys_of(model, 1, 128).clone()
    model.decode([0])
    assert (keys_of(model, 1, 128) == before).all()
    assert (keys_of(model, 0, 51)[:, :, 50] != 0).any()


def test_products_have_the_operands_they_are_timed_with(device):
    operators = TorchOperators(device)
    prepared = operators.gemm("float32", 3, 40, 50)
    # 2 x 100 kB over 4 x (40 x 50 + 3 x 50) bytes a call: 24 sets.
    assert len(prepared.calls) == 24
    first, second = (call().clone() for call in prepared.calls[:2])
    assert first.shape == (3, 40)
    assert not torch.equal(first, second)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decode_attention_is_that_of_grouped_heads(device, dtype):
    """Heads of a group as rows of one query give what repeated keys and values give."""
    operators, heads = TorchOperators(device), Heads(8, 2, 16)
    taken = []
    cold = operators.operands.cold
    operators.operands.cold = lambda *asked: taken.append(cold(*asked)) or taken[-1]
    found = operators.decode(dtype, heads, batch=3, kv_len=20).calls[0]()
    q, k, v = (each.float() for each in taken[:3])
    repeated = [each.repeat_interleave(4, dim=1) for each in (k, v)]
    scores = (q.reshape(3, 8, 1, 16) @ repeated[0].transpose(2, 3)) / 4.0
    expected = scores.softmax(dim=-1) @ repeated[1]
    assert torch.allclose(found.reshape(3, 8, 1, 16).float(), expected, atol=0.03)


@pytest.mark.parametrize("cache_bytes", [1.0, 3e5])
def test_operands_of_one_call_do_not_overlap(device, cache_bytes):
    """Keys that lie where the values do would be read once for both."""
    device.cache_bytes = cache_bytes
    operators = TorchOperators(device)
    taken = []
    cold = operators.operands.cold
    operators.operands.cold = lambda *asked: taken.append(cold(*asked)) or taken[-1]
    for kv_len in (100, 700, 30):
        taken.clear()
        calls = operators.decode("bfloat16", Heads(8, 2, 16), 3, kv_len).calls
        assert len(taken) == 3 * len(calls)
        for first in range(0, len(taken), 3):
            places = sorted((t.data_ptr(), t.numel() * 2) for t in taken[first : first + 3])
            ends = [start + size for start, size in places]
            assert all(end <= later for end, (later, _) in zip(ends, places[1:], strict=False))


@pytest.mark.parametrize("kind", ["copy", "read", "write"])
def test_traffic_touches_as_many_bytes_as_it_says(device, kind):
    operators = TorchOperators(device)
    taken = []
    cold = operators.operands.cold
    operators.operands.cold = lambda *asked: taken.append(cold(*asked)) or taken[-1]
    calls = operators.traffic(kind, 40_000).calls
    calls[0]()
    per_call = {"copy": 2, "read": 1, "write": 1}[kind]
    assert sum(each.numel() * each.itemsize for each in taken[:per_call]) == 40_000


@pytest.mark.parametrize("kind", ["rms_norm", "silu_mul", "rope"])
def test_elementwise_operators_keep_the_shape(device, kind):
    found = TorchOperators(device).elementwise(kind, "bfloat16", 5, 256).calls[0]()
    assert found.numel() == 5 * 256
    assert torch.isfinite(found.float()).all()


def test_two_ranks_reduce_together():
    group = RankGroup("cpu", 2)
    try:
        found = group.timed("all_reduce", 4096, Patience(0.05))
        assert group.library.startswith("gloo")
        assert 0.0 < found.median_s < 1.0
        with pytest.raises(CollectiveError):
            group.timed("all_reduce", 10**18, Patience(0.05))  # more than any memory
        assert not group.broken
        assert group.timed("alltoall", 4096, Patience(0.05)).blocks >= 10
    finally:
        group.close()


def wanted(folder, **options):
    options = {
        "device": "cpu",
        "quick": True,
        "model": "tiny",
        "only": ("decode", "serving"),
    } | options
    return Wanted(out=folder / "out", loads=("2x30+5",), **options)


@pytest.fixture
def catalog(tmp_path):
    folder = tmp_path / "own" / "workloads" / "models"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY)
    return open_catalog([tmp_path / "own"])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_whole_measurement_of_a_tiny_model(tmp_path, catalog):
    report = measure(wanted(tmp_path), catalog)
    out = tmp_path / "out"
    assert report.outcome.skipped == []
    (row,) = rows_of(out / "serving.csv")
    assert row["model"] == "tiny_2_layers"
    assert row["hardware"] == report.accelerator
    assert float(row["ttft_p50_ms"]) < float(row["e2e_mean_ms"])
    requests = rows_of(out / "serving_requests.csv")
    assert len(requests) == 8  # two clients, four rounds
    for each in requests:
        times = [float(each[name]) for name in ("arrival_s", "admit_s", "first_token_s", "done_s")]
        assert times == sorted(times)
    decode = [each for each in rows_of(out / "steps.csv") if each["phase"] == "decode"]
    assert len(decode) == 4
    assert all(float(each["latency_us"]) > 0 < float(each["device_us"]) for each in decode)
    assert open_catalog([out / "catalog"]).model("tiny_2_layers").layers == 2
    subject = read_subjects(out / "subjects.yaml").subjects[report.accelerator]
    assert (subject.chip, subject.power, subject.power_lent_by) == (report.device, None, "h200_sxm")
    text = (out / "environment.json").read_text()
    assert platform.node() not in text
    assert str(tmp_path) not in text
    assert json.loads(text)["torch"] == str(torch.__version__)


def test_a_second_call_does_not_measure_again(tmp_path, catalog):
    first = measure(wanted(tmp_path), catalog)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.csv")}
    with pytest.raises(InputError, match="--resume goes on"):
        measure(wanted(tmp_path), catalog)
    again = measure(wanted(tmp_path, resume=True), catalog)
    assert again.outcome.there == first.outcome.measured
    assert again.outcome.measured == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").glob("*.csv")}

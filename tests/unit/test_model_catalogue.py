"""The shipped models against the counts that their vendors publish, and against their configs."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from sim.catalog import open_catalog
from sim.figures import Figure
from sim.model import Model
from sim.units import DTYPE_BYTES, GIGA

CATALOG = open_catalog()
MODELS = {name: CATALOG.model(name) for name in CATALOG.names("models")}
SHARED = Path(os.environ.get("RACKCAST_SHARED", Path(__file__).parents[3] / "shared"))
SERVING = SHARED / "measured" / "serving.csv"

WITH_ACTIVE = [name for name, model in MODELS.items() if model.published.active_parameters]
WITH_KV = [name for name, model in MODELS.items() if model.published.kv_bytes_per_token]

# Counts that are off by more, and why: what a vendor rounds or counts otherwise.
TOTAL_OFF = {
    "aquila_7b": "named after LLaMA 7B, whose vocabulary it trebles: 7.3 billion",
    "deepseek_ocr": "3B is a name; 2.94 billion without the vision encoder",
    "ernie_4_5_21b_a3b": "21B is a name: 21.8 billion",
    "gemma_4_e2b": "the count includes 0.45 billion of vision and audio encoders",
    "kimi_linear_48b_a3b": "48B is a name: 49.1 billion",
}
ACTIVE_OFF = {
    "deepseek_v2_lite": "2.45 billion, which the paper writes as 2.4",
    "minimax_m3": "23B is read from a name; 23.5 with its indexers",
}
TOLERANCE = 0.02
UNOPENED = "no page opened"
"""What a source says of a figure that was written down from general knowledge."""


def published(name: str, figure: Figure[float] | None) -> Figure[float]:
    assert figure is not None, f"{name} publishes no such count"
    return figure


def indexer_parameters(model: Model) -> int:
    """Weights of all indexers: an attention group with one against the same without."""
    return sum(
        group.layers
        * (
            group.parameters(model.hidden)
            - group.model_copy(update={"indexer": None}).parameters(model.hidden)
        )
        for group in model.attention
        if group.kind == "mla"
    )


def compared(name: str) -> float:
    """Count what one token meets in the way that the note of the published figure says."""
    model = MODELS[name]
    how = published(name, model.published.active_parameters).note or ""
    count = model.active_parameters
    if "without the indexer" in how:
        count -= indexer_parameters(model)
    if "without input embedding and LM head" in how:
        count -= model.vocabulary_parameters
    elif "without the input embedding" in how:
        count -= model.embedding_parameters
    return float(count)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_published(name: str) -> None:
    figure = published(name, MODELS[name].published.parameters)
    off = MODELS[name].total_parameters / figure.value - 1
    told = f"{name}: {off:+.1%} from the {figure.value:.4g} of {figure.source}"
    assert (abs(off) > TOLERANCE) == (name in TOTAL_OFF), told
    assert abs(off) < 0.1, told


@pytest.mark.parametrize("name", WITH_ACTIVE)
def test_active_parameters_are_those_published(name: str) -> None:
    figure = published(name, MODELS[name].published.active_parameters)
    off = compared(name) / figure.value - 1
    # Names such as A3B state whole billions and promise no more.
    whole_billions = round(compared(name) / GIGA) * GIGA == figure.value
    told = f"{name}: {off:+.1%} from the {figure.value:.4g} of {figure.source}"
    assert (abs(off) <= TOLERANCE or whole_billions) == (name not in ACTIVE_OFF), told


def test_open_mixtures_publish_what_a_token_meets() -> None:
    mixtures = {name for name, model in MODELS.items() if model.moe and not model.estimate}
    # Of Grok-1 its vendor says no more than a quarter of the weights.
    assert mixtures - set(WITH_ACTIVE) == {"grok_1"}


@pytest.mark.parametrize("name", WITH_KV)
def test_kv_bytes_are_those_published(name: str) -> None:
    figure = published(name, MODELS[name].published.kv_bytes_per_token)
    stored = MODELS[name].growing_kv_elements_per_token * DTYPE_BYTES["bf16"]
    told = f"{name}: {stored} bytes, not the {figure.value} of {figure.source}"
    assert stored == pytest.approx(figure.value, rel=TOLERANCE), told


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        # layers x (key + value) x KV heads x head_dim
        ("llama_3_1_8b", 32 * 2 * 8 * 128),
        ("llama_3_1_70b", 80 * 2 * 8 * 128),
        ("llama_2_7b", 32 * 2 * 32 * 128),
        ("mixtral_8x7b", 32 * 2 * 8 * 128),
        ("qwen3_32b", 64 * 2 * 8 * 128),
        ("falcon_180b", 80 * 2 * 8 * 64),
        ("gpt_j_6b", 28 * 2 * 16 * 256),
        # 7 layers with four KV heads, 14 with two, 11 with one
        ("decilm_7b", (7 * 4 + 14 * 2 + 11 * 1) * 2 * 128),
        # layers x (latent + rotary key)
        ("kimi_k2", 61 * (512 + 64)),
        # and an index key of 128
        ("deepseek_v3_2", 61 * (512 + 64 + 128)),
        ("minimax_m3", 60 * 2 * 4 * 128 + 57 * 128),
        # the layers that see everything: every second, sixth, fourth
        ("gpt_oss_120b", 18 * 2 * 8 * 64),
        ("gemma_3_27b", 10 * 2 * 16 * 128),
        ("qwen3_next_80b_a3b", 12 * 2 * 2 * 256),
        ("nemotron_3_nano_30b_a3b", 6 * 2 * 2 * 128),
        ("kimi_linear_48b_a3b", 7 * (512 + 64)),
        # no layer of Mistral 7B v0.1 sees everything; of Gemma 4 E2B three store all of it
        ("mistral_7b", 0),
        ("gemma_4_e2b", 3 * 2 * 512),
        # one entry of 512 for 4 tokens with an index key of 128, or for 128 tokens
        ("deepseek_v4_pro", 30 * (512 + 128) // 4 + 31 * 512 // 128),
    ],
)
def test_elements_that_grow_with_the_context_by_hand(name: str, elements: int) -> None:
    assert MODELS[name].growing_kv_elements_per_token == elements


@pytest.mark.parametrize("name", MODELS)
def test_only_what_was_read_is_more_than_an_estimate(name: str) -> None:
    model = MODELS[name]
    assert model.estimate == name.startswith("est_")
    counts = model.published
    for figure in (counts.parameters, counts.active_parameters, counts.kv_bytes_per_token):
        if figure is not None:
            guessed = model.estimate or UNOPENED in figure.source
            assert (figure.confidence == "estimate") == guessed, f"{name}: {figure.source}"


def test_lists_of_kv_heads_are_kept_layer_by_layer() -> None:
    # num_key_value_heads_per_layer of Deci/DeciLM-7B-instruct's config.json
    listed = Counter([4] * 5 + [2] * 5 + [4] + [2] * 9 + [1] * 11 + [4])
    held: Counter[int] = Counter()
    for group in MODELS["decilm_7b"].attention:
        assert group.kind == "gqa"
        held[group.kv_heads] += group.layers
    assert held == listed


def test_no_name_stands_for_two_models() -> None:
    names = Counter(alias for model in MODELS.values() for alias in {model.name, *model.aliases})
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_entries_have_the_same_shape() -> None:
    """Fine-tunes share a file; what differs is at least the longest context."""
    told = {"name", "aliases", "family", "source", "published"}
    shapes: dict[str, str] = {}
    for name, model in MODELS.items():
        shape = model.model_dump_json(exclude=told)
        assert shape not in shapes, f"{name} is {shapes[shape]}; add an alias instead"
        shapes[shape] = name


@pytest.mark.shared_data
def test_every_measured_model_is_one_of_ours() -> None:
    if not SERVING.is_file():
        pytest.skip(f"{SERVING} is not there")
    with SERVING.open(encoding="utf-8", newline="") as rows:
        measured = {row["model"] for row in csv.DictReader(rows)}
    assert len(measured) > 100
    found = {
        name: [entry for entry, model in MODELS.items() if model.is_called(name)]
        for name in measured
    }
    assert {name: entries for name, entries in found.items() if len(entries) != 1} == {}

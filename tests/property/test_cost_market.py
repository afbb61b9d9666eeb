"""The cost model over the whole market: all systems price steps, and no better chip is slower."""

import re
from functools import cache
from math import isfinite
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cost_laws import faster, rebuilt, with_faster_links

from sim.catalog import open_catalog
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment, deploy
from sim.errors import InfeasibleError, InputError
from sim.scenario import load_scenario

CATALOG = open_catalog()
SYSTEMS = tuple(CATALOG.names("systems"))
SMALL = ("llama_3_1_8b", "gpt_oss_20b", "deepseek_v2_lite")
"""A dense model, one with sliding windows and one with latent attention; two have experts."""


@cache
def deployed(system: str, model: str, tp: int) -> Deployment | str:
    """Deploy a model in 16 bits, or give the reason why it cannot be."""
    options = {
        "system": system,
        "model": model,
        "parallelism": f"{{tp: {tp}}}",
        "precision.weights": "bf16",
        "precision.kv_cache": "bf16",
        "engine.max_num_seqs": "32",
        "engine.max_num_batched_tokens": "256",
    }
    path = CATALOG.path("scenarios", "quickstart")
    try:
        return deploy(load_scenario(path, list(options.items())).cases[0], CATALOG)
    except InfeasibleError as error:
        return str(error)


def widths(system: str) -> list[int]:
    """Powers of two up to the domain."""
    chips = CATALOG.system(system).domain_chips
    return [2**power for power in range(chips.bit_length()) if 2**power <= chips]


def deployments(system: str, model: str) -> list[Deployment]:
    found = [deployed(system, model, tp) for tp in widths(system)]
    return [each for each in found if isinstance(each, Deployment)]


def step(sequences: int, context: int, prompt: int, done: int, window: int | None) -> StepShape:
    """Sequences of one context, and a chunk of one prompt if it has tokens."""
    return StepShape(
        sequences,
        sequences * context,
        sequences * min(context, window or context),
        1 if prompt else 0,
        prompt,
        prefill_pairs(done, prompt),
        prefill_pairs(done, prompt, window),
    )


STEPS = ((8, 1000, 0, 0), (0, 0, 200, 0), (0, 0, 1, 3000), (4, 1000, 128, 500))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_prices_a_step_or_says_why_not(system: str) -> None:
    for model in SMALL:
        for tp in widths(system):
            found = deployed(system, model, tp)
            if isinstance(found, str):
                words = "cannot be cut|one must divide|needs .* GiB of weights|no box"
                assert re.search(words, found), found
                assert "nan" not in found.split()
                continue
            for sizes in STEPS:
                _holds_together(found, step(*sizes, found.window_tokens))


def _holds_together(deployment: Deployment, shape: StepShape) -> None:
    """Check that the timer, its table and its explanation say one and the same finite time."""
    timer = deployment.timer
    rows = timer.explain(shape)
    for row in rows:
        for value in (row.flop, row.bytes, row.seconds, row.compute_s, row.memory_s):
            assert isfinite(float(value)), row.name
            assert float(value) >= 0, row.name
    seconds = timer.seconds(shape)
    assert seconds > 0
    assert sum(float(row.seconds) for row in rows) == pytest.approx(seconds, rel=1e-9)
    table = deployment.seconds
    assert float(table.fixed(shape) + table.attended(shape)) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
@settings(max_examples=6)
@given(
    data=st.data(),
    bandwidth=st.floats(1, 30),
    peak=st.floats(1, 30),
    links=st.floats(1, 30),
    sizes=st.tuples(
        st.integers(0, 32), st.integers(1, 50_000), st.integers(1, 200), st.integers(0, 50_000)
    ),
)
def test_no_better_chip_or_link_is_slower(
    system: str,
    data: st.DataObject,
    bandwidth: float,
    peak: float,
    links: float,
    sizes: tuple[int, int, int, int],
) -> None:
    """At one batch; whatever the topology, from the datasheet alone as far as links go."""
    found = [each for model in SMALL for each in deployments(system, model)]
    if not found:  # no small model fits: said by the test above
        return
    deployment = data.draw(st.sampled_from(found))
    shape = step(*sizes, deployment.window_tokens)
    chip = deployment.accelerator
    better = faster(chip, bandwidth=bandwidth, peak=peak)
    plain = rebuilt(deployment, chip).seconds(shape)
    assert rebuilt(deployment, better).seconds(shape) <= plain * (1 + 1e-12)
    by_links = [
        rebuilt(deployment, chip, network=with_faster_links(deployment, by)).seconds(shape)
        for by in (1.0, links)
    ]
    assert by_links[1] <= by_links[0] * (1 + 1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_more_chips_never_slow_what_a_chip_computes(system: str) -> None:
    """At a fixed batch. What tensor ranks say to each other does cost more with every rank.

    So a whole step may be slower on more chips: latency grows with rounds, a mesh or PCIe gives
    small groups less than their share, and decode steps of a small model have little to cut.
    """
    for model in SMALL:
        parts = []
        for deployment in deployments(system, model):
            shape = step(4, 1000, 128, 500, deployment.window_tokens)
            rows = deployment.timer.explain(shape)
            parts.append(sum(float(max(row.compute_s, row.memory_s)) for row in rows))
        assert parts == sorted(parts, reverse=True), model


class TestWrongDimensions:
    """A figure in the wrong unit is refused with its file, line and key."""

    FIGURES = (
        ("hardware/accelerators/h100_sxm.yaml", "capacity_bytes", "79.11 GB/s"),
        ("hardware/accelerators/h100_sxm.yaml", "capacity_bytes", "-79.11 GiB"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", "3.35 TB"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", "3.35 TFLOP/s"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", "0"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", "-3.35 TB/s"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", ".nan"),
        ("hardware/accelerators/h100_sxm.yaml", "bandwidth_bytes_per_s", ".inf"),
        ("hardware/accelerators/h100_sxm.yaml", "bf16", "989 TFLOP"),
        ("hardware/accelerators/h100_sxm.yaml", "bf16", "989 TB/s"),
        ("hardware/accelerators/h100_sxm.yaml", "bf16", "0 TFLOP/s"),
        ("hardware/accelerators/h100_sxm.yaml", "bf16", "-1"),
        ("hardware/accelerators/h100_sxm.yaml", "tdp_w", "700 J"),
        ("hardware/accelerators/h100_sxm.yaml", "tdp_w", "-700 W"),
        ("hardware/systems/h100_sxm_x8.yaml", "bandwidth_bytes_per_s", "450 GB"),
        ("hardware/systems/h100_sxm_x8.yaml", "bandwidth_bytes_per_s", "450 Gb"),
        ("hardware/systems/h100_sxm_x8.yaml", "bandwidth_bytes_per_s", "0 GB/s"),
        ("hardware/systems/h100_sxm_x8.yaml", "latency_s", "2.4 GB"),
        ("hardware/systems/h100_sxm_x8.yaml", "latency_s", "-2.4 us"),
        ("hardware/systems/h100_sxm_x8.yaml", "host_power_w", "2.3 kWh"),
        ("hardware/systems/h100_sxm_x8.yaml", "provisioned_power_w", "-1 kW"),
        ("hardware/systems/tpu_v5e_8.yaml", "link_bandwidth_bytes_per_s", "45 GB"),
        ("hardware/systems/mi300x_x8.yaml", "link_bandwidth_bytes_per_s", "0"),
    )

    COUNTS = (
        ("hardware/systems/h100_sxm_x8.yaml", "chips", "-8"),
        ("hardware/systems/h100_sxm_x8.yaml", "chips", "0"),
        ("hardware/systems/h100_sxm_x8.yaml", "domain_chips", "8.5"),
        ("workloads/models/llama_3_1_8b.yaml", "layers", "0"),
        ("workloads/models/llama_3_1_8b.yaml", "hidden", "-4096"),
        ("workloads/models/llama_3_1_8b.yaml", "hidden", "4096 B"),
        ("workloads/models/llama_3_1_8b.yaml", "kv_heads", "0"),
        ("workloads/models/llama_3_1_8b.yaml", "vocabulary", "1.5"),
    )

    @pytest.mark.parametrize(("file", "key", "text"), FIGURES)
    def test_of_a_figure(self, tmp_path: Path, file: str, key: str, text: str) -> None:
        self.check(tmp_path, file, key, text, r"^ *(?:- )?KEY:\n *value: (.*)$")

    @pytest.mark.parametrize(("file", "key", "text"), COUNTS)
    def test_of_a_count(self, tmp_path: Path, file: str, key: str, text: str) -> None:
        self.check(tmp_path, file, key, text, r"^ *(?:- )?KEY: (.*)$")

    def check(self, folder: Path, file: str, key: str, text: str, pattern: str) -> None:
        """Write the text in place of the value, and read what the catalogue says of it."""
        name = Path(file).name
        good = (CATALOG.path("systems", "h100_sxm_x8").parents[2] / file).read_text()
        match = re.search(pattern.replace("KEY", key), good, re.MULTILINE)
        assert match is not None, key
        line = good.count("\n", 0, match.start(1)) + 1
        path = folder / file
        path.parent.mkdir(parents=True)
        path.write_text(good[: match.start(1)] + text + good[match.end(1) :])
        catalog = open_catalog([folder])
        reader = {
            "accelerators": catalog.accelerator,
            "systems": catalog.system,
            "models": catalog.model,
        }[path.parent.name]
        with pytest.raises(InputError) as caught:
            reader(path.stem)
        said = [each for each in str(caught.value).splitlines() if f"{name}:{line}" in each]
        assert any(key in each for each in said), str(caught.value)

"""Who encodes the images of prompts, when, and how embeddings get to the language model."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_scenarios import forecast_of, write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.cost.operators import Handover
from sim.cost.work import StepShape, prefill_pairs
from sim.deployment import Deployment
from sim.engine.clock import TICKS_PER_S
from sim.engine.encoding import EncodingPace, images_of
from sim.engine.lockstep import LockstepStretch
from sim.engine.requests import Request
from sim.engine.stretch import Stretch
from sim.engine.ticks import Line, Pace
from sim.errors import InfeasibleError, InputError
from sim.metrics.embeddings import embedding_transfers
from sim.report.data import RunTables
from sim.scenario import load_scenario
from sim.service import Service, service_of
from sim.simulate import simulate
from sim.upkeep_plans import upkeep_plans

CATALOG = open_catalog()

TOGETHER = """\
name: images
question: Who encodes?
system: h100_sxm_x8
model: qwen2_5_vl_7b
parallelism: {tp: 1}
precision: {weights: fp8, kv_cache: fp8}
engine: {name: vllm, max_num_seqs: 64}
workload:
  kind: open_loop
  lengths: {kind: fixed, input_tokens: 100, output_tokens: 10}
  images: {tokens: {kind: constant, tokens: 900}, per_request: 2}
  arrivals: {kind: uniform, rate_requests_per_s: 1}
  requests: 4
slo: {ttft_s: 1 s, tpot_s: 100 ms}
prices: {book: us_2026_11}
"""
TWO_POOLS = TOGETHER + "pools: {prefill: {replicas: 4}, decode: {replicas: 4}}\n"
THREE_POOLS = (
    TOGETHER + "pools: {encode: {replicas: 2}, prefill: {replicas: 3}, decode: {replicas: 3}}\n"
)
BEFORE = TOGETHER + "pools: {encode: {replicas: 2}, serve: {replicas: 6}}\n"
TOKENS = 2 * 900 + 100
"""Of a prompt: two images and the text before them."""


def service(folder: Path, text: str, *changes: tuple[str, str]) -> Service:
    return service_of(load_scenario(write(folder, text, *changes)).cases[0], CATALOG)


def run(folder: Path, text: str, *changes: tuple[str, str], every_step: bool = False) -> RunTables:
    return forecast_of(write(folder, text, *changes), every_step=every_step)


def prompt(*tokens: int) -> StepShape:
    """Give the step that computes prompts of so many tokens."""
    return StepShape(
        prefill_sequences=len(tokens),
        prefill_tokens=sum(tokens),
        prefill_pairs=sum(prefill_pairs(0, each) for each in tokens),
    )


def request(input_tokens: int, image_tokens: int, computed_tokens: int = 0) -> Request:
    made = Request(0, 0, input_tokens, 1)
    made.encode_tokens, made.computed_tokens = image_tokens, computed_tokens
    return made


def step(*chunks: tuple[Request, int], decoding: int = 0) -> Stretch:
    """Give a step with chunks of prompts."""
    made = Stretch(decoding, 9 * decoding, decoding, 0, 0, 0)
    made.chunks = list(chunks)
    made.prefill_tokens = sum(tokens for _, tokens in chunks)
    return made


class _Pace:
    """A tick for every prompt token, and a thousand for every prompt."""

    def line(self, stretch: Stretch, _steps_before: int = 0, /) -> Line:
        return 1000 * len(stretch.chunks) + stretch.prefill_tokens, 3, 7


class TestSteps:
    @given(
        st.integers(0, 300),
        st.integers(1, 300),
        st.lists(st.integers(1, 100), min_size=1, max_size=8),
    )
    def test_every_image_token_is_encoded_once(
        self, text: int, images: int, cuts: list[int]
    ) -> None:
        """However a prompt is cut, its pieces come to the pairs of the whole."""
        total, done, tokens, pairs = text + images, 0, 0, 0
        for cut in [*cuts, total]:
            size = min(cut, total - done)
            part = request(total, images, computed_tokens=done)
            found = images_of(step((part, size)) if size else step())
            tokens, pairs = tokens + found.prefill_tokens, pairs + found.prefill_pairs
            done += size
        assert tokens == images
        assert pairs == images * (images + 1) // 2

    def test_what_a_cache_holds_is_not_encoded(self) -> None:
        """Sixty tokens of text, forty of images: a prefix of seventy leaves thirty."""
        assert images_of(step((request(100, 40, 70), 30))).prefill_tokens == 30

    def test_the_prompt_of_a_prefill_pool_has_the_images_of_its_request(self) -> None:
        part = Request(0, 0, 100, 1)
        part.stage_of = request(100, 40)
        assert images_of(step((part, 100))).prefill_tokens == 40

    def test_images_come_before_the_language_model(self) -> None:
        pace = EncodingPace(_Pace(), _Pace())
        mixed = step((request(100, 40), 100), (request(50, 0), 50), decoding=2)
        assert pace.line(mixed) == (2000 + 150 + 1000 + 40, 3, 7)
        assert pace.line(step(decoding=2)) == (0, 3, 7)

    def test_ranks_that_keep_step_encode_side_by_side(self) -> None:
        whole = LockstepStretch()
        for images in (40, 10):
            whole.add(step((request(100, images), 100)))
        assert EncodingPace(_Pace(), _Pace()).line(whole)[0] == 2000 + 200 + 1000 + 40


class TestPools:
    def test_who_encodes(self, tmp_path: Path) -> None:
        (alone,) = service(tmp_path, TOGETHER).pools
        prefill, decode = service(tmp_path, TWO_POOLS).pools
        encode, language, _ = service(tmp_path, THREE_POOLS).pools
        assert None not in (alone.encoder, prefill.encoder, decode.encoder)
        assert encode.encoder is language.encoder is None
        names = {op.name for op in encode.timer.operators}
        assert {"patch_embedding", "encoder_attention", "embedding_handover"} <= names
        assert "lm_head" not in names
        assert "patch_embedding" not in {op.name for op in language.timer.operators}

    def test_before_replicas_that_do_the_rest(self, tmp_path: Path) -> None:
        found = service(tmp_path, BEFORE)
        encode, rest = found.pools
        assert (encode.role, rest.role, rest.encoder, found.kv_path) == (
            "encode",
            "serve",
            None,
            None,
        )
        assert found.prompt_pool is found.answer_pool is rest

    @pytest.mark.parametrize(
        "pools", ["encode: {replicas: 2}, decode: {}", "serve: {}", "serve: {}, prefill: {}"]
    )
    def test_pools_make_up_a_service(self, tmp_path: Path, pools: str) -> None:
        with pytest.raises(InputError, match="give prefill and decode, with or without encode"):
            load_scenario(write(tmp_path, TOGETHER + f"pools: {{{pools}}}\n"))

    def test_memory(self, tmp_path: Path) -> None:
        """676,034,560 weights of 2 bytes; an embedding is as wide as the language model."""
        encode, language, _ = service(tmp_path, THREE_POOLS).pools
        (together,) = service(tmp_path, TOGETHER).pools
        weights = 2 * 676_034_560
        assert encode.memory.weights_bytes == weights
        assert encode.memory.cache.growing_bytes == 3584 * 2
        assert together.memory.weights_bytes - language.memory.weights_bytes == weights
        assert together.kv_blocks < language.kv_blocks

    def test_without_images_nothing_is_loaded(self, tmp_path: Path) -> None:
        images = "  images: {tokens: {kind: constant, tokens: 900}, per_request: 2}\n"
        (text,) = service(tmp_path, TOGETHER, (images, "")).pools
        assert text.encoder is None
        language = service(tmp_path, THREE_POOLS).pools[1]
        assert text.memory == language.memory

    def test_embeddings_go_over_the_given_link(self, tmp_path: Path) -> None:
        keys = "kv_transfer: {bandwidth_bytes_per_s: 10 GB/s, latency_s: 1 ms}\n"
        found = service(tmp_path, THREE_POOLS + keys)
        (sent,) = [op for op in found.pools[0].timer.operators if isinstance(op, Handover)]
        assert (sent.bytes_per_token, sent.bytes_per_s, sent.latency_s) == (7168, 10e9, 1e-3)

    def test_embeddings_go_at_the_rate_of_the_slower_side(self, tmp_path: Path) -> None:
        """A chip that encodes feeds two that compute a prompt together, in one domain."""
        pools = "encode: {replicas: 2}, prefill: {replicas: 1, parallelism: {tp: 2}}"
        found = service(
            tmp_path, THREE_POOLS, ("encode: {replicas: 2}, prefill: {replicas: 3}", pools)
        )
        (sent,) = [op for op in found.pools[0].timer.operators if isinstance(op, Handover)]
        assert found.kv_path is not None
        assert sent.bytes_per_s == pytest.approx(found.kv_path.out_port.bytes_per_s / 2)
        assert "scale_up" in sent.source

    @pytest.mark.parametrize(
        ("change", "kind", "words"),
        [
            (
                ("qwen2_5_vl_7b", "llama_3_1_8b"),
                InputError,
                "Llama 3.1 8B has no image encoder",
            ),
            (
                ("  images: {tokens: {kind: constant, tokens: 900}, per_request: 2}\n", ""),
                InputError,
                "no request has images",
            ),
            (
                ("encode: {replicas: 2}", "encode: {replicas: 1, parallelism: {tp: 1, pp: 2}}"),
                InfeasibleError,
                "give the encode pool a parallelism with tp alone",
            ),
            (
                (
                    "encode: {replicas: 2}, prefill: {replicas: 3}",
                    "encode: {replicas: 1, parallelism: {tp: 3}}, prefill: {replicas: 2}",
                ),
                InfeasibleError,
                "the 16 heads of the image encoder cannot be cut over tp = 3",
            ),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, tmp_path: Path, change: tuple[str, str], kind: type[Exception], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            resolve(load_scenario(write(tmp_path, THREE_POOLS, change)), CATALOG)

    def test_embeddings_of_another_model_are_refused(self, tmp_path: Path) -> None:
        change = ("encode: {replicas: 2}", "encode: {replicas: 2, model: pixtral_12b}")
        with pytest.raises(InputError, match="give both the same model"):
            load_scenario(write(tmp_path, THREE_POOLS, change))

    def test_numbers_of_images_cannot_differ_within_a_mix(self, tmp_path: Path) -> None:
        """But where encoders see tiles alone."""
        part = (
            "{kind: open_loop, lengths: {kind: fixed, input_tokens: 9, output_tokens: 9}, "
            "images: {tokens: {kind: constant, tokens: 144}, per_request: %d}, "
            "arrivals: {kind: uniform, rate_requests_per_s: 1}, requests: 2}"
        )
        start, end = TOGETHER.index("workload:"), TOGETHER.index("slo:")
        mix = f"workload: {{kind: mix, parts: {{a: {part % 1}, b: {part % 2}}}}}\n"
        text = TOGETHER[:start] + mix + TOGETHER[end:]
        with pytest.raises(InputError, match="requests come with 1 and 2 images"):
            service(tmp_path, text)
        tiles = text.replace("qwen2_5_vl_7b", "llama_4_scout").replace("tp: 1", "tp: 8")
        assert service(tmp_path, tiles).pools[0].encoder is not None


def step_s(pool: Deployment, *tokens: int) -> float:
    return pool.timer.seconds(prompt(*tokens))


class TestTimes:
    """A request every second meets nobody else, so that its times are those of its steps."""

    def first_token_s(self, tables: RunTables, found: Service) -> float:
        """Time of the first token in the engine."""
        waits = tables.requests["first_token_s"] - tables.requests["arrival_s"]
        assert waits.to_numpy() == pytest.approx(float(waits[0]), rel=1e-9)
        return float(waits[0]) - found.frontend_s

    def test_together(self, tmp_path: Path) -> None:
        found = service(tmp_path, TOGETHER)
        (pool,) = found.pools
        assert pool.encoder is not None
        expected = pool.encoder.seconds(prompt(1800)) + step_s(pool, TOKENS)
        measured = self.first_token_s(run(tmp_path, TOGETHER), found)
        assert measured == pytest.approx(expected, rel=1e-6)

    def test_apart(self, tmp_path: Path) -> None:
        found = service(tmp_path, THREE_POOLS)
        encode, prefill, _ = found.pools
        measured = self.first_token_s(run(tmp_path, THREE_POOLS), found)
        assert measured == pytest.approx(step_s(encode, 1800) + step_s(prefill, TOKENS), rel=1e-6)
        # the way is part of the encoder's step
        rows = {row.name: float(row.seconds) for row in encode.explain(prompt(1800))}
        (sent,) = [op for op in encode.timer.operators if isinstance(op, Handover)]
        way_s = sent.latency_s + 1800 * 7168 / sent.bytes_per_s
        assert rows["embedding_handover"] == pytest.approx(way_s)

    def test_embeddings_leave_at_the_end_of_the_step(self, tmp_path: Path) -> None:
        """1,800 tokens of 7,168 bytes for each of four requests, from either of two encoders."""
        found = service(tmp_path, THREE_POOLS)
        encode = found.pools[0]
        record = simulate(found, CATALOG, seed=1).record
        sent = embedding_transfers(found, record.stretches)
        assert set(sent["replica"]) <= {0, 1}
        assert sent["bytes"].tolist() == [1800 * 7168.0] * 4
        arrived = np.sort(record.requests["arrival_s"]) + step_s(encode, 1800)
        np.testing.assert_allclose(np.sort(sent["end_s"]), arrived, rtol=1e-6)
        rows = {row.name: float(row.seconds) for row in encode.explain(prompt(1800))}
        way_s = sent["end_s"] - sent["start_s"]
        np.testing.assert_allclose(way_s, rows["embedding_handover"], rtol=1e-6)
        assert way_s.min() > 0

    def test_what_is_sent_is_in_the_tables(self, tmp_path: Path) -> None:
        """In the summary what came in the window: all but the first, a tenth of the arrivals."""
        tables = run(tmp_path, THREE_POOLS)
        widths_s = tables.timeline["end_s"] - tables.timeline["start_s"]
        moved = float((tables.timeline["embedding_transfer_bytes_per_s"] * widths_s).sum())
        assert moved == pytest.approx(4 * 1800 * 7168)
        arrivals = tables.requests["arrival_s"]
        inside = arrivals.between(arrivals.min(), arrivals.max(), inclusive="left").sum()
        assert tables.summary["embedding_transfer_bytes"][0] == inside * 1800 * 7168
        plain = run(tmp_path, TWO_POOLS)
        assert plain.summary["embedding_transfer_bytes"][0] == 0
        assert not plain.timeline["embedding_transfer_bytes_per_s"].any()

    def test_before_all_else(self, tmp_path: Path) -> None:
        found = service(tmp_path, BEFORE)
        encode, rest = found.pools
        measured = self.first_token_s(run(tmp_path, BEFORE), found)
        assert measured == pytest.approx(step_s(encode, 1800) + step_s(rest, TOKENS), rel=1e-6)

    def test_chunks_encode_what_they_take_in(self, tmp_path: Path) -> None:
        """Of 1900 tokens in chunks of 1000 the first has 900 of images, the second 900."""
        change = ("max_num_seqs: 64", "max_num_seqs: 64, max_num_batched_tokens: 1000")
        found = service(tmp_path, TOGETHER, change)
        (pool,) = found.pools
        assert pool.encoder is not None
        chunks = (
            StepShape(
                prefill_sequences=1,
                prefill_tokens=size,
                prefill_pairs=prefill_pairs(done, size),
                prefill_context_tokens=done,
            )
            for done, size in ((0, 1000), (1000, 900))
        )
        images = (
            StepShape(
                prefill_sequences=1, prefill_tokens=900, prefill_pairs=prefill_pairs(done, 900)
            )
            for done in (0, 900)
        )
        expected = sum(map(pool.timer.seconds, chunks)) + sum(map(pool.encoder.seconds, images))
        measured = self.first_token_s(run(tmp_path, TOGETHER, change), found)
        assert measured == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("text", [TOGETHER, TWO_POOLS, THREE_POOLS, BEFORE])
    def test_jumps_are_single_steps(self, tmp_path: Path, text: str) -> None:
        changes = (
            (
                "arrivals: {kind: uniform, rate_requests_per_s: 1}\n  requests: 4",
                "arrivals: {kind: poisson, rate_requests_per_s: 60}\n  requests: 200",
            ),
            (
                "tokens: {kind: constant, tokens: 900}",
                "tokens: {kind: uniform, min_tokens: 100, max_tokens: 2000}, fraction: 0.7",
            ),
        )
        fast, slow = (run(tmp_path, text, *changes, every_step=each) for each in (False, True))
        for column in ("admit_s", "first_token_s", "done_s", "replica"):
            np.testing.assert_array_equal(fast.requests[column], slow.requests[column])
        assert (fast.requests["outcome"] == "completed").all()


def test_notes_say_where_the_encoder_is(tmp_path: Path) -> None:
    assert not any("its energy" in note for note in run(tmp_path, TOGETHER).notes)
    text = ("qwen2_5_vl_7b", "llama_3_1_8b")
    notes = run(tmp_path, TOGETHER, text).notes
    assert any("the file of Llama 3.1 8B has none" in note for note in notes)
    assert not any("no image encoder" in note for note in notes)
    notes = run(tmp_path, THREE_POOLS).notes
    assert not any("encoder is" in note for note in notes)
    (said,) = [note for note in notes if "no image encoder was measured" in note]
    assert said.startswith("images, encode: ")


def test_a_slow_link_slows_the_encoder_too(tmp_path: Path) -> None:
    """Each of two ranks then waits ten times as long for the sums of every layer."""
    boot = "boot: {provisioning_s: 5, warm_up_s: 3, weights_from: host}\n"
    faults = (
        "faults: {link: {mtbf_s: 20, repair_s: 10}, link_network: scale_up, link_effect: slow, "
        "link_bandwidth_fraction: 0.1}\n"
    )
    found = service(tmp_path, TOGETHER + boot + faults, ("{tp: 1}", "{tp: 2}"))
    slow_paces = upkeep_plans(found, CATALOG).pools["serve"].slow_paces
    assert slow_paces is not None
    slow = slow_paces(1)(0)

    def encoder_s(pace: Pace) -> float:
        images, text = (step((request(TOKENS, images), TOKENS)) for images in (1800, 0))
        return (pace.line(images)[0] - pace.line(text)[0]) / TICKS_PER_S

    (pool,) = found.pools
    assert pool.encoder is not None
    rows = {row.name: float(row.seconds) for row in pool.encoder.explain(prompt(1800))}
    sums_s = rows["encoder_all_reduce"] + rows["projector_sum_2"]
    plain_s = encoder_s(pool.plan.pace)
    assert plain_s == pytest.approx(pool.encoder.seconds(prompt(1800)), rel=1e-6)
    assert plain_s + 0.5 * 9 * sums_s < encoder_s(slow) < plain_s + 9 * sums_s

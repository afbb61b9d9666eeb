"""A forecast outside the calibrated region says so, and no other does."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_scenarios import CLOSED_LOOP, ONE_CASE, forecast_of, write

from sim.catalog import open_catalog
from sim.checks import resolve
from sim.deployment import Deployment
from sim.efficiency import Fit
from sim.metrics.intervals import curve_notes, notes_of
from sim.metrics.regimes import Extent, _most, measured_context, measured_prompt
from sim.report.data import RunTables
from sim.scenario import load_scenario

CATALOG = open_catalog()
MEASURED = Extent(sequences=489.0, prompt_tokens=32_768.0, context_tokens=131_072.0)
COLUMN = "outside_calibration"
LENGTHS = "input_tokens: 100, output_tokens: 10"
ROW: dict[str, Any] = {"forecast_ground": "engine", COLUMN: ""}


def pool(folder: Path, *changes: tuple[str, str]) -> Deployment:
    (found,) = resolve(load_scenario(write(folder, ONE_CASE, *changes)), CATALOG)
    return found.service.answer_pool


def ran(folder: Path, *changes: tuple[str, str], more: str = "") -> RunTables:
    return forecast_of(write(folder, ONE_CASE + more, *changes), catalog=CATALOG)


def said(tables: RunTables) -> str:
    return str(tables.summary[COLUMN].iloc[0])


def about_region(tables: RunTables) -> list[str]:
    return [note for note in tables.notes if "outside the calibrated region" in note]


class TestExtent:
    def test_the_end_of_a_range_is_inside(self) -> None:
        assert list(MEASURED.beyond(MEASURED)) == []

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            (
                {"sequences": 490.0},
                "490 sequences per replica, fitted at up to 489",
            ),
            (
                {"prompt_tokens": 32_769.0},
                "prompts up to 32,769 tokens with prefill kernels measured up to 32,768",
            ),
            (
                {"context_tokens": 131_073.0},
                "contexts up to 131,073 tokens with decode kernels measured up to 131,072",
            ),
        ],
    )
    def test_one_more_is_outside(self, changed: dict[str, float], words: str) -> None:
        assert list(MEASURED._replace(**changed).beyond(MEASURED)) == [words]

    def test_what_is_not_known_ends_nowhere(self) -> None:
        assert list(MEASURED.beyond(Extent(math.inf, math.inf, math.inf))) == []


class TestRanges:
    """As the files of ``hardware/calibrations`` have them."""

    def test_they_are_those_of_the_kernels_that_a_case_uses(self, tmp_path: Path) -> None:
        """Grouped-query prompts on H100 were measured up to 16,384, latent ones up to 32,768."""
        llama = pool(tmp_path)
        assert (measured_prompt(llama), measured_context(llama)) == (16_384.0, 131_072.0)
        latent = pool(
            tmp_path,
            ("system: h100_sxm_x8", "system: h200_sxm_x8"),
            ("model: llama_3_1_70b", "model: deepseek_r1"),
        )
        assert (measured_prompt(latent), measured_context(latent)) == (32_768.0, 131_072.0)

    def test_layers_with_a_window_end_nowhere(self, tmp_path: Path) -> None:
        """Every layer of DeepSeek V3.2 sees the 2,048 keys that an indexer picks."""
        sparse = pool(
            tmp_path,
            ("system: h100_sxm_x8", "system: h200_sxm_x8"),
            ("model: llama_3_1_70b", "model: deepseek_v3_2"),
        )
        assert measured_prompt(sparse) == measured_context(sparse) == math.inf

    def test_context_ranks_have_a_part_each(self, tmp_path: Path) -> None:
        split = pool(tmp_path, ("{tp: 8}", "{tp: 4, cp: 2}"))
        assert measured_context(split) == 2 * 131_072.0

    def test_a_measured_prefix_counts_like_a_prompt(self) -> None:
        """2,048 tokens over 16,384 that were there: the last of them sees 18,432 keys."""
        ranges = {"isl": (16.0, 2048.0), "prefix": (0.0, 16384.0)}
        fit = Fit(rows=1, median_ape=0.1, p90_ape=0.1, bias=0.0, ranges=ranges, source="made up")
        assert _most(fit, "isl", "prefix") == 18_432.0
        assert _most(fit, "kv_len") == math.inf

    def test_a_chip_that_was_not_measured_has_none(self, tmp_path: Path) -> None:
        other = pool(tmp_path, ("h100_sxm_x8", "mi355x_x8"))
        assert measured_prompt(other) == measured_context(other) == math.inf


class TestRuns:
    def test_long_prompts(self, tmp_path: Path) -> None:
        tables = ran(tmp_path, (LENGTHS, "input_tokens: 125000, output_tokens: 10"))
        words = "prompts up to 125,000 tokens with prefill kernels measured up to 16,384"
        assert said(tables) == words
        (note,) = about_region(tables)
        assert words in note
        assert not any("intervals are those of measured runs" in note for note in tables.notes)

    def test_prompts_as_long_as_those_measured(self, tmp_path: Path) -> None:
        tables = ran(tmp_path, (LENGTHS, "input_tokens: 16384, output_tokens: 10"))
        assert (said(tables), about_region(tables)) == ("", [])

    def test_a_chip_without_measured_kernels(self, tmp_path: Path) -> None:
        tables = ran(tmp_path, ("h100_sxm_x8", "mi355x_x8"))
        assert said(tables) == "kernels of this chip not measured"
        assert "kernels of this chip not measured" in about_region(tables)[0]

    def test_places_that_nobody_takes_are_no_matter(self, tmp_path: Path) -> None:
        """Three clients never make more than three sequences, whatever the engine may take."""
        cases = f"cases:\n  - name: three\n{CLOSED_LOOP}"
        tables = ran(tmp_path, ("max_num_seqs: 64", "max_num_seqs: 4096"), more=cases)
        assert said(tables) == ""
        assert not any("sequences per replica" in note for note in tables.notes)

    def test_a_curve_may_leave_it_where_its_case_does_not(self, tmp_path: Path) -> None:
        """Answers of 600 tokens: about as many decode as there are clients, 1,000 of 489."""
        curve = "curve: {concurrency_per_replica: [1, 1000], requests_per_client: 2}\n"
        tables = ran(
            tmp_path,
            ("max_num_seqs: 64", "max_num_seqs: 1024"),
            (LENGTHS, "input_tokens: 100, output_tokens: 600"),
            more=curve,
        )
        assert said(tables) == ""
        (note,) = about_region(tables)
        assert "from 1,000 clients on" in note
        assert "sequences per replica, fitted at up to" in note
        assert tables.curve is not None
        assert COLUMN not in tables.curve


class TestNotes:
    def test_intervals_are_said_once_to_be_measured_or_guessed(self) -> None:
        inside = list(notes_of("a", ROW))
        assert inside == ["a: intervals are those of measured runs with the engine."]
        (outside,) = notes_of("a", ROW | {COLUMN: "images"})
        assert "outside the calibrated region (images)" in outside
        assert "a guess" in outside

    def test_a_curve_says_nothing_that_its_case_said(self) -> None:
        points = pd.DataFrame({"concurrency": [1, 8], COLUMN: ["", "many"]})
        assert len(list(curve_notes("a", ROW, points))) == 1
        assert list(curve_notes("a", ROW | {COLUMN: "images"}, points)) == []
        assert list(curve_notes("a", {}, points[["concurrency"]])) == []

"""The chart of an explained step: bars end to end, dark parts ideal times, all of it legible."""

import itertools
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sim.cost.timer import Bound
from sim.errors import InputError
from sim.report.charts import PNG_DOTS_PER_IN, draw_steps
from sim.report.charts.drawing import Drawing
from sim.report.charts.waterfall import waterfall_chart
from sim.report.explanation import ExplainedOperator, ExplainedStep
from sim.report.style import THEME, chart_settings, colour
from sim.report.writer import write_steps


def operator(
    name: str, seconds: float, light_s: float, bound: Bound, step_s: float
) -> ExplainedOperator:
    return ExplainedOperator(
        name=name,
        calls=1.0,
        flop=0.0,
        bytes=1.0,
        seconds=seconds,
        share_fraction=seconds / step_s,
        light_s=light_s,
        compute_s=light_s if bound == "compute" else 0.0,
        memory_s=light_s,
        mfu_fraction=0.0,
        mbu_fraction=light_s / seconds,
        effective_bytes_per_s=1.0 / seconds,
        bound=bound,
        source="by hand",
    )


def step(
    *rows: tuple[str, float, float, Bound], words: str = "decode of 8 sequences"
) -> ExplainedStep:
    """Build a step of operators given as name, time, ideal time and bound."""
    total = sum(seconds for _, seconds, _, _ in rows)
    return ExplainedStep(
        case="a case",
        step=words,
        kind="decode",
        pool="serve",
        model="A model",
        system="a_system",
        accelerator="A chip",
        caveats="not calibrated",
        split="tp 2 x pp 1 x attention_dp 1 x cp 1 = 2 chips, experts over ep 1",
        cut="tp 2",
        notes=(),
        seconds=total,
        light_s=sum(light_s for _, _, light_s, _ in rows),
        operators=tuple(operator(*row, total) for row in rows),
    )


FOUR = step(
    ("products", 4e-3, 3e-3, "compute"),
    ("attention", 3e-3, 1e-3, "memory"),
    ("exchange", 2e-3, 0.0, "network"),
    ("engine", 1e-3, 0.0, "overhead"),
)
MANY = step(
    *(
        (f"operator_{i}_with_a_rather_long_name", 1e-4 * i, 5e-5 * i, "memory")
        for i in range(1, 31)
    ),
    words="prefill of 131,072 tokens",
)
TINY = step(
    ("products", 1.0, 0.5, "compute"),
    ("norm", 1e-3, 1e-4, "memory"),
    ("router", 1e-3, 1e-4, "overhead"),
)
MICRO = step(("products", 2e-5, 1e-6, "overhead"), ("engine", 3e-5, 0.0, "overhead"))


def drawn(found: ExplainedStep) -> Drawing:
    with chart_settings(salt="decode"):
        drawing = waterfall_chart(found, "1.2.3")
        drawing.sheet.figure.set_dpi(PNG_DOTS_PER_IN)  # hinting widens letters at fewer
        drawing.sheet.figure.draw_without_rendering()
    return drawing


def bars(drawing: Drawing) -> list[Rectangle]:
    (axes,) = drawing.sheet.figure.axes
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def coloured(drawing: Drawing, token: str) -> list[tuple[float, float]]:
    """Start and length of the bars of one colour, in milliseconds."""
    wanted = colour(token)
    return [
        (round(bar.get_x() * 1e3, 9), round(bar.get_width() * 1e3, 9))
        for bar in bars(drawing)
        if to_hex(bar.get_facecolor()) == wanted
    ]


class TestBars:
    def test_they_lie_end_to_end_and_the_dark_part_is_the_ideal_time(self) -> None:
        drawing = drawn(FOUR)
        assert coloured(drawing, "bound-compute") == [(0.0, 3.0)]
        assert coloured(drawing, "bound-memory") == [(4.0, 1.0)]
        # The last bar repeats what is lost: 1 of the products, 2 of attention, and all of the rest.
        assert coloured(drawing, "bound-compute-rest") == [(0.0, 4.0), (4.0, 1.0)]
        assert coloured(drawing, "bound-memory-rest") == [(4.0, 3.0), (5.0, 2.0)]
        assert coloured(drawing, "bound-network-rest") == [(7.0, 2.0), (7.0, 2.0)]
        assert coloured(drawing, "bound-overhead-rest") == [(9.0, 1.0), (9.0, 1.0)]

    def test_the_ideal_of_the_step_is_marked_and_written(self) -> None:
        drawing = drawn(FOUR)
        assert coloured(drawing, "ink") == [(0.0, 4.0)]
        (axes,) = drawing.sheet.figure.axes
        assert 4e-3 in [line.get_xdata()[0] for line in axes.lines]  # type: ignore[index]
        assert drawing.title == "Decode of 8 sequences: 10.0 ms, at datasheet peaks 4.00 ms"
        assert "ideal 4.00 ms" in [text.get_text() for text in axes.texts]

    def test_tiny_operators_stand_together_and_nothing_is_lost(self) -> None:
        """Two of 1 ms in a step of a second are one bar of 2 ms at the end."""
        drawing = drawn(TINY)
        assert "2 small operators" in [text.get_text() for text in drawing.sheet.figure.texts]
        assert (1000.0, 2.0) in coloured(drawing, "bound-memory-rest")

    def test_the_title_keeps_thousands_together_and_leaves_contexts_out(self) -> None:
        assert drawn(MANY).title.startswith("Prefill of 131,072 tokens: ")
        rows = (("products", 4e-3, 3e-3, "compute"), ("engine", 1e-3, 0.0, "overhead"))
        found = step(*rows, words="decode of 8 sequences, 1,024 keys each")  # type: ignore[arg-type]
        assert drawn(found).title.startswith("Decode of 8 sequences: ")

    def test_a_chip_that_was_not_measured_is_said_to_be_one(self) -> None:
        for caveats in ("", "not calibrated", "not calibrated, speculative chip"):
            texts = drawn(replace(FOUR, caveats=caveats)).sheet.figure.texts
            assert any(f"({caveats})" in text.get_text() for text in texts) == bool(caveats)
            assert any("not calibrated" in text.get_text() for text in texts) == bool(caveats)

    def test_in_words(self) -> None:
        alt = drawn(FOUR).alt
        assert alt.startswith("Waterfall chart. decode of 8 sequences on A chip: products 4.00 ms")
        assert alt.endswith("together 10.0 ms, at the datasheet peaks 4.00 ms.")


@pytest.mark.parametrize("found", [FOUR, MANY, TINY, MICRO], ids=["four", "many", "tiny", "micro"])
def test_no_text_covers_another_or_leaves_the_sheet(found: ExplainedStep) -> None:
    drawing = drawn(found)
    figure = drawing.sheet.figure
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = {
        id(tick.label1)
        for tick in axes.xaxis.get_major_ticks()
        if not low <= tick.get_loc() <= high
    }
    shown = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and id(text) not in ticks
    ]
    assert len(shown) > 2 * len(found.operators) or found is TINY
    for words, box in shown:
        assert box.x0 >= 0, words
        assert box.x1 <= figure.bbox.width, words
    for (one, a), (other, b) in itertools.combinations(shown, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or up <= 7, f"{one!r} covers {other!r}"


def test_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    (path,) = write_steps((FOUR,), "1.2.3", out)
    assert path == out / "decode.png"
    width, _ = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 2000
    ET.fromstring((out / "decode.svg").read_bytes())  # noqa: S314 - our own bytes


def test_equal_steps_give_equal_bytes() -> None:
    (one,), (other,) = draw_steps((FOUR,), "1.2.3"), draw_steps((FOUR,), "1.2.3")
    assert (one.svg, one.png) == (other.svg, other.png)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot write the charts to .*: Not a directory"):
        write_steps((FOUR,), "1.2.3", tmp_path / "file" / "below")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_dark_part_of_a_bar_can_be_told_from_the_rest(theme: int) -> None:
    def brightness(token: str) -> float:
        value = THEME[token][theme]
        return sum(int(value[i : i + 2], 16) for i in (1, 3, 5)) / 3

    for bound in ("compute", "memory", "network", "overhead"):
        assert abs(brightness(f"bound-{bound}") - brightness(f"bound-{bound}-rest")) > 40, bound

"""The texts of a drawing, and that none of them covers another."""

import itertools

from matplotlib.text import Text

from sim.report.charts.drawing import Drawing


def texts(drawing: Drawing) -> list[Text]:
    """Every text that is drawn, tick labels inside the axes' limits included."""
    figure = drawing.sheet.figure
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    ticks = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [text for text in found if id(text) not in ticks]


def assert_nothing_is_covered(drawing: Drawing) -> None:
    """Fail if a text covers another or leaves the sheet."""
    figure = drawing.sheet.figure
    shown = texts(drawing)
    assert len(shown) >= 3
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    for words, box in boxes:
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= figure.bbox.width, words
        assert box.y1 <= figure.bbox.height, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        # A box is as high as the tallest letters: a pixel or two of it is empty.
        assert across <= 0.5 or up <= 3.5, f"{one!r} covers {other!r}"

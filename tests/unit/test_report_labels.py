"""Labels cover neither each other nor what they name."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.report.labels import GAP_PT, Box, Canvas, Wanted, along, around

WIDTH, HEIGHT = 300.0, 200.0
POINTS = st.lists(st.tuples(st.floats(0.0, WIDTH), st.floats(0.0, HEIGHT)), min_size=1, max_size=30)


def overlap(one: Box, other: Box) -> bool:
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    up = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return across > 0 and up > 0


@settings(max_examples=60, deadline=None)
@given(points=POINTS, size=st.tuples(st.floats(2.0, 80.0), st.floats(4.0, 30.0)))
def test_labels_are_inside_apart_and_off_the_strokes(
    points: list[tuple[float, float]], size: tuple[float, float]
) -> None:
    strokes = along(np.array(points))
    canvas = Canvas(WIDTH, HEIGHT, strokes)
    boxes = [
        box
        for point in points
        if (box := canvas.place(Wanted(*size, anchors=np.array([point]), distance=5.0)))
    ]
    for index, box in enumerate(boxes):
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= WIDTH
        assert box.y + box.height <= HEIGHT
        assert not any(overlap(box, other) for other in boxes[:index])
        inside = (
            (strokes[:, 0] > box.x)
            & (strokes[:, 0] < box.x + box.width)
            & (strokes[:, 1] > box.y)
            & (strokes[:, 1] < box.y + box.height)
        )
        assert not inside.any()


def test_a_lone_point_is_labelled_on_its_right() -> None:
    canvas = Canvas(WIDTH, HEIGHT, np.array([[100.0, 100.0]]))
    box = canvas.place(Wanted(20.0, 10.0, np.array([[100.0, 100.0]]), distance=5.0))
    assert box == Box(105.0, 95.0, 20.0, 10.0)


def test_no_place_is_no_label() -> None:
    canvas = Canvas(15.0, 15.0, np.array([[7.0, 7.0]]))
    assert canvas.place(Wanted(20.0, 10.0, np.array([[7.0, 7.0]]), distance=1.0)) is None


def test_samples_are_closer_than_a_label_is_high() -> None:
    samples = along(np.array([[0.0, 0.0], [100.0, 50.0], [110.0, 0.0]]))
    steps = np.hypot(*np.diff(samples, axis=0).T)
    assert steps.max() <= 2 * GAP_PT


def test_rims_of_markers() -> None:
    rims = around(np.array([[0.0, 0.0], [10.0, 0.0]]), 4.0)
    assert rims.shape == (8, 2)
    assert np.hypot(rims[:4, 0], rims[:4, 1]).tolist() == [2.0] * 4


def test_a_label_that_is_led_to_its_point_leads_over_no_other_label() -> None:
    """The second name could stand behind the first; it takes its next place, whose line is free."""
    canvas = Canvas(200.0, 100.0, np.zeros((0, 2)))
    point = np.array([[50.0, 50.0]])
    first = canvas.place(Wanted(30.0, 10.0, point, 5.0, led_to=point))
    assert first == Box(55.0, 45.0, 30.0, 10.0)
    away = np.array([[90.0, 50.0], [55.0, 75.0]])
    led = canvas.place(Wanted(30.0, 10.0, away, 5.0, led_to=point))
    assert led == Box(60.0, 70.0, 30.0, 10.0)
    unled = Canvas(200.0, 100.0, np.zeros((0, 2)))
    unled.place(Wanted(30.0, 10.0, point, 5.0))
    assert unled.place(Wanted(30.0, 10.0, away, 5.0)) == Box(95.0, 45.0, 30.0, 10.0)


def test_no_label_covers_the_line_of_another() -> None:
    canvas = Canvas(200.0, 100.0, np.zeros((0, 2)))
    point = np.array([[10.0, 50.0]])
    assert canvas.place(Wanted(10.0, 10.0, np.array([[150.0, 50.0]]), 5.0, led_to=point))
    crossing = Wanted(20.0, 10.0, np.array([[75.0, 50.0]]), 5.0)
    found = canvas.place(crossing)
    assert found is not None
    assert not found.y < 50.0 < found.y + found.height

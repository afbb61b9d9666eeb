"""Where labels go so that they cover neither each other nor the lines they name.

Labels are placed one by one, the important ones first, each at the first of its candidate places
that is free. A label that finds none is left out, and the caller decides what that means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

GAP_PT = 1.5
"""Kept free around every label."""
STROKE_PT = 3.0
"""Distance of the samples along a line that labels must not cover."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A label looking for a place; lengths in points, y upward."""

    width: float
    height: float
    anchors: Points
    """The points it may name, best first; shape (n, 2)."""
    distance: float
    """From an anchor to the nearest edge of the label."""
    led_to: Points | None = None
    """What it names, if a line may lead there from places that are not beside it."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a label went; its lower left corner, width and height."""

    x: float
    y: float
    width: float
    height: float


def along(points: Points) -> Points:
    """Sample a polyline densely enough that no label fits between two samples.

    >>> along(np.array([[0.0, 0.0], [9.0, 0.0]]))[:, 0].tolist()
    [0.0, 3.0, 6.0, 9.0]
    """
    if len(points) < 2:
        return points
    samples = [
        start + (end - start) * np.linspace(0.0, 1.0, _steps(start, end), endpoint=False)[:, None]
        for start, end in pairwise(points)
    ]
    return np.vstack([*samples, points[-1:]])


def around(points: Points, diameter: float) -> Points:
    """Sample the rims of the markers at some points, four samples each.

    >>> around(np.array([[5.0, 5.0]]), 2.0).tolist()
    [[4.0, 5.0], [6.0, 5.0], [5.0, 4.0], [5.0, 6.0]]
    """
    rim = diameter / 2 * np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    return (points[:, None, :] + rim).reshape(-1, 2)


def leader(box: Box, wanted: Wanted) -> Points | None:
    """Give the ends of the line from a label to what it names; None if it stands beside that.

    >>> wanted = Wanted(2.0, 1.0, np.zeros((0, 2)), 3.0, led_to=np.array([[0.0, 0.5]]))
    >>> leader(Box(10.0, 0.0, 2.0, 1.0), wanted).tolist()
    [[10.0, 0.5], [0.0, 0.5]]
    """
    if wanted.led_to is None:
        return None
    low, high = np.array([box.x, box.y]), np.array([box.x + box.width, box.y + box.height])
    nearest = np.clip(wanted.led_to, low, high)
    gaps = np.hypot(*(nearest - wanted.led_to).T)
    which = int(np.argmin(gaps))
    beside = gaps[which] <= wanted.distance + GAP_PT
    return None if beside else np.vstack([nearest[which], wanted.led_to[which]])


def _steps(start: Points, end: Points) -> int:
    return max(1, int(np.ceil(float(np.hypot(*(end - start))) / STROKE_PT)))


class Canvas:
    """What is taken of a drawing area.

    Parameters
    ----------
    width, height : float
        Size of the area in points.
    strokes : array, shape (n, 2)
        Points that no label may cover.
    """

    def __init__(self, width: float, height: float, strokes: Points) -> None:
        self._width, self._height = width, height
        self._strokes = strokes
        self._taken: list[Box] = []

    def place(self, wanted: Wanted) -> Box | None:
        """Take the first free place of a label; None if there is none."""
        for anchor in wanted.anchors:
            for box in _around(wanted, float(anchor[0]), float(anchor[1])):
                if self._free(box) and self._led(box, wanted):
                    self._taken.append(box)
                    return box
        return None

    def _led(self, box: Box, wanted: Wanted) -> bool:
        """Whether the line to what a label names covers no other label; keep it clear if so."""
        ends = leader(box, wanted)
        if ends is None:
            return True
        line = along(ends)
        if any(_crosses(line, other) for other in self._taken):
            return False
        self._strokes = np.vstack([self._strokes, line])
        return True

    def _free(self, box: Box) -> bool:
        inside = (
            box.x >= 0
            and box.y >= 0
            and box.x + box.width <= self._width
            and box.y + box.height <= self._height
        )
        return inside and not any(_touch(box, other) for other in self._taken) and self._clear(box)

    def _clear(self, box: Box) -> bool:
        return not _crosses(self._strokes, box)


def _around(wanted: Wanted, x: float, y: float) -> Sequence[Box]:
    """Places next to a point: right, left, above, below, then the corners."""
    w, h, d = wanted.width, wanted.height, wanted.distance
    slant = 0.75 * d
    corners = (
        (x + d, y - h / 2),
        (x - d - w, y - h / 2),
        (x - w / 2, y + d),
        (x - w / 2, y - d - h),
        (x + slant, y + slant),
        (x + slant, y - slant - h),
        (x - slant - w, y + slant),
        (x - slant - w, y - slant - h),
    )
    return [Box(left, bottom, w, h) for left, bottom in corners]


def _crosses(points: Points, box: Box) -> bool:
    """Whether any of some points lies in a box, or next to it."""
    x, y = points[:, 0], points[:, 1]
    covered = (
        (x > box.x - GAP_PT)
        & (x < box.x + box.width + GAP_PT)
        & (y > box.y - GAP_PT)
        & (y < box.y + box.height + GAP_PT)
    )
    return bool(covered.any())


def _touch(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width + GAP_PT
        and other.x < one.x + one.width + GAP_PT
        and one.y < other.y + other.height + GAP_PT
        and other.y < one.y + one.height + GAP_PT
    )

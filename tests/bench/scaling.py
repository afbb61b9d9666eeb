"""Draw how the cost of a request grows: ``python tests/bench/scaling.py``, part of ``make bench``.

Writes ``reports/speed/scaling.csv``, ``.png`` and ``.svg``. Time is user CPU time of one core, the
best of several runs; calls are those of Python functions, which no other load on the machine moves.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loads import calls_per_request, fastest, fixed, full_batches, service
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[2] / "reports/speed"
MOST_COUNTED = 256_000
"""Requests of runs whose calls are counted, which takes many times as long as serving them."""
RUNS = 3
PER_REPLICA = 1_000
PLACES = (1, 4, 16, 64, 256)


class Point(NamedTuple):
    """One run of the benchmark."""

    along: str
    """What grows: requests, replicas or places."""
    size: int
    requests: int
    cpu_us_per_request: float
    counted_requests: int
    """How many requests the calls were counted over."""
    calls_per_request: float


def along_requests() -> Iterator[Point]:
    """A replica near saturation, for longer and longer."""
    alone = service()
    for requests in (1_000, 10_000, 100_000, 1_000_000):
        runs = RUNS if requests < 1_000_000 else 1
        best = fastest(runs, alone, fixed(alone, requests))
        counted = min(requests, MOST_COUNTED)
        calls = calls_per_request(alone, fixed(alone, counted))
        yield Point("requests", requests, requests, 1e6 / best.requests_per_cpu_s, counted, calls)


def along_replicas() -> Iterator[Point]:
    """More and more replicas behind one router, each with as many requests."""
    for replicas in (1, 2, 4, 16, 64, 256):
        several, requests = service(replicas), PER_REPLICA * replicas
        best = fastest(RUNS if replicas < 64 else 1, several, fixed(several, requests))
        counted = min(requests, MOST_COUNTED)
        calls = calls_per_request(several, fixed(several, counted))
        yield Point("replicas", replicas, requests, 1e6 / best.requests_per_cpu_s, counted, calls)


def along_places() -> Iterator[Point]:
    """One replica with all of its places taken, of which it has more and more."""
    requests = 20_000
    for places in PLACES:
        replica = service(places=places)
        traffic = full_batches(replica, requests, places)
        best = fastest(RUNS, replica, traffic)
        calls = calls_per_request(replica, traffic)
        yield Point("places", places, requests, 1e6 / best.requests_per_cpu_s, requests, calls)


TITLES = {
    "requests": "requests of a run, one replica",
    "replicas": f"replicas, {PER_REPLICA} requests each",
    "places": "sequences that run at a time",
}


def draw(points: list[Point]) -> None:
    """Draw a panel for each thing that grows."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for panel, (along, title) in zip(axes, TITLES.items(), strict=True):
        mine = [point for point in points if point.along == along]
        sizes = [point.size for point in mine]
        panel.plot(sizes, [each.cpu_us_per_request for each in mine], "o-", label="user CPU, us")
        counted = [point for point in mine if point.counted_requests == point.requests]
        panel.plot(
            [point.size for point in counted],
            [point.calls_per_request for point in counted],
            "s--",
            label="Python calls",
        )
        panel.set_xscale("log", base=10 if along == "requests" else 2)
        panel.set_xlabel(title)
        panel.set_ylim(0, 1.05 * max(max(point[3], point[5]) for point in points))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("per request")
    axes[0].legend()
    figure.suptitle("What a request of 512 tokens in and 256 out costs the simulator")
    figure.savefig(FOLDER / "scaling.png", dpi=120)
    figure.savefig(FOLDER / "scaling.svg", metadata={"Date": None})


def main() -> None:
    """Measure, write the table, draw."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    points = []
    for measure in (along_requests, along_replicas, along_places):
        for point in measure():
            points.append(point)
            sys.stdout.write(
                f"{point.along:9s} {point.size:9,d} {point.cpu_us_per_request:7.1f} us "
                f"{point.calls_per_request:7.1f} calls per request\n"
            )
            sys.stdout.flush()
    with (FOLDER / "scaling.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Point._fields)
        writer.writerows((*p[:3], f"{p[3]:.2f}", p[4], f"{p[5]:.2f}") for p in points)
    draw(points)


if __name__ == "__main__":
    main()

"""Energy, FLOP and time of the images that a replica encodes beside the language model."""

from pathlib import Path

import numpy as np
import pytest
from test_image_encoding import CATALOG, THREE_POOLS, TOGETHER, prompt, service

from sim.metrics.activity import Totals, blocks_of, tally
from sim.simulate import draw_traffic, serve


def done(folder: Path, text: str) -> Totals:
    """What all chips of a service did with four requests."""
    found = service(folder, text)
    record = serve(found, draw_traffic(found.case.workload, CATALOG, 1))
    (counted,) = tally(found, blocks_of(record.stretches), np.array([0.0, 1e3]))
    return counted.service


def test_one_chip_does_what_three_share(tmp_path: Path) -> None:
    """But for what the engine itself and the ways between the pools take."""
    alone, apart = done(tmp_path, TOGETHER), done(tmp_path, THREE_POOLS)
    assert float(alone.flop.sum()) == pytest.approx(float(apart.flop.sum()))
    assert float(alone.memory_s.sum()) == pytest.approx(float(apart.memory_s.sum()), rel=0.01)
    assert float(alone.energy_j.sum()) == pytest.approx(float(apart.energy_j.sum()), rel=0.1)
    assert float(alone.prefill_s.sum()) == pytest.approx(float(apart.prefill_s.sum()), rel=0.1)


def test_images_are_a_good_part_of_the_work(tmp_path: Path) -> None:
    """Of two of 900 tokens, by hand: products of 2 x 3600 patches, and pairs."""
    (pool,) = service(tmp_path, TOGETHER).pools
    assert pool.images is not None
    images = prompt(1800)
    each = float(pool.images.flop.fixed(images) + pool.images.flop.attended(images))
    products = 2 * 3600 * 2 * (32 * (4 * 1280**2 + 3 * 1280 * 3420) + 1176 * 1280)
    pairs = 2 * (28 * 3600 * 64 + 4 * 3600**2) * 4 * 1280
    assert each == pytest.approx(products + pairs, rel=0.02)  # the projector and norms beside
    assert float(done(tmp_path, TOGETHER).flop.sum()) > 4 * each

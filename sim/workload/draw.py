"""Draw the requests of a workload, or read them from its trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.catalog import Catalog
from sim.errors import InputError, under
from sim.schema import validate
from sim.seeds import stream
from sim.workload.arrivals import ArrivalLaw, BurstArrivals, ModulatedArrivals
from sim.workload.kinds import (
    ClosedLoopWorkload,
    MixWorkload,
    OpenLoopWorkload,
    ProgramsWorkload,
    SessionsWorkload,
    TraceWorkload,
    Workload,
)
from sim.workload.lengths import LengthLaw
from sim.workload.mix import mixed
from sim.workload.readers.agentic import RecordedSessions, read_agentic
from sim.workload.replay import replayed
from sim.workload.requests import Traffic, as_tokens
from sim.workload.sampling import sampled
from sim.workload.sessions import SessionLaw, SessionTraffic
from sim.workload.tasks import programs, traffic_of
from sim.workload.traffic import TrafficLaw

Floats = NDArray[np.float64]


def draw(workload: Workload, catalog: Catalog, seed: int, *names: str | int) -> Traffic:
    """Draw the requests of a workload, or read them from its trace.

    Parameters
    ----------
    workload : Workload
        An open loop with its rate known: without ``load_fraction``.
    catalog : Catalog
        For fitted laws.
    seed : int
        Equal seeds give equal requests.
    *names : str or int
        In front of the names of all random streams, see `sim.seeds.stream`.

    Raises
    ------
    InputError
        A trace without a path or one that cannot be read, a law that is not known, or no request
        at all.
    """
    if isinstance(workload, MixWorkload):
        parts = {}
        for name, part in workload.parts.items():
            with under("parts", name):
                parts[name] = draw(part, catalog, seed, *names, "part", name)
        return mixed(parts)
    if isinstance(workload, TraceWorkload):
        path = _given(workload.path, "trace")
        with under("path"):
            return replayed(path, workload.format, workload.options, seed)
    if isinstance(workload, SessionsWorkload):
        return _sessions(workload, catalog, seed, names)
    if isinstance(workload, ProgramsWorkload):
        return traffic_of(programs(workload, catalog, seed, names))
    lengths, arrivals = laws(workload, catalog)
    if isinstance(workload, ClosedLoopWorkload):
        drawn = _requests(workload, lengths, workload.requests, seed, (*names, "lengths"))
        return replace(drawn, clients=workload.concurrency)
    times = _arrival_times(arrivals, workload, seed, names)
    if not times.size:
        raise InputError(
            f"no request arrives in {workload.duration_s} s; give a longer duration_s or a higher "
            "rate",
            key="duration_s",
        )
    drawn = _requests(workload, lengths, times.size, seed, (*names, "lengths"))
    return sampled(
        replace(drawn, arrival_s=times), workload, lengths, stream(seed, *names, "samples")
    )


def pilot(
    workload: OpenLoopWorkload, catalog: Catalog, seed: int, requests: int, clients: int
) -> Traffic:
    """Draw requests like those of an open loop for clients that keep the system full."""
    lengths, _ = laws(workload, catalog)
    prompts = _requests(workload, lengths, requests, seed, ("pilot",))
    drawn = sampled(prompts, workload, lengths, stream(seed, "pilot", "samples"))
    return replace(drawn, clients=clients)


def laws(
    workload: OpenLoopWorkload | ClosedLoopWorkload, catalog: Catalog
) -> tuple[LengthLaw, ArrivalLaw | None]:
    """Give the laws of a workload, from the fitted traffic that it names or from itself."""
    lengths = workload.lengths
    arrivals = workload.arrivals if isinstance(workload, OpenLoopWorkload) else None
    if workload.traffic is not None:
        traffic = validate(TrafficLaw, catalog.located("lengths", workload.traffic))
        lengths = lengths or traffic.lengths
        arrivals = arrivals or traffic.arrivals
    if lengths is None:
        raise InputError("the workload names no traffic and gives no lengths")
    return lengths, arrivals


def _requests(
    workload: OpenLoopWorkload | ClosedLoopWorkload,
    lengths: LengthLaw,
    count: int,
    seed: int,
    names: tuple[str | int, ...],
) -> Traffic:
    """Draw requests without their arrivals."""
    tokens = lengths.sample(stream(seed, *names), count)
    inputs, outputs = tokens.input_tokens, tokens.output_tokens
    images = max_tokens = contents = None
    if workload.images is not None:
        present = stream(seed, *names, "images").random(count) < workload.images.fraction
        drawn = workload.images.tokens.sample(stream(seed, *names, "image tokens"), count)
        images = np.where(present, workload.images.per_request * drawn, 0)
        inputs = inputs + images
    if workload.sharing is not None:
        prefix_rng = stream(seed, *names, "prefixes")
        shared = workload.sharing.share(prefix_rng, stream(seed, *names, "shared"), inputs)
        inputs, contents = shared.input_tokens, shared.contents
    if workload.max_tokens is not None:
        outputs = np.minimum(outputs, workload.max_tokens)
        max_tokens = np.full(count, workload.max_tokens, dtype=np.int32)
    return Traffic(
        input_tokens=as_tokens(inputs),
        output_tokens=as_tokens(outputs),
        max_tokens=max_tokens,
        encode_tokens=None if images is None else as_tokens(images),
        contents=contents,
    )


def _arrival_times(
    arrivals: ArrivalLaw | None,
    workload: OpenLoopWorkload,
    seed: int,
    names: tuple[str | int, ...],
) -> Floats:
    """Draw arrival times at the wanted rate, for a number of requests or a stretch of time.

    The rate profile of a fitted traffic law is spread over the whole run, whatever its length; a
    profile that the scenario itself gives keeps its period.
    """
    if arrivals is None:
        raise InputError("the workload names no traffic and gives no arrivals")
    rng = stream(seed, *names, "arrivals")
    if isinstance(arrivals, BurstArrivals):
        if workload.requests is None or workload.rate_requests_per_s is not None:
            raise InputError(
                "burst arrivals have no rate: give requests, and no rate or duration",
                key=["rate_requests_per_s", "duration_s", "arrivals"],
            )
        return arrivals.sample_count(rng, workload.requests)
    if workload.rate_requests_per_s is not None:
        arrivals = arrivals.at_rate(workload.rate_requests_per_s)
    if isinstance(arrivals, ModulatedArrivals) and workload.arrivals is None:
        count = workload.requests or 0
        arrivals = arrivals.stretched_to(
            workload.duration_s or count / arrivals.rate_requests_per_s
        )
    if workload.duration_s is not None:
        return arrivals.sample_duration(rng, workload.duration_s)[: workload.requests]
    return arrivals.sample_count(rng, workload.requests or 0)


def _sessions(
    workload: SessionsWorkload, catalog: Catalog, seed: int, names: tuple[str | int, ...]
) -> Traffic:
    recorded = None
    if workload.path is not None:
        with under("path"):
            recorded = read_agentic(workload.path, workload.zero_output)
    start_s = _session_starts(workload, recorded, stream(seed, *names, "arrivals"))
    none = np.zeros(0, dtype=np.int32)
    if recorded is not None:
        plans = recorded.starting_at(start_s)
    else:
        plans = _session_law(workload, catalog).sample(seed, start_s, *names, "sessions")
    return Traffic(none, none, np.zeros(0), sessions=plans)


def _session_starts(
    workload: SessionsWorkload, recorded: RecordedSessions | None, rng: np.random.Generator
) -> Floats:
    """Draw when sessions start: for a while, so many, or all that are recorded."""
    if workload.duration_s is None or isinstance(workload.arrivals, BurstArrivals):
        every = 0 if recorded is None else recorded.count
        return workload.arrivals.sample_count(rng, workload.sessions or every)
    start_s = workload.arrivals.sample_duration(rng, workload.duration_s)[: workload.sessions]
    if not start_s.size:
        raise InputError(
            f"no session starts in {workload.duration_s} s; give a longer duration_s or a higher "
            "rate",
            key="duration_s",
        )
    return start_s


def _session_law(workload: SessionsWorkload, catalog: Catalog) -> SessionLaw:
    law = workload.law
    if workload.traffic is not None:
        law = validate(SessionTraffic, catalog.located("sessions", workload.traffic)).law
    if law is None:
        raise InputError("the workload names no sessions and gives no law of them")
    return law


def _given(path: Path | None, what: str) -> Path:
    if path is None:
        raise InputError(
            f"workload.path is not set: give the {what} with --set workload.path=FILE", key="path"
        )
    return path

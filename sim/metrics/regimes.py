"""What a forecast rests on, as far as it can be told before anybody measures."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sim.catalog import Catalog
from sim.cost.operators import DecodeAttention, PrefillAttention
from sim.cost.work import StepShape
from sim.deployment import Deployment
from sim.efficiency import Fit
from sim.errors import InternalError
from sim.service import Service
from sim.uncertainty import GROUNDS, Arrivals, Ground, Regime, Residuals

CACHED_FRACTION = 0.05
"""Share of prompts found in a cache from which caching is said to matter."""


class Extent(NamedTuple):
    """How far a run went, or how far measurements go."""

    sequences: float = 0.0
    """Answered at the same time by a replica, on average."""
    prompt_tokens: float = 0.0
    """Of the longest prompt."""
    context_tokens: float = 0.0
    """Of the longest prompt together with its answer."""

    def beyond(self, measured: "Extent") -> Iterator[str]:
        """Say where a run went further than measurements do.

        >>> list(Extent(4.0, 125e3, 126e3).beyond(Extent(489.0, 32768.0, 131072.0)))
        ['prompts up to 125,000 tokens with prefill kernels measured up to 32,768']
        """
        if self.sequences > measured.sequences:
            yield (
                f"{self.sequences:,.0f} sequences per replica, fitted at up to "
                f"{measured.sequences:,.0f}"
            )
        if self.prompt_tokens > measured.prompt_tokens:
            yield (
                f"prompts up to {self.prompt_tokens:,.0f} tokens with prefill kernels "
                f"measured up to {measured.prompt_tokens:,.0f}"
            )
        if self.context_tokens > measured.context_tokens:
            yield (
                f"contexts up to {self.context_tokens:,.0f} tokens with decode kernels "
                f"measured up to {measured.context_tokens:,.0f}"
            )


@dataclass(frozen=True)
class Outlook:
    """What is known of the errors of forecasts of one service."""

    residuals: Residuals
    ground: Ground
    """The worst of its pools'."""
    kernel_spread_fraction: float
    """The largest of its pools'; 0 if the kernels of all chips were measured."""
    measured: Extent
    """Of the runs behind the engine's overhead, and of the kernels; infinite: not known."""
    outside: tuple[str, ...]
    """Why no measured run is like it, where none is."""

    def regime(
        self,
        service: Service,
        arrivals: Arrivals,
        load_ratio: float,
        extent: Extent,
        cached_fraction: float = 0.0,
    ) -> Regime:
        """Tell the regime of a forecast.

        Parameters
        ----------
        service : Service
        arrivals : str
        load_ratio : float
            Median time to first token over that of a prompt alone, `unloaded_ttft_s`.
        extent : Extent
            Of the run.
        cached_fraction : float
            Of the prompt tokens, that are found in a cache.
        """
        more = list(extent.beyond(self.measured))
        if cached_fraction >= CACHED_FRACTION:
            more.append("prompts found in a cache")
        return Regime(
            arrivals=arrivals,
            ground=self.ground,
            load_ratio=load_ratio,
            system=service.answer_pool.case.system,
            kernel_spread_fraction=self.kernel_spread_fraction,
            outside=(*self.outside, *more),
        )


def outlook_of(service: Service, catalog: Catalog) -> Outlook | None:
    """Look up what is known of the errors of forecasts; None if no residuals were fitted."""
    residuals = catalog.residuals()
    if residuals is None:
        return None
    pools = [pool for pool in service.pools if pool.role != "encode"]
    return Outlook(
        residuals=residuals,
        ground=max((ground_of(pool, catalog) for pool in pools), key=GROUNDS.index),
        kernel_spread_fraction=max(kernel_spread_fraction(pool, catalog) for pool in pools),
        measured=_measured(service, catalog),
        outside=tuple(dict.fromkeys(_outside(service, pools))),
    )


def ground_of(pool: Deployment, catalog: Catalog) -> Ground:
    """Tell what the overhead of a pool's engine was fitted to."""
    family, engine = pool.accelerator.family, pool.case.engine
    known = catalog.overheads(engine.kernels, engine.name).families.get(family)
    if known is None or known.fit is None:
        return "borrowed"
    return "fitted" if pool.case.model in known.models else "other_model"


def kernel_spread_fraction(pool: Deployment, catalog: Catalog) -> float:
    """Give the typical error of a kernel under the prior of a pool's chip; 0: it was measured."""
    if pool.calibration is not None:
        return 0.0
    prior = catalog.prior(pool.accelerator.family)
    if prior is None:  # without either there are no laws, and no deployment
        raise InternalError(f"{pool.accelerator.family} has neither a calibration nor a prior")
    return prior.rule.spread_fraction.value


def _measured(service: Service, catalog: Catalog) -> Extent:
    """Tell how far the runs behind an overhead and the kernels of a service go."""
    answers = service.answer_pool
    overheads = catalog.overheads(answers.case.engine.kernels, answers.case.engine.name)
    sequences = overheads.of_family(answers.accelerator.family).max_sequences
    return Extent(
        sequences or math.inf, measured_prompt(service.prompt_pool), measured_context(answers)
    )


def measured_prompt(pool: Deployment) -> float:
    """Give the tokens of the longest prompt that prefill kernels were measured at.

    Those of layers that see the whole context count; infinite where there are none, or where the
    chip was not measured at all. Prompts in chunks reach as far: the last chunk meets all keys of
    those before it, so its prefix counts like its own tokens.
    """
    if pool.calibration is None:
        return math.inf
    kernels = pool.timer.kernels
    return min(
        (
            _most(kernels.prefill_attention(each)[0].fit, "isl", "prefix") * each.tokens_per_key
            for each in pool.timer.operators
            if isinstance(each, PrefillAttention) and not each.windowed
        ),
        default=math.inf,
    )


def measured_context(pool: Deployment) -> float:
    """Give the tokens of the longest context that decode kernels were measured at.

    As `measured_prompt`; context ranks have each a part of it.
    """
    if pool.calibration is None:
        return math.inf
    kernels, ranks = pool.timer.kernels, pool.case.parallelism.cp
    return min(
        (
            ranks * _most(kernels.decode_attention(each)[0].fit, "kv_len") * each.tokens_per_key
            for each in pool.timer.operators
            if isinstance(each, DecodeAttention) and not each.windowed
        ),
        default=math.inf,
    )


def _most(fit: Fit, *names: str) -> float:
    """Add up the ends of some ranges of a fit; infinite where it has none of them."""
    ends = [fit.ranges[name][1] for name in names if name in fit.ranges]
    return sum(ends) if ends else math.inf


def _outside(service: Service, pools: list[Deployment]) -> Iterator[str]:
    """Say what no measured run had."""
    if any(pool.calibration is None for pool in pools):
        yield "kernels of this chip not measured"
    if len(service.pools) > 1:
        yield "several pools"
    for pool in service.pools:
        if pool.law is not None:
            yield "speculative decoding"
        if pool.images is not None or pool.role == "encode":
            yield "images"


def unloaded_ttft_s(service: Service, prompt_tokens: float) -> float:
    """Give the time to first token of a prompt that is alone on its replica."""
    pool = service.prompt_pool
    return float(pool.timer.seconds(prompts_at_once(pool, prompt_tokens))) + service.frontend_s


def prompts_at_once(pool: Deployment, tokens: float, count: float = 1.0) -> StepShape:
    """Give the step of so many equal prompts, each computed as a whole."""
    window = tokens if pool.window_tokens is None else min(tokens, pool.window_tokens)
    inside = window * (window + 1) / 2 + (tokens - window) * window
    return StepShape(
        prefill_sequences=count,
        prefill_tokens=count * tokens,
        prefill_pairs=count * tokens * (tokens + 1) / 2,
        prefill_window_pairs=count * inside,
    )


def capacity_estimate(
    service: Service, prompt_tokens: float, input_tokens: float, output_tokens: float
) -> float:
    """Estimate the most requests per second that a service can answer, without simulating it.

    Sequences of average length fill the places, or the KV cache. As each decodes to its end,
    every step takes in as many prompts as answers end on average. Pools of their own do each its
    part: prompts in steps that are full of them; the slower pool counts.

    Parameters
    ----------
    service : Service
    prompt_tokens : float
        Mean, of those that are computed.
    input_tokens, output_tokens : float
        Means.
    """
    prompts, answers = service.prompt_pool, service.answer_pool
    held = max(input_tokens + output_tokens / 2, 1.0)
    places = answers.schedulers * answers.rules.max_num_seqs
    batch = float(np.clip(answers.kv_tokens / held, 1.0, places))
    yields = 1.0 if answers.law is None else answers.law.tokens_per_step
    steps = max((output_tokens - 1.0) / yields, 1.0)
    seen = held if answers.window_tokens is None else min(held, answers.window_tokens)
    decoding = StepShape(
        decode_sequences=batch,
        decode_context_tokens=batch * held,
        decode_window_tokens=batch * seen,
    )
    if prompts is answers:
        taken_in = prompts_at_once(prompts, max(prompt_tokens, 1.0), batch / steps)
        mixed = decoding._replace(
            prefill_sequences=taken_in.prefill_sequences,
            prefill_tokens=taken_in.prefill_tokens,
            prefill_pairs=taken_in.prefill_pairs,
            prefill_window_pairs=taken_in.prefill_window_pairs,
        )
        return answers.replicas * batch / steps / float(answers.timer.seconds(mixed))
    together = max(prompts.rules.max_num_batched_tokens / max(prompt_tokens, 1.0), 1.0)
    full = prompts_at_once(prompts, max(prompt_tokens, 1.0), together)
    return min(
        prompts.replicas * together / float(prompts.timer.seconds(full)),
        answers.replicas * batch / steps / float(answers.timer.seconds(decoding)),
    )

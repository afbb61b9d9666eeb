"""Several answers to one prompt."""

from dataclasses import replace

import numpy as np

from sim.workload.kinds import OpenLoopWorkload
from sim.workload.lengths import LengthLaw
from sim.workload.requests import Traffic, as_tokens
from sim.workload.sharing import SharedContents


def sampled(
    prompts: Traffic, workload: OpenLoopWorkload, lengths: LengthLaw, rng: np.random.Generator
) -> Traffic:
    """Ask for ``workload.samples`` answers to each prompt instead of one.

    The samples of a prompt are rows one after the other, of one session: the number of the prompt.
    So a router that keeps sessions together keeps them together, as an engine does that is asked
    for them in one call. The first has the answer that was drawn with the prompt.

    Parameters
    ----------
    prompts : Traffic
        One row each.
    workload : OpenLoopWorkload
    lengths : LengthLaw
        Of the further answers.
    rng : numpy.random.Generator
    """
    samples, count = workload.samples, len(prompts)
    if samples == 1:
        return prompts
    contents = prompts.contents
    if contents is None:
        nothing = np.full(count, -1, dtype=np.int32)
        contents = SharedContents(nothing, np.zeros(0, dtype=np.int64), prompts.input_tokens)
    prompt = np.repeat(np.arange(count), samples)
    sample = np.tile(np.arange(samples), count)
    drawn = replace(prompts, contents=contents).take(prompt)
    further = lengths.sample(rng, prompt.size).output_tokens
    if workload.max_tokens is not None:
        further = np.minimum(further, workload.max_tokens)
    return replace(
        drawn,
        output_tokens=as_tokens(np.where(sample == 0, drawn.output_tokens, further)),
        session=prompt.astype(np.int32),
        turn=sample.astype(np.int32),
    )

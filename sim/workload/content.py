"""What prompts consist of: runs of tokens that other prompts may have too.

Only equality matters to a cache, so a token is known by the stream that it belongs to and its
position there, never by its text. Two prompts share a prefix as far as their runs agree.
"""

from typing import Literal

Run = tuple[int, int, int]
"""Stream, position of the first token, number of tokens."""

Content = tuple[Run, ...]
"""A prompt, or a prompt and its answer so far, in order."""

Reuse = Literal["all", "prompt", "none"]
"""What of a prompt and its answer other prompts may begin with: both, the prompt or a part of it,
or not even that."""

TRACE_STREAM = -1
"""Of traces that name their blocks: block ``i`` of ``n`` tokens starts at position ``i * n``."""

SYSTEM_STREAM = -2
"""Of the first shared prompt of a workload; further ones follow below."""

PRIVATE_STREAM = -(2**48)
"""Less the request's number: of answers, and of prompts that nobody else sends."""


def tokens_of(content: Content) -> int:
    """Count the tokens.

    >>> tokens_of(((-2, 0, 2000), (7, 0, 50)))
    2050
    """
    count = 0
    for run in content:  # most are one or two runs: a loop costs half of a sum
        count += run[2]
    return count


def first_tokens(content: Content, tokens: int) -> Content:
    """Cut a content after some tokens.

    >>> first_tokens(((-2, 0, 2000), (7, 0, 50)), 2010)
    ((-2, 0, 2000), (7, 0, 10))
    """
    kept = []
    for stream, start, length in content:
        if tokens <= 0:
            break
        kept.append((stream, start, min(length, tokens)))
        tokens -= length
    return tuple(kept)


def joined(content: Content, run: Run) -> Content:
    """Append a run, merged with the last one where it continues it.

    >>> joined(((7, 0, 50),), (7, 50, 10))
    ((7, 0, 60),)
    """
    if content and content[-1][0] == run[0] and content[-1][1] + content[-1][2] == run[1]:
        stream, start, length = content[-1]
        return (*content[:-1], (stream, start, length + run[2]))
    return (*content, run)


PROMPT_STREAM = -(2**41)
"""Less the number of a row of a workload: of what only that prompt has."""

PART_STREAMS = 2**32
"""Streams that each part of a mix has for itself, on either side of 0."""


def answer_after(content: Content) -> tuple[int, int] | None:
    """Say where an answer continues the session that its prompt comes from, as stream and position.

    Prompts that do not end in the stream of a session have an answer that nobody sends again.

    >>> answer_after(((-2, 0, 2000), (7, 0, 50)))
    (7, 50)
    >>> answer_after(((-1, 512, 512),)) is None
    True
    """
    if not content or content[-1][0] < 0:
        return None
    stream, start, tokens = content[-1]
    return stream, start + tokens


def in_part(content: Content, part: int) -> Content:
    """Move a content into the streams of one part of a mix, which shares no token with the others.

    >>> in_part(((-2, 0, 2000), (7, 0, 50)), 0)
    ((-2, 0, 2000), (7, 0, 50))
    >>> in_part(((7, 0, 50),), 1) == ((7 + PART_STREAMS, 0, 50),)
    True
    """
    if not part:
        return content
    shift = part * PART_STREAMS
    return tuple(
        (stream + shift if stream >= 0 else stream - shift, start, tokens)
        for stream, start, tokens in content
    )

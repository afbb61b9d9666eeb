"""Links that carry keys, values and weights: first come, first served."""

from sim.engine.clock import to_ticks


class Link:
    """A link that moves one thing after the other at its full bandwidth.

    Parameters
    ----------
    bandwidth_bytes_per_s : float
    latency_s : float
        From the last byte sent to the last byte there; the link is free meanwhile.

    Examples
    --------
    Two messages of 1 GB over 1 GB/s, asked for at the same time:

    >>> link = Link(1e9, latency_s=0.5)
    >>> link.reserve(0, 1e9) == (0, 1_500_000_000_000_000)
    True
    >>> link.reserve(0, 1e9) == (1_000_000_000_000_000, 2_500_000_000_000_000)
    True
    """

    def __init__(self, bandwidth_bytes_per_s: float, latency_s: float = 0.0) -> None:
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        self.latency_ticks = to_ticks(latency_s)
        self.free_tick = 0
        """When everything that was asked for so far has been sent."""

    def busy_ticks(self, size_bytes: float) -> int:
        """Time that a message occupies the link."""
        return to_ticks(size_bytes / self.bandwidth_bytes_per_s)

    def reserve(self, tick: int, size_bytes: float) -> tuple[int, int]:
        """Send a message as soon as the link is free, and tell when it starts and is there."""
        start = max(tick, self.free_tick)
        self.free_tick = start + self.busy_ticks(size_bytes)
        return start, self.free_tick + self.latency_ticks


def reserve_path(links: list[Link], tick: int, size_bytes: float) -> tuple[int, int]:
    """Send a message over several links at once, at the pace of the slowest.

    It starts when all of them are free, and occupies all of them until it is sent.

    >>> slow, fast = Link(1e9), Link(4e9)
    >>> _, end_tick = reserve_path([slow, fast], 0, 2e9)
    >>> end_tick == slow.free_tick == fast.free_tick == 2 * 10**15
    True
    """
    start = max([tick, *(link.free_tick for link in links)])
    end = start + max(link.busy_ticks(size_bytes) for link in links)
    for link in links:
        link.free_tick = end
    return start, end + max(link.latency_ticks for link in links)

"""What encoders sent to the replicas that compute prompts.

The engine knows it as the end of an encoder's step: embeddings of the images in it leave together,
before the next step begins (`sim.cost.operators.Handover`).
"""

from sim.cost.operators import Handover
from sim.deployment import Deployment
from sim.engine.records import Columns
from sim.service import Service


def embedding_transfers(service: Service, stretches: Columns) -> Columns:
    """List the transfers of embeddings, one for each step of an encoder.

    Parameters
    ----------
    service : Service
    stretches : Columns

    Returns
    -------
    columns : Columns
        ``replica`` (that sends), ``start_s``, ``end_s``, ``image_tokens``, ``bytes``.
    """
    first = service.pools[0]
    encoders = first.replicas if first.role == "encode" else 0
    mine = (stretches["replica"] < encoders) & (stretches["prefill_tokens"] > 0)
    sent = _handover(first) if encoders else _NOTHING
    tokens, end_s = stretches["prefill_tokens"][mine], stretches["end_s"][mine].astype(float)
    size = tokens * sent.bytes_per_token
    return {
        "replica": stretches["replica"][mine],
        "start_s": end_s - (sent.latency_s + size / sent.bytes_per_s),
        "end_s": end_s,
        "image_tokens": tokens,
        "bytes": size,
    }


_NOTHING = Handover("none", bytes_per_token=0.0, bytes_per_s=1.0, latency_s=0.0, source="")


def _handover(encoders: Deployment) -> Handover:
    """Find what encoders send, and how."""
    return next(each for each in encoders.timer.operators if isinstance(each, Handover))

"""When things happen: batches, KV blocks, schedulers, replicas, routers and clients."""

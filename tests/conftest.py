"""What holds for the whole suite."""

import os

from hypothesis import settings

# Workers of pytest-xdist share the cores: threads of matrix products would wait for one another,
# and small products take a hundred times as long. Set here, before workers are started.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A busy machine must not fail a property by its slowness; and a submission must not fail by an
# example that another run would not have drawn: fresh examples are for developers' machines.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")

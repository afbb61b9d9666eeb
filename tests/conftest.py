"""What holds for the whole suite."""

import os

from hypothesis import settings

# A busy machine must not fail a property by its slowness; and a submission must not fail by an
# example that another run would not have drawn: fresh examples are for developers' machines.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")

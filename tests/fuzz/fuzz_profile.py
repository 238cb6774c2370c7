"""How many examples: 200 with the other tests, always the same; `make fuzz` draws FUZZ=10000 anew and prints what fails."""

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

COUNT = int(os.environ.get("FUZZ", "0"))
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]
phases = [Phase.explicit, Phase.generate, Phase.shrink]
common = {"phases": phases, "deadline": None, "database": None, "suppress_health_check": quiet}
settings.register_profile("suite", max_examples=200, derandomize=True, **common)
settings.register_profile("fuzz", max_examples=COUNT or 200, derandomize=False, print_blob=True, **common)
settings.load_profile("fuzz" if COUNT else "suite")


def share(percent: int) -> Any:
    """So many of a hundred examples."""
    return settings(max_examples=max(1, settings().max_examples * percent // 100))

"""How long to look: a few seconds of the same examples inside `make test`, or on and on."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_ALL = list(HealthCheck)
settings.register_profile(
    "short",
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=_ALL,
)
# `make fuzz` calls it again and again, with other seeds.
settings.register_profile(
    "long",
    max_examples=100,
    database=None,
    deadline=None,
    suppress_health_check=_ALL,
    print_blob=True,
)
settings.load_profile(os.environ.get("RLHF_KIT_FUZZ", "short"))

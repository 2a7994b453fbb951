"""Durations: keys in one of several units, such as `warmup_steps`, `warmup_epochs`, ..."""

import re
from typing import Any

from ml_collections.config_dict import placeholder

# A duration is given in exactly one of these units.
DURATION_UNITS = ("steps", "epochs", "examples", "percent")


def duration(name: str) -> dict[str, Any]:
    """Returns the unset keys of a duration, one for each unit."""
    return {
        f"{name}_steps": placeholder(int),  # optimizer updates
        f"{name}_epochs": placeholder(float),  # passes over the training split
        f"{name}_examples": placeholder(float),  # images seen
        f"{name}_percent": placeholder(float),  # fraction of the whole run: 0.1 is a tenth
    }


def other_units(key: str) -> list[str]:
    """Returns the keys of the same duration in other units; none if `key` is not a duration."""
    match = re.fullmatch(rf"(?P<stem>.*)_({'|'.join(DURATION_UNITS)})", key)
    names = [f"{match['stem']}_{unit}" for unit in DURATION_UNITS] if match else []
    return [name for name in names if name != key]

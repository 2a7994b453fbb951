"""Finds the class that a user names, by its number or its name."""

from collections.abc import Sequence
from typing import Any

from vit_jax.analysis.measures.arguments import whole_number
from vit_jax.errors import ConfigError, did_you_mean
from vit_jax.pretrained.imagenet import lemmas


def class_number(
    argument: str, value: Any, *, labels: Sequence[str] | None, num_classes: int
) -> int:
    """Returns the number of a class of a model.

    Args:
      argument: name of the argument, for messages.
      value: number of the class; its name; or one of the synonyms in a name such as "tench, Tinca
        tinca", if no other class has it.
      labels: names of the model's classes; None: unknown.
      num_classes: number of them, at least 1.

    Raises:
      ConfigError: there is no such class, or several have this synonym.
    """
    if not isinstance(value, str):
        reason = f"the model has {num_classes:,} classes, numbered from 0 to {num_classes - 1}"
        return whole_number(argument, value, low=0, high=num_classes - 1, reason=reason)
    if not labels:
        raise ConfigError(
            f'{argument} is "{value}": the names of the model\'s classes are unknown. Give the '
            f"number of the class, from 0 to {num_classes - 1}."
        )
    if value in labels:
        return list(labels).index(value)
    synonyms = lemmas(value)
    matches = [i for i, label in enumerate(labels) if synonyms and synonyms <= lemmas(label)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        numbers = ", ".join(f'{i} ("{labels[i]}")' for i in matches)
        raise ConfigError(
            f'{argument} is "{value}": several classes have this name, {numbers}. Give the number.'
        )
    raise ConfigError(f'{argument}: the model has no class "{value}". {_advice(value, labels)}')


def _advice(value: str, labels: Sequence[str]) -> str:
    """Names the nearest classes, in quotes if names contain the comma of the list."""
    if not any("," in label for label in labels):
        return did_you_mean(value, labels)
    quoted = did_you_mean(f'"{value}', [f'"{label}"' for label in labels])
    return quoted.replace('""', '"')  # The suggestion has quotes of its own.

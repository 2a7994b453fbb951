"""The config of a run: every key, its default and its meaning.

base          the base config, from which every config file starts; validation; freezing
data          checks of the keys of `data` that belong together
durations     keys in one of several units: steps, epochs, examples, percent
evals         the entries of `config.evals`: evaluations by type
model         every field of every kind of model, and the section `model`
fields        how such a field is declared: meaning, default, accepted values, kind
form          checks a config against the base config: keys, types, finite numbers
file          runs a config file and locates the errors in it
command_line  the config's flags, and mistakes in a command line
shipped       the configs that come with vit_jax, by name
listing       every key with value, meaning and origin, for --show_config
"""

from vit_jax.config.base import (
    base_config,
    check_best,
    check_form,
    check_pattern,
    freeze,
    parse_args,
    thaw,
    validate,
)
from vit_jax.config.durations import DURATION_UNITS, other_units
from vit_jax.config.evals import (
    ANALYSIS,
    CLASSIFICATION,
    CLASSIFICATION_METRICS,
    analysis_eval,
    classification_eval,
    eval_form,
)
from vit_jax.config.listing import format_config

__all__ = [
    "ANALYSIS",
    "CLASSIFICATION",
    "CLASSIFICATION_METRICS",
    "DURATION_UNITS",
    "analysis_eval",
    "base_config",
    "check_best",
    "check_form",
    "check_pattern",
    "classification_eval",
    "eval_form",
    "format_config",
    "freeze",
    "other_units",
    "parse_args",
    "thaw",
    "validate",
]

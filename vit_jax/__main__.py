"""vit-jax: train Vision Transformers, adapt published ones, and measure how they scale.

vit-jax VERB [--help] ...        (also: python -m vit_jax VERB)
"""

import importlib
import sys

import vit_jax
from vit_jax import cli
from vit_jax.config.shipped import shipped_configs
from vit_jax.errors import ExitCode, did_you_mean

# verb -> its module.
_MODULES = {
    "train": "vit_jax.train",
    "evaluate": "vit_jax.evaluate",
    "predict": "vit_jax.predict",
    "analyze": "vit_jax.analyze",
    "convert": "vit_jax.convert",
    "runs": "vit_jax.runs",
    "compare": "vit_jax.compare",
    "sweep": "vit_jax.sweep",
    "fit": "vit_jax.fit",
    "benchmark": "vit_jax.benchmark",
    "plan": "vit_jax.plan",
    "config": "vit_jax.config.__main__",
    "transforms": "vit_jax.transforms",
    "completion": "vit_jax.completion",
}


def verbs() -> tuple[str, ...]:
    """Returns the verbs, in the order of `--help`."""
    return tuple(_MODULES)


def command(verb: str) -> cli.Command:
    """Returns the command of a verb."""
    module = importlib.import_module(_MODULES[verb])
    # The import has set vit_jax.evaluate to the module; to Python's users it is the function. A
    # package without such a function, vit_jax.config, stays.
    if verb in vit_jax.__all__ and verb in vars(vit_jax):
        delattr(vit_jax, verb)
    return module.COMMAND


def main() -> None:
    """Runs `vit-jax VERB ...`."""
    verb, *rest = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(ExitCode.DONE)
    if verb in ("--version", "version"):
        print(f"vit_jax {vit_jax.__version__}")
        sys.exit(ExitCode.DONE)
    if verb not in _MODULES:
        hint = did_you_mean(verb, _MODULES)
        if verb in shipped_configs():
            hint = (
                f"It is a config: vit-jax train --config={verb} --workdir=FOLDER. "
                f"`vit-jax config {verb}` describes it."
            )
        print(f'error: There is no verb "{verb}". {hint}', file=sys.stderr)
        sys.exit(ExitCode.ERROR)
    sys.argv[1:] = rest  # The overrides of a config are read from here.
    cli.run(command(verb))


def _usage() -> str:
    width = max(map(len, _MODULES))
    lines = [
        f"  {verb:{width}}  {(command(verb).description or '').splitlines()[0]}"
        for verb in _MODULES
    ]
    return f"{(__doc__ or '').strip()}\n\nVerbs:\n" + "\n".join(lines)


if __name__ == "__main__":
    main()

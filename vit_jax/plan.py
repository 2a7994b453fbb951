r"""Plans a run for a TPU pod or GPUs that are not here: memory, collectives, time.

    vit-jax plan --config=vit_i1k --config.model.variant=L/16 --topology=v5e:16x16
    vit-jax plan --config=vit_g_scaling:variant=G/14 --topology=v5p:8x8x8 --search
    vit-jax plan --config=vit_i21k --topology=h200x64 --price=2.5

For TPUs it compiles the program that `vit-jax train` compiles there, on this machine's processor,
in 10 to 120 seconds: pip install "vit-jax[plan]" (Linux, x86-64). It says whether the program fits
and by how much, what is kept for the backward pass, what is sent between the chips, and between
which times a step lies at the data sheets' rates. For GPUs all of it is by formula.
docs/planning.md says how far the numbers are from measured ones.

Topologies: KIND:CHIPS of a slice, such as v5e:16x16, v5p:8x8x8, v6e:16x16, v4:4x4x8, v7:4x4x4; and
KINDxNUMBER of GPUs, such as h200x8 or b200x64.
"""

import json

from absl import flags

from vit_jax import cli
from vit_jax.errors import ConfigError, ExitCode

_NO_WORKDIR = "no-run-yet"  # A run that is planned has no work directory.


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_config(values)
    flags.DEFINE_string("topology", None, "Devices, such as v5e:16x16.", flag_values=values)
    flags.DEFINE_integer(
        "slices", 1, "Number of TPU slices with this topology.", 1, flag_values=values
    )
    examples = "Training examples in an epoch; 0: as many as the config's data has."
    flags.DEFINE_integer("examples", 0, examples, 0, flag_values=values)
    classes = "Classes of the training data; 0: as many as the config's data has."
    flags.DEFINE_integer("classes", 0, classes, 0, flag_values=values)
    price = "Price of one chip for one hour, in any currency; 0: unknown."
    flags.DEFINE_float("price", 0.0, price, 0.0, flag_values=values)
    flags.DEFINE_bool(
        "full",
        False,
        "Compile with full effort, as train does: slower, with less memory traffic.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "search",
        False,
        "Compare meshes, recomputation and microbatches; compile the best.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "batch_sizes", [], "For --search: the batch sizes to compare.", flag_values=values
    )
    flags.DEFINE_string("out", "", "File for the plan as JSON.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the file of --out.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Plans."""
    from vit_jax.planning import topology as topologies

    topologies.prepare_environment()
    from vit_jax.inference.outputs import check_output
    from vit_jax.planning.advice import advice
    from vit_jax.planning.data_size import data_size
    from vit_jax.planning.plan import make_plan
    from vit_jax.planning.report import text, to_json
    from vit_jax.planning.search import search
    from vit_jax.storage import as_path, reported
    from vit_jax.training.init_from import inherit_model

    cli.check_price(values)
    topology = topologies.parse(values.topology, slices=values.slices)
    out = as_path(values.out, name="--out") if values.out else None
    if out is not None:
        check_output(out, flag="out", formats=(".json",), overwrite=values.overwrite)
    config = inherit_model(cli.read_config(values), _NO_WORKDIR)
    examples, classes = data_size(config, examples=values.examples, classes=values.classes)
    sizes = {"num_classes": classes, "num_examples": examples}
    if values.full and not topology.is_tpu:
        raise ConfigError("--full is for TPUs: the plan of GPUs compiles nothing.")
    if values.batch_sizes and not values.search:
        raise ConfigError("--batch_sizes is for --search: set --config.batch_size, or --search.")
    if values.search:
        plan = search(
            config,
            topology,
            **sizes,
            batch_sizes=_batch_sizes(values.batch_sizes),
            full_effort=values.full,
            show=print,
        )
    else:
        plan = make_plan(config, topology, **sizes, full_effort=values.full)
    advised = advice(plan)
    print(text(plan, advised, price=values.price))
    if out is not None:
        written = json.dumps(to_json(plan, advised, price=values.price), indent=2) + "\n"
        with reported(ConfigError, f"--out={out} cannot be written"):
            out.write_text(written)
    return ExitCode.DONE if plan.fits else ExitCode.ERROR


def _batch_sizes(texts: list[str]) -> list[int]:
    if wrong := [text for text in texts if not text.isdecimal() or not int(text)]:
        raise ConfigError(f"--batch_sizes={wrong[0]} is no number of images, such as 4096.")
    return [int(text) for text in texts]


COMMAND = cli.Command(__doc__, define, main, required=("config", "topology"))

if __name__ == "__main__":
    cli.run(COMMAND)

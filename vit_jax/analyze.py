"""Shows what a model has learned: all measures of any checkpoint, as figures and a report.

    vit-jax analyze --checkpoint=runs/quickstart
    vit-jax analyze --checkpoint=hf:google/vit-base-patch16-224 --images=FOLDER
    vit-jax analyze --checkpoint=runs/a --compare=runs/b [--compare=...]
    vit-jax analyze --checkpoint=runs/a [--only=NAME,NAME] [--skip=NAME,NAME]

The images are a folder, with or without a folder for each class, a data set or its split
(cifar10:test), or by default the split that a run evaluates; --num_images of them are chosen at
random, the same for each checkpoint. faithfulness takes at most 64 of these, and minutes of a
large model without an accelerator: --skip=faithfulness leaves it out. Measures that do not apply
to a model, such as those of attention to a ResNet, are listed with the reason. With --compare
(other runs, or steps of one: WORKDIR/checkpoints/STEP) the measures stand beside each other, with a
table of the main numbers.

Writes report.html, which needs no other file, analysis.json, and a PNG, SVG, JSON and NPZ file for
each measure, each as soon as it is computed: into --out, by default WORKDIR/analysis of a run (an
older step: analysis-step-STEP), or analysis/CHECKPOINT; with --compare these end in -compared.

Exit codes: 0 done; 1 a measure failed, the others are written; 2 an error that the message
explains.
"""

from absl import flags

from vit_jax import cli, storage
from vit_jax.analysis.measures.registry import MEASURES, NUM_IMAGES, chosen
from vit_jax.convert import parse_size
from vit_jax.errors import ConfigError, ExitCode, printable


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    cli.define_model(values)
    flags.DEFINE_multi_string(
        "compare", [], "Another checkpoint, beside the first.", flag_values=values
    )
    text = {
        "images": "A folder of images, or NAME or NAME:SPLIT of a data set.",
        "out": "Folder for the results.",
    }
    for name, meaning in text.items():
        flags.DEFINE_string(name, "", meaning, flag_values=values)
    flags.DEFINE_list("only", [], f"Measures, by name: {', '.join(MEASURES)}.", flag_values=values)
    flags.DEFINE_list("skip", [], "Measures to leave out, by name.", flag_values=values)
    flags.DEFINE_integer(
        "num_images", NUM_IMAGES, "Number of images; 0: all.", 0, flag_values=values
    )


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Analyses."""
    chosen(values.only, values.skip)
    from vit_jax.analysis import report
    from vit_jax.analysis.all_measures import analyze, default_folder
    from vit_jax.parallel import processes
    from vit_jax.parallel.compilation import enable_user_compilation_cache
    from vit_jax.pretrained.formats.hints import parse_hints
    from vit_jax.telemetry.progress import format_count

    enable_user_compilation_cache()
    processes.check_alone("analyze")
    compared = list(values.compare)
    if values.checkpoint in compared or len(set(compared)) < len(compared):
        raise ConfigError("--compare names a checkpoint twice: leave one out.")
    if values.out:
        out = storage.as_path(values.out, name="--out")
    else:
        out = default_folder(values.checkpoint, compared=bool(compared))
    found = analyze(
        [values.checkpoint, *compared],
        values.images or None,
        out=out,
        only=values.only,
        skip=values.skip,
        num_images=values.num_images or None,
        image_size=parse_size(values.image_size, flag="image_size"),
        hints=parse_hints(values.hints),
        batch_size=values.batch_size,
        log=lambda line: print(printable(line), flush=True),
    )
    if text := found.overview_text():
        print(f"\n{text}\n")
    if found.bad:
        print(f"{format_count(len(found.bad), 'image')} could not be read: see {report.NAME}")
    print(printable(f"report: {out / report.NAME}"))
    return ExitCode.FAILED if found.failed else ExitCode.DONE


COMMAND = cli.Command(__doc__, define, main, required=("checkpoint",))

if __name__ == "__main__":
    cli.run(COMMAND)

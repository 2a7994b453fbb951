"""Writes the results of an evaluation: JSON and figures, and a table for the terminal."""

import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from vit_jax import storage
from vit_jax.errors import DataError
from vit_jax.evals import fewshot as fewshot_protocol
from vit_jax.evals.classification import TOP
from vit_jax.evals.intervals import wilson
from vit_jax.inference.evaluation import Evaluation, FewShot, Pictures, Result
from vit_jax.inference.folders import file_name
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.progress import format_count

NUM_SAMPLES = 10
_SHOWN_CLASSES = 5  # Of the least accurate, in the terminal.
_SHOWN_BAD = 3


def write(evaluation: Evaluation, folder: epath.PathLike | None = None) -> epath.Path:
    """Writes the results; only the first process does.

    evaluation.json   everything that was measured, see `to_json`
    throughput.json   images per second, which depend on the machine
    confusion.png     confusion matrix, calibration and the most common mistakes
    classes.png       accuracy of each class with its interval
    predictions.png   images with predictions, the most confident mistakes first
    samples/          a few images of a run's split, for `vit-jax predict`

    The figures name their method: `Evaluation.shown`. predictions.png is of all outputs.

    Args:
      evaluation: of `vit_jax.inference.evaluate.evaluate`.
      folder: None: `evaluation.folder`.

    Returns:
      The folder.

    Raises:
      DataError: the folder cannot be written.
    """
    from vit_jax.analysis.accuracy_by_class import class_accuracy
    from vit_jax.analysis.confusion_matrix import confusion

    folder = storage.as_path(evaluation.folder if folder is None else folder, name="folder")
    if jax.process_index() != 0:
        return folder
    with storage.reported(DataError, f"{folder} cannot be written"):
        if not storage.exists(folder):
            storage.make_subfolder(folder)
        workdirs.write_json(folder / "evaluation.json", to_json(evaluation))
        workdirs.write_json(folder / "throughput.json", evaluation.throughput.to_json())
        if (result := evaluation.shown) is not None:
            method = result.description
            if result.report.confusion is not None:
                subject = " · ".join((method, *_subject(evaluation)))
                path = folder / "confusion.png"
                confusion(result.report, result.class_names, path, subject=subject)
            path = folder / "classes.png"
            class_accuracy(result.report, result.class_names, path, subject=method)
        if evaluation.measured.pictures is not None:
            _write_pictures(
                evaluation.measured.pictures, folder, samples=evaluation.step is not None
            )
    return folder


def _subject(evaluation: Evaluation) -> tuple[str, str]:
    """Returns names of the model and the data."""
    source, step = evaluation.measured.source, evaluation.step
    steps = "" if step is None else f", after {format_count(step, 'step')}"
    return f"{evaluation.checkpoint}{steps}", f"{source.name}, {source.split}"


def _write_pictures(pictures: Pictures, folder: epath.Path, *, samples: bool) -> None:
    from vit_jax.analysis import figures

    images, labels = _images(pictures)
    names = pictures.class_names
    path = folder / "predictions.png"
    figures.predictions(images, labels, pictures.probabilities, names, path)
    if samples:
        _write_samples(images, [names[label] for label in labels], folder / "samples")


def _images(
    pictures: Pictures,
) -> tuple[UInt8[np.ndarray, "n height width channels"], Int[np.ndarray, "n"]]:
    """Returns the images, all of one size, and their labels."""
    rng = np.random.default_rng(0)
    examples = [pictures.transform(pictures.source[i], rng) for i in pictures.ids.tolist()]
    images = np.stack([example["image"] for example in examples])
    return images, np.array([example["label"] for example in examples])


def _write_samples(
    images: UInt8[np.ndarray, "n height width channels"], names: Sequence[str], folder: epath.Path
) -> None:
    """Writes the first images as PNG files, named by their classes."""
    storage.make_subfolder(folder)
    for i, (image, name) in enumerate(zip(images[:NUM_SAMPLES], names, strict=False)):
        png = io.BytesIO()
        Image.fromarray(image.squeeze()).save(png, format="png")
        storage.write_bytes(folder / f"{i}-{file_name(name)}.png", png.getvalue())


# ------------------------------------------------------------------------------------------ JSON


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the results as JSON values.

    The metrics of the classifier over all outputs are at the top, those of other methods below
    their names ("matched_only", "knn", "probe", "fewshot").
    """
    measured = evaluation.measured
    content = {
        "checkpoint": evaluation.checkpoint,
        "data": measured.source.name,
        "split": measured.source.split,
        "step": evaluation.step,
        "train_split": measured.train_split,
        "num_examples": len(measured.source),
        "left_out": measured.left_out,
        "bad": evaluation.bad,
        "notes": list(evaluation.notes),
        "settings": evaluation.settings,
    }
    if matching := measured.matching:
        content["classes"] = {
            "summary": matching.summary(),
            "matches": [
                {"class": m.data_class, "output": m.output, "label": m.label, "how": m.how}
                for m in matching.matches
            ],
        }
    for name, result in evaluation.results.items():
        metrics = _metrics(result)
        content |= metrics if name == "classifier" else {name: metrics}
    if measured.fewshot is not None:
        content["fewshot"] = _few_shot(measured.fewshot)
    return json.loads(json.dumps(content))


def _metrics(result: Result) -> dict[str, Any]:
    report = result.report
    metrics = json.loads(report.to_json(class_names=result.class_names))
    metrics["class_intervals"] = [
        list(interval) if count else None
        for interval, count in zip(class_intervals(report), report.class_count, strict=True)
    ]
    return {"method": result.description, **result.settings, **metrics}


def class_intervals(report) -> list[tuple[float, float]]:
    """Returns the Wilson interval of each class's accuracy."""
    shares = np.nan_to_num(report.class_accuracy)
    return [
        wilson(round(float(share * count)), int(count))
        for share, count in zip(shares, report.class_count, strict=True)
    ]


def _few_shot(fewshot: FewShot) -> dict[str, Any]:
    return {
        "method": "ridge regression in closed form on standardised features, see "
        "vit_jax.evals.fewshot",
        "penalty": fewshot_protocol.PENALTY,
        "top1": {str(shots): list(values) for shots, values in fewshot.accuracies.items()},
        "omitted": {str(shots): reason for shots, reason in fewshot.omitted.items()},
    }


# ----------------------------------------------------------------------------------------- table


def table(evaluation: Evaluation) -> str:
    """Returns the results as lines for the terminal."""
    measured, settings = evaluation.measured, evaluation.settings
    source, (model, data) = measured.source, _subject(evaluation)
    height, width = settings["image_size"]
    lines = [
        f"model    {model}, {height}x{width} pixels, {settings['dtype']}",
        f"data     {data}: {format_count(len(source), 'example')} of "
        f"{format_count(source.num_classes, 'class')}",
    ]
    if measured.train_split:
        lines.append(f"trained  on the features of {measured.train_split}")
    if measured.matching:
        lines.append(f"classes  {measured.matching.summary()}")
    if measured.left_out:
        left_out = format_count(measured.left_out, "example")
        lines.append(f"left out {left_out} of classes without an output")
    lines += [f"note     {note}" for note in evaluation.notes]
    lines += _bad_lines(evaluation.bad)
    lines += ["", *_metric_lines(evaluation)]
    if measured.fewshot is not None:
        lines += _few_shot_lines(measured.fewshot)
    lines += ["", f"speed    {evaluation.throughput.summary()}"]
    return "\n".join(lines)


def _bad_lines(bad: dict[str, str]) -> list[str]:
    if not bad:
        return []
    lines = [f"not read {format_count(len(bad), 'example')}, not counted:"]
    lines += [f"         {place}: {bad[place]}" for place in list(bad)[:_SHOWN_BAD]]
    more = len(bad) - _SHOWN_BAD
    return lines + ([f"         and {more:,} more, listed in evaluation.json"] if more > 0 else [])


def _metric_lines(evaluation: Evaluation) -> list[str]:
    """Returns a header, a line for each method, and least accurate classes (`Evaluation.shown`)."""
    results, shown = evaluation.results.values(), evaluation.shown
    if shown is None:
        return []
    width = max(len(result.description) for result in results)
    # All of up to five classes are among the five largest.
    shows_top5 = [len(result.class_names) > TOP for result in results]
    header = f"{'':{width}}  examples    top-1  {'95% interval':14}"
    lines = [f"{header}{'    top-5' if any(shows_top5) else ''}    loss  calibration error"]
    for result, shows in zip(results, shows_top5, strict=True):
        report = result.report
        low, high = report.intervals()["top1"]
        top5 = f"  {f'{report.top5:.2%}' if shows else '-':>7}" if any(shows_top5) else ""
        lines.append(
            f"{result.description:{width}}  {report.count:8,}  {report.top1:7.2%}  "
            f"{f'{low:.1%} to {high:.1%}':14}{top5}  {report.loss:6.4f}  {report.ece:.2%}"
        )
    return [*lines, *_worst_lines(shown)]


def _worst_lines(result: Result) -> list[str]:
    from vit_jax.analysis import figures

    report = result.report
    (present,) = np.nonzero(report.class_count)
    order = present[np.argsort(report.class_accuracy[present], kind="stable")][:_SHOWN_CLASSES]
    names = [figures.shorten(result.class_names[i], 30) for i in order]
    worst = ", ".join(
        f"{name}: {report.class_accuracy[i]:.0%} of {report.class_count[i]:,}"
        for i, name in zip(order, names, strict=True)
    )
    return [f"least accurate classes ({result.description}): {worst}"]


def _few_shot_lines(fewshot: FewShot) -> list[str]:
    lines = []
    for shots, values in fewshot.accuracies.items():
        deviation = statistics.stdev(values)
        lines.append(
            f"{shots}-shot regression: top-1 {statistics.mean(values):.2%} ± {deviation:.2%} "
            f"({len(values)} choices of images)"
        )
    omitted: dict[str, list[int]] = {}
    for shots, reason in fewshot.omitted.items():
        omitted.setdefault(reason, []).append(shots)
    lines += [
        f"{', '.join(map(str, shots))}-shot regression: not measured, {reason}"
        for reason, shots in omitted.items()
    ]
    return lines

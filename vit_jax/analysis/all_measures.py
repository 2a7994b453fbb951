"""Computes all measures of one or several checkpoints, on the same images."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

import vit_jax
from vit_jax import analysis, storage
from vit_jax.analysis import report
from vit_jax.analysis.image_progress import ReportedStream
from vit_jax.analysis.measures.images import Images, ImageStream, open_images
from vit_jax.analysis.measures.registry import (
    MEASURES,
    MOST_IMAGES,
    NUM_IMAGES,
    PAIRS,
    Takes,
    chosen,
)
from vit_jax.analysis.measures.result import NotApplicableError
from vit_jax.analysis.outcomes import Analysis, Outcome, Subject
from vit_jax.checkpoints.load import locate
from vit_jax.config.model import ModelConfig, PatchConfig
from vit_jax.data.evaluated import first_split, open_split
from vit_jax.errors import ConfigError, VitJaxError
from vit_jax.models import describe_model
from vit_jax.pretrained.consistency import check_finite
from vit_jax.pretrained.load import load_pretrained
from vit_jax.pretrained.model import Pretrained
from vit_jax.pretrained.run_checkpoint import TrainingData, is_run
from vit_jax.telemetry.progress import format_count

FOLDER = "analysis"  # In a work directory, or of published checkpoints in the current folder.
_MOST_LOCATIONS = 10_000  # More would make analysis.json too large.

Checkpoint = str | os.PathLike | Pretrained


def analyze(
    checkpoints: Checkpoint | Sequence[Checkpoint],
    images: Images = None,
    *,
    out: epath.PathLike | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    num_images: int | None = NUM_IMAGES,
    image_size: int | tuple[int, int] | None = None,
    hints: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Analysis:
    """Computes all measures of a checkpoint, or of several side by side on the same images.

    Measures that do not apply to a model, such as those of attention to a ResNet, are listed with
    the reason. A measure that fails does not end the others. With `out`, each result is saved when
    it is computed, and report.html and analysis.json are brought up to date.

    Args:
      checkpoints: what `load_pretrained` accepts, or a loaded model; or several.
      images: see `vit_jax.analysis.measures.images.open_images`; each model has its own
        preprocessing. None: the first split that the run of the first checkpoint from a run
        evaluates; without a run only the measures that need no images.
      out: a folder for the results; None: nothing is written.
      only: names of measures, a sequence or a text with commas; (): all.
      skip: names of measures to leave out.
      num_images: a random choice of this many, the same for each model; None: all.
      image_size: side, or (height, width), in pixels, of all checkpoints that are loaded here.
      hints: settings that the file of a published checkpoint does not contain; they go to the first
        checkpoint.
      batch_size: images at a time; None: the default of each measure.
      log: such as `print`; called with a line for each measure, and the progress of long ones.

    Raises:
      CheckpointError: a checkpoint cannot be read, or a parameter is NaN or infinite.
      ConfigError: there is no measure of a name, or one that is named needs images and there are
        none; a hint or size is invalid, or `out` cannot be written.
      DataError: the images cannot be opened, or none of them can be read.

    Example:
      >>> found = analysis.analyze("runs/quickstart", num_images=8, only=["attention_distance"])
      >>> found["attention_distance"].num_images
      8
    """
    names, log = chosen(only, skip), log or _silent
    single = isinstance(checkpoints, str | os.PathLike | Pretrained)
    given: list[Checkpoint] = [checkpoints] if single else list(checkpoints)  # pyright: ignore
    if not given:
        raise ConfigError("There is no checkpoint to analyse: name at least one.")
    folder = None if out is None else storage.as_path(out, name="out")
    if folder is not None:
        check_output(folder)
    models = [
        _load(checkpoint, image_size=image_size, hints=None if index else hints)
        for index, checkpoint in enumerate(given)
    ]
    for model in models:
        check_finite(model.params, name=model.loaded_from or describe_model(model.config))
    streams, described = _open(models, images, num_images=num_images)
    if only and streams[0] is None:
        _check_need_no_images(names)
    log(f"images: {described}")
    if streams[0] is not None and any(MEASURES[name] is not Takes.NOTHING for name in names):
        streams[0].first(1)  # An error if none can be read, rather than one of each measure.
    subjects = [_subject(models, index, folder) for index in range(len(models))]
    planned = _planned(names, len(models), has_images=streams[0] is not None)
    settings = {} if batch_size is None else {"batch_size": batch_size}
    collected = _Collected(
        analysis=Analysis(
            subjects=tuple(subjects),
            images=described,
            bad={},
            outcomes=(),
            folder=folder,
            version=vit_jax.__version__,
            locations=_locations(streams[0]),
            missing=(),
        ),
        planned=planned,
        streams=[stream for stream in streams if stream is not None],
        log=log,
    )
    for index, (model, stream) in enumerate(zip(models, streams, strict=True)):
        if not single and len(models) > 1:
            log(f"{subjects[index].name}:")
        for outcome in _measure(names, index, model, stream, settings, log):
            collected.add(outcome, subjects[index].folder)
    for index in sorted({of[-1] for _, of in planned if len(of) > 1}):
        pair = [report.short_name(subjects[i].name) for i in (0, index)]
        log(f"compared: {' and '.join(pair)}:")
        for outcome in _compare(names, index, models, streams, settings):
            collected.add(outcome, None if folder is None else folder / f"1-{index + 1}")
    return collected.analysis


@dataclasses.dataclass
class _Collected:
    """The outcomes so far; each is saved, and the report brought up to date, when it is added.

    Attributes:
      analysis: of these outcomes.
      planned: the measure and the checkpoints of each outcome to come.
      streams: the images, which know those that could not be read.
      log: called with a line for each outcome.
    """

    analysis: Analysis
    planned: Sequence[tuple[str, tuple[int, ...]]]
    streams: Sequence[ImageStream]
    log: Callable[[str], None]

    def add(self, outcome: Outcome, folder: epath.Path | None) -> None:
        """Saves an outcome in a folder, and writes the report of the analysis."""
        outcomes = (*self.analysis.outcomes, _saved(outcome, folder))
        done = {(outcome.measure, outcome.subjects) for outcome in outcomes}
        missing = dict.fromkeys(name for name, of in self.planned if (name, of) not in done)
        self.analysis = dataclasses.replace(
            self.analysis,
            outcomes=outcomes,
            bad={place: text for stream in self.streams for place, text in stream.bad.items()},
            missing=tuple(missing),
        )
        self.log(outcomes[-1].line())
        _write(self.analysis)


def default_folder(checkpoint: str, *, compared: bool = False) -> epath.Path:
    """Returns where `vit-jax analyze` writes: in the work directory of a run, or analysis/NAME.

    Args:
      checkpoint: its path or name.
      compared: whether there are others, whose results must not replace those of this one alone.
    """
    if is_run(checkpoint):
        location = locate(checkpoint)
        older = [f"step-{location.step}"] if location.step != location.newest else []
        parts = [FOLDER, *older, *(["compared"] if compared else [])]
        return location.workdir / "-".join(parts)
    name = _file_name(os.path.normpath(checkpoint))
    return epath.Path(FOLDER) / (f"{name}-compared" if compared else name)


def check_output(folder: epath.Path) -> None:
    """Raises ConfigError if a folder cannot be made or written: not after hours of work."""
    with storage.reported(ConfigError, f"{folder} cannot be made"):
        storage.check_folder(folder)


def _write(found: Analysis) -> None:
    """Writes the report: after each measure, so that an analysis that is ended has one."""
    if (folder := found.folder) is None:
        return
    with storage.reported(ConfigError, f"{folder} cannot be written"):
        storage.make_folder(folder)
        content = json.dumps(found.to_json(), indent=1, allow_nan=False)
        storage.write_bytes(folder / "analysis.json", content.encode())
        storage.write_bytes(folder / report.NAME, report.page(found).encode())


def _check_need_no_images(names: Sequence[str]) -> None:
    needing = [name for name in names if MEASURES[name] is not Takes.NOTHING]
    if needing:
        verb = "needs" if len(needing) == 1 else "need"
        raise ConfigError(
            f"{', '.join(needing)} {verb} images: give --images=FOLDER or DATASET:SPLIT."
        )


def _silent(line: str) -> None:
    """Prints nothing."""


def _load(
    checkpoint: Checkpoint,
    *,
    image_size: int | tuple[int, int] | None,
    hints: Mapping[str, Any] | None,
) -> Pretrained:
    if not isinstance(checkpoint, Pretrained):
        return load_pretrained(checkpoint, image_size=image_size, hints=hints)
    if hints:
        raise ConfigError("The model is loaded already: give hints to load_pretrained.")
    return checkpoint


def _open(
    models: Sequence[Pretrained], images: Images, *, num_images: int | None
) -> tuple[list[ImageStream | None], str]:
    """Returns the images as each model takes them, and a description; None: no images."""
    if images is None:
        run = next((model.trained_on for model in models if model.trained_on), None)
        if run is None:
            return [None] * len(models), "none are given, and no checkpoint is of a run"
        opened = [_images_of_run(run, model) for model in models]
    else:
        opened = [
            images.prepared_for(model)
            if isinstance(images, ImageStream)
            else open_images(model, images)
            for model in models
        ]
    streams = [
        open_images(m, s, num_images=num_images) for m, s in zip(models, opened, strict=True)
    ]
    source, count, available = opened[0].source, len(streams[0]), len(opened[0])
    text = format_count(count, "image")
    if count < available:
        total = format_count(available, "image")
        text = f"{count:,} of {total}, chosen at random (the same in each call),"
    if isinstance(images, str | os.PathLike):
        return list(streams), f"{text} from {os.fspath(images)}"
    if images is None:
        split = "" if source.split == "all" else source.split
        text = f"{text} from {', '.join(filter(None, (source.name, split)))}"
    return list(streams), text.rstrip(",")


def _locations(stream: ImageStream | None) -> tuple[str, ...]:
    """Returns where each image is, unless there are too many to list."""
    if stream is None or len(stream) > _MOST_LOCATIONS:
        return ()
    return tuple(stream.source.describe(index) for index in range(len(stream)))


def _images_of_run(run: TrainingData, model: Pretrained) -> ImageStream:
    """Returns the split that a run evaluates first, with the preprocessing of a model."""
    source = open_split(run.config.data, first_split(run.config))
    return ImageStream(source, model.preprocess.transform, has_labels=not source.multi_label)


def _subject(models: Sequence[Pretrained], index: int, folder: epath.Path | None) -> Subject:
    model = models[index]
    return Subject(
        name=model.loaded_from or describe_model(model.config),
        description=repr(model),
        folder=None if folder is None else _folder_of(folder, models, index),
        sizes=_sizes(model.config),
    )


def _planned(
    names: Sequence[str], count: int, *, has_images: bool
) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the measure and the checkpoints of each outcome of an analysis."""
    planned: list[tuple[str, tuple[int, ...]]] = []
    planned += [(name, (index,)) for index in range(count) for name in names]
    pairs = [name for name in names if name in PAIRS and has_images]
    return planned + [(name, (0, index)) for index in range(1, count) for name in pairs]


def _sizes(config: ModelConfig) -> dict[str, str]:
    """Returns the sizes on which attention distance and entropy depend, in words."""
    sizes = {"image size": "x".join(map(str, config.image_size))}
    if isinstance(config, PatchConfig):
        sizes["patch size"] = "x".join(map(str, config.stride))
        sizes["number of tokens"] = str(config.num_tokens)
    return sizes


def _folder_of(folder: epath.Path, models: Sequence[Pretrained], index: int) -> epath.Path:
    if len(models) == 1:
        return folder
    name = models[index].loaded_from or describe_model(models[index].config)
    return folder / f"{index + 1}-{_file_name(name)}"


def _file_name(text: str) -> str:
    """Returns a text as the name of a folder; the end of a path says more than its beginning."""
    return re.sub(r"[^\w.-]+", "_", text[-60:]).strip("_.") or "model"


def _measure(
    names: Sequence[str],
    index: int,
    model: Pretrained,
    stream: ImageStream | None,
    settings: Mapping[str, int],
    log: Callable[[str], None],
) -> Iterator[Outcome]:
    """Yields the outcome of each measure of a model."""
    for name in names:
        takes = MEASURES[name]

        def compute(function: Callable[..., Any], name: str = name, takes: Takes = takes) -> Any:
            if takes is Takes.NOTHING:
                return function(model)
            assert stream is not None
            if takes is Takes.IMAGE:
                return function(model, stream)
            if takes is Takes.LABELLED_IMAGES and not stream.has_labels:
                raise NotApplicableError("It needs labels, which these images have not.")
            images = open_images(model, stream, num_images=MOST_IMAGES.get(name))
            return function(model, ReportedStream.of(images, name, log), **settings)

        if stream is None and takes is not Takes.NOTHING:
            yield Outcome(name, (index,), None, "no images are given", seconds=0.0, left_out=True)
        else:
            yield _outcome(name, (index,), compute)


def _compare(
    names: Sequence[str],
    index: int,
    models: Sequence[Pretrained],
    streams: Sequence[ImageStream | None],
    settings: Mapping[str, int],
) -> Iterator[Outcome]:
    """Yields the outcome of each measure of the first model and another one."""
    stream = streams[0]
    if stream is None:
        return
    for name in (name for name in names if name in PAIRS):
        yield _outcome(
            name,
            (0, index),
            lambda function: function(models[0], stream, models[index], **settings),
        )


def _outcome(
    name: str, subjects: tuple[int, ...], compute: Callable[[Callable[..., Any]], Any]
) -> Outcome:
    start = time.monotonic()
    result, reason, failed = None, "", False
    try:
        result = compute(getattr(analysis, name))
    except NotApplicableError as error:
        reason = str(error)
    except Exception as error:  # One measure must not end the others.
        failed = True
        reason = (
            str(error) if isinstance(error, VitJaxError) else f"{type(error).__name__}: {error}"
        )
    seconds = time.monotonic() - start
    return Outcome(name, subjects, result, reason, failed=failed, seconds=seconds)


def _saved(outcome: Outcome, folder: epath.Path | None) -> Outcome:
    """Writes a result, which a later failure does not lose."""
    if folder is None or outcome.result is None:
        return outcome
    try:
        files = tuple(outcome.result.save(folder))
    except Exception as error:  # Such as that of a figure: the other measures are not lost.
        reason = f"{type(error).__name__}: {error}"
        return dataclasses.replace(outcome, result=None, reason=reason, failed=True)
    return dataclasses.replace(outcome, files=files)

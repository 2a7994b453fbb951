"""Names of the folders and files of an evaluation."""

import os
import re

from etils import epath

from vit_jax.checkpoints.load import TrainedModel

EVALUATIONS = "evaluations"  # In the current folder: those of published checkpoints.


def folder_of_run(run: TrainedModel, *, split: str, default_split: str) -> epath.Path:
    """Returns the work directory, or a folder in it for another split or an older checkpoint."""
    parts = []
    if split != default_split:
        # [:50], [50:] and [:50%] get different names.
        parts.append(file_name(split.replace("%", "pct").replace(":]", "_end]")).strip("_"))
    if run.step != run.newest:
        parts.append(f"step-{run.step}")
    return run.workdir / "-".join(["evaluation", *parts]) if parts else run.workdir


def folder_on_data(
    checkpoint: str, run: TrainedModel | None, *, data: str, split: str, settings: list[str]
) -> epath.Path:
    """Returns a folder for other data than a run's own.

    It is in the work directory of a run, or evaluations/CHECKPOINT in the current folder.

    Args:
      checkpoint: as it was named.
      run: None: a published checkpoint.
      data: name of the data set, or the path of a folder.
      split: the evaluated split.
      settings: what is not as by default, such as the method and the image size.
    """
    parts = [os.path.basename(data) if os.path.isabs(data) else data, split, *settings]
    if run is not None and run.step != run.newest:
        parts.append(f"step-{run.step}")
    name = "-".join(file_name(part).strip("_") for part in parts)
    if run is not None:
        return run.workdir / f"evaluation-{name}"
    # The end of a path says more than its beginning.
    model = file_name(os.path.normpath(checkpoint)[-60:]).strip("_.")
    return epath.Path(EVALUATIONS) / model / name


def file_name(text: str) -> str:
    """Returns the text as a part of a file name, without path separators."""
    encoded = re.sub(r"[^\w.-]+", "_", text).encode()[:100]  # A name has at most 255 bytes.
    return encoded.decode(errors="ignore")

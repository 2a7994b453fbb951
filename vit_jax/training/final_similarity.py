"""How similar the layers of each evaluated state are to those of the run's final state.

The final state is not known before the run ends. So an evaluation that measures layer_similarity
keeps the Gram matrices of its images (of 64 images 16 kB a layer, whatever the model's width), and
when the final state is evaluated, each earlier one is compared with it.
"""

import dataclasses
import io
import json
import math
import zipfile
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax import storage
from vit_jax.analysis.measures.hsic import Grams, cka
from vit_jax.errors import DataError
from vit_jax.rundir import workdir as workdirs
from vit_jax.telemetry.notes import note
from vit_jax.training.experiment import Experiment

_IMAGES = "images"  # Key, in a file of Gram matrices, of what describes their images.


@dataclasses.dataclass(frozen=True)
class FinalSimilarity:
    """The Gram matrices of a run's evaluations, and the comparison at its end.

    Attributes:
      workdir: work directory of the run.
      experiment: the run.
    """

    workdir: epath.Path
    experiment: Experiment

    def keep(self, name: str, step: int, grams: Grams) -> None:
        """Saves what the evaluation `name` has measured after `step` updates.

        After the last update, writes the linear CKA of each saved state with this one: see
        `vit_jax.rundir.workdir.similarity_file`.

        Raises:
          DataError: a file cannot be written.
        """
        if jax.process_index() != 0:
            return
        content = io.BytesIO()
        arrays: dict[str, Any] = {str(i): gram.astype(np.float32) for i, gram in enumerate(grams)}
        arrays[_IMAGES] = np.array(self._images(name))
        np.savez(content, **arrays)
        folder = self._folder(name)
        with storage.reported(DataError, f"{folder} cannot be written"):
            storage.make_folder(folder)
            storage.write_bytes(folder / f"{step}.npz", content.getvalue())
            if step == self.experiment.total_steps:
                lines = [json.dumps(line) for line in self._compare(name, grams)]
                path = workdirs.similarity_file(self.workdir, name)
                storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())

    def _folder(self, name: str) -> epath.Path:
        return self.workdir / workdirs.SIMILARITY / name

    def _images(self, name: str) -> str:
        """Returns what describes the images as the model has them: equal texts, equal images."""
        config = self.experiment.config
        transforms = [dict(op) for op in config.data.eval_transforms]
        size = list(self.experiment.model_config.image_size)
        return json.dumps([self.experiment.evals[name].fingerprint, transforms, size], default=str)

    def _compare(self, name: str, final: Grams) -> list[dict[str, int | float]]:
        total, folder = self.experiment.total_steps, self._folder(name)
        names = [file.removesuffix(".npz") for file in storage.names(folder)]
        lines, others = [], 0
        for step in sorted(int(name) for name in names if name.isdecimal()):
            if step > total:  # Of a longer run, before --allow_config_change.
                continue
            grams = _read(folder / f"{step}.npz", images=self._images(name))
            if grams is None or [a.shape for a in grams] != [b.shape for b in final]:
                others += 1
                continue
            similarity = np.diag(cka(grams, final))
            values = {
                "first_layer": similarity[1],
                "last_layer": similarity[-1],
                "mean": similarity.mean(),
            }
            finite = {
                f"{name}/cka_final_state_{key}": float(value)
                for key, value in values.items()
                if math.isfinite(value)
            }
            lines.append({"step": step, "final_step": total, **finite})
        if others:
            note(
                f"{name}: {others} earlier states are not compared with the final one: their Gram "
                f"matrices in {folder} are of other images or another model, or damaged"
            )
        return lines


def _read(path: epath.Path, *, images: str) -> list[np.ndarray] | None:
    """Returns Gram matrices, float64; None if they are of other images, or the file is damaged."""
    try:
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as arrays:
            if str(arrays[_IMAGES]) != images:
                return None
            keys = [key for key in arrays.files if key != _IMAGES]
            return [arrays[key].astype(np.float64) for key in keys]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None

"""How similar the layers of each evaluated state are to those of the run's final state.

The final state is not known before the run ends. So an evaluation that measures layer_similarity
keeps the Gram matrices of its images (of 64 images 16 kB a layer, whatever the model's width), and
when the final state is evaluated, each earlier one is compared with it.
"""

import dataclasses
import io
import json
import math
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from vit_jax import storage
from vit_jax.analysis.measures.gram_matrices import cka
from vit_jax.rundir import workdir as workdirs

Grams = Sequence[Float[np.ndarray, "layer n n"]]  # One array for each minibatch.


@dataclasses.dataclass(frozen=True)
class FinalSimilarity:
    """The Gram matrices of a run's evaluations, and the comparison at its end.

    Attributes:
      workdir: work directory of the run.
      total_steps: number of updates of the whole run.
    """

    workdir: epath.Path
    total_steps: int

    def keep(self, name: str, step: int, grams: Grams) -> None:
        """Saves what the evaluation `name` has measured after `step` updates.

        After the last update, writes the linear CKA of each saved state with this one: see
        `vit_jax.rundir.workdir.similarity_file`.
        """
        if jax.process_index() != 0:
            return
        file = io.BytesIO()
        np.savez(file, *[gram.astype(np.float32) for gram in grams])
        folder = self.workdir / workdirs.SIMILARITY / name
        storage.make_folder(folder)
        storage.write_bytes(folder / f"{step}.npz", file.getvalue())
        if step == self.total_steps:
            lines = [json.dumps(line) for line in self._compare(name, grams)]
            path = workdirs.similarity_file(self.workdir, name)
            storage.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())

    def _compare(self, name: str, final: Grams) -> list[dict[str, int | float]]:
        folder = self.workdir / workdirs.SIMILARITY / name
        files = [file for file in storage.names(folder) if file.endswith(".npz")]
        steps = sorted(int(file.removesuffix(".npz")) for file in files)
        lines = []
        for step in steps:
            with np.load(io.BytesIO(storage.read_bytes(folder / f"{step}.npz"))) as arrays:
                grams = [arrays[key].astype(np.float64) for key in arrays.files]
            # Of a longer run, or of a model or images before --allow_config_change.
            if step > self.total_steps or [a.shape for a in grams] != [b.shape for b in final]:
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
            lines.append({"step": step, "final_step": self.total_steps, **finite})
        return lines

r"""Measures files per second and peak memory of `vit-jax predict`, for few and many files.

    python -m benchmarks.prediction --out=DIR [--counts=1000,10000]

Writes photographs in eight formats and a ViT-Ti/16 with random parameters (64 pixels, 1,000
classes), and predicts them in a process of its own for each number of files and each format. The
peak is that of the resident memory of the whole process, JAX and compilation included.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

OUTPUTS = ("--output=out.csv", "--output=out.jsonl", "--output=out.parquet",
           "--features=out.npz", "--features=out.parquet")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
      files_per_second: from files to results, without start and compilation.
      peak_mebibytes: of resident memory.
    """

    files_per_second: float
    peak_mebibytes: float


def prepare(folder: pathlib.Path, count: int, *, name: str, image_size: int) -> None:
    """Writes `count` images (or a few more), and the model."""
    from tests.images import make
    from vit_jax import create, export

    make(folder / "images", each=-(-count // 3))
    export(create(name, image_size=image_size, num_classes=1000), folder / "model", to="hf")


def measure(folder: pathlib.Path, count: int, output: str) -> Measured:
    """Predicts the first `count` files."""
    files = sorted(map(str, (folder / "images").rglob("*.*")))[:count]
    # The command refuses to overwrite the file of the previous count.
    (folder / output.partition("=")[2]).unlink(missing_ok=True)
    command = [sys.executable, "-m", "vit_jax", "predict", "--checkpoint=model", output, *files]
    root = pathlib.Path(__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and re.search(rf"\b{count:,} \w+ and 0 errors", text), text
    rate = float(re.search(r"speed: ([\d,.]+) img/s", text)[1].replace(",", ""))
    return Measured(rate, usage.ru_maxrss / 1024)


def table(results: dict[str, dict[int, Measured]]) -> str:
    """Returns a table in Markdown."""
    counts = list(next(iter(results.values())))
    head = " | ".join(f"{n:,} files: files/s | peak, MiB" for n in counts)
    lines = [f"| output | {head} |", "|---" * (1 + 2 * len(counts)) + "|"]
    for output, row in results.items():
        cells = " | ".join(
            f"{m.files_per_second:.0f} | {m.peak_mebibytes:.0f}" for m in row.values()
        )
        lines.append(f"| `{output.removesuffix('=')}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "Folder for images and model.", required=True)
    _COUNTS = flags.DEFINE_list("counts", ["1000", "10000"], "Numbers of files.")

    def main(argv: Sequence[str]) -> None:
        """Measures, and prints the table."""
        folder, counts = pathlib.Path(_OUT.value), list(map(int, _COUNTS.value))
        if not folder.exists():
            prepare(folder, max(counts), name="Ti/16", image_size=64)
        results = {output: {n: measure(folder, n, output) for n in counts} for output in OUTPUTS}
        print(table(results))

    app.run(main)

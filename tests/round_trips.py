"""Every shipped config and every mode of fine-tuning, to every format and back, as a table.

    python -m tests.round_trips FOLDER

writes FOLDER/table.md, which docs/models.md contains. Each model is exported without flags, else
with --change_numerics, else not at all. transformers and timm then load what was written, prepare
photographs with their own preprocessing, and compute probabilities; .npz files and work directories
are loaded again here, StableHLO is called. All models are tiny (width 32, two blocks, 5 classes,
float32) and random; those of `finetune` are trained for two updates from checkpoints that
transformers and timm can read.
"""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from tests.config_cases import get_config
from tests.images import photographs
from tests.images import save as save_image
from tests.references import reference
from tests.tiny_checkpoints import LABELS, tiny
from vit_jax.config import freeze
from vit_jax.errors import CheckpointError
from vit_jax.models import MixerConfig, ResnetConfig, read_section
from vit_jax.pretrained.exports import export
from vit_jax.pretrained.load import load_pretrained, run_preprocess
from vit_jax.pretrained.model import Pretrained
from vit_jax.training.run import train

TARGETS = ("hf", "timm", "google", "big_vision", "orbax", "stablehlo")
# Configs, with arguments, whose models or preprocessing differ.
CONFIGS = (
    ("quickstart", ""),
    ("fashion_mnist", ""),
    ("image_folder", ""),
    ("vit_i1k", ""),
    ("vit_i1k", "variant=R26+S/32"),
    ("vit_i1k", "variant=Mixer-B/16"),
    ("vit_i21k", ""),
    ("vit_s16_i1k", ""),
    ("vit_g_scaling", ""),
    ("scaling/data_x_params", ""),
    ("scaling/isoflop", "data=fashion_mnist"),
    ("scaling/shape_star", ""),
    ("scaling/vit_vs_cnn", "model=BiT-R50x1"),
    ("scaling/vit_vs_cnn", "data=fashion_mnist,model=hybrid"),
)
MODES = ("full", "lora", "probe")
# As in published checkpoints: transformers' ViTs (google/vit-base-patch16-224), and timm's.
ORIGINS = {
    "hf": {"ln_eps": 1e-12, "posemb_resize": "bicubic"},
    "timm": {"ln_eps": 1e-6, "posemb_resize": "bicubic_antialias"},
}
# Probabilities that differ by less are equal but for rounding, which includes a pixel by a level.
SAME = 1e-4


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model in one format.

    Attributes:
      reasons: why a flag is needed, or why there is no export; () without a flag.
      difference: largest difference of a probability; None: there is no export.
    """

    reasons: tuple[str, ...]
    difference: float | None


def shipped(name: str, arg: str) -> Pretrained:
    """Returns a tiny random model of a config, with the preprocessing of its evaluation."""
    c = get_config(name, arg)
    config = freeze(c)
    whole = read_section(config.model, num_classes=len(LABELS))
    section = ConfigDict(c.model)
    if isinstance(whole, ResnetConfig):
        section.resnet.width_factor, section.resnet.units, stride = 0.5, (1, 1), 8
    else:
        section.update({"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2})
        if section.rep_size == -1:
            section.rep_size = 32
        if getattr(whole, "stem", None):
            section.resnet.width_factor, section.resnet.units = 0.5, (1,)
        if isinstance(whole, MixerConfig):
            section.num_heads, section.token_mlp_dim = None, 16
        stride = read_section(section, num_classes=len(LABELS)).stride[0]
    section.image_size, section.dtype = (4 * stride,), "float32"
    model_config = read_section(section, num_classes=len(LABELS))
    pretrained = tiny(model_config, labels=LABELS)
    preprocess = run_preprocess(config, whole).for_size(model_config.image_size)
    return dataclasses.replace(pretrained, preprocess=preprocess, loss=config.loss.name)


def fine_tuned(origin: str, mode: str, folder: pathlib.Path) -> Pretrained:
    """Returns a model that `configs/finetune.py` has trained for two updates on a folder."""
    checkpoint, images = folder / f"origin-{origin}", folder / "images"
    if not checkpoint.exists():
        export(
            tiny(width=32, family=origin, **ORIGINS[origin]), checkpoint, to=origin,
            change_numerics=True,
        )  # fmt: skip
    if not images.exists():
        for name, image in photographs().items():
            (images / name).mkdir(parents=True)
            for i in range(8):
                save_image(image.crop((9 * i, 0, 150, 120)), images / name / str(i), kind=1)
    c = get_config("finetune", f"root={images},mode={mode},rank=2,init={checkpoint}")
    c.total_steps, c.total_epochs, c.log.tensorboard = 2, None, False
    # So fast that differences of probabilities mean something.
    c.optim.lr, c.optim.schedule.warmup_percent = 0.03, None
    workdir = folder / f"{origin}-{mode}"
    assert train(freeze(c), workdir, devices=jax.devices()[:1]) == 0
    return load_pretrained(workdir)


def cases(folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], Pretrained]]]:
    """Yields the name of each row of the table, and a function that makes its model."""
    for name, arg in CONFIGS:
        title = f"`{name}{':' if arg else ''}{arg}`"
        yield title, lambda name=name, arg=arg: shipped(name, arg)
    for origin in ORIGINS:
        for mode in MODES:
            title = f"`finetune:mode={mode}` of a checkpoint of {origin}"
            yield title, lambda origin=origin, mode=mode: fine_tuned(origin, mode, folder)


def cell(pretrained: Pretrained, to: str, path: pathlib.Path) -> Cell:
    """Exports a model and compares the probabilities of the library that reads it."""
    reasons: tuple[str, ...] = ()
    try:
        notes = export(pretrained, path, to=to)
    except CheckpointError as error:
        lines = str(error).splitlines()
        before_notes = itertools.takewhile(lambda line: not line.startswith("Notes"), lines)
        reasons = tuple(line.strip() for line in before_notes if line.startswith("  "))
        reasons = reasons or (lines[0],)
        if "--change_numerics" not in lines[-1]:
            return Cell(reasons, None)
        notes = export(pretrained, path, to=to, change_numerics=True)
    images = pictures(pretrained.config.channels)
    theirs = LIBRARIES.get(to, _ours_again)(path, pretrained, images, notes)
    return Cell(reasons, float(np.abs(theirs - _probabilities(pretrained, images)).max()))


def pictures(channels: int) -> list[Image.Image]:
    """Returns photographs of several sizes, grey for models of one channel."""
    sizes = ((90, 120), (64, 64), (301, 200))
    images = [image.resize(size) for image in photographs().values() for size in sizes]
    return [image.convert("L") if channels == 1 else image for image in images]


def _probabilities(pretrained: Pretrained, images: list[Image.Image]) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        inputs = pretrained.preprocess(images)
        logits = jax.jit(pretrained.model.apply)({"params": pretrained.params}, inputs)[0]
    return _of_logits(np.asarray(logits), pretrained.loss)


def _of_logits(logits: np.ndarray, loss: str) -> np.ndarray:
    if loss == "sigmoid_xent":
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def _by_transformers(path, pretrained, images, notes) -> np.ndarray:
    transformers, torch = reference("transformers"), reference("torch")
    model = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
    backend = {"backend": "pil"} if any('backend="pil"' in note for note in notes) else {}
    processor = transformers.AutoImageProcessor.from_pretrained(path, **backend)
    inputs = np.stack([processor(i, return_tensors="np")["pixel_values"][0] for i in images])
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs)).logits.numpy()
    loss = {"multi_label_classification": "sigmoid_xent"}.get(model.config.problem_type, "")
    return _of_logits(logits, loss)


def _by_timm(path, pretrained, images, notes) -> np.ndarray:
    timm, torch = reference("timm"), reference("torch")
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        logits = model(torch.stack([transform(image) for image in images])).numpy()
    return _of_logits(logits, pretrained.loss)


def _by_stablehlo(path, pretrained, images, notes) -> np.ndarray:
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    return _of_logits(np.asarray(program.call(pretrained.preprocess(images))), pretrained.loss)


def _ours_again(path, pretrained, images, notes) -> np.ndarray:
    """Loads the file again here; an .npz states neither preprocessing nor the loss."""
    config, bare = pretrained.config, path.suffix == ".npz"
    hints = {"loss": pretrained.loss} if bare else {}
    if bare and hasattr(config, "grid"):
        hints |= {"image_size": config.image_size}
    if bare and hasattr(config, "num_heads"):
        hints |= {"num_heads": config.num_heads}
    size = None if bare and hasattr(config, "grid") else config.image_size
    loaded = load_pretrained(path, hints=hints, image_size=size)
    if bare:
        loaded = dataclasses.replace(loaded, preprocess=pretrained.preprocess)
    return _probabilities(loaded, images)


LIBRARIES = {"hf": _by_transformers, "timm": _by_timm, "stablehlo": _by_stablehlo}


def table(folder: pathlib.Path) -> str:
    """Returns the table in Markdown: differences, and the reasons below it."""
    numbers: dict[str, int] = {}
    lines = [f"| | {' | '.join(TARGETS)} |", f"|---{'|---' * len(TARGETS)}|"]
    for row, (title, make) in enumerate(cases(folder)):
        pretrained, texts = make(), []
        for to in TARGETS:
            suffix = ".npz" if to in ("google", "big_vision") else ""
            result = cell(pretrained, to, folder / f"{row}-{to}{suffix}")
            marks = ", ".join(str(numbers.setdefault(r, len(numbers) + 1)) for r in result.reasons)
            texts.append(_text(result, marks))
        lines.append(f"| {title} | {' | '.join(texts)} |")
        print(lines[-1], flush=True)
    reasons = [f"{number}. {reason}" for reason, number in numbers.items()]
    return "\n".join([*lines, "", *reasons]) + "\n"


def _text(result: Cell, marks: str) -> str:
    if result.difference is None:
        return f"no ({marks})"
    size = "same" if result.difference < SAME else f"{result.difference:.0e}"
    return f"{size} ({marks})" if marks else size


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True)
    (out / "table.md").write_text(table(out))

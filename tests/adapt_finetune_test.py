"""configs/finetune.py adapts a published model in each of its modes, by the train loop."""

import re

import jax
import numpy as np
import pytest

from tests.config_cases import get_config
from tests.mock_tfds import mock_tfds
from tests.small_run import mesh_of
from vit_jax.checkpoints.load import load_run
from vit_jax.config import freeze
from vit_jax.errors import ConfigError
from vit_jax.inference.evaluate import evaluate
from vit_jax.parallel.rules import path_name
from vit_jax.pretrained.load import load_pretrained
from vit_jax.telemetry.jsonlines import read_jsonl
from vit_jax.training.run import train

pytestmark = pytest.mark.slow  # Minutes in all.

# What learns in each mode.
LEARNS = {
    "full": lambda name: True,
    "probe": lambda name: name.startswith("head/"),
    "lora": lambda name: name.startswith("head/") or "_lora/" in name,
}


def shrunk(arg, path):
    c = get_config("finetune", f"size=56,pixels=imagenet,{arg}")
    c.init_from = str(path)
    c.batch_size, c.total_steps = 8, 3
    c.optim.schedule.warmup_steps = None
    c.optim.momentum_dtype = "float32"
    c.data.workers, c.data.threads, c.log.tensorboard = 0, 2, False
    return freeze(c)


@pytest.mark.parametrize("arg", ["mode=full,decay=0.75", "mode=probe", "mode=lora,rank=2"])
def test_a_published_model_learns_another_data_set(goldens, tmp_path, arg, caplog, capsys):
    path = goldens / "hf_dinov2" / "cls_mlp"
    one = jax.devices()[:1]
    with mock_tfds():
        assert train(shrunk(arg, path), tmp_path / "run", devices=one) == 0
        assert evaluate(tmp_path / "run", split="test").count == 8
    [origin] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init  ")]
    assert re.match(
        rf"init    {re.escape(str(path))}: [\d,]+ of [\d,]+ parameters taken; position embedding ",
        origin,
    )
    assert "patches; new head for 10 classes" in origin, origin
    assert origin.endswith("; new: low-rank adapters") == ("lora" in arg)
    assert "black and white" not in caplog.text  # DINOv2 is fed ImageNet's statistics.
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert {"val/top1", "test/top1"} <= lines[-1].keys()

    mesh = mesh_of()
    got = load_run(tmp_path / "run", mesh=mesh).params
    start = load_pretrained(str(path), image_size=56, num_classes=10).params
    before = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(start)}
    learns = LEARNS[arg.partition(",")[0].partition("=")[2]]
    for where, leaf in jax.tree_util.tree_leaves_with_path(got):
        name = path_name(where)
        if name not in before:
            assert "_lora/" in name
        elif "key/bias" not in name:  # Which no softmax sees.
            assert np.array_equal(leaf, before[name]) != learns(name), name


def test_an_unknown_mode_names_the_nearest():
    for arg, hint in (("mode=lara", "lora"), ("pixels=half_", "half"), ("pre_logits=dro", "drop")):
        with pytest.raises(ConfigError, match=f'Did you mean "{hint}"'):
            get_config("finetune", arg)

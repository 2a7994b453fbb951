"""What a run prints, and where its compiled programs are kept."""

import os
import re
import shutil

import jax
import pytest

from tests.small_run import small_config, train_on_one
from vit_jax.config import base_config
from vit_jax.models import describe_model, read_section
from vit_jax.parallel import compilation


def output(capsys, workdir, **changes):
    assert train_on_one(small_config(**changes), workdir) == 0
    return capsys.readouterr().out


@pytest.mark.medium
@pytest.mark.usefixtures("plain_run")
def test_the_lines_of_a_run(tmp_path, capsys):
    out = output(capsys, tmp_path)
    model = "model   ViT of width 32, depth 2, MLP 128, 2 heads, patches 4x4 on images of 8x8: "
    assert out.startswith(f"{model}26,538 parameters, ")
    assert re.search(r"^devices 1 x cpu \(data 1 .*\), 1 process$", out, re.M)
    assert re.search(r"^run     12 steps of 16 images, 0.1331 epochs$", out, re.M)
    assert re.search(r"^cache   compiled programs in \S+ \(off: JAX_ENABLE_\S+=false\)$", out, re.M)
    few = (
        "few     12 updates can hardly train a model: for more, lower --config.batch_size or raise"
    )
    assert few in out and "init  " not in out
    assert "cannot be compared" not in out  # The training loss is computed as the evaluations'.
    steps = [line for line in out.splitlines() if line.startswith("step ")]
    assert steps[0] == "step 0/12 | compiling"
    assert re.fullmatch(r"step 0/12 \| compiled in \d+\.\d s", steps[1])
    test = r"step {}/12 \| test: top1 \S+% \| top5 \S+% \| loss \S+ \| 50 examples \| \S+ s"
    evaluations = [line for line in steps if "test:" in line]
    assert len(evaluations) == 2 and all(
        re.fullmatch(test.format(step), line)
        for step, line in zip((6, 12), evaluations, strict=True)
    )
    assert re.search(r"^Done:   12 steps; test/top1 \S+%; \S+ img/s$", out, re.M)
    assert len(re.findall(r"^Time:", out, re.M)) == 1 and "all starts" not in out


@pytest.mark.medium
def test_a_start_that_continues_tells_its_time_from_that_of_all_starts(tmp_path, capsys, plain_run):
    shutil.copytree(plain_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    out = output(capsys, tmp_path / "run")
    assert "0.1331 epochs, continued at step 8\n" in out
    own, whole = re.search(
        r"^Time:   (\S+) s since this start \(.*\)\n        (\S+) s in all starts", out, re.M
    ).groups()
    assert float(whole) >= float(own)
    out = output(capsys, tmp_path / "run")
    assert "0.1331 epochs, which is complete\n" in out and "compiling" not in out


@pytest.mark.slow
def test_frozen_parameters_and_the_two_losses_are_mentioned(tmp_path, capsys):
    changes = {"loss__label_smoothing": 0.1, "mix__mixup_alpha": 0.2, "total_steps": 3}
    out = output(capsys, tmp_path, **changes, optim__freeze=("(?!head/).*",))
    assert "26,538 parameters, of which 330 are trained, " in out
    assert (
        "loss    the training loss is computed with label smoothing 0.1 and Mixup, that of an "
        "evaluation without: the two cannot be compared\n"
    ) in out


@pytest.mark.parametrize(
    ("variant", "changes", "text"),
    [
        ("B/16", {}, "ViT-B/16"),
        ("S/8", {"width": 48, "depth": 4, "mlp_dim": 96, "num_heads": 3},
         "ViT of width 48, depth 4, MLP 96, 3 heads, patches 8x8"),
        ("S/16", {"width": 768, "mlp_dim": 3072, "num_heads": 12}, "ViT-B/16"),
        ("B/16", {"pool": "gap"}, "ViT-B/16"),
        ("R50+B/16", {}, "R50+B/16"),
        ("R50+B/16", {"depth": 3}, "ViT of width 768, depth 3, MLP 3072, 12 heads, patches 1x1 on "
         "the feature map of a ResNet of (3, 4, 9) units, 1 times the width"),
        ("BiT-R50x1", {}, "BiT-R50x1"),
        ("Mixer-B/16", {}, "Mixer-B/16"),
        ("Mixer-B/16", {"token_mlp_dim": 100},
         "Mixer of width 768, depth 12, MLP 3072, token MLP 100, patches 16x16"),
    ],
)  # fmt: skip
def test_a_model_has_a_published_name_only_if_its_sizes_are_published(variant, changes, text):
    section = base_config().model
    section.variant = variant
    section.update(changes)
    assert describe_model(read_section(section, num_classes=10)) == text


# ------------------------------------------------------------------------- compiled programs


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """A user's cache folder, with JAX's settings as in a process without any."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "vit_jax"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_is_a_folder_of_the_user_and_jax_settings_go_before(user_cache):
    compilation.enable_compilation_cache("auto")
    folder = str(compilation.user_cache_folder())
    assert folder.startswith(str(user_cache)) and os.listdir(folder) == []
    assert jax.config.jax_compilation_cache_dir == folder
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
    assert f" {folder} " in compilation.describe_compilation_cache()
    for value in ("/elsewhere", None):
        jax.config.update("jax_compilation_cache_dir", value)
        compilation.enable_compilation_cache("auto" if value else "")
        assert jax.config.jax_compilation_cache_dir == value
        assert bool(compilation.describe_compilation_cache()) == bool(value)


def test_a_folder_that_cannot_be_used_is_a_note(user_cache, caplog):
    user_cache.write_text("a file where the folder should be")
    compilation.enable_compilation_cache("auto")
    assert jax.config.jax_compilation_cache_dir is None
    [record] = caplog.records
    assert "cannot be kept in" in record.message and "XDG_CACHE_HOME" in record.message


def test_the_oldest_programs_of_all_versions_are_deleted(user_cache, monkeypatch):
    monkeypatch.setattr(compilation, "_LARGEST_CACHE", 250)
    folders = compilation.user_cache_folder(), user_cache / "programs-of-another-version"
    entries = [folder / f"{i}-cache" for i, folder in enumerate(folders * 2)]
    for age, entry in enumerate(entries):
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_bytes(bytes(100))
        os.utime(entry, (10**9 - age, 10**9 - age))
    compilation.enable_compilation_cache("auto")
    assert [entry.exists() for entry in entries] == [True, True, False, False]

"""Checkpoints are restored to the bit, on any mesh; broken ones are quarantined."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.conftest import ROOT, campaign
from tests.small_run import mesh_of
from vit_jax.checkpoints.digests import digests
from vit_jax.checkpoints.faults import MismatchError
from vit_jax.checkpoints.store import Store
from vit_jax.errors import CheckpointError

pytestmark = pytest.mark.medium


def state(seed, sharding=None):
    rng = np.random.default_rng(seed)
    params = {"a": {"kernel": rng.normal(size=(8, 16)).astype(np.float32)}, "bias": np.ones(16)}
    opt_state = ({"mu": rng.normal(size=(8, 16)).astype(jnp.bfloat16)}, np.int32(seed))
    put = (lambda x: jax.device_put(x, sharding)) if sharding else jnp.asarray
    return jax.tree.map(put, {"params": params, "opt_state": opt_state, "ema": {}})


def targets(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_same_bits(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want
    )
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, want)


def test_restores_to_the_bit_on_another_mesh(tmp_path):
    split = NamedSharding(mesh_of(fsdp=8), PartitionSpec())
    saved = state(0, split)
    saved["params"]["a"]["kernel"] = jax.device_put(
        saved["params"]["a"]["kernel"], NamedSharding(mesh_of(fsdp=8), PartitionSpec("fsdp"))
    )
    with Store(tmp_path) as store:
        store.save(7, saved, {"seconds": 1.5}, metrics={})
    other = NamedSharding(mesh_of(data=2), PartitionSpec())
    with Store(tmp_path) as store:
        step, arrays, loop_state = store.restore_newest(targets(saved, other))
    assert step == 7 and loop_state == {"seconds": 1.5}
    assert_same_bits(arrays, saved)
    assert arrays["params"]["a"]["kernel"].sharding == other


def test_keeps_the_last_every_mth_and_the_best(tmp_path):
    scores = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.3, 5: 0.2, 6: 0.4}
    for mode, best in (("max", 1), ("min", 2)):
        folder = tmp_path / mode
        with Store(
            folder, keep_last=1, keep_every_steps=3, best_metric="t", best_mode=mode
        ) as store:
            for step, score in scores.items():
                store.save(step, state(step), {}, metrics={"t": score})
            store.finish()
            assert store.steps() == sorted({best, 3, 6})


@pytest.mark.parametrize("metric", ["", "t"])
def test_a_kill_before_the_older_ones_are_deleted_leaves_them_until_the_end(tmp_path, metric):
    with Store(tmp_path, keep_last=9, best_metric=metric) as store:
        for step in range(1, 6):
            store.save(step, state(step), {}, metrics={"t": -abs(step - 2.0)})
    # Half of it is deleted: an object store does not rename it first.
    (tmp_path / "3" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(tmp_path / "3" / "params" / "d")
    for keep_last, left in ((2, [4, 5]), (9, [4, 5])):
        with Store(tmp_path, keep_last=keep_last, best_metric=metric) as store:
            assert store.restore_newest(targets(state(0)))[0] == 5
            store.finish()
            assert store.steps() == ([2, *left] if metric else left)
    assert not (tmp_path / "3").exists()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_resumed_run_keeps_its_best(tmp_path, mode):
    sign = {"max": 1.0, "min": -1.0}[mode]
    for scores, left in (
        ({1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1}, [3, 4]),
        ({5: 0.3, 6: None}, [3, 6]),
        ({7: 1.0, 8: 0.2}, [7, 8]),
        ({}, [7, 8]),
    ):
        with Store(tmp_path, keep_last=1, best_metric="t", best_mode=mode) as store:
            for step, score in scores.items():
                metrics = {} if score is None else {"t": sign * score}
                store.save(step, state(step), {}, metrics=metrics)
            store.finish()
            assert store.steps() == left


def test_checkpoints_without_metrics_are_kept(tmp_path):
    """Each may be the best: release 0.1.0 wrote no metrics."""
    with Store(tmp_path, keep_last=2) as store:
        for step in (1, 2):
            store.save(step, state(step), {}, metrics={})
    with Store(tmp_path, keep_last=1, best_metric="t") as store:
        for step in (3, 4, 5):
            store.save(step, state(step), {}, metrics={"t": -float(step)})
        store.finish()
        assert store.steps() == [1, 2, 3, 5]


def corrupt(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)


def delete_metadata(folder):
    for path in folder.glob("*/_METADATA"):
        path.unlink()


# Orbax leaves tasks of a failed read to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [corrupt, delete_metadata])
def test_a_broken_checkpoint_falls_back_to_the_previous_one(tmp_path, caplog, damage):
    folder = tmp_path / "checkpoints"
    (tmp_path / "checkpoints.broken.2").mkdir()  # From an earlier time.
    with Store(folder, keep_last=3) as store:
        for step in (1, 2):
            store.save(step, state(step), {"seconds": float(step)}, metrics={})
    damage(folder / "2")
    with Store(folder, keep_last=3) as store:
        step, arrays, loop_state = store.restore_newest(targets(state(0)))
        assert step == 1 and loop_state == {"seconds": 1.0}
        assert_same_bits(arrays, state(1))
        # The step can be saved again, and the broken files are kept for inspection.
        store.save(2, state(5), {}, metrics={})
    assert (tmp_path / "checkpoints.broken.2.2").is_dir()
    assert any("cannot be read" in record.message for record in caplog.records)
    with Store(folder) as store:
        assert_same_bits(store.restore(2, targets(state(0)))[0], state(5))


def test_if_all_are_broken_nothing_is_moved(tmp_path):
    folder = tmp_path / "checkpoints"
    with Store(folder) as store:
        store.save(1, state(1), {}, metrics={})
    corrupt(folder / "1")
    with Store(folder) as store, pytest.raises(CheckpointError, match="None of the checkpoints"):
        store.restore_newest(targets(state(0)))
    assert (folder / "1").is_dir()


def test_another_models_checkpoint_is_refused_and_kept(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, state(1), {}, metrics={})
    wrong = targets(state(0))
    wrong["params"]["bias"] = jax.ShapeDtypeStruct((17,), jnp.float32)
    with Store(tmp_path) as store, pytest.raises(MismatchError, match=r"params/bias.*16.*17"):
        store.restore_newest(wrong)
    assert (tmp_path / "1").is_dir()


def flip(path, *, byte, bit):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("flips", [2, campaign(100)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_is_detected_at_any_position(tmp_path, flips):
    split = NamedSharding(mesh_of(fsdp=2), PartitionSpec("fsdp"))
    saved = state(0)
    saved["params"]["a"]["kernel"] = jax.random.normal(jax.random.key(0), (64, 64))
    saved["opt_state"], saved["params"] = {}, jax.device_put(saved["params"], split)
    with Store(tmp_path) as store:
        store.save(1, saved, {"seconds": 1.0}, metrics={})
    files = [p for p in (tmp_path / "1").rglob("*") if p.is_file() and p.stat().st_size]
    rng = np.random.default_rng(0)
    errors = []
    for path in files:
        whole = path.read_bytes()
        for _ in range(flips):
            flip(path, byte=int(rng.integers(len(whole))), bit=int(rng.integers(8)))
            try:
                with Store(tmp_path, read_only=True) as store:
                    arrays, _ = store.restore(1, targets(saved, split))
                assert_same_bits(
                    arrays, saved
                )  # The bit is in a part of the file that is not read.
            except CheckpointError as error:
                errors.append(str(error))
            path.write_bytes(whole)
    # Incompressible numbers are stored unchanged: no library detects the flip.
    assert any("damaged" in message and "kernel" in message for message in errors), errors


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unreachable_file_system_quarantines_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    with Store(folder, keep_last=2) as store:
        for step in (1, 2):
            store.save(step, state(step), {}, metrics={})

    def unreachable(self, *args, **kwargs):
        raise OSError(116, os.strerror(116))

    with Store(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr(ocp.StandardCheckpointHandler, "restore", unreachable)
            with pytest.raises(CheckpointError, match=r"cannot be read now: .*Stale"):
                store.restore_newest(targets(state(0)))
        assert store.restore_newest(targets(state(0)))[0] == 2
    assert not list(tmp_path.glob("*broken*"))


def test_reads_another_dtype_than_was_saved(tmp_path):
    saved = state(0)
    with Store(tmp_path) as store:
        store.save(1, saved, {}, metrics={})
    requested = targets(saved)
    requested["opt_state"][0]["mu"] = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    with Store(tmp_path) as store:
        arrays, _ = store.restore(1, requested)
    mu = arrays["opt_state"][0]["mu"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, saved["opt_state"][0]["mu"].astype(jnp.float32))


def murmur(x):
    x %= 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def test_digests_are_equal_on_every_mesh_and_depend_on_each_bit_and_position():
    tree = {
        "kernel": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),
        "mu": np.arange(64).reshape(8, 8).astype(jnp.bfloat16),
        "count": np.int32(7),
        "flags": np.array([True, False] * 4),
    }
    want = digests(jax.tree.map(jnp.asarray, tree))
    for spec, sizes in ((("fsdp",), {"fsdp": 8}), ((None, "tensor"), {"data": 2, "tensor": 4})):
        on = mesh_of(**sizes)

        def put(x, on=on, spec=spec):
            fits = np.ndim(x) == 2
            return jax.device_put(x, NamedSharding(on, PartitionSpec(*spec if fits else ())))

        assert digests(jax.tree.map(put, tree)) == want
    # The definition, in integers.
    bits = tree["kernel"].view(np.uint32).ravel().tolist()
    assert (
        want["kernel"] == sum(murmur(b ^ (i * 2_654_435_769)) for i, b in enumerate(bits)) % 2**32
    )
    for change in (lambda x: x[::-1], lambda x: -x, lambda x: np.roll(x, 1, axis=1)):
        changed = {**tree, "kernel": change(tree["kernel"]).copy()}
        other = digests(jax.tree.map(jnp.asarray, changed))
        assert other["kernel"] != want["kernel"] and other["mu"] == want["mu"]


FULL_DISK = """
import sys, jax.numpy as jnp, pathlib
from vit_jax.checkpoints.store import Store
from vit_jax.errors import CheckpointError
import numpy as np
folder = pathlib.Path(sys.argv[1], "checkpoints")
rng = np.random.default_rng(0)
def save(store, step, size):
    params = {"kernel": jnp.asarray(rng.normal(size=size).astype(np.float32))}
    store.save(step, {"params": params, "opt_state": {}, "ema": {}}, {}, metrics={})
try:
    with Store(folder, keep_last=2) as store:
        save(store, 1, 100_000)
        store.finish()
        save(store, 2, 2_000_000)
        store.finish()
except CheckpointError as error:
    print(error)
with Store(folder) as store:
    print("LEFT", store.steps())
    save(store, 3, 100_000)
    store.finish()
    print("LATER", store.steps())
print("NAMES", sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c",
         f"mount -t tmpfs -o size=4m tmpfs {small} && {sys.executable} {script} {small}"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout and "No space left" in done.stdout, done.stdout
    assert "LEFT [1]\nLATER [3]\nNAMES ['3']" in done.stdout, done.stdout


def test_an_old_checkpoint_is_never_half_deleted_under_its_name(tmp_path, monkeypatch):
    with Store(tmp_path, keep_last=1) as store:
        with monkeypatch.context() as killed:  # As after a kill between the move and its deletion.
            killed.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
            for step in (1, 2):
                store.save(step, state(step), {}, metrics={})
            store.finish()
        assert store.steps() == [2]
    assert not (tmp_path / ".deleted").exists()  # Leaving the context deletes it.
    (tmp_path / ".deleted" / "1" / "params").mkdir(parents=True)
    with Store(tmp_path, read_only=True):
        assert (tmp_path / ".deleted" / "1").exists()
    with Store(tmp_path, keep_last=1) as store:
        assert not (tmp_path / ".deleted" / "1").exists() and store.steps() == [2]


def saved_steps(folder, *steps):
    with Store(folder, keep_last=len(steps)) as store:
        for step in steps:
            store.save(step, state(step), {"step": step, "seconds": 1.5}, metrics={})
            store.finish()
    return targets(state(0), NamedSharding(mesh_of(data=1), PartitionSpec()))


def rewrite_loop_state(folder, step, change):
    path = folder / str(step) / "chrono" / "metadata"
    loop_state = json.loads(path.read_text())
    change(loop_state)
    path.write_text(json.dumps(loop_state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loop_state: loop_state.update(seconds=2.5), "chrono is not what was saved"),
        (lambda loop_state: loop_state.update(digests=[1]), "no digests where they should be"),
    ],
    ids=["another number", "no digests"],
)
def test_a_changed_loop_state_is_detected(tmp_path, caplog, change, message):
    requested = saved_steps(tmp_path / "checkpoints", 1, 2)
    rewrite_loop_state(tmp_path / "checkpoints", 2, change)
    with Store(tmp_path / "checkpoints") as store:
        step, arrays, _ = store.restore_newest(requested)
    assert step == 1 and message in caplog.text
    assert_same_bits(arrays, state(1))


def test_a_checkpoint_under_the_name_of_another_step_is_detected(tmp_path, caplog):
    requested = saved_steps(tmp_path / "checkpoints", 1, 2)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "7")
    with Store(tmp_path / "checkpoints") as store:
        assert store.restore_newest(requested)[0] == 1
    assert "it is of step 2" in caplog.text


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_checkpoint_that_lacks_an_item_is_broken(tmp_path, caplog, item):
    requested = saved_steps(tmp_path / "checkpoints", 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / item)
    with Store(tmp_path / "checkpoints") as store:
        assert store.restore_newest(requested)[0] == 1
    assert f"{item} is missing" in caplog.text
    assert (tmp_path / "checkpoints.broken.2").is_dir()


def test_nothing_outside_the_folder_is_deleted(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".deleted").symlink_to(tmp_path / "photos")
    with pytest.raises(CheckpointError, match=r"\.deleted cannot be used.*Move it away"):
        Store(tmp_path / "checkpoints")

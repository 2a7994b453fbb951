"""A sharded checkpoint is adapted to another image size without gathering a parameter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests.conftest import campaign, slow
from tests.many_processes import ends, processes
from tests.small_run import mesh_of, small_config
from vit_jax.checkpoints.load import load_run
from vit_jax.checkpoints.store import Store
from vit_jax.models import param_shapes, read_section
from vit_jax.parallel.rules import param_shardings, path_name
from vit_jax.pretrained.adaptation import adapt_params
from vit_jax.rundir import workdir as workdirs
from vit_jax.training.init_from import inherit_model, inherit_params

MESHES = {"one": (1, 1, 1), "fsdp": (1, 8, 1), "all": (2, 2, 2)}
SIZES = {224: 196, 384: 576, 640: 1600}  # Pixels: patches of 16.


def config(size, **changes):
    return small_config(
        model__variant="", model__depth=None, model__pool=None, model__image_size=(size,), **changes
    )


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A work directory of a model at 224 pixels with random parameters, and the parameters."""
    folder = tmp_path_factory.mktemp("origin")
    c = small_config(
        model__variant="mu/16", model__width=64, model__mlp_dim=256, model__num_heads=4,
        model__image_size=(224,),
    )  # fmt: skip
    cfg = read_section(c.model, num_classes=10)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), param_shapes(cfg)
    )
    names = {"num_classes": 10, "class_names": list("0123456789"), "channels": 1}
    workdirs.claim(folder, c, names | {"name": "none", "split": "none", "num_examples": 0})
    with Store(folder / workdirs.CHECKPOINTS) as store:
        store.save(0, {"params": params, "opt_state": {}, "ema": {}}, {"step": 0}, metrics={})
    return folder, cfg, params


def zoomed(posemb, size):
    """Resizes as vision_transformer and big_vision do."""
    first, grid = posemb[0, :1], posemb[0, 1:].reshape(14, 14, -1)
    factor = size / 224
    grid = scipy.ndimage.zoom(grid, (factor, factor, 1), order=1)
    return np.concatenate([first, grid.reshape(-1, grid.shape[-1])])[None]


def forbid_host_copies(monkeypatch):
    """Makes it an error to copy an array of a parameter's size to NumPy."""
    kind = type(jnp.zeros(()))
    value = kind._value

    def small(self):
        assert self.size < 2**12, f"{self.shape} is copied to the host"
        return value.fget(self)

    monkeypatch.setattr(kind, "_value", property(small))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("size", "mesh"),
    [
        (384, "all"), (640, "fsdp"), slow(384, "one"),
        *(campaign(*case) for case in ((384, "fsdp"), (640, "all"), (640, "one"))),
    ],
)  # fmt: skip
def test_positions_are_resized_on_the_mesh(origin, size, mesh, monkeypatch):
    folder, published, params = origin
    mesh = mesh_of(*MESHES[mesh])
    c = inherit_model(config(size, init_from=str(folder)), folder.parent / "new")
    cfg = read_section(c.model, num_classes=10)
    assert cfg.num_tokens == 1 + SIZES[size] and cfg.width == published.width
    layout = param_shardings(param_shapes(cfg), mesh)
    with jax.set_mesh(mesh), monkeypatch.context() as patch:
        forbid_host_copies(patch)
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), param_shapes(cfg))
        fresh = jax.device_put(zeros, layout)
        got, _ = inherit_params(c, cfg, fresh, mesh=mesh)

    share = dict.fromkeys(mesh.devices.flat, 0)
    whole = 0
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(layout), strict=True
    ):
        assert leaf.sharding == sharding, path_name(path)
        whole += leaf.nbytes
        for shard in leaf.addressable_shards:
            share[shard.device] += shard.data.nbytes
    # Embeddings are sharded over fsdp only, and small leaves are replicated.
    assert max(share.values()) < 1.1 * whole / mesh.shape["fsdp"]

    want = zoomed(np.asarray(params["pos_embedding"]), size)
    assert want.shape[1] == 1 + SIZES[size]
    np.testing.assert_allclose(got["pos_embedding"], want, rtol=0, atol=1e-6)
    for part in ("embedding", "cls", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, got[part], params[part])
    np.testing.assert_array_equal(got["head"]["kernel"], 0)


@pytest.mark.medium
def test_no_device_receives_an_unsharded_parameter(origin):
    """The compiled program has no all-gather, and no unsharded result."""
    _, published, params = origin
    mesh = mesh_of(fsdp=8)
    new = read_section(
        inherit_model(config(640, init_from=str(origin[0])), origin[0].parent / "new").model,
        num_classes=10,
    )
    adapt = functools.partial(adapt_params, old=published, new=new, mesh=mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(params, mesh))
        program = jax.jit(adapt).lower(placed).compile().as_text()
    assert "f32[1,1601,8]" in program  # An eighth of the width on each device.
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program)
    assert "f32[1,1601,64]" not in program and "f32[1,197,64]" not in program


CONFIG = """
from tests.small_run import small_config
from ml_collections import ConfigDict
from vit_jax.config import base_config


def get_config():
    c = base_config()
    small = small_config(
        model__variant="", model__depth=None, model__pool=None, model__image_size=(640,),
        data__train_transforms=small_config().data.eval_transforms, total_steps=1,
        optim__lr=1e-30, optim__weight_decay=0.0, optim__schedule__warmup_steps=None,
        batch_size=2, mesh__data=1, mesh__fsdp=2, evals=ConfigDict(),
    )
    with c.unlocked():
        c.update(ConfigDict(small.as_configdict()))
    return c
"""


@pytest.mark.slow
def test_two_processes_each_with_half_of_the_parameters(origin, tmp_path):
    """A run of two processes, whose parameters are sharded over them from the restore on."""
    folder, _, params = origin
    (tmp_path / "config.py").write_text(CONFIG)
    command = [
        "vit_jax.train", f"--config={tmp_path / 'config.py'}", f"--config.init_from={folder}",
        f"--workdir={tmp_path / 'run'}",
    ]  # fmt: skip
    with processes([command] * 2) as started:
        for process in started:
            code, err = ends(process, timeout=400)
            assert code == 0, err[-3000:]
    mesh = mesh_of()
    got = load_run(tmp_path / "run", mesh=mesh).params
    want = zoomed(np.asarray(params["pos_embedding"]), 640)
    np.testing.assert_allclose(got["pos_embedding"], want, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, got["encoder"], params["encoder"])

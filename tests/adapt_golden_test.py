"""The reference's fine-tuning, update by update: our loader, optimizer and update step."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.conftest import campaign, slow
from tests.small_run import mesh_of
from vit_jax.config import base_config, freeze
from vit_jax.optim import make_optimizer, make_schedule
from vit_jax.parallel.mesh import batch_sharding, replicated
from vit_jax.pretrained.exports import google
from vit_jax.pretrained.load import load_pretrained
from vit_jax.training.state import make_init, state_layout
from vit_jax.training.update import make_train_step


def run_config(recipe):
    c = base_config()
    c.batch_size, c.total_steps = recipe["batch"], recipe["steps"]
    c.optim.update(
        {
            "name": "sgd", "lr": recipe["base_lr"], "momentum": 0.9, "clip_norm": 1.0,
            "momentum_dtype": recipe["accumulator_dtype"], "accum_steps": recipe["accum_steps"],
        }
    )  # fmt: skip
    c.optim.schedule.name = recipe["decay"]
    c.optim.schedule.warmup_steps = recipe["warmup_steps"]
    return freeze(c)


F32, BF16 = "vt_finetune_token_f32acc", "vt_finetune_token_bf16acc_accum2"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "sizes"),
    [(F32, (1, 1, 1)), slow(BF16, (2, 2, 2)), campaign(F32, (2, 2, 2)), campaign(BF16, (1, 1, 1))],
)
def test_ten_batches_of_vision_transformer(training_golden, tmp_path, name, sizes):
    entry, folder, inputs, expected = training_golden(name)
    recipe, facts = entry["recipe"], entry["expected_arrays"]
    config = run_config(recipe)
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        start = load_pretrained(
            str(folder / "ckpt.npz"),
            hints={"num_heads": recipe["model"]["num_heads"], "image_size": 32},
            mesh=mesh,
        )
        schedule = make_schedule(
            config.optim.schedule,
            total_steps=recipe["steps"], batch_size=recipe["batch"], num_examples=80,
        )  # fmt: skip
        tx = make_optimizer(config.optim, start.params, schedule=schedule)
        init = make_init(config, start.model, tx)
        layout = state_layout(jax.eval_shape(init, jax.random.key(0)), mesh)
        state = jax.jit(init, out_shardings=layout)(jax.random.key(0), start.params)
        step = jax.jit(make_train_step(config, start.model, tx, schedule))
        got = {"losses": [], "lr": [], "grad_norm_before_clip": [], "param_norm_after_step": []}
        for i in range(recipe["steps"]):
            batch = {
                "image": inputs["images"][i], "label": inputs["labels"][i],
                "weight": np.ones(recipe["batch"], np.float32),
            }  # fmt: skip
            batch = jax.device_put(batch, batch_sharding(mesh))
            state, metrics = step(state, batch, jax.device_put(False, replicated(mesh)))
            for ours, theirs in zip(("loss", "lr", "grad_norm", "param_norm"), got, strict=True):
                got[theirs].append(float(metrics[f"train/{ours}"]))

    for key, values in got.items():
        np.testing.assert_allclose(values, expected[key], rtol=0, atol=facts[key]["tol"])
    tuned = dataclasses.replace(start, params=jax.device_get(state.params))
    google.write(tuned, tmp_path / "final.npz", to="google", dtype="float32", change_numerics=False)
    final = np.load(tmp_path / "final.npz")
    assert {f"final/{key}" for key in final} == {k for k in facts if k.startswith("final/")}
    for key in final:
        tol = facts[f"final/{key}"]["tol"]
        np.testing.assert_allclose(
            final[key], expected[f"final/{key}"], rtol=0, atol=tol, err_msg=key
        )

"""One update of the state: forward, backward, optimizer, moving average."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import FrozenConfigDict

from vit_jax.data import mixing
from vit_jax.optim import ema, frozen_mask, loss_by_name, value_and_grad
from vit_jax.parallel import processes
from vit_jax.training.state import TrainState, run_keys


def make_train_step(
    config: FrozenConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    parts: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Returns a function (state, batch, stop) -> (state, metrics): one update, not jitted yet.

    Args:
      config: the config of the run.
      model: (images, train) -> (logits, intermediates).
      tx: the optimizer.
      schedule: update -> factor of the learning rate, which the metrics report.
      parts: number of parts in which each microbatch is computed: see `vit_jax.training.parts`.
    """
    loss_of = loss_by_name(config.loss.name)
    skip_bad = config.data.on_bad == "skip"
    mixes = config.mix.mixup_alpha > 0 or config.mix.cutmix_alpha > 0

    def loss_fn(params, batch, rng):
        logits, _ = model.apply(
            {"params": params}, batch["image"], train=True, rngs={"dropout": rng}
        )
        losses = loss_of(logits, batch["label"], label_smoothing=config.loss.label_smoothing)
        share = batch.get("share", 1.0)
        accuracy = {}
        if not mixes:  # A mixed image has no single true class.
            hits = logits.argmax(axis=-1) == batch["label"].argmax(axis=-1)
            accuracy["train/top1"] = (hits * share).mean()
        return (losses * share).mean(), accuracy

    def train_step(state: TrainState, batch: dict[str, Array], stop: Array):
        rng = jax.random.fold_in(run_keys(config.seed)[1], state.step)
        rng_mix, rng_model = jax.random.split(rng)

        images, labels, weights = batch["image"], batch["label"], batch["weight"]
        if labels.ndim == 1:
            labels = jax.nn.one_hot(labels, model.config.num_classes)
        images, labels = mixing.mix(
            rng_mix,
            images,
            labels,
            weights,
            mixup_alpha=config.mix.mixup_alpha,
            cutmix_alpha=config.mix.cutmix_alpha,
        )

        mixed = {"image": images, "label": labels}
        if skip_bad:
            # Multiplied by this share, a mean over the batch is the mean over the good examples,
            # also under gradient accumulation.
            mixed["share"] = weights * (weights.size / jnp.maximum(weights.sum(), 1))

        (loss, accuracy), grads = value_and_grad(
            loss_fn,
            state.params,
            mixed,
            rng_model,
            accum_steps=config.optim.accum_steps * parts,
            sam_rho=config.optim.sam_rho,
            frozen=frozen_mask(config.optim, state.params),
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        step, average = state.step + 1, state.ema
        if config.optim.ema_decay:
            average = ema.update(average, params, decay=config.optim.ema_decay, count=step)
        metrics = accuracy | {
            "train/loss": loss,
            "train/lr": config.optim.lr * schedule(state.step),
            "train/grad_norm": optax.tree.norm(grads),
            "train/update_norm": optax.tree.norm(updates),
            "train/param_norm": optax.tree.norm(params),
            "stop": processes.any_flag(stop),
        }
        if skip_bad:
            metrics["train/skipped"] = jnp.sum(weights == 0)
        return TrainState(step=step, params=params, opt_state=opt_state, ema=average), metrics

    return train_step

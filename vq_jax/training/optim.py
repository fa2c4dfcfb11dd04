"""Optax chains from a config section."""

import jax
import ml_collections
import optax

from vq_jax.errors import UserError


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate over optimizer updates: linear warm-up, then constant or cosine to `lr_end`.

    Args:
      config: the section `optim` or `disc.optim`.
      steps: how many updates there will be.
    """
    warmup = min(config.warmup_steps, steps)
    if config.schedule == "constant":
        body = optax.constant_schedule(config.lr)
    elif config.schedule == "cosine":
        alpha = config.lr_end / config.lr if config.lr else 0.0
        body = optax.cosine_decay_schedule(config.lr, max(1, steps - warmup), alpha)
    else:
        raise UserError(f"optim.schedule is {config.schedule!r}: use 'constant' or 'cosine'")
    if not warmup:
        return body
    ramp = optax.linear_schedule(0.0, config.lr, warmup)
    return optax.join_schedules([ramp, body], [warmup])


def make_ramp(start: float, end: float, first_step: int, last_step: int) -> optax.Schedule:
    """`start` up to `first_step`, `end` from `last_step` on, linear between."""
    return optax.linear_schedule(start, end, last_step - first_step, first_step)


def _decayed(params):
    """Weight decay is for kernels: not for biases and norms, nor for the codebook."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019; Adam at weight decay 0) with clipping and accumulation.

    Args:
      config: the section `optim` or `disc.optim`: lr, lr_end, schedule, warmup_steps, b1, b2,
        weight_decay, clip_norm (0 for none), accumulate (batches an update).
      steps: training steps in all; the schedule counts updates, steps / accumulate.
    """
    if config.accumulate < 1:
        raise UserError(f"optim.accumulate is {config.accumulate}: use 1 or more")
    schedule = make_schedule(config, steps // config.accumulate)
    # Without clipping something stands in for it: the optimizer's state keeps its shape, and a run
    # that has diverged can go on with it.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    tx = optax.chain(
        clip,
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )
    if config.accumulate > 1:
        return optax.MultiSteps(tx, config.accumulate).gradient_transformation()
    return tx

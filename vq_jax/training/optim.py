"""Optax chains from a config section."""

from functools import partial
from typing import Any

import jax
import ml_collections
import optax
import optax.contrib

from vq_jax.errors import UserError


def make_schedule(
    config: ml_collections.ConfigDict, steps: int, scale: float = 1.0
) -> optax.Schedule:
    """Returns the learning rate: linear warm-up, then constant or cosine decay to `lr_end`.

    Args:
      config: the section `optim` or `disc_optim`.
      steps: total number of optimizer updates.
      scale: factor of all learning rates.
    """
    warmup = min(config.warmup_steps, steps)
    peak = scale * config.lr
    if config.schedule == "constant":
        body = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        alpha = config.lr_end / config.lr if config.lr else 0.0
        body = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha)
    else:
        raise UserError(f"optim.schedule is {config.schedule!r}: use 'constant' or 'cosine'")
    if not warmup:
        return body
    ramp = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([ramp, body], [warmup])


def make_ramp(start: float, end: float, first_step: int, last_step: int) -> optax.Schedule:
    """Returns a schedule: `start` up to `first_step`, `end` from `last_step` on, linear between."""
    return optax.linear_schedule(start, end, last_step - first_step, first_step)


def _decayed(params):
    """Mask of the params with weight decay: kernels, but not biases, norms and codebooks."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def _as_matrix(kernel: Any) -> optax.contrib.MuonDimensionNumbers:
    last = kernel.ndim - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)


def _with_muon(
    config: ml_collections.ConfigDict, steps: int, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Updates kernels by Muon, with the schedule of the others, and the rest by `others`.

    The kernel of a convolution of images or clips counts as a matrix, all axes but the last joined. Kernels
    with three axes are several matrices (of books, or of stacked layers), and belong to the others.
    """
    if not config.lr:
        raise UserError("optim.muon_lr needs optim.lr above 0, whose schedule it follows")
    scale = config.muon_lr / config.lr
    muon = optax.contrib.muon(
        make_schedule(config, steps // config.accumulate, scale),
        # The decay of a step is the learning rate times this: the same as that of AdamW.
        weight_decay=config.weight_decay / scale,
        muon_weight_dimension_numbers=partial(jax.tree.map, _as_matrix),
    )

    def label(path, leaf):
        return "muon" if path[-1].key == "kernel" and leaf.ndim in (2, 4, 5) else "others"

    return optax.partition(
        {"muon": muon, "others": others},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Makes AdamW (Loshchilov & Hutter 2019) with gradient clipping and accumulation.

    With `muon_lr`, kernels of dense layers and of convolutions are updated by Muon (Jordan et al. 2024): momentum whose
    singular values are brought to about 1.

    Args:
      config: the section `optim` or `disc_optim`.
      steps: total number of training steps; the schedule counts updates, steps / accumulate.
    """
    if config.accumulate < 1:
        raise UserError(f"optim.accumulate is {config.accumulate}: use 1 or more")
    schedule = make_schedule(config, steps // config.accumulate)
    # The identity keeps the structure of the state, so that a run can continue with clipping turned on.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    tx = optax.chain(clip, _with_muon(config, steps, adamw) if config.muon_lr else adamw)
    if config.accumulate > 1:
        return optax.MultiSteps(tx, config.accumulate).gradient_transformation()
    return tx

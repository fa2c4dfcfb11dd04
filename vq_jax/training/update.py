"""The end of every training step: optimizer update, moving average, counters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vq_jax.training.state import TrainState


def update(state: TrainState, grads, optimizer) -> TrainState:
    """Applies one optimizer update; param groups without gradients stay exactly as they are."""
    frozen = {name: tree for name, tree in state.params.items() if name not in grads}
    full = {**jax.tree.map(jnp.zeros_like, frozen), **grads}
    full = {name: full[name] for name in state.params}
    updates, opt_state = optimizer.update(full, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params = {name: frozen.get(name, params[name]) for name in state.params}
    # The moments of frozen groups do not decay either.
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if any(getattr(k, "key", None) in frozen for k in path) else new,
        opt_state,
        state.opt_state,
    )
    return state.replace(params=params, opt_state=opt_state)


def moving_average(params: Any, average: Any, step: jax.Array, decay: float) -> Any:
    """Updates a moving average whose decay grows from 0.1, so that early averages follow the params."""
    count = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(params, average, rate)


def finalize_step(before: Any, after: Any, report: dict[str, jax.Array]) -> tuple[Any, Any]:
    """Counts a step, and discards its update if any metric is NaN or infinite.

    Args:
      before, after: states with `step` and `skipped`.
      report: float32 scalars, the same on all devices.

    Returns:
      the next state; the report with the number of skipped steps so far.
    """
    finite = jnp.isfinite(jnp.stack([*report.values()])).all()
    after = jax.tree.map(partial(jnp.where, finite), after, before)
    skipped = before.skipped + jnp.where(finite, 0, 1)
    report = report | {"skipped": skipped.astype(jnp.float32)}
    return after.replace(step=before.step + 1, skipped=skipped), report

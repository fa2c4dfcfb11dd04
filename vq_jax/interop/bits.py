"""Params stored in 16 or 8 bits, in vq_jax's own format. They open as float32."""

import numpy as np

from vq_jax.errors import UserError

CHOICES = (32, 16, 8)
SCALES = "scales"  # the group of arrays that int8 params need
_LARGEST = 127


def narrow(arrays: dict[str, np.ndarray], bits: int) -> dict[str, np.ndarray]:
    """Stores params in fewer bits.

    Args:
      arrays: name -> array. Those named params/... that are float32 change.
      bits: 32 changes nothing. 16 makes them float16. With 8, those of two axes or more become int8, with a
        float32 scale for each index of the last axis: x is about integer * scale.

    Returns:
      name -> array; with 8 bits also scales/NAME, float32 [last axis], for every NAME that is int8.

    Raises:
      UserError: a param does not fit.
    """
    stored = dict(arrays)
    for name, array in arrays.items():
        if bits == 32 or not name.startswith("params/") or array.dtype != np.float32:
            continue
        largest = np.finfo(np.float16).max if bits == 16 else np.finfo(np.float32).max / 2
        if not np.abs(array).max(initial=0) <= largest:
            raise UserError(f"{name} has values that {bits} bits cannot hold")
        if bits == 16:
            stored[name] = array.astype(np.float16)
        elif array.ndim >= 2:
            scale = np.abs(array).max(axis=tuple(range(array.ndim - 1)), initial=0) / _LARGEST
            divisor = np.where(scale > 0, scale, 1)
            stored[name] = np.clip(np.rint(array / divisor), -_LARGEST, _LARGEST).astype(np.int8)
            stored[f"{SCALES}/{name}"] = scale.astype(np.float32)
    return stored


def widen(arrays: dict[str, np.ndarray], scales: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays stored by `narrow` as float32.

    Args:
      arrays: name -> array.
      scales: scales/NAME -> float32 [last axis].

    Raises:
      UserError: the scales do not fit the arrays.
    """
    wide = dict(arrays)
    for name, array in arrays.items():
        if array.dtype == np.float16:
            wide[name] = array.astype(np.float32)
        elif array.dtype == np.int8:
            scale = scales.get(f"{SCALES}/{name}")
            if scale is None or scale.shape != array.shape[-1:] or scale.dtype != np.float32:
                raise UserError(f"{name} has 8 bits and no scale for each index of its last axis")
            if not np.abs(scale).max(initial=0) <= np.finfo(np.float32).max / 256:
                raise UserError(f"{name} has scales that are no numbers, or too large")
            wide[name] = array * scale
    return wide

"""Tests of finite scalar quantization."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vq_jax.quantizers import QUANTIZERS


@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (7, 5, 5, 5, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_code_is_reachable_also_from_bfloat16(levels, dtype):
    quantizer = QUANTIZERS["fsq"](levels=levels)
    codes = jnp.arange(quantizer.num_codes, dtype=jnp.int32)
    points = np.asarray(quantizer.apply({}, codes, method="lookup"), np.float64)
    # The inverse of the paper's f gives the latents that are bounded to exactly these points.
    levels = np.asarray(levels)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0.0, 0.5)
    z = np.arctanh((points * (levels // 2) + offset) / half) - np.arctanh(offset / half)
    z_q, found, _ = quantizer.apply({}, jnp.asarray(z, dtype))
    chex.assert_trees_all_equal(found, codes)
    chex.assert_trees_all_equal(z_q, jnp.asarray(points, jnp.float32))
    assert len(np.unique(points, axis=0)) == quantizer.num_codes

"""EfficientNet-lite0: its classification of two photographs, and its depthwise convolutions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from vq_jax.data.images import fit, to_float
from vq_jax.interop.efficientnet import load_efficientnet
from vq_jax.models.efficientnet import FEATURES, _depthwise, class_logits, features


def test_a_cat_and_a_cup_of_coffee_are_classified():
    params = load_efficientnet()
    images = [to_float(fit(image, 224, 224)) for image in (data.chelsea(), data.coffee())]
    features_BF = jax.jit(features)(params, jnp.asarray(np.stack(images)))
    chex.assert_shape(features_BF, (2, FEATURES))
    ranked = np.argsort(-np.asarray(class_logits(params, features_BF)), axis=1)
    assert set(ranked[0, :3]) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert ranked[1, 0] == 967  # espresso


@pytest.mark.parametrize("side,taps,stride", [(9, 3, 1), (8, 3, 2), (9, 5, 2), (7, 5, 1)])
def test_depthwise_convolutions_match_xla(rng, side, taps, stride):
    x = jnp.asarray(rng.normal(size=(2, side, side, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(taps, taps, 6)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6,
    )  # fmt: skip
    chex.assert_trees_all_close(_depthwise(x, kernel, stride), expected, atol=1e-5)

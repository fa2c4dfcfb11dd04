"""I3D, the network of the Frechet video distance (Carreira & Zisserman 2017; Unterthiner et al. 2018).

Inception-v1 whose kernels span time, trained on Kinetics-400. Padding is TensorFlow's SAME, and batch norms are
folded into the convolutions.
"""

import jax
import jax.numpy as jnp

# layer -> (kernel [t, h, w, in, out], bias [out]), from `interop.i3d.load_i3d`
Params = dict[str, tuple[jax.Array, jax.Array]]

SIDE = 224
CLASSES = 400
LEAST_FRAMES = 9  # fewer leave nothing for the last average over two frames
# Layers in order: a convolution and its stride, a max pool (kernel and stride), or an inception block.
_LAYERS: tuple[tuple, ...] = (
    ("conv", "Conv3d_1a_7x7", 2),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("conv", "Conv3d_2b_1x1", 1),
    ("conv", "Conv3d_2c_3x3", 1),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("mixed", "Mixed_3b"),
    ("mixed", "Mixed_3c"),
    ("pool", (3, 3, 3), (2, 2, 2)),
    ("mixed", "Mixed_4b"),
    ("mixed", "Mixed_4c"),
    ("mixed", "Mixed_4d"),
    ("mixed", "Mixed_4e"),
    ("mixed", "Mixed_4f"),
    ("pool", (2, 2, 2), (2, 2, 2)),
    ("mixed", "Mixed_5b"),
    ("mixed", "Mixed_5c"),
)


def _conv(params: Params, name: str, x: jax.Array, stride: int = 1) -> jax.Array:
    kernel, bias = params[name]
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 3,
        "SAME",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision="highest",  # Published figures must not depend on the device.
    )
    return y + bias


def _pool(x: jax.Array, kernel: tuple[int, ...], strides: tuple[int, ...]) -> jax.Array:
    # The padding is 0, as in the network's code, which never exceeds the activations: all are 0 or more.
    pads = jax.lax.padtype_to_pads(x.shape, (1, *kernel, 1), (1, *strides, 1), "SAME")
    x = jnp.pad(x, pads)
    window, steps = (1, *kernel, 1), (1, *strides, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, "VALID")


def _mixed(params: Params, name: str, x: jax.Array) -> jax.Array:
    def unit(part: str, x: jax.Array) -> jax.Array:
        return jax.nn.relu(_conv(params, f"{name}.{part}", x))

    return jnp.concatenate(
        [
            unit("b0", x),
            unit("b1b", unit("b1a", x)),
            unit("b2b", unit("b2a", x)),
            unit("b3b", _pool(x, (3, 3, 3), (1, 1, 1))),
        ],
        axis=-1,
    )


def features(params: Params, clips: jax.Array) -> jax.Array:
    """Computes the logits of Kinetics-400, averaged over time, as FVD compares them.

    Args:
      params: weights of the network.
      clips: float32 [B, T, H, W, 3] in [-1, 1], of any size; frames are resized to 224x224 pixels, bilinear.

    Returns:
      float32 [B, 400].
    """
    b, t, _, _, c = clips.shape
    x = jax.image.resize(clips, (b, t, SIDE, SIDE, c), "linear", antialias=False)
    for kind, *how in _LAYERS:
        if kind == "conv":
            x = jax.nn.relu(_conv(params, how[0], x, how[1]))
        elif kind == "pool":
            x = _pool(x, *how)
        else:
            x = _mixed(params, how[0], x)
    x = x.mean((2, 3))  # 7x7 positions
    x = (x[:, :-1] + x[:, 1:]) / 2 if x.shape[1] > 1 else x
    kernel, bias = params["logits"]
    return (x @ kernel[0, 0, 0] + bias).mean(1)

"""Image and codebook measures as pure functions. Images are float32 [B, H, W, C] in [-1, 1]."""

import math

import dm_pix
import jax
import jax.numpy as jnp


def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image in dB, float32 [B].

    10 log10(peak^2 / MSE) with the range of [-1, 1], 2, as the peak.
    """
    mse = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of each image, float32 [B] (Wang et al. 2004; 11-tap Gaussian, s 1.5).

    Images smaller than the window get the largest odd window that fits.
    """
    window = min(11, *(side - (side % 2 == 0) for side in a.shape[1:3]))
    return dm_pix.ssim((a + 1) / 2, (b + 1) / 2, max_val=1.0, filter_size=window)


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean absolute error of each image on the [-1, 1] scale, float32 [B]."""
    return jnp.mean(jnp.abs(a - b), axis=(1, 2, 3))


def code_counts(codes: jax.Array, num_codes: int) -> jax.Array:
    """How often each code occurs, float32 [num_codes], for int codes of any shape."""
    return jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def perplexity(counts: jax.Array) -> jax.Array:
    """Exponential of the entropy (nats) of code counts [..., K]: how many are in effective use."""
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1.0)
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.maximum(p, 1e-10)), axis=-1))


def usage(counts: jax.Array) -> jax.Array:
    """Share of the codes that occur at all, in [0, 1], from counts [..., K]."""
    return jnp.mean((counts > 0).astype(jnp.float32), axis=-1)


def bits_per_pixel(num_codes: int, codes_per_image: int, pixels: int) -> float:
    """Bits of an image's codes at fixed width, log2(num_codes) each, over its pixels."""
    return codes_per_image * math.log2(num_codes) / pixels

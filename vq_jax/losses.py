"""Losses, as pure functions of arrays, computed in float32.

Unless documented otherwise, a loss is not reduced: it has one value for each element or logit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# --- reconstruction: float [B, ...], float [B, ...] -> float32 [B, ...] ---------------------------


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Computes the absolute error of each element."""
    return jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Computes the squared error of each element.

    Divided by `config.loss.data_variance`, it is the error relative to the variance of the data
    (van den Oord et al. 2017, and Sonnet's recipe).
    """
    return jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Computes the cross-entropy in nats of integers under logits.

    Args:
      logits: float [B, ..., K].
      target: int [B, ...] in [0, K).

    Returns:
      float32 [B, ...].
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), target)


# --- adversarial: logits of any shape -> float32 of the same shape --------------------------------


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Computes the discriminator's hinge loss (Lim & Ye 2017, eq. 3).

    It is halved, as in Esser et al. 2021.

    Args:
      real, fake: logits of the same shape.

    Returns:
      float32 of that shape, the loss of each pair of logits.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake))


def logistic_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Computes the discriminator's binary cross-entropy (Goodfellow et al. 2014, eq. 1).

    Args:
      real, fake: logits of the same shape.

    Returns:
      float32 of that shape, the mean of the two terms for each pair of logits.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.softplus(-real) + jax.nn.softplus(fake))


def linear_generator(fake: jax.Array) -> jax.Array:
    """Computes the generator's hinge loss, the negative logit (Lim & Ye 2017, eq. 4)."""
    return -fake.astype(jnp.float32)


def non_saturating_generator(fake: jax.Array) -> jax.Array:
    """Computes the generator's non-saturating loss, -log D(x) (Goodfellow et al. 2014, sec. 3)."""
    return jax.nn.softplus(-fake.astype(jnp.float32))


# name -> (discriminator's loss of real and fake logits, generator's loss of fake logits).
# "vanilla" is the pair in the code of Esser et al. 2021, "non_saturating" is cross-entropy for
# both.
ADVERSARIAL: dict[str, tuple[Callable, Callable]] = {
    "hinge": (hinge_discriminator, linear_generator),
    "vanilla": (logistic_discriminator, linear_generator),
    "non_saturating": (logistic_discriminator, non_saturating_generator),
}

# name -> generator's loss of fake logits, to replace the one in `ADVERSARIAL`
GENERATOR: dict[str, Callable] = {
    "linear": linear_generator,
    "non_saturating": non_saturating_generator,
}


def adaptive_weight(
    reconstruction_norm: jax.Array, adversarial_norm: jax.Array, limit: float = 1e4
) -> jax.Array:
    """Computes the weight of the adversarial loss (Esser et al. 2021, eq. 7).

    With this weight, both losses have gradients of the same norm at the decoder's last layer.

    Args:
      reconstruction_norm: float32 [], norm of the gradient of the reconstruction loss at the
        decoder's last kernel.
      adversarial_norm: float32 [], the same for the generator's adversarial loss.
      limit: largest weight.

    Returns:
      float32 [] in [0, limit], without gradient.
    """
    weight = reconstruction_norm / (adversarial_norm + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, limit))


def r1_penalty(logits: Callable[[jax.Array], jax.Array], real: jax.Array) -> jax.Array:
    """Computes the R1 penalty of the discriminator at real images (Mescheder et al. 2018, eq. 9).

    Args:
      logits: the discriminator: images [B, ...] -> logits [B, ...].
      real: float [B, ...], real images.

    Returns:
      float32 [B], the squared gradient norm |d sum(logits) / d image|^2 of each image; the caller
      multiplies it by gamma / 2.
    """
    gradient = jax.grad(lambda x: jnp.sum(logits(x).astype(jnp.float32)))(real)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=tuple(range(1, gradient.ndim)))


def lecam(real: jax.Array, fake: jax.Array, real_mean: jax.Array, fake_mean: jax.Array):
    """Computes the LeCAM regularisation of each pair of logits (Tseng et al. 2021, eq. 4).

    Args:
      real, fake: logits of the same shape.
      real_mean, fake_mean: float32 [], moving averages of the discriminator's logits.

    Returns:
      float32 of the logits' shape.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return jnp.square(jax.nn.relu(real - fake_mean)) + jnp.square(jax.nn.relu(real_mean - fake))


# --- latents --------------------------------------------------------------------------------------


def latent_variance(variance_D: jax.Array) -> jax.Array:
    """Computes a hinge loss on the standard deviation of the latents (Bardes et al. 2022, eq. 1).

    The loss is the amount by which the standard deviation is below 1. It prevents an encoder whose
    latents collapse to one point.

    Args:
      variance_D: float [D], variance of each latent dimension over the whole batch.

    Returns:
      float32 [D], in [0, 1].
    """
    return jax.nn.relu(1.0 - jnp.sqrt(variance_D.astype(jnp.float32) + 1e-4))


def entropy(p: jax.Array) -> jax.Array:
    """Computes the entropy in nats of probabilities float [..., K] over the last axis."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-20)), axis=-1)


def code_usage(probabilities_K: jax.Array) -> jax.Array:
    """Computes one minus the normalised entropy of the mean soft assignment.

    It is 0 if all codes are used equally, and 1 if a single code is used.

    Args:
      probabilities_K: float [K], the share of the batch that is assigned to each code; sums to 1.

    Returns:
      float32 [] in [0, 1].
    """
    p = probabilities_K.astype(jnp.float32)
    return 1.0 - entropy(p) / jnp.log(p.shape[0])


def kernel_norm(tree) -> jax.Array:
    """Computes the global L2 norm of the kernels, the leaves with two or more axes, in a tree."""
    return optax.tree.norm([leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1])

"""Losses as pure functions of arrays, in float32. Unless it says otherwise, nothing is reduced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

# --- reconstruction: float [B, ...] and float [B, ...] -> float32 of the same shape ---------------


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Absolute error of each element."""
    return jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared error of each element. Over the data's variance (van den Oord et al. 2017, and
    Sonnet's recipe) it is this divided by `config.loss.data_variance`."""
    return jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))


RECONSTRUCTION: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"l1": l1, "l2": l2}

# --- adversarial: logits of any shape -> float32 of that shape ------------------------------------


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Hinge loss of the discriminator (Lim & Ye 2017, eq. 3; halved as in Esser et al. 2021).

    `real` and `fake` are logits of one shape; returns the loss of each pair of them.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake))


def logistic_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Binary cross-entropy of the discriminator on logits (Goodfellow et al. 2014, eq. 1),
    averaged over its two terms."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jax.nn.softplus(-real) + jax.nn.softplus(fake))


def linear_generator(fake: jax.Array) -> jax.Array:
    """The generator's side of the hinge loss, minus the logit (Lim & Ye 2017, eq. 4)."""
    return -fake.astype(jnp.float32)


def non_saturating_generator(fake: jax.Array) -> jax.Array:
    """-log D(x) on logits: the generator's non-saturating loss (Goodfellow et al. 2014, sec. 3)."""
    return jax.nn.softplus(-fake.astype(jnp.float32))


# name -> (discriminator's loss of real and fake logits, generator's loss of fake logits).
# "vanilla" pairs them as Esser et al. 2021's code does; "non_saturating" is plain cross-entropy.
ADVERSARIAL: dict[str, tuple[Callable, Callable]] = {
    "hinge": (hinge_discriminator, linear_generator),
    "vanilla": (logistic_discriminator, linear_generator),
    "non_saturating": (logistic_discriminator, non_saturating_generator),
}


# name -> the generator's loss of fake logits, where it is chosen apart from the discriminator's
GENERATOR: dict[str, Callable] = {
    "linear": linear_generator,
    "non_saturating": non_saturating_generator,
}


def adaptive_weight(
    reconstruction_norm: jax.Array, adversarial_norm: jax.Array, limit: float = 1e4
) -> jax.Array:
    """The weight that gives both losses equal say at the last layer (Esser et al. 2021, eq. 7).

    Args:
      reconstruction_norm: float32 [], norm of the reconstruction loss's gradient at the decoder's
        last kernel.
      adversarial_norm: float32 [], the same for the generator's adversarial loss.
      limit: the largest weight given.

    Returns:
      float32 [] in [0, limit], without gradient.
    """
    weight = reconstruction_norm / (adversarial_norm + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0.0, limit))


def r1_penalty(logits: Callable[[jax.Array], jax.Array], real: jax.Array) -> jax.Array:
    """Squared gradient norm of the discriminator at real images (Mescheder et al. 2018, eq. 9).

    Args:
      logits: images [B, ...] -> logits [B, ...].
      real: float [B, ...].

    Returns:
      float32 [B]: |d sum(logits) / d image|^2 of each image; the caller multiplies by gamma / 2.
    """
    gradient = jax.grad(lambda x: jnp.sum(logits(x).astype(jnp.float32)))(real)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=tuple(range(1, gradient.ndim)))


def lecam(real: jax.Array, fake: jax.Array, real_mean: jax.Array, fake_mean: jax.Array):
    """LeCAM regularisation of each pair of logits (Tseng et al. 2021, eq. 4).

    Args:
      real, fake: logits of one shape.
      real_mean, fake_mean: float32 [], moving averages of the discriminator's logits.

    Returns:
      float32 of the logits' shape.
    """
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return jnp.square(jax.nn.relu(real - fake_mean)) + jnp.square(jax.nn.relu(real_mean - fake))


# --- latents --------------------------------------------------------------------------------------


def latent_variance(variance_D: jax.Array) -> jax.Array:
    """How far each latent dimension's standard deviation over the batch falls short of 1.

    The hinge of Bardes et al. 2022 (eq. 1); it keeps an encoder from shrinking onto one point.

    Args:
      variance_D: float [D], each dimension's variance over the whole batch.

    Returns:
      float32 [D], each in [0, 1].
    """
    return jax.nn.relu(1.0 - jnp.sqrt(variance_D.astype(jnp.float32) + 1e-4))


def entropy(p: jax.Array) -> jax.Array:
    """Entropy in nats over the last axis, of probabilities float [..., K]."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-20)), axis=-1)


def code_usage(probabilities_K: jax.Array) -> jax.Array:
    """One minus the normalised entropy of the average soft assignment: 0 when all codes share.

    Args:
      probabilities_K: float [K], how much of the batch each code takes; sums to 1.

    Returns:
      float32 [] in [0, 1].
    """
    p = probabilities_K.astype(jnp.float32)
    return 1.0 - entropy(p) / jnp.log(p.shape[0])


def kernel_norm(tree) -> jax.Array:
    """Global L2 norm of the kernels (leaves with two or more axes) of a gradient tree."""
    return optax.tree.norm([leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1])

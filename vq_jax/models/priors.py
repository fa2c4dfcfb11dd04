"""The table of priors, and the function that checks their fields."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from vq_jax.bounds import Bounds
from vq_jax.models.attention import axis_sizes
from vq_jax.models.blocks import ACTIVATIONS, NORMS, Dtype, swiglu_width
from vq_jax.models.next_scale import NEEDS_SCALES, NextScale
from vq_jax.models.transformer import Transformer

Prior = Transformer | NextScale


def sees_later(prior: Prior) -> bool:
    """Whether a prior sees given codes that come after those it samples, and so fills gaps from both sides."""
    return not prior.causal or prior.target_aware


def transformer(
    *,
    num_codes: int,
    grid: tuple[int, ...],
    books: int,
    classes: int,
    condition: tuple[int, ...],
    causal: bool,
    target_aware: bool,
    dtype: Dtype,
    grids: tuple[tuple[int, ...], ...] = (),
    latent: int = 0,
    radices: tuple[int, ...] = (),
    layers: Annotated[int, Bounds(1)] = 8,
    width: Annotated[int, Bounds(4)] = 512,
    heads: Annotated[int, Bounds(1)] = 8,
    hidden: Annotated[int, Bounds(0)] = 0,
    digits: bool = False,
    position: str = "rope",
    norm: str = "rms",
    activation: str = "swiglu",
    dropout: Annotated[float, Bounds(0, 0.99)] = 0.1,
    remat: bool = False,
    scan: bool = False,
    ngrams: tuple[int, ...] = (),
    ngram_bits: Annotated[int, Bounds(1, 24)] = 16,
    ngram_dim: Annotated[int, Bounds(1)] = 32,
    ngram_dropout: Annotated[float, Bounds(0, 0.99)] = 0.0,
) -> Transformer:
    """Makes a `Transformer` from checked fields.

    It is one function because its arguments are the fields of a config. `hidden=0` is four times the width,
    or the width that gives "swiglu" as many params. `digits` predicts the digits of codes; see
    `Transformer.radices`.

    Raises:
      ValueError: a field has a value that is not supported.
    """
    del latent
    if digits and (not radices or ngrams or norm == "bert"):
        raise ValueError(
            "prior.digits needs codes that are numbers, of the quantizers fsq, lfq and bsq, no "
            "prior.ngrams, and another prior.norm than 'bert'"
        )
    for name, value, known in (
        ("position", position, ("rope", "learned")),
        ("norm", norm, tuple(NORMS)),
        ("activation", activation, ("swiglu", *ACTIVATIONS)),
    ):
        if value not in known:
            raise ValueError(f"prior.{name} is {value!r}: use one of {', '.join(known)}")
    if width % heads or width // heads % 4:
        raise ValueError(f"prior.width {width} must be a multiple of 4 * prior.heads, {4 * heads}")
    axes = len(axis_sizes(grids[-1] if grids else grid))
    if position == "rope" and width // heads < 2 * axes:
        raise ValueError(
            f"prior.width {width} and prior.heads {heads} leave {width // heads} dimensions a head: "
            f"rotary embeddings of {axes} axes need {2 * axes}"
        )
    if ngrams and (not causal or target_aware):
        raise ValueError("prior.ngrams are of codes in a fixed order: they need the prior 'causal'")
    if any(n < 2 for n in ngrams):
        raise ValueError(f"prior.ngrams is {tuple(ngrams)}: use orders of 2 or more")
    if not hidden:
        hidden = swiglu_width(width) if activation == "swiglu" else 4 * width
    return Transformer(
        num_codes=num_codes,
        grid=grid,
        books=books,
        classes=classes,
        condition=condition,
        causal=causal,
        target_aware=target_aware,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden,
        position=position,
        norm=norm,
        activation=activation,
        dropout=dropout,
        remat=remat,
        scan=scan,
        ngrams=tuple(ngrams),
        ngram_bits=ngram_bits,
        ngram_dim=ngram_dim,
        ngram_dropout=ngram_dropout,
        radices=tuple(radices) if digits else (),
        grids=grids,
        dtype=dtype,
    )


def next_scale(
    *,
    num_codes: int,
    grid: tuple[int, ...],
    books: int,
    classes: int,
    condition: tuple[int, ...],
    dtype: Dtype,
    grids: tuple[tuple[int, ...], ...] = (),
    latent: int = 0,
    radices: tuple[int, ...] = (),
    layers: Annotated[int, Bounds(1)] = 8,
    width: Annotated[int, Bounds(4)] = 512,
    heads: Annotated[int, Bounds(1)] = 8,
    hidden: Annotated[int, Bounds(0)] = 0,
    dropout: Annotated[float, Bounds(0, 0.99)] = 0.0,
    remat: bool = False,
) -> NextScale:
    """Makes a `NextScale` from checked fields; `hidden=0` is four times the width.

    Raises:
      ValueError: the codes are no pyramid of one code a position, or a field is not supported.
    """
    del grid, radices
    if not grids or books != 1 or any(len(set(sides)) != 1 for sides in grids):
        raise ValueError(NEEDS_SCALES)
    if condition:
        raise ValueError("the prior 'next_scale' takes no condition: use 'causal' or 'masked'")
    if width % heads:
        raise ValueError(f"prior.width {width} must be a multiple of prior.heads, {heads}")
    return NextScale(
        num_codes=num_codes,
        grids=tuple((int(h), int(w)) for h, w in grids),
        latent=latent,
        classes=classes,
        layers=layers,
        width=width,
        heads=heads,
        hidden=hidden or 4 * width,
        dropout=dropout,
        remat=remat,
        dtype=dtype,
    )


# name -> function of (num_codes, grid, grids, books, classes, condition, latent, dtype, **config.prior)
PRIORS: dict[str, Callable[..., Prior]] = {
    # predicts each code from those before it, row by row (Esser et al. 2021, eq. 9; Sun et al. 2024)
    "causal": partial(transformer, causal=True, target_aware=False),
    # predicts masked codes from the visible ones (Chang et al. 2022, MaskGIT, eq. 2)
    "masked": partial(transformer, causal=False, target_aware=False),
    # predicts each code from those before it, in any order of positions (Yu et al. 2024, RAR)
    "random_order": partial(transformer, causal=True, target_aware=True),
    # predicts all codes of a scale from those of the coarser ones (Tian et al. 2024, VAR, eq. 4)
    "next_scale": next_scale,
}

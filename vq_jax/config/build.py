"""Makes modules and functions from a config."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vq_jax import modalities
from vq_jax.codes import CodeSpec
from vq_jax.data.pipeline import prepare_codes
from vq_jax.errors import UserError
from vq_jax.models import DISCRIMINATORS, MODELS, PRIORS, Prior, Tokenizer
from vq_jax.quantizers import QUANTIZERS, Quantizer
from vq_jax.sampling import Draw


def _kwargs(config: ConfigDict) -> dict[str, Any]:
    return {field: value for field, value in config.items() if field != "name"}


def spec_of(config: ConfigDict) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one training example."""
    return modalities.of(config).spec(config.data)


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """Makes the Flax module of `config.model` and `config.quantizer`."""
    quantizer = make_quantizer(config.quantizer)
    try:
        encoder, decoder = MODELS[config.model.name].make(
            spec=spec_of(config),
            dim=quantizer.dim,
            dtype=jnp.dtype(config.dtype),
            **_kwargs(config.model),
        )
    except ValueError as e:
        raise UserError(str(e)) from e
    return Tokenizer(encoder=encoder, quantizer=quantizer, decoder=decoder)


def make_quantizer(quantizer: ConfigDict) -> Quantizer:
    """Makes the Flax module of a section `config.quantizer`."""
    kwargs = _kwargs(quantizer)
    if "inner" in kwargs:
        kwargs["inner"] = make_quantizer(quantizer.inner)
    return QUANTIZERS[quantizer.name](**kwargs)


def make_discriminator(config: ConfigDict) -> nn.Module | None:
    """Makes the discriminator, or None if no phase has one."""
    if not config.phases.adversarial:
        return None
    made = DISCRIMINATORS[config.discriminator.name]
    return made(dtype=jnp.dtype(config.dtype), **_kwargs(config.discriminator))


def make_prior(config: ConfigDict) -> Prior:
    """Makes the Flax module of `config.prior`, for the codes of `config.codes`."""
    codes = config.codes
    try:
        return PRIORS[config.prior.name](
            num_codes=codes.num_codes,
            grid=tuple(codes.grid),
            books=codes.books,
            grids=tuple(map(tuple, codes.grids)),
            latent=codes.latent,
            radices=tuple(codes.radices),
            classes=len(codes.classes),
            condition=tuple(codes.condition),
            dtype=jnp.dtype(config.dtype),
            **_kwargs(config.prior),
        )
    except ValueError as e:
        raise UserError(str(e)) from e


def make_draw(config: ConfigDict, **changes: Any) -> Draw:
    """Returns how codes are drawn from a prior: `config.sampling`, with some fields changed."""
    fields = {f.name: config.sampling[f.name] for f in dataclasses.fields(Draw)}
    try:
        return Draw(**fields | changes)
    except ValueError as e:
        raise UserError(f"sampling: {e}") from e


def make_condition(config: ConfigDict) -> Callable | None:
    """Makes the function that turns an example into a prior's condition, or None."""
    if "condition" not in config:
        return None
    maker = modalities.of(config).conditions[config.condition.name]
    try:
        return maker(**_kwargs(config.condition))
    except ValueError as e:
        raise UserError(f"condition: {e}") from e


def make_prepare(config: ConfigDict, train: bool = False) -> Callable[..., dict[str, Any]]:
    """Makes the function (example, rng) -> member of a batch.

    Args:
      config: a tokenizer's or a prior's.
      train: whether to augment.
    """
    if config.data.source == "codes":
        return prepare_codes
    return modalities.of(config).prepare(config.data, train, make_condition(config))


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a tokenizer makes of one training example: shapes and dtypes, with a batch axis of 1.

    Attributes:
      output: of the decoder.
      latents, codes: of the encoder and the quantizer.
      variables: nested dicts, by collection.
    """

    output: jax.ShapeDtypeStruct
    latents: jax.ShapeDtypeStruct
    codes: jax.ShapeDtypeStruct
    variables: dict[str, Any]


# The last config and its shapes: opening a run asks for them several times, and each time takes a while.
_last: tuple[str, Shapes] | None = None


def trace_shapes(config: ConfigDict) -> Shapes:
    """Runs a tokenizer on shapes alone.

    Raises:
      ValueError, TypeError: the model and the quantizer do not fit together.
    """
    global _last
    description, last = config.to_json_best_effort(sort_keys=True), _last
    if last is not None and last[0] == description:
        return last[1]
    spec = spec_of(config)
    x = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)

    def run(tokenizer: Tokenizer, x: jax.Array) -> Any:
        z = tokenizer.encode(x)
        z_q, codes, _ = tokenizer.quantize(z)
        return tokenizer.head(tokenizer.features(z_q, x)), z, codes

    init = partial(make_tokenizer(config).init_with_output, method=run)
    (output, latents, codes), variables = jax.eval_shape(init, jax.random.key(0), x)
    shapes = Shapes(output, latents, codes, variables)
    _last = description, shapes
    return shapes


def code_spec(config: ConfigDict, tokenizer: Tokenizer) -> tuple[CodeSpec, tuple[int, ...] | None]:
    """Returns what the codes of a training example look like, and the strides of the tokenizer.

    Strides are the number of elements that a position spans along each axis. They are None if the
    tokenizer takes examples of the training size only: the model does, or the quantizer gives codes
    on another grid than that of the latents.
    """
    shapes, quantizer = trace_shapes(config), tokenizer.quantizer
    positions = len(shapes.codes.shape) - len(quantizer.code_shape)
    grid = shapes.codes.shape[1:positions]
    strides = tokenizer.encoder.strides if grid == shapes.latents.shape[1:-1] else None
    spec = CodeSpec(grid, quantizer.num_codes, quantizer.code_shape, quantizer.grids)
    return spec, strides

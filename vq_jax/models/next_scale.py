"""A prior that predicts a pyramid of codes scale by scale (VAR, Tian et al. 2024).

All codes of a scale are predicted at once, from the coarser scales: what these decode to, reduced to the
size of the scale, is the input at each of its positions. Attention is causal between scales and sees all
positions within one. Blocks are modulated by the class (AdaLN, Peebles & Xie 2022).

Shape suffixes: B examples, L codes of an example, l of a scale, S of the sequence so far, W width,
D dimensions of a latent, K codes.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.codes import levels_of
from vq_jax.models.attention import attend
from vq_jax.models.blocks import Dtype, standardise
from vq_jax.quantizers.functions import normalise
from vq_jax.quantizers.multiscale import area_matrix, bicubic_matrix, resize

# Keys and values of the scales so far, for each layer: [B, heads, S, W / heads] each.
Cache = tuple[tuple[jax.Array, jax.Array], ...]

NEEDS_SCALES = (
    "the prior 'next_scale' needs the codes of scales: a tokenizer with the quantizer 'multiscale'"
)
_LARGEST_SCALE = math.log(100.0)  # of the logarithm of a head's scale


class NextScaleBlock(nn.Module):
    """Attention with normalised queries and keys, and a feed-forward layer, modulated by the class.

    See Tian et al. 2024, sec. 3.4, and Peebles & Xie 2022, sec. 3.2.
    """

    heads: int
    hidden: int
    dropout: float
    layers: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_BlW: jax.Array,
        label_BW: jax.Array,
        seen: jax.Array | None,
        train: bool,
        cache: tuple[jax.Array, jax.Array] | None = None,
    ):
        """Runs the block.

        Args:
          x_BlW: the tokens.
          label_BW: embeddings of the classes.
          seen: bool [l, S], True where a token sees another; None is everywhere.
          train: whether dropout is on.
          cache: keys and values of the tokens before, which these tokens see, too.

        Returns:
          the tokens after the block, and the keys and values of all tokens.
        """
        b, length, width = x_BlW.shape
        std = math.sqrt(1 / width / 3)
        init = nn.initializers.truncated_normal(std)
        out_init = nn.initializers.truncated_normal(std / math.sqrt(2 * self.layers))
        drop = nn.Dropout(self.dropout, deterministic=not train)

        def dense(features, name, kernel_init=init, use_bias=True):
            return nn.Dense(
                features, use_bias, dtype=self.dtype, kernel_init=kernel_init, name=name
            )

        modulation = nn.Dense(6 * width, kernel_init=_modulation_init(std), name="modulation")
        parts = jnp.split(modulation(nn.silu(label_BW))[:, None], 6, axis=-1)
        gate1, gate2, scale1, scale2, shift1, shift2 = (part.astype(self.dtype) for part in parts)

        normed = standardise(x_BlW, 1e-6).astype(self.dtype) * (1 + scale1) + shift1
        qkv = dense(3 * width, "qkv", use_bias=False)(normed).reshape(b, length, 3, width)
        q_bias = self.param("q_bias", nn.initializers.zeros, (width,))
        v_bias = self.param("v_bias", nn.initializers.zeros, (width,))
        q, k, v = (
            x.reshape(b, length, self.heads, -1).swapaxes(1, 2)
            for x in (qkv[:, :, 0] + q_bias, qkv[:, :, 1], qkv[:, :, 2] + v_bias)
        )
        log_scale_h = self.param("scale", nn.initializers.constant(math.log(4.0)), (self.heads,))
        scale_h = jnp.exp(jnp.minimum(log_scale_h, _LARGEST_SCALE))
        # `attend` divides the logits by the square root of a head's width.
        scale_h = scale_h * math.sqrt(width / self.heads)
        q = (normalise(q.astype(jnp.float32)) * scale_h[:, None, None]).astype(self.dtype)
        k = normalise(k.astype(jnp.float32)).astype(self.dtype)
        v = v.astype(self.dtype)
        if cache is not None:
            k, v = (jnp.concatenate(pair, axis=2) for pair in zip(cache, (k, v), strict=True))
        mixed = attend(q, k, v, seen).swapaxes(1, 2).reshape(b, length, width)
        x_BlW += gate1 * drop(dense(width, "out", out_init)(mixed))

        normed = standardise(x_BlW, 1e-6).astype(self.dtype) * (1 + scale2) + shift2
        h = nn.gelu(dense(self.hidden, "up")(normed))
        x_BlW += gate2 * drop(dense(width, "down", out_init)(h))
        return x_BlW, (k, v)


class NextScale(nn.Module):
    """Predicts the codes of each scale of a pyramid from the coarser scales and the class.

    Collection `tokenizer` has what turns codes into inputs: see `constants`.

    Attributes:
      num_codes: K.
      grids: grids of the scales, square, coarse to fine.
      latent: D.
      classes: number of classes; the label `classes` means no class.
      layers, width, heads: of the transformer.
      hidden: width of the feed-forward layers.
      dropout: rate, of the output of each layer.
      remat: whether activations are recomputed in the backward pass.
      dtype: of the computation; params, norms and logits are float32.
    """

    num_codes: int
    grids: tuple[tuple[int, int], ...]
    latent: int
    classes: int
    layers: int
    width: int
    heads: int
    hidden: int
    dropout: float
    remat: bool
    dtype: Dtype = jnp.float32

    # As `Transformer` has them.
    books = 1
    condition = ()
    causal = True
    target_aware = False
    scan = False
    radices = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of an example's codes, as the shape of its positions."""
        return (self.length,)

    @property
    def length(self) -> int:
        """L, the number of an example's codes."""
        return sum(self.sizes)

    @property
    def logits(self) -> int:
        """Number of logits of a code."""
        return self.num_codes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes of each scale."""
        return tuple(math.prod(grid) for grid in self.grids)

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first code of each scale."""
        return tuple(int(start) for start in np.cumsum((0, *self.sizes))[:-1])

    @staticmethod
    def constants(tokenizer: Any, variables: Any) -> dict[str, Any]:
        """Returns the collections besides `params`, from a tokenizer and its variables.

        Raises:
          ValueError: its quantizer has no pyramid of one sum.
        """
        if not hasattr(tokenizer.quantizer, "pyramid"):
            raise ValueError(NEEDS_SCALES)

        def pyramid(module):
            return module.quantizer.pyramid()

        return {"tokenizer": tokenizer.apply(variables, method=pyramid)}

    def setup(self):
        init = nn.initializers.truncated_normal(math.sqrt(1 / self.width / 3))
        scales, d = len(self.grids), self.latent
        shapes = {
            "entries": (self.num_codes, d),
            "kernels": (scales, 3, 3, d, d),
            "biases": (scales, d),
        }
        self.frozen = {
            name: self.variable("tokenizer", name, jnp.zeros, shape)
            for name, shape in shapes.items()
        }
        self.input_dense = nn.Dense(self.width, kernel_init=init, name="inputs")
        self.label_embedding = nn.Embed(
            self.classes + 1, self.width, embedding_init=init, name="labels"
        )
        self.start_embedding = self.param("start", init, (self.sizes[0], self.width))
        self.place_embedding = self.param("places", init, (self.length, self.width))
        self.level_embedding = self.param("levels", init, (scales, self.width))
        make = nn.remat(NextScaleBlock, static_argnums=(4,)) if self.remat else NextScaleBlock
        self.blocks = [
            make(
                heads=self.heads,
                hidden=self.hidden,
                dropout=self.dropout,
                layers=self.layers,
                dtype=self.dtype,
                name=f"block_{i}",
            )
            for i in range(self.layers)
        ]
        half = nn.initializers.truncated_normal(0.5 * math.sqrt(1 / self.width / 3))
        self.modulation_out = nn.Dense(2 * self.width, kernel_init=half)
        head_init = nn.initializers.truncated_normal(0.02 * math.sqrt(1 / self.width / 3))
        self.head = nn.Dense(self.num_codes, kernel_init=head_init, dtype=self.dtype)

    # --- from codes to inputs ---

    def empty_sum(self, batch: int) -> jax.Array:
        """The sum of no scales, float32 [B, H, H, D]."""
        side = self.grids[-1][0]
        return jnp.zeros((batch, side, side, self.latent))

    def add_scale(self, i: int, codes_Bl: jax.Array, sum_BHHD: jax.Array) -> jax.Array:
        """Adds what the codes of scale i decode to; see `MultiscaleQuantizer`."""
        side, whole = self.grids[i][0], self.grids[-1][0]
        entries_KD, kernels, biases = (
            jnp.asarray(self.frozen[name].value) for name in ("entries", "kernels", "biases")
        )
        coarse = entries_KD[codes_Bl].reshape(len(codes_Bl), side, side, self.latent)
        enlarged = resize(coarse, bicubic_matrix(side, whole))
        convolved = jax.lax.conv_general_dilated(
            enlarged, kernels[i], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )  # fmt: skip
        return sum_BHHD + convolved + biases[i]

    def input_of(self, i: int, sum_BHHD: jax.Array) -> jax.Array:
        """The input of scale i, from the sum of the coarser ones: float32 [B, l, D]."""
        reduced = resize(sum_BHHD, area_matrix(self.grids[-1][0], self.grids[i][0]))
        return reduced.reshape(len(reduced), -1, self.latent)

    def inputs_of(self, codes_BL: jax.Array) -> jax.Array:
        """The inputs of all scales but the first, float32 [B, L - l, D], from their codes."""
        total, inputs = self.empty_sum(len(codes_BL)), []
        for i in range(len(self.grids) - 1):
            start = self.starts[i]
            total = self.add_scale(i, codes_BL[:, start : start + self.sizes[i]], total)
            inputs.append(self.input_of(i + 1, total))
        return jnp.concatenate(inputs, axis=1)

    # --- from inputs to logits ---

    def _begin(self, label_BW: jax.Array) -> jax.Array:
        """The tokens of the first scale, without position and level."""
        return label_BW[:, None] + self.start_embedding

    def _places(self) -> jax.Array:
        """Embeddings of position and level, [L, W]."""
        return self.place_embedding + self.level_embedding[levels_of(self.grids)]

    def _logits(self, x_BlW: jax.Array, label_BW: jax.Array) -> jax.Array:
        scale, shift = jnp.split(self.modulation_out(nn.silu(label_BW))[:, None], 2, axis=-1)
        h = standardise(x_BlW, 1e-6) * (1 + scale) + shift
        return self.head(h).astype(jnp.float32)

    def __call__(
        self,
        codes_BL: jax.Array,
        label_B: jax.Array,
        condition_BM: jax.Array | None = None,
        order_BP: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Computes the logits of every code, which depend on the codes of coarser scales.

        Args:
          codes_BL: int32.
          label_B: int32 in [0, classes]; `classes` means no class.
          condition_BM, order_BP: None, as this prior has no condition and one order.
          train: whether dropout is on, with the rng "dropout".

        Returns:
          float32 [B, L, K].
        """
        del condition_BM, order_BP
        label_BW = self.label_embedding(label_B)
        x = self._begin(label_BW)
        if len(self.grids) > 1:
            x = jnp.concatenate([x, self.input_dense(self.inputs_of(codes_BL))], axis=1)
        x = (x + self._places()).astype(self.dtype)
        levels = levels_of(self.grids)
        seen = jnp.asarray(levels[:, None] >= levels[None, :])
        for block in self.blocks:
            x, _ = block(x, label_BW, seen, train)
        return self._logits(x, label_BW)

    def scale_logits(
        self, i: int, sum_BHHD: jax.Array, label_B: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache]:
        """Computes the logits of one scale.

        Args:
          i: the scale.
          sum_BHHD: what the coarser scales decode to; see `add_scale`.
          label_B: as for `__call__`.
          cache: of the coarser scales; None for the first.

        Returns:
          float32 [B, l, K], and the cache with this scale.
        """
        label_BW = self.label_embedding(label_B)
        if i == 0:
            x = self._begin(label_BW)
        else:
            x = self.input_dense(self.input_of(i, sum_BHHD))
        start = self.starts[i]
        x = (x + self._places()[start : start + self.sizes[i]]).astype(self.dtype)
        kept = []
        for n, block in enumerate(self.blocks):
            x, of_layer = block(x, label_BW, None, False, None if cache is None else cache[n])
            kept.append(of_layer)
        return self._logits(x, label_BW), tuple(kept)


def _modulation_init(std: float):
    """Kernel of a block's modulation: small gates, so that a block starts close to the identity."""

    def init(key, shape, dtype=jnp.float32):
        kernel = nn.initializers.truncated_normal(std)(key, shape, dtype)
        width = shape[1] // 6
        factor = np.concatenate([np.full(2 * width, 1e-5), np.full(4 * width, 0.5)])
        return kernel * factor.astype(np.float32)

    return init

"""Priors over codes: one transformer, read causally, in any order, or with all tokens visible.

A position's Q codes are Q consecutive tokens, so an example is a sequence of N = P * Q tokens, and
token n is the code of book n % Q at position n // Q. Before them come the class token and, if the
prior has a condition, the codes of the condition (of a small or damaged image).

Shape suffixes: B examples, N tokens of an example, M of a condition, S of the whole sequence, D width,
K codes of a book.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.codes import levels_of
from vq_jax.models.attention import grid_coordinates, rotary_angles
from vq_jax.models.blocks import ACTIVATIONS, NORMS, Block, Dtype, normal
from vq_jax.models.ngrams import NgramEmbedding, codes_before
from vq_jax.sampling import digit_logits, digits_of

# Keys and values of the tokens so far, for each layer: [B, heads, S, width / heads] each. With n-grams,
# the last element has the codes before, int32 [B, n - 1], the newest first.
Cache = tuple[Any, ...]


class Transformer(nn.Module):
    """Predicts the codes of an example from some of them, its class and a condition.

    Attributes:
      num_codes: K.
      grid: shape of an example's positions, such as (8, 8), (64,) or (4, 8, 8).
      books: Q, number of codes a position.
      classes: number of classes; the label `classes` means no class.
      condition: shape of the condition's positions, with Q codes each, or ().
      causal: whether a token sees only earlier tokens; otherwise it sees all, some of them masked.
      target_aware: whether each token is given the position of the token it predicts (Yu et al. 2024,
        RAR, sec. 3.2), which allows any order.
      layers, width, heads: of the transformer.
      hidden: width of the feed-forward layers.
      position: "rope" (rotary embeddings of each axis) or "learned" (a vector a position).
      norm: "rms", "layer" or "bert"; the latter two add biases (see `blocks.NORMS`).
      activation: "swiglu", "gelu" or "gelu_erf".
      dropout: rate, of embeddings and of the output of each layer.
      ngrams: orders of the n-grams of codes that are embedded, too, for a causal prior (see `ngrams`).
      ngram_bits, ngram_dim: their tables have 2^ngram_bits rows of this size.
      ngram_dropout: rate, of the row of an n-gram.
      radices: numbers of values of the digits of a code, if these are predicted each, independent of each other
        given what is before (see `sampling.split_digits`); or (). A code's embedding is then the sum of
        its digits'.
      grids: of a pyramid of codes, the grids of its levels (see `CodeSpec`), or (). A level has an
        embedding, and its positions cover the same area as those of the last one.
      remat: whether activations are recomputed in the backward pass.
      scan: whether the layers are one compiled loop over stacked params.
      dtype: of the computation; params, norms and logits are float32.
    """

    num_codes: int
    grid: tuple[int, ...]
    books: int
    classes: int
    condition: tuple[int, ...]
    causal: bool
    target_aware: bool
    layers: int
    width: int
    heads: int
    hidden: int
    position: str
    norm: str
    activation: str
    dropout: float
    remat: bool
    scan: bool
    ngrams: tuple[int, ...] = ()
    ngram_bits: int = 16
    ngram_dim: int = 32
    ngram_dropout: float = 0.0
    radices: tuple[int, ...] = ()
    grids: tuple[tuple[int, ...], ...] = ()
    dtype: Dtype = jnp.float32

    @staticmethod
    def constants(tokenizer: Any, variables: Any) -> dict[str, Any]:
        """Returns the collections besides `params`, from a tokenizer and its variables: none."""
        del tokenizer, variables
        return {}

    @property
    def length(self) -> int:
        """N, number of tokens of an example."""
        return math.prod(self.grid) * self.books

    @property
    def values(self) -> int:
        """Number of embeddings of a book: of codes, or of the values of all their digits."""
        return sum(self.radices) or self.num_codes

    @property
    def logits(self) -> int:
        """Number of logits of a code."""
        return digit_logits(self.radices) or self.num_codes

    @property
    def prefix_length(self) -> int:
        """Number of tokens before the example's: the class token and the condition's."""
        return 1 + (math.prod(self.condition) * self.books if self.condition else 0)

    def setup(self):
        self.embedding = nn.Embed(
            self.books * self.values + 1, self.width, embedding_init=normal, name="codes"
        )
        self.label_embedding = nn.Embed(
            self.classes + 1, self.width, embedding_init=normal, name="labels"
        )
        positions = math.prod(self.grid)
        self.book_embedding = self.param("books", normal, (self.books, self.width))
        if levels := len(self.grids):
            self.level_embedding = self.param("levels", normal, (levels, self.width))
        if self.condition:
            self.condition_embedding = self.param("condition", normal, (self.width,))
        if self.position == "learned":
            self.place_embedding = self.param(
                "places", normal, (positions + self.prefix_length, self.width)
            )
        if self.ngrams:
            self.ngram_embedding = NgramEmbedding(
                self.ngrams, self.ngram_bits, self.ngram_dim, self.width, self.ngram_dropout,
                self.dtype, name="ngram",
            )  # fmt: skip
        if self.target_aware:
            self.target_embedding = self.param("targets", normal, (positions, self.width))
        make = partial(
            nn.remat(Block, static_argnums=(3,)) if self.remat else Block,
            heads=self.heads,
            hidden=self.hidden,
            norm=self.norm,
            activation=self.activation,
            dropout=self.dropout,
            causal=self.causal,
            out_init=nn.initializers.normal(0.02 / math.sqrt(2 * self.layers)),
            dtype=self.dtype,
        )
        if self.scan:
            self.stack = nn.scan(
                _Scanned,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=self.layers,
            )(make, name="blocks")
        else:
            self.blocks = [make(name=f"block_{i}") for i in range(self.layers)]
        self.norm_out = NORMS[self.norm](dtype=self.dtype)
        if self.norm == "bert":
            self.norm_in = NORMS[self.norm](dtype=self.dtype)
            self.dense_out = nn.Dense(self.width, kernel_init=normal, dtype=self.dtype)
            self.bias_out = self.param(
                "bias_out", nn.initializers.zeros, (self.books, self.num_codes)
            )
        else:
            self.head = self.param(
                "head", lambda key, shape: {"kernel": normal(key, shape)},
                (self.books, self.width, self.logits),
            )  # fmt: skip
        self.embedding_dropout = nn.Dropout(self.dropout)

    # --- tokens ---

    def _coordinates(self) -> np.ndarray:
        """Coordinates of all tokens along each axis, float [prefix_length + N, axes].

        A condition's grid covers the example's: equal coordinates are equal places in the example.
        """
        grids = [self.condition, self.grid] if self.condition else [self.grid]
        if self.grids:
            level = [grid_coordinates(grid, self.grids[-1]) for grid in self.grids]
            parts = [np.concatenate(level)] * len(grids)
        else:
            parts = [grid_coordinates(grid, self.grid) for grid in grids]
        label = np.full((1, parts[0].shape[1]), -1.0)
        return np.concatenate([label, *(np.repeat(p, self.books, axis=0) for p in parts)])

    def _embed(self, codes: jax.Array, book) -> jax.Array:
        """Embeds codes of the given books; -1 is a masked code."""
        masked, first = self.books * self.values, book * self.values
        if not self.radices:
            x = self.embedding(jnp.where(codes < 0, masked, first + codes))
            return x + self.book_embedding[book]
        x = jnp.zeros((*codes.shape, self.width))
        for digit, radix in zip(digits_of(codes, self.radices), self.radices, strict=True):
            x = x + self.embedding(first + digit)
            first = first + radix
        x = jnp.where((codes < 0)[..., None], self.embedding(jnp.full_like(codes, masked)), x)
        return x + self.book_embedding[book]

    def _prefix(self, label_B: jax.Array, condition_BM: jax.Array | None) -> jax.Array:
        """Embeds the class and the condition: float [B, prefix_length, D]."""
        label = self.label_embedding(label_B)[:, None]
        if self.position == "learned":
            label = label + self.place_embedding[0]
        if not self.condition:
            return label
        if condition_BM is None:
            raise ValueError("this prior needs condition_BM, the codes of its condition")
        book = jnp.arange(condition_BM.shape[1]) % self.books
        x = self._embed(condition_BM, book) + self.condition_embedding
        if self.position == "learned":
            count = math.prod(self.condition)
            x = x + jnp.repeat(self.place_embedding[1 : 1 + count], self.books, axis=0)
        return jnp.concatenate([label, x], axis=1)

    def _tokens(self, codes_BN: jax.Array, position: jax.Array, book: jax.Array) -> jax.Array:
        """Embeds codes at the given positions of the example."""
        x = self._embed(codes_BN, book)
        if self.position == "learned":
            after = self.place_embedding.shape[0] - math.prod(self.grid)
            x = x + self.place_embedding[after + position]
        if self.grids:
            x = x + self.level_embedding[jnp.asarray(levels_of(self.grids))[position]]
        return x

    def _target(self, position: jax.Array) -> jax.Array | float:
        """Embeds the position that a token predicts; 0 if the prior is not target-aware."""
        return self.target_embedding[position] if self.target_aware else 0.0

    def _before_head(self, h: jax.Array) -> jax.Array:
        """The input of the output projection, [..., D]."""
        if self.norm == "bert":
            h = ACTIVATIONS[self.activation](self.dense_out(h))
        return self.norm_out(h)

    def _head(self) -> tuple[jax.Array, jax.Array | float]:
        """The output projection: kernel [Q, D, K], and bias [Q, K] or 0."""
        if self.norm != "bert":
            return self.head["kernel"].astype(self.dtype), 0.0
        entries = self.embedding.embedding[:-1].reshape(self.books, self.num_codes, self.width)
        return entries.swapaxes(1, 2).astype(self.dtype), self.bias_out

    def _logits(self, h_BND: jax.Array) -> jax.Array:
        h = self._before_head(h_BND)
        b, n, d = h.shape
        kernel_QDK, bias_QK = self._head()
        logits = jnp.einsum(
            "bpqd,qdk->bpqk", h.reshape(b, n // self.books, self.books, d), kernel_QDK,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        return (logits + bias_QK).reshape(b, n, -1).astype(jnp.float32)

    # --- whole sequences ---

    def __call__(
        self,
        codes_BN: jax.Array,
        label_B: jax.Array,
        condition_BM: jax.Array | None = None,
        order_BP: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Computes the logits of every code.

        Args:
          codes_BN: int32. Logits of a causal prior depend on the codes visited earlier, those of a
            masked prior on all codes that are not -1.
          label_B: int32 in [0, classes]; `classes` means no class.
          condition_BM: int32 codes of the condition, if the prior has one.
          order_BP: int32, each row a permutation of the positions in the order visited, for a
            target-aware prior; None is row by row.
          train: whether dropout is on, with the rng "dropout".

        Returns:
          float32 [B, N, K], logits of the codes in the order of `codes_BN`; of their digits with `radices`.
        """
        n = codes_BN.shape[1]
        book = jnp.arange(n) % self.books
        if order_BP is None:
            position = jnp.arange(n) // self.books
            visited_BN, back_BN = codes_BN, None
        else:
            if not self.target_aware:
                raise ValueError("this prior has a fixed order: order_BP must be None")
            position = jnp.repeat(order_BP, self.books, axis=1)
            index = position * self.books + book
            visited_BN = jnp.take_along_axis(codes_BN, index, axis=1)
            back_BN = jnp.argsort(index, axis=1)
        prefix = self._prefix(label_B, condition_BM)
        tokens = self._tokens(visited_BN, position, book)
        if self.ngrams:
            before = codes_before(visited_BN, self.ngram_embedding.context)
            tokens = tokens + self.ngram_embedding(visited_BN, before, train)
        x = jnp.concatenate([prefix, tokens], axis=1)
        m = prefix.shape[1]
        if self.causal:  # the token at m - 1 + n predicts token n
            x = x[:, :-1]
            target = jnp.broadcast_to(self._target(position), tokens.shape)
            x = jnp.concatenate([x[:, : m - 1], x[:, m - 1 :] + target], axis=1)
        h = self._run(x, self._angles(position, x.shape[1]), train)
        logits = self._logits(h[:, -n:])
        if back_BN is not None:
            logits = jnp.take_along_axis(logits, back_BN[..., None], axis=1)
        return logits

    def _angles(self, position: jax.Array, length: int) -> jax.Array | None:
        """Rotary angles of a sequence whose example tokens are at the given positions, or None."""
        if self.position != "rope":
            return None
        angles = jnp.asarray(rotary_angles(self._coordinates(), self.width // self.heads))
        prefix, image = angles[: self.prefix_length], angles[self.prefix_length :: self.books]
        if position.ndim == 1:
            return jnp.concatenate([prefix, image[position]])[:length]
        prefix = jnp.broadcast_to(prefix, (position.shape[0], *prefix.shape))
        return jnp.concatenate([prefix, image[position]], axis=1)[:, :length]

    def _run(self, x_BSD: jax.Array, angles: jax.Array | None, train: bool) -> jax.Array:
        if self.norm == "bert":
            x_BSD = self.norm_in(x_BSD)
        x_BSD = self.embedding_dropout(x_BSD, deterministic=not train).astype(self.dtype)
        if self.scan:
            return self.stack(x_BSD, angles, train)[0]
        for block in self.blocks:
            x_BSD, _ = block(x_BSD, angles, train)
        return x_BSD

    # --- one token after another ---

    def empty_cache(self, batch: int) -> Cache:
        """Allocates the keys and values of all tokens and layers, and the codes before."""
        tokens = self.prefix_length + self.length - 1
        shape = (batch, self.heads, tokens, self.width // self.heads)
        zeros = jnp.zeros(shape, self.dtype)
        cache: Cache = tuple((zeros, zeros) for _ in range(self.layers))
        if not self.ngrams:
            return cache
        return (*cache, jnp.full((batch, self.ngram_embedding.context), -1, jnp.int32))

    def begin(
        self,
        label_B: jax.Array,
        condition_BM: jax.Array | None,
        first_B: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Processes the prefix.

        Args:
          label_B, condition_BM: as for `__call__`.
          first_B: int32, the position visited first.
          cache: from `empty_cache`.

        Returns:
          float32 [B, K], the logits of the first code, and the updated cache.
        """
        x = self._prefix(label_B, condition_BM)
        x = x.at[:, -1].add(self._target(first_B))
        angles = self._angles(jnp.zeros((0,), jnp.int32), x.shape[1])
        return self._extend(x, angles, 0, cache, 0)

    def step(
        self,
        code_B: jax.Array,
        n: jax.Array,
        position_B: jax.Array,
        next_position_B: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Processes the n-th code visited.

        Args:
          code_B: int32, the code.
          n: int32 [], number of codes processed before; n < N - 1.
          position_B: int32, position of the code.
          next_position_B: int32, position of the next code.
          cache: keys and values of all earlier tokens.

        Returns:
          float32 [B, K], the logits of the next code, and the updated cache.
        """
        x = self._tokens(code_B[:, None], position_B[:, None], n % self.books)
        if self.ngrams:
            *layers, before_BC = cache
            x = x + self.ngram_embedding(code_B, list(before_BC.T))[:, None]
            before_BC = jnp.concatenate([code_B[:, None], before_BC[:, :-1]], axis=1)
            cache = (*layers, before_BC)
        target = self._target(next_position_B)
        x = x + (target[:, None] if isinstance(target, jax.Array) else target)
        angles = None
        if self.position == "rope":
            table = jnp.asarray(rotary_angles(self._coordinates(), self.width // self.heads))
            angles = table[self.prefix_length + position_B * self.books][:, None]
        return self._extend(x, angles, self.prefix_length + n, cache, (n + 1) % self.books)

    def _extend(self, x_BSD, angles, start, cache: Cache, book) -> tuple[jax.Array, Cache]:
        if self.scan:
            raise ValueError("sampling needs unstacked params: call `unstack` first")
        x_BSD, kept = x_BSD.astype(self.dtype), []
        if self.norm == "bert":
            x_BSD = self.norm_in(x_BSD)
        for block, of_layer in zip(self.blocks, cache, strict=False):
            x_BSD, of_layer = block(x_BSD, angles, False, of_layer, start)
            kept.append(of_layer)
        kept += cache[self.layers :]
        h_BD = self._before_head(x_BSD[:, -1])
        of = 0 if self.books == 1 else book
        kernel_QDK, bias_QK = self._head()
        logits = jnp.dot(h_BD, kernel_QDK[of], preferred_element_type=jnp.float32)
        return logits if isinstance(bias_QK, float) else logits + bias_QK[of], tuple(kept)


class _Scanned(nn.Module):
    """A block with the signature of `nn.scan`: (carry, *fixed) -> (carry, None)."""

    make: Callable

    @nn.compact
    def __call__(self, x_BSD, angles, train):
        return self.make(name="block")(x_BSD, angles, train)[0], None


def init_params(module: Any, key: jax.Array) -> Any:
    """Initialises the params of a prior, float32."""
    condition = jnp.zeros((1, module.prefix_length - 1), jnp.int32) if module.condition else None
    zeros = jnp.zeros((1, module.length), jnp.int32)
    return module.init(key, zeros, zeros[:, 0], condition)["params"]


def unstack(module: Any, params: Any) -> tuple[Any, Any]:
    """Returns the same prior with one param tree for each layer, as sampling needs it.

    A loop over stacked params would copy a layer's params for every token.
    """
    if not module.scan:
        return module, params
    stacked = params["blocks"]["block"]
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    layers = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(module.layers)
    }
    return module.clone(scan=False), rest | layers


def stack(params: Any, layers: int) -> Any:
    """Inverts `unstack`, on NumPy arrays."""
    of_layers = [params[f"block_{i}"] for i in range(layers)]
    rest = {name: tree for name, tree in params.items() if not name.startswith("block_")}
    return rest | {"blocks": {"block": jax.tree.map(lambda *leaves: np.stack(leaves), *of_layers)}}

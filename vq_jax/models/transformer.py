"""Priors over codes: one transformer, read causally, in any order, or from all sides.

A position's Q codes are Q tokens one after another, so an image is a sequence of N = P * Q tokens, and
token n is the code of book n % Q at position n // Q. Before them stand the class, and the codes of
a condition (a small or a damaged image) where there is one. Shape suffixes: B images, N tokens of an
image, M of a condition, S all of a sequence, D width, K codes of a book.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vq_jax.models.attention import attend, rotary_angles, rotate

Dtype = Any
# What a layer keeps of the tokens before: keys and values, [B, heads, S, width / heads] each.
Cache = tuple[tuple[jax.Array, jax.Array], ...]

_normal = nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang & Sennrich 2019, eq. 4)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias over the last axis, in float32 (Ba et al. 2016)."""

    dtype: Dtype = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


# "bert" is LayerNorm after each addition instead of before each layer, and once on the embeddings; the
# logits then come of another dense layer and are tied to the embeddings (Devlin et al. 2018; MaskGIT).
NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "bert": partial(LayerNorm, epsilon=1e-12),
}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": nn.gelu,  # by tanh
    "gelu_erf": partial(nn.gelu, approximate=False),
}


class Block(nn.Module):
    """Attention and a feed-forward layer, each on normalised input and added to it (Radford et al. 2019).

    With the norm "bert", what comes of each addition is normalised instead (Vaswani et al. 2017).
    """

    heads: int
    hidden: int
    norm: str
    activation: str
    dropout: float
    causal: bool
    out_init: Callable
    dtype: Dtype

    def _dense(self, x_BSD: jax.Array, features: int, name: str, init: Callable = _normal):
        """A dense layer over tokens as rows: in three dimensions XLA's CPU compiler transposes the
        layer's activations by themselves, and slowly, for the kernel's gradient."""
        layer = nn.Dense(
            features, use_bias=self.norm != "rms", kernel_init=init, dtype=self.dtype, name=name
        )
        return layer(x_BSD.reshape(-1, x_BSD.shape[-1])).reshape(*x_BSD.shape[:-1], features)

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        angles: jax.Array | None,
        train: bool,
        cache: tuple[jax.Array, jax.Array] | None = None,
        start: jax.Array | int = 0,
    ):
        """Returns the tokens after the block; and the cache with theirs, written from `start` on."""
        b, s, width = x_BSD.shape
        drop = partial(nn.Dropout(self.dropout), deterministic=not train)
        after = self.norm == "bert"
        norm_attention = NORMS[self.norm](dtype=self.dtype, name="norm_attention")
        norm_feed_forward = NORMS[self.norm](dtype=self.dtype, name="norm_feed_forward")
        normed = x_BSD if after else norm_attention(x_BSD)
        qkv = self._dense(normed, 3 * width, "qkv").reshape(b, s, 3, self.heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is None:
            mixed = attend(q, k, v, jnp.tri(s, dtype=bool) if self.causal else None)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), start, axis=2)
                for kept, new in zip(cache, (k, v), strict=True)
            )
            cache = (k, v)
            seen = jnp.arange(k.shape[2])[None, :] <= start + jnp.arange(s)[:, None]
            mixed = attend(q, k, v, seen)
        mixed = mixed.swapaxes(1, 2).reshape(b, s, width)
        x_BSD += drop(self._dense(mixed, width, "out", self.out_init))

        x_BSD = norm_attention(x_BSD) if after else x_BSD
        normed = x_BSD if after else norm_feed_forward(x_BSD)
        if self.activation == "swiglu":  # Shazeer 2020
            gate, h = jnp.split(self._dense(normed, 2 * self.hidden, "up"), 2, axis=-1)
            h = nn.silu(gate) * h
        else:
            h = ACTIVATIONS[self.activation](self._dense(normed, self.hidden, "up"))
        x_BSD += drop(self._dense(h, width, "down", self.out_init))
        return norm_feed_forward(x_BSD) if after else x_BSD, cache


class Transformer(nn.Module):
    """Logits of an image's codes, given some of them, its class and a condition.

    Attributes:
      num_codes: K.
      grid: the shape of an image's positions, such as (8, 8) or (64,).
      books: Q, codes a position.
      classes: how many; the label `classes` stands for none.
      condition: the shape of the condition's positions (with as many books each), or ().
      causal: a token sees only those before it; otherwise all, and some of them are masked.
      target_aware: each token is told the position of the one it predicts (Yu et al. 2024, RAR,
        sec. 3.2), so that the order is free.
      layers, width, heads: of the transformer.
      hidden: width of the feed-forward layers.
      position: "rope", rotary embeddings of row and column, or "learned", a vector a position.
      norm: "rms", "layer" or "bert"; the latter two bring biases along (see `NORMS`).
      activation: "swiglu", "gelu" or "gelu_erf".
      dropout: of embeddings and of what each layer adds.
      remat: layers are computed again for their gradient instead of kept.
      scan: layers are one compiled loop over stacked params.
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
    dtype: Dtype = jnp.float32

    @property
    def length(self) -> int:
        """N, tokens of an image."""
        return math.prod(self.grid) * self.books

    @property
    def prefix_length(self) -> int:
        """Tokens before the image's: the class and the condition's."""
        return 1 + (math.prod(self.condition) * self.books if self.condition else 0)

    def setup(self):
        self.embedding = nn.Embed(
            self.books * self.num_codes + 1, self.width, embedding_init=_normal, name="codes"
        )
        self.label_embedding = nn.Embed(
            self.classes + 1, self.width, embedding_init=_normal, name="labels"
        )
        positions = math.prod(self.grid)
        self.book_embedding = self.param("books", _normal, (self.books, self.width))
        if self.condition:
            self.condition_embedding = self.param("condition", _normal, (self.width,))
        if self.position == "learned":
            self.place_embedding = self.param(
                "places", _normal, (positions + self.prefix_length, self.width)
            )
        if self.target_aware:
            self.target_embedding = self.param("targets", _normal, (positions, self.width))
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
            self.dense_out = nn.Dense(self.width, kernel_init=_normal, dtype=self.dtype)
            self.bias_out = self.param(
                "bias_out", nn.initializers.zeros, (self.books, self.num_codes)
            )
        else:
            self.head = self.param(
                "head", lambda key, shape: {"kernel": _normal(key, shape)},
                (self.books, self.width, self.num_codes),
            )  # fmt: skip
        self.embedding_dropout = nn.Dropout(self.dropout)

    # --- tokens ---

    def _places(self) -> np.ndarray:
        """Row and column of the prefix's and of the image's tokens, float [prefix_length + N, 2].

        A condition's grid is laid over the image's: equal places are equal places in the picture.
        """

        def of(grid):
            rows, columns = grid if len(grid) == 2 else (1, math.prod(grid))
            over = self.grid if len(self.grid) == 2 else (1, math.prod(self.grid))
            y = (np.arange(rows) + 0.5) * over[0] / rows - 0.5
            x = (np.arange(columns) + 0.5) * over[1] / columns - 0.5
            places = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
            return np.repeat(places, self.books, axis=0)

        parts = [np.full((1, 2), -1.0)]
        if self.condition:
            parts.append(of(self.condition))
        return np.concatenate([*parts, of(self.grid)])

    def _embed(self, codes: jax.Array, book) -> jax.Array:
        """Embeddings of codes of the given books; -1 is the masked code."""
        index = jnp.where(codes < 0, self.books * self.num_codes, book * self.num_codes + codes)
        return self.embedding(index) + self.book_embedding[book]

    def _prefix(self, label_B: jax.Array, condition_BM: jax.Array | None) -> jax.Array:
        """The tokens before the image's, float [B, prefix_length, D]."""
        label = self.label_embedding(label_B)[:, None]
        if self.position == "learned":
            label = label + self.place_embedding[0]
        if not self.condition:
            return label
        if condition_BM is None:
            raise ValueError("this prior needs the codes of a condition")
        book = jnp.arange(condition_BM.shape[1]) % self.books
        x = self._embed(condition_BM, book) + self.condition_embedding
        if self.position == "learned":
            count = math.prod(self.condition)
            x = x + jnp.repeat(self.place_embedding[1 : 1 + count], self.books, axis=0)
        return jnp.concatenate([label, x], axis=1)

    def _tokens(self, codes_BN: jax.Array, position: jax.Array, book: jax.Array) -> jax.Array:
        """Embeddings of codes at the given positions of the image."""
        x = self._embed(codes_BN, book)
        if self.position == "learned":
            after = self.place_embedding.shape[0] - math.prod(self.grid)
            x = x + self.place_embedding[after + position]
        return x

    def _aim(self, position: jax.Array) -> jax.Array | float:
        """What a token is told of the position it predicts."""
        return self.target_embedding[position] if self.target_aware else 0.0

    def _before_head(self, h: jax.Array) -> jax.Array:
        """What the head's kernel meets: [..., D]."""
        if self.norm == "bert":
            h = ACTIVATIONS[self.activation](self.dense_out(h))
        return self.norm_out(h)

    def _head(self) -> tuple[jax.Array, jax.Array | float]:
        """The head's kernel [Q, D, K], and its bias [Q, K] or 0."""
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
        return (logits + bias_QK).reshape(b, n, self.num_codes).astype(jnp.float32)

    # --- whole sequences ---

    def __call__(
        self,
        codes_BN: jax.Array,
        label_B: jax.Array,
        condition_BM: jax.Array | None = None,
        order_BP: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Logits of every code.

        Args:
          codes_BN: int32; a causal prior's logits of a code depend on those visited before it, a
            masked one's on all that are not -1.
          label_B: int32 in [0, classes]; `classes` is none.
          condition_BM: int32 codes of the condition, where the prior has one.
          order_BP: int32, each row a permutation: the positions in the order visited, for a prior
            that is told where it aims; None is row by row.
          train: with dropout, from the rng "dropout".

        Returns:
          float32 [B, N, K], logits of the codes by their place in `codes_BN`.
        """
        n = codes_BN.shape[1]
        book = jnp.arange(n) % self.books
        if order_BP is None:
            position = jnp.arange(n) // self.books
            visited_BN, back_BN = codes_BN, None
        else:
            if not self.target_aware:
                raise ValueError("this prior has but one order")
            position = jnp.repeat(order_BP, self.books, axis=1)
            index = position * self.books + book
            visited_BN = jnp.take_along_axis(codes_BN, index, axis=1)
            back_BN = jnp.argsort(index, axis=1)
        prefix = self._prefix(label_B, condition_BM)
        tokens = self._tokens(visited_BN, position, book)
        x = jnp.concatenate([prefix, tokens], axis=1)
        m = prefix.shape[1]
        if self.causal:  # what stands at m - 1 + n predicts token n
            x = x[:, :-1]
            aim = jnp.broadcast_to(self._aim(position), tokens.shape)
            x = jnp.concatenate([x[:, : m - 1], x[:, m - 1 :] + aim], axis=1)
        h = self._run(x, self._angles(position, x.shape[1]), train)
        logits = self._logits(h[:, -n:])
        if back_BN is not None:
            logits = jnp.take_along_axis(logits, back_BN[..., None], axis=1)
        return logits

    def _angles(self, position: jax.Array, length: int) -> jax.Array | None:
        """Rotary angles of a sequence whose image tokens stand at the given positions."""
        if self.position != "rope":
            return None
        angles = jnp.asarray(rotary_angles(self._places(), self.width // self.heads))
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
        """A cache for all tokens, each layer's keys and values allocated once."""
        tokens = self.prefix_length + self.length - 1
        shape = (batch, self.heads, tokens, self.width // self.heads)
        zeros = jnp.zeros(shape, self.dtype)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def begin(
        self,
        label_B: jax.Array,
        condition_BM: jax.Array | None,
        first_B: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Reads the prefix.

        Args:
          label_B, condition_BM: as for the whole sequence.
          first_B: int32, the position visited first.
          cache: an empty one.

        Returns:
          float32 [B, K], the logits of the first code; the cache.
        """
        x = self._prefix(label_B, condition_BM)
        x = x.at[:, -1].add(self._aim(first_B))
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
        """Reads the n-th code visited.

        Args:
          code_B: int32, the code.
          n: int32 [], how many were read before it; n < N - 1.
          position_B: int32, where it stands.
          next_position_B: int32, where the next one will.
          cache: of all before.

        Returns:
          float32 [B, K], the logits of the next code; the cache.
        """
        x = self._tokens(code_B[:, None], position_B[:, None], n % self.books)
        aim = self._aim(next_position_B)
        x = x + (aim[:, None] if isinstance(aim, jax.Array) else aim)
        angles = None
        if self.position == "rope":
            table = jnp.asarray(rotary_angles(self._places(), self.width // self.heads))
            angles = table[self.prefix_length + position_B * self.books][:, None]
        return self._extend(x, angles, self.prefix_length + n, cache, (n + 1) % self.books)

    def _extend(self, x_BSD, angles, start, cache: Cache, book) -> tuple[jax.Array, Cache]:
        if self.scan:
            raise ValueError("sample from unstacked params: see `unstack`")
        x_BSD, kept = x_BSD.astype(self.dtype), []
        if self.norm == "bert":
            x_BSD = self.norm_in(x_BSD)
        for block, of_layer in zip(self.blocks, cache, strict=True):
            x_BSD, of_layer = block(x_BSD, angles, False, of_layer, start)
            kept.append(of_layer)
        h_BD = self._before_head(x_BSD[:, -1])
        of = 0 if self.books == 1 else book
        kernel_QDK, bias_QK = self._head()
        logits = jnp.dot(h_BD, kernel_QDK[of], preferred_element_type=jnp.float32)
        return logits if isinstance(bias_QK, float) else logits + bias_QK[of], tuple(kept)


class _Scanned(nn.Module):
    """A block in the form `nn.scan` wants: (carry, *fixed) -> (carry, None)."""

    make: Callable

    @nn.compact
    def __call__(self, x_BSD, angles, train):
        return self.make(name="block")(x_BSD, angles, train)[0], None


def init_params(module: Transformer, key: jax.Array) -> Any:
    """Fresh params, float32."""
    condition = jnp.zeros((1, module.prefix_length - 1), jnp.int32) if module.condition else None
    zeros = jnp.zeros((1, module.length), jnp.int32)
    return module.init(key, zeros, zeros[:, 0], condition)["params"]


def unstack(module: Transformer, params: Any) -> tuple[Transformer, Any]:
    """The same prior with a param tree for each layer, as sampling wants it.

    A loop that slices a layer's params out of a stack would copy all of them for every token.
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
    """The inverse of `unstack`, on NumPy arrays."""
    of_layers = [params[f"block_{i}"] for i in range(layers)]
    rest = {name: tree for name, tree in params.items() if not name.startswith("block_")}
    return rest | {"blocks": {"block": jax.tree.map(lambda *leaves: np.stack(leaves), *of_layers)}}


# --- the table ------------------------------------------------------------------------------------


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
    layers: int = 8,
    width: int = 512,
    heads: int = 8,
    hidden: int = 0,
    position: str = "rope",
    norm: str = "rms",
    activation: str = "swiglu",
    dropout: float = 0.1,
    remat: bool = False,
    scan: bool = False,
) -> Transformer:
    """A `Transformer`, its fields checked; `hidden` 0 is four times the width, or as many params.

    Raises:
      ValueError: a field's value cannot be.
    """
    for name, value, known in (
        ("position", position, ("rope", "learned")),
        ("norm", norm, tuple(NORMS)),
        ("activation", activation, ("swiglu", *ACTIVATIONS)),
    ):
        if value not in known:
            raise ValueError(f"prior.{name} is {value!r}: use one of {', '.join(known)}")
    if width % heads or width // heads % 4:
        raise ValueError(f"prior.width {width} must be a multiple of 4 * prior.heads, {4 * heads}")
    if not hidden:
        hidden = -(-8 * width // 3 // 32) * 32 if activation == "swiglu" else 4 * width
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
        dtype=dtype,
    )


# name -> function of what the tokenizer says and **config.prior to a Transformer
PRIORS: dict[str, Callable[..., Transformer]] = {
    # each code from those before it, row by row (Esser et al. 2021, eq. 9; Sun et al. 2024)
    "causal": partial(transformer, causal=True, target_aware=False),
    # masked codes from all that are not (Chang et al. 2022, MaskGIT, eq. 2)
    "masked": partial(transformer, causal=False, target_aware=False),
    # each code from those before it, whatever the order of the positions (Yu et al. 2024, RAR)
    "random_order": partial(transformer, causal=True, target_aware=True),
}

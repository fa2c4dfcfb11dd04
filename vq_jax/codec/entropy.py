"""Entropy models: how likely the codes are, and so how many bits they take."""

import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax import sampling
from vq_jax import tokenizer as tokenizers
from vq_jax.codec import bitstream, portability
from vq_jax.codec.bitstream import Decoder, Encoder
from vq_jax.codec.counts import FILE as COUNTS
from vq_jax.codes import levels_of
from vq_jax.errors import UserError
from vq_jax.models import Prior
from vq_jax.models.next_scale import NextScale
from vq_jax.prior import TrainedPrior

PORTABLE = "entropy='static'"  # the arguments for files that read on every machine
_TOTAL = 2**23  # approximate sum of the weights of a prior's code
_WINDOWS = 16  # largest number of windows in a batch of the prior
_LOGITS = 2**25  # largest number of logits of a batch
_CHUNK = 2**20  # logits that become weights at a time


class CodeModel(Protocol):
    """Writes codes int32 [*grid, levels] to an encoder, and reads them from a decoder.

    `metadata` is what the file's header keeps of the model, as many bytes as `bitstream.METADATA` says.

    Attributes:
      identity: bytes that tell models apart.
    """

    identity: bytes

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes: ...

    def take(
        self, decoder: Decoder, metadata: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray: ...

    def visit(self, inside_BN: np.ndarray, code: Callable) -> np.ndarray:
        """Visits the codes of a batch of windows, in the order that the model codes them.

        Args:
          inside_BN: bool, True for codes to visit.
          code: ((rows, tokens), weights float64 [n, K], or [K] for all) -> the codes int [n] at these
            places.

        Returns:
          int32 [B, N], 0 where nothing was visited.
        """

    def outputs_crc(self, size: int) -> bytes:
        """Returns a CRC-32 of what the model computes in batches of `size` windows; b"" if nothing."""


class Tables:
    """Codes under fixed weights, level by level.

    Attributes:
      weights: positive integers [levels, K], or None if all codes are equally likely.
      models: one for each level.
      metadata: what the header keeps of them.
    """

    def __init__(self, levels: int, num_codes: int, weights_QK: np.ndarray | None = None):
        self.metadata = b""
        self.models = [bitstream.uniform(num_codes)] * levels
        self.weights = np.ones((levels, num_codes))
        if weights_QK is not None:
            counts = np.ascontiguousarray(weights_QK - 1, "<i8")
            self.metadata = struct.pack("<I", zlib.crc32(counts.tobytes()))
            self.models = [bitstream.table(weights_K) for weights_K in weights_QK]
            self.weights = weights_QK.astype(np.float64)
        self.identity = self.metadata

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes:
        """Writes codes; returns the metadata."""
        for level in range(codes.shape[-1]):
            encoder.put(codes[..., level].reshape(-1), self.models[level])
        return self.metadata

    def take(
        self, decoder: Decoder, metadata: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray:
        """Reads codes int32 [*grid, levels].

        Raises:
          UserError: they were written under other weights.
        """
        if metadata != self.metadata:
            raise UserError(
                "this file is coded by other counts of the training codes than those in the model's "
                f"folder: copy {COUNTS} from the folder it was made with"
            )
        count = math.prod(grid)
        parts = [decoder.take(count, self.models[level]) for level in range(levels)]
        return np.stack(parts, axis=-1).reshape(*grid, levels)

    def visit(self, inside_BN: np.ndarray, code: Callable) -> np.ndarray:
        codes_BN = np.zeros(inside_BN.shape, np.int32)
        level_N = np.arange(inside_BN.shape[1]) % len(self.models)
        for level, weights_K in enumerate(self.weights):
            where = np.nonzero(inside_BN & (level_N == level))
            codes_BN[where] = code(where, weights_K)
        return codes_BN

    def outputs_crc(self, size: int) -> bytes:
        return b""


class PriorModel:
    """Codes under the probabilities of a trained prior, each given the codes before it.

    The grid is cut into windows of the size of the prior's grid, smaller at the far edges. Windows are
    coded independently. A causal prior codes a window's codes one after another. A masked prior codes
    them in groups along a Halton order, in `config.sampling.steps` steps. A next-scale prior codes scale
    by scale.

    Writing and reading run the same compiled programs on the same shapes, so they agree bit for bit on
    one kind of machine with one version of JAX. `portability` checks this before anything is read, and a
    checksum of the codes checks it afterwards.
    """

    def __init__(self, prior: TrainedPrior):
        if prior.module.condition:
            raise UserError("a prior with a condition cannot code: name one without")
        if prior.class_names and not prior.config.loss.label_dropout:
            raise UserError(
                "this prior was trained with a label for every example (loss.label_dropout=0), and "
                "files have no label: it cannot code"
            )
        self._module, self._variables = prior.module, prior.variables
        self._no_label = len(prior.class_names)
        self._steps: int = prior.config.sampling.steps
        fields = prior.config.prior.to_dict()
        # Files that are older than these fields still open.
        if not fields.get("ngrams"):
            fields = {k: v for k, v in fields.items() if not k.startswith("ngram")}
        if not fields.get("digits"):
            fields.pop("digits", None)
        description = {"prior": fields, "steps": self._steps}
        self.identity = tokenizers.digest(description, prior.params)
        self._fingerprint = self.identity[:2]
        self._begin = jax.jit(partial(_begin, prior.module))
        self._step = jax.jit(partial(_step, prior.module), donate_argnums=5)
        self._all = jax.jit(partial(_all, prior.module))
        self._checks: dict[int, bytes] = {}

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes:
        """Writes codes; returns the metadata."""
        grid, radices = codes.shape[:-1], self._module.radices
        size = self._batch(grid)
        for windows in self._batches(grid, size):
            codes_BN, inside_BN = self._tokens(windows, codes, size)

            def put_codes(where, logits_nK, codes_BN=codes_BN):
                codes_n = codes_BN[where]
                for rows in _chunks(logits_nK):
                    parts = sampling.split_digits(logits_nK[rows], radices)
                    digits = sampling.digits_of(codes_n[rows], radices)
                    for part, digit in zip(parts, digits, strict=True):
                        encoder.put_each(digit, weights(part))
                return codes_n

            self._visit_tokens(inside_BN, put_codes)
        return self._fingerprint + _checksum(codes) + portability.metadata(self.outputs_crc(size))

    def take(
        self, decoder: Decoder, metadata: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray:
        """Reads codes int32 [*grid, levels].

        Raises:
          UserError: it was another prior, or this machine computes other probabilities.
        """
        if metadata[:2] != self._fingerprint:
            raise UserError("this file is coded by another prior: name the run of that one")
        size, radices = self._batch(grid), self._module.radices
        portability.check(metadata[6:], self.outputs_crc(size), PORTABLE)
        codes = np.zeros((*grid, levels), np.int32)

        def take_codes(_, logits_nK):
            found = []
            for rows in _chunks(logits_nK):
                parts = sampling.split_digits(logits_nK[rows], radices)
                digits = [decoder.take_each(weights(part)) for part in parts]
                found.append(sampling.join_digits(digits, radices))
            return np.concatenate(found)

        for windows in self._batches(grid, size):
            _, inside_BN = self._tokens(windows, codes, size)
            taken_BN = self._visit_tokens(inside_BN, take_codes)
            for window, taken_N in zip(windows, taken_BN, strict=False):
                into = codes[window]
                fits = tuple(slice(n) for n in into.shape)
                into[...] = taken_N.reshape(*self._module.grid, levels)[fits]
        if _checksum(codes) != metadata[2:6]:
            raise UserError(
                "the codes of this file differ from those that were written: it was altered, or the "
                "prior computes other probabilities here; compress again with entropy='static'"
            )
        return codes

    def _batch(self, grid: tuple[int, ...]) -> int:
        """Number of windows in a batch, which depends on the grid alone."""
        logits = self._module.length * self._module.logits
        most = max(1, min(_WINDOWS, _LOGITS // logits))
        count = math.prod(map(len, _spans(grid, self._module.grid)))
        return min(1 << (most.bit_length() - 1), 1 << (count - 1).bit_length())

    def _batches(self, grid: tuple[int, ...], size: int) -> Iterator[list[tuple]]:
        """Yields the index expressions of a grid's windows, `size` at a time."""
        windows = itertools.product(*_spans(grid, self._module.grid))
        while batch := list(itertools.islice(windows, size)):
            yield batch

    def _tokens(
        self, windows: list[tuple], codes: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the codes of windows int32 [size, N], and bool [size, N], False outside the grid."""
        shape = (size, *self._module.grid, codes.shape[-1])
        tokens, inside = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for i, window in enumerate(windows):
            part = codes[window]
            fits: Any = (i, *(slice(n) for n in part.shape))
            tokens[fits], inside[fits] = part, True
        return tokens.reshape(size, -1), inside.reshape(size, -1)

    def visit(self, inside_BN: np.ndarray, code: Callable) -> np.ndarray:
        if self._module.radices:
            raise UserError("a prior with prior.digits cannot code without loss: use another one")

        def weigh(where, logits_nK):
            parts = [weights(logits_nK[rows]) for rows in _chunks(logits_nK)]
            return code(where, np.concatenate(parts))

        return np.where(inside_BN, self._visit_tokens(inside_BN, weigh), 0)

    def _visit_tokens(
        self, inside_BN: np.ndarray, code: Callable, most: int | None = None
    ) -> np.ndarray:
        """Visits the codes of a batch of windows in the prior's order.

        Args:
          inside_BN: bool, True for codes that are inside the grid.
          code: ((rows, tokens), logits float32 [n, K]) -> the codes int [n] at these places.
          most: largest number of calls of `code`; None visits all codes.

        Returns:
          int32 [B, N].
        """
        visit = self._in_groups
        if self._module.causal:
            by_scale = isinstance(self._module, NextScale)
            visit = self._by_scale if by_scale else self._one_by_one
        codes_BN = np.zeros(inside_BN.shape, np.int32)
        for where, logits_nK in itertools.islice(visit(inside_BN, codes_BN), most):
            if len(where[0]):
                codes_BN[where] = code(where, logits_nK)
        return codes_BN

    def _one_by_one(self, inside_BN: np.ndarray, codes_BN: np.ndarray) -> Iterator[tuple]:
        """Yields the places of the next codes and their logits; the caller sets them in `codes_BN`."""
        rows, books = np.arange(len(inside_BN)), self._module.books
        inside_BP = inside_BN[:, ::books]
        order_BP = np.broadcast_to(np.arange(inside_BP.shape[1]), inside_BP.shape)
        if self._module.target_aware:  # codes inside the grid come first
            order_BP = np.argsort(~inside_BP, axis=1, kind="stable")
        here_BP = np.take_along_axis(inside_BP, order_BP, axis=1)
        visits = int(np.flatnonzero(here_BP.any(axis=0)).max()) + 1
        label_B = jnp.full(len(rows), self._no_label, jnp.int32)
        logits_BK, cache = self._begin(self._variables, label_B, jnp.asarray(order_BP[:, 0]))
        for n in range(visits * books):
            place_B = order_BP[:, n // books]
            token_B = place_B * books + n % books
            inside_B = inside_BN[rows, token_B]
            yield (rows[inside_B], token_B[inside_B]), np.asarray(logits_BK)[inside_B]
            if n >= books:  # outside the grid, the code before is repeated
                before_B = codes_BN[rows, order_BP[:, n // books - 1] * books + n % books]
                codes_BN[rows, token_B] = np.where(inside_B, codes_BN[rows, token_B], before_B)
            if n + 1 < visits * books:
                next_B = order_BP[:, (n + 1) // books]
                logits_BK, cache = self._step(
                    self._variables, codes_BN[rows, token_B], n, place_B, next_B, cache
                )

    def _in_groups(self, inside_BN: np.ndarray, codes_BN: np.ndarray) -> Iterator[tuple]:
        """As `_one_by_one`, for a masked prior."""
        rank_N = sampling.halton_order(self._module.grid, self._module.books)
        known_BN = np.zeros(inside_BN.shape, bool)
        label_B = jnp.full(len(inside_BN), self._no_label, jnp.int32)
        count = len(rank_N)
        for t in range(self._steps):
            left = math.floor(count * math.cos(math.pi / 2 * (t + 1) / self._steps) + 1e-4)
            group_BN = inside_BN & ~known_BN & (rank_N < count - left * (t + 1 < self._steps))
            if group_BN.any():
                masked_BN = jnp.asarray(np.where(known_BN, codes_BN, -1))
                logits_BNK = np.asarray(self._all(self._variables, masked_BN, label_B))
                yield np.nonzero(group_BN), logits_BNK[group_BN]
                known_BN |= group_BN

    def _by_scale(self, inside_BN: np.ndarray, codes_BN: np.ndarray) -> Iterator[tuple]:
        """As `_one_by_one`, for a next-scale prior; logits do not depend on codes of finer scales."""
        assert isinstance(self._module, NextScale)
        label_B = jnp.full(len(inside_BN), self._no_label, jnp.int32)
        scale_N = levels_of(self._module.grids)
        for i in range(len(self._module.sizes)):
            known_BN = jnp.asarray(np.where(scale_N < i, codes_BN, 0))
            logits_BNK = np.asarray(self._all(self._variables, known_BN, label_B))
            group_BN = inside_BN & (scale_N == i)
            yield np.nonzero(group_BN), logits_BNK[group_BN]

    def outputs_crc(self, size: int) -> bytes:
        """CRC-32 of what the prior's programs compute for fixed codes, in batches of `size` windows."""
        if size not in self._checks:
            fixed = FixedSymbols()
            self._visit_tokens(np.ones((size, self._module.length), bool), fixed, most=4)
            self._checks[size] = fixed.crc()
        return self._checks[size]


class FixedSymbols:
    """Symbols that depend on their places alone, for the check of a model's outputs."""

    def __init__(self):
        self._outputs = b""

    def __call__(self, where: tuple[np.ndarray, np.ndarray], logits_nK: np.ndarray) -> np.ndarray:
        self._outputs += logits_nK.tobytes() + weights(logits_nK).tobytes()
        return (7 * where[0] + 3 * where[1]) % logits_nK.shape[1]

    def crc(self) -> bytes:
        """Returns the CRC-32 of all logits and weights that were given."""
        return struct.pack("<I", zlib.crc32(self._outputs))


def weights(logits_nK: np.ndarray) -> np.ndarray:
    """Returns positive integers proportional to softmax(logits), float64 [n, K]: floor(2^23 p) + 1."""
    p_nK = logits_nK.astype(np.float64)
    p_nK = np.exp(p_nK - p_nK.max(axis=1, keepdims=True))
    return np.floor(p_nK * (_TOTAL / p_nK.sum(axis=1, keepdims=True))) + 1.0


def _begin(module: Prior, variables, label_B, first_B):
    rows = label_B.shape[0]
    cache: Any = module.apply(variables, rows, method="empty_cache")
    return module.apply(variables, label_B, None, first_B, cache, method="begin")


def _step(module: Prior, variables, code_B, n, place_B, next_B, cache):
    return module.apply(variables, code_B, n, place_B, next_B, cache, method="step")


def _all(module: Prior, variables, codes_BN, label_B):
    return module.apply(variables, codes_BN, label_B)


def _spans(grid: tuple[int, ...], size: tuple[int, ...]) -> list[Sequence]:
    """Cuts each axis of a grid into windows of `size`; extra leading axes are cut into single indices."""
    lead = len(grid) - len(size)
    spans: list[Sequence] = [range(n) for n in grid[:lead]]
    for side, step in zip(grid[lead:], size, strict=True):
        spans.append([slice(start, start + step) for start in range(0, side, step)])
    return spans


def _chunks(logits_nK: np.ndarray) -> list[slice]:
    """Cuts rows of logits into chunks of bounded size."""
    step = max(1, _CHUNK // logits_nK.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits_nK), step)]


def _checksum(codes: np.ndarray) -> bytes:
    return struct.pack("<I", zlib.crc32(np.ascontiguousarray(codes, "<i4").tobytes()))

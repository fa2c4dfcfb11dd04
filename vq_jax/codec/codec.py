"""Compression by a trained tokenizer: what it is made for to bytes, and back.

>>> from vq_jax import codec
>>> vqz = codec.load("runs/default")
>>> data = vqz.compress(image)    # uint8 [H, W, C] -> bytes
>>> image = vqz.decompress(data)

The codes are kept exactly, the image as well as its codes tell it. `bitstream` has the format. Three
models say how likely a code is: "fixed", all alike; "static", as often as it was met in training;
"prior", as a trained prior says, window by window: smaller, and many times slower.
"""

import io
import itertools
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vq_jax import bitstream, files, sampling
from vq_jax import config as configs
from vq_jax import tokenizer as tokenizers
from vq_jax.bitstream import Decoder, Encoder, Header
from vq_jax.errors import UserError
from vq_jax.files import expanded
from vq_jax.models.transformer import Transformer
from vq_jax.prior import TrainedPrior, load_prior
from vq_jax.tiles import ImageTiles
from vq_jax.tokenizer import TrainedTokenizer

COUNTS = "code_counts.npz"  # in the tokenizer's folder
_TOTAL = 2**23  # about what the weights of a prior's code add up to
_WINDOWS = 16  # of a prior, in a batch at most
_LOGITS = 2**25  # of a batch at most
_CHUNK = 2**20  # of them, weighed at a time
_PLATFORMS = ("cpu", "gpu", "tpu")


class Medium(Protocol):
    """What is compressed: turns it into codes and back; `tiles.ImageTiles` is the one for images."""

    sizes: int
    unit: str
    suffixes: frozenset[str]
    suffix: str

    def read(self, path: Path) -> np.ndarray: ...

    def write(self, x: np.ndarray, path: Path) -> None: ...

    def shape(self, x: np.ndarray) -> tuple[int, ...]: ...

    def nbytes(self, shape: Sequence[int]) -> int: ...

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]: ...

    def encode(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def decode(
        self, all_codes: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[np.ndarray]: ...


class CodeModel(Protocol):
    """How codes int32 [*grid, levels] are written and read again."""

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes: ...

    def take(
        self, decoder: Decoder, about: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray: ...


class Tables:
    """Codes under weights that never change, level by level.

    Attributes:
      models: of each level, from `bitstream.uniform` or `bitstream.table`.
      about: what a file keeps of them.
    """

    def __init__(self, models: Sequence[bitstream.Model], about: bytes = b""):
        self.models, self.about = models, about

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes:
        """Writes codes; returns what the header tells of this model."""
        for level in range(codes.shape[-1]):
            encoder.put(codes[..., level].reshape(-1), self.models[level])
        return self.about

    def take(
        self, decoder: Decoder, about: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray:
        """Reads codes int32 [*grid, levels].

        Raises:
          UserError: they were written under other weights.
        """
        if about != self.about:
            raise UserError(
                "this file is coded by other counts of the training codes than those in the model's "
                f"folder: copy {COUNTS} there from where it was made"
            )
        count = math.prod(grid)
        parts = [decoder.take(count, self.models[level]) for level in range(levels)]
        return np.stack(parts, axis=-1).reshape(*grid, levels)


class PriorModel:
    """Codes under the probabilities of a trained prior, each given those before it.

    The grid is cut into windows of the prior's own grid, smaller ones at the far edges, and of each no
    more is seen than itself. A causal prior gives a window's codes one after another; a masked one in
    groups along a Halton order, as large as `config.sampling.steps` makes them.

    Writing and reading run the same compiled programs on the same shapes and numbers, so on one machine
    and version they agree bit for bit. Whether another agrees is seen, before anything is read, from
    what the programs answer to a fixed question, and after it from a checksum of the codes.
    """

    def __init__(self, prior: TrainedPrior):
        if prior.module.condition:
            raise UserError("a prior with a condition cannot code: name one without")
        if prior.class_names and not prior.config.loss.label_dropout:
            raise UserError(
                "this prior was trained with a label for every image (loss.label_dropout=0), and "
                "files have none: it cannot code"
            )
        self._module, self._params = prior.module, prior.params
        self._no_label = len(prior.class_names)
        self._steps: int = prior.config.sampling.steps
        about = {"prior": prior.config.prior.to_dict(), "steps": self._steps}
        self._fingerprint = tokenizers.digest(about, prior.params)[:2]
        self._begin = jax.jit(partial(_begin, prior.module))
        self._step = jax.jit(partial(_step, prior.module), donate_argnums=5)
        self._all = jax.jit(partial(_all, prior.module))
        self._answers: dict[int, bytes] = {}

    def put(self, encoder: Encoder, codes: np.ndarray) -> bytes:
        """Writes codes; returns what the header tells of this model."""
        grid = codes.shape[:-1]
        size = self._batch(grid)
        for windows in self._batches(grid, size):
            codes_BN, inside_BN = self._tokens(windows, codes, size)

            def settle(where, logits_nK, codes_BN=codes_BN):
                for rows in _chunks(logits_nK):
                    encoder.put_each(codes_BN[where][rows], weights(logits_nK[rows]))
                return codes_BN[where]

            self._walk(inside_BN, settle)
        version = bytes(min(int(n), 255) for n in jax.__version_info__[:3])
        return (
            self._fingerprint + _checksum(codes) + bytes([_platform()]) + version
            + self._answer(size)
        )  # fmt: skip

    def take(
        self, decoder: Decoder, about: bytes, grid: tuple[int, ...], levels: int
    ) -> np.ndarray:
        """Reads codes int32 [*grid, levels].

        Raises:
          UserError: it was another prior, or it does not compute here what it did there.
        """
        if about[:2] != self._fingerprint:
            raise UserError("this file is coded by another prior: name the run of that one")
        size = self._batch(grid)
        if about[10:] != self._answer(size):
            there = f"{dict(enumerate(_PLATFORMS)).get(about[6], 'another platform')}, JAX "
            there += ".".join(map(str, about[7:10]))
            here = f"{jax.default_backend()}, JAX {jax.__version__}"
            raise UserError(
                "this file is coded by the prior's probabilities, and they come out otherwise here "
                f"({here}) than where it was made ({there}): decompress it on such a machine, or "
                "compress anew with --entropy=static, which reads alike everywhere; if it is the same "
                "machine, the file was altered"
            )
        codes = np.zeros((*grid, levels), np.int32)

        def settle(_, logits_nK):
            parts = (weights(logits_nK[rows]) for rows in _chunks(logits_nK))
            return np.concatenate([decoder.take_each(part) for part in parts])

        for windows in self._batches(grid, size):
            _, inside_BN = self._tokens(windows, codes, size)
            taken_BN = self._walk(inside_BN, settle)
            for window, taken_N in zip(windows, taken_BN, strict=False):
                into = codes[window]
                fits = tuple(slice(n) for n in into.shape)
                into[...] = taken_N.reshape(*self._module.grid, levels)[fits]
        if _checksum(codes) != about[2:6]:
            raise UserError(
                "this file's codes come out otherwise than they went in: it was altered, or the prior "
                "does not compute here what it did there; compress anew with --entropy=static"
            )
        return codes

    def _batch(self, grid: tuple[int, ...]) -> int:
        """How many windows of such a grid go at once: the same when it is written and read."""
        logits = self._module.length * self._module.num_codes
        most = max(1, min(_WINDOWS, _LOGITS // logits))
        count = math.prod(map(len, _spans(grid, self._module.grid)))
        return min(1 << (most.bit_length() - 1), 1 << (count - 1).bit_length())

    def _batches(self, grid: tuple[int, ...], size: int) -> Iterator[list[tuple]]:
        """Index expressions that cut a grid into windows, so many at a time."""
        windows = itertools.product(*_spans(grid, self._module.grid))
        while batch := list(itertools.islice(windows, size)):
            yield batch

    def _tokens(
        self, windows: list[tuple], codes: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32 [size, N], the codes of windows, and bool [size, N], which of them there are."""
        shape = (size, *self._module.grid, codes.shape[-1])
        tokens, inside = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for i, window in enumerate(windows):
            part = codes[window]
            fits: Any = (i, *(slice(n) for n in part.shape))
            tokens[fits], inside[fits] = part, True
        return tokens.reshape(size, -1), inside.reshape(size, -1)

    def _walk(self, inside_BN: np.ndarray, settle: Callable, most: int | None = None) -> np.ndarray:
        """Visits the codes of a batch of windows in the prior's order.

        Args:
          inside_BN: bool, which codes there are.
          settle: ((rows, tokens), logits float32 [n, K]) -> the codes int [n] there.
          most: how many times `settle` is called; None is until all codes are there.

        Returns:
          int32 [B, N].
        """
        walk = self._one_by_one if self._module.causal else self._in_groups
        codes_BN = np.zeros(inside_BN.shape, np.int32)
        for where, logits_nK in itertools.islice(walk(inside_BN, codes_BN), most):
            if len(where[0]):
                codes_BN[where] = settle(where, logits_nK)
        return codes_BN

    def _one_by_one(self, inside_BN: np.ndarray, codes_BN: np.ndarray) -> Iterator[tuple]:
        """Which codes are next, and their logits; they are in `codes_BN` when it goes on."""
        rows, books = np.arange(len(inside_BN)), self._module.books
        inside_BP = inside_BN[:, ::books]
        order_BP = np.broadcast_to(np.arange(inside_BP.shape[1]), inside_BP.shape)
        if self._module.target_aware:  # what is there comes first
            order_BP = np.argsort(~inside_BP, axis=1, kind="stable")
        here_BP = np.take_along_axis(inside_BP, order_BP, axis=1)
        visits = int(np.flatnonzero(here_BP.any(axis=0)).max()) + 1
        label_B = jnp.full(len(rows), self._no_label, jnp.int32)
        logits_BK, cache = self._begin(self._params, label_B, jnp.asarray(order_BP[:, 0]))
        for n in range(visits * books):
            place_B = order_BP[:, n // books]
            token_B = place_B * books + n % books
            there_B = inside_BN[rows, token_B]
            yield (rows[there_B], token_B[there_B]), np.asarray(logits_BK)[there_B]
            if n >= books:  # beyond an edge, the code before is repeated
                before_B = codes_BN[rows, order_BP[:, n // books - 1] * books + n % books]
                codes_BN[rows, token_B] = np.where(there_B, codes_BN[rows, token_B], before_B)
            if n + 1 < visits * books:
                next_B = order_BP[:, (n + 1) // books]
                logits_BK, cache = self._step(
                    self._params, codes_BN[rows, token_B], n, place_B, next_B, cache
                )

    def _in_groups(self, inside_BN: np.ndarray, codes_BN: np.ndarray) -> Iterator[tuple]:
        """As `_one_by_one`, of a masked prior."""
        rank_N = sampling.halton_order(self._module.grid, self._module.books)
        known_BN = np.zeros(inside_BN.shape, bool)
        label_B = jnp.full(len(inside_BN), self._no_label, jnp.int32)
        count = len(rank_N)
        for t in range(self._steps):
            left = math.floor(count * math.cos(math.pi / 2 * (t + 1) / self._steps) + 1e-4)
            group_BN = inside_BN & ~known_BN & (rank_N < count - left * (t + 1 < self._steps))
            if group_BN.any():
                masked_BN = jnp.asarray(np.where(known_BN, codes_BN, -1))
                logits_BNK = np.asarray(self._all(self._params, masked_BN, label_B))
                yield np.nonzero(group_BN), logits_BNK[group_BN]
                known_BN |= group_BN

    def _answer(self, size: int) -> bytes:
        """4 bytes of what the prior's programs for so many windows answer to a fixed question."""
        if size not in self._answers:
            heard = b""

            def settle(where, logits_nK):
                nonlocal heard
                heard += logits_nK.tobytes() + weights(logits_nK).tobytes()
                return (7 * where[0] + 3 * where[1]) % logits_nK.shape[1]

            self._walk(np.ones((size, self._module.length), bool), settle, most=4)
            self._answers[size] = struct.pack("<I", zlib.crc32(heard))
        return self._answers[size]


def weights(logits_nK: np.ndarray) -> np.ndarray:
    """Positive whole numbers in proportion to softmax(logits), float64 [n, K]: the floor of p times
    2^23, and one."""
    p_nK = logits_nK.astype(np.float64)
    p_nK = np.exp(p_nK - p_nK.max(axis=1, keepdims=True))
    return np.floor(p_nK * (_TOTAL / p_nK.sum(axis=1, keepdims=True))) + 1.0


def _begin(module: Transformer, params, label_B, first_B):
    rows = label_B.shape[0]
    cache: Any = module.apply({"params": params}, rows, method="empty_cache")
    return module.apply({"params": params}, label_B, None, first_B, cache, method="begin")


def _step(module: Transformer, params, code_B, n, place_B, next_B, cache):
    return module.apply({"params": params}, code_B, n, place_B, next_B, cache, method="step")


def _all(module: Transformer, params, codes_BN, label_B):
    return module.apply({"params": params}, codes_BN, label_B)


def _spans(grid: tuple[int, ...], size: tuple[int, ...]) -> list[Sequence]:
    """What cuts each dimension of a grid into windows; those in front of the size's are taken one by
    one."""
    lead = len(grid) - len(size)
    spans: list[Sequence] = [range(n) for n in grid[:lead]]
    for side, step in zip(grid[lead:], size, strict=True):
        spans.append([slice(start, start + step) for start in range(0, side, step)])
    return spans


def _chunks(logits_nK: np.ndarray) -> list[slice]:
    """Rows that are worked on at a time."""
    step = max(1, _CHUNK // logits_nK.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits_nK), step)]


def _checksum(codes: np.ndarray) -> bytes:
    return struct.pack("<I", zlib.crc32(np.ascontiguousarray(codes, "<i4").tobytes()))


def _platform() -> int:
    backend = jax.default_backend()
    return _PLATFORMS.index(backend) if backend in _PLATFORMS else 255


class Codec:
    """A tokenizer, and what is known of how likely its codes are.

    Attributes:
      tokenizer: whose codes are written.
      medium: what they are codes of.
      levels: codes a position.
      models: entropy models by name, those that there are.
    """

    def __init__(
        self,
        tokenizer: TrainedTokenizer,
        counts: np.ndarray | None = None,
        prior: TrainedPrior | None = None,
        medium: Medium | None = None,
    ):
        """`counts` are int64 [levels, num_codes], how often each code was met in training; without a
        `medium` the tokenizer is one of images."""
        self.tokenizer = tokenizer
        self.medium: Medium = medium or ImageTiles(tokenizer)
        self.levels = math.prod(tokenizer.code_shape)
        alike = bitstream.uniform(tokenizer.num_codes)
        self.models: dict[str, CodeModel] = {"fixed": Tables([alike] * self.levels)}
        if counts is not None:
            self.add_counts(counts)
        if prior is not None:
            self.models["prior"] = PriorModel(prior)

    def add_counts(self, counts: np.ndarray) -> None:
        """Makes the model "static" of counts, int64 [levels, num_codes]."""
        about = struct.pack("<I", zlib.crc32(np.ascontiguousarray(counts, "<i8").tobytes()))
        tables = [bitstream.table(counts_K + 1) for counts_K in counts]
        self.models["static"] = Tables(tables, about)

    def compress(
        self, x: np.ndarray, *, entropy: str | None = None, quality: int | None = None
    ) -> bytes:
        """The bytes of a `.vqz` file.

        Args:
          x: what the medium takes: of images, uint8 [H, W, C], of any size.
          entropy: "fixed", "static" or "prior"; None is the prior where there is one, and otherwise
            the shorter of the other two.
          quality: of a residual tokenizer, how many levels to keep, from 1; None keeps all.

        Raises:
          UserError: there are no such levels, or not what the entropy model needs.
          ValueError: x is of another shape or type.
        """
        return self.compress_all([x], entropy=entropy, quality=quality)[0]

    def compress_all(
        self, xs: Sequence[np.ndarray], *, entropy: str | None = None, quality: int | None = None
    ) -> list[bytes]:
        """`compress` of many, encoded in batches."""
        self.check(entropy, quality)
        if entropy:
            names = [entropy]
        else:
            names = ["prior"] if "prior" in self.models else list(self.models)
        results = []
        for x, codes in zip(xs, self.medium.encode(xs), strict=True):
            shape = self.medium.shape(x)
            codes = codes.reshape(*self.medium.grid(shape), self.levels)[..., :quality]
            results.append(min((self._packed(name, shape, codes) for name in names), key=len))
        return results

    def _packed(self, name: str, shape: tuple[int, ...], codes: np.ndarray) -> bytes:
        encoder = Encoder()
        about = self.models[name].put(encoder, codes)
        fingerprint = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        header = Header(fingerprint, name, shape, codes.shape[-1], about)
        return bitstream.pack(header, encoder.finish())

    @property
    def _takes_fewer(self) -> bool:
        return self.tokenizer.module.quantizer.takes_fewer_codes

    def check(self, entropy: str | None, quality: int | None) -> None:
        """Raises UserError where `compress` could not do that."""
        if entropy and entropy not in bitstream.ABOUT:
            raise UserError(f"entropy is {entropy!r}: use {', '.join(bitstream.ABOUT)}")
        if entropy and entropy not in self.models:
            raise UserError(_NEEDS[entropy])
        if quality is None or quality == self.levels:
            return
        if not self._takes_fewer:
            raise UserError(
                f"quality is {quality}: it drops levels of a residual tokenizer, and this one's codes "
                "belong together"
            )
        if not 1 <= quality <= self.levels:
            raise UserError(f"quality is {quality}: this tokenizer has levels 1 to {self.levels}")
        if entropy == "prior" or (not entropy and "prior" in self.models):
            raise UserError("a prior codes all levels: with fewer, --entropy=static")

    def decompress(self, data: bytes) -> np.ndarray:
        """What `compress` has kept, as the medium gives it: of an image, uint8 [H, W, C].

        Raises:
          UserError: it was not made with this model, or it is cut short or altered.
        """
        codes, shape = self.read(data)
        return next(self.medium.decode([codes], [shape]))

    def read(self, data: bytes) -> tuple[np.ndarray, tuple[int, ...]]:
        """The codes in a file, as `medium` takes them, and the shape they are to have.

        Raises:
          UserError: see `decompress`.
        """
        header, payload = bitstream.unpack(data)
        own = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        if header.fingerprint != own:
            raise UserError(
                f"this file was made with another model ({header.fingerprint.hex()}..., and this one "
                f"is {own.hex()}...): name the run it was made with"
            )
        levels = header.levels
        known = levels == self.levels or (levels < self.levels and self._takes_fewer)
        if len(header.shape) != self.medium.sizes or not known:
            raise UserError("this file's header does not fit its model: it was altered")
        grid = self.medium.grid(header.shape)
        bitstream.check_size(math.prod(grid) * levels, payload)
        if header.entropy not in self.models:
            raise UserError(f"this file cannot be read so: {_NEEDS[header.entropy]}")
        codes = self.models[header.entropy].take(Decoder(payload), header.about, grid, levels)
        return codes if self.tokenizer.code_shape else codes[..., 0], header.shape


_NEEDS = {
    "static": (
        f"entropy 'static' needs the counts of the training codes, {COUNTS}, in the tokenizer's folder; "
        "compress writes them where the run's data are at hand; for a file from elsewhere, copy them from "
        "there"
    ),
    "prior": "entropy 'prior' needs a prior: name the prior's run (--workdir) in place of the tokenizer's",
}


# --- counts -----------------------------------------------------------------------------------------


def count(tokenizer: TrainedTokenizer, all_codes: Iterable[np.ndarray]) -> np.ndarray:
    """How often each code occurs, int64 [levels, num_codes], in arrays of codes [..., *code_shape]."""
    levels = math.prod(tokenizer.code_shape)
    counts = np.zeros((levels, tokenizer.num_codes), np.int64)
    for codes in all_codes:
        for level, codes_N in enumerate(np.asarray(codes).reshape(-1, levels).T):
            counts[level] += np.bincount(codes_N, minlength=tokenizer.num_codes)
    return counts


def save_counts(folder: Path, tokenizer: TrainedTokenizer, counts: np.ndarray) -> None:
    """Puts counts into the tokenizer's folder."""
    fingerprint = np.frombuffer(tokenizer.fingerprint, np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, counts=counts, fingerprint=fingerprint)
    files.write(file.getvalue(), folder / COUNTS)


def read_counts(folder: Path, tokenizer: TrainedTokenizer) -> np.ndarray | None:
    """The counts in the tokenizer's folder; None where there are none, or those of other codes.

    Raises:
      UserError: the file cannot be read.
    """
    path = folder / COUNTS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            counts, fingerprint = found["counts"], found["fingerprint"].tobytes()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}): remove it, and compress counts anew") from e
    shape = (math.prod(tokenizer.code_shape), tokenizer.num_codes)
    if counts.dtype != np.int64 or (counts < 0).any():
        raise UserError(f"{path} holds no counts: remove it, and compress counts anew")
    if counts.shape != shape or fingerprint != tokenizer.fingerprint:
        return None
    return counts


def load(workdir: str | Path, tokenizer: str | Path | None = None) -> Codec:
    """Opens the codec of a run.

    Args:
      workdir: a tokenizer's run; or a prior's, whose tokenizer then codes by that prior.
      tokenizer: the tokenizer's run, where it is elsewhere than the prior's config says.

    Raises:
      UserError: there is no run, or it cannot be opened.
    """
    folder = expanded(workdir)
    if not configs.holds_prior(folder):
        if tokenizer:
            raise UserError(f"{folder} holds a tokenizer: another one beside it has no use")
        opened = tokenizers.load(folder)
        return Codec(opened, read_counts(folder, opened))
    prior = load_prior(folder, tokenizer)
    return Codec(
        prior.tokenizer, read_counts(tokenizer_folder(folder, tokenizer), prior.tokenizer), prior
    )


def tokenizer_folder(workdir: str | Path, tokenizer: str | Path | None = None) -> Path:
    """Where `load` takes the tokenizer from, and its counts."""
    folder = expanded(workdir)
    if not configs.holds_prior(folder):
        return folder
    return expanded(tokenizer or configs.load(folder / "config.json").tokenizer)

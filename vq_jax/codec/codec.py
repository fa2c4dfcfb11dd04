"""Compresses images, and other examples, to bytes with a trained tokenizer.

>>> from vq_jax import codec
>>> vqz = codec.load("runs/default")
>>> data = vqz.compress(image)    # uint8 [H, W, C] -> bytes
>>> image = vqz.decompress(data)

The codes are kept exactly. See `bitstream` for the format. Three entropy models tell how likely a code
is: "fixed" (all codes equally), "static" (by counts of the training codes) and "prior" (by a trained prior,
window by window: the smallest files, and many times slower).
"""

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vq_jax import config as configs
from vq_jax import runs
from vq_jax.codec import bitstream, counts
from vq_jax.codec.bitstream import Decoder, Encoder, Header
from vq_jax.codec.entropy import CodeModel, PriorModel, Tables
from vq_jax.codec.tilers import Tiler, make_tiler
from vq_jax.errors import UserError
from vq_jax.prior import TrainedPrior
from vq_jax.tokenizer import TrainedTokenizer


class Codec:
    """A tokenizer with entropy models of its codes.

    Attributes:
      tokenizer: the tokenizer whose codes are written.
      tiler: turns examples of any size into codes and back.
      levels: number of codes a position.
      models: the available entropy models by name.
    """

    def __init__(
        self,
        tokenizer: TrainedTokenizer,
        code_counts: np.ndarray | None = None,
        prior: TrainedPrior | None = None,
    ):
        """Makes a codec.

        Args:
          tokenizer: the tokenizer.
          code_counts: int64 [levels, num_codes], counts of the training codes, for "static".
          prior: a prior over the tokenizer's codes, for "prior".

        Raises:
          UserError: the prior cannot code.
        """
        self.tokenizer = tokenizer
        self.tiler: Tiler = make_tiler(tokenizer)
        self.levels = tokenizer.codes.books
        uniform = bitstream.uniform(tokenizer.codes.num_codes)
        self.models: dict[str, CodeModel] = {"fixed": Tables([uniform] * self.levels)}
        if code_counts is not None:
            self.add_counts(code_counts)
        if prior is not None:
            self.models["prior"] = PriorModel(prior)

    def add_counts(self, code_counts: np.ndarray) -> None:
        """Adds the model "static", from counts int64 [levels, num_codes]."""
        crc = struct.pack("<I", zlib.crc32(np.ascontiguousarray(code_counts, "<i8").tobytes()))
        tables = [bitstream.table(counts_K + 1) for counts_K in code_counts]
        self.models["static"] = Tables(tables, crc)

    def compress(
        self, x: np.ndarray, *, entropy: str | None = None, quality: int | None = None
    ) -> bytes:
        """Compresses an example to the bytes of a `.vqz` file.

        Args:
          x: a raw example as the tiler takes it: an image uint8 [H, W, C], of any size.
          entropy: "fixed", "static" or "prior". None is the prior if there is one, and otherwise the
            shorter of the other two.
          quality: number of levels of a residual tokenizer to keep, from 1; None keeps all.

        Raises:
          UserError: the entropy model is not available, or the tokenizer has no such levels.
          ValueError: x has another shape or type.
        """
        return self.compress_all([x], entropy=entropy, quality=quality)[0]

    def compress_all(
        self, xs: Sequence[np.ndarray], *, entropy: str | None = None, quality: int | None = None
    ) -> list[bytes]:
        """Compresses many examples, encoded in batches."""
        self.check(entropy, quality)
        if entropy:
            names = [entropy]
        else:
            names = ["prior"] if "prior" in self.models else list(self.models)
        results = []
        for x, codes in zip(xs, self.tiler.encode(xs), strict=True):
            shape = self.tiler.shape(x)
            codes = codes.reshape(*self.tiler.grid(shape), self.levels)[..., :quality]
            results.append(min((self._packed(name, shape, codes) for name in names), key=len))
        return results

    def _packed(self, name: str, shape: tuple[int, ...], codes: np.ndarray) -> bytes:
        encoder = Encoder()
        metadata = self.models[name].put(encoder, codes)
        fingerprint = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        header = Header(fingerprint, name, shape, codes.shape[-1], metadata)
        return bitstream.pack(header, encoder.finish())

    @property
    def _takes_fewer(self) -> bool:
        return self.tokenizer.module.quantizer.takes_fewer_codes

    def check(self, entropy: str | None, quality: int | None) -> None:
        """Raises UserError if `compress` cannot take these arguments."""
        if entropy and entropy not in bitstream.METADATA:
            raise UserError(f"entropy is {entropy!r}: use {', '.join(bitstream.METADATA)}")
        if entropy and entropy not in self.models:
            raise UserError(_NEEDS[entropy])
        if quality is None or quality == self.levels:
            return
        if not self._takes_fewer:
            raise UserError(
                f"quality is {quality}: only a residual tokenizer has levels that can be dropped"
            )
        if not 1 <= quality <= self.levels:
            raise UserError(f"quality is {quality}: this tokenizer has levels 1 to {self.levels}")
        if entropy == "prior" or (not entropy and "prior" in self.models):
            raise UserError("a prior codes all levels: for fewer, use entropy='static'")

    def decompress(self, data: bytes) -> np.ndarray:
        """Decompresses a file to a raw example: an image uint8 [H, W, C].

        Raises:
          UserError: the file was made with another model, or it is truncated or altered.
        """
        codes, shape = self.read(data)
        return next(self.tiler.decode([codes], [shape]))

    def read(self, data: bytes) -> tuple[np.ndarray, tuple[int, ...]]:
        """Reads the codes of a file, as the tiler takes them, and the shape of the example.

        Raises:
          UserError: see `decompress`.
        """
        header, payload = bitstream.unpack(data)
        own = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        if header.fingerprint != own:
            raise UserError(
                f"this file was made with another model (fingerprint {header.fingerprint.hex()}..., this "
                f"one's is {own.hex()}...): name the run it was made with"
            )
        levels = header.levels
        known = levels == self.levels or (levels < self.levels and self._takes_fewer)
        if len(header.shape) != self.tiler.sizes or not known:
            raise UserError("the header of this file does not fit its model: it was altered")
        grid = self.tiler.grid(header.shape)
        bitstream.check_size(math.prod(grid) * levels, payload)
        if header.entropy not in self.models:
            raise UserError(f"this file cannot be read: {_NEEDS[header.entropy]}")
        codes = self.models[header.entropy].take(Decoder(payload), header.metadata, grid, levels)
        return codes if self.tokenizer.codes.code_shape else codes[..., 0], header.shape


_NEEDS = {
    "static": (
        f"entropy 'static' needs the counts of the training codes, {counts.FILE}, in the tokenizer's "
        "folder; compress writes them if the training data are available; for a file made elsewhere, copy "
        "them from there"
    ),
    "prior": "entropy 'prior' needs a prior: name the prior's run in place of the tokenizer's",
}


def load(name_or_path: str | Path, tokenizer: str | Path | None = None) -> Codec:
    """Opens the codec of a run.

    Args:
      name_or_path: a tokenizer's run, or a prior's, which then codes the codes of its tokenizer.
      tokenizer: the tokenizer's run, if it is not the one in the prior's config.

    Raises:
      UserError: there is no such run, or it cannot be opened.
    """
    folder = runs.find(name_or_path)
    of_tokenizer = runs.tokenizer_folder(folder, tokenizer)
    if configs.kind_of_run(folder) == "tokenizer":
        if tokenizer:
            raise UserError(f"{folder} holds a tokenizer: leave the argument tokenizer out")
        opened = runs.load_tokenizer(folder)
        return Codec(opened, counts.read(of_tokenizer, opened))
    prior = runs.load_prior(folder, tokenizer)
    return Codec(prior.tokenizer, counts.read(of_tokenizer, prior.tokenizer), prior)

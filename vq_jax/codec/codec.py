"""Compresses images, and other examples, to bytes with a trained tokenizer.

>>> from vq_jax import codec
>>> vqz = codec.load("runs/default")
>>> data = vqz.compress(image)    # uint8 [H, W, C] -> bytes
>>> image = vqz.decompress(data)

The codes are kept exactly. A text, whose decoder gives the probabilities of bytes, is kept without loss (see
`lossless`), unless `lossy=True`. See `bitstream` for the format. Four entropy models tell how likely a code
is: "fixed" (all codes equally), "static" (by counts of the training codes), "prior" (by a trained prior,
window by window: the smallest files, and many times slower) and "context" (by a small network of the tokenizer
itself, see `context`).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vq_jax import config as configs
from vq_jax import runs
from vq_jax.codec import bitstream, counts
from vq_jax.codec.bitstream import Decoder, Encoder, Header
from vq_jax.codec.context import ContextModel
from vq_jax.codec.entropy import PORTABLE, CodeModel, PriorModel, Tables
from vq_jax.codec.image_tiler import ImageTiler
from vq_jax.codec.lossless import PORTABLE_TEXT, Lossless
from vq_jax.codec.text_tiler import TextTiler
from vq_jax.codec.tilers import Tiler, make_tiler
from vq_jax.errors import UserError
from vq_jax.files import shipped
from vq_jax.prior import TrainedPrior
from vq_jax.quantizers.integer import IntegerQuantizer
from vq_jax.tokenizer import TrainedTokenizer

_QUALITY = 50  # by default, of 1 to 100


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
      shape: the sizes of the example.
      codes: its codes, as the tiler takes them, or None.
      x: the raw example, if it was kept without loss.
      quality: 1 to 100, of a model that takes it.
      damaged: places in the codes that could not be read, and are filled with those of 0.
    """

    shape: tuple[int, ...]
    codes: np.ndarray | None = None
    x: np.ndarray | None = None
    quality: int = 0
    damaged: tuple[tuple[slice, ...], ...] = ()


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
        fixed = Tables(self.levels, tokenizer.codes.num_codes)
        self.models: dict[str, CodeModel] = {"fixed": fixed}
        if code_counts is not None:
            self.add_counts(code_counts)
        if prior is not None:
            self.models["prior"] = PriorModel(prior)
        integers = isinstance(tokenizer.module.quantizer, IntegerQuantizer)
        self._context: ContextModel | None = None
        if isinstance(self.tiler, ImageTiler) and integers and tokenizer.module.takes_quality:
            self._context = ContextModel(tokenizer, self.tiler)
        self._lossless: Lossless | None = None
        if isinstance(self.tiler, TextTiler):
            self._lossless = Lossless(self.tiler, self.models)

    def add_counts(self, code_counts: np.ndarray) -> None:
        """Adds the model "static", from counts int64 [levels, num_codes]."""
        self.models["static"] = Tables(self.levels, code_counts.shape[1], code_counts + 1)

    def compress(
        self,
        x: Any,
        *,
        entropy: str | None = None,
        quality: int | None = None,
        lossy: bool = False,
        effort: int = 1,
    ) -> bytes:
        """Compresses an example to the bytes of a `.vqz` file.

        Args:
          x: a raw example as the tiler takes it: an image uint8 [H, W, C], of any size; a clip uint8
            [T, H, W, C] or a `data.video.Clip`; a text uint8 [N] or bytes.
          entropy: "fixed", "static", "prior" or "context". None is the context or the prior if there is one,
            and otherwise the shorter of the other two.
          quality: number of levels of a residual tokenizer to keep, from 1; None keeps all. Of a tokenizer
            with the entropy model "context", 1 to 100; None is 50.
          lossy: whether only the codes of a text are kept; of other examples, they always are.
          effort: 0 or 1, see `context.ContextModel.compress`.

        Raises:
          UserError: the entropy model is not available, or the tokenizer has no such levels.
          ValueError: x has another shape or type.
        """
        x = np.frombuffer(x, np.uint8) if isinstance(x, bytes) else x
        return self.compress_all([x], entropy=entropy, quality=quality, lossy=lossy, effort=effort)[
            0
        ]

    def compress_all(
        self,
        xs: Sequence[Any],
        *,
        entropy: str | None = None,
        quality: int | None = None,
        lossy: bool = False,
        effort: int = 1,
    ) -> list[bytes]:
        """Compresses many examples, encoded in batches."""
        self.check(entropy, quality, lossy, effort)
        if self._context is not None:
            return [self._packed_in_context(self._context, x, quality, effort) for x in xs]
        if self._lossless is not None and not lossy:
            names = [entropy] if entropy else list(self.models)
            return [self._packed_lossless(self._lossless, x, names) for x in xs]
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

    def _packed_in_context(
        self, model: ContextModel, x: Any, quality: int | None, effort: int
    ) -> bytes:
        return bitstream.pack(*model.compress(x, quality or _QUALITY, effort))

    def _packed_lossless(self, coder: Lossless, x: np.ndarray, names: list[str]) -> bytes:
        """The shorter of the coded and the stored text."""
        encoder, shape = Encoder(), self.tiler.shape(x)
        fingerprint = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        metadata = coder.put(encoder, x, names)
        coded = Header(fingerprint, "lossless", shape, self.levels, metadata)
        stored = Header(fingerprint, "stored", shape, self.levels)
        packed = bitstream.pack(coded, encoder.finish()), bitstream.pack(stored, x.tobytes())
        return min(packed, key=len)

    @property
    def has_context(self) -> bool:
        """Whether codes can be coded by the entropy model "context"."""
        return self._context is not None

    def describe(self, content: Content) -> str:
        """Names the pixels that are damaged."""
        assert isinstance(self.tiler, ImageTiler)
        return self.tiler.describe(content.damaged, content.shape)

    @property
    def _takes_fewer(self) -> bool:
        return self.tokenizer.module.quantizer.takes_fewer_codes

    def check(
        self, entropy: str | None, quality: int | None, lossy: bool = False, effort: int = 1
    ) -> None:
        """Raises UserError if `compress` cannot take these arguments."""
        if effort not in (0, 1):
            raise UserError(f"effort is {effort}: use 0 or 1")
        known = (*bitstream.CODE_MODELS, "context")
        if entropy and entropy not in known:
            raise UserError(f"entropy is {entropy!r}: use {', '.join(known)}")
        if self._context is not None:
            if entropy not in (None, "context"):
                raise UserError(f"entropy is {entropy!r}: the codes of this model take 'context'")
            if quality is not None and not 1 <= quality <= 100:
                raise UserError(f"quality is {quality}: use 1 to 100")
            return
        if effort != 1:
            raise UserError(f"effort is {effort}: only the entropy model 'context' has a search")
        if entropy and entropy not in self.models:
            raise UserError(bitstream.NEEDS[entropy])
        if quality is None or quality == self.levels:
            return
        if self._lossless is not None and not lossy:
            raise UserError(
                f"quality is {quality}: a text without loss needs all levels: give lossy"
            )
        if not self._takes_fewer:
            raise UserError(
                f"quality is {quality}: only a residual tokenizer has levels that can be dropped"
            )
        if not 1 <= quality <= self.levels:
            raise UserError(f"quality is {quality}: this tokenizer has levels 1 to {self.levels}")
        if entropy == "prior" or (not entropy and "prior" in self.models):
            raise UserError("a prior codes all levels: for fewer, use entropy='static'")

    def portable_instead(self, entropy: str | None, lossy: bool) -> str | None:
        """Returns the arguments for files that read on every machine; None if these already do."""
        if self._lossless is not None and not lossy:
            return PORTABLE_TEXT
        return PORTABLE if "prior" in self.models and entropy in (None, "prior") else None

    def decompress(self, data: bytes) -> Any:
        """Decompresses a file to a raw example: an image uint8 [H, W, C], or a clip whose frames are decoded
        when they are read.

        Raises:
          UserError: the file was made with another model, or it is truncated or altered.
        """
        return next(self.decode([self.open(data)]))

    def decode(self, contents: Sequence[Content]) -> Iterator[Any]:
        """Turns what `open` returns into raw examples, decoded in batches."""
        if self._context is not None:
            for one in contents:
                assert one.codes is not None
                yield self._context.decode(one.codes, one.shape, one.quality)
            return
        codes = [one.codes for one in contents if one.codes is not None]
        decoded = self.tiler.decode(codes, [one.shape for one in contents if one.codes is not None])
        for one in contents:
            yield next(decoded) if one.x is None else one.x

    def read(self, data: bytes) -> tuple[np.ndarray, tuple[int, ...]]:
        """Reads the codes of a file, as the tiler takes them, and the shape of the example.

        Raises:
          UserError: see `decompress`; or the file is a text without loss.
        """
        content = self.open(data)
        if content.codes is None:
            raise UserError("this file has a text without loss: decompress it")
        return content.codes, content.shape

    def open(self, data: bytes, salvage: bool = False) -> Content:
        """Reads a file: its codes, as the tiler takes them, or a text that was kept without loss.

        Args:
          data: the bytes of the file.
          salvage: whether damaged tiles of a file coded by "context" are left out.

        Raises:
          UserError: see `decompress`.
        """
        header, payload = bitstream.unpack(data, salvage)
        own = self.tokenizer.fingerprint[: bitstream.FINGERPRINT]
        if header.fingerprint != own:
            made_with = _that_ships(header.fingerprint)
            raise UserError(
                f"this file was made with {made_with}: name it"
                if made_with
                else f"this file was made with another model (fingerprint {header.fingerprint.hex()}..., this "
                f"one's is {own.hex()}...): name the run it was made with"
            )
        levels = header.levels
        known = levels == self.levels or (levels < self.levels and self._takes_fewer)
        fits = len(header.shape) == self.tiler.sizes and min(header.shape) >= self.tiler.least
        if not fits or not known:
            raise UserError("the header of this file does not fit its model: it was altered")
        if header.entropy == "context":
            return self._read_context(header, payload, salvage)
        if header.entropy not in bitstream.CODE_MODELS:
            return self._read_text(header, payload)
        grid = self.tiler.grid(header.shape)
        bitstream.check_size(math.prod(grid) * levels, payload)
        if header.entropy not in self.models:
            raise UserError(f"this file cannot be read: {bitstream.NEEDS[header.entropy]}")
        codes = self.models[header.entropy].take(Decoder(payload), header.metadata, grid, levels)
        codes = codes if self.tokenizer.codes.code_shape else codes[..., 0]
        return Content(header.shape, codes=codes)

    def _read_context(self, header: Header, payload: bytes, salvage: bool) -> Content:
        if self._context is None:
            raise UserError("the header of this file does not fit its model: it was altered")
        codes, quality, damaged = self._context.read(payload, header, salvage)
        return Content(header.shape, codes, quality=quality, damaged=tuple(damaged))

    def _read_text(self, header: Header, payload: bytes) -> Content:
        (length,) = header.shape
        if self._lossless is None or (header.entropy == "stored" and len(payload) != length):
            raise UserError("the header of this file does not fit its model: it was altered")
        if header.entropy == "stored":
            return Content(header.shape, x=np.frombuffer(payload, np.uint8))
        bitstream.check_size(math.prod(self.tiler.grid(header.shape)) * self.levels, payload)
        x = self._lossless.take(Decoder(payload), header.metadata, length)
        return Content(header.shape, x=x)


def _that_ships(fingerprint: bytes) -> str | None:
    """Returns the name of the tokenizer that ships and has this fingerprint, or None."""
    for folder in shipped():
        if configs.kind_of_run(folder) != "tokenizer":
            continue
        if runs.load_tokenizer(folder).fingerprint.startswith(fingerprint):
            return folder.name
    return None


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

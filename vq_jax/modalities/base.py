"""The interface of a modality: everything that depends on what an example is."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from vq_jax.data.degrade import none
from vq_jax.data.sources import OpenSource
from vq_jax.errors import UserError

# (reconstruction, example) -> unreduced float32
Loss = Callable[[jax.Array, jax.Array], jax.Array]
# name of a figure -> (heading in a table, format)
Rows = Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network whose features compare sets of examples.

    Attributes:
      key: prefix of its figures, such as "fid_adm".
      heading: name of the distance in a table.
      description: how examples are prepared for it.
      digest: of its weights; "" if features are too cheap to be cached.
      features: examples [N, ...], raw or as models take them, to float32 [N, F].
      probabilities: features to class probabilities; None if the Inception score is undefined.
      note: what else a reader of its figures must know, for the protocol.
    """

    key: str
    heading: str
    description: str
    digest: str
    features: Callable[[np.ndarray], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray] | None = None
    note: str = ""


@dataclasses.dataclass
class NoFields:
    """No fields of a section of a config."""


class Modality(abc.ABC):
    """A kind of data: the interface, with defaults for what most modalities share.

    `x` is an example as models take it, `raw` one as files and users have it.

    Attributes:
      name: in `MODALITIES` and `config.modality`.
      noun: an example in messages and figures, such as "image".
      unit: what rates are counted in: bits per `unit`.
      suffixes: of the files that `read` opens; None is every file.
      suffix: of the files that `write` makes by default.
      writes: suffixes of all files that `write` can make; None is every file.
      preview_suffix: of the files that `preview` makes.
      axes: names of the axes of an example, in messages.
      feature: name of the example among the features of a TFDS data set.
      discriminator: name of the default discriminator.
      data_fields: dataclass of the modality's fields of `config.data`.
      shape_fields: those of them that decide the shape of an example.
      kept_fields: those of them that a trained model keeps with other data.
      folder_sources: names of the sources that read `data.folder`.
      loss_fields: dataclass of its fields of `config.loss`.
      losses: reconstruction losses by name; the first is the default.
      conditions: what a prior can be given, by name: function of **config.condition to a function
        (raw, rng) -> raw, or None.
      distribution: whether a decoder's output is a distribution of examples; see `log_likelihood`.
      rows: headings of its figures, in the order of the table.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    unit: ClassVar[str]
    suffixes: ClassVar[frozenset[str] | None]
    suffix: ClassVar[str]
    writes: ClassVar[frozenset[str] | None]
    preview_suffix: ClassVar[str] = ".png"
    feature: ClassVar[str]
    discriminator: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    data_fields: ClassVar[type]
    shape_fields: ClassVar[tuple[str, ...]]
    kept_fields: ClassVar[tuple[str, ...]] = ()
    folder_sources: ClassVar[frozenset[str]] = frozenset()
    loss_fields: ClassVar[type] = NoFields
    losses: ClassVar[Mapping[str, Loss]]
    distribution: ClassVar[bool] = False
    conditions: ClassVar[Mapping[str, Callable[..., Any]]] = {"none": none}
    rows: ClassVar[Rows]

    def check(self, config: ConfigDict) -> None:  # noqa: B027 (not every modality has checks)
        """Raises UserError for values of `config` that this modality cannot use."""

    @abc.abstractmethod
    def spec(self, data: ConfigDict) -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of one example."""

    @abc.abstractmethod
    def units(self, shape: Sequence[int]) -> int:
        """Returns the number of units in an example of this shape."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of examples [B, ...] that a decoder's output of this shape stands for."""
        return shape

    # Data.

    @abc.abstractmethod
    def sources(self) -> Mapping[str, OpenSource]:
        """Returns the data sources by name, beside TFDS; the first is the default."""

    @abc.abstractmethod
    def prepare(
        self, data: ConfigDict, train: bool, condition: Callable | None = None
    ) -> Callable[..., dict[str, Any]]:
        """Returns the function (example of a source, rng) -> {"x", "label"}, and "condition" if any."""

    def variants(
        self,
        example: dict[str, Any],
        data: ConfigDict,
        seed: Sequence[int],
        flips: bool,
        crops: int,
    ) -> list[np.ndarray]:
        """Returns the forms of an example that `tokenize` encodes, each as a model takes it.

        Raises:
          UserError: the modality has no flips or crops.
        """
        if flips or crops:
            raise UserError(f"flips and crops are for images: {self.noun}s have none")
        return [self.prepare(data, train=False)(example)["x"]]

    @abc.abstractmethod
    def preparation(self, data: ConfigDict) -> str:
        """Describes how examples are prepared for evaluation."""

    # Losses and metrics.

    def perceptual(self, config: ConfigDict, folder: Path | None = None) -> Loss | None:
        """Returns the perceptual loss (a, b) -> [B] that training uses, or None.

        Args:
          config: of the tokenizer that is trained.
          folder: the run or import that training starts from, which may have weights for the loss.
        """
        return None

    @abc.abstractmethod
    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
        """Returns the function (x, y) -> per-example values [B] or [B, ...].

        y is a decoder's output, or examples.
        """

    @abc.abstractmethod
    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
        """Turns the means of `metrics` over a split into figures."""

    def log_likelihood(self, output: Any, x: Any, counted: Any = True) -> jax.Array:
        """Returns the log-probability in nats of examples under a decoder's output, float32 [B].

        Args:
          output: of the decoder.
          x: the examples.
          counted: bool of the shape of `x`, the elements to count; or True for all.
        """
        raise TypeError(f"the decoders of {self.noun}s give no distribution")

    def code_figures(self, codes: np.ndarray) -> dict[str, float]:
        """Returns figures of the codes int [N, *grid, *code_shape] of a whole split."""
        return {}

    def networks(self, inception: str = "", protocol: str = "adm") -> list[Network]:
        """Returns the networks that compare sets of examples, the one for samples last.

        Args:
          inception: file of FID's Inception weights, "download", or "" to leave FID out; of clips, file of the
        I3D weights of FVD.
          protocol: how FID prepares images.

        Raises:
          UserError: FID is asked for and cannot be computed.
        """
        if inception:
            raise UserError(f"inception is for FID of images: {self.noun}s have none")
        return []

    # Examples, raw and as models take them.

    def problem(self, x: jax.Array) -> str | None:
        """Returns what is wrong with the values of examples of the right shape and type, or None."""
        return None

    def output(self, y: Any) -> Any:
        """Brings a decoder's output into the range of examples."""
        return y

    @abc.abstractmethod
    def to_raw(self, x: Any) -> np.ndarray:
        """Turns examples, or a decoder's output, into raw ones."""

    @abc.abstractmethod
    def from_raw(self, raw: np.ndarray) -> np.ndarray:
        """Turns raw examples into those that models take."""

    def like(self, condition: Any, x: Any) -> np.ndarray:
        """Brings a condition to the shape of the examples it was made from."""
        return np.asarray(condition)

    # Files.

    def is_one(self, path: Path) -> bool:
        """Returns whether a path is one example, which `read` opens, and not a folder of examples."""
        return path.is_file()

    @abc.abstractmethod
    def read(self, path: Path, data: ConfigDict) -> Any:
        """Reads a file.

        Raises:
          UserError: it cannot be read, or does not fit `data`.
        """

    @abc.abstractmethod
    def write(self, raw: Any, path: Path) -> None:
        """Writes a file; nothing half-written is left.

        Raises:
          UserError: it cannot be written.
        """

    def side_by_side(self, a: Any, b: Any) -> Any:
        """Puts two raw examples into one.

        Raises:
          UserError: the modality has no such form.
        """
        raise UserError(f"side_by_side is for images and videos: {self.noun}s have none")

    def batch_of_text(
        self, text: bytes | str, strides: tuple[int, ...] | None, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Returns a text as a batch of one example, filled up to whole codes.

        Args:
          text: the text.
          strides, shape: of the tokenizer, see `TrainedTokenizer`.

        Raises:
          ValueError: the modality is not that of texts.
        """
        raise ValueError(f"{self.noun}s are arrays, and this is {type(text).__name__}")

    def from_prompt(self, prompt: str | bytes) -> np.ndarray:
        """Returns the beginning of an example, as models take it, from text.

        Raises:
          UserError: the modality has none.
        """
        raise UserError(f"prompt is for texts: {self.noun}s have none")

    def shown(self, raw: np.ndarray) -> str | None:
        """Returns a raw example as text for the terminal, or None if it is nothing to read."""
        return None

    def for_file(self, raw: np.ndarray, data: ConfigDict) -> Any:
        """Returns a raw example as `write` takes it: without what fills it up to the size of others."""
        return raw

    @abc.abstractmethod
    def preview(self, path: Path, *rows: np.ndarray) -> None:
        """Writes rows of raw examples [N, ...] to be looked at; rows may have different lengths."""

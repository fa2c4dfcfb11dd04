"""Text, or any other bytes: int32 [L]; decoders return logits float32 [L, 256]."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import files, losses
from vq_jax.bounds import Bounds
from vq_jax.data.sources import OpenSource
from vq_jax.data.text import open_kjv, open_text
from vq_jax.errors import UserError
from vq_jax.modalities.base import Loss, Modality, Rows


@dataclasses.dataclass
class TextData:
    """Fields of `config.data` for text."""

    length: Annotated[int, Bounds(1)] = 512  # bytes of an example


class Text(Modality):
    """The modality of text, as bytes. The byte 0 fills what a document has too few of."""

    name = noun = feature = "text"
    unit = "byte"
    axes = ("L",)
    suffixes = writes = None
    suffix = preview_suffix = ".txt"
    discriminator = "mlp"
    data_fields = TextData
    shape_fields = ("length",)
    folder_sources = frozenset(["text"])
    distribution = True
    losses: ClassVar[Mapping[str, Loss]] = {"cross_entropy": losses.cross_entropy}
    rows: ClassVar[Rows] = {
        "byte_accuracy": ("bytes that are right", ".2%"),
        "exact_windows": ("examples that are right", ".2%"),
    }

    def check(self, config: ConfigDict) -> None:
        if "phases" in config and config.phases.get("adversarial"):
            raise UserError("phases.adversarial is for examples of real numbers: text has none")

    def spec(self, data: ConfigDict) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.length,), jnp.int32)

    def units(self, shape: Sequence[int]) -> int:
        return shape[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:-1]

    # --- data ---

    def sources(self) -> Mapping[str, OpenSource]:
        return {"kjv": open_kjv, "text": open_text}

    def prepare(
        self, data: ConfigDict, train: bool, condition: Callable | None = None
    ) -> Callable[..., dict[str, Any]]:
        return partial(_prepare, length=data.length, train=train)

    def preparation(self, data: ConfigDict) -> str:
        return f"windows of {data.length} bytes, one after another"

    # --- figures ---

    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
        def per_text(x, y):
            right = self.output(jnp.asarray(y)) == x
            return {"byte_accuracy": right.mean(-1), "exact_windows": right.all(-1)}

        return jax.jit(per_text)

    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
        return {name: float(value) for name, value in means.items()}

    def log_likelihood(self, output: jax.Array, x: jax.Array, counted: Any = True) -> jax.Array:
        return jnp.where(counted, -losses.cross_entropy(output, x), 0.0).sum(-1)

    # --- examples and files ---

    def problem(self, x: jax.Array) -> str | None:
        if x.size and (int(x.min()) < 0 or int(x.max()) > 255):
            return "texts have numbers outside 0 to 255: give bytes"
        return None

    def output(self, y: Any) -> Any:
        return jnp.argmax(y, axis=-1).astype(jnp.int32) if y.ndim == 3 else y

    def to_raw(self, x: Any) -> np.ndarray:
        return np.asarray(self.output(x)).astype(np.uint8)

    def from_raw(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, np.int32)

    def read(self, path: Path, data: ConfigDict) -> np.ndarray:
        """Bytes uint8 [N]."""
        return np.frombuffer(files.read(path), np.uint8)

    def write(self, raw: np.ndarray, path: Path) -> None:
        files.write(raw.astype(np.uint8).tobytes(), path)

    def batch_of_text(
        self, text: bytes | str, strides: tuple[int, ...] | None, shape: tuple[int, ...]
    ) -> np.ndarray:
        x = self.from_prompt(text)
        least = strides[0] if strides else shape[0]
        if len(x) < least:
            raise ValueError(f"the text has {len(x)} bytes, fewer than one code spans, {least}")
        if not strides and len(x) > least:
            raise ValueError(f"the text has {len(x)} bytes: this tokenizer takes {least}")
        return np.pad(x, (0, -len(x) % least))[None]

    def from_prompt(self, prompt: str | bytes) -> np.ndarray:
        if isinstance(prompt, str):
            prompt = prompt.encode("utf-8", "surrogateescape")
        return np.frombuffer(prompt, np.uint8).astype(np.int32)

    def shown(self, raw: np.ndarray) -> str:
        """Returns the text, without the zeros at its end and without control characters."""
        text = raw.astype(np.uint8).tobytes().rstrip(b"\0").decode("utf-8", "replace")
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)

    def for_file(self, raw: np.ndarray, data: ConfigDict) -> np.ndarray:
        return np.trim_zeros(raw, "b")

    def preview(self, path: Path, *rows: np.ndarray) -> None:
        """Writes texts; those of one column below each other, with a line between columns."""
        columns = [[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows)))]
        blocks = ["\n\n".join(self.shown(raw) for raw in column) for column in columns]
        rule = "\n\n" + "-" * 80 + "\n\n"
        files.write((rule.join(blocks) + "\n").encode(), path)


def _prepare(
    example: dict[str, Any],
    rng: np.random.Generator | None = None,
    *,
    length: int,
    train: bool,
) -> dict[str, Any]:
    x = example["x"]
    x = np.frombuffer(x, np.uint8) if isinstance(x, bytes) else np.asarray(x)
    start = 0
    if train and rng is not None and len(x) > length:
        start = int(rng.integers(len(x) - length + 1))
    part = x[start : start + length].astype(np.int32)
    return {"x": np.pad(part, (0, length - len(part))), "label": np.int32(example["label"])}

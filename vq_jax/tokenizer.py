"""A trained tokenizer, ready to use: `tok = vq_jax.load(workdir)`."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax.errors import UserError
from vq_jax.files import expanded
from vq_jax.interop.weights import holds_arrays, read_folder
from vq_jax.models import Tokenizer


class TrainedTokenizer:
    """Images to codes and back, jitted.

    Images are float32 [B, H, W, C] in [-1, 1]; codes are int32 [B, *grid] in [0, num_codes).
    Where a position has several codes they are the grid's last axis.

    Attributes:
      config: the run's config.
      step: how many training steps its params have seen.
      num_codes: entries of a codebook.
      code_shape: () where a position has one code, (Q,) where it has Q.
      grid: the codes' shape for an image of the training resolution, such as (8, 8) or (8, 8, Q).
      factor: how many pixels a code spans along a side, or None where the model takes images of
        the training resolution only.
      module, variables: the Flax module and its variables.
    """

    def __init__(self, config: ConfigDict, module: Tokenizer, variables: dict[str, Any], step: int):
        self.config = config
        self.step = step
        self.num_codes: int = module.quantizer.num_codes
        self.code_shape: tuple[int, ...] = module.quantizer.code_shape
        self.module, self.variables = module, variables
        side = config.data.resolution
        latents, self.grid = configs.grids(config, module)
        any_size = len(latents) == 2 and self.grid == (*latents, *self.code_shape)
        self.factor: int | None = side // latents[0] if any_size else None

        def encode(variables, x):
            z = module.apply(variables, x, method="encode")
            return module.apply(variables, z, method="quantize")[1]

        def decode(variables, codes):
            z_q = module.apply(variables, codes, method="lookup")
            return module.apply(variables, z_q, method="decode_latents")

        def reconstruct(variables, x):
            z = module.apply(variables, x, method="encode")
            quantized: Any = module.apply(variables, z, method="quantize")
            z_q, codes, _ = quantized
            return module.apply(variables, z_q, method="decode_latents"), codes

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)
        self._reconstruct = jax.jit(reconstruct)

    def _checked(self, images: Any) -> jax.Array:
        if np.ndim(images) != 4 or np.shape(images)[-1] != self.config.data.channels:
            raise ValueError(
                f"images have shape {np.shape(images)}, not [B, H, W, {self.config.data.channels}]"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images are {images.dtype}: make them float32 in [-1, 1]")
        height, width = images.shape[1:3]
        side = self.config.data.resolution
        if self.factor is None and (height, width) != (side, side):
            raise ValueError(f"this model takes {side}x{side} images, not {height}x{width}")
        if self.factor and (height % self.factor or width % self.factor):
            raise ValueError(
                f"images are {height}x{width}: both sides must be multiples of {self.factor}"
            )
        if np.size(images) and float(jnp.max(jnp.abs(images))) > 1.5:
            raise ValueError(
                "images reach beyond [-1, 1]: bring them there, x / 127.5 - 1 from bytes"
            )
        return jnp.asarray(images, jnp.float32)

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that two tokenizers share only if their codes mean the same: SHA-256 of the
        sections that shape the model, and of all arrays."""
        shape = {k: self.config[k].to_dict() for k in ("model", "quantizer")}
        shape["image"] = list(configs.image_shape(self.config))
        return digest(shape, self.variables)

    def codebooks(self) -> np.ndarray | None:
        """Learned entries, float32 [*code_shape, num_codes, d], or None where codes mean fixed points."""
        entries = self.module.apply(self.variables, method=lambda m: m.quantizer.codebooks())
        return None if entries is None else np.asarray(entries)

    def encode(self, images: Any) -> jax.Array:
        """Codes int32 [B, *grid] of images float32 [B, H, W, C] in [-1, 1].

        Raises:
          ValueError: the images have another shape or type than the model takes.
        """
        return self.encode_unchecked(self._checked(images))

    def encode_unchecked(self, images: jax.Array) -> jax.Array:
        """`encode` of what is known to be right, or of shapes."""
        return self._encode(self.variables, images)

    def decode(self, codes: Any) -> jax.Array:
        """Images float32 [B, H, W, C], about in [-1, 1], of codes int [B, *grid].

        A residual tokenizer takes the codes of its first levels alone, too: coarser, in fewer bits.

        Raises:
          ValueError: a code is out of range, or the codes have another shape.
        """
        codes = np.asarray(codes)
        if codes.ndim != 1 + len(self.grid) or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"codes are {codes.dtype} {codes.shape}, not integers [B, "
                f"{', '.join(map(str, self.grid))}]"
            )
        if self.code_shape:
            (books,), given = self.code_shape, codes.shape[-1]
            fewer = 0 < given < books and self.module.quantizer.takes_fewer_codes
            if given != books and not fewer:
                raise ValueError(f"codes have {given} a position, not {books}")
        if self.factor is None and codes.shape[1:] != self.grid:
            raise ValueError(
                f"codes are {codes.shape[1:]} an image, and this model has {self.grid}"
            )
        if codes.size and (codes.min() < 0 or codes.max() >= self.num_codes):
            raise ValueError(f"codes lie outside [0, {self.num_codes})")
        return self.decode_unchecked(jnp.asarray(codes, jnp.int32))

    def decode_unchecked(self, codes: jax.Array) -> jax.Array:
        """`decode` of what is known to be right."""
        return self._decode(self.variables, codes)

    def reconstruct(self, images: Any) -> jax.Array:
        """`decode(encode(images))` in one compiled call, without codes in between."""
        return self.reconstruct_with_codes(images)[0]

    def reconstruct_with_codes(self, images: Any) -> tuple[jax.Array, jax.Array]:
        """Reconstructions and the codes they were made from, for evaluation."""
        return self._reconstruct(self.variables, self._checked(images))


def digest(about: Any, arrays: Any) -> bytes:
    """SHA-256 of what JSON can hold and of a tree of arrays: 32 bytes."""
    result = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        result.update(jax.tree_util.keystr(path).encode())
        result.update(np.ascontiguousarray(leaf).tobytes())
    return result.digest()


def load(workdir: str | Path) -> TrainedTokenizer:
    """Opens the tokenizer a run has trained (averaged params), or one that was imported or exported.

    Args:
      workdir: a folder with `config.json`, and `checkpoints/` (the newest is read) or, without them,
        `model.safetensors`.

    Raises:
      UserError: there is no run, or no checkpoint yet, or it does not fit the config.
    """
    folder = expanded(workdir)
    config = configs.load(folder / "config.json")
    if configs.is_prior(config):
        raise UserError(
            f"{folder} holds a prior, not a tokenizer; the one it is for is {config.tokenizer}"
        )
    module = configs.make_tokenizer(config)
    shapes = configs.variable_shapes(config, module)
    if in_one_file(folder):
        step, tree = read_folder(folder, shapes)
        return TrainedTokenizer(config, module, jax.tree.map(jnp.asarray, tree), step)
    from vq_jax.training.checkpoint import read_newest  # and with it Orbax, for checkpoints alone

    stats = {name: tree for name, tree in shapes.items() if name != "params"}
    step, tree = read_newest(folder, "tokenizer", {"params": shapes["params"], "stats": stats})
    return TrainedTokenizer(config, module, {"params": tree["params"], **tree["stats"]}, step)


def in_one_file(folder: Path) -> bool:
    """Whether a run's arrays are those of `model.safetensors`: it has been trained no further."""
    return holds_arrays(folder) and not has_checkpoints(folder)


def has_checkpoints(folder: Path) -> bool:
    """Whether training has saved something there."""
    return any((folder / "checkpoints").glob("[0-9]*"))

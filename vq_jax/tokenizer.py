"""A trained tokenizer: examples to codes and back."""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.codes import CodeSpec
from vq_jax.models import Tokenizer
from vq_jax.models.video_layers import stream
from vq_jax.sampling import Draw, draw_codes, fold_keys


class TrainedTokenizer:
    """Turns examples into codes and back, compiled.

    Examples are arrays [B, ...] as the modality has them: float32 images [B, H, W, C] in [-1, 1], or
    float32 clips [B, T, H, W, C], float32 vectors [B, D], or bytes int32 [B, L]. Codes are int32 [B, *codes.shape] in [0, codes.num_codes).

    Attributes:
      config: the run's config.
      step: number of training steps of its params.
      modality: its kind of data.
      codes: what the codes of an example of the training size look like.
      strides: number of elements of the example that a position of the codes spans along each axis;
        None if the tokenizer takes examples of the training size only.
      alone: number of elements at the start of each axis that have a position of their own: the first
        frame of a clip.
      module, variables: the Flax module and its variables.
    """

    def __init__(self, config: ConfigDict, module: Tokenizer, variables: dict[str, Any], step: int):
        self.config = config
        self.step = step
        self.module, self.variables = module, variables
        self.modality = modalities.of(config)
        self.spec: jax.ShapeDtypeStruct = configs.spec_of(config)
        self.codes: CodeSpec
        self.codes, self.strides = configs.code_spec(config, module)
        self.alone = getattr(module.encoder, "alone", (0,) * len(self.strides or ()))

        def compiled(method: str) -> Any:
            return jax.jit(functools.partial(module.apply, method=method))

        self._encode, self._decode = compiled("encode_to_codes"), compiled("decode_codes")
        self._encode_latents = compiled("encode")
        self._reconstruct, self._predict = compiled("reconstruct"), compiled("predict")
        self._draw = jax.jit(functools.partial(_draw, module), static_argnames="temperature")
        self._stream = jax.jit(functools.partial(stream, module), static_argnames="method")

    def check(self, x: Any) -> jax.Array:
        """Returns examples [B, ...] on a device.

        Raises:
          ValueError: they have another shape or type than the tokenizer takes.
        """
        if isinstance(x, bytes | str):
            x = self.modality.batch_of_text(x, self.strides, self.spec.shape)
        x = np.asarray(x) if isinstance(x, list | tuple) else x
        shape, wanted = np.shape(x), self.spec.shape
        noun = f"{self.modality.noun}s"
        axes = len(self.strides) if self.strides else 0
        if len(shape) != 1 + len(wanted) or shape[1 + axes :] != wanted[axes:]:
            sizes = ", ".join((*self.modality.axes[:axes], *map(str, wanted[axes:])))
            raise ValueError(f"{noun} have shape {shape}, not [B, {sizes}]")
        kind = jnp.floating if jnp.issubdtype(self.spec.dtype, jnp.floating) else jnp.integer
        if not jnp.issubdtype(x.dtype, kind):
            raise ValueError(f"{noun} are {x.dtype}: make them {self.spec.dtype}")
        if 0 in shape:
            raise ValueError(f"there are no {noun}: their shape is {shape}")
        strides = self.strides or ()
        for size, stride, alone in zip(shape[1:], strides, self.alone, strict=False):
            if size < alone or (size - alone) % stride:
                alone = sum(self.alone)
                more = (
                    f", after {alone} that is coded alone along {self.modality.axes[0]}"
                    if alone
                    else ""
                )
                raise ValueError(
                    f"{noun} are {'x'.join(map(str, shape[1 : 1 + axes]))}: their sizes must be "
                    f"multiples of {'x'.join(map(str, strides))}{more}"
                )
        x = jnp.asarray(x, self.spec.dtype)
        if (problem := self.modality.problem(x)) is not None:
            raise ValueError(problem)
        return x

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the config sections that decide what codes mean, and of all arrays: 32 bytes.

        Codes of two tokenizers are interchangeable only if their fingerprints are equal.
        """
        description = {k: self.config[k].to_dict() for k in ("model", "quantizer")}
        _leave_out_later_fields(description["quantizer"])
        if description["model"].get("quant_kernel") == 1:
            del description["model"]["quant_kernel"]
        description[self.modality.name] = list(self.spec.shape)
        return digest(description, self.variables)

    def codebooks(self) -> np.ndarray | None:
        """Returns learned entries, float32 [*code_shape, num_codes, d], or None if entries are fixed."""
        entries = self.module.apply(self.variables, method=lambda m: m.quantizer.codebooks())
        return None if entries is None else np.asarray(entries)

    def encode(self, x: Any) -> jax.Array:
        """Encodes examples [B, ...] to codes int32 [B, *codes.shape].

        A tokenizer of texts also takes one text as `bytes` or `str`, as a batch of one; its last code may
        span zeros beyond the text. Attention takes memory in the square of the number of codes.

        Raises:
          ValueError: the examples have another shape or type than the tokenizer takes.
        """
        return self.encode_unchecked(self.check(x))

    def encode_unchecked(self, x: jax.Array, quality: Any = None) -> jax.Array:
        """`encode` without the check of its argument; it also takes tracers.

        Args:
          x: examples [B, ...].
          quality: float32 [B] in [0, 1], of a model that takes it; None is 1/2.
        """
        return self._encode(self.variables, x, quality)

    def encode_latents(self, x: jax.Array, quality: Any = None) -> jax.Array:
        """Encodes examples to latents, float32 [B, *grid, D]; see `encode_unchecked`."""
        return self._encode_latents(self.variables, x, quality)

    def decode(self, codes: Any) -> jax.Array:
        """Decodes codes int [B, *codes.shape] to the decoder's output, float32 [B, ...].

        Images are approximately in [-1, 1]; `modality.output` brings them into it. A residual
        tokenizer also takes the codes of its first levels alone, which give a coarser result.

        Raises:
          ValueError: a code is out of range, or the codes have another shape.
        """
        return self.decode_unchecked(self._checked_codes(codes))

    def _checked_codes(self, codes: Any) -> jax.Array:
        codes, spec = np.asarray(codes), self.codes
        if codes.ndim != 1 + len(spec.shape) or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(
                f"codes are {codes.dtype} {codes.shape}, not integers [B, "
                f"{', '.join(map(str, spec.shape))}]"
            )
        grid = codes.shape[1 : 1 + len(spec.grid)]
        if spec.code_shape:
            given = codes.shape[-1]
            fewer = 0 < given < spec.books and self.module.quantizer.takes_fewer_codes
            if given != spec.books and not fewer:
                raise ValueError(f"codes have {given} a position, not {spec.books}")
        first_only = self.module.takes_first_codes and 0 < grid[0] < spec.grid[0]
        if self.strides is None and grid != spec.grid and not first_only:
            raise ValueError(
                f"the codes of a {self.modality.noun} have shape {codes.shape[1:]}, not {spec.shape}"
            )
        if codes.size and (codes.min() < 0 or codes.max() >= spec.num_codes):
            raise ValueError(f"codes are outside [0, {spec.num_codes})")
        return jnp.asarray(codes, jnp.int32)

    def decode_unchecked(self, codes: jax.Array, quality: Any = None) -> jax.Array:
        """`decode` without the check of its argument; for `quality` see `encode_unchecked`."""
        return self._decode(self.variables, codes, quality)

    def log_likelihood(self, x: Any, codes: Any, counted: Any = True) -> jax.Array | None:
        """Returns the log-probability in nats of examples, given their codes, float32 [B].

        `counted` is bool of the shape of `x`, the elements to count, or True for all. None if the
        decoder's output is an example and no distribution.
        """
        if not self.modality.distribution:
            return None
        x = jnp.asarray(x, self.spec.dtype)
        output = self._predict(self.variables, jnp.asarray(codes, jnp.int32), x)
        return self.modality.log_likelihood(output, x, counted)

    def draw(
        self, codes: Any, keys_B: jax.Array, temperature: float = 1.0, given: Any = None
    ) -> np.ndarray:
        """Decodes codes int [B, *codes.shape] to examples; a sequential decoder draws them.

        Args:
          codes: as for `decode`.
          keys_B: one key for each row, for a sequential decoder.
          temperature: of a sequential decoder; 0 takes the likeliest element each time.
          given: int [B, L] for a sequential decoder, elements that are known; -1 are drawn.

        Returns:
          examples in their range, [B, ...].
        """
        codes = self._checked_codes(codes)
        if not self.module.sequential:
            return np.asarray(self.modality.output(self.decode_unchecked(codes)))
        if given is None:
            length = codes.shape[1] * (self.strides or (1,))[0]
            given = np.full((len(codes), length), -1, np.int32)
        return np.asarray(
            self._draw(self.variables, codes, keys_B, jnp.asarray(given), temperature=temperature)
        )

    def encode_next(self, x: jax.Array, state: Any = None) -> tuple[jax.Array, Any]:
        """Encodes the next frames of clips, of any length, with a causal tokenizer.

        Args:
          x: float32 [B, T, H, W, C]. The first call has the first frame of the clips, alone or with
            groups of `strides[0]` frames; later calls have such groups.
          state: what the last call returned; None in the first.

        Returns:
          codes int32 [B, t, ...], equal to those of whole clips, and the state.
        """
        self._check_causal()
        return self._stream(self.variables, x, state, method="encode_to_codes")

    def decode_next(self, codes: jax.Array, state: Any = None) -> tuple[jax.Array, Any]:
        """Decodes the next codes of clips; see `encode_next`.

        Args:
          codes: int32 [B, t, ...]; in the first call from the first position.
          state: what the last call returned; None in the first.

        Returns:
          the decoder's output float32 [B, T, H, W, C], and the state.
        """
        self._check_causal()
        return self._stream(self.variables, codes, state, method="decode_codes")

    def _check_causal(self) -> None:
        if not any(self.alone):
            raise ValueError(f"the tokenizer of {self.modality.noun}s takes whole examples only")

    def reconstruct(self, x: Any) -> jax.Array:
        """Returns `decode(encode(x))`, in one compiled call."""
        return self.reconstruct_with_codes(x)[0]

    def reconstruct_with_codes(self, x: Any) -> tuple[jax.Array, jax.Array]:
        """Returns reconstructions and the codes they were decoded from."""
        return self._reconstruct(self.variables, self.check(x))


def _leave_out_later_fields(quantizer: dict[str, Any]) -> None:
    """Removes fields that are younger than the format, if they change nothing: old fingerprints stay."""
    if not quantizer.get("rate_weight", True):
        del quantizer["rate_weight"]
    if quantizer.get("initial") == "kmeans":
        del quantizer["initial"]
    if "inner" in quantizer:
        _leave_out_later_fields(quantizer["inner"])


def _draw(
    module: Tokenizer, variables, codes, keys_B, given_BL, *, temperature: float
) -> jax.Array:
    def choose(n, logits_BK):
        drawn_B = draw_codes(fold_keys(keys_B, n), logits_BK, Draw(temperature=temperature))
        return jnp.where(given_BL[:, n] >= 0, given_BL[:, n], drawn_B)

    def decode(tokenizer: Tokenizer, codes):
        return tokenizer.draw_elements(tokenizer.lookup(codes), choose)[0]

    drawn: Any = module.apply(variables, codes, method=decode)
    return drawn


def digest(description: Any, arrays: Any) -> bytes:
    """Returns the SHA-256 of a JSON-serialisable description and a tree of arrays: 32 bytes."""
    result = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        result.update(jax.tree_util.keystr(path).encode())
        result.update(np.ascontiguousarray(leaf).tobytes())
    return result.digest()

"""What modalities of pixels share: float32 [..., C] in [-1, 1] for models, uint8 in files."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import losses
from vq_jax.data.images import to_float, to_uint8
from vq_jax.errors import UserError
from vq_jax.modalities.base import Loss, Modality
from vq_jax.models.perceptual import LEAST_SIDE


class Pixels(Modality):
    """A modality whose examples are pixels."""

    losses: ClassVar[Mapping[str, Loss]] = {"l1": losses.l1, "l2": losses.l2}

    def check(self, config: ConfigDict) -> None:
        data = config.data
        if data.channels not in (1, 3):
            raise UserError(f"data.channels is {data.channels}: use 1 or 3")
        if data.crop not in ("center", "random"):
            raise UserError(f"data.crop is {data.crop!r}: use 'center' or 'random'")
        if config.loss.get("perceptual_weight") and data.resolution < LEAST_SIDE["vgg"]:
            raise UserError(
                f"LPIPS needs data.resolution of {LEAST_SIDE['vgg']} or more; or set "
                "loss.perceptual_weight=0"
            )

    def problem(self, x: jax.Array) -> str | None:
        if x.size and not float(jnp.max(jnp.abs(x))) <= 1.5:  # NaN, too
            return f"{self.noun}s reach beyond [-1, 1]: scale bytes by x / 127.5 - 1"
        return None

    def output(self, y: Any) -> Any:
        return jnp.clip(y, -1.0, 1.0)

    def to_raw(self, x: Any) -> np.ndarray:
        return to_uint8(np.asarray(x))

    def from_raw(self, raw: np.ndarray) -> np.ndarray:
        return to_float(raw)

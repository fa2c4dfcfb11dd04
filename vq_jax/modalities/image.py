"""Images: float32 [H, W, C] in [-1, 1] for models, uint8 [H, W, C] in files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import metrics
from vq_jax.bounds import Bounds
from vq_jax.console import stderr
from vq_jax.data.degrade import CONDITIONS, Degrade
from vq_jax.data.images import (
    EXTENSIONS,
    decode,
    fit,
    read_image,
    rows_of,
    save_image,
    to_float,
    with_channels,
)
from vq_jax.data.sources import OpenSource, embedded, open_folder
from vq_jax.errors import UserError
from vq_jax.interop.lpips import load_lpips
from vq_jax.modalities.base import Network, Rows
from vq_jax.modalities.image_networks import efficientnet_network, inception_network
from vq_jax.modalities.pixels import Pixels
from vq_jax.models.perceptual import LEAST_SIDE, lpips


@dataclasses.dataclass
class ImageData:
    """Fields of `config.data` for images."""

    resolution: Annotated[int, Bounds(1)] = 32
    channels: int = 3  # or 1
    resize: int | None = None  # of the shorter side; None: to the resolution; 0: none
    crop: str = "center"  # or "random", in training
    flip: bool = True  # mirror half of the training images


@dataclasses.dataclass
class PerceptualLoss:
    """Fields of `config.loss` for images."""

    perceptual_weight: float = 1.0  # of LPIPS; 0 trains without
    perceptual_from: str = "autoencoder"  # first phase with LPIPS
    perceptual_stride: Annotated[int, Bounds(1)] = 1  # LPIPS is computed on every n-th image


@dataclasses.dataclass(frozen=True)
class PrepareImage:
    """Turns an example of a source into a training image: channels, size, crop, flip, range.

    With `degrade`, the result has a `condition`, a degraded copy of the image.
    """

    resolution: int
    channels: int
    resize: int
    random_crop: bool = False
    flip: bool = False
    degrade: Degrade | None = None

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        image = with_channels(example["x"], self.channels)
        image = fit(image, self.resolution, self.resize, rng, self.random_crop, self.flip)
        made = {"x": to_float(image), "label": np.int32(example["label"])}
        if self.degrade is not None:
            made["condition"] = to_float(self.degrade(image, rng))
        return made


def _resize_of(data: ConfigDict) -> int:
    return data.resolution if data.resize is None else data.resize


def _decode(path: Path, data: ConfigDict) -> np.ndarray:
    """Decodes an image file for `open_folder`; a JPEG no larger than is needed."""
    resize = _resize_of(data)
    return decode(path, max(resize, data.resolution) if resize else 0)


class Image(Pixels):
    """The modality of images."""

    name = noun = feature = "image"
    unit = "pixel"
    axes = ("H", "W", "C")
    suffixes = EXTENSIONS
    suffix = ".png"
    writes = EXTENSIONS
    discriminator = "patchgan"
    data_fields, loss_fields = ImageData, PerceptualLoss
    shape_fields = ("resolution", "channels")
    folder_sources = frozenset(["folder"])
    conditions: ClassVar[Mapping[str, Callable[..., Degrade | None]]] = CONDITIONS
    rows: ClassVar[Rows] = {
        "psnr": ("PSNR, dB", ".2f"),
        "ssim": ("SSIM", ".4f"),
        "ms_ssim": ("MS-SSIM", ".4f"),
        "lpips": ("LPIPS (VGG16)", ".4f"),
        "lpips_alex": ("LPIPS (AlexNet)", ".4f"),
        "l1": ("L1 on [-1, 1]", ".4f"),
        "nmse": ("squared error over variance", ".4f"),
    }

    def spec(self, data: ConfigDict) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((data.resolution, data.resolution, data.channels), jnp.float32)

    def units(self, shape: Sequence[int]) -> int:
        return shape[0] * shape[1]

    # --- data ---

    def sources(self) -> Mapping[str, OpenSource]:
        return {
            "emoji": embedded("Emoji"),
            "photos": embedded("Photos"),
            "folder": partial(open_folder, suffixes=EXTENSIONS, noun=self.noun, decode=_decode),
        }

    def prepare(
        self, data: ConfigDict, train: bool, condition: Callable | None = None
    ) -> Callable[..., dict[str, Any]]:
        return PrepareImage(
            resolution=data.resolution,
            channels=data.channels,
            resize=_resize_of(data),
            random_crop=train and data.crop == "random",
            flip=train and data.flip,
            degrade=condition,
        )

    def variants(
        self,
        example: dict[str, Any],
        data: ConfigDict,
        seed: Sequence[int],
        flips: bool,
        crops: int,
    ) -> list[np.ndarray]:
        found = [self.prepare(data, train=False)(example)["x"]]
        if crops:
            image = with_channels(example["x"], data.channels)
            rng = np.random.default_rng(tuple(seed))
            found = [
                to_float(fit(image, data.resolution, _resize_of(data), rng, random_crop=True))
                for _ in range(crops)
            ]
        if flips:
            found = [form for x in found for form in (x, x[:, ::-1])]
        return found

    def preparation(self, data: ConfigDict) -> str:
        side = _resize_of(data)
        size = f"shorter side to {side} by Lanczos" if side else "as large as they are"
        return f"{size}, centre crop to {data.resolution}, range [-1, 1], outputs clipped"

    # --- losses and metrics ---

    def perceptual(self, config: ConfigDict, folder: Path | None = None) -> Callable | None:
        if not config.loss.perceptual_weight:
            return None
        return partial(lpips, load_lpips(folder=folder))

    def metrics(self, config: ConfigDict) -> Callable[[Any, Any], dict[str, jax.Array]]:
        """PSNR, SSIM, MS-SSIM if images are large enough, L1, LPIPS if installed, and moments."""
        nets = lpips_networks(config) if config.get("eval_lpips", True) else {}
        large = config.data.resolution >= metrics.MS_SSIM_SIDE

        @jax.jit
        def per_image(x, y):
            y = jnp.clip(y, -1.0, 1.0)
            values = {
                "psnr": metrics.psnr(x, y),
                "ssim": metrics.ssim(x, y),
                "l1": metrics.l1(x, y),
                "squared_error": jnp.square(x - y).mean((1, 2, 3)),
                "mean": x.mean((1, 2, 3)),
                "mean_square": jnp.square(x).mean((1, 2, 3)),
            }
            if large:
                values["ms_ssim"] = metrics.ms_ssim(x, y)
            return values | {name: distance(x, y) for name, distance in nets.items()}

        return per_image

    def summarize(self, means: dict[str, np.ndarray]) -> dict[str, float]:
        figures = {name: float(value) for name, value in means.items()}
        variance = figures.pop("mean_square") - figures.pop("mean") ** 2
        error = figures.pop("squared_error")
        if variance > 1e-6:  # undefined for images of one colour
            figures["nmse"] = error / variance
        return figures

    def networks(self, inception: str = "", protocol: str = "adm") -> list[Network]:
        found = [inception_network(inception, protocol)] if inception else []
        try:
            found.append(efficientnet_network())
        except UserError as e:
            stderr(f"the Frechet distance is left out: {e}")
        return found

    # --- examples and files ---

    def like(self, condition: Any, x: Any) -> np.ndarray:
        if condition.shape == x.shape:
            return np.asarray(condition)
        return np.asarray(jax.image.resize(condition, x.shape, "cubic"))

    def read(self, path: Path, data: ConfigDict) -> np.ndarray:
        return read_image(path, data.channels)

    def write(self, raw: np.ndarray, path: Path) -> None:
        save_image(raw, path)

    def side_by_side(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return rows_of(np.stack([a, b]))

    def preview(self, path: Path, *rows: np.ndarray) -> None:
        wide = max(map(len, rows))
        widths = [[(0, wide - len(row)), (0, 0), (0, 0), (0, 0)] for row in rows]
        padded = [np.pad(r, w, constant_values=255) for r, w in zip(rows, widths, strict=True)]
        save_image(rows_of(*padded), path)


def lpips_networks(config: ConfigDict) -> dict[str, Callable]:
    """Returns LPIPS by figure, for images of the config's size; names on stderr what is not installed."""
    found: dict[str, Callable] = {}
    for net, name in (("vgg", "lpips"), ("alex", "lpips_alex")):
        if config.data.resolution < LEAST_SIDE[net]:
            continue
        try:
            found[name] = partial(lpips, load_lpips(net), net=net)
        except UserError as e:
            stderr(f"LPIPS ({net}) is left out: {e}")
    return found

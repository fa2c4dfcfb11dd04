"""Measures rate and distortion of `.vqz` files against JPEG, WebP and AVIF on held-out images.

    pip install -e '.[demo]'
    python -m vq_jax.main --config=configs/codec.py
    python -m experiments.codec.measure photos --ours=codec.py=runs/codec --output=photos

A point is one setting of a codec. Its rate is the bytes of all its files over all pixels. Its
distortion is the mean of PSNR, SSIM, MS-SSIM (if the images are large enough) and LPIPS (VGG16)
over the images. vq_jax is measured once for each number of levels, coded as --mode=compress does.
The other codecs are Pillow's, set to spend time on small files. AVIF runs at speed 4, because speed
0 takes six times as long for files 1% smaller. Writes OUTPUT.json, OUTPUT.png (curves) and
OUTPUT_crops.png (pictures at equal bytes).

The sets are:

  photos        the two held-out photographs
  emoji         253 held-out emoji at 32x32
  cifar         250 held-out images of a folder (`--folder`)
  emoji_sheet, cifar_sheet   the same images in one image of 15 columns, so that the size of file
                headers is negligible
"""

import argparse
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import matplotlib
import numpy as np
from PIL import Image

from vq_jax import codec, metrics
from vq_jax import config as configs
from vq_jax.codec import Codec
from vq_jax.data.builders import TEST_PHOTOS, package_folder
from vq_jax.data.images import decode, rows_of, save_image, to_float, to_uint8
from vq_jax.data.pipeline import eval_batches
from vq_jax.interop.lpips import load_lpips
from vq_jax.modalities import open_source
from vq_jax.models.perceptual import lpips

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# name -> Pillow's options other than the quality
PEERS = {
    "JPEG": {"format": "JPEG", "optimize": True, "progressive": True},
    "WebP": {"format": "WEBP", "method": 6},
    "AVIF": {"format": "AVIF", "speed": 4},
}
QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS (VGG16)"}
COLUMNS, HELD_BACK = 15, 25


# --- images ---------------------------------------------------------------------------------------


def held_out(name: str, folder: Path | None) -> list[np.ndarray]:
    """Returns the images of a set, uint8 [H, W, 3] each."""
    if name == "photos":
        places = (place.partition("/") for place in TEST_PHOTOS.values())
        return [decode(package_folder(package) / inside) for package, _, inside in places]
    if name.endswith("_sheet"):
        images = held_out(name.removesuffix("_sheet"), folder)
        images = images[: len(images) // COLUMNS * COLUMNS]
        rows = [np.concatenate(images[i : i + COLUMNS], 1) for i in range(0, len(images), COLUMNS)]
        return [np.concatenate(rows)]
    if name == "cifar":
        classes = sorted(path for path in (folder / "val").iterdir() if path.is_dir())
        return [decode(p) for label in classes for p in sorted(label.iterdir())[:HELD_BACK]]
    config = configs.base()
    config.data.resolution = 32
    source = open_source(config).val
    batches = eval_batches(source, config.data, configs.make_prepare(config))
    return [to_uint8(x) for b in batches for x in b["x"][b["valid"].astype(bool)]]


# --- points ---------------------------------------------------------------------------------------


def measure_of(images: list[np.ndarray]) -> Callable[[list[np.ndarray]], dict[str, float]]:
    """Returns a function from decoded images to the means of all metrics against `images`."""
    params = load_lpips("vgg")

    @jax.jit
    def compare(x, y):
        found = {
            "psnr": metrics.psnr(x, y),
            "ssim": metrics.ssim(x, y),
            "lpips": lpips(params, x, y),
        }
        if min(x.shape[1:3]) >= metrics.MS_SSIM_SIDE:
            found["ms_ssim"] = metrics.ms_ssim(x, y)
        return found

    same_shape = len({image.shape for image in images}) == 1
    groups = [list(range(len(images)))] if same_shape else [[i] for i in range(len(images))]

    def measure(decoded):
        found = []
        for group in groups:
            x, y = (to_float(np.stack([of[i] for i in group])) for of in (images, decoded))
            found.append(compare(x, y))
        names = found[0]
        return {n: float(np.concatenate([np.asarray(f[n]) for f in found]).mean()) for n in names}

    return measure


def by_pillow(name: str, image: np.ndarray, quality: int) -> tuple[int, np.ndarray]:
    """Returns the size of the file in bytes, and the decoded image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, quality=quality, **PEERS[name])
    return len(file.getvalue()), np.asarray(Image.open(file).convert("RGB"))


def by_us(opened: Codec, images: list[np.ndarray], quality: int | None) -> tuple[list[int], list]:
    data = opened.compress_all(images, quality=quality)
    return [len(d) for d in data], [opened.decompress(d) for d in data]


def settings(opened: Codec) -> list[int | None]:
    """Returns the quality settings of a model."""
    if "prior" in opened.models or not opened.tokenizer.module.quantizer.takes_fewer_codes:
        return [None]
    return list(range(1, opened.levels + 1))


def points(images: list[np.ndarray], ours: dict[str, Codec]) -> Iterator[tuple[str, dict]]:
    """Yields (codec name, point) for each setting of each codec."""
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    measure = measure_of(images)

    def point(quality, sizes, decoded):
        return {"quality": quality, "bytes": sum(sizes), "bpp": 8 * sum(sizes) / pixels} | measure(
            decoded
        )

    for name, opened in ours.items():
        for quality in settings(opened):
            yield name, point(quality, *by_us(opened, images, quality))
    for name in PEERS:
        for quality in QUALITIES:
            made = [by_pillow(name, image, quality) for image in images]
            yield name, point(quality, *zip(*made, strict=True))


def needed(found: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Finds the bits per pixel at which other codecs reach our PSNR and our LPIPS, for each point.

    The logarithms of the rates are interpolated linearly. The rate is None if our value is outside
    the range of the other codec.
    """
    result: dict[str, list[dict]] = {}
    for name in found.keys() - PEERS.keys():
        for point in found[name]:
            row = {"quality": point["quality"], "bpp": point["bpp"]}
            for peer in PEERS.keys() & found.keys():
                for measure, sign in (("psnr", 1), ("lpips", -1)):
                    line = sorted((sign * p[measure], math.log(p["bpp"])) for p in found[peer])
                    values, rates = zip(*line, strict=True)
                    at = sign * point[measure]
                    inside = values[0] <= at <= values[-1]
                    rate = math.exp(np.interp(at, values, rates)) if inside else None
                    row[f"{peer}, {measure}"] = rate
            result.setdefault(name, []).append(row)
    return result


# --- pictures -------------------------------------------------------------------------------------


def plot(found: dict[str, list[dict]], path: Path) -> None:
    """Plots a curve for each codec and metric."""
    shown = {k: label for k, label in MEASURES.items() if k in next(iter(found.values()))[0]}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.8))
    for axis, (measure, label) in zip(axes, shown.items(), strict=True):
        for name, line in found.items():
            style = {"marker": ".", "lw": 1} if name in PEERS else {"marker": "o", "lw": 2}
            axis.plot([p["bpp"] for p in line], [p[measure] for p in line], label=name, **style)
        axis.set(xscale="log", xlabel="bits per pixel of the files", title=label)
        ticks = [0.1, 0.2, 0.5, 1, 2, 5]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        if measure == "lpips":
            axis.invert_yaxis()  # so that up is better in all plots
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=6)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def at_most(name: str, image: np.ndarray, size: int) -> tuple[int, int, np.ndarray]:
    """Returns (quality, bytes, image) of the best file within `size` bytes, or of the smallest."""
    low, high = 1, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if by_pillow(name, image, middle)[0] <= size else (low, middle - 1)
        )
    return low, *by_pillow(name, image, low)


def crops(images: list[np.ndarray], opened: Codec, path: Path) -> list[dict]:
    """Saves a picture that compares the codecs at equal bytes, and returns sizes and qualities.

    A large image gets a row for each of our rates. Of small images, twelve are shown at our highest
    rate.
    """
    described, rows = [], []
    if min(images[0].shape[:2]) > 64:
        image = images[0]
        height, width = image.shape[:2]
        window = np.s_[height // 2 - 80 : height // 2 + 80, width // 2 - 80 : width // 2 + 80]
        for quality in settings(opened):
            (size,), (back,) = by_us(opened, [image], quality)
            row, about = [image, back], {"ours": size, "quality": quality}
            for peer in PEERS:
                q, peer_size, decoded = at_most(peer, image, size)
                row.append(decoded)
                about[peer] = {"bytes": peer_size, "quality": q}
            rows.append([x[window] for x in row])
            described.append(about)
        save_image(np.concatenate([np.concatenate(row, 1) for row in rows]), path)
        return described
    chosen = images[:: max(1, len(images) // 12)][:12]
    sizes, back = by_us(opened, chosen, None)
    lines = [chosen, back]
    about = {"ours": sum(sizes)}
    for peer in PEERS:
        made = [at_most(peer, x, size) for x, size in zip(chosen, sizes, strict=True)]
        lines.append([decoded for _, _, decoded in made])
        about[peer] = {"bytes": sum(size for _, size, _ in made)}
    sheet = rows_of(*(np.stack(line) for line in lines))
    save_image(sheet.repeat(2, 0).repeat(2, 1), path)
    return [about]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=["photos", "emoji", "emoji_sheet", "cifar", "cifar_sheet"])
    parser.add_argument("--ours", action="append", required=True, metavar="NAME=WORKDIR")
    parser.add_argument(
        "--folder", type=Path, help="CIFAR-10, from experiments.vqvae_cifar10.prepare"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    ours = {name: codec.load(run) for name, _, run in (o.partition("=") for o in arguments.ours)}
    images = held_out(arguments.set, arguments.folder)
    found: dict[str, list[dict]] = {}
    for name, point in points(images, ours):
        found.setdefault(name, []).append(point)
        print(name, {k: v if v is None else round(v, 4) for k, v in point.items()}, flush=True)
    output = arguments.output
    plot(found, output.with_suffix(".png"))
    described = crops(
        images, next(iter(ours.values())), output.with_name(f"{output.name}_crops.png")
    )
    result = {"images": len(images), "codecs": found, "needed": needed(found), "crops": described}
    output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

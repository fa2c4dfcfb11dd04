"""Rate, distortion and speed of the photo codec beside JPEG, WebP and AVIF.

    pip install -e '.[demo]'
    python -m experiments.photo_codec.measure kodak --ours=photo-codec --output=experiments/photo_codec/kodak

The first argument is a folder of images. A rate is the bytes of a whole file over the pixels of its image;
rates and measures are means over the images. JPEG is optimized and progressive, WebP has method 6, AVIF speed 6,
Pillow's default. LPIPS, which takes most of the time, is measured at the settings marked in `LPIPS_AT` and
`OURS_LPIPS`. The curves of published models are those of CompressAI's `results/image/kodak`. Writes OUTPUT.json,
OUTPUT.png and OUTPUT_crops.png.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

from vq_jax import codec
from vq_jax.codec import peers
from vq_jax.data.images import decode, psnr, save_image, to_float
from vq_jax.interop.lpips import load_lpips
from vq_jax.models.perceptual import lpips

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
OURS_LPIPS = (10, 30, 50, 70)
PEERS = {
    "JPEG": (4, 8, 12, 20, 30, 40, 50, 60, 70, 80, 88),
    "WebP": (0, 5, 10, 20, 30, 45, 60, 75, 85, 92),
    "AVIF": (5, 15, 25, 35, 45, 55, 65, 75, 82),
}
LPIPS_AT = {"JPEG": (8, 20, 50, 75), "WebP": (5, 20, 45, 75), "AVIF": (15, 35, 55, 65)}
# (bits a pixel, PSNR in dB) on Kodak
PUBLISHED = {
    "factorized prior": [(.123, 26.91), (.189, 28.22), (.288, 29.62), (.440, 31.28), (.648, 32.96), (.967, 35.38)],
    "hyperprior": [(.131, 27.58), (.209, 29.20), (.320, 30.97), (.478, 32.84), (.669, 34.53)],
}  # fmt: skip
RATES = (0.15, 0.2, 0.3, 0.5, 0.7, 1.0)


def by_pillow(name: str, image: np.ndarray, quality: int) -> tuple[bytes, np.ndarray, float, float]:
    """Returns the file, the decoded image, and seconds of encoding and decoding."""
    started = time.perf_counter()
    data = peers.encode(name, image, quality)
    middle = time.perf_counter()
    decoded = peers.decode(data)
    return data, decoded, middle - started, time.perf_counter() - middle


def by_us(opened: codec.Codec, image: np.ndarray, quality: int, effort: int):
    """The same for vq_jax."""
    started = time.perf_counter()
    data = opened.compress(image, quality=quality, effort=effort)
    middle = time.perf_counter()
    decoded = opened.decompress(data)
    return data, decoded, middle - started, time.perf_counter() - middle


class Lpips:
    """LPIPS by both networks."""

    def __init__(self):
        self._params = {net: load_lpips(net) for net in ("alex", "vgg")}
        self._compare = jax.jit(
            lambda params, x, y, net: lpips(params, x, y, net)[0], static_argnums=3
        )

    def __call__(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        a, b = to_float(x[None]), to_float(y[None])
        return {f"lpips_{n}": float(self._compare(p, a, b, n)) for n, p in self._params.items()}


def at_rate(points: list, rate: float, measure: str = "psnr") -> float | None:
    """Interpolates a measure in the logarithm of the rate; None outside the curve."""
    known = sorted((math.log(p["bpp"]), p[measure]) for p in points if measure in p)
    x, y = zip(*known, strict=True)
    inside = x[0] <= math.log(rate) <= x[-1]
    return float(np.interp(math.log(rate), x, y)) if inside else None


def measured(images, run, settings, with_lpips, measure_lpips) -> list[dict[str, Any]]:
    """Returns a point for each setting; `run` is a function of image and setting."""
    found = []
    for setting in settings:
        rows = []
        for image in images:
            data, decoded, encoding, decoding = run(image, setting)
            row = {
                "bpp": 8 * len(data) / (image.shape[0] * image.shape[1]),
                "psnr": psnr(image, decoded),
                "encode_seconds": encoding,
                "decode_seconds": decoding,
            }
            if setting in with_lpips and measure_lpips:
                row |= measure_lpips(image, decoded)
            rows.append(row)
        found.append(
            {"quality": setting}
            | {k: round(float(np.mean([r[k] for r in rows])), 5) for k in rows[0]}
        )
        print(found[-1], flush=True)
    return found


def plot(curves: dict[str, list[dict]], published: bool, path: Path) -> None:
    panels = {"psnr": "PSNR, dB", "lpips_alex": "LPIPS (AlexNet)", "lpips_vgg": "LPIPS (VGG16)"}
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for axis, (measure, label) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            shown = [p for p in points if measure in p]
            ours = name not in PEERS
            axis.plot(
                [p["bpp"] for p in shown],
                [p[measure] for p in shown],
                "o-",
                label=name,
                lw=2.5 if ours else 1,
                markersize=4,
            )
        if measure == "psnr" and published:
            for name, line in PUBLISHED.items():
                axis.plot(*zip(*line, strict=True), "--", label=f"{name} (published)", lw=1)
        axis.set(xscale="log", xlabel="bits a pixel", title=label, xlim=(0.06, 2))
        ticks = [0.1, 0.2, 0.5, 1, 2]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        if measure != "psnr":
            axis.invert_yaxis()  # up is better in all panels
    axes[0].legend()
    figure.savefig(path, dpi=80)


def crops(images: list[np.ndarray], ours: dict[str, codec.Codec], path: Path) -> list[dict]:
    """Saves crops at equal bytes: the original, vq_jax, JPEG, WebP, AVIF."""
    rows, described = [], []
    for image in images[:: max(1, len(images) // 4)][:4]:
        height, width = image.shape[:2]
        window = np.s_[height // 2 - 96 : height // 2 + 96, width // 2 - 128 : width // 2 + 128]
        shown = [image[window]]
        about: dict[str, Any] = {}
        size = None
        for name, opened in ours.items():
            quality = 25
            if size is not None:  # as many bytes as the first model
                quality = max(
                    q
                    for q in range(1, 60, 2)
                    if q == 1 or len(opened.compress(image, quality=q)) <= size
                )
            data, decoded, _, _ = by_us(opened, image, quality, 1)
            size = size or len(data)
            shown.append(decoded[window])
            about[name] = len(data)
        for name in PEERS:
            _, data = peers.at_most(name, image, size)
            shown.append(peers.decode(data)[window])
            about[name] = len(data)
        rows.append(np.concatenate(shown, axis=1))
        described.append(about)
    save_image(np.concatenate(rows), path)
    return described


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ours", action="append", required=True, metavar="RUN")
    parser.add_argument("--limit", type=int, default=24, help="number of images")
    parser.add_argument("--effort", type=int, default=1)
    parser.add_argument("--no_lpips", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="do not measure again what OUTPUT.json has"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    files = sorted(p for p in arguments.folder.iterdir() if p.is_file())[: arguments.limit]
    images = [decode(path) for path in files]
    measure_lpips = None if arguments.no_lpips else Lpips()
    ours = {Path(run).name: codec.load(run) for run in arguments.ours}
    output = arguments.output
    before = output.with_suffix(".json")
    known = json.loads(before.read_text())["codecs"] if arguments.keep and before.exists() else {}
    kept = {name: points for name, points in known.items() if name in (*ours, *PEERS)}
    curves: dict[str, list[dict]] = dict(kept)
    for name, opened in ours.items():
        if name in curves:
            continue
        opened.decompress(opened.compress(images[0]))  # compile
        curves[name] = measured(
            images,
            lambda image, q, opened=opened: by_us(opened, image, q, arguments.effort),
            OURS, OURS_LPIPS, measure_lpips,
        )  # fmt: skip
    for name, settings in PEERS.items():
        if name in curves:
            continue
        curves[name] = measured(
            images,
            lambda image, q, name=name: by_pillow(name, image, q),
            sorted({*settings, *LPIPS_AT[name]}), LPIPS_AT[name], measure_lpips,
        )  # fmt: skip
    at = {
        measure: {
            name: {str(rate): at_rate(points, rate, measure) for rate in RATES}
            for name, points in curves.items()
        }
        for measure in ("psnr", *(() if arguments.no_lpips else ("lpips_alex", "lpips_vgg")))
    }
    kodak = arguments.folder.name == "kodak"
    if kodak:
        at["psnr"] |= {
            f"{name} (published)": {
                str(r): at_rate([{"bpp": b, "psnr": p} for b, p in line], r) for r in RATES
            }
            for name, line in PUBLISHED.items()
        }
    for measure, table in at.items():
        print(measure, *(f"{rate:>7}" for rate in RATES))
        for name, line in table.items():
            print(
                f"{name:28}", *(f"{v:7.3f}" if v is not None else "      -" for v in line.values())
            )
    plot(curves, kodak, output.with_suffix(".png"))
    shown = crops(images, ours, output.with_name(f"{output.name}_crops.png"))
    result = {
        "images": len(images),
        "effort": arguments.effort,
        "codecs": curves,
        "at_rates": at,
        "crops": shown,
    }
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Compares inpainting of held-out emoji with a median fill and OpenCV's two methods.

    pip install -e '.[demo,bench]'
    python -m experiments.edits.inpaint --workdir=runs/prior_default --output=inpaint

Every held-out image loses a rectangle of a quarter to a half of each side, at a random place with a
fixed seed. The pixels outside the rectangle are the same for all methods. PSNR (inside it) and
LPIPS (of the whole image) therefore only depend on the pixels inside. Writes inpaint.json and
inpaint.png, with rows for the original, the masked image and each method.
"""

import argparse
import json
from pathlib import Path

import cv2
import jax
import numpy as np

from vq_jax import config as configs
from vq_jax import editing
from vq_jax.data.images import rows_of, save_image, to_float, to_uint8
from vq_jax.data.pipeline import eval_batches
from vq_jax.interop.lpips import load_lpips
from vq_jax.modalities import open_source
from vq_jax.models.perceptual import lpips
from vq_jax.runs import load_prior


def draw_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws a rectangle of a quarter to a half of each side, bool [side, side]."""
    mask = np.zeros((side, side), bool)
    height, width = rng.integers(side // 4, side // 2 + 1, 2)
    y, x = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    mask[y : y + height, x : x + width] = True
    return mask


def median_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills the masked pixels with the median colour of the others."""
    filled = image.copy()
    filled[mask] = np.median(image[~mask], axis=0)
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/prior_default"))
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--output", type=Path, default=Path("inpaint"))
    parser.add_argument("--candidates", type=int, default=4)
    arguments = parser.parse_args()
    prior = load_prior(arguments.workdir, arguments.tokenizer)
    config, names = prior.config, prior.class_names
    rng = np.random.default_rng(0)
    images, masks, labels = [], [], []
    source = open_source(config).val
    for batch in eval_batches(source, config.data, configs.make_prepare(config)):
        for i in np.flatnonzero(batch["valid"]):
            images.append(to_uint8(batch["x"][i]))
            labels.append(names[batch["label"][i]] if names else None)
            masks.append(draw_mask(rng, images[-1].shape[0]))

    def by_prior(temperature: float):
        return lambda i: editing.inpaint(
            prior, images[i], masks[i], label=labels[i], seed=i,
            candidates=arguments.candidates, temperature=temperature,
        )  # fmt: skip

    def by_opencv(how: int):
        return lambda i: cv2.inpaint(images[i], masks[i].astype(np.uint8), 3, how)

    methods = {
        "this prior": by_prior(config.sampling.temperature),
        "this prior, temperature 0.3": by_prior(0.3),
        "median fill": lambda i: median_fill(images[i], masks[i]),
        "OpenCV, Telea": by_opencv(cv2.INPAINT_TELEA),
        "OpenCV, Navier-Stokes": by_opencv(cv2.INPAINT_NS),
    }
    weights = load_lpips()
    perceptual = jax.jit(lambda a, b: lpips(weights, a, b))
    shown = np.linspace(0, len(images) - 1, 16).astype(int)
    hidden = [
        np.where(m[..., None], 128, x).astype(np.uint8) for x, m in zip(images, masks, strict=True)
    ]
    rows = [[images[i] for i in shown], [hidden[i] for i in shown]]
    figures = {}
    for name, method in methods.items():
        results = [method(i) for i in range(len(images))]
        for x, y, mask in zip(images, results, masks, strict=True):
            assert (x == y)[~mask].all()
        error = [
            np.square(to_float(x) - to_float(y))[m].mean()
            for x, y, m in zip(images, results, masks, strict=True)
        ]
        distances = [
            np.asarray(perceptual(to_float(np.stack(images[i : i + 32])), to_float(np.stack(results[i : i + 32]))))
            for i in range(0, len(images), 32)
        ]  # fmt: skip
        psnr = 10 * np.log10(4 / np.maximum(error, 1e-10))
        figures[name] = {
            "lpips": float(np.concatenate(distances).mean()),
            "psnr_inside": float(psnr.mean()),
        }
        print(f"{name:<30} LPIPS {figures[name]['lpips']:.4f}  PSNR inside {psnr.mean():.2f} dB")
        rows.append([results[i] for i in shown])
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_image(rows_of(*map(np.stack, rows)), arguments.output / "inpaint.png")
    figures["images"] = len(images)
    (arguments.output / "inpaint.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

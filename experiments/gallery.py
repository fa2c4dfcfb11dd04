"""Writes the pictures of docs/gallery.md with the models that ship.

    pip install -e '.[demo]'
    python -m experiments.gallery --output=docs/images

All images are held out: no model was trained on them. Seeds are 0, and no sample was chosen.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import vq_jax
from vq_jax import codec, editing, text_editing, video_editing
from vq_jax import config as configs
from vq_jax.codec import peers
from vq_jax.data.builders import TEST_PHOTOS, emoji_splits, package_folder
from vq_jax.data.images import decode, rows_of, save_image, to_float, to_uint8
from vq_jax.data.moving_emoji import open_moving_emoji
from vq_jax.data.video import DEFAULT_RATE, as_clip, write_clip

CLASSES = ("Animals & Nature", "Food & Drink", "People & Body", "Smileys & Emotion", "Flags")
PROMPT = "And Jesus said unto them, "
GAPS = b"And God said, Let there be __________________, and it was so."


def held_out(count: int) -> np.ndarray:
    """Returns held-out emoji, uint8 [count, 32, 32, 3]."""
    files = emoji_splits()["test"]
    chosen = files[:: len(files) // count][:count]
    return np.stack(
        [
            np.asarray(Image.fromarray(decode(f)).resize((32, 32), Image.Resampling.LANCZOS))
            for f in chosen
        ]
    )


def save(image: np.ndarray, path: Path, factor: int = 2) -> None:
    save_image(image.repeat(factor, axis=0).repeat(factor, axis=1), path)
    print(path)


def samples(prior, output: Path) -> None:
    rows = [to_uint8(prior.sample(12, label=label, guidance=2.0, seed=0)) for label in CLASSES]
    save(rows_of(*rows), output / "gallery_samples.png")


def edits(prior, output: Path) -> None:
    """Columns: original, covered, four drawings."""
    rows, half = [], np.zeros((32, 32), bool)
    half[:, 16:] = True
    for image in held_out(12)[::2]:
        covered = np.where(half[..., None], 160, image).astype(np.uint8)
        drawn = [editing.inpaint(prior, image, half, seed=seed) for seed in range(4)]
        rows.append(np.stack([image, covered, *drawn]))
    halves = [np.concatenate(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    save(rows_of(*halves), output / "gallery_inpaint.png")


def enlarged(prior, output: Path) -> None:
    """Rows: 8x8 pixels, bicubic, the prior, the original."""
    originals = held_out(12)
    small = [np.asarray(Image.fromarray(x).resize((8, 8), Image.Resampling.BOX)) for x in originals]
    nearest = np.stack([x.repeat(4, 0).repeat(4, 1) for x in small])
    bicubic = np.stack(
        [np.asarray(Image.fromarray(x).resize((32, 32), Image.Resampling.BICUBIC)) for x in small]
    )
    ours = np.stack([editing.upscale(prior, x) for x in small])
    save(rows_of(nearest, bicubic, ours, originals), output / "gallery_upscale.png")


def restored(prior, output: Path) -> None:
    """Rows: damaged, restored, the original."""
    originals = held_out(12)
    damage = configs.make_condition(prior.config)
    worse = np.stack([damage(x, np.random.default_rng(i)) for i, x in enumerate(originals)])
    better = np.stack([editing.restore(prior, x) for x in worse])
    save(rows_of(worse, better, originals), output / "gallery_restore.png")


def photograph(output: Path) -> None:
    """Columns: original, vq_jax, JPEG, WebP, AVIF, at equal bytes."""
    opened = codec.load("photo-codec")
    rows = []
    for place, window in (("coffee", np.s_[40:240, 130:390]), ("rocket", np.s_[60:260, 190:450])):
        package, _, inside = TEST_PHOTOS[place].partition("/")
        photo = decode(package_folder(package) / inside)
        data = opened.compress(photo, quality=22)
        shown = [photo, opened.decompress(data)]
        sizes = [len(data)]
        for name in peers.available():
            _, file = peers.at_most(name, photo, len(data))
            shown.append(peers.decode(file))
            sizes.append(len(file))
        rows.append(np.concatenate([x[window] for x in shown], axis=1))
        print(place, "vq_jax", *peers.available(), sizes)
    save(np.concatenate(rows), output / "gallery_photographs.png", factor=1)


def reconstructed(output: Path) -> None:
    tokenizer = vq_jax.load("emoji")
    images = held_out(16)
    back = to_uint8(np.asarray(tokenizer.decode(tokenizer.encode(to_float(images)))))
    save(rows_of(images, back), output / "gallery_reconstructions.png")


def clips(output: Path) -> None:
    """Held-out clips, and below them what the tokenizer, or the prior after nine frames, makes of them."""
    prior = vq_jax.load("moving-emoji-prior")
    tokenizer, data = prior.tokenizer, prior.tokenizer.config.data
    held_out = open_moving_emoji(data, 0, alone=True).val
    originals = np.stack([held_out[i]["x"] for i in range(12)])
    back = tokenizer.modality.to_raw(tokenizer.decode(tokenizer.encode(to_float(originals))))
    rest = data.frames - 9
    continued = np.stack([video_editing.predict(prior, x[:9], rest, seed=0) for x in originals])
    for name, made in (("gallery_clips", back), ("gallery_continued", continued)):
        rows = (np.moveaxis(x, 1, 0) for x in (originals, made))
        frames = np.stack([rows_of(*row) for row in zip(*rows, strict=True)])
        large = frames.repeat(2, axis=1).repeat(2, axis=2)
        write_clip(as_clip(large, DEFAULT_RATE), output / f"{name}.gif")
        print(output / f"{name}.gif")


def texts() -> None:
    """Prints two texts that continue a prompt, and four ways to fill a gap."""
    writer, filler = vq_jax.load("bytes-kjv"), vq_jax.load("text-kjv-prior")
    show = writer.modality.shown
    for x in writer.modality.to_raw(writer.sample(2, prompt=PROMPT, temperature=0.7)):
        print(show(x), "\n")
    text = np.frombuffer(GAPS, np.uint8)
    gap = text_editing.read_gap(text, "_")
    for seed in range(4):
        print(
            show(
                text_editing.fill_gap(filler, text, gap, candidates=32, seed=seed, temperature=0.7)
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    reconstructed(output)
    prior = vq_jax.load("emoji-prior")
    samples(prior, output)
    edits(prior, output)
    enlarged(vq_jax.load("emoji-upscale"), output)
    restored(vq_jax.load("emoji-restore"), output)
    photograph(output)
    clips(output)
    texts()


if __name__ == "__main__":
    main()

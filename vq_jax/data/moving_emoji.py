"""Clips of moving emoji, drawn when they are read: an endless data set that needs no download.

One to three emoji move over a plain or photographic background. They bounce off the edges, turn, and cover
each other; or one large emoji moves over a plain background. A clip depends on its split and index alone.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from vq_jax.data.images import decode
from vq_jax.data.sources import Splits

TRAIN_CLIPS, VAL_CLIPS = 2**20, 256
RATE = 12  # frames a second


@dataclasses.dataclass(frozen=True)
class MovingEmoji:
    """Clips of one split: random access to uint8 [frames, side, side, 3].

    Attributes:
      split: "train" or "test", of the emoji and the photographs.
      files: of the emoji.
      frames, side: number of frames, and their side in pixels.
      count: number of clips.
      alone: whether a clip has one large emoji over a plain background.
    """

    split: str
    files: tuple[Path, ...]
    frames: int
    side: int
    count: int
    alone: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.split == "test", index))
        scene = _plain(rng, self.side) if self.alone else _background(rng, self.split, self.side)
        sprites = [self._sprite(rng) for _ in range(1 if self.alone else rng.integers(1, 4))]
        clip = np.empty((self.frames, self.side, self.side, 3), np.uint8)
        for t in range(self.frames):
            frame = scene.copy()
            for sprite in sprites:
                drawn = sprite.at(t, self.side)
                frame.alpha_composite(drawn)
            clip[t] = np.asarray(frame)[..., :3]
        return {"x": clip, "label": 0}

    def _sprite(self, rng: np.random.Generator) -> "_Sprite":
        path = self.files[rng.integers(len(self.files))]
        size = rng.uniform(0.5, 0.8) if self.alone else rng.uniform(0.3, 0.6)
        direction, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.01, 0.06)
        return _Sprite(
            _shrunk(path, max(2, round(size * self.side))),
            size,
            rng.uniform(size / 2, 1 - size / 2, 2),
            speed * np.array([np.cos(direction), np.sin(direction)]),
            rng.uniform(-np.pi / 6, np.pi / 6),
            rng.uniform(-0.12, 0.12) if rng.random() < 0.5 else 0.0,
        )


@dataclasses.dataclass(frozen=True)
class _Sprite:
    """A moving emoji; lengths are in sides of the frame, times in frames, angles in radians."""

    image: Image.Image
    size: float
    place: np.ndarray
    velocity: np.ndarray
    angle: float
    turn: float

    def at(self, t: int, side: int) -> Image.Image:
        """Returns a frame with this emoji alone, transparent elsewhere."""
        room = 1 - self.size
        # Reflected at both edges, the path is a triangle wave.
        phase = np.mod(self.place - self.size / 2 + self.velocity * t, 2 * room)
        x, y = side * (self.size / 2 + np.minimum(phase, 2 * room - phase))
        angle = self.angle + self.turn * t
        cos, sin, middle = np.cos(angle), np.sin(angle), self.image.width / 2
        matrix = (
            cos, sin, middle - cos * x - sin * y,
            -sin, cos, middle + sin * x - cos * y,
        )  # fmt: skip
        return self.image.transform(
            (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )


@functools.lru_cache(maxsize=4096)
def _emoji(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA")


def _shrunk(path: Path, side: int) -> Image.Image:
    """An emoji of `side` pixels, with a transparent edge for the interpolation."""
    small = _emoji(path).resize((side, side), Image.Resampling.LANCZOS)
    padded = Image.new("RGBA", (side + 2, side + 2))
    padded.paste(small, (1, 1))
    return padded


@functools.lru_cache(maxsize=2)
def _photos(split: str) -> tuple[Image.Image, ...]:
    from vq_jax.data import builders

    places = builders.TEST_PHOTOS if split == "test" else builders.TRAIN_PHOTOS
    found = []
    for place in places.values():
        package, _, inside = place.partition("/")
        found.append(Image.fromarray(decode(builders.package_folder(package) / inside)))
    return tuple(found)


def _plain(rng: np.random.Generator, side: int) -> Image.Image:
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    return Image.new("RGBA", (side, side), (*colour, 255))


def _background(rng: np.random.Generator, split: str, side: int) -> Image.Image:
    if rng.random() < 0.5:
        return _plain(rng, side)
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    shorter = min(photo.size)
    cut = int(rng.uniform(min(64, shorter), shorter))
    left, top = (int(rng.integers(0, length - cut + 1)) for length in photo.size)
    box = (left, top, left + cut, top + cut)
    return photo.resize((side, side), Image.Resampling.LANCZOS, box).convert("RGBA")


def open_moving_emoji(config: ml_collections.ConfigDict, seed: int, alone: bool = False) -> Splits:
    """Opens the clips of training emoji and of held-out ones; both splits are the same for every seed.

    Args:
      config: the section `data`.
      seed: of other sources.
      alone: see `MovingEmoji`.
    """
    del seed
    from vq_jax.data import builders

    files = builders.emoji_splits()
    train, val = (
        MovingEmoji(split, tuple(files[split]), config.frames, config.resolution, count, alone)
        for split, count in (("train", TRAIN_CLIPS), ("test", VAL_CLIPS))
    )
    return Splits(train, val, ())

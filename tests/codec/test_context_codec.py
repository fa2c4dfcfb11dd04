"""Files of a codec with a learned entropy model: exact, portable, and salvaged if damaged."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import make_photo_codec, make_tokenizer, write

from vq_jax import codec
from vq_jax import config as configs
from vq_jax.codec import bitstream, context
from vq_jax.errors import UserError
from vq_jax.tokenizer import TrainedTokenizer


@pytest.fixture(scope="module")
def opened():
    return codec.Codec(make_photo_codec())


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :280] / 40
    waves = np.stack([np.sin(x + y), np.cos(x * y / 3), np.sin(2 * x)], axis=-1)
    return np.uint8(np.clip(127 + 90 * waves + rng.normal(0, 6, waves.shape), 0, 255))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(context, "_TILE", 16)


def codes_of(opened, data):
    return opened.open(data).codes


@pytest.mark.parametrize("effort", [0, 1])
def test_codes_come_back_exactly(opened, image, effort, small_tiles, monkeypatch):
    put = []
    choose = context._choose

    def kept(*args):
        put.append(choose(*args))
        return put[-1]

    monkeypatch.setattr(context, "_choose", kept)
    data = opened.compress(image, quality=60, effort=effort)
    read = []
    take = context._read

    def read_one(*args):
        read.append(take(*args))
        return read[-1]

    monkeypatch.setattr(context, "_read", read_one)
    decoded = opened.decompress(data)
    chex.assert_trees_all_equal(put, read)
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(float) - image).mean() < 12
    if not effort:
        (y,) = opened.tiler.encode([image], 59 / 99, opened.tokenizer.encode_latents)
        chex.assert_trees_all_equal(codes_of(opened, data), np.rint(y).astype(np.int16) + 511)


def test_qualities_cover_a_range_of_rates_and_are_kept(opened, image):
    files = [opened.compress(image, quality=q) for q in (1, 30, 60, 100)]
    sizes = [len(data) for data in files]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    errors = [np.square(opened.decompress(d) - image.astype(float)).mean() for d in files]
    assert errors == sorted(errors, reverse=True)
    assert [opened.open(data).quality for data in files] == [1, 30, 60, 100]
    assert opened.compress(image) == opened.compress(image, quality=50)


def test_a_search_lowers_rate_and_distortion_together(opened, image):
    def cost(effort):
        data = opened.compress(image, quality=40, effort=effort)
        codes = codes_of(opened, data) - 511.0
        (y,) = opened.tiler.encode([image], 39 / 99, opened.tokenizer.encode_latents)
        price = opened._context.price(39 / 99)
        return 8 * len(data) + float((price * (y - codes) ** 2).sum())

    assert cost(1) < 0.98 * cost(0)


def test_a_file_is_as_long_as_the_rate_that_training_charges(opened, image):
    image = image[:192, :256]
    tokenizer = opened.tokenizer
    # Scales near 1, as they start: training charges at most 20 bits for a code, and a file more.
    calm = jax.tree_util.tree_map_with_path(
        lambda path, a: 0 * a if "scale" in str(path) and "kernel" in str(path) else a,
        tokenizer.variables,
    )
    tokenizer = TrainedTokenizer(tokenizer.config, tokenizer.module, calm, 0)
    q, x = jnp.zeros(1), jnp.asarray(image[None] / 127.5 - 1, jnp.float32)
    z = tokenizer.encode_latents(x, q)
    aux = tokenizer.module.apply(calm, z, quality=q, method="quantize")[2]
    data = codec.Codec(tokenizer).compress(image, quality=1, effort=0)
    assert 8 * len(data) == pytest.approx(float(aux["rate"]) * 24 * 32, rel=0.01)


def test_tables_hold_the_distribution():
    tables = context.tables()
    assert len(tables) == context.SCALES * context.FRACTIONS
    for scale, fraction in ((4, 0), (18, 3), (30, 7)):
        table = tables[scale * context.FRACTIONS + fraction]
        s = 2.0 ** (scale / 4 - 4.5)
        k = np.arange(-table.reach, table.reach + 1)
        cdf = lambda x, s=s: 1 / (1 + np.exp(-x / s))
        p = cdf(k + 0.5 - fraction / 8) - cdf(k - 0.5 - fraction / 8)
        near = p > 1e-3
        chex.assert_trees_all_close(2.0 ** -table.bits[:-1][near], p[near], rtol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (1, 300)])
def test_images_of_any_size_come_back(opened, size):
    image = np.uint8(np.random.default_rng(0).integers(0, 256, (*size, 3)))
    for turned in (image, image.swapaxes(0, 1)):
        decoded = opened.decompress(opened.compress(turned, quality=100))
        assert decoded.shape == turned.shape


def test_codes_beyond_the_tables_are_kept(opened):
    y = np.zeros((3, 3, 24), np.float32)
    y[1, 1] = 511
    y[0, 2] = -511
    y[2, 2, 5] = 9000  # clipped
    model = opened._context
    header = bitstream.Header(bytes(4), "context", (24, 24), 24, bytes([51]))
    payload = model.put(y, header, effort=0)
    codes, _, damaged = model.read(payload, header, salvage=False)
    chex.assert_trees_all_equal(codes - 511, np.clip(y, -511, 511).astype(np.int16))
    assert not damaged


def damaged_at(data, place):
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


def test_a_damaged_tile_is_lost_alone(opened, image, small_tiles):
    data = opened.compress(image, quality=60)
    whole = codes_of(opened, data)
    bad = damaged_at(data, len(data) - 10)  # in the last segment
    with pytest.raises(UserError, match="checksum does not match; give salvage"):
        opened.open(bad)
    content = opened.open(bad, salvage=True)
    (place,) = content.damaged
    assert place[0].stop == 25 and place[1].stop == 35  # the last tile of 25x35 positions
    assert (content.codes[place] == 511).all()
    content.codes[place] = whole[place]
    chex.assert_trees_all_equal(content.codes, whole)
    height, width = image.shape[:2]
    said = opened.describe(content)
    assert "rows 9" in said and said.endswith(f"-{width - 1}") and f"-{height - 1}," in said
    assert next(opened.decode([content])).shape == image.shape


def test_a_file_without_a_whole_tile_is_an_error(opened, image):
    data = opened.compress(image[:64, :64], quality=60)
    with pytest.raises(UserError, match="every part of this file is damaged"):
        opened.open(damaged_at(data, len(data) - 10), salvage=True)


def test_a_truncated_file_is_salvaged_up_to_its_end(opened, image, small_tiles):
    data = opened.compress(image, quality=60)
    content = opened.open(data[: len(data) * 2 // 3], salvage=True)
    assert 0 < len(content.damaged) < 6


def test_a_damaged_table_of_segments_is_named(opened, image):
    data = opened.compress(image, quality=60)
    start = 4 + 4 + 1 + 2 + 2 + 1 + 1  # the payload begins with the CRC of the sizes
    with pytest.raises(UserError, match="beginning of this file is damaged"):
        opened.open(damaged_at(data, start), salvage=True)


def test_damage_is_never_taken_for_codes(opened, image, small_tiles):
    data = opened.compress(image[:200, :200], quality=30)
    whole = opened.open(data)
    rng = np.random.default_rng(0)
    salvaged = 0
    for place in [*range(40), *rng.integers(len(data), size=40)]:
        bad = damaged_at(data, int(place))
        with pytest.raises(UserError):
            opened.open(bad)
        try:
            content = opened.open(bad, salvage=True)
        except UserError:
            continue
        salvaged += 1
        assert (content.shape, content.quality) == (whole.shape, whole.quality)
        for tile in content.damaged:
            content.codes[tile] = whole.codes[tile]
        chex.assert_trees_all_equal(content.codes, whole.codes)
    assert salvaged > 20


def test_only_files_with_segments_are_salvaged():
    other = codec.Codec(make_tokenizer())
    data = other.compress(np.zeros((32, 32, 3), np.uint8), entropy="fixed")
    with pytest.raises(UserError, match="checksum does not match$"):
        other.open(damaged_at(data, len(data) - 6), salvage=True)


def test_integers_far_from_their_means_are_kept(opened):
    def at_the_limit(path, a):
        name = jax.tree_util.keystr(path)
        return jnp.full_like(a, -511 / 16) if "['mean']['bias']" in name else a

    tokenizer = opened.tokenizer
    variables = jax.tree_util.tree_map_with_path(at_the_limit, tokenizer.variables)
    model = codec.Codec(TrainedTokenizer(tokenizer.config, tokenizer.module, variables, 0))._context
    header = bitstream.Header(bytes(4), "context", (16, 16), 24, bytes([51]))
    y = np.full((2, 2, 24), 511, np.float32)
    codes, _, _ = model.read(model.put(y, header, effort=0), header, salvage=False)
    chex.assert_trees_all_equal(codes - 511, y.astype(np.int16))


def test_the_step_and_the_number_of_integers_are_kept(image):
    tokenizer = make_photo_codec()
    with tokenizer.config.unlocked():
        tokenizer.config.quantizer.update(step=2.0, num_codes=7)
    module = configs.make_tokenizer(tokenizer.config)
    opened = codec.Codec(TrainedTokenizer(tokenizer.config, module, tokenizer.variables, 0))
    image = image[:64, :64]
    for effort in (0, 1):
        codes = codes_of(opened, opened.compress(image, effort=effort))
        assert codes.min() >= 0 and codes.max() == 6
    x = jnp.asarray(image[None] / 127.5 - 1, jnp.float32)
    wanted = opened.tokenizer.encode_unchecked(x, jnp.array([49 / 99]))[0]
    found = codes_of(opened, opened.compress(image, effort=0))
    chex.assert_trees_all_equal(found, np.asarray(wanted, np.int16))


def test_models_that_are_not_finite_are_refused(opened, image):
    tokenizer = opened.tokenizer
    broken = jax.tree.map(lambda a: a * jnp.nan, tokenizer.variables)
    with pytest.raises(UserError, match="not finite"):
        codec.Codec(TrainedTokenizer(tokenizer.config, tokenizer.module, broken, 0))


def test_a_small_file_cannot_claim_a_vast_image(opened, monkeypatch):
    fingerprint = opened.tokenizer.fingerprint[:4]
    header = bitstream.Header(fingerprint, "context", (2**30, 2**30), 24, bytes([50]))
    with pytest.raises(UserError, match="segments, more than its payload of 1,000 bytes"):
        opened.open(bitstream.pack(header, bytes(1000)))
    monkeypatch.setattr(context, "free_memory", lambda: 2**28)
    header = bitstream.Header(fingerprint, "context", (20000, 20000), 24, bytes([50]))
    sizes = bytes([4]) * 27**2  # empty segments
    payload = context._crc(context._sealed(header) + sizes) + sizes + bytes(4 * 27**2)
    with pytest.raises(UserError, match="1.4 GiB of memory, and 0.2 GiB"):
        opened.open(bitstream.pack(header, payload))


def test_wrong_arguments_are_named(opened, image):
    with pytest.raises(UserError, match="quality is 101: use 1 to 100"):
        opened.compress(image, quality=101)
    with pytest.raises(UserError, match="effort is 3"):
        opened.compress(image, effort=3)
    with pytest.raises(UserError, match="take 'context'"):
        opened.compress(image, entropy="fixed")
    with pytest.raises(UserError, match="only the entropy model 'context' has a search"):
        codec.Codec(make_tokenizer()).compress(image, effort=0)
    header = bitstream.Header(opened.tokenizer.fingerprint[:4], "context", (8, 8), 24, b"\0")
    with pytest.raises(UserError, match="altered"):
        opened.open(bitstream.pack(header, bytes(20)))


_READ = """
import sys
import numpy as np
from vq_jax import codec
opened = codec.load(sys.argv[1])
content = opened.open(open(sys.argv[2], "rb").read())
np.save(sys.argv[3], content.codes)
"""


def test_another_process_decodes_bit_for_bit_whatever_its_threads_and_optimizations(
    opened, image, tmp_path
):
    data = opened.compress(image, quality=60)
    (tmp_path / "x.vqz").write_bytes(data)
    (tmp_path / "model").mkdir()
    write(opened.tokenizer, tmp_path / "model")
    wanted = codes_of(opened, data)
    threads = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    settings = [threads, {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, {"JAX_DISABLE_JIT": "1"}]
    for i, setting in enumerate(settings):
        out = tmp_path / f"{i}.npy"
        subprocess.run(
            [sys.executable, "-c", _READ, tmp_path / "model", tmp_path / "x.vqz", out],
            env={**os.environ, "JAX_PLATFORMS": "cpu", **setting},
            check=True,
        )
        chex.assert_trees_all_equal(np.load(out), wanted)

"""Sets of codes on disk, and degraded images."""

import json

import numpy as np
import pytest

from vq_jax.data import codes as codes_data
from vq_jax.data.degrade import restore, upscale
from vq_jax.errors import UserError

METADATA = {
    "fingerprint": "00" * 32, "shape": [2, 3], "num_codes": 9, "books": 1, "image": [4, 6, 3],
    "classes": ["a", "b"],
}  # fmt: skip


def examples(start, count):
    return ((np.full((2, 3), i % 9), i % 2) for i in range(start, start + count))


def test_shards_written_separately_are_one_data_set(tmp_path):
    folder = tmp_path / "codes"
    shards = {"train": 2, "val": 1}
    codes_data.begin(folder, METADATA)
    codes_data.write_shard(codes_data.shard_path(folder, "train", 1, 2), examples(5, 3), METADATA)
    with pytest.raises(UserError, match="not complete"):
        codes_data.read_codes(folder)
    assert len(codes_data.finish(folder, shards)) == 2
    codes_data.begin(folder, METADATA)  # as another process, or another run, does
    codes_data.write_shard(codes_data.shard_path(folder, "train", 0, 2), examples(0, 5), METADATA)
    codes_data.write_shard(codes_data.shard_path(folder, "val", 0, 1), examples(0, 2), METADATA)
    assert codes_data.finish(folder, shards) == []
    metadata, train, val = codes_data.read_codes(folder)
    assert metadata == METADATA and (len(train), len(val)) == (8, 2)
    for i in range(8):
        np.testing.assert_array_equal(train[i]["codes"], np.full((2, 3), i))
        assert train[i]["label"] == i % 2


def test_failed_shard_leaves_no_file(tmp_path):
    codes_data.begin(tmp_path / "codes", METADATA)
    path = codes_data.shard_path(tmp_path / "codes", "train", 0, 1)

    def failing():
        yield from examples(0, 2)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        codes_data.write_shard(path, failing(), METADATA)
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    # A data set without classes still has labels.
    codes_data.begin(tmp_path / "plain", METADATA | {"classes": []})
    for split in ("train", "val"):
        shard = codes_data.shard_path(tmp_path / "plain", split, 0, 1)
        codes_data.write_shard(shard, examples(0, 3), METADATA | {"classes": []})
    assert codes_data.finish(tmp_path / "plain", {"train": 1, "val": 1}) == []
    assert codes_data.read_codes(tmp_path / "plain")[1][2]["label"] == 0


def test_folder_with_other_contents_is_refused(tmp_path):
    codes_data.begin(tmp_path / "codes", METADATA)
    with pytest.raises(UserError, match="differ in num_codes"):
        codes_data.begin(tmp_path / "codes", METADATA | {"num_codes": 8})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("text")
    with pytest.raises(UserError, match="has other contents"):
        codes_data.begin(tmp_path / "other", METADATA)
    with pytest.raises(UserError, match="has no codes"):
        codes_data.read_codes(tmp_path / "nowhere")
    (tmp_path / "codes" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        codes_data.read_codes(tmp_path / "codes")


def test_metadata_is_saved_as_json(tmp_path):
    codes_data.begin(tmp_path, METADATA | {"shape": (2, 3)})
    assert json.loads((tmp_path / "tokenizer.json").read_text())["shape"] == [2, 3]


# --- degraded images ------------------------------------------------------------------------------


def picture(rng, channels=3):
    return rng.integers(0, 256, (16, 24, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_upscale_averages_blocks(rng, channels):
    image = picture(rng, channels)
    small = upscale(2, enlarge=False)(image, None)
    means = image.reshape(8, 2, 12, 2, channels).mean((1, 3))
    np.testing.assert_allclose(small, means, atol=1.01)  # rounded twice
    assert upscale(4)(image, None).shape == image.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_each_degradation_has_its_effect(rng, channels):
    # Grey, because JPEG may blur colours.
    image = np.kron(picture(rng, 1)[:4, :6], np.ones((4, 4, channels), np.uint8))
    disabled = {"noise": 0.0, "blur": 0.0, "low_light": 0.0, "jpeg": 95, "share": 1.0}

    def degraded(**changes):
        return restore(**disabled | changes)(image, np.random.default_rng(1)).astype(float)

    assert np.abs(degraded() - image).mean() < 4  # JPEG of quality 95 alone
    assert degraded(low_light=0.9).mean() < 0.9 * image.mean()
    assert (
        np.abs(np.diff(degraded(blur=3.0), axis=1)).mean()
        < 0.7 * np.abs(np.diff(image.astype(float), axis=1)).mean()
    )
    assert np.abs(degraded(noise=0.3) - image).mean() > 10
    assert np.abs(degraded(jpeg=1) - image).mean() > 1.5 * np.abs(degraded() - image).mean()


def test_degradation_depends_on_the_generator(rng):
    image, degrade = picture(rng), restore()
    first = degrade(image, np.random.default_rng(3))
    np.testing.assert_array_equal(first, degrade(image, np.random.default_rng(3)))
    others = [degrade(image, np.random.default_rng(i)) for i in range(8)]
    assert len({o.tobytes() for o in others}) == 8
    assert all((o != image).any() for o in others)  # each has at least one degradation
    assert first.dtype == np.uint8 and first.shape == image.shape


def test_error_names_the_invalid_field():
    with pytest.raises(ValueError, match="factor is 3"):
        upscale(3)
    with pytest.raises(ValueError, match="jpeg is 0"):
        restore(jpeg=0)
    with pytest.raises(ValueError, match="does not divide"):
        upscale(4)(np.zeros((6, 8, 3), np.uint8), None)

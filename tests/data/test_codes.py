"""Codes on disk, and images made worse."""

import json

import numpy as np
import pytest

from vq_jax.data import codes as codes_data
from vq_jax.data.degrade import restore, upscale
from vq_jax.errors import UserError

ABOUT = {
    "fingerprint": "00" * 32, "shape": [2, 3], "num_codes": 9, "books": 1, "image": [4, 6, 3],
    "classes": ["a", "b"],
}  # fmt: skip


def examples(start, count):
    return ((np.full((2, 3), i % 9), i % 2) for i in range(start, start + count))


def test_shards_written_apart_are_one_data_set(tmp_path):
    folder = tmp_path / "codes"
    shards = {"train": 2, "val": 1}
    codes_data.begin(folder, ABOUT)
    codes_data.write_shard(codes_data.shard_path(folder, "train", 1, 2), examples(5, 3), ABOUT)
    with pytest.raises(UserError, match="not complete"):
        codes_data.read_codes(folder)
    assert len(codes_data.finish(folder, shards)) == 2
    codes_data.begin(folder, ABOUT)  # another process, or the same again
    codes_data.write_shard(codes_data.shard_path(folder, "train", 0, 2), examples(0, 5), ABOUT)
    codes_data.write_shard(codes_data.shard_path(folder, "val", 0, 1), examples(0, 2), ABOUT)
    assert codes_data.finish(folder, shards) == []
    about, train, val = codes_data.read_codes(folder)
    assert about == ABOUT and (len(train), len(val)) == (8, 2)
    for i in range(8):
        np.testing.assert_array_equal(train[i]["codes"], np.full((2, 3), i))
        assert train[i]["label"] == i % 2


def test_a_shard_that_fails_leaves_nothing_by_its_name(tmp_path):
    codes_data.begin(tmp_path / "codes", ABOUT)
    path = codes_data.shard_path(tmp_path / "codes", "train", 0, 1)

    def broken():
        yield from examples(0, 2)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        codes_data.write_shard(path, broken(), ABOUT)
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    # A data set without classes has labels all the same.
    codes_data.begin(tmp_path / "plain", ABOUT | {"classes": []})
    for split in ("train", "val"):
        plain = codes_data.shard_path(tmp_path / "plain", split, 0, 1)
        codes_data.write_shard(plain, examples(0, 3), ABOUT | {"classes": []})
    assert codes_data.finish(tmp_path / "plain", {"train": 1, "val": 1}) == []
    assert codes_data.read_codes(tmp_path / "plain")[1][2]["label"] == 0


def test_a_folder_is_for_codes_made_one_way(tmp_path):
    codes_data.begin(tmp_path / "codes", ABOUT)
    with pytest.raises(UserError, match="made otherwise .num_codes"):
        codes_data.begin(tmp_path / "codes", ABOUT | {"num_codes": 8})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other things"):
        codes_data.begin(tmp_path / "other", ABOUT)
    with pytest.raises(UserError, match="holds no codes"):
        codes_data.read_codes(tmp_path / "nowhere")
    (tmp_path / "codes" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        codes_data.read_codes(tmp_path / "codes")


def test_about_is_plain_json(tmp_path):
    codes_data.begin(tmp_path, ABOUT | {"shape": (2, 3)})
    assert json.loads((tmp_path / "tokenizer.json").read_text())["shape"] == [2, 3]


# --- images made worse ----------------------------------------------------------------------------


def picture(rng, channels=3):
    return rng.integers(0, 256, (16, 24, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_is_the_mean_of_its_blocks(rng, channels):
    image = picture(rng, channels)
    small = upscale(2, enlarge=False)(image, None)
    means = image.reshape(8, 2, 12, 2, channels).mean((1, 3))
    np.testing.assert_allclose(small, means, atol=1.01)  # rounded twice
    assert upscale(4)(image, None).shape == image.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_each_damage_does_what_it_says(rng, channels):
    # Grey, since JPEG is free to blur colours.
    image = np.kron(picture(rng, 1)[:4, :6], np.ones((4, 4, channels), np.uint8))
    off = {"noise": 0.0, "blur": 0.0, "low_light": 0.0, "jpeg": 95, "share": 1.0}

    def damaged(**changes):
        return restore(**off | changes)(image, np.random.default_rng(1)).astype(float)

    assert np.abs(damaged() - image).mean() < 4  # JPEG of quality 95 alone
    assert damaged(low_light=0.9).mean() < 0.9 * image.mean()
    assert (
        np.abs(np.diff(damaged(blur=3.0), axis=1)).mean()
        < 0.7 * np.abs(np.diff(image.astype(float), axis=1)).mean()
    )
    assert np.abs(damaged(noise=0.3) - image).mean() > 10
    assert np.abs(damaged(jpeg=1) - image).mean() > 1.5 * np.abs(damaged() - image).mean()


def test_damage_is_drawn_from_the_generator(rng):
    image, degrade = picture(rng), restore()
    first = degrade(image, np.random.default_rng(3))
    np.testing.assert_array_equal(first, degrade(image, np.random.default_rng(3)))
    others = [degrade(image, np.random.default_rng(i)) for i in range(8)]
    assert len({o.tobytes() for o in others}) == 8
    assert all((o != image).any() for o in others)  # at least one damage each
    assert first.dtype == np.uint8 and first.shape == image.shape


def test_fields_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="factor is 3"):
        upscale(3)
    with pytest.raises(ValueError, match="jpeg is 0"):
        restore(jpeg=0)
    with pytest.raises(ValueError, match="does not divide"):
        upscale(4)(np.zeros((6, 8, 3), np.uint8), None)

"""A third kind of data, declared here, works from training to priors without other changes."""

import json
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import program

import vq_jax
from vq_jax import modalities
from vq_jax.config import base, base_prior
from vq_jax.data.sources import Splits
from vq_jax.errors import UserError
from vq_jax.files import writing
from vq_jax.modalities.base import Modality, NoFields
from vq_jax.models import MODELS, Model
from vq_jax.tasks.train import train

LENGTH, SYMBOLS = 16, 5


class Runs:
    """Sequences of runs of equal symbols."""

    always_readable = True

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        return {"x": np.repeat(rng.integers(0, SYMBOLS, LENGTH // 4), 4), "label": 0}


def cross_entropy(logits, x):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), x[..., None], axis=-1)[..., 0]


class Sequence(Modality):
    """Integers [16], whose decoder returns logits [16, 5]."""

    name, noun, unit, feature = "sequence", "sequence", "symbol", "sequence"
    suffixes, suffix, writes = frozenset([".txt"]), ".txt", frozenset([".txt"])
    axes = ("L",)
    discriminator = "mlp"
    data_fields, shape_fields = NoFields, ()
    losses: ClassVar = {"cross_entropy": cross_entropy}
    rows: ClassVar = {"accuracy": ("symbols that are right", ".3f")}

    def spec(self, data):
        return jax.ShapeDtypeStruct((LENGTH,), jnp.int32)

    def units(self, shape):
        return shape[0]

    def output_shape(self, shape):
        return shape[:-1]

    def sources(self):
        return {"runs": lambda data, seed: Splits(Runs(400, 1), Runs(64, 2), ())}

    def prepare(self, data, train, condition=None):
        return lambda example, rng=None: {
            "x": example["x"].astype(np.int32),
            "label": np.int32(example["label"]),
        }

    def preparation(self, data):
        return "as they are"

    def metrics(self, config):
        return lambda x, y: {"accuracy": (self.output(y) == x).mean(-1)}

    def summarize(self, means):
        return {"accuracy": float(means["accuracy"])}

    def problem(self, x):
        return "values are not symbols" if int(x.max()) >= SYMBOLS else None

    def output(self, y):
        return y if y.ndim == 2 else jnp.argmax(y, axis=-1)

    def to_raw(self, x):
        return np.asarray(self.output(x), np.int32)

    def from_raw(self, raw):
        return np.asarray(raw, np.int32)

    def read(self, path, data):
        return np.loadtxt(path, dtype=np.int32, ndmin=2)

    def write(self, raw, path):
        with writing(path) as temporary:
            np.savetxt(temporary, np.atleast_2d(raw), fmt="%d")

    def preview(self, path, *rows):
        from vq_jax.data.images import save_image

        shades = np.concatenate(rows, axis=1) * (255 // SYMBOLS)
        save_image(np.repeat(shades.astype(np.uint8)[..., None], 3, axis=-1), path)


class Encoder(nn.Module):
    dim: int
    dtype: Any
    strides = (4,)

    @nn.compact
    def __call__(self, x_BL):
        x_BL4E = nn.Embed(SYMBOLS, 8)(x_BL.reshape(len(x_BL), -1, 4))
        h_BLE = nn.relu(nn.Dense(32)(x_BL4E.reshape(*x_BL4E.shape[:2], -1)))
        return nn.Dense(self.dim)(h_BLE)


class Decoder(nn.Module):
    dtype: Any

    def setup(self):
        self.dense, self.dense_out = nn.Dense(32), nn.Dense(4 * SYMBOLS)

    def features(self, z):
        return nn.relu(self.dense(z))

    def head(self, h):
        return self.dense_out(h).reshape(len(h), -1, SYMBOLS)


def make_model(*, spec, dim, dtype):
    return Encoder(dim=dim, dtype=dtype), Decoder(dtype=dtype)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(modalities.MODALITIES, "sequence", Sequence())
        patch.setitem(MODELS, "sequence_mlp", Model(make_model, "sequence"))
        from vq_jax.config import schema

        patch.setitem(schema.TABLES["tokenizer"]["model"], "sequence_mlp", make_model)
        folder = tmp_path_factory.mktemp("sequences")
        config = base("sequence_mlp")
        config.data.batch_size = 64
        config.quantizer.update(num_codes=16, dim=8)
        config.optim.lr = 1e-2
        config.update(kmeans_batches=2, tensorboard=False)
        config.phases.update(autoencoder=40, quantizer=5, joint=150)
        train(config, folder / "run")
        yield folder


def test_a_tokenizer_learns_the_sequences(run):
    figures = json.loads((run / "run" / "evaluation.json").read_text())
    assert figures["accuracy"] > 0.9
    assert figures["bits_per_symbol"] == 1 and figures["sequences"] == 64


def test_sequences_are_encoded_and_wrong_ones_refused(run):
    tok = vq_jax.load(run / "run")
    x = np.stack([Runs(3, 7)[i]["x"] for i in range(3)]).astype(np.int32)
    codes = tok.encode(x)
    assert codes.shape == (3, 4) and tok.decode(codes).shape == (3, LENGTH, SYMBOLS)
    with pytest.raises(ValueError, match="values are not symbols"):
        tok.encode(x + SYMBOLS)
    with pytest.raises(UserError, match="flips and crops are for images: sequences have none"):
        Sequence().variants({"x": x[0], "label": 0}, None, (0,), True, 0)


def test_files_of_sequences_are_reconstructed_and_compressed(run):
    x = np.stack([Runs(30, 7)[i]["x"] for i in range(30)])
    np.savetxt(run / "x.txt", x, fmt="%d")
    common = f"--workdir={run}/run", f"--input={run}/x.txt"
    program("--mode=reconstruct", *common, f"--output={run}/y.txt")
    y = np.loadtxt(run / "y.txt", dtype=int)
    assert y.shape == x.shape and (x == y).mean() > 0.9
    program("--mode=compress", *common, f"--output={run}/x.vqz")
    program(
        "--mode=decompress", f"--workdir={run}/run", f"--input={run}/x.vqz", f"--output={run}/z.txt"
    )
    np.testing.assert_array_equal(np.loadtxt(run / "z.txt", dtype=int), y)


def test_a_prior_learns_and_draws_sequences(run):
    program("--mode=tokenize", f"--workdir={run}/run", f"--output={run}/codes")
    config = base_prior("causal", modality="sequence")
    config.tokenizer = str(run / "run")
    config.data.update(source="codes", folder=str(run / "codes"), batch_size=32)
    config.prior.update(layers=1, width=32, heads=2)
    config.update(eval_samples=0, tensorboard=False)
    config.phases.prior = 20
    train(config, run / "prior")
    prior = vq_jax.load(run / "prior")
    assert prior.sample_codes(2).shape == (2, 4)
    program("--mode=sample", f"--workdir={run}/prior", "--count=2", f"--output={run}/drawn")
    assert np.loadtxt(run / "drawn" / "00001.txt").shape == (LENGTH,)

"""Config files, the checks of their values, and saving and loading them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from vq_jax import config as configs
from vq_jax import modalities
from vq_jax.errors import UserError
from vq_jax.models import MODELS
from vq_jax.quantizers import QUANTIZERS
from vq_jax.tasks.train_tokenizer import make_phases, make_recipe

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def load(path: Path, variant: str | None = None):
    values = flags.FlagValues()
    location = f"{path}:{variant}" if variant else str(path)
    handle = config_flags.DEFINE_config_file("config", location, flag_values=values)
    values(["test"])
    return handle.value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_is_valid_and_builds_its_model(path):
    config = load(path)
    configs.check(config)
    text = path.read_text()
    assert f"--config=configs/{path.name}" in text.split('"""')[1]
    if configs.kind_of(config) == "prior":
        config.codes.update(num_codes=16, grid=(4, 4), classes=("a",))
        if config.prior.name == "next_scale":
            config.codes.update(grid=(16,), grids=((4, 4),), latent=3)
        prior = configs.make_prior(config)
        codes, label = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((2, 16), (2,)))
        shapes = jax.eval_shape(prior.init, jax.random.key(0), codes, label)
        assert jax.eval_shape(prior.apply, shapes, codes, label).shape == (2, 16, 16)
        return
    module = configs.make_tokenizer(config)
    spec = configs.spec_of(config)
    x = jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    out = jax.eval_shape(module.apply, shapes, x)
    assert modalities.of(config).output_shape(out.shape) == x.shape
    assert make_phases(config)[-1].start + make_phases(config)[-1].steps > 100


def test_config_files_have_variants():
    by_name = {p.stem: p for p in CONFIGS}
    big = load(by_name["vqgan_imagenet256"], "16384")
    assert big.quantizer.num_codes == 16384 and big.phases.joint == 0
    grey = load(by_name["vqvae_mlp"], "emoji")
    assert (grey.data.source, grey.data.channels, grey.data.resolution) == ("emoji", 1, 28)


@pytest.mark.parametrize("name", [*QUANTIZERS, "residual/fsq", "residual/simvq"])
def test_default_config_accepts_any_quantizer(name, tmp_path):
    config = load(next(p for p in CONFIGS if p.stem == "default"), name)
    configs.check(config)
    quantizer = configs.make_quantizer(config.quantizer)
    assert quantizer.num_codes == (240 if name == "lattice" else 512)
    configs.save(config, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("vq", "name", "fsq", "a config file sets the name in base"),
        ("vq", "estimator", "rotate", "use 'straight_through', 'rotation', 'gumbel'"),
        ("fsq", "levels", (8, 2), "3 or more for each dimension"),
        ("lfq", "bits", 40, "quantizer.bits is 40: use 24 or less"),
        ("lfq", "bits", 0, "quantizer.bits is 0: use 1 or more"),
        ("ibq", "temperature", 0.0, "temperature is 0.0: use 1e-06 or more"),
        ("fsq", "levels", (), "give at least one"),
        ("residual/vq", "inner.decay", 1.5, "quantizer.inner.decay is 1.5: use 1 or less"),
        ("multiscale", "convolutions", -1, "use 0 or more"),
        ("residual/vq", "inner.distance", "cosine", "cannot be a level"),
        ("residual/vq", "inner.num_codes", 0, "use 2 or more"),
        ("multiscale", "scales", (1, 2, 4), "latents' grid is 8x8"),
        ("multiscale", "scales", (4, 2, 8), "increasing sides of 1 or more"),
    ],
)
def test_invalid_quantizer_fields_give_a_one_line_error(name, place, value, message):
    config = configs.base("vqvae", name)
    config.phases.joint = 1
    section = config.quantizer
    *path, field = place.split(".")
    for part in path:
        section = section[part]
    section[field] = value
    with pytest.raises(UserError, match=message) as raised:
        configs.check(config)
    assert "\n" not in str(raised.value)


def test_invalid_inner_quantizers_are_refused():
    with pytest.raises(UserError, match="'vq', not 'vq/fsq'"):
        configs.base(quantizer="vq/fsq")
    with pytest.raises(UserError, match="did you mean fsq"):
        configs.base(quantizer="residual/fsqq")


def test_annealed_fields_are_linear_ramps():
    config = configs.base("vqvae", "residual/vq")
    config.phases.joint = 1
    config.anneal.beta = (0.0, 0.5, 10, 20)
    configs.check(config)
    beta = make_recipe(config).anneal["beta"]
    assert [float(beta(step)) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.25, 0.5, 0.5]
    for invalid in ((0.0, 0.5), (0.0, 0.5, 20, 10)):
        config.anneal.beta = invalid
        with pytest.raises(UserError, match="first step, last step"):
            configs.check(config)


def test_unknown_fields_cannot_be_set():
    config = configs.base()
    with pytest.raises(AttributeError, match="lrr"):
        config.optim.lrr = 1.0
    with pytest.raises(UserError, match="did you mean ch_mult"):
        configs.section({"vqgan": MODELS["vqgan"].make}, "vqgan", ch_mul=(1, 2))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.name", "vqgn", "did you mean vqgan"),
        ("quantizer.name", "vg", "did you mean vq"),
        ("data.source", "emoj", "did you mean emoji"),
        ("loss.reconstruction", "l3", "did you mean l"),
        ("adversarial.loss", "hing", "did you mean hinge"),
        ("loss.perceptual_from", "join", "did you mean joint"),
        ("dtype", "float16", "did you mean"),
        ("data.channels", 4, "use 1 or 3"),
        ("log_every", 0, "use 1 or more"),
        ("phases.joint", -1, "none below 0"),
    ],
)
def test_invalid_values_give_an_error_with_a_suggestion(place, value, message):
    config = configs.base()
    config.phases.joint = 1
    section, _, field = place.rpartition(".")
    (config[section] if section else config)[field] = value
    with pytest.raises(UserError, match=message):
        configs.check(config)


def test_config_survives_saving_and_loading(tmp_path):
    config = load(next(p for p in CONFIGS if p.stem == "vqgan_photos"))
    configs.save(config, tmp_path / "config.json")
    loaded = configs.load(tmp_path / "config.json")
    assert loaded == config and isinstance(loaded.model.ch_mult, tuple)
    assert not configs.differences(config, loaded)
    loaded.optim.lr = 0.5
    assert configs.differences(config, loaded) == ["optim.lr 0.001 -> 0.5"]


def test_missing_or_damaged_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="train there first"):
        configs.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        configs.load(tmp_path / "config.json")


def test_phases_run_in_order_and_train_their_modules():
    config = configs.base()
    config.phases.update(autoencoder=5, quantizer=3, joint=0, adversarial=7)
    config.loss.perceptual_from = "adversarial"
    first, second, third = make_phases(config)
    assert [p.start for p in (first, second, third)] == [0, 5, 8]
    assert first.trains == ("encoder", "decoder") and not first.quantize
    assert second.trains == ("quantizer",) and second.quantize and not second.adversarial
    assert third.trains == ("encoder", "quantizer", "decoder") and third.adversarial
    assert [p.perceptual for p in (first, second, third)] == [False, False, True]


def test_unreadable_config_is_an_error(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        configs.load(tmp_path / "config.json")

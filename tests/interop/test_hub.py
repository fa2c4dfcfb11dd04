"""Fetching from the Hub and pushing to it, against a server on this machine."""

import shutil
import subprocess

import numpy as np
import pytest
from alike import diffusers_model
from hub_server import serving
from running import environment, process
from small import make_prior, make_tokenizer, write

import vq_jax
from vq_jax import runs
from vq_jax.errors import UserError
from vq_jax.interop import hub
from vq_jax.interop.hub import Place
from vq_jax.tasks.import_weights import import_weights
from vq_jax.tasks.model_card import model_card

pytest.importorskip("huggingface_hub")


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:owner/../x", "hf:o/n//x", "hf:o/n/../x"])
def test_other_names_are_refused(text):
    with pytest.raises(UserError, match="no place at the Hub"):
        hub.parse(text)


def test_names_of_files_and_folders():
    assert hub.parse("hf:owner/name") == Place("owner/name")
    assert hub.parse("hf:owner/na.me/a/b.ckpt") == Place("owner/na.me", "a/b.ckpt")
    assert hub.is_place("hf:owner/name") and not hub.is_place("runs/hf")


@pytest.mark.parametrize(
    "names, path, fetched, found",
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "x.py"], "",
         ["model.safetensors", "config.json"], ""),
        (["a.ckpt", "b.ckpt", "config.yaml"], "b.ckpt", ["b.ckpt", "config.yaml"], "b.ckpt"),
        (["model_index.json", "unet/x.bin", "vqvae/x.safetensors", "vqvae/config.json"], "",
         ["vqvae/x.safetensors", "vqvae/config.json"], "vqvae"),
        (["w-00001-of-00002.bin", "w-00002-of-00002.bin", "w.bin.index.json"], "",
         ["w-00001-of-00002.bin", "w-00002-of-00002.bin", "w.bin.index.json"], ""),
        ([".x/a.ckpt", "x/config.json"], ".x/a.ckpt", [".x/a.ckpt"], ".x/a.ckpt"),
        (["w-00001-of-00001.bin", "w.bin.index.json", "v-00001-of-00001.ckpt"], "w.bin.index.json",
         ["w.bin.index.json", "w-00001-of-00001.bin"], "w.bin.index.json"),
        (["sub/model.msgpack"], "sub", ["sub/model.msgpack"], "sub"),
    ],
)  # fmt: skip
def test_only_weights_and_their_config_are_fetched(names, path, fetched, found):
    assert hub.choose(names, Place("o/n", path)) == (fetched, found)


def test_several_or_no_weight_files_are_refused_with_a_name_to_give():
    with pytest.raises(UserError, match="hf:o/n/a.ckpt"):
        hub.choose(["a.ckpt", "b.ckpt"], Place("o/n"))
    with pytest.raises(UserError, match="no weight file"):
        hub.choose(["README.md"], Place("o/n"))


def test_names_of_a_stranger_are_shown_without_control_characters_and_not_all():
    names = [f"a\x1b[2J{i}.ckpt" for i in range(20)]
    with pytest.raises(UserError) as e:
        hub.choose(names, Place("o/n"))
    assert "\x1b" not in str(e.value) and "and 12 more" in str(e.value)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    return write(make_tokenizer(), tmp_path / "model")


def run(server, home, *arguments, token="hf_test", check=True):
    env = environment() | {"HF_ENDPOINT": server, "HF_HOME": str(home), "HF_TOKEN": token}
    env = {k: v for k, v in env.items() if k != "HF_HUB_OFFLINE" and v}
    return process(*arguments, check=check, env=env)


def test_a_pushed_model_comes_back_the_same(model, tmp_path):
    with serving({"me/other": {}}) as server:
        result = run(
            server.address, tmp_path / "home", "--mode=export", f"--workdir={model}",
            "--format=vq_jax", f"--output={tmp_path / 'out'}", "--push=hf:me/tok",
        )  # fmt: skip
        assert "pushed" in result.stdout
        pushed = server.repositories["me/tok"]
        assert set(pushed) == {"config.json", "model.safetensors", "README.md"}
        card = pushed["README.md"].decode()
        assert card.startswith("---\nlibrary_name: vq_jax") and "hf:me/tok" in card
        pushed["evil.py"] = b"raise SystemExit('executed')"
        run(
            server.address, tmp_path / "home", "--mode=import", "--input=hf:me/tok",
            f"--workdir={tmp_path / 'back'}",
        )  # fmt: skip
        assert not any("evil" in path for _, path in server.log)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    codes = [np.asarray(vq_jax.load(folder).encode(x)) for folder in (model, tmp_path / "back")]
    np.testing.assert_array_equal(*codes)


def test_the_card_of_a_prior_names_no_folder_of_this_machine(model, tmp_path):
    prior = make_prior(make_tokenizer())
    with prior.config.unlocked():
        prior.config.tokenizer = str(model)
        prior.config.phases.prior = 1
    (tmp_path / "prior").mkdir()
    write(prior, tmp_path / "prior")
    with serving({}) as server:
        run(
            server.address, tmp_path / "home", "--mode=export", f"--workdir={tmp_path / 'prior'}",
            "--format=vq_jax", f"--output={tmp_path / 'out'}", "--push=hf:me/prior",
        )  # fmt: skip
        pushed = server.repositories["me/prior"]
        for name in ("README.md", "config.json"):
            assert str(tmp_path) not in pushed[name].decode(), name
        assert "--tokenizer=PATH" in pushed["README.md"].decode()
        run(
            server.address, tmp_path / "home", "--mode=import", "--input=hf:me/prior",
            f"--tokenizer={model}", f"--workdir={tmp_path / 'back'}",
        )  # fmt: skip
    assert vq_jax.load(tmp_path / "back").sample(1).shape == (1, 16, 16, 3)


def test_cards_say_what_is_true(model, tmp_path):
    place, tokenizer = Place("o/n"), make_tokenizer()
    (model / "evaluation.json").write_text('{"psnr": 23.5}')
    assert "| psnr | 23.5 |" in model_card(tokenizer, model, place, "vq_jax")
    for bits in (16, 8):
        card = model_card(tokenizer, model, place, "vq_jax", bits=bits)
        assert "psnr" not in card and f"stored in {bits} bits" in card
    (model / "evaluation.json").write_text("[1]")
    assert "psnr" not in model_card(tokenizer, model, place, "vq_jax")
    assert "library_name" not in model_card(tokenizer, model, place, "taming")
    tokenizer.step = 0
    assert "not trained with vq_jax" in model_card(tokenizer, model, place, "vq_jax")
    shipped = runs.find("photo-codec")
    ships = vq_jax.load("photo-codec")
    assert "Kodak" in model_card(ships, shipped, place, "vq_jax", bits=16)
    assert "Kodak" not in model_card(ships, shipped, place, "vq_jax", bits=8)


def mistake(result):
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_mistakes_are_one_line_and_say_what_to_do(model, tmp_path):
    home, back = tmp_path / "home", tmp_path / "back"
    get = ("--mode=import", f"--workdir={back}")
    put = ("--mode=export", f"--workdir={model}", "--format=vq_jax", "--push=hf:me/x")
    repositories = {"me/empty": {"README.md": b"no weights"}, "me/gated": {"a.ckpt": b"a"}}
    with serving(repositories) as server:
        here = server.address
        server.gated.add("me/gated")
        assert "accept its terms" in mistake(
            run(here, home, *get, "--input=hf:me/gated", check=False)
        )
        assert "no such repository" in mistake(
            run(here, home, *get, "--input=hf:no/one", check=False)
        )
        assert "no weight file" in mistake(
            run(here, home, *get, "--input=hf:me/empty", check=False)
        )
        out = f"--output={tmp_path / 'o1'}"
        assert "needs a login" in mistake(run(here, home, *put, out, token="", check=False))
        assert not (tmp_path / "o1").exists()
        out = f"--output={tmp_path / 'o2'}"
        said = mistake(run(here, home, *put, out, token="hf_wrong", check=False))
        assert "cannot be pushed" in said and "log in" in said and "export again" in said
    gone = mistake(run(here, home, *get, "--input=hf:me/tok", check=False))
    assert "the Hub cannot be reached" in gone
    assert not back.exists()


def test_weights_in_shards_come_as_those_of_a_folder(tmp_path):
    diffusers_model((32, 64), (1,), layers_per_block=1).save_pretrained(
        tmp_path / "theirs", max_shard_size="500KB"
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) > 1
    import_weights(tmp_path / "theirs", tmp_path / "here")
    with serving({"me/shards": files}) as server:
        run(
            server.address, tmp_path / "home", "--mode=import", "--input=hf:me/shards",
            f"--workdir={tmp_path / 'fetched'}",
        )  # fmt: skip
    fetched, here = (vq_jax.load(tmp_path / name) for name in ("fetched", "here"))
    assert fetched.fingerprint == here.fingerprint


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 8 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(model, tmp_path, full_disk):
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    with serving({"me/tok": files}) as server:
        get = ("--mode=import", "--input=hf:me/tok", f"--workdir={tmp_path / 'back'}")
        said = mistake(run(server.address, full_disk / "home", *get, check=False))
        assert "MB are free in" in said
        assert not (tmp_path / "back").exists()
        put = ("--mode=export", f"--workdir={model}", "--format=vq_jax", "--push=hf:me/new")
        out = f"--output={full_disk / 'out'}"
        said = mistake(run(server.address, tmp_path / "home", *put, out, check=False))
        assert "No space left on device" in said
        assert "me/new" not in server.repositories
    assert not (full_disk / "out").exists()

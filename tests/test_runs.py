"""Tokenizers and priors are opened by the path or the name of their run."""

import numpy as np
import pytest
from small import make_prior, make_tokenizer, write

import vq_jax
from vq_jax import runs
from vq_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tokenizer = make_tokenizer()
    (folder / "runs").mkdir()
    write(tokenizer, folder / "runs" / "tokens")
    prior = make_prior(tokenizer, "causal")
    prior.config.tokenizer = "tokens"
    prior.config.phases.prior = 1
    write(prior, folder / "runs" / "prior")
    return folder


def test_name_is_looked_up_in_the_folder_of_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    by_name, by_path = vq_jax.load("tokens"), vq_jax.load(folder / "runs" / "tokens")
    assert by_name.fingerprint == by_path.fingerprint
    prior = vq_jax.load("prior")
    assert prior.tokenizer.fingerprint == by_path.fingerprint
    assert runs.tokenizer_folder("prior") == runs.find("tokens")


def test_existing_path_is_not_looked_up_in_the_folder_of_runs(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    other = make_tokenizer(seed=1)
    write(other, tmp_path / "tokens")
    assert vq_jax.load(tmp_path / "tokens").fingerprint == other.fingerprint


def test_missing_runs_and_runs_of_another_kind_give_a_one_line_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name, load, message in (
        ("nothing", vq_jax.load, "there is no folder nothing"),
        ("prior", runs.load_tokenizer, "holds a prior, not a tokenizer; its tokenizer is tokens"),
        ("tokens", runs.load_prior, "holds a tokenizer, not a prior"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load(name)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="is for the codes of another tokenizer"):
        runs.check_fingerprint(vq_jax.load("tokens"), np.zeros(32, np.uint8), "this")

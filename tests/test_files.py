"""Atomic file writes, standard streams, and the cache folder."""

import io
import os
from pathlib import Path

import pytest

from vq_jax import files
from vq_jax.errors import UserError


def test_file_names_may_have_the_maximum_length(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    files.write(b"abc", path)
    assert path.read_bytes() == b"abc" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="File name too long"):
        files.write(b"abc", tmp_path / ("x" * 252 + ".png"))
    assert len(list(tmp_path.iterdir())) == 1


def test_failed_write_keeps_the_old_file(tmp_path):
    files.write(b"before", tmp_path / "a")
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_discard_unfinished_removes_files_and_folders(tmp_path):
    with files.unfinished(tmp_path / "folder") as folder, files.unfinished(tmp_path / "b") as file:
        folder.mkdir()
        (folder / "inside").write_text("x")
        file.write_text("x")
        assert folder != file
        files.discard_unfinished()
        assert not list(tmp_path.iterdir())


def test_standard_streams_can_replace_files(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"given")))
    monkeypatch.setattr("sys.stdout", out)
    assert files.read(files.STDIO) == b"given"
    files.write(b"made", files.STDIO)
    assert out.buffer.getvalue() == b"made"


def test_cache_folder_need_not_exist(monkeypatch):
    for name in ("VQ_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    assert files.cache_folder() == Path("/nowhere/.cache/vq_jax")
    monkeypatch.setenv("VQ_JAX_CACHE", "~/mine")
    assert files.cache_folder() == Path("/nowhere/mine")


def test_compiled_programs_are_cached_if_possible(monkeypatch, tmp_path):
    import jax

    from vq_jax.training.parallel import keep_compiled

    monkeypatch.setenv("VQ_JAX_CACHE", "/dev/null/cache")
    fields = (
        "compilation_cache_dir",
        "compilation_cache_max_size",
        "persistent_cache_min_compile_time_secs",
    )
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in fields}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setenv("VQ_JAX_CACHE", str(tmp_path))
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
        assert jax.config.jax_compilation_cache_max_size == 2**30
        jax.config.update("jax_compilation_cache_dir", os.devnull)
        keep_compiled()  # A folder that JAX already has is kept.
        assert jax.config.jax_compilation_cache_dir == os.devnull
    finally:
        for name, value in before.items():
            jax.config.update(name, value)

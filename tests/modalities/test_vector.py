"""Feature vectors: files, figures, and the program from vectors to semantic IDs."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from running import program, user_error

import vq_jax
from vq_jax import codec, modalities
from vq_jax import config as configs
from vq_jax.config import base
from vq_jax.data import vectors as files_of_vectors
from vq_jax.data.vectors import Table, read_table
from vq_jax.errors import UserError
from vq_jax.modalities.vector import Vector

DIM = 12


@pytest.fixture
def vectors(rng):
    """200 vectors around 20 centres."""
    centres = rng.normal(size=(20, DIM))
    return (centres[np.arange(200) % 20] + 0.05 * rng.normal(size=(200, DIM))).astype(np.float32)


def config_of(path, **data):
    config = base("vector_mlp", "residual/vq")
    config.data.update(source="vectors", folder=str(path), dim=DIM, **data)
    return config


# --- files -----------------------------------------------------------------------------------------


def written(form, folder, vectors):
    ids = [f"item {i}" for i in range(len(vectors))]
    path = folder / f"vectors.{form.partition(' ')[0]}"
    if form == "npy":
        np.save(path, vectors)
    elif form == "npz":
        np.savez(path, embeddings=vectors, ids=np.array(ids), labels=np.arange(len(vectors)) % 3)
    elif form == "parquet lists":
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
        pq.write_table(pa.table({"id": ids, "embedding": lists}), path)
    else:
        columns = {f"x{i}": vectors[:, i] for i in range(DIM)}
        pq.write_table(pa.table({"item_id": ids, **columns}), path)
    return path


@pytest.mark.parametrize("form", ["npy", "npz", "parquet lists", "parquet columns"])
def test_every_format_gives_the_vectors_and_their_ids(form, vectors, tmp_path):
    table = read_table(written(form, tmp_path, vectors))
    np.testing.assert_array_equal(table.vectors, vectors)
    assert table[7]["id"] == (7 if form == "npy" else "item 7")
    assert table.class_names == (("0", "1", "2") if form == "npz" else ())
    assert table[5]["label"] == (2 if form == "npz" else 0)


def test_files_of_a_folder_are_joined(vectors, tmp_path):
    np.savez(tmp_path / "a.npz", x=vectors[:50], ids=np.arange(50), labels=["cat"] * 50)
    np.savez(tmp_path / "b.npz", x=vectors[50:], ids=np.arange(50, 200), labels=["ant"] * 150)
    splits = modalities.open_source(config_of(tmp_path))
    assert len(splits.train) + len(splits.val) == 200
    assert splits.class_names == ("ant", "cat")
    examples = [split[i] for split in (splits.train, splits.val) for i in range(len(split))]
    by_id = {e["id"]: e for e in examples}
    assert by_id["3"]["label"] == 1 and by_id["60"]["label"] == 0
    np.testing.assert_array_equal(by_id["60"]["x"], vectors[60])


def test_rows_without_ids_are_named_by_file_and_row(vectors, tmp_path):
    np.save(tmp_path / "a.npy", vectors[:120])
    (tmp_path / "more").mkdir()
    np.save(tmp_path / "more" / "b.npy", vectors[120:])
    splits = modalities.open_source(config_of(tmp_path))
    by_id = {
        split[i]["id"]: split[i]["x"]
        for split in (splits.train, splits.val)
        for i in range(len(split))
    }
    assert len(by_id) == 200
    np.testing.assert_array_equal(by_id["a.npy:7"], vectors[7])
    np.testing.assert_array_equal(by_id["more/b.npy:3"], vectors[123])


def test_files_with_and_without_classes_are_not_mixed(vectors, tmp_path):
    np.savez(tmp_path / "a.npz", x=vectors[:50], labels=["cat"] * 50)
    np.save(tmp_path / "b.npy", vectors[50:])
    with pytest.raises(UserError, match="some files in .* have classes and others have none"):
        modalities.open_source(config_of(tmp_path))


def test_classes_that_are_numbers_are_in_their_order(vectors, tmp_path):
    np.savez(tmp_path / "v.npz", x=vectors, labels=np.arange(200) % 12)
    table = read_table(tmp_path / "v.npz")
    assert table.class_names == tuple(map(str, range(12)))
    assert [table[i]["label"] for i in (2, 10, 11)] == [2, 10, 11]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_id_is_named_by_its_row(missing, vectors, tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[:3].reshape(-1)), DIM)
    kind = pa.string() if missing is None else pa.float64()
    ids = pa.array(["a", "b", None] if missing is None else [1.0, 2.0, missing], kind)
    pq.write_table(pa.table({"id": ids, "vector": lists}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="cannot read .* ids have no text or number in row 2"):
        read_table(tmp_path / "v.parquet")


def test_ids_can_be_written_as_text(vectors, tmp_path):
    np.savez(tmp_path / "v.npz", x=vectors[:2], ids=np.array([b"\xff", b"ok"]))
    ids = read_table(tmp_path / "v.npz").ids
    assert ids[1] == "ok" and [name.encode() for name in ids]


def test_a_mapped_table_is_pickled_without_its_vectors(vectors, tmp_path):
    np.save(tmp_path / "v.npy", np.tile(vectors, (50, 1)))
    table = read_table(tmp_path / "v.npy")
    sent = pickle.dumps(table)
    assert len(sent) < table.vectors.nbytes / 4
    np.testing.assert_array_equal(pickle.loads(sent)[250]["x"], vectors[50])
    whole = Table(vectors, range(200), np.zeros(200, np.int32))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(whole))[9]["x"], vectors[9])


def test_vectors_of_one_item_are_in_one_split(vectors, tmp_path):
    np.savez(tmp_path / "v.npz", x=vectors, ids=np.arange(200) // 4)
    splits = modalities.open_source(config_of(tmp_path / "v.npz", val_fraction=0.3))
    ids = [{split[i]["id"] for i in range(len(split))} for split in (splits.train, splits.val)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]


def test_only_npy_is_written(vectors, tmp_path):
    Vector().write(vectors, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    with pytest.raises(UserError, match="vectors are written as .npy"):
        Vector().write(vectors, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), "cannot read"),
        (lambda p: p.write_bytes(b"\x93NUMPY garbage"), "cannot read"),
        (lambda p: np.save(p, np.zeros((3, 4, 5))), r"has the shape \(3, 4, 5\), not \[N, D\]"),
        (lambda p: np.save(p, np.zeros((3, 12), complex)), r"no array of numbers \[N, D\]"),
        (lambda p: np.save(p, np.array([{"a": 1}]), allow_pickle=True), "cannot read"),
        (lambda p: np.save(p, np.zeros((0, 4))), "has no vectors"),
        (lambda p: np.save(p, np.zeros((9, 5), np.float32)), "set data.dim=5"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(write, message, tmp_path):
    write(tmp_path / "v.npy")
    with pytest.raises(UserError, match=message) as raised:
        modalities.open_source(config_of(tmp_path / "v.npy"))
    assert "\n" not in str(raised.value)


def test_a_parquet_file_without_vectors_is_one_line(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="neither a column of lists of numbers nor columns"):
        read_table(tmp_path / "v.parquet")
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="different lengths"):
        read_table(tmp_path / "v.parquet")
    (tmp_path / "v.parquet").write_bytes(b"PAR1 not one PAR1")
    with pytest.raises(UserError, match="cannot read"):
        read_table(tmp_path / "v.parquet")


def test_damaged_archives_give_one_line(vectors, tmp_path, rng):
    path = tmp_path / "v.npz"
    np.savez_compressed(path, x=vectors, ids=np.arange(200))
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(
            damaged[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else damaged
        )
        try:
            read_table(path)
        except UserError as e:
            assert str(path) in str(e) and "\n" not in str(e)


def test_files_larger_than_the_memory_are_not_unpacked(tmp_path, monkeypatch):
    """Hundreds of megabytes of zeros take less than one in an archive, and less in a parquet file."""
    monkeypatch.setattr(files_of_vectors, "free_memory", lambda: 2**28)
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (15000000, 10), }\n"
    with (
        zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(header + struct.pack("<H", len(text)) + text)
        for _ in range(60):
            file.write(bytes(10_000_000))
    with pytest.raises(UserError, match=r"0.6 GiB, too much for the free memory"):
        read_table(tmp_path / "v.npz")
    column = pa.array(np.zeros(900_000, np.float32))
    table = pa.table({f"x{i}": column for i in range(80)})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=300_000)
    assert (tmp_path / "v.parquet").stat().st_size < 1_000_000
    with pytest.raises(UserError, match="too much for the free memory"):
        read_table(tmp_path / "v.parquet")


def test_values_that_are_not_finite_are_named(vectors, tmp_path):
    vectors[17, 3] = np.nan
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(UserError, match="vector 17 has values that are NaN"):
        read_table(tmp_path / "v.npy")[17]


# --- figures ---------------------------------------------------------------------------------------


def test_relative_error_and_cosine_against_numpy(vectors, rng):
    other = vectors + 0.3 * rng.normal(size=vectors.shape).astype(np.float32)
    values = Vector().metrics(config_of(""))(vectors, other)
    means = {name: np.asarray(value, np.float64).mean(0) for name, value in values.items()}
    figures = Vector().summarize(means)
    error = np.square(vectors - other).mean() / vectors.astype(np.float64).var(axis=0).mean()
    assert figures["relative_error"] == pytest.approx(error, rel=1e-5)
    far = vectors + np.float32(1000)
    values = Vector().metrics(config_of(""))(far, far + np.float32(0.5))
    means = {name: np.asarray(value, np.float64).mean(0) for name, value in values.items()}
    expected = 0.25 / far.astype(np.float64).var(axis=0).mean()
    assert Vector().summarize(means)["relative_error"] == pytest.approx(expected, rel=1e-4)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(other, axis=1)
    cosine = ((vectors * other).sum(1) / norms).mean()
    assert figures["cosine_similarity"] == pytest.approx(cosine, rel=1e-5)


def test_collisions_are_counted():
    codes = np.array([[0, 1], [0, 1], [0, 1], [2, 2], [3, 0], [0, 3], [0, 3], [9, 9]])
    figures = Vector().code_figures(codes)
    assert figures == {"unique_share": 3 / 8, "largest_collision": 3}


# --- the program -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, DIM))
    vectors = (centres[np.arange(300) % 30] + 0.02 * rng.normal(size=(300, DIM))).astype(np.float32)
    ids = np.array([f"item {i}" for i in range(300)])
    np.savez(folder / "items.npz", vectors=vectors, ids=ids)
    program(
        "--config=semantic_ids", f"--workdir={folder}/run", "--config.data.source=vectors",
        f"--config.data.folder={folder}/items.npz", f"--config.data.dim={DIM}",
        "--config.data.batch_size=64", "--config.model.hidden=(32,)",
        "--config.quantizer.inner.num_codes=16", "--config.quantizer.inner.dim=8",
        "--config.kmeans_batches=4", "--config.phases.autoencoder=60", "--config.phases.quantizer=10",
        "--config.phases.joint=80", "--config.save_every=100", "--config.tensorboard=False",
        "--config.optim.lr=3e-3",
    )  # fmt: skip
    return folder


def test_training_learns_the_vectors_and_reports_the_codes(run):
    figures = json.loads((run / "run" / "evaluation.json").read_text())
    assert figures["relative_error"] < 0.3 and figures["cosine_similarity"] > 0.8
    assert len(figures["usage_by_level"]) == len(figures["perplexity_by_level"]) == 3
    assert figures["bits_per_vector"] == 12 and 0 < figures["unique_share"] <= 1
    assert figures["largest_collision"] >= 1 and figures["vectors"] > 10
    for name in ("reconstructions.png", "codebook.png", "curves.png"):
        assert (run / "run" / name).stat().st_size > 500


def test_tokenize_writes_unique_ids(run):
    table = run / "ids.parquet"
    said = program("--mode=tokenize", f"--workdir={run}/run", f"--output={table}").stdout
    assert "wrote the codes of 300 vectors" in said
    rows = pq.read_table(table).to_pylist()
    assert sorted(row["item"] for row in rows) == sorted(f"item {i}" for i in range(300))
    keys = [(row["code_0"], row["code_1"], row["code_2"], row["index"]) for row in rows]
    assert len(set(keys)) == 300
    with np.load(run / "items.npz") as arrays:
        vectors = {name: x for name, x in zip(arrays["ids"], arrays["vectors"], strict=True)}
    tok = vq_jax.load(run / "run")
    codes = np.asarray(tok.encode(np.stack([vectors[row["item"]] for row in rows])))
    assert [tuple(c) for c in codes] == [key[:3] for key in keys]
    assert {row["split"] for row in rows} == {"train", "val"}
    text = user_error("--mode=tokenize", f"--workdir={run}/run", "--output=x.parquet", "--flips")
    assert "leave out flips" in text
    text = user_error("--mode=tokenize", f"--workdir={run}/run", f"--output={run}/f", "--flips")
    assert "flips and crops are for images" in text and not (run / "f").exists()


def test_a_file_of_vectors_is_reconstructed_and_compressed(run):
    tok = vq_jax.load(run / "run")
    with np.load(run / "items.npz") as arrays:
        vectors = arrays["vectors"]
    program(
        "--mode=reconstruct",
        f"--workdir={run}/run",
        f"--input={run}/items.npz",
        f"--output={run}/y.npy",
    )
    y = np.load(run / "y.npy")
    np.testing.assert_allclose(y, tok.reconstruct(vectors), atol=1e-4)
    opened = codec.load(run / "run")
    data = opened.compress(vectors)
    assert len(data) < 300 * 12 / 8 + 40
    np.testing.assert_allclose(opened.decompress(data), y, atol=1e-4)
    program(
        "--mode=compress",
        f"--workdir={run}/run",
        f"--input={run}/items.npz",
        f"--output={run}/v.vqz",
    )
    program(
        "--mode=decompress", f"--workdir={run}/run", f"--input={run}/v.vqz", f"--output={run}/z.npy"
    )
    np.testing.assert_allclose(np.load(run / "z.npy"), y, atol=1e-4)
    text = user_error("--mode=reconstruct", f"--workdir={run}/run", f"--input={run}/items.npz",
                   f"--output={run}/y2.npy", "--side_by_side")  # fmt: skip
    assert "side_by_side is for images" in text
    text = user_error("--mode=reconstruct", f"--workdir={run}/run", f"--input={run}/items.npz",
                   f"--output={run}/y.parquet")  # fmt: skip
    assert ".npy" in text and not (run / "y.parquet").exists()


def test_evaluate_compares_sets_of_vectors_and_has_no_fid(run):
    said = program("--mode=evaluate", f"--workdir={run}/run").stdout
    assert "Frechet distance of the vectors" in said
    figures = json.loads((run / "run" / "evaluation.json").read_text())
    assert figures["frechet"] >= 0
    text = user_error("--mode=evaluate", f"--workdir={run}/run", "--inception=download")
    assert "inception is for FID of images" in text


def test_a_prior_learns_semantic_ids(run):
    """Nothing in the training, sampling and evaluation of priors asks what an example is."""
    from vq_jax.config import base_prior
    from vq_jax.tasks.train import train

    config = base_prior("causal", modality="vector")
    config.tokenizer = str(run / "run")
    config.data.update(source="vectors", folder=str(run / "items.npz"), dim=DIM, batch_size=32)
    config.prior.update(layers=1, width=32, heads=2)
    config.optim.lr = 1e-2
    config.update(eval_samples=16, tensorboard=False)
    config.phases.prior = 60
    train(config, run / "prior")
    prior = vq_jax.load(run / "prior")
    assert prior.sample_codes(5).shape == (5, 3)
    assert prior.sample(5).shape == (5, DIM)
    figures = json.loads((run / "prior" / "evaluation.json").read_text())
    assert figures["bits_per_code"] < figures["uniform_bits_per_code"] == 4
    assert figures["frechet"] > 0 and figures["samples"] == 16
    program("--mode=sample", f"--workdir={run}/prior", "--count=3", f"--output={run}/drawn")
    assert np.load(run / "drawn" / "00002.npy").shape == (DIM,)
    assert (run / "prior" / "samples.png").stat().st_size > 500
    text = user_error(
        "--mode=upscale", f"--workdir={run}/prior", f"--input={run}/items.npz", f"--output={run}/u"
    )
    assert "edits are for images, texts and videos: this run's data are vectors" in text


def test_the_model_decides_the_modality(run):
    text = user_error("--config=semantic_ids", f"--workdir={run}/x", "--config.modality=image")
    assert "modality is 'image', and model.name='vector_mlp' is for 'vector'" in text


# --- mistakes --------------------------------------------------------------------------------------


def test_other_data_are_prepared_as_those_of_training():
    trained, other = config_of("a", normalize=True), config_of("b")
    configs.use_data(trained, other.data)
    assert trained.data.folder == "b" and trained.data.normalize


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.data.source=emoji_features", "data.source 'emoji_features' reads no folder"),
        ("--config.optim.lr=-1", "optim.lr is -1.0: use 0 or more"),
        ("--config.ema_decay=2", "ema_decay is 2.0: use 1 or less"),
        ("--config.quantizer.inner.beta=-1", "quantizer.inner.beta is -1.0"),
    ],
)
def test_wrong_fields_are_refused_and_the_run_stays_as_it_is(run, change, message):
    before = (run / "run" / "config.json").read_bytes()
    text = user_error(
        "--config=semantic_ids", f"--workdir={run}/run", f"--config.data.folder={run}/items.npz",
        "--config.data.source=vectors", f"--config.data.dim={DIM}", change,
    )  # fmt: skip
    assert message in text and (run / "run" / "config.json").read_bytes() == before


def test_the_modality_of_a_prior_is_no_flag(run):
    text = user_error(
        "--config=prior_default", f"--config.tokenizer={run}/run", "--config.modality=vector",
        f"--workdir={run}/x",
    )  # fmt: skip
    assert "data has no field 'dim'" in text and "base_prior(..., modality='vector')" in text


def test_a_recipe_without_variants_says_so():
    assert "this recipe has no variants" in user_error("--config=semantic_ids:fsq")


def test_training_does_not_take_over_an_export(run):
    program("--mode=export", f"--workdir={run}/run", "--format=vq_jax", f"--output={run}/exported")
    text = user_error(
        "--config=semantic_ids", f"--workdir={run}/exported", "--config.data.source=vectors",
        f"--config.data.folder={run}/items.npz", f"--config.data.dim={DIM}",
    )  # fmt: skip
    assert "holds an import or export" in text and f"start_from={run}/exported" in text


def test_labels_of_ids_are_names_of_classes(vectors, run, tmp_path):
    names = np.array(["tea", "coffee"])[np.arange(200) % 2]
    np.savez(tmp_path / "v.npz", x=vectors, labels=names)
    program(
        "--mode=tokenize", f"--workdir={run}/run", "--config=semantic_ids",
        "--config.data.source=vectors", f"--config.data.folder={tmp_path}/v.npz",
        f"--config.data.dim={DIM}", f"--output={tmp_path}/ids.parquet",
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "ids.parquet").to_pylist()
    assert {row["label"] for row in rows} == {"tea", "coffee"}
    text = user_error("--mode=tokenize", f"--workdir={run}/run", f"--output={tmp_path}/ids.csv")
    assert "name a folder, or a .parquet file" in text
    text = user_error(
        "--mode=compress", f"--workdir={run}/run", f"--input={tmp_path}/v.npz",
        f"--output={tmp_path}/v.png",
    )  # fmt: skip
    assert "would be a .vqz file with the suffix .png" in text


def test_arrays_that_are_no_vectors_are_refused(run):
    tok = vq_jax.load(run / "run")
    opened = codec.load(run / "run")
    x = np.zeros((2000, DIM), np.float32)
    assert tok.encode([[0.0] * DIM]).shape == (1, 3)
    for wrong, message in (
        (x * np.nan, "NaN or infinite"),
        (x[:0], "there are no vectors"),
        (x.astype(np.int32), "make them float32"),
        (x[:, :5], r"shape \(2000, 5\), not \[B, 12\]"),
    ):
        for call in (tok.encode, opened.compress):
            with pytest.raises(ValueError, match=message):
                call(wrong)

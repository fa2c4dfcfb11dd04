"""The numbers in the READMEs are those of the committed JSON files."""

import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def read_json(name):
    return json.loads((EXPERIMENTS / name).read_text())


def cells(file, *beginning):
    """Returns the other cells of the only table row in a README that begins with these cells."""
    rows = []
    for line in (ROOT / file).read_text().splitlines():
        found = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and found[: len(beginning)] == list(beginning):
            rows.append(found[len(beginning) :])
    assert len(rows) == 1, (file, beginning, rows)
    return rows[0]


def numbers_in(text):
    """Returns (number, number of decimals) for each number in a cell."""
    numbers = re.findall(r"(?<![\w.])(\d*\.?\d+)", text.replace(",", ""))
    return [(float(n), len(n.partition(".")[2])) for n in numbers]


def assert_shows(text, *values):
    """Asserts that a cell shows these values, rounded to its decimals."""
    found = numbers_in(text)
    assert len(found) == len(values), (text, values)
    for (number, decimals), value in zip(found, values, strict=True):
        assert abs(number - value) <= 0.5001 * 10**-decimals, (text, values)


def assert_shows_range(text, figure):
    """Asserts that a cell shows a mean with its range, such as "164.0 (162.1 to 166.3)"."""
    assert_shows(text, figure["mean"], figure["least"], figure["most"])


def test_readmes_show_the_evaluation_of_the_main_command():
    figures = read_json("default/evaluation.json")
    used = round(figures["usage"] * figures["num_codes"])
    row = cells("README.md", "`python -m vq_jax.main --config=default`")
    assert_shows(row[1], figures["psnr"])
    for cell, name in zip(row[2:4], ("ssim", "lpips"), strict=True):
        assert_shows(cell, figures[name])
    assert_shows(row[4], used, figures["num_codes"])
    assert_shows(row[5], figures["perplexity"])
    assert_shows(row[6], figures["bits_per_pixel"])
    file = "experiments/default/README.md"
    for name, values in {
        "PSNR": [figures["psnr"]],
        "SSIM": [figures["ssim"]],
        "LPIPS (VGG16, AlexNet)": [figures["lpips"], figures["lpips_alex"]],
        "L1 on [-1, 1]": [figures["l1"]],
        "squared error / variance": [figures["nmse"]],
        "codebook in use": [used, figures["num_codes"]],
        "perplexity": [figures["perplexity"]],
        "bits per pixel": [figures["bits_per_pixel"], figures["entropy_bits_per_pixel"]],
    }.items():
        assert_shows(cells(file, name)[0], *values)


# row of experiments/prior_default/README.md -> run, sampling settings
ROWS = {
    "temperature 1": ("prior_default", {"temperature": 1.0}),
    "temperature 1, guidance 2": ("prior_default", {"temperature": 1.0, "guidance": 2.0}),
    "temperature 1, top-p .9": ("prior_default", {"temperature": 1.0, "top_p": 0.9}),
    "temperature .9, guidance 1.5": ("prior_default", {"temperature": 0.9, "guidance": 1.5}),
    "temperature .8": ("prior_default", {"temperature": 0.8}),
    "temperature .8, guidance 1.5": ("prior_default", {"temperature": 0.8, "guidance": 1.5}),
    "`:causal`, from codes with `--flips`, temperature 1": (
        "prior_default-causal", {"temperature": 1.0},
    ),
    "`:causal`, from codes with `--flips`, temperature .8": (
        "prior_default-causal", {"temperature": 0.8},
    ),
    "`:masked`, temperature 1, 12 steps": ("prior_default-masked", {"temperature": 1.0}),
    "`:masked`, temperature 1, `--choice_temperature=2`": (
        "prior_default-masked", {"temperature": 1.0, "choice_temperature": 2.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_readme_shows_the_samples_of_three_seeds(name):
    run, settings = ROWS[name]
    rows = read_json("prior_default/figures.json")["rows"]
    (row,) = (row for row in rows if (row["run"], row["how"]) == (run, settings))
    frechet, precision, recall = cells("experiments/prior_default/README.md", name)
    assert_shows_range(frechet, row["efficientnet_frechet"])
    assert_shows_range(precision, row["precision"])
    assert_shows_range(recall, row["recall"])


def test_readmes_show_the_evaluation_of_the_default_prior():
    figures = read_json("prior_default/figures.json")
    evaluation = read_json("prior_default/evaluation.json")
    (row,) = (
        row for row in figures["rows"]
        if (row["run"], row["how"]) == ("prior_default", {"temperature": 0.8})
    )  # fmt: skip
    references, file = figures["references"], "experiments/prior_default/README.md"
    assert figures["bits_per_code"]["prior_default"] == evaluation["bits_per_code"]
    assert_shows(cells(file, "bits a pixel")[0], evaluation["bits_per_pixel"])
    frechet = cells(file, "Frechet distance, EfficientNet-lite0, to 1,024 training images")
    assert_shows_range(frechet[0], row["efficientnet_frechet"])
    assert_shows(frechet[1], references["efficientnet_frechet_reconstructed"])
    assert_shows(frechet[2], references["efficientnet_frechet_floor"])
    precision = cells(file, "precision, recall")
    assert_shows(precision[2], references["precision_floor"], references["recall_floor"])
    nearest = cells(file, "mean distance to the nearest training image")
    assert_shows_range(nearest[0], row["nearest"])
    assert_shows(nearest[2], references["nearest_floor"])
    readme = (ROOT / "README.md").read_text()
    for number in (
        f"{evaluation['bits_per_code']:.2f} bits a code",
        f"Frechet distance {row['efficientnet_frechet']['mean']:.1f}",
        f"held-out images {references['efficientnet_frechet_floor']:.1f}",
    ):
        assert number in " ".join(readme.split()), number


@pytest.mark.parametrize(
    "file,figures,given",
    [
        ("upscale/README.md", "upscale/by_4.json", "bicubic, as given"),
        ("restore/README.md", "restore/figures.json", "damaged, as given"),
    ],
)
def test_readmes_show_upscaling_and_restoring(file, figures, given):
    results = read_json(figures)
    text = (EXPERIMENTS / file).read_text().partition("## By 2")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for first, suffix in (
        (given, "_before"),
        ("this prior", ""),
        ("the originals through", "_ceiling"),
    ):
        (row,) = (row for row in rows if row.startswith(f"| {first}"))
        row = [cell.strip() for cell in row.strip("| ").split("|")][1:]
        for cell, name in zip(row, ("psnr", "ssim", "lpips"), strict=True):
            figure = results[name + suffix]
            if suffix:
                assert_shows(cell, figure["mean"])
            else:
                assert_shows_range(cell, figure)


def test_readme_shows_the_lpips_of_edits():
    text = " ".join((ROOT / "README.md").read_text().replace(" .", " 0.").split())
    inpaint, upscale = read_json("edits/inpaint.json"), read_json("upscale/by_4.json")
    ours, opencv = (
        inpaint[name]["lpips"] for name in ("this prior, temperature 0.3", "OpenCV, Telea")
    )
    assert f"inpainting LPIPS {ours:.3f} (OpenCV {opencv:.3f})" in text
    upscaled, bicubic = (upscale[name]["mean"] for name in ("lpips", "lpips_before"))
    assert f"upscaling by 4 LPIPS {upscaled:.3f} (bicubic {bicubic:.3f})" in text


def test_readme_shows_inpainting():
    results, file = read_json("edits/inpaint.json"), "experiments/edits/README.md"
    for row, name in {
        "this prior, temperature .8": "this prior",
        "this prior, temperature .3": "this prior, temperature 0.3",
        "median colour": "median fill",
        "OpenCV, Telea": "OpenCV, Telea",
        "OpenCV, Navier-Stokes": "OpenCV, Navier-Stokes",
    }.items():
        lpips, psnr = cells(file, row)
        assert_shows(lpips, results[name]["lpips"])
        assert_shows(psnr, results[name]["psnr_inside"])


def test_readme_shows_the_evaluation_on_cifar10():
    figures = read_json("vqvae_cifar10/evaluation.json")
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"error {figures['nmse']:.4f}".replace("0.", ".") in text
    assert f"perplexity {figures['perplexity']:.0f}" in text


def test_readmes_show_the_evaluation_of_semantic_ids():
    figures, peer = read_json("semantic_ids/evaluation.json"), read_json("semantic_ids/peer.json")
    file = "experiments/semantic_ids/README.md"
    for row, name, factor in (
        ("squared error over variance", "relative_error", 1),
        ("items with a code of their own", "unique_share", 100),
        ("perplexity, mean of the levels", "perplexity", 1),
    ):
        ours, theirs = cells(file, row)
        assert_shows(ours, factor * figures[name])
        assert_shows(theirs, factor * peer[name])
    assert_shows(cells(file, "items that share one code, at most")[0], figures["largest_collision"])
    share = f"{100 * figures['unique_share']:.1f}% of held-out items"
    assert share in (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "semantic_ids.md").read_text()
    for name in ("relative_error", "cosine_similarity"):
        assert f"| {figures[name]:.3f} |".replace("0.", ".") in page


def test_readmes_show_the_compressors_and_samples_of_text():
    file = "experiments/text/README.md"
    results = read_json("text/results.json")["compressors"]
    for name, figures in results.items():
        row = cells(file, name)
        assert_shows(row[0], figures["bits_per_byte"])
        if "bits_per_byte_given_training_text" in figures:
            assert_shows(row[1], figures["bits_per_byte_given_training_text"])
        assert_shows(row[2], figures["mb_per_second"])
        assert_shows(row[3], figures["mb_per_second_back"])
        if "model_bytes" in figures:
            assert_shows(row[4], figures["model_bytes"] / 1e6)
    for name, figures in read_json("text/samples.json").items():
        assert_shows(" ".join(cells(file, name)), *figures.values())
    readme = " ".join((ROOT / "README.md").read_text().split())
    for name in ("vq_jax: bytes by the prior", "vq_jax: codes by the prior, then bytes", "gzip -9"):
        assert f"{results[name]['bits_per_byte']:.2f}".lstrip("0") in readme, name


def test_the_readme_of_video_shows_its_figures():
    file = "experiments/video/README.md"
    figures = read_json("video/video_moving_emoji/evaluation.json")
    assert_shows(cells(file, "PSNR")[0], figures["psnr"])
    assert_shows(cells(file, "SSIM")[0], figures["ssim"])
    of_changes = [figures[f"{name}_of_changes"] for name in ("psnr", "ssim")]
    assert_shows(cells(file, "PSNR, SSIM of differences of frames")[0], *of_changes)
    bits = [figures[f"{name}_per_pixel-frame"] for name in ("bits", "entropy_bits")]
    assert_shows(cells(file, "bits per pixel-frame")[0], *bits)
    figures = read_json("video/prior_moving_emoji/evaluation.json")
    assert_shows(cells(file, "bits per code (uniform: 8)")[0], figures["bits_per_code"])
    figures = read_json("video/prior_one_emoji/evaluation.json")
    assert_shows(cells(file, "bits per code of one emoji")[0], figures["bits_per_code"])
    found = read_json("video/emoji.json")["vq_jax"]
    for name, clips, key in (
        ("fixed width", "64", "fixed"),
        ("counts", "64", "static"),
        ("counts, some clips", "16", "static, some"),
        ("the prior, some clips", "16", "prior, some"),
    ):
        row = cells(file, name, clips)
        assert_shows(row[0], found[key]["bits"])
        assert_shows(row[1], found[key]["psnr"])


def test_the_readme_of_video_shows_the_models_that_ship():
    file = "experiments/video/README.md"
    pair = [read_json(f"video/models_that_ship/{name}.json") for name in ("before", "moving-emoji")]
    for row, key in (
        ("PSNR of one emoji", "psnr"),
        ("SSIM of one emoji", "ssim"),
        ("LPIPS of one emoji (VGG16)", "lpips"),
        ("entropy of the codes, bits per pixel-frame", "entropy_bits_per_pixel-frame"),
    ):
        for cell, figures in zip(cells(file, row), pair, strict=True):
            assert_shows(cell, figures[key])
    priors = ("prior_one_emoji/evaluation", "models_that_ship/moving-emoji-prior")
    for cell, name in zip(cells(file, "bits per code of its prior"), priors, strict=True):
        assert_shows(cell, read_json(f"video/{name}.json")["bits_per_code"])


def test_the_readme_of_video_shows_the_real_clips():
    found = read_json("video/real.json")
    lines = (EXPERIMENTS / "video/README.md").read_text().split("## Real clips")[1]
    lines = lines.split("We lose")[0].splitlines()
    rows = [[c.strip() for c in line.strip("| ").split("|")] for line in lines if "| ." in line]
    wanted = [point for clip in found.values() for point in clip["vq_jax"].values()]
    assert len(rows) == len(wanted)
    for row, point in zip(rows, wanted, strict=True):
        assert row[-5] == f"{point['bits']:.3f}".removeprefix("0")
        assert row[-4] == f"{point['psnr']:.1f}"


@pytest.mark.parametrize("codec", ["photo-codec", "photo-codec-perceptual", "JPEG", "WebP", "AVIF"])
def test_the_pages_on_the_photo_codec_show_its_figures(codec):
    at = read_json("photo_codec/kodak.json")["at_rates"]
    rows = []
    for line in (EXPERIMENTS / "photo_codec/README.md").read_text().splitlines():
        if line.startswith(f"| {codec} |"):
            rows.append([cell.strip() for cell in line.strip("| ").split("|")][1:])
    tables = [at["psnr"], at["lpips_alex"], at["lpips_vgg"]]
    if codec in (held_out := read_json("photo_codec/bsds.json")["at_rates"]["psnr"]):
        tables.append(held_out)
    for row, table in zip(rows, tables, strict=True):
        for cell, value in zip(row, table[codec].values(), strict=True):
            assert (cell == "-") == (value is None)
            if value is not None:
                assert_shows(cell, value)
    for cell, value in zip(
        cells("docs/compression.md", codec), at["psnr"][codec].values(), strict=True
    ):
        assert_shows(cell, value)


def test_the_readme_of_ecvq_shows_its_figures():
    found = read_json("ecvq/sources.json")
    for source in found:
        name = source if source in ("uniform", "banana") else source.capitalize()
        row = cells("experiments/ecvq/README.md", name)
        for cell, curve in zip(row, found[source].values(), strict=True):
            points = sorted(curve)
            shown = []
            for rate in (1.5, 2.5):
                (x0, y0), (x1, y1) = next(
                    (a, b) for a, b in itertools.pairwise(points) if a[0] <= rate <= b[0]
                )
                shown.append(y0 + (y1 - y0) * (rate - x0) / (x1 - x0))
            assert_shows(cell, *shown)


def test_the_readme_of_ecvq_shows_the_lattices():
    for source, lattices in read_json("ecvq/lattices.json")["snr"].items():
        for name, by_rate in lattices.items():
            row = cells("experiments/ecvq/README.md", f"{name}, {source}")
            for cell, value in zip(row, by_rate.values(), strict=True):
                assert_shows(cell, value)


def test_sampling_speeds_of_the_next_scale_prior():
    found = read_json("benchmarks/next_scale.json")
    for name in ("next_scale", "causal", "causal, 16x16", "VAR"):
        row = cells("experiments/benchmarks/README.md", name)
        for cell, count in zip(row[1:], (1, 4), strict=True):
            assert_shows(cell, found[f"sampling, {count} at a time"][name]["images_per_second"])


def test_architectures():
    found = read_json("quantizers/architectures.json")
    for variant, figures in found.items():
        tokenizer = figures["tokenizer"]
        for prior, of_prior in figures["priors"].items():
            row = next(
                [cell.strip() for cell in line.strip("| ").split("|")]
                for line in (EXPERIMENTS / "quantizers/README.md").read_text().splitlines()
                if line.startswith(f"| {variant} |") and f"| {prior} |" in line
            )
            assert_shows(row[2], 1024 * tokenizer["bits_per_pixel"])
            assert_shows(row[3], tokenizer["psnr"])
            assert_shows(row[4], tokenizer["lpips"])
            assert_shows(row[5], of_prior["efficientnet_frechet_reconstructed"])
            assert_shows(row[6], tokenizer["steps"])
            assert_shows(row[8], 1024 * of_prior["bits_per_pixel"])
            assert_shows(row[9], of_prior["efficientnet_frechet"])


def test_the_next_scale_prior_of_emoji():
    figures = read_json("var_emoji/evaluation.json")
    file = "experiments/var_emoji/README.md"
    assert_shows(cells(file, "bits per code (uniform: 9)")[0], figures["bits_per_code"])
    row = cells(file, "Frechet distance of samples (EfficientNet-lite0; not FID)")
    assert_shows(row[0], figures["efficientnet_frechet"])
    row = cells("README.md", "[var_emoji](experiments/var_emoji)")
    assert_shows(row[0], figures["bits_per_code"], figures["efficientnet_frechet"])

"""The tables in the READMEs say what the committed JSON does."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def read(name):
    return json.loads((EXPERIMENTS / name).read_text())


def cells(file, *beginning):
    """The cells of the one table row of a README whose first cells are these."""
    rows = []
    for line in (ROOT / file).read_text().splitlines():
        found = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and found[: len(beginning)] == list(beginning):
            rows.append(found[len(beginning) :])
    assert len(rows) == 1, (file, beginning, rows)
    return rows[0]


def shown(text):
    """The numbers in a cell, with how many decimals each is given."""
    numbers = re.findall(r"(?<![\w.])(\d*\.?\d+)", text.replace(",", ""))
    return [(float(n), len(n.partition(".")[2])) for n in numbers]


def holds(text, *values):
    """Whether a cell shows these values, rounded as it rounds."""
    found = shown(text)
    assert len(found) == len(values), (text, values)
    for (number, decimals), value in zip(found, values, strict=True):
        assert abs(number - value) <= 0.5001 * 10**-decimals, (text, values)


def spread(text, figure):
    """A mean with the least and the most behind it, as "164.0 (162.1 to 166.3)"."""
    holds(text, figure["mean"], figure["least"], figure["most"])


def test_the_main_command():
    figures = read("default/evaluation.json")
    used = round(figures["usage"] * figures["num_codes"])
    row = cells("README.md", "`python -m vq_jax.main --config=default`")
    holds(row[1], figures["psnr"])
    for cell, name in zip(row[2:4], ("ssim", "lpips"), strict=True):
        holds(cell, figures[name])
    holds(row[4], used, figures["num_codes"])
    holds(row[5], figures["perplexity"])
    holds(row[6], figures["bits_per_pixel"])
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
        holds(cells(file, name)[0], *values)


# run and how it was drawn from -> the row of experiments/prior_default/README.md
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
def test_a_prior_drawn_from_with_three_seeds(name):
    run, how = ROWS[name]
    rows = read("prior_default/figures.json")["rows"]
    (row,) = (row for row in rows if (row["run"], row["how"]) == (run, how))
    frechet, precision, recall = cells("experiments/prior_default/README.md", name)
    spread(frechet, row["efficientnet_frechet"])
    spread(precision, row["precision"])
    spread(recall, row["recall"])


def test_the_default_prior():
    found = read("prior_default/figures.json")
    evaluation = read("prior_default/evaluation.json")
    (row,) = (
        row for row in found["rows"]
        if (row["run"], row["how"]) == ("prior_default", {"temperature": 0.8})
    )  # fmt: skip
    floor, file = found["references"], "experiments/prior_default/README.md"
    assert found["bits_per_code"]["prior_default"] == evaluation["bits_per_code"]
    holds(cells(file, "bits a pixel")[0], evaluation["bits_per_pixel"])
    frechet = cells(file, "Frechet distance, EfficientNet-lite0, to 1,024 training images")
    spread(frechet[0], row["efficientnet_frechet"])
    holds(frechet[1], floor["efficientnet_frechet_reconstructed"])
    holds(frechet[2], floor["efficientnet_frechet_floor"])
    precision = cells(file, "precision, recall")
    holds(precision[2], floor["precision_floor"], floor["recall_floor"])
    nearest = cells(file, "mean distance to the nearest training image")
    spread(nearest[0], row["nearest"])
    holds(nearest[2], floor["nearest_floor"])
    readme = (ROOT / "README.md").read_text()
    for number in (
        f"{evaluation['bits_per_code']:.2f} bits a code",
        f"EfficientNet-lite0 {row['efficientnet_frechet']['mean']:.1f}",
        f"have {floor['efficientnet_frechet_floor']:.1f}",
        f"{floor['efficientnet_frechet_reconstructed']:.1f} once",
    ):
        assert number in " ".join(readme.split()), number


@pytest.mark.parametrize(
    "file,figures,given",
    [
        ("upscale/README.md", "upscale/by_4.json", "bicubic, as given"),
        ("restore/README.md", "restore/figures.json", "damaged, as given"),
    ],
)
def test_images_made_better(file, figures, given):
    found = read(figures)
    text = (EXPERIMENTS / file).read_text().partition("## By 2")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for first, which in (
        (given, "_before"),
        ("this prior", ""),
        ("the originals through", "_ceiling"),
    ):
        (row,) = (row for row in rows if row.startswith(f"| {first}"))
        row = [cell.strip() for cell in row.strip("| ").split("|")][1:]
        for cell, name in zip(row, ("psnr", "ssim", "lpips"), strict=True):
            figure = found[name + which]
            if which:
                holds(cell, figure["mean"])
            else:
                spread(cell, figure)
    label = {"upscale": "`prior_upscale`, by 4", "restore": "`prior_restore`"}[
        file.partition("/")[0]
    ]
    readme = (ROOT / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if line.startswith(f"| {label}"))
    row = line.strip("| ").split("|")
    for cell, which in zip(row[1:], ("_before", "", "_ceiling"), strict=True):
        numbers = [found[name + which]["mean"] for name in ("psnr", "lpips")]
        holds(re.sub(r"\(.*?\)", "", cell), *numbers)


def test_inpainting():
    found, file = read("edits/inpaint.json"), "experiments/edits/README.md"
    for row, name in {
        "this prior, temperature .8": "this prior",
        "this prior, temperature .3": "this prior, temperature 0.3",
        "median colour": "median fill",
        "OpenCV, Telea": "OpenCV, Telea",
        "OpenCV, Navier-Stokes": "OpenCV, Navier-Stokes",
    }.items():
        lpips, psnr = cells(file, row)
        holds(lpips, found[name]["lpips"])
        holds(psnr, found[name]["psnr_inside"])


def test_cifar10():
    figures = read("vqvae_cifar10/evaluation.json")
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"error {figures['nmse']:.4f}".replace("0.", ".") in text
    assert f"perplexity {figures['perplexity']:.0f}" in text

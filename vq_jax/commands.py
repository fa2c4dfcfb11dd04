"""The tables of commands and flags, as data; `cli` parses, shows help and runs from them.

`COMMANDS` has one row for each `--mode`, and `FLAGS` one row for each flag. This module does not
import JAX or any other large library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vq_jax.files import WEIGHTS


@dataclasses.dataclass(frozen=True)
class Flag:
    """A command-line flag.

    Attributes:
      kind: "path", "text", "texts" (may be repeated), "int", "float", "switch", or a tuple of the
        allowed values.
      help: description, with the default.
    """

    kind: str | tuple[str, ...]
    help: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, selected with `--mode`.

    Attributes:
      target: "module:function" in `vq_jax.tasks`. The function is called with `workdir` and the
        values of the flags. A flag that is not given is not passed, so that the function's default
        applies.
      help: one line for the list of commands.
      example: flags of a typical call.
      flags: flag -> keyword of the function; other flags are rejected.
      required: flags that must be given.
      config: meaning of --config: "run" (it is passed as `config`), "data" (its section `data` is
        passed as `data`), "name" (it only names the run's folder), or "" (it is rejected).
      workdir: the run's folder if neither --workdir nor --config is given.
      streams: whether --input and --output may be "-", for standard input and output.
      constants: keywords that are always passed.
      flag_help: help of flags, workdir included, where it differs from that in `FLAGS`.
    """

    target: str
    help: str
    example: str
    flags: Mapping[str, str]
    required: tuple[str, ...] = ()
    config: str = "name"
    workdir: str = "runs/default"
    streams: bool = False
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flag_help: Mapping[str, str] = dataclasses.field(default_factory=dict)


_IN_PRIOR_CONFIG = "Default: set in the prior's config."

FLAGS: dict[str, Flag] = {
    "input": Flag("path", "A file, or a folder of files; '-' is standard input."),
    "output": Flag("path", "The file or folder to write; '-' is standard output."),
    "side_by_side": Flag(
        "switch", "Put the original to the left of the reconstruction: images and videos."
    ),
    "tokens": Flag(
        "int", "Models of the kind titok: number of codes to decode, from the first. Default: all."
    ),
    "lossy": Flag("switch", "Texts: keep the codes only, from which the text is approximate."),
    "port": Flag("int", "Port of the server. Default: 7860."),
    "host": Flag(
        "text", "Address that the server listens at. Default: 127.0.0.1, this machine only."
    ),
    "prompt": Flag("text", "Texts: how the samples begin; they continue it."),
    "entropy": Flag(
        ("fixed", "static", "prior", "context"),
        "Entropy model of the codes. Default: context or prior where there is one, otherwise fixed or "
        "static, whichever is shorter.",
    ),
    "quality": Flag(
        "int",
        "1 to 100, of a codec with the entropy model 'context'. Default: 50. Or the number of levels "
        "of a residual tokenizer to keep, from 1. Default: all levels.",
    ),
    "effort": Flag(
        "int", "Search for codes that cost fewer bits, with 'context': 0 is none. Default: 1."
    ),
    "salvage": Flag("switch", "Decompress what is left of a damaged file that 'context' coded."),
    "bits": Flag(
        "int",
        "Format vq_jax: store params in 16 or 8 bits. The result is another model: files of the run do not fit it.",
    ),
    "push": Flag(
        "text",
        "hf:OWNER/NAME, a repository at the Hugging Face Hub to upload the folder to, with a card.",
    ),
    "distributed": Flag("switch", "This process is one of several that train one run."),
    "coordinator": Flag("text", "HOST:PORT of process 0, unless the cluster provides it."),
    "processes": Flag("int", "Number of processes, unless the cluster provides it."),
    "process": Flag("int", "Index of this process, from 0, unless the cluster provides it."),
    "device": Flag("text", "A TPU to compile for, such as tpu-v5e. Default: the local device."),
    "devices": Flag("int", "Number of devices that share the batch. Default: 1."),
    "share": Flag("float", "Share of a device's peak FLOPs that training reaches. Default: 0.4."),
    "profile": Flag("switch", "Write a profiler trace of ten steps to the run's folder."),
    "flips": Flag("switch", "Images: also write the mirrored training images."),
    "crops": Flag(
        "int", "Images: number of random crops of each training image. Default: 0, its centre."
    ),
    "tokenizer": Flag(
        "path", "Folder of the tokenizer's run. Default: the one in the prior's config."
    ),
    "format": Flag("text", "Format of the weights. Default: detected from names and shapes."),
    "inception": Flag(
        "path",
        "Images: compute FID, with this file of Inception weights or with 'download'. Videos: compute FVD, "
        "with this file of I3D weights.",
    ),
    "protocol": Flag("text", "How FID prepares images: adm or clean. Default: adm."),
    "classes": Flag("int", "Number of classes of taming's transformer. Default: 0, unconditional."),
    "heads": Flag("int", "Number of attention heads of taming's transformer: n_head in its yaml."),
    "sos_token": Flag(
        "int", "Start token of taming's transformer: sos_token in its yaml. Default: 0."
    ),
    "resolution": Flag(
        "int", "Side of the training images in pixels. Default: that in the config.json, or 256."
    ),
    "count": Flag("int", "Number of variations. Default: 4."),
    "label": Flag("texts", "A class, by name or number."),
    "seed": Flag("int", "Seed of the sampling. Default: 0."),
    "candidates": Flag("int", "Number of candidates, of which the likeliest is kept. Default: 1."),
    "mask": Flag(
        "path",
        "An image that is white where to sample; for a video also a clip. In an image with transparent holes, the holes "
        "are the mask.",
    ),
    "gap": Flag("text", "Texts: a character that stands for each byte to draw. Default: _."),
    "margins": Flag("text", "Pixels to add: top,right,bottom,left, or one number for all sides."),
    "factor": Flag(
        "int", "Ratio of new to old side, a power of the prior's own. Default: the prior's own."
    ),
    "frames": Flag("int", "Number of frames to append. Default: 16."),
    "to": Flag("path", "An image, or a clip, that the result ends with."),
    "redraw": Flag("float", "Share of the codes to sample again, up to 1. Default: 0.5."),
    "temperature": Flag(
        "float", f"Sampling temperature; 0 takes the likeliest code. {_IN_PRIOR_CONFIG}"
    ),
    "top_k": Flag("int", f"Number of likeliest codes to sample from; 0 is all. {_IN_PRIOR_CONFIG}"),
    "top_p": Flag(
        "float",
        "Sample from the smallest set of likeliest codes with this total probability. "
        f"{_IN_PRIOR_CONFIG}",
    ),
    "min_p": Flag(
        "float",
        "Smallest probability, relative to the likeliest code's, of the codes to sample from. "
        f"{_IN_PRIOR_CONFIG}",
    ),
    "guidance": Flag("float", f"Weight of the label; 1 is no guidance. {_IN_PRIOR_CONFIG}"),
    "guidance_schedule": Flag(
        ("constant", "linear", "cosine"),
        f"How the guidance rises while codes are sampled. {_IN_PRIOR_CONFIG}",
    ),
    "steps": Flag("int", f"Masked priors: number of sampling steps. {_IN_PRIOR_CONFIG}"),
    "choice_temperature": Flag(
        "float", f"Masked priors: randomness in which codes are fixed first. {_IN_PRIOR_CONFIG}"
    ),
    "order": Flag(
        ("confidence", "halton"),
        f"Masked priors: which codes are fixed first. {_IN_PRIOR_CONFIG}",
    ),
}

# Flags that several commands pass on as the same keywords.
_TOKENIZER = {"tokenizer": "tokenizer"}
_FILES = {"input": "input", "output": "output"}
_PROCESSES = {"processes": "processes", "process": "process"}
_SAMPLING = {
    name: name
    for name in (
        "seed",
        "candidates",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "guidance",
        "guidance_schedule",
        "steps",
        "choice_temperature",
        "order",
    )
}


def _edit(
    name: str,
    help: str,
    more: str = "",
    *,
    workdir: str = "runs/prior_default",
    required: tuple[str, ...] = (),
    files: str = "--input=my.png --output=out.png",
    **flags: str,
) -> Command:
    """Returns the row of an edit, a command that changes files with a prior.

    Args:
      name: name of the edit.
      help: see `Command`.
      more: flags of the example beside input and output.
      workdir: see `Command`.
      required: flags that must be given, beside input and output.
      files: input and output of the example.
      **flags: the edit's own flags -> keywords.
    """
    return Command(
        "edit:edit",
        help,
        files + more,
        {**_FILES, **flags, "label": "label", **_TOKENIZER, **_SAMPLING},
        required=("input", "output", *required),
        workdir=workdir,
        streams=True,
        constants={"name": name},
    )


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train:train",
        "train a tokenizer or a prior, from its newest checkpoint or from scratch",
        "--config=default",
        {
            "profile": "profile",
            "distributed": "distributed",
            "coordinator": "coordinator",
            **_PROCESSES,
        },
        required=("config",),
        config="run",
    ),
    "evaluate": Command(
        "evaluate:evaluate",
        "evaluate a run on its held-out split",
        "--workdir=runs/default",
        {
            "inception": "inception",
            "protocol": "protocol",
            "count": "count",
            "seed": "seed",
            **_TOKENIZER,
        },
        config="data",
        flag_help={
            "count": "Priors: number of samples for FID. Default: eval_samples of the config.",
            "seed": "Priors: seed of the samples. Default: 0.",
        },
    ),
    "plan": Command(
        "plan:plan",
        "estimate the cost of a config: parameters, FLOPs, memory, examples/s by device",
        "--config=vqgan_imagenet256 --devices=8",
        {"device": "device", "devices": "devices", "share": "share"},
        config="run",
        flag_help={"workdir": "A run whose config is used if there is no --config."},
    ),
    "reconstruct": Command(
        "reconstruct:reconstruct",
        "encode and decode files with a tokenizer; images may have any size",
        "--workdir=runs/default --input=my.png --output=out.png --side_by_side",
        {**_FILES, "side_by_side": "side_by_side", "tokens": "tokens"},
        required=("input", "output"),
        streams=True,
    ),
    "compress": Command(
        "compress:compress",
        "compress files to .vqz files",
        "--workdir=runs/default --input=my.png --output=my.vqz",
        {
            **_FILES,
            **_TOKENIZER,
            "entropy": "entropy",
            "quality": "quality",
            "effort": "effort",
            "lossy": "lossy",
        },
        required=("input", "output"),
        config="data",
        streams=True,
    ),
    "decompress": Command(
        "compress:decompress",
        "decompress .vqz files",
        "--workdir=runs/default --input=my.vqz --output=out.png",
        {**_FILES, **_TOKENIZER, "salvage": "salvage"},
        required=("input", "output"),
        streams=True,
    ),
    "tokenize": Command(
        "tokenize:tokenize",
        "write the codes of a data set, to train priors on or as semantic IDs",
        "--workdir=runs/default --output=codes --flips",
        {"output": "output", "flips": "flips", "crops": "crops", **_PROCESSES},
        required=("output",),
        config="data",
        flag_help={
            "output": "The folder to write; or NAME.parquet, a table of semantic IDs with one row "
            "for each example.",
            "processes": "Number of processes that share the work. Default: 1.",
            "process": "Index of this process, from 0. Default: 0.",
        },
    ),
    "sample": Command(
        "sample:sample",
        "sample examples from a prior, by class",
        "--workdir=runs/prior_default --label='Food & Drink' --count=8",
        {
            "output": "output",
            "count": "count",
            "label": "labels",
            "prompt": "prompt",
            **_TOKENIZER,
            **_SAMPLING,
        },
        workdir="runs/prior_default",
        flag_help={
            "output": "The folder to write. Default: samples in the run's folder; of a model that ships, ./samples.",
            "count": "Number of samples, of each label. Default: 16.",
            "label": "A class, by name or number; may be repeated.",
        },
    ),
    "inpaint": _edit(
        "inpaint",
        "sample the part of an image or video that a mask marks, or the gap in a text",
        " --mask=mask.png",
        mask="mask",
        gap="gap",
    ),
    "outpaint": _edit(
        "outpaint",
        "extend images beyond their edges",
        " --margins=0,16,0,16",
        required=("margins",),
        margins="margins",
    ),
    "upscale": _edit("upscale", "enlarge images", workdir="runs/prior_upscale", factor="factor"),
    "restore": _edit(
        "restore",
        "remove noise, blur, JPEG artefacts and bad light from images",
        workdir="runs/prior_restore",
    ),
    "variations": _edit(
        "variations",
        "sample a share of an image's codes again; writes the image and its variations in a row",
        " --redraw=0.5",
        redraw="share",
        count="count",
    ),
    "predict": _edit(
        "predict",
        "append frames to a video; an image is a video of one frame",
        " --frames=32",
        files="--input=my.mp4 --output=out.mp4",
        workdir="runs/prior_moving_emoji",
        frames="frames",
    ),
    "interpolate": _edit(
        "interpolate",
        "sample the frames between two images, or between two clips",
        " --to=last.png",
        files="--input=first.png --output=out.mp4",
        workdir="runs/prior_moving_emoji",
        required=("to",),
        to="to",
    ),
    "import": Command(
        "import_weights:import_weights",
        "import the weights of another codebase into a run's folder",
        "--input=vqgan.ckpt --workdir=runs/imported",
        {
            "input": "input",
            "format": "format",
            "classes": "classes",
            "heads": "heads",
            "sos_token": "sos_token",
            "resolution": "resolution",
            **_TOKENIZER,
        },
        required=("input",),
        config="",
        workdir="runs/imported",
        flag_help={
            "workdir": "The folder to write.",
            "input": "A weight file, or a folder with one; or hf:OWNER/NAME or hf:OWNER/NAME/FILE, at the Hub.",
            "tokenizer": "Folder of a prior's tokenizer, for a prior whose file has none.",
        },
    ),
    "export": Command(
        "export:export",
        "export a run to diffusers, taming, VAR, TiTok, vq_jax's own format, or StableHLO",
        "--workdir=runs/default --format=vq_jax --output=exported",
        {"output": "output", "format": "format", "bits": "bits", "push": "push"},
        required=("output", "format"),
        flag_help={
            "output": "The folder to write.",
            "format": "diffusers, taming, var, titok, vq_jax (a folder that --mode=import reads) or stablehlo "
            "(programs).",
        },
    ),
    "serve": Command(
        "serve:serve",
        "serve a page in the browser: tokens, compression, samples, edits",
        "--workdir=photo-codec",
        {"port": "port", "host": "host"},
        config="",
        workdir=str(WEIGHTS),
        flag_help={"workdir": "A run, or a folder of runs."},
    ),
    "list": Command(
        "list_runs:list_runs",
        "list the recipes, the models that ship, and the runs with their figures",
        "",
        {},
        config="",
        workdir="runs",
        flag_help={"workdir": "The folder of runs, or of one run."},
    ),
}

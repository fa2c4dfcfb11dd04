"""Helpers for the tests of import and export: model files, and comparisons with PyTorch."""

import chex
import numpy as np
import torch
from diffusers import VQModel
from torch_models import randomise

import vq_jax

LIMIT = 1e-4


def to_torch(x):
    """Converts an array [B, H, W, C] to a tensor [B, C, H, W]."""
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def to_numpy(x):
    """Converts a tensor [B, C, H, W] to an array [B, H, W, C]."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_same_tokenizer(tokenizer, images, codes, decode):
    """Asserts that a tokenizer gives the reference's codes, and decodes them to the same images."""
    chex.assert_trees_all_equal(np.asarray(tokenizer.encode(images)), np.asarray(codes))
    assert len(np.unique(codes)) > 3
    expected = decode(codes)
    scale = max(1.0, np.abs(expected).max())
    chex.assert_trees_all_close(
        np.asarray(tokenizer.decode(np.asarray(codes))) / scale, expected / scale, atol=LIMIT
    )


def assert_same_latents(model, folder, images):
    """Asserts that the tokenizer imported to `folder` has the latents of diffusers' `model`."""
    with torch.no_grad():
        expected = model.encode(to_torch(images)).latents
    tokenizer = vq_jax.load(folder)
    latents = tokenizer.module.apply(tokenizer.variables, images, method="encode")
    chex.assert_trees_all_close(latents, to_numpy(expected), atol=LIMIT)


def save(path, state, **entries):
    """Saves a state dict and other entries as a PyTorch checkpoint, and returns its path."""
    torch.save({"state_dict": state, **entries}, path)
    return path


def diffusers_model(widths, attended, **kwargs):
    """Returns diffusers' VQModel with random weights, and attention at the levels `attended`."""
    levels = range(len(widths))
    down = ["AttnDownEncoderBlock2D" if i in attended else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in attended else "UpDecoderBlock2D" for i in levels]
    return randomise(
        VQModel(
            block_out_channels=widths, down_block_types=down, up_block_types=up[::-1],
            latent_channels=8, num_vq_embeddings=64, vq_embed_dim=6, sample_size=32, **kwargs,
        )
    )  # fmt: skip

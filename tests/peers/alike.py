"""What the tests of import and export share: files, and being held alike."""

import chex
import numpy as np
import torch
from diffusers import VQModel
from torch_models import randomise

import vq_jax

LIMIT = 1e-4


def to_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def to_numpy(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def held_alike(tokenizer, images, codes, decode):
    """The same codes, and what is decoded of them, here as there."""
    chex.assert_trees_all_equal(np.asarray(tokenizer.encode(images)), np.asarray(codes))
    assert len(np.unique(codes)) > 3
    expected = decode(codes)
    scale = max(1.0, np.abs(expected).max())
    chex.assert_trees_all_close(
        np.asarray(tokenizer.decode(np.asarray(codes))) / scale, expected / scale, atol=LIMIT
    )


def latents_alike(model, folder, images):
    """An imported tokenizer encodes as diffusers' model does."""
    with torch.no_grad():
        latents = model.encode(to_torch(images)).latents
    tokenizer = vq_jax.load(folder)
    found = tokenizer.module.apply(tokenizer.variables, images, method="encode")
    chex.assert_trees_all_close(found, to_numpy(latents), atol=LIMIT)


def save(path, state, **beside):
    torch.save({"state_dict": state, **beside}, path)
    return path


def diffusers_model(widths, attended, **kwargs):
    levels = range(len(widths))
    down = ["AttnDownEncoderBlock2D" if i in attended else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in attended else "UpDecoderBlock2D" for i in levels]
    return randomise(
        VQModel(
            block_out_channels=widths, down_block_types=down, up_block_types=up[::-1],
            latent_channels=8, num_vq_embeddings=64, vq_embed_dim=6, sample_size=32, **kwargs,
        )
    )  # fmt: skip

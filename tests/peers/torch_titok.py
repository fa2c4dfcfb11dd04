"""TiTok in PyTorch, written from its description: its two kinds of decoder, and MaskGIT's decoder."""

import torch
from torch import nn
from torch.nn import functional as F
from torch_models import norm


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


class Side(nn.Module):
    """What encoder and decoder share: embeddings and layers."""

    def __init__(self, width, layers, tokens, patches):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(patches + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Layer(width) for _ in range(layers))

    def run(self, patches, latents):
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        x = torch.cat([x, latents + self.latent_token_positional_embedding], dim=1)
        x = self.ln_pre(x)
        for layer in self.transformer:
            x = layer(x)
        return x


class Block(nn.Module):
    """MaskGIT's residual block, whose shortcut sees the output of the convolutions."""

    def __init__(self, ins, outs):
        super().__init__()
        self.norm1, self.norm2 = norm(ins), norm(outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=False)
        if ins != outs:
            self.nin_shortcut = nn.Conv2d(outs, outs, 1, bias=False)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class PixelDecoder(nn.Module):
    def __init__(self, ch, mults, blocks, dim):
        super().__init__()
        c = ch * mults[-1]
        self.conv_in = nn.Conv2d(dim, c, 3, padding=1)
        self.mid = nn.ModuleList(Block(c, c) for _ in range(blocks))
        self.up = nn.ModuleList()
        for level in reversed(range(len(mults))):
            part = nn.Module()
            part.block = nn.ModuleList()
            for _ in range(blocks):
                part.block.append(Block(c, ch * mults[level]))
                c = ch * mults[level]
            if level:
                part.upsample_conv = nn.Conv2d(c, c, 3, padding=1)
            self.up.insert(0, part)
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for block in self.mid:
            h = block(h)
        for level in reversed(range(len(self.up))):
            for block in self.up[level].block:
                h = block(h)
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.up[level].upsample_conv(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class TiTok(nn.Module):
    """The tokenizer; `legacy` is two-stage, with the encoder's output in another order."""

    def __init__(self, legacy, *, side=32, patch=8, width=64, tokens=6, dim=5, codes=32, layers=2):
        super().__init__()
        self.legacy, self.patch, self.grid, self.tokens = legacy, patch, side // patch, tokens
        patches, decoder_width = self.grid**2, 2 * width
        self.encoder = Side(width, layers, tokens, patches)
        self.encoder.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.encoder.conv_out = nn.Conv2d(width, dim, 1)
        self.latent_tokens = nn.Parameter(torch.zeros(tokens, width))
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, dim)
        self.decoder = decoder = Side(decoder_width, 1, tokens, patches)
        decoder.decoder_embed = nn.Linear(dim, decoder_width)
        decoder.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        if legacy:
            decoder.ffn = nn.Sequential(
                nn.Conv2d(decoder_width, 2 * decoder_width, 1), nn.Tanh(),
                nn.Conv2d(2 * decoder_width, 24, 1),
            )  # fmt: skip
            self.pixel_quantize = nn.Module()
            self.pixel_quantize.embedding = nn.Embedding(24, 8)
            self.pixel_decoder = PixelDecoder(32, (1, 1, 1, 2), 1, 8)
        else:
            decoder.ffn = nn.Sequential(nn.Conv2d(decoder_width, 3 * patch**2, 1))
            decoder.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def entries(self):
        weight = self.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.legacy else weight

    @torch.no_grad()
    def encode(self, x):
        patches = self.encoder.patch_embed((x + 1) / 2).flatten(2).transpose(1, 2)
        latents = self.latent_tokens.expand(len(x), -1, -1)
        h = self.encoder.ln_post(self.encoder.run(patches, latents)[:, -self.tokens :])
        width = h.shape[-1]
        if self.legacy:
            h = h.reshape(len(x), width, self.tokens, 1)
        else:
            h = h.transpose(1, 2)[..., None]
        z = self.encoder.conv_out(h)[..., 0].transpose(1, 2)
        z = F.normalize(z, dim=-1) if self.legacy else z
        return torch.cdist(z, self.entries()[None]).argmin(-1)

    @torch.no_grad()
    def decode(self, codes):
        decoder, grid = self.decoder, self.grid
        masks = decoder.mask_token.expand(len(codes), grid**2, -1)
        h = decoder.run(masks, decoder.decoder_embed(self.entries()[codes]))
        h = decoder.ln_post(h[:, 1 : 1 + grid**2])
        h = decoder.ffn(h.transpose(1, 2).reshape(len(codes), -1, grid, grid))
        if self.legacy:
            p = h.softmax(1).permute(0, 2, 3, 1)
            mixed = p @ self.pixel_quantize.embedding.weight
            return 2 * self.pixel_decoder(mixed.permute(0, 3, 1, 2)) - 1
        b, p = len(codes), self.patch
        h = h.reshape(b, p, p, 3, grid, grid).permute(0, 3, 4, 1, 5, 2)
        return 2 * decoder.conv_out(h.reshape(b, 3, grid * p, grid * p)) - 1

"""VAR's tokenizer and transformer in PyTorch, written from their description, for import and export."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_models import VQGAN, SelfAttention, norm


class JointAttention(SelfAttention):
    """Self-attention over positions, with one convolution for queries, keys and values."""

    def __init__(self, c):
        nn.Module.__init__(self)
        self.norm, self.qkv, self.proj_out = norm(c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k / c**0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))


def joint(module):
    """Replaces all attention layers by `JointAttention`."""
    for name, child in module.named_children():
        if isinstance(child, SelfAttention):
            setattr(module, name, JointAttention(child.proj_out.in_channels))
        else:
            joint(child)


class VARTokenizer(VQGAN):
    """The tokenizer: VQGAN's networks, 3x3 convolutions around the quantizer, codes at several scales."""

    def __init__(self, scales=(1, 2, 3, 4, 8), dim=6, codes=64, convolutions=4, **sizes):
        super().__init__(dim=dim, z=dim, codes=codes, **sizes)
        joint(self)
        self.scales = scales
        self.quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1) for _ in range(convolutions)
        )
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(scales), codes))

    def enlarge(self, i, h):
        """The quantized map of scale i at the size of the latents, mixed with its convolution."""
        convolutions = self.quantize.quant_resi.qresi_ls
        count = len(convolutions)
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(edge, 1 - edge, count)  # in 64 bits, which decides ties
        nearest = np.abs(ticks - i / (len(self.scales) - 1)).argmin()
        side = self.scales[-1]
        if h.shape[-1] != side:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        return 0.5 * h + 0.5 * convolutions[nearest](h)

    def look_up(self, codes, side):
        return self.entries()[codes].reshape(len(codes), side, side, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def encode(self, x):
        rest, found = self.quant_conv(self.encoder(x)), []
        for i, side in enumerate(self.scales):
            coarse = F.interpolate(rest, size=(side, side), mode="area").flatten(2).transpose(1, 2)
            codes = torch.cdist(coarse, self.entries()[None]).argmin(-1)
            rest = rest - self.enlarge(i, self.look_up(codes, side))
            found.append(codes)
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def sums(self, codes):
        """What the first i scales decode to, for i = 1 to all."""
        total, found = 0, []
        parts = codes.split([side**2 for side in self.scales], dim=1)
        for i, (side, part) in enumerate(zip(self.scales, parts, strict=True)):
            total = total + self.enlarge(i, self.look_up(part, side))
            found.append(total)
        return found

    @torch.no_grad()
    def decode(self, codes):
        return self.decoder(self.post_quant_conv(self.sums(codes)[-1]))

    def inputs(self, codes):
        """The transformer's inputs at all scales but the first: [B, L - 1, dim]."""
        sides = self.scales[1:]
        maps = [
            F.interpolate(total, size=(side, side), mode="area").flatten(2)
            for total, side in zip(self.sums(codes), sides, strict=False)
        ]
        return torch.cat(maps, dim=2).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn, self.ffn = nn.Module(), nn.Module()
        self.attn.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn.q_bias = nn.Parameter(torch.zeros(width))
        self.attn.v_bias = nn.Parameter(torch.zeros(width))
        self.attn.register_buffer("zero_k_bias", torch.zeros(width))
        self.attn.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.attn.proj = nn.Linear(width, width)
        self.ffn.fc1, self.ffn.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, label, seen):
        b, length, width = x.shape
        attn, heads = self.attn, self.attn.scale_mul_1H11.shape[1]
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(label)[:, None].chunk(6, -1)
        h = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale1) + shift1
        bias = torch.cat([attn.q_bias, attn.zero_k_bias, attn.v_bias])
        qkv = F.linear(h, attn.mat_qkv.weight, bias).reshape(b, length, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * attn.scale_mul_1H11.clamp(max=math.log(100)).exp()
        logits = (q @ F.normalize(k, dim=-1).transpose(-1, -2)).masked_fill(~seen, -torch.inf)
        h = (logits.softmax(-1) @ v).transpose(1, 2).reshape(b, length, width)
        x = x + gate1 * attn.proj(h)
        h = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * self.ffn.fc2(F.gelu(self.ffn.fc1(h), approximate="tanh"))


class VARTransformer(nn.Module):
    """The transformer, on inputs from the tokenizer."""

    def __init__(self, scales=(1, 2, 3, 4, 8), dim=6, codes=64, classes=5, layers=2, width=32):
        super().__init__()
        length, heads = sum(side**2 for side in scales), 2
        self.word_embed = nn.Linear(dim, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, scales[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, width))
        self.lvl_embed = nn.Embedding(len(scales), width)
        self.blocks = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.head_nm = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, codes)
        level = torch.cat([torch.full((side**2,), i) for i, side in enumerate(scales)])
        self.register_buffer("lvl_1L", level[None])
        seen = level[:, None] >= level[None]
        mask = torch.where(seen, 0.0, -torch.inf)[None, None]
        self.register_buffer("attn_bias_for_masking", mask)

    @torch.no_grad()
    def forward(self, inputs, label):
        label = self.class_emb(label)
        x = torch.cat([label[:, None] + self.pos_start, self.word_embed(inputs)], dim=1)
        x = x + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        for block in self.blocks:
            x = block(x, label, self.attn_bias_for_masking == 0)
        scale, shift = self.head_nm.ada_lin(label)[:, None].chunk(2, -1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.head(h * (1 + scale) + shift)

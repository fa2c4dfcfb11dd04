"""The published architectures in PyTorch and Flax, written from their descriptions.

They have the original names of arrays and give the same numbers, without losses and training.
"""

import flax.linen as fnn
import jax.numpy as jnp
import torch
from torch import nn
from torch.nn import functional as F


def randomise(module, seed=0):
    """Sets random weights, with norms and biases that differ from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        spread = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.2
        p.data = spread * torch.randn(p.shape, generator=generator) + (p.ndim == 1) * p.data
    return module.eval()


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """A residual block."""

    def __init__(self, ins, outs, bias=True):
        super().__init__()
        self.norm1, self.norm2 = norm(ins), norm(outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1, bias=bias)
        if ins != outs:
            self.nin_shortcut = nn.Conv2d(ins, outs, 1, bias=bias)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SelfAttention(nn.Module):
    """Self-attention over positions, with one head."""

    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = (f(self.norm(x)).reshape(b, c, h * w) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / c**0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))


class Down(nn.Module):
    """Halves the resolution, with padding at the right and bottom."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Doubles the resolution."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Side(nn.Module):
    """An encoder or decoder; `style` ("taming" or "llamagen") gives the names of its parts."""

    def __init__(self, style, decoder, ch, mults, blocks, attended, mid_attention, z):
        super().__init__()
        self.style, self.decoder = style, decoder
        levels = range(len(mults))
        order = list(reversed(levels) if decoder else levels)
        block_name, attn_name = ("block", "attn") if style == "taming" else ("res", "attn")
        c = ch * mults[-1] if decoder else ch
        self.conv_in = nn.Conv2d(z if decoder else 3, c, 3, padding=1)
        parts = {}
        for level in order:
            part = nn.Module()
            res, attn = nn.ModuleList(), nn.ModuleList()
            if decoder and level == len(mults) - 1:
                self._middle(c, mid_attention)
            for _ in range(blocks + decoder):
                res.append(Residual(c, ch * mults[level]))
                c = ch * mults[level]
                if level in attended:
                    attn.append(SelfAttention(c))
            setattr(part, block_name, res)
            setattr(part, attn_name, attn)
            if not decoder and level < len(mults) - 1:
                part.downsample = Down(c)
            if decoder and level > 0:
                part.upsample = Up(c)
            parts[level] = part
        if not decoder:
            self._middle(c, mid_attention)
        # taming lists the levels from the finest, LlamaGen in the order of execution.
        listed = [parts[i] for i in (levels if style == "taming" else order)]
        name = "conv_blocks" if style != "taming" else ("up" if decoder else "down")
        setattr(self, name, nn.ModuleList(listed))
        self.order = order if style == "taming" else list(levels)
        self.list_name, self.block_name = name, block_name
        self.norm_out = norm(c)
        self.conv_out = nn.Conv2d(c, 3 if decoder else z, 3, padding=1)

    def _middle(self, c, attention):
        parts = [Residual(c, c), SelfAttention(c), Residual(c, c)]
        if self.style != "taming":
            self.mid = nn.ModuleList(parts)
            return
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = parts[0], parts[2]
        if attention:
            self.mid.attn_1 = parts[1]

    def _run_middle(self, h):
        if self.style != "taming":
            for part in self.mid:
                h = part(h)
            return h
        h = self.mid.block_1(h)
        h = self.mid.attn_1(h) if hasattr(self.mid, "attn_1") else h
        return self.mid.block_2(h)

    def forward(self, x):
        h = self.conv_in(x)
        h = self._run_middle(h) if self.decoder else h
        for i in self.order:
            part = getattr(self, self.list_name)[i]
            for j, block in enumerate(getattr(part, self.block_name)):
                h = block(h)
                h = part.attn[j](h) if len(part.attn) else h
            for name in ("downsample", "upsample"):
                h = getattr(part, name)(h) if hasattr(part, name) else h
        h = h if self.decoder else self._run_middle(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VQGAN(nn.Module):
    """The tokenizer of taming, latent-diffusion, IBQ and LlamaGen.

    `style` is "llamagen" for LlamaGen, else "taming". `quantizer` is "vq", "gumbel", "ibq" or
    "cosine".
    """

    def __init__(
        self, style="taming", quantizer="vq", *, ch=32, mults=(1, 2), blocks=1, attended=(1,),
        mid_attention=True, z=8, dim=6, codes=64,
    ):  # fmt: skip
        super().__init__()
        common = (ch, mults, blocks, attended, mid_attention, z)
        self.encoder, self.decoder = (Side(style, d, *common) for d in (False, True))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, dim, 1), nn.Conv2d(dim, z, 1)
        self.kind = quantizer
        self.quantize = nn.Module()
        if quantizer == "gumbel":
            self.quantize.embed = nn.Embedding(codes, dim)
            self.quantize.proj = nn.Conv2d(dim, codes, 1)
        else:
            self.quantize.embedding = nn.Embedding(codes, dim)

    def entries(self):
        if self.kind == "gumbel":
            return self.quantize.embed.weight
        weight = self.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.kind == "cosine" else weight

    @torch.no_grad()
    def encode(self, x):
        z = self.quant_conv(self.encoder(x))
        if self.kind == "gumbel":
            return self.quantize.proj(z).argmax(1)
        z = z.permute(0, 2, 3, 1)
        if self.kind == "ibq":
            return (z @ self.entries().T).argmax(-1)
        z = F.normalize(z, dim=-1) if self.kind == "cosine" else z
        return ((z[..., None, :] - self.entries()) ** 2).sum(-1).argmin(-1)

    @torch.no_grad()
    def decode(self, codes):
        return self.decoder(self.post_quant_conv(self.entries()[codes].permute(0, 3, 1, 2)))


class PatchGAN(nn.Module):
    """taming's `NLayerDiscriminator`."""

    def __init__(self, ndf=16, n_layers=2):
        super().__init__()
        layers, c = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)], ndf
        for n in range(1, n_layers + 1):
            out = ndf * min(2**n, 8)
            layers.append(nn.Conv2d(c, out, 4, 2 if n < n_layers else 1, 1, bias=False))
            layers += [nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
            c = out
        self.main = nn.Sequential(*layers, nn.Conv2d(c, 1, 4, 1, 1))


# --- Open-MAGVIT2 ---------------------------------------------------------------------------------


class Adaptive(nn.Module):
    """Adaptive group normalisation, by the statistics of the latents z."""

    def __init__(self, z, c):
        super().__init__()
        self.gn = nn.GroupNorm(32, c, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(z, c), nn.Linear(z, c)

    def forward(self, x, z):
        flat = z.flatten(2)
        scale = self.gamma((flat.var(dim=-1) + 1e-6).sqrt())
        return self.gn(x) * scale[..., None, None] + self.beta(flat.mean(-1))[..., None, None]


class DepthToSpace(nn.Module):
    """Doubles the resolution by a convolution and a rearrangement of its channels."""

    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, 4 * c, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.conv1(x).reshape(b, 2, 2, c, h, w)  # The channels are (row, column, depth).
        return y.permute(0, 3, 4, 1, 5, 2).reshape(b, c, 2 * h, 2 * w)


class Magvit2Encoder(nn.Module):
    def __init__(self, ch, mults, blocks, z):
        super().__init__()
        self.conv_in, c = nn.Conv2d(3, ch, 3, padding=1, bias=False), ch
        self.down = nn.ModuleList()
        for level, mult in enumerate(mults):
            part = nn.Module()
            part.block = nn.ModuleList()
            for _ in range(blocks):
                part.block.append(Residual(c, ch * mult, bias=False))
                c = ch * mult
            if level < len(mults) - 1:
                part.downsample = nn.Conv2d(c, c, 3, stride=2, padding=1)
            self.down.append(part)
        self.mid_block = nn.ModuleList(Residual(c, c, bias=False) for _ in range(blocks))
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, z, 1)

    def forward(self, x):
        h = self.conv_in(x)
        for part in self.down:
            for block in part.block:
                h = block(h)
            h = part.downsample(h) if hasattr(part, "downsample") else h
        for block in self.mid_block:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Magvit2Decoder(nn.Module):
    def __init__(self, ch, mults, blocks, z):
        super().__init__()
        c = ch * mults[-1]
        self.conv_in = nn.Conv2d(z, c, 3, padding=1)
        self.mid_block = nn.ModuleList(Residual(c, c, bias=False) for _ in range(blocks))
        self.up, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(mults))):
            self.adaptive.insert(0, Adaptive(z, c))
            part = nn.Module()
            part.block = nn.ModuleList()
            for _ in range(blocks):
                part.block.append(Residual(c, ch * mults[level], bias=False))
                c = ch * mults[level]
            if level:
                part.upsample = DepthToSpace(c)
            self.up.insert(0, part)
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z):
        h = self.conv_in(z)
        for block in self.mid_block:
            h = block(h)
        for level in reversed(range(len(self.up))):
            h = self.adaptive[level](h, z)
            for block in self.up[level].block:
                h = block(h)
            h = self.up[level].upsample(h) if level else h
        return self.conv_out(F.silu(self.norm_out(h)))


class Magvit2(nn.Module):
    def __init__(self, ch=32, mults=(1, 2), blocks=2, bits=7):
        super().__init__()
        self.encoder = Magvit2Encoder(ch, mults, blocks, bits)
        self.decoder = Magvit2Decoder(ch, mults, blocks, bits)

    @torch.no_grad()
    def encode(self, x):
        on = self.encoder(x) > 0
        return (on * 2 ** torch.arange(on.shape[1])[:, None, None]).sum(1)

    @torch.no_grad()
    def decode(self, codes):
        bits = self.encoder.conv_out.out_channels
        on = codes[:, None] >> torch.arange(bits)[:, None, None] & 1
        return self.decoder(on * 2.0 - 1.0)


# --- taming's transformer -------------------------------------------------------------------------


class MinGPT(nn.Module):
    """taming's autoregressive transformer."""

    def __init__(self, vocabulary=64, positions=16, layers=2, heads=4, width=32):
        super().__init__()
        self.heads = heads
        self.tok_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, positions, width))
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.ln1, block.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.Module()
            for name in ("key", "query", "value", "proj"):
                setattr(block.attn, name, nn.Linear(width, width))
            block.attn.register_buffer("mask", torch.ones(1, 1, positions, positions).tril())
            block.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.blocks.append(block)
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    @torch.no_grad()
    def forward(self, tokens):
        b, n = tokens.shape
        x = self.tok_emb(tokens) + self.pos_emb[:, :n]
        for block in self.blocks:
            h, attn = block.ln1(x), block.attn
            q, k, v = (
                f(h).reshape(b, n, self.heads, -1).transpose(1, 2)
                for f in (attn.query, attn.key, attn.value)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + attn.proj(y.transpose(1, 2).reshape(b, n, -1))
            x = x + block.mlp(block.ln2(x))
        return self.head(self.ln_f(x))


# --- MaskGIT, in Flax -----------------------------------------------------------------------------
# Class names matter: Flax names submodules after them.


class ResBlock(fnn.Module):
    filters: int

    @fnn.compact
    def __call__(self, x):
        residual, width = x, x.shape[-1]
        for _ in range(2):
            x = fnn.swish(fnn.GroupNorm()(x))
            x = fnn.Conv(self.filters, (3, 3), use_bias=False)(x)
        if width != self.filters:
            residual = fnn.Conv(self.filters, (1, 1), use_bias=False)(x)
        return x + residual


class FlaxEncoder(fnn.Module):
    ch: int
    mults: tuple
    blocks: int
    dim: int

    @fnn.compact
    def __call__(self, x):
        x = fnn.Conv(self.ch, (3, 3), use_bias=False)(x)
        for level, mult in enumerate(self.mults):
            for _ in range(self.blocks):
                x = ResBlock(self.ch * mult)(x)
            if level < len(self.mults) - 1:
                x = fnn.avg_pool(x, (2, 2), (2, 2))
        for _ in range(self.blocks):
            x = ResBlock(x.shape[-1])(x)
        return fnn.Conv(self.dim, (1, 1))(fnn.swish(fnn.GroupNorm()(x)))


class FlaxDecoder(fnn.Module):
    ch: int
    mults: tuple
    blocks: int

    @fnn.compact
    def __call__(self, x):
        x = fnn.Conv(self.ch * self.mults[-1], (3, 3))(x)
        for _ in range(self.blocks):
            x = ResBlock(x.shape[-1])(x)
        for level in reversed(range(len(self.mults))):
            for _ in range(self.blocks):
                x = ResBlock(self.ch * self.mults[level])(x)
            if level:
                x = x.repeat(2, 1).repeat(2, 2)
                x = fnn.Conv(self.ch * self.mults[level], (3, 3))(x)
        return fnn.Conv(3, (3, 3))(fnn.swish(fnn.GroupNorm()(x)))


class FlaxQuantizer(fnn.Module):
    codes: int
    dim: int

    def setup(self):
        self.codebook = self.param("codebook", fnn.initializers.normal(), (self.codes, self.dim))

    def __call__(self, z):
        return jnp.argmin(jnp.square(z[..., None, :] - self.codebook).sum(-1), axis=-1)

    def lookup(self, codes):
        return self.codebook[codes]


class MaskGIT(fnn.Module):
    """MaskGIT's tokenizer, for images in [0, 1]."""

    ch: int = 32
    mults: tuple = (1, 2, 1, 1, 1)
    blocks: int = 1
    dim: int = 6
    codes: int = 64

    def setup(self):
        self.encoder = FlaxEncoder(self.ch, self.mults, self.blocks, self.dim)
        self.decoder = FlaxDecoder(self.ch, self.mults, self.blocks)
        self.quantizer = FlaxQuantizer(self.codes, self.dim)

    def __call__(self, x):
        codes = self.quantizer(self.encoder(x))
        return codes, self.decode(codes)

    def decode(self, codes):
        return self.decoder(self.quantizer.lookup(codes))


class Attention(fnn.Module):
    heads: int

    @fnn.compact
    def __call__(self, x):
        y = fnn.SelfAttention(self.heads, name="self_attention")(x)
        return fnn.LayerNorm(epsilon=1e-12, name="attention_output_ln")(x + y)


class Mlp(fnn.Module):
    hidden: int

    @fnn.compact
    def __call__(self, x):
        h = fnn.gelu(fnn.Dense(self.hidden, name="intermediate_output")(x))
        h = fnn.Dense(x.shape[-1], name="layer_output")(h)
        return fnn.LayerNorm(epsilon=1e-12, name="layer_output_ln")(x + h)


class TransformerLayer(fnn.Module):
    heads: int
    hidden: int

    @fnn.compact
    def __call__(self, x):
        return Mlp(self.hidden)(Attention(self.heads)(x))


class Embed(fnn.Module):
    vocabulary: int
    positions: int
    width: int

    @fnn.compact
    def __call__(self, tokens):
        words = fnn.Embed(self.vocabulary, self.width, name="word_embeddings")
        positions = fnn.Embed(self.positions, self.width, name="position_embeddings")
        x = words(tokens) + positions(jnp.arange(tokens.shape[1])[None])
        return fnn.LayerNorm(epsilon=1e-12, name="embeddings_ln")(x), words.embedding


class Bias(fnn.Module):
    @fnn.compact
    def __call__(self, x):
        return x + self.param("bias", fnn.initializers.normal(), (x.shape[-1],))


class MlmLayer(fnn.Module):
    width: int

    @fnn.compact
    def __call__(self, x, words):
        x = fnn.gelu(fnn.Dense(self.width, name="mlm_dense")(x))
        x = fnn.LayerNorm(epsilon=1e-12, name="mlm_ln")(x)
        return Bias(name="mlm_bias")(x @ words.T)


class Transformer(fnn.Module):
    """MaskGIT's masked transformer."""

    vocabulary: int
    positions: int
    layers: int = 2
    width: int = 32
    heads: int = 4

    @fnn.compact
    def __call__(self, tokens):
        x, words = Embed(self.vocabulary, self.positions, self.width)(tokens)
        for _ in range(self.layers):
            x = TransformerLayer(self.heads, 2 * self.width)(x)
        return MlmLayer(self.width)(x, words)

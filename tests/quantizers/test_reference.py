"""Compares every quantizer in `QUANTIZERS` with its paper's equations in NumPy, in float64."""

import itertools

import chex
import integer_context
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_cases import GRID, MUTABLE, init_variables, latents, make

from vq_jax.quantizers import QUANTIZERS


def nearest(rows, entries):
    return ((rows[:, None] - entries[None]) ** 2).sum(-1).argmin(1)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)


def entropy_difference(p):
    """Computes E[H(p)] - H(E[p])."""
    return entropy(p).mean() - entropy(p.mean(0))


def grouped_entropy_difference(y, size, temperature, group):
    """Computes E[H(p)] - H(E[p]) over all sign codes, with E[p] taken in groups of dimensions."""
    per_latent, average = 0.0, 0.0
    for first in range(0, y.shape[1], group):
        part = y[:, first : first + group]
        bits = (np.arange(2 ** part.shape[1])[:, None] >> np.arange(part.shape[1])) & 1
        corners = size * (2.0 * bits - 1)
        p = softmax(-((part[:, None] - corners) ** 2).sum(-1) / temperature)
        per_latent += entropy(p).mean()
        average += entropy(p.mean(0))
    return per_latent - average


def square(a, b):
    return ((a - b) ** 2).mean()


def entries_of(params):
    return params["book"]["codebook"]


def vq(q, params, stats, z):
    """van den Oord et al. 2017, eq. 1 and 3. An EMA codebook leaves only the term with beta."""
    codes = nearest(z, entries_of(params))
    z_q = entries_of(params)[codes]
    return z_q, codes, q.beta * square(z, z_q)


def simvq(q, params, stats, z):
    """Zhu et al. 2024, eq. 7: the nearest of the entries c_k W."""
    entries = stats["book"]["frozen"][0] @ params["book"]["codebook_map"]
    codes = nearest(z, entries)
    return entries[codes], codes, (1 + q.beta) * square(z, entries[codes])


def gumbel(q, params, stats, z):
    """The code of Esser et al. 2021: the most likely code without noise; KL to uniform."""
    logits = z @ params["codebook_keys"].T + params["codebook_bias"]
    p = softmax(logits)
    kl = (p * np.log(p * q.num_codes)).sum(1).mean()
    codes = logits.argmax(1)
    return entries_of(params)[codes], codes, q.kl_weight * kl


def ibq(q, params, stats, z):
    """Shi et al. 2024, eq. 5-7."""
    logits = z @ entries_of(params).T
    codes = logits.argmax(1)
    z_q = entries_of(params)[codes]
    loss = (2 + q.beta) * square(z, z_q)
    return z_q, codes, loss + q.entropy_weight * entropy_difference(softmax(logits / q.temperature))


def fsq(q, params, stats, z):
    """Mentzer et al. 2023, sec. 3.1: round f(z); the code has mixed-radix digits."""
    levels = np.asarray(q.levels)
    half = (levels - 1) * 1.001 / 2
    offset = np.where(levels % 2, 0.0, 0.5)
    rounded = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    codes = ((rounded + levels // 2) * np.cumprod([1, *levels[:-1]])).sum(1)
    return rounded / (levels // 2), codes.astype(int), 0.0


def signs(q, y, size, order, group):
    """Quantizes each dimension to -size or size; dimension i is bit order[i] of the code."""
    z_q = np.where(y > 0, size, -size)
    codes = ((y > 0) * 2**order).sum(1)
    entropy_loss = grouped_entropy_difference(y, size, q.temperature, group)
    return z_q, codes, q.beta * square(y, z_q) + q.entropy_weight * entropy_loss


def lfq(q, params, stats, z):
    """Yu et al. 2023, eq. 3 and 4, over all 2^bits codes."""
    return signs(q, z, 1.0, np.arange(q.bits), q.bits)


def bsq(q, params, stats, z):
    """Zhao et al. 2024, sec. 3.2. The entropy of the average sums over single bits."""
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    return signs(q, u, q.bits**-0.5, np.arange(q.bits)[::-1], 1)


def residual(q, params, stats, z):
    """Zeghidour et al. 2021, algorithm 1."""
    total, codes, loss = np.zeros_like(z), [], 0.0
    for i in range(q.levels):
        part, chosen, cost = vq(q.inner, params[f"stages_{i}"], None, z - total)
        total = total + part
        codes.append(chosen)
        loss += cost
    return total, np.stack(codes, -1), loss


def multiscale(q, params, stats, z):
    """Tian et al. 2024, algorithm 1, with separate implementations of resizing and convolution."""
    grid, entries = q.scales[-1], entries_of(params)
    z = z.reshape(-1, grid, grid, q.dim)
    total, codes, loss = np.zeros_like(z), [], 0.0
    for i, side in enumerate(q.scales):
        step = grid // side
        small = (z - total).reshape(-1, side, step, side, step, q.dim).mean((2, 4))
        chosen = nearest(small.reshape(-1, q.dim), entries)
        coarse = enlarge(enlarge(entries[chosen].reshape(small.shape), grid, 1), grid, 2)
        kernel = params[f"blends_{i}"]  # as many convolutions as scales
        total = total + 0.5 * coarse + 0.5 * convolve(coarse, kernel["kernel"], kernel["bias"])
        codes.append(chosen.reshape(len(z), -1))
        loss += (1 + q.beta) * square(z, total) / len(q.scales)
    return total, np.concatenate(codes, 1), loss


def enlarge(x, size, axis):
    """Enlarges one axis by bicubic interpolation (a = -3/4, edges repeated)."""
    x = np.moveaxis(x, axis, 0)
    out = np.zeros((size, *x.shape[1:]))
    for i in range(size):
        position = (i + 0.5) * len(x) / size - 0.5
        low = int(np.floor(position))
        t = position - low
        a = -0.75
        weights = [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ]
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
            out[i] += weight * x[np.clip(low + offset, 0, len(x) - 1)]
    return np.moveaxis(out, 0, axis)


def convolve(x, kernel, bias):
    """Applies a 3x3 convolution with zero padding."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    out = np.zeros((*x.shape[:3], len(bias))) + bias
    for i in range(3):
        for j in range(3):
            out += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return out


def integer(q, params, stats, z):
    """Rounding, and the bits of the integers under the logistic distributions that networks predict."""
    y = np.clip(np.rint(z), -(q.num_codes // 2), q.num_codes // 2)
    grid = y.reshape(-1, *GRID, q.dim).astype(np.int64)
    middle = np.zeros(len(grid), np.int64)  # the quality 1/2
    mean, scale = integer_context.predict(params["context"], grid, middle, q.first)
    rate = integer_context.bits(grid, mean, scale).sum(-1).mean()
    return y, (y + q.num_codes // 2).astype(np.int32), rate


def hierarchy(q, params, stats, z):
    """Razavi et al. 2019, algorithm 1: what a level is quantized to conditions the next."""
    found, codes, loss, start, above = [], [], 0.0, 0, None
    z = z.reshape(-1, sum(side**2 for side in q.sides), q.dim)
    for i, side in enumerate(q.sides):
        part = z[:, start : start + side**2].reshape(-1, side, side, q.dim)
        start += side**2
        if i:
            net = params[f"conditions_{i - 1}"]
            both = np.concatenate([part, np.kron(above, np.ones((1, 2, 2, 1)))], axis=-1)
            h = np.maximum(convolve(both, **net["conv_in"]), 0)
            part = part + convolve(h, **net["conv_out"])
        above, chosen, cost = vq(q.inner, params[f"stages_{i}"], None, part.reshape(-1, q.dim))
        above = above.reshape(part.shape)
        found.append(above.reshape(len(z), -1, q.dim))
        codes.append(chosen.reshape(len(z), -1))
        loss += cost
    return np.concatenate(found, 1), np.concatenate(codes, 1), loss


def lattice(q, params, stats, z):
    """Conway & Sloane 1999, ch. 4, sec. 8.1: the 240 shortest vectors of E8, all compared."""
    grid = np.array(list(itertools.product(np.arange(-1, 1.5, 0.5), repeat=8)))
    whole = (grid % 1 == 0).all(1) | (grid % 1 == 0.5).all(1)
    points = grid[whole & ((grid**2).sum(1) == 2) & (grid.sum(1) % 2 == 0)] / np.sqrt(2)
    assert len(points) == 240
    y = z / np.linalg.norm(z, axis=1, keepdims=True)
    z_q = points[(y @ points.T).argmax(1)]
    return z_q, None, q.beta * square(y, z_q)


REFERENCES = {
    f.__name__: f
    for f in (
        vq, gumbel, residual, fsq, lfq, bsq, ibq, simvq, multiscale, integer, hierarchy, lattice,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTIZERS)
def test_matches_the_equations_of_its_paper(name, rng):
    assert name in REFERENCES, f"{name} has no reference: add its equations to REFERENCES"
    quantizer = make(name)
    z = latents(rng, quantizer, batch=2)
    variables = init_variables(quantizer, z)
    params = variables.get("params", {})
    # Move the params away from the values of `initialise`, where a loss term can be 0.
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.1 * noise.normal(size=p.shape), params)
    variables = {**variables, "params": jax.tree.map(jnp.float32, params)}
    float64 = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    rows = np.asarray(z, np.float64).reshape(-1, quantizer.dim)
    expected = REFERENCES[name](quantizer, float64.get("params"), float64.get("codebook"), rows)
    z_q, codes, aux = jax.jit(quantizer.apply)(variables, z)
    if expected[1] is not None:  # a reference may number the points in another order
        chex.assert_trees_all_equal(np.asarray(codes).reshape(expected[1].shape), expected[1])
    chex.assert_trees_all_close(z_q.reshape(expected[0].shape), expected[0], atol=1e-5)
    assert float(aux["loss"]) == pytest.approx(expected[2], rel=1e-4, abs=1e-6)


def test_ema_of_every_head_follows_the_equations_of_the_paper(rng):
    quantizer = make("vq heads", decay=0.9, revive_below=0.0)
    z = latents(rng, quantizer, batch=2)
    variables = init_variables(quantizer, z)
    codes = quantizer.apply(variables, z)[1]
    _, after = quantizer.apply(
        variables, z, codes, jax.random.key(2), method="update", mutable=MUTABLE
    )
    heads = np.asarray(z, np.float64).reshape(-1, 3, 2)
    chosen = np.asarray(codes).reshape(-1, 3)
    before = variables["codebook"]["book"]
    for head in range(3):
        for k in range(quantizer.num_codes):
            members = heads[chosen[:, head] == k, head]
            size = 0.9 * float(before["cluster_size"][head, k]) + 0.1 * len(members)
            total = 0.9 * np.asarray(before["embed_sum"][head, k]) + 0.1 * members.sum(0)
            entry = after["params"]["book"]["codebook"][head, k]
            chex.assert_trees_all_close(entry, np.float32(total / size), rtol=2e-3, atol=1e-4)

"""A trained prior, ready to draw from: `prior = vq_jax.load(workdir)`."""

import difflib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import sampling
from vq_jax import tokenizer as tokenizers
from vq_jax.errors import UserError, check_seed
from vq_jax.files import expanded
from vq_jax.interop.weights import read_folder
from vq_jax.models.transformer import Transformer, init_params, unstack
from vq_jax.sampling import Draw
from vq_jax.tokenizer import TrainedTokenizer, in_one_file

Labels = str | int | Sequence[str | int] | None

_BATCH = 64  # images that are drawn together
_MOST = 1_000_000  # images, or candidates, of one call


class TrainedPrior:
    """Codes and images from noise, from a label, from a part of an image, from a worse image.

    Attributes:
      config: the run's config.
      tokenizer: the one its codes are of.
      module, params: the transformer, a param tree a layer.
      step: how many training steps its params have seen.
      class_names: of the labels, in order; empty where it has none.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: TrainedTokenizer,
        module: Transformer,
        params: Any,
        step: int,
    ):
        self.config, self.tokenizer, self.step = config, tokenizer, step
        self.class_names: tuple[str, ...] = tuple(config.codes.classes)
        self.module, self.params = unstack(module, params)
        self._fill = jax.jit(
            partial(_fill, self.module),
            static_argnames=("draw", "steps", "choice_temperature", "halton"),
        )
        self._log_p = jax.jit(partial(_log_p, self.module))

    def labels(self, label: Labels, count: int) -> np.ndarray:
        """int32 [count], the class numbers of a class, or of as many; None is no class.

        Args:
          label: a name or a number, or a sequence of them.
          count: how many images.

        Raises:
          UserError: there is no such class.
        """
        if label is None:
            return np.full(count, len(self.class_names), np.int32)
        given = [label] * count if isinstance(label, str | int | np.integer) else list(label)
        if len(given) != count:
            raise UserError(f"{len(given)} labels for {count} images")
        return np.array([self._class_number(one) for one in given], np.int32)

    def _class_number(self, label: str | int) -> int:
        names = self.class_names
        if isinstance(label, str) and label in names:
            return names.index(label)
        number = int(label) if not isinstance(label, str) or label.isdecimal() else -1
        if 0 <= number < len(names):
            return number
        if not names:
            raise UserError(f"there is no class {label!r}: this prior was trained without classes")
        folded = {name.lower(): name for name in names}
        text = str(label).lower()
        near = [name for low, name in folded.items() if text in low]
        near += [folded[n] for n in difflib.get_close_matches(text, folded, n=3, cutoff=0.4)]
        known = ", ".join(dict.fromkeys(near)) or ", ".join(names[:20])
        raise UserError(
            f"there is no class {label!r}; {'near' if near else 'known'}: {known} "
            f"(or 0 to {len(names) - 1})"
        )

    def fill(
        self,
        given: Any,
        free: Any,
        *,
        label: Labels = None,
        condition: Any = None,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        choice_temperature: float | None = None,
        order: str | None = None,
        **changes: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws the codes that are free, given those that are not.

        Args:
          given: int [B, *grid], as the tokenizer's codes; what stands where `free` is ignored.
          free: bool of the same shape, or of [B, *grid] without the axis of several codes.
          label: see `labels`.
          condition: int [B, ...], codes of the condition, where the prior has one.
          seed: image i is drawn from the i-th key of this seed, whatever the batch.
          first: the number of the first image.
          steps: of a masked prior, in how many.
          choice_temperature: of a masked prior, how much chance there is in what is settled first.
          order: of a masked prior: "confidence" or "halton".
          **changes: fields of `sampling.Draw`; what is not given is `config.sampling`'s.

        Returns:
          int32 codes shaped as `given`; float32 [B], log-probability in nats of those drawn.

        Raises:
          UserError: a class or a field that there is not.
        """
        settings = self.config.sampling
        draw = configs.make_draw(self.config, **changes)
        order = order or settings.order
        if order not in ("confidence", "halton"):
            raise UserError(f"order is {order!r}: use confidence or halton")
        always = self.class_names and not self.config.loss.label_dropout
        if always and (label is None or draw.guided):
            raise UserError(
                "this prior was trained with a label for every image (loss.label_dropout=0): name "
                "one, and no guidance"
            )
        steps = settings.steps if steps is None else steps
        if choice_temperature is None:
            choice_temperature = settings.choice_temperature
        for name, value, least in (
            ("steps", steps, 1),
            ("choice_temperature", choice_temperature, 0),
        ):
            if not least <= value < math.inf:
                raise UserError(f"{name} is {value}: use {least} or more")
        check_seed(seed)
        given = np.asarray(given, np.int32)
        free = np.asarray(free, bool)
        if free.ndim < given.ndim:
            free = np.broadcast_to(free[..., None], given.shape)
        count = len(given)
        label_B = self.labels(label, count)
        arguments = [
            given.reshape(count, -1), free.reshape(count, -1), label_B,
            None if condition is None else np.asarray(condition, np.int32).reshape(count, -1),
        ]  # fmt: skip
        codes, likelihoods = [], []
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            rows = len(label_B[part])
            keys = sampling.row_keys(jax.random.key(seed), first + start, rows)
            drawn = self._fill(
                self.params,
                *(None if a is None else jnp.asarray(a[part]) for a in arguments),
                keys,
                draw=draw,
                steps=steps,
                choice_temperature=choice_temperature,
                halton=order == "halton",
            )
            codes.append(np.asarray(drawn[0]))
            likelihoods.append(np.asarray(drawn[1]))
        return np.concatenate(codes).reshape(given.shape), np.concatenate(likelihoods)

    def sample_codes(
        self, count: int, *, label: Labels = None, candidates: int = 1, first: int = 0, **how: Any
    ) -> np.ndarray:
        """Codes int32 [count, *grid] from noise.

        Args:
          count: how many images.
          label: see `labels`.
          candidates: so many are drawn for each image, and the likeliest is kept.
          first: the number of the first image: of one seed it is the same in any batch.
          **how: seed and more; see `fill`.
        """
        for name, value in (("count", count), ("candidates", candidates)):
            if not 1 <= value <= _MOST:
                raise UserError(f"{name} is {value}: use 1 to {_MOST:,}")
        if self.module.condition:
            raise UserError(
                f"this prior draws images from a condition ({self.config.condition.name}): use "
                f"--mode={self.config.condition.name}"
            )
        labels = np.repeat(self.labels(label, count), candidates)
        shape = (count * candidates, *self.tokenizer.grid)
        codes, likelihood = self.fill(
            np.zeros(shape, np.int32),
            np.ones(shape, bool),
            label=None if (labels == len(self.class_names)).all() else labels.tolist(),
            first=first * candidates,
            **how,
        )
        best = likelihood.reshape(count, candidates).argmax(axis=1)
        return codes.reshape(count, candidates, *self.tokenizer.grid)[np.arange(count), best]

    def sample(self, count: int, **how: Any) -> np.ndarray:
        """Images float32 [count, H, W, C] in [-1, 1] from noise; see `sample_codes`."""
        codes = self.sample_codes(count, **how)
        images = [
            np.asarray(self.tokenizer.decode(codes[i : i + _BATCH]))
            for i in range(0, count, _BATCH)
        ]
        return np.clip(np.concatenate(images), -1.0, 1.0)

    def log_probability(
        self, codes: Any, label: Labels = None, condition: Any = None
    ) -> np.ndarray:
        """Log-probability in nats of each code, float32 [B, N], visited row by row.

        Args:
          codes: int [B, *grid].
          label: see `labels`.
          condition: codes of the condition, where the prior has one.

        Raises:
          UserError: the prior is masked, and gives codes no order.
        """
        if not self.module.causal:
            raise UserError("a masked prior has no likelihood in closed form")
        codes = np.asarray(codes, np.int32)
        flat = jnp.asarray(codes.reshape(len(codes), -1))
        if condition is not None:
            condition = jnp.asarray(np.asarray(condition, np.int32).reshape(len(codes), -1))
        labels, found = self.labels(label, len(codes)), []
        for start in range(0, len(codes), _BATCH):
            part = slice(start, start + _BATCH)
            worse = None if condition is None else condition[part]
            found.append(np.asarray(self._log_p(self.params, flat[part], labels[part], worse)))
        return np.concatenate(found)


def _log_p(module: Transformer, params, codes_BN, label_B, condition_BM):
    logits: Any = module.apply({"params": params}, codes_BN, label_B, condition_BM)
    return sampling.log_probability(logits, codes_BN)


def _fill(
    module: Transformer, params, given_BN, free_BN, label_B, condition_BM, keys_B,
    *, draw: Draw, steps: int, choice_temperature: float, halton: bool,
):  # fmt: skip
    """Codes int32 [B, N] and their log-probabilities [B]: one of the two samplers over the module."""
    rows = len(label_B)
    ways = 2 if draw.guided else 1
    if ways == 2:  # with the label, and without
        label_B = jnp.concatenate([label_B, jnp.full_like(label_B, module.classes)])
        condition_BM = None if condition_BM is None else jnp.tile(condition_BM, (2, 1))

    def apply(*args, method=None):
        return module.apply({"params": params}, *args, method=method)

    def apart(logits):
        return logits.reshape(ways, rows, *logits.shape[1:])

    if not module.causal:
        return sampling.in_parallel(
            lambda codes_BN: apart(apply(jnp.tile(codes_BN, (ways, 1)), label_B, condition_BM)),
            keys_B,
            given_BN,
            free_BN,
            steps,
            draw,
            choice_temperature=choice_temperature,
            rank_N=jnp.asarray(sampling.halton_order(module.grid, module.books))
            if halton
            else None,
        )
    positions = math.prod(module.grid)
    order_BP = jnp.broadcast_to(jnp.arange(positions), (rows, positions))
    if module.target_aware:  # what is given is read first
        free_BP = free_BN.reshape(rows, positions, module.books).any(-1)
        order_BP = jnp.argsort(free_BP, axis=1, stable=True)

    def twice(x_B):
        return jnp.tile(x_B, ways)

    def begin():
        empty = apply(ways * rows, method="empty_cache")
        first = twice(order_BP[:, 0])
        logits, cache = apply(label_B, condition_BM, first, empty, method="begin")
        return apart(logits), cache

    def step(code_B, n, position_B, next_B, cache):
        logits, cache = apply(
            twice(code_B), n, twice(position_B), twice(next_B), cache, method="step"
        )
        return apart(logits), cache

    return sampling.one_by_one(begin, step, keys_B, given_BN, free_BN, order_BP, draw)


def load_prior(workdir: str | Path, tokenizer: str | Path | None = None) -> TrainedPrior:
    """Opens the prior a run has trained, and the tokenizer it was trained for.

    Args:
      workdir: the prior's run.
      tokenizer: the tokenizer's run, where it is not where the prior's config says.

    Raises:
      UserError: either cannot be opened, or they do not belong together.
    """
    folder = expanded(workdir)
    config = configs.load(folder / "config.json")
    if not configs.is_prior(config):
        raise UserError(
            f"{folder} holds a tokenizer, not a prior over its codes: train one with "
            f"--config=configs/prior_default.py --config.tokenizer={folder}"
        )
    opened = load_tokenizer(tokenizer or config.tokenizer, "--tokenizer")
    module = configs.make_prior(config)
    params = jax.eval_shape(partial(init_params, module), jax.random.key(0))
    wanted = {"params": params, "fingerprint": jax.ShapeDtypeStruct((32,), jnp.uint8)}
    if in_one_file(folder):
        read = read_folder(folder, wanted)
    else:
        from vq_jax.training.checkpoint import read_newest  # and with it Orbax

        read = read_newest(folder, "prior", wanted)
    step, tree = read[0], jax.tree.map(jnp.asarray, read[1])
    check_fingerprint(opened, tree["fingerprint"], folder)
    return TrainedPrior(config, opened, module, tree["params"], step)


def load_tokenizer(workdir: str | Path, field: str) -> TrainedTokenizer:
    """Opens a prior's tokenizer; `field` is what to name another one by."""
    try:
        return tokenizers.load(workdir)
    except UserError as e:
        raise UserError(f"the prior's tokenizer: {e}; {field} names its run") from e


def check_fingerprint(tokenizer: TrainedTokenizer, fingerprint: Any, what: str | Path) -> None:
    """Raises UserError unless a prior, or a set of codes, is of this tokenizer."""
    if bytes(np.asarray(fingerprint, np.uint8)) != tokenizer.fingerprint:
        raise UserError(
            f"{what} is for the codes of another tokenizer than the one given (its fingerprint is "
            f"{bytes(np.asarray(fingerprint, np.uint8)).hex()[:12]}, this one's "
            f"{tokenizer.fingerprint.hex()[:12]}): name the right one, or train anew"
        )


def load(workdir: str | Path) -> TrainedTokenizer | TrainedPrior:
    """Opens what a run has trained, a tokenizer or a prior.

    Raises:
      UserError: there is no run, or no checkpoint yet, or it does not fit the config.
    """
    return (
        load_prior(workdir) if configs.holds_prior(expanded(workdir)) else tokenizers.load(workdir)
    )

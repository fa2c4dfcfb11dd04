"""A trained prior: samples codes and examples."""

import difflib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vq_jax import config as configs
from vq_jax import sampling
from vq_jax.errors import UserError, check_seed
from vq_jax.models import Prior
from vq_jax.models.fill import fill_codes
from vq_jax.models.transformer import unstack
from vq_jax.tokenizer import TrainedTokenizer

Labels = str | int | Sequence[str | int] | None

BATCH = 64  # examples drawn in one compiled call
_MOST = 1_000_000  # examples, or candidates, of one call
_OF_DECODER = 2**32 - 3  # folded into the key of a decoder that draws


class TrainedPrior:
    """Samples codes and examples: from noise, from a label, from known codes, from a condition.

    Attributes:
      config: the run's config.
      tokenizer: the tokenizer of its codes.
      modality: its kind of data.
      module, params: the prior, with one param tree for each layer.
      variables: its params, and what else it reads; see `NextScale.constants`.
      step: number of training steps of its params.
      class_names: names of the classes, in order; empty if it has none.
    """

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: TrainedTokenizer,
        module: Prior,
        params: Any,
        step: int,
    ):
        self.config, self.tokenizer, self.step = config, tokenizer, step
        self.modality = tokenizer.modality
        self.class_names: tuple[str, ...] = tuple(config.codes.classes)
        self.module, self.params = unstack(module, params)
        constants = module.constants(tokenizer.module, tokenizer.variables)
        self.variables: dict[str, Any] = {"params": self.params, **constants}
        self._fill = jax.jit(
            partial(fill_codes, self.module),
            static_argnames=("draw", "steps", "choice_temperature", "halton"),
        )
        self._log_p = jax.jit(partial(_log_p, self.module))

    def labels(self, label: Labels, count: int) -> np.ndarray:
        """Returns class numbers, int32 [count].

        Args:
          label: a class name or number, or a sequence of `count` of them; None is no class.
          count: number of examples.

        Raises:
          UserError: there is no such class.
        """
        if label is None:
            return np.full(count, len(self.class_names), np.int32)
        given = [label] * count if isinstance(label, str | int | np.integer) else list(label)
        if len(given) != count:
            raise UserError(f"{len(given)} labels for {count} samples")
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

    def _masked_settings(
        self, steps: int | None, choice_temperature: float | None, order: str | None
    ) -> dict[str, Any]:
        """The settings of a masked prior: those given, else those of `config.sampling`."""
        settings = self.config.sampling
        order = order or settings.order
        if order not in ("confidence", "halton"):
            raise UserError(f"order is {order!r}: use confidence or halton")
        steps = settings.steps if steps is None else steps
        if choice_temperature is None:
            choice_temperature = settings.choice_temperature
        for name, value, least in (
            ("steps", steps, 1),
            ("choice_temperature", choice_temperature, 0),
        ):
            if not least <= value < math.inf:
                raise UserError(f"{name} is {value}: use {least} or more")
        halton = order == "halton"
        return {"steps": steps, "choice_temperature": choice_temperature, "halton": halton}

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
        """Samples the free codes, given the others.

        Args:
          given: int [B, *codes.shape], codes as the tokenizer has them; those that are free are ignored.
          free: bool of the same shape, or [B, *codes.grid] without the axis of several codes.
          label: see `labels`.
          condition: int [B, ...], codes of the condition, if the prior has one.
          seed: sample i uses the i-th key of this seed, whatever the batch.
          first: index of the first sample.
          steps: of a masked prior: number of sampling steps.
          choice_temperature: of a masked prior: randomness in which codes are fixed first.
          order: of a masked prior: "confidence" or "halton".
          **changes: fields of `sampling.Draw`; the defaults are those of `config.sampling`.

        Returns:
          int32 codes of the shape of `given`; float32 [B], the log-probability in nats of those sampled.

        Raises:
          UserError: a class or field is not known, or a value is out of range.
        """
        draw = configs.make_draw(self.config, **changes)
        masked = self._masked_settings(steps, choice_temperature, order)
        needs_label = self.class_names and not self.config.loss.label_dropout
        if needs_label and (label is None or draw.guided):
            raise UserError(
                "this prior was trained with a label for every example (loss.label_dropout=0): give a "
                "label and no guidance"
            )
        check_seed(seed)
        given = np.asarray(given, np.int32)
        free = np.asarray(free, bool)
        shape = self.tokenizer.codes.shape
        positions = (len(given), *self.tokenizer.codes.grid)
        if given.shape[1:] != shape or free.shape not in (given.shape, positions):
            raise UserError(
                f"given has shape {given.shape} and free {free.shape}: make them [B, "
                f"{', '.join(map(str, shape))}]"
            )
        if free.ndim < given.ndim:
            free = np.broadcast_to(free[..., None], given.shape)
        count = len(given)
        label_B = self.labels(label, count)
        arguments = [
            given.reshape(count, -1), free.reshape(count, -1), label_B,
            None if condition is None else np.asarray(condition, np.int32).reshape(count, -1),
        ]  # fmt: skip
        codes, likelihoods = [], []
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            rows = len(label_B[part])
            keys = sampling.row_keys(jax.random.key(seed), first + start, rows)
            drawn = self._fill(
                self.variables,
                *(None if a is None else jnp.asarray(a[part]) for a in arguments),
                keys,
                draw=draw,
                **masked,
            )
            codes.append(np.asarray(drawn[0]))
            likelihoods.append(np.asarray(drawn[1]))
        return np.concatenate(codes).reshape(given.shape), np.concatenate(likelihoods)

    def sample_codes(
        self,
        count: int,
        *,
        label: Labels = None,
        candidates: int = 1,
        first: int = 0,
        given: np.ndarray | None = None,
        **how: Any,
    ) -> np.ndarray:
        """Samples codes int32 [count, *codes.shape].

        Args:
          count: number of samples.
          label: see `labels`.
          candidates: number of candidates for each sample, of which the likeliest is kept.
          first: index of the first sample.
          given: int32 [n, ...], codes of the first n positions along the first axis of the grid; None
            samples all codes.
          **how: seed and more; see `fill`.
        """
        for name, value in (("count", count), ("candidates", candidates)):
            if not 1 <= value <= _MOST:
                raise UserError(f"{name} is {value}: use 1 to {_MOST:,}")
        if self.module.condition:
            raise UserError(
                f"this prior samples from a condition ({self.config.condition.name}): use "
                f"editing.{self.config.condition.name}"
            )
        labels = np.repeat(self.labels(label, count), candidates)
        shape = (count * candidates, *self.tokenizer.codes.shape)
        known, free = np.zeros(shape, np.int32), np.ones(shape, bool)
        if given is not None:
            known[:, : len(given)], free[:, : len(given)] = given, False
        codes, likelihood = self.fill(
            known,
            free,
            label=None if (labels == len(self.class_names)).all() else labels.tolist(),
            first=first * candidates,
            **how,
        )
        best = likelihood.reshape(count, candidates).argmax(axis=1)
        return codes.reshape(count, candidates, *self.tokenizer.codes.shape)[np.arange(count), best]

    def sample(self, count: int, *, prompt: str | bytes | None = None, **how: Any) -> np.ndarray:
        """Samples examples [count, ...], images float32 in [-1, 1]; see `sample_codes`.

        Args:
          count: number of samples.
          prompt: how samples of texts begin; None samples them from the start. The prior reads the bytes
            that whole codes span.
          **how: see `sample_codes`.

        Raises:
          UserError: the prompt is too long or too short, or see `sample_codes`.
        """
        if not prompt:
            return self.decode(self.sample_codes(count, **how), **_decoding(how))
        given = self.modality.from_prompt(prompt)
        known = self._encode_beginning(given)
        codes = self.sample_codes(count, given=known, **how)
        elements = np.full((count, *self.tokenizer.spec.shape), -1, np.int32)
        elements[:, : len(given)] = given
        return self.decode(codes, elements, **_decoding(how))

    def _encode_beginning(self, given: np.ndarray) -> np.ndarray:
        """Encodes the beginning of a text: the codes of whole positions."""
        (length,) = self.tokenizer.spec.shape
        if len(given) >= length:
            raise UserError(
                f"the prompt has {len(given):,} bytes, and this prior writes texts of {length:,}: use "
                f"{length - 1:,} or fewer"
            )
        (stride,) = self.tokenizer.strides or (length,)
        if len(given) < stride and not self.tokenizer.module.sequential:
            raise UserError(
                f"the prompt has {len(given)} bytes, fewer than one code spans, {stride}: give more"
            )
        x = np.pad(given, (0, length - len(given)))[None]
        return np.asarray(self.tokenizer.encode(x))[0, : len(given) // stride]

    def decode(
        self,
        codes: np.ndarray,
        given: np.ndarray | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        temperature: float | None = None,
    ) -> np.ndarray:
        """Decodes codes int [B, *codes.shape] in batches, and brings the examples into their range.

        Args:
          codes: the codes.
          given: int32 [B, ...], elements of the examples that are known; the others are -1.
          seed, first: as for `fill`, for a decoder that draws.
          temperature: of a decoder that draws; None is that of `config.sampling`.
        """
        if temperature is None:
            temperature = self.config.sampling.temperature
        key, found = jax.random.fold_in(jax.random.key(seed), _OF_DECODER), []
        for start in range(0, len(codes), BATCH):
            part = codes[start : start + BATCH]
            known = None if given is None else given[start : start + BATCH]
            keys_B = sampling.row_keys(key, first + start, len(part))
            x = self.tokenizer.draw(part, keys_B, temperature, known)
            found.append(x if known is None else np.where(known >= 0, known, x))
        return np.concatenate(found)

    def log_probability(
        self, codes: Any, label: Labels = None, condition: Any = None
    ) -> np.ndarray:
        """Returns the log-probability in nats of each code, float32 [B, N], visited row by row.

        Args:
          codes: int [B, *codes.shape].
          label: see `labels`.
          condition: codes of the condition, if the prior has one.

        Raises:
          UserError: the prior is masked, and has no likelihood in closed form.
        """
        if not self.module.causal:
            raise UserError("a masked prior has no likelihood in closed form")
        codes = np.asarray(codes, np.int32)
        flat = jnp.asarray(codes.reshape(len(codes), -1))
        if condition is not None:
            condition = jnp.asarray(np.asarray(condition, np.int32).reshape(len(codes), -1))
        labels, found = self.labels(label, len(codes)), []
        for start in range(0, len(codes), BATCH):
            part = slice(start, start + BATCH)
            given = None if condition is None else condition[part]
            found.append(np.asarray(self._log_p(self.variables, flat[part], labels[part], given)))
        return np.concatenate(found)


def _decoding(how: dict[str, Any]) -> dict[str, Any]:
    """The settings of a sample that `decode` takes."""
    return {name: how[name] for name in ("seed", "first", "temperature") if name in how}


def _log_p(module: Prior, variables, codes_BN, label_B, condition_BM):
    logits: Any = module.apply(variables, codes_BN, label_B, condition_BM)
    return sampling.log_probability(logits, codes_BN, module.radices)

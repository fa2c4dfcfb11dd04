"""Warnings about training that has gone wrong, with the config fields to change."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from vq_jax.training.steps import Phase

# Consecutive steps of a condition before a warning.
_PATIENCE = 50
# A codebook has collapsed if its perplexity in a batch is below this share of the possible codes.
_COLLAPSED = 0.01
# A discriminator with a higher accuracy dominates the generator.
_WON = 0.99


def usage_advice(config: ConfigDict) -> str:
    """Names the config fields that bring more of the codebook into use, with their values."""
    section, place = config.quantizer, "quantizer"
    if "inner" in section:
        section, place = section.inner, "quantizer.inner"

    def current(*names: str) -> str:
        found = [
            f"anneal.{name} (now {config.anneal[name]})"
            if config.anneal.get(name)
            else f"{place}.{name} (now {section[name]})"
            for name in names
            if name in section
        ]
        if "revive_below" in names and "kmeans_iterations" in section:
            found.append(f"kmeans_batches (now {config.kmeans_batches})")
        return " or ".join(found)

    up = current("revive_below", "entropy_weight", "kl_weight")
    down = current("beta")
    if not up:
        return f"Use fewer codes: {current('levels', 'bits', 'num_codes')}"
    return f"Raise {up}" + (f"; lower {down}" if down else "")


class Watch:
    """Follows the metrics of every step, in order.

    Attributes:
      streak: number of consecutive skipped steps up to the last one.
    """

    def __init__(self, skipped: int):
        """Starts with the number of steps skipped so far."""
        self._skipped = skipped
        self.streak = 0

    def step(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step; `step` counts it as done."""
        skipped = int(metrics["skipped"])
        self.streak = self.streak + 1 if skipped > self._skipped else 0
        self._skipped = skipped


class TokenizerWatch(Watch):
    """Warns of a collapsed codebook and of a dominant discriminator."""

    def __init__(
        self,
        config: ConfigDict,
        codes_per_batch: int,
        num_codes: int,
        skipped: int,
        warn: Callable[[str], None],
    ):
        """Starts the watch.

        Args:
          config: the run's config.
          codes_per_batch: number of codes of a batch.
          num_codes: number of entries of the codebook.
          skipped: number of steps skipped so far.
          warn: called with each warning, once per episode.
        """
        super().__init__(skipped)
        self._config, self._warn = config, warn
        self._num_codes = num_codes
        self._low = max(1.5, _COLLAPSED * min(codes_per_batch, num_codes))
        self._lasted = {"collapsed": 0, "won": 0}

    def step(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step; `step` counts it as done."""
        super().step(step, phase, metrics)
        if self.streak:
            return
        config = self._config
        perplexity = metrics.get("perplexity", float("inf"))
        if self._lasts("collapsed", perplexity < self._low):
            self._warn(
                f"the codebook has collapsed: for {_PATIENCE} steps the batches used about "
                f"{perplexity:.1f} of {self._num_codes} codes. {usage_advice(config)}"
            )
        adversarial = config.adversarial
        active = step > phase.start + adversarial.warmup_steps + adversarial.ramp_steps
        accuracy = metrics.get("disc_accuracy", 0.0)
        if self._lasts("won", active and accuracy > _WON):
            self._warn(
                f"the discriminator has won: for {_PATIENCE} steps its accuracy was {accuracy:.1%}, and "
                "the generator learns little from it. Lower disc_optim.lr (now "
                f"{config.disc_optim.lr}), or raise adversarial.r1_weight "
                f"({adversarial.r1_weight}) or adversarial.lecam_weight "
                f"({adversarial.lecam_weight})"
            )

    def _lasts(self, what: str, holds: bool) -> bool:
        """Whether a condition has just held for the number of steps that a warning needs."""
        self._lasted[what] = self._lasted[what] + 1 if holds else 0
        return self._lasted[what] == _PATIENCE

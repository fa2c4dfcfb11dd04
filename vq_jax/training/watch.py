"""What goes wrong in training without stopping it, and which config field to turn."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from vq_jax.training.steps import Phase

# Steps in a row that something must last before it is worth a warning.
_PATIENCE = 50
# A codebook whose batches use no more codes than this share of those they could has collapsed.
_COLLAPSED = 0.01
# A discriminator that tells more than this share of patches apart has won.
_WON = 0.99


def what_to_turn(config: ConfigDict) -> str:
    """The fields of a config that bring more of the codebook into use, with their values."""
    section, place = config.quantizer, "quantizer"
    if "inner" in section:
        section, place = section.inner, "quantizer.inner"

    def now(*names: str) -> str:
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

    up = now("revive_below", "entropy_weight", "kl_weight")
    down = now("beta")
    if not up:
        return f"Use fewer codes: {now('levels', 'bits', 'num_codes')}"
    return f"Raise {up}" + (f"; lower {down}" if down else "")


class Watch:
    """Reads the metrics of every step, in order.

    Attributes:
      streak: how many steps in a row, up to the last one, were skipped as not finite.
    """

    def __init__(self, skipped: int):
        """Starts watching a run of which so many steps were skipped so far."""
        self._skipped = skipped
        self.streak = 0

    def step(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of the step that `step` counts as done."""
        skipped = int(metrics["skipped"])
        self.streak = self.streak + 1 if skipped > self._skipped else 0
        self._skipped = skipped


class TokenizerWatch(Watch):
    """Warns of a codebook that has collapsed and of a discriminator that has won."""

    def __init__(
        self,
        config: ConfigDict,
        codes_per_batch: int,
        num_codes: int,
        skipped: int,
        warn: Callable[[str], None],
    ):
        """Starts watching.

        Args:
          config: the run's.
          codes_per_batch: how many codes a batch is turned into.
          num_codes: entries of the codebook.
          skipped: how many steps were skipped so far.
          warn: told each warning, once until it has ceased.
        """
        super().__init__(skipped)
        self._config, self._warn = config, warn
        self._num_codes = num_codes
        self._low = max(1.5, _COLLAPSED * min(codes_per_batch, num_codes))
        self._lasted = {"collapsed": 0, "won": 0}

    def step(self, step: int, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of the step that `step` counts as done."""
        super().step(step, phase, metrics)
        if self.streak:
            return
        config = self._config
        perplexity = metrics.get("perplexity", float("inf"))
        if self._lasts("collapsed", perplexity < self._low):
            self._warn(
                f"the codebook has collapsed: for {_PATIENCE} steps the batches used about "
                f"{perplexity:.1f} of {self._num_codes} codes. {what_to_turn(config)}"
            )
        adversarial = config.adversarial
        felt = step > phase.start + adversarial.warmup_steps + adversarial.ramp_steps
        accuracy = metrics.get("disc_accuracy", 0.0)
        if self._lasts("won", felt and accuracy > _WON):
            self._warn(
                f"the discriminator has won: for {_PATIENCE} steps it told {accuracy:.1%} of the "
                "patches apart, and the generator learns little from it. Lower disc_optim.lr (now "
                f"{config.disc_optim.lr}), or raise adversarial.r1_weight "
                f"({adversarial.r1_weight}) or adversarial.lecam_weight "
                f"({adversarial.lecam_weight})"
            )

    def _lasts(self, what: str, holds: bool) -> bool:
        """Whether it holds for exactly as long as it takes to be worth a warning."""
        self._lasted[what] = self._lasted[what] + 1 if holds else 0
        return self._lasted[what] == _PATIENCE

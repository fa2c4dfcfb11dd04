import pytest

from vq_jax.config import base
from vq_jax.training.steps import TokenizerPhase
from vq_jax.training.watch import TokenizerWatch, usage_advice

GOOD = {"skipped": 0, "perplexity": 100.0, "disc_accuracy": 0.7}
ADVERSARIAL = TokenizerPhase("adversarial", 500, 100, adversarial=True)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def watch(warnings):
    config = base()
    config.adversarial.update(warmup_steps=50, ramp_steps=10)
    config.disc_optim.lr = 0.125
    return TokenizerWatch(config, 2048, 512, skipped=3, warn=warnings.append)


def feed(watch, metrics, count, start=0):
    """Passes `count` steps with the same metrics to the watch."""
    for i in range(count):
        watch.step(start + i + 1, ADVERSARIAL, {**GOOD, "skipped": 3, **metrics})


def test_a_lasting_collapse_gives_one_warning_per_episode(watch, warnings):
    feed(watch, {"perplexity": 2.0}, 49)
    feed(watch, {}, 1)
    assert not warnings
    for episodes in (1, 2):
        feed(watch, {"perplexity": 2.0}, 120)
        assert len(warnings) == episodes
        feed(watch, {}, 1)
    assert "2.0 of 512 codes" in warnings[0] and "quantizer.revive_below" in warnings[0]


@pytest.mark.parametrize(
    ("quantizer", "fields"),
    [
        (
            "vq",
            ["quantizer.revive_below (now 0.01)", "kmeans_batches (now 8)", "lower quantizer.beta"],
        ),
        ("gumbel", ["quantizer.kl_weight (now 0.0005)"]),
        ("lfq", ["quantizer.entropy_weight (now 0.1)"]),
        ("fsq", ["Use fewer codes: quantizer.levels (now (8, 8, 8))"]),
        ("residual/ibq", ["quantizer.inner.entropy_weight (now 0.05)"]),
    ],
)
def test_the_advice_names_the_fields_of_the_quantizer(quantizer, fields):
    advice = usage_advice(base(quantizer=quantizer))
    assert all(field in advice for field in fields), advice


def test_a_dominant_discriminator_gives_a_warning_only_after_its_warmup(watch, warnings):
    feed(watch, {"disc_accuracy": 1.0}, 60, start=100)
    assert not warnings
    feed(watch, {"disc_accuracy": 1.0}, 50, start=160)
    assert len(warnings) == 1 and "disc_optim.lr (now 0.125)" in warnings[0]


def test_few_codes_in_use_give_no_warning_for_a_small_batch(warnings):
    watch = TokenizerWatch(base(), 8, 512, skipped=0, warn=warnings.append)
    for step in range(100):
        watch.step(step, ADVERSARIAL, {**GOOD, "perplexity": 4.0})
    assert not warnings


def test_skipped_steps_in_a_row_are_counted(watch):
    for skipped, streak in ((3, 0), (4, 1), (5, 2), (5, 0), (6, 1)):
        watch.step(1, ADVERSARIAL, {"skipped": skipped})
        assert watch.streak == streak

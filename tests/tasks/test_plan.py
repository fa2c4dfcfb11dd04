import pytest

from vq_jax.config import base
from vq_jax.errors import UserError
from vq_jax.tasks.plan import plan, step_cost


@pytest.fixture
def config():
    config = base("vqvae")
    config.data.update(resolution=16, batch_size=8)
    config.model.update(hidden=32, res_hidden=32, num_res_blocks=1, downsamples=1)
    config.quantizer.update(num_codes=32, dim=8)
    config.loss.perceptual_weight = 0.0
    config.phases.joint = 1000
    return config


def test_flops_are_linear_in_the_batch_and_memory_includes_the_state(config):
    four, eight, twelve = (step_cost(config, batch) for batch in (4, 8, 12))
    assert twelve.flops - eight.flops == pytest.approx(eight.flops - four.flops, rel=0.01)
    # A lower bound: one 3x3 convolution of 32 channels on 8x8 positions, forward and backward.
    assert twelve.flops - eight.flops > 4 * 3 * 2 * 9 * 32 * 32 * 8 * 8
    assert four.state_bytes < four.peak_bytes < eight.peak_bytes


def test_a_plan_scales_with_the_devices_and_the_share_of_the_peak(config, capsys):
    plan(config, devices=2, share=0.5)
    output = capsys.readouterr().out
    assert "64 (8x8) of 32" in output and f"{5 * 64 / 256:.4f}" in output
    assert (
        "a step of 4 images on one device" in output
        and "at 50% of the peak, float32, number of devices: 2" in output
    )
    row = next(line for line in output.splitlines() if "h100" in line)
    flops = step_cost(config, 4).flops / 4
    assert f"{0.5 * 494e12 * 2 / flops:,.0f}" in row and "yes" in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "above 0"),
        ({"device": "h100"}, "tpu-v5e"),
        ({"device": "nosuch"}, "tpu-v5e"),
        ({"devices": 3}, "does not divide"),
    ],
)
def test_invalid_plans_are_rejected(config, arguments, message):
    with pytest.raises(UserError, match=message):
        plan(config, **arguments)

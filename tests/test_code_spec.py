"""`CodeSpec`: shapes, and numbers of codes and bits."""

from vq_jax.codes import CodeSpec


def test_spec_counts_codes_and_bits():
    spec = CodeSpec((8, 8), 512, (4,))
    assert spec.shape == (8, 8, 4) and spec.books == 4
    assert spec.length == 256 and spec.bits == 256 * 9


def test_example_may_have_a_single_position():
    spec = CodeSpec((), 256, (3,))
    assert spec.shape == (3,) and spec.length == 3 and spec.bits == 24
    assert CodeSpec((), 2).shape == () and CodeSpec((), 2).books == CodeSpec((), 2).length == 1

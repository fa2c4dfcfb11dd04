import chex
import grain
import jax
import jax.numpy as jnp
import pytest

from vq_jax.errors import UserError
from vq_jax.training.checkpoint import Checkpoints


@pytest.fixture
def tree():
    return {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(7), "empty": {}}


def numbers():
    return iter(grain.MapDataset.range(100).seed(3).shuffle().repeat().to_iter_dataset().batch(4))


def test_arrays_and_the_data_position_come_back(tmp_path, tree):
    iterator = numbers()
    next(iterator)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, {"state": tree}, iterator)
        expected = next(iterator)
    other = numbers()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        zeros = jax.tree.map(jnp.zeros_like, tree)
        restored = checkpoints.restore(7, {"state": zeros}, other)["state"]
    chex.assert_trees_all_equal(restored, tree)
    chex.assert_trees_all_equal(next(other), expected)


def test_only_the_newest_are_kept(tmp_path, tree):
    iterator = numbers()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"state": tree}, iterator)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_a_part_can_be_read_without_the_rest(tmp_path, tree):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": tree, "b": {"x": jnp.ones(3)}}, numbers())
    with Checkpoints(tmp_path) as checkpoints:
        part = checkpoints.restore(1, {"b": {"x": jnp.zeros(3)}})
    chex.assert_trees_all_equal(part, {"b": {"x": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"w": jnp.zeros((2, 4))}}, r"params/w is \(2, 4\) here, \(2, 3\) there"),
        (
            {"params": {"w": jnp.zeros((2, 3)), "v": jnp.zeros(2)}},
            r"params/v is \(2,\) here, absent",
        ),
        ({"params": {}}, r"params/w is absent here, \(2, 3\) there"),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, tree, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"state": tree}, numbers())
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(1, {"state": {**tree, **change}})

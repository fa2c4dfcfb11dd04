"""The declared bounds of config fields are checked, and the error names the field."""

import pytest

from vq_jax import config as configs
from vq_jax.bounds import Bounds, bounds_of
from vq_jax.config.schema import TABLES, sections
from vq_jax.errors import UserError


def fields(kind, modality):
    """Yields (section, field, bounds) of all dataclasses of a kind of config."""
    for section, classes in sections(kind, modality).items():
        for cls in classes:
            for field, bounds in bounds_of(cls).items():
                yield section, field, bounds


BASES = {
    ("tokenizer", "image"): lambda: configs.base("vqvae"),
    ("tokenizer", "vector"): lambda: configs.base("vector_mlp"),
    ("prior", "image"): configs.base_prior,
    ("prior", "vector"): lambda: configs.base_prior(modality="vector"),
}
CASES = [(kind, modality, *case) for kind, modality in BASES for case in fields(kind, modality)]


@pytest.mark.parametrize("kind,modality,section,field,bounds", CASES, ids=str)
def test_error_names_the_field_that_is_out_of_bounds(kind, modality, section, field, bounds):
    config = BASES[kind, modality]()
    config.phases[next(iter(config.phases))] = 1
    owner = config[section] if section else config
    path = f"{section}.{field}" if section else field
    for value in (bounds.least - 1, *(() if bounds.most is None else (bounds.most + 1,))):
        owner[field] = type(owner[field])(value)
        with pytest.raises(UserError, match=f"{path} is .*: use .* or (more|less)"):
            configs.check(config)


@pytest.mark.parametrize("name", TABLES["tokenizer"]["quantizer"])
def test_bounds_of_quantizer_fields_are_checked(name):
    for field, bounds in bounds_of(TABLES["tokenizer"]["quantizer"][name]).items():
        config = configs.base("vqvae", name)
        config.phases.joint = 1
        low = bounds.least - 1 if isinstance(config.quantizer[field], int) else -1.0
        config.quantizer[field] = low
        with pytest.raises(UserError, match=f"quantizer.{field} is {low}"):
            configs.check(config)


def test_bounds_are_inclusive():
    Bounds(0, 1).check(0, "x")
    Bounds(0, 1).check(1.0, "x")
    with pytest.raises(UserError, match="x is 1.5: use 1 or less"):
        Bounds(0, 1).check(1.5, "x")

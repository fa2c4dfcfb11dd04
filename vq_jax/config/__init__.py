"""Configs: `schema` has the fields, `check` their check, `build` makes modules, `store` reads and writes."""

from vq_jax.config.build import (
    code_spec,
    make_condition,
    make_discriminator,
    make_draw,
    make_prepare,
    make_prior,
    make_quantizer,
    make_tokenizer,
    spec_of,
    trace_shapes,
)
from vq_jax.config.check import check
from vq_jax.config.schema import PHASES, base, base_prior, fields_of, kind_of, section
from vq_jax.config.store import FILE, differences, kind_of_run, load, save, use_data

__all__ = [
    "FILE",
    "PHASES",
    "base",
    "base_prior",
    "check",
    "code_spec",
    "differences",
    "fields_of",
    "kind_of",
    "kind_of_run",
    "load",
    "make_condition",
    "make_discriminator",
    "make_draw",
    "make_prepare",
    "make_prior",
    "make_quantizer",
    "make_tokenizer",
    "save",
    "section",
    "spec_of",
    "trace_shapes",
    "use_data",
]

"""Bounds of config fields, declared beside the fields."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from vq_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value of a number; None is unbounded.

    Annotates a field: `batch_size: Annotated[int, Bounds(1)] = 64`.
    """

    least: float | None = None
    most: float | None = None

    def check(self, value: Any, name: str) -> None:
        """Raises UserError, with the field's name, if a value is out of bounds."""
        if self.least is not None and value < self.least:
            raise UserError(f"{name} is {value}: use {self.least:g} or more")
        if self.most is not None and value > self.most:
            raise UserError(f"{name} is {value}: use {self.most:g} or less")


def bounds_of(maker: type | Callable[..., Any]) -> dict[str, Bounds]:
    """Returns the bounds of a dataclass's fields, or of a function's arguments, by name."""
    found = {}
    function = getattr(maker, "func", maker)  # of a partial
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Bounds):
                found[name] = extra
    return found

"""Errors that the user can correct."""


class UserError(Exception):
    """An error that the user can correct; the program prints its text and exits with code 2."""


def check_seed(seed: int, name: str = "seed") -> int:
    """Returns the seed if it has at most 32 bits; JAX silently drops the bits above these.

    Args:
      seed: the seed of a key.
      name: its name in the error message.

    Raises:
      UserError: the seed is not in [0, 2^32).
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{name} is {seed}: use 0 to {2**32 - 1}")
    return seed


def first_line(e: Exception) -> str:
    """Returns the first line of an exception's text, or its type's name if it has no text."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]

"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can put right; its text is the one line the program ends with."""


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed, if a key can be made of it: JAX would silently drop all bits beyond 32.

    Raises:
      UserError: it is not in [0, 2^32).
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{name} is {seed}: use 0 to {2**32 - 1}")
    return seed


def first_line(e: Exception) -> str:
    """What an exception says first, or its name where it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]

"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can put right; its text is the one line the program ends with."""


def first_line(e: Exception) -> str:
    """What an exception says first, or its name where it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0]

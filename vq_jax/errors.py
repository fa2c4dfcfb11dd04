"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can put right; its text is the one line the program ends with."""

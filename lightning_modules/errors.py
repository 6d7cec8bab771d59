"""The error a person can cause and mend, as far as data and methods are concerned."""


class InputError(ValueError):
    """Data or a setting is wrong; the message is one line that names it and the mend."""

"""The error a person can cause and mend, as far as the cluster layer is concerned."""


class InputError(Exception):
    """A value from outside is wrong; the message is one line that names it and the mend."""

"""Public exceptions of rtobs.

They are raised only where code is set up (``configure``, decorators, ``wrap``), never while a message is handled.

    RtobsError
    ├── ConfigError       (also a ValueError)  a wrong argument: what was seen, what to do
    └── UnsupportedError  (also a TypeError)   an object rtobs does not know how to instrument
"""


class RtobsError(Exception):
    """Base of every error that rtobs raises."""


class ConfigError(RtobsError, ValueError):
    """An argument of ``configure``, of a decorator or of ``wrap`` is wrong."""


class UnsupportedError(RtobsError, TypeError):
    """A function or client object is of a kind that rtobs cannot instrument."""

"""The errors of the control side, and the one place that maps errors to HTTP."""

from deployments.errors import MochiServeError


class ConfigError(MochiServeError):
    """The settings are wrong; the message names the key and what is allowed."""


class StartupError(MochiServeError):
    """The app cannot start here: a port is taken, the disk is full; the message says what to do."""


class IllegalMoveError(MochiServeError):
    """A job was asked to make a move that its state does not allow."""

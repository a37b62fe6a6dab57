"""Which mochi-serve this is."""

from importlib.metadata import PackageNotFoundError, version

PACKAGE = "mochi-serve"


def _installed() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"


VERSION = _installed()
"""Of the installed package; ``unknown`` where the sources are run without one."""

"""What a worker may raise: an error that a retry can mend, or one that it cannot.

`code` is a stable, machine-readable word that ends up in the job's error; the message is for
people.
"""

DEVICE_BROKEN = "device_broken"


class MochiServeError(Exception):
    """The root of every error this project raises."""

    detail: str = ""
    """What was met: addresses, paths, words of other programs. The error's text has it, for logs; clients do not."""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}: {self.detail}" if self.detail else text


class WorkerError(MochiServeError):
    """A stage of a job could not be done.

    Args:
        code: stable snake_case word, e.g. ``prompt_too_long``.
        message: what was wrong, what is allowed, what to do; it may go to clients.
        detail: see MochiServeError.
    """

    def __init__(self, code: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions are pickled by `args`, which do not fit the two-argument constructor."""
        return type(self).__new__, (type(self), self.message), dict(self.__dict__)


class TransientError(WorkerError):
    """Another attempt, perhaps on another replica, may succeed."""


class PermanentError(WorkerError):
    """No attempt can succeed: the job fails at once."""


class DeviceBrokenError(TransientError):
    """The device gave a wrong result, or none: the process may not use it any more."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(DEVICE_BROKEN, "the device of the replica is broken", detail)


class InputUnusableError(WorkerError):
    """What the stage before left for this one is gone, damaged, or another model's or job's: it must be made again.

    It is no fault of the job and no failed attempt: the job goes back to the stage before.
    """

    def __init__(self, message: str) -> None:
        super().__init__("input_unusable", message)


class StoppedError(MochiServeError):
    """The task is to stop: the job was cancelled, or its lease is another replica's."""


class RegistryUnavailableError(MochiServeError):
    """The job registry, or its database, does not answer. It comes back by itself: try again in a few seconds.

    Args:
        message: may go to clients.
        detail: see MochiServeError.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class StorageUnavailableError(TransientError):
    """The object store could not be reached, or cannot serve now.

    Args:
        detail: what was met, with endpoint and bucket.
    """

    _code = "storage_unavailable"
    _message = "the object store does not answer"

    def __init__(self, detail: str = "") -> None:
        super().__init__(self._code, self._message, detail)


class StorageRefusedError(StorageUnavailableError):
    """The object store refuses the server: wrong keys, or rotated ones, a clock that is off, no such bucket.

    It may pass, and is no fault of a job: jobs wait for it as for a store that is away.
    """

    _code = "storage_refused"
    _message = "the object store refuses this server; its operator finds the reason in the log"

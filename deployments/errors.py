"""What a worker may raise: an error that a retry can mend, or one that it cannot.

`code` is a stable, machine-readable word that ends up in the job's error; the message is for
people.
"""


class MochiServeError(Exception):
    """The root of every error this project raises."""


class WorkerError(MochiServeError):
    """A stage of a job could not be done.

    Args:
        code: stable snake_case word, e.g. ``prompt_too_long``.
        message: what was wrong, what is allowed, what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        """Exceptions are pickled by `args`, which do not fit the two-argument constructor."""
        return type(self).__new__, (type(self), self.message), dict(self.__dict__)


class TransientError(WorkerError):
    """Another attempt, perhaps on another replica, may succeed."""


class PermanentError(WorkerError):
    """No attempt can succeed: the job fails at once."""


class StoppedError(MochiServeError):
    """The task is to stop: the job was cancelled, or its lease is another replica's."""


class RegistryUnavailableError(MochiServeError):
    """The job registry could not be reached in time. It restarts by itself: try again in a few seconds."""


class StorageUnavailableError(TransientError):
    """The object store could not be reached."""

    def __init__(self, message: str) -> None:
        super().__init__("storage_unavailable", message)

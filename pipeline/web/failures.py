"""What can go wrong between a URL and its bytes: the URL's fault, or this node's."""

import errno

LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""The operating system had nothing left to give: says nothing about the host."""


class Failed(Exception):
    """No bytes from this URL, or not now; `reason` is a word of `pipeline.outcomes`."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s
        """What the host asked for in `Retry-After`."""


class LocalFailure(Exception):
    """This node could not even ask, and the message says why.

    `reason` is what the row gets should it prove to be the row's own fault after all: others work, and it does not.
    """

    def __init__(self, message: str, reason: str, *, out_of_sockets: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.out_of_sockets = out_of_sockets


class NodeUnavailable(Exception):
    """A local failure outlasted the recipe's patience: the unit must not be committed. The message says what."""

"""Every error the system raises on purpose, as one tree.

DwctlError
├── InvalidRequest          the client must change its request (names the parameter)
├── AuthenticationFailed    no key, or not one of ours
├── NotFound                unknown, foreign and deleted alike
├── Conflict                the state has moved on
│   ├── IdempotencyKeyHeld  … because another request with this key came first
│   └── IdempotencyConflict … and that one's response cannot be given
├── ServerStopping          the process is asked to end
├── ResponseCancelled       somebody with the right to it wants the response to end
├── LimitExceeded           a bound of domain/limits.py, with a time to try again
├── Overloaded              a bound of the whole process, with a time to try again
├── DeadlineExceeded        the response took longer than a response may
├── AttemptsExhausted       a queued response was tried as often as it may be
├── ToolFailed              a tool of the server's gave no output; the model is told
├── UpstreamError           the model's server failed
│   ├── UpstreamTimeout     … to answer in time
│   ├── UpstreamRejected    … by answering with an error status
│   └── UpstreamUnreachable … to accept a connection
└── StoreError              PostgreSQL failed
    ├── StoreUnavailable    … to answer: nothing was lost, try again
    └── LeaseLost           the row is somebody else's now

Rule 1: foreign exceptions become one of these once, in the adapter that meets them.
Rule 2: a message holds nothing internal: no address, key, SQL, path or provider's text.
"""

from dwctl_trio.domain.rejections import Rejection
from dwctl_trio.domain.response import ErrorType


class DwctlError(Exception):
    """The root: something failed in a way that has a name."""


class InvalidRequest(DwctlError):
    """The client's request cannot be served as it stands; the message says what to change.

    Args:
        message: What was wrong, what is allowed.
        param: Path of the parameter, as in ``input[0].content``; None when it is the whole body.
        code: OpenAI's machine-readable code.
        status: The HTTP status, 400 unless a more exact one exists (413, 415).
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


class AuthenticationFailed(DwctlError):
    """No API key came with the request, or it is unknown or revoked: all alike to the caller."""


class NotFound(DwctlError):
    """There is no such thing for this owner: unknown, foreign and deleted are not told apart."""


class Conflict(DwctlError):
    """The row is not in a state that allows this change."""


class IdempotencyKeyHeld(Conflict):
    """Another request with the same ``Idempotency-Key`` came first; whoever meets this waits for that one."""


class IdempotencyConflict(Conflict):
    """A request with an ``Idempotency-Key`` that is taken, which cannot have the response of the first.

    Args:
        message: Why not, and what to do.
        code: What happened, for programs.
        retry_after_s: When trying again makes sense, in seconds; None where it never does.
    """

    def __init__(
        self, message: str, *, code: str = "idempotency_key_reused", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class ServerStopping(DwctlError):
    """The process was asked to end, and its grace is over."""


class ResponseCancelled(DwctlError):
    """The response is to end with what it has: cancelled or deleted by its owner."""


class LimitExceeded(DwctlError):
    """A bound of ``domain/limits.py`` was met.

    Args:
        message: Which bound, in the client's words.
        retry_after_s: When trying again makes sense, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(DwctlError):
    """The process has as much under way as it can bear, whoever asks.

    Args:
        message: What is too much.
        retry_after_s: When trying again makes sense, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(DwctlError):
    """A warm response took longer than ``limits.response_s``, or a queued one was not done by its deadline."""


class AttemptsExhausted(DwctlError):
    """A queued response was tried as often as it may be, or too many processes died over it."""


class ToolFailed(DwctlError):
    """A tool gave no output; a result for the model, not the end of the response.

    Args:
        kind: One of the kinds of a tool's failure.
        message: For the model and the client: what was wrong; holds nothing internal.
    """

    def __init__(self, kind: ErrorType, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamError(DwctlError):
    """The model's server failed; the base class is the failure that fits no other.

    Args:
        message: Our own words; never the provider's text.
        status: The HTTP status the upstream gave, None when it gave none.
        retry_after_s: The upstream's own ``Retry-After`` in seconds, None when it sent none.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class UpstreamTimeout(UpstreamError):
    """The upstream took longer than one of its time limits."""


class UpstreamRejected(UpstreamError):
    """The upstream answered with an error status or an error object.

    Args:
        message: As of ``UpstreamError``.
        status: As of ``UpstreamError``.
        retry_after_s: As of ``UpstreamError``.
        rejection: What was wrong with the request; None when it was something else, or unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        rejection: Rejection | None = None,
    ) -> None:
        super().__init__(message, status=status, retry_after_s=retry_after_s)
        self.rejection = rejection


class UpstreamUnreachable(UpstreamError):
    """No connection to the upstream could be made."""


class StoreError(DwctlError):
    """PostgreSQL refused or failed a statement."""


class StoreUnavailable(StoreError):
    """PostgreSQL could not be reached, or not in time; trying again later makes sense."""


class LeaseLost(StoreError):
    """A guarded write met 0 rows: this process no longer owns the row and must stop."""

"""The response: the resource that clients create, stream and read back.

Source: OpenAI Responses API reference, "The response object".
"""

from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

import attrs

from dwctl_trio.domain.items import OutputItem
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.domain.usage import Usage


class ResponseStatus(StrEnum):
    """The status on the wire; the row's own states are in ``domain/lifecycle.py``."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATUSES = frozenset(
    {ResponseStatus.COMPLETED, ResponseStatus.INCOMPLETE, ResponseStatus.FAILED, ResponseStatus.CANCELLED}
)


class IncompleteReason(StrEnum):
    """Why a response ended before the model was done."""

    MAX_OUTPUT_TOKENS = "max_output_tokens"
    CONTENT_FILTER = "content_filter"


class ErrorType(StrEnum):
    """The kind of a failure, kept in row, step and log: the original's names and a few of ours."""

    UPSTREAM_ERROR = "upstream_error"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_POLICY_VIOLATION = "content_policy_violation"
    RATE_LIMITED = "rate_limited"
    PERSIST_FAILED = "persist_failed"
    LOOP_ERROR = "loop_error"
    MAX_ITERATIONS_EXCEEDED = "max_iterations_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STEP_ABANDONED = "step_abandoned"
    STEP_RETRIED = "step_retried"
    SERVER_STOPPING = "server_stopping"
    CANCELLED = "cancelled"
    HISTORY_LOST = "history_lost"
    # Of a tool call: the model reads of it, the response goes on.
    TOOL_NOT_FOUND = "tool_not_found"
    TOOL_ARGUMENTS_INVALID = "tool_arguments_invalid"
    TOOL_TIMEOUT = "tool_timeout"
    EXECUTOR_ERROR = "executor_error"
    MAX_DEPTH_EXCEEDED = "max_depth_exceeded"


class ErrorCode(StrEnum):
    """The ``error.code`` that clients see; OpenAI's own vocabulary, nothing else validates."""

    SERVER_ERROR = "server_error"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    INVALID_PROMPT = "invalid_prompt"
    INVALID_IMAGE = "invalid_image"
    INVALID_IMAGE_FORMAT = "invalid_image_format"
    INVALID_BASE64_IMAGE = "invalid_base64_image"
    INVALID_IMAGE_URL = "invalid_image_url"
    INVALID_IMAGE_MODE = "invalid_image_mode"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_PARSE_ERROR = "image_parse_error"
    IMAGE_CONTENT_POLICY_VIOLATION = "image_content_policy_violation"
    IMAGE_FILE_TOO_LARGE = "image_file_too_large"
    UNSUPPORTED_IMAGE_MEDIA_TYPE = "unsupported_image_media_type"
    EMPTY_IMAGE_FILE = "empty_image_file"
    FAILED_TO_DOWNLOAD_IMAGE = "failed_to_download_image"
    IMAGE_FILE_NOT_FOUND = "image_file_not_found"


IMAGE_CODES = frozenset(code for code in ErrorCode if "image" in code)
"""What may be wrong with an image among the input."""


@attrs.frozen(kw_only=True)
class ResponseError:
    """Why a response failed."""

    type: ErrorType
    """For the operator."""
    code: ErrorCode
    """For the client."""
    message: str
    """For the client, in our own words; holds nothing internal."""


@attrs.frozen(kw_only=True)
class Response:
    """One response at one moment."""

    id: UUID
    created_at: int
    """Unix seconds, by the clock of the database."""
    request: ResponseRequest
    """What was asked; most of it is echoed."""
    status: ResponseStatus
    tools: tuple[OfferedTool, ...] = ()
    """What the model was offered, the client's tools and the server's."""
    output: tuple[OutputItem, ...] = ()
    usage: Usage | None = None
    """Summed over all model calls, those of sub-agents too; None while unknown."""
    error: ResponseError | None = None
    incomplete_reason: IncompleteReason | None = None
    completed_at: int | None = None
    """Unix seconds; only when the status is ``completed``."""


@attrs.frozen(kw_only=True)
class Completed:
    """The model answered, or left calls for the client to run."""


@attrs.frozen(kw_only=True)
class Incomplete:
    """A limit or a filter ended the answer early; what there is counts."""

    reason: IncompleteReason


@attrs.frozen(kw_only=True)
class Failed:
    """Something broke; the output so far is kept."""

    error: ResponseError


@attrs.frozen(kw_only=True)
class Cancelled:
    """The client hung up or asked for it; the output so far is kept."""


Ending: TypeAlias = Completed | Incomplete | Failed | Cancelled
"""How a response ends; there is no fifth way."""

"""What the simulator answers when it is told to fail: errors as OpenAI and self-hosted engines word them.

Rule: every error text holds ``CANARY``, so that tests can look for leaks of provider texts.
"""

from dwctl_trio.testing.simulator_chat import json_bytes
from dwctl_trio.testing.simulator_scenes import Complaint

CANARY = "provider secret"
"""In every error of the simulator; it must never reach a client of the server under test."""

COMPLAINTS: dict[Complaint, dict[str, object]] = {
    Complaint.TOO_LONG: {"error": {"message": CANARY, "param": "messages", "code": "context_length_exceeded"}},
    Complaint.TOO_LONG_WORDS: {
        "object": "error",
        "message": f"This model's maximum context length is 8 tokens. {CANARY}",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    },
    Complaint.POLICY: {"error": {"message": CANARY, "code": "content_filter", "innererror": {"code": "x"}}},
    Complaint.IMAGE: {"error": {"message": CANARY, "type": "invalid_request_error", "code": "invalid_image_url"}},
    Complaint.NO_IMAGES: {"error": f"it is not a multimodal model: {CANARY}"},
    Complaint.NO_TOOLS: {"error": {"message": f"{CANARY} does not support tools", "type": "api_error"}},
    Complaint.PARAMETER: {"error": {"message": CANARY, "param": "max_tokens", "code": "unsupported_parameter"}},
}
"""The words of OpenAI, vLLM, Azure and Ollama."""
_ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_exceeded"}


def error_body(status: int) -> bytes:
    """The JSON body of an HTTP error, shaped like OpenAI's."""
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return json_bytes({"error": error_object(kind, status)})


def error_object(kind: str, code: int) -> dict[str, object]:
    """An error, as it stands in a body or in an event."""
    return {"message": f"{CANARY}: the simulator was told to fail", "type": kind, "param": None, "code": str(code)}

"""``POST /v1/responses/input_tokens``: how many tokens the input of a response would have.

The body is that of a response; what does not shape its first model call is checked, and changes nothing.
"""

from uuid import uuid4

from quart import Response as HttpResponse
from quart_trio import QuartTrio

from dwctl_trio.domain.errors import IdempotencyKeyHeld, InvalidRequest
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.engine.repeats import put_together_once
from dwctl_trio.engine.token_count import count_input_tokens
from dwctl_trio.http.answers import answer_json
from dwctl_trio.http.api import Api
from dwctl_trio.http.idempotency import read_idempotency_key
from dwctl_trio.http.proxied import refuse_repeat
from dwctl_trio.http.tracing import current_trace
from dwctl_trio.ports import NewResponse
from dwctl_trio.protocol import json

_NAME = "input_tokens"


def add_input_tokens_routes(app: QuartTrio, api: Api) -> None:
    """Put the view on *app*."""

    @app.post("/v1/responses/input_tokens")
    async def count_tokens() -> HttpResponse:
        caller = await api.find_caller()
        api.admit(caller)
        body = await api.read_json()
        wanted = api.parse_request(body)
        _refuse_running(wanted)
        new = NewResponse(
            response_id=uuid4(),
            owner=caller.owner,
            key_prefix=caller.key_prefix,
            request=wanted,
            route=api.find_route(wanted.model),
            first_step_id=uuid4(),
            trace=current_trace(),
            idempotency=read_idempotency_key([_NAME, body]),
            tools=api.find_tools(wanted),
        )
        try:
            count = await count_input_tokens(api.services, await put_together_once(api.services, new, api.hold))
        except IdempotencyKeyHeld:
            assert new.idempotency is not None, "only a request with a key meets another's"
            await refuse_repeat(api.services, new.owner, new.idempotency)
        return answer_json(json.encode({"object": f"response.{_NAME}", "input_tokens": count}))


def _refuse_running(wanted: ResponseRequest) -> None:
    """Refuse what asks for a response, and not for a number."""
    for name, asked in (("stream", wanted.stream), ("background", wanted.background)):
        if asked:
            raise InvalidRequest(
                f"Unsupported parameter: '{name}'. Tokens are counted at once, and the count is one JSON object; "
                f"leave '{name}' out.",
                param=name,
                code="unsupported_parameter",
            )

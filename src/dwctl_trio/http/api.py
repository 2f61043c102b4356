"""What all views share: the caller, the body, the route, and the answer to an error."""

import re
from uuid import uuid4

import attrs
import structlog
import trio
from quart import Response as HttpResponse
from quart import g, request
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestTimeout

from dwctl_trio.config import Config
from dwctl_trio.domain import ids
from dwctl_trio.domain.errors import DwctlError, InvalidRequest, NotFound, ServerStopping
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.toolbox import resolve_tools
from dwctl_trio.domain.tools import OfferedTool
from dwctl_trio.engine.scope import ResponseRefused
from dwctl_trio.engine.state import Services
from dwctl_trio.http.admission import Admission
from dwctl_trio.http.authentication import Authenticator, Caller
from dwctl_trio.http.body_budget import BudgetedBody
from dwctl_trio.http.connection import at_request_end
from dwctl_trio.http.watchers import Watchers
from dwctl_trio.observability.worker_metrics import WorkersPage
from dwctl_trio.protocol import json
from dwctl_trio.protocol.absent_endpoints import why_absent
from dwctl_trio.protocol.error_body import HttpError, error_body, failure_error, http_error
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.request_options import check_included

_log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@attrs.define(eq=False)
class Api:
    """The application's parts, for its views."""

    services: Services
    config: Config
    authenticator: Authenticator
    admission: Admission
    stopping: bool = False
    """Set when no new work is taken."""
    all_workers: WorkersPage | None = None
    """What a scrape gets where this process is one of several; None where it is the only one."""
    watchers: Watchers = attrs.field(factory=Watchers, init=False)
    """Requests that wait for what others work on."""
    _reading: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    """Of the requests whose bodies are still on their way."""

    async def find_caller(self) -> Caller:
        """Who sent the current request."""
        return await self.authenticator.find_caller(request.headers.get("authorization"))

    def admit(self, caller: Caller) -> None:
        """Take a place for the current request until it has ended.

        Raises:
            ServerStopping: The server takes no new work.
            Overloaded: The process has too much under way.
            LimitExceeded: The caller has.
        """
        self.refuse_when_stopping()
        g.caller = caller
        at_request_end(self.admission.admit(caller.owner))

    async def read_json(self) -> object:
        """The body of the current request, decoded.

        Raises:
            InvalidRequest: It is not JSON, or not sent as such.
            Overloaded: There is no room for it.
            RequestTimeout: It did not arrive in time.
            ServerStopping: It did not arrive before the grace of a stopping server was over.
        """
        if request.mimetype != "application/json":
            raise InvalidRequest(
                f"Unsupported content type '{request.mimetype or 'none'}': send 'Content-Type: application/json'.",
                code="unsupported_media_type",
                status=415,
            )
        if request.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
            raise InvalidRequest(
                "Unsupported content encoding: send the body as it is.", code="unsupported_media_type", status=415
            )
        body, limits = request.body, self.services.limits
        assert isinstance(body, BudgetedBody), "the application's own"
        if not body.is_settled:
            await self._wait_body(body)
        return json.decode_strict(body.take(), depth_max=limits.request_depth, brackets_max=limits.request_brackets)

    async def _wait_body(self, body: BudgetedBody) -> None:
        with trio.CancelScope() as reading:
            self._reading.add(reading)
            try:
                await body.wait_settled(self.services.limits.request_body_s)
            except trio.TooSlowError:
                raise RequestTimeout from None
            finally:
                self._reading.discard(reading)
        if reading.cancelled_caught:
            raise ServerStopping("the request's body did not arrive before the server's end")

    def hold(self, size: int) -> None:
        """Count *size* bytes that were read for the current request as if they had come with it.

        Raises:
            Overloaded: There is no room for them.
        """
        assert isinstance(request.body, BudgetedBody), "the application's own"
        request.body.hold_besides(size)

    def parse_request(self, body: object) -> ResponseRequest:
        """The response that *body*, decoded JSON, asks for.

        Raises:
            InvalidRequest: With the path of the parameter that is wrong, unknown, or not supported.
        """
        ignores_hosted_tools = self.config.hosted_tools == "ignore"
        server_tools = self.services.catalog.keys()
        return parse_request(body, server_tools=server_tools, ignores_hosted_tools=ignores_hosted_tools)

    def find_route(self, model: str) -> ModelRoute:
        """Where calls for *model* go.

        Raises:
            InvalidRequest: No route serves it.
        """
        route = self.config.find_route(model)
        if route is None:
            raise InvalidRequest(
                f"The model '{model}' does not exist or you do not have access to it.",
                param="model",
                code="model_not_found",
                status=404,
            )
        return route

    def find_tools(self, wanted: ResponseRequest) -> tuple[OfferedTool, ...]:
        """What the model is offered for *wanted*.

        Raises:
            InvalidRequest: It must call a tool that is not offered.
        """
        listed = self.config.find_tools(wanted.model)
        return resolve_tools(wanted, listed=listed, catalog=self.services.catalog)

    def stop_reading(self) -> None:
        """Wait no longer for bodies that are not here yet."""
        for reading in self._reading:
            reading.cancel()

    def refuse_when_stopping(self) -> None:
        """Raise once the server takes no new work."""
        if self.stopping:
            raise ServerStopping("the server is shutting down")


def refuse_unknown_includes() -> None:
    """Raise for what no response can include, in the query of the current request; all else is shown in any case.

    Raises:
        InvalidRequest: With the place of what is unknown.
    """
    asked = [value for name, value in request.args.items(multi=True) if name.partition("[")[0] == "include"]
    for index, value in enumerate(asked):
        check_included(value, f"include[{index}]")


def add_request_ids(app: QuartTrio) -> None:
    """Give every answer an ``x-request-id``: the client's own if it is a plain one."""

    @app.before_request
    async def take_request_id() -> None:
        sent = request.headers.get("x-request-id", "")
        g.request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid4().hex}"
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    async def give_request_id(answer: HttpResponse) -> HttpResponse:
        answer.headers["x-request-id"] = g.get("request_id") or f"req_{uuid4().hex}"
        return answer


def add_rate_limits(app: QuartTrio, api: Api) -> None:
    """Tell callers with rates what is left of them, on every answer to something that counts."""

    @app.after_request
    async def give_rates(answer: HttpResponse) -> HttpResponse:
        if "caller" in g:
            answer.headers.update(api.admission.headers(g.caller.owner))
        return answer


def add_error_handlers(app: QuartTrio, api: Api) -> None:
    """Answer every error in OpenAI's one shape."""

    @app.errorhandler(ResponseRefused)
    async def answer_refused(error: ResponseRefused) -> HttpResponse:
        answer = answer_error(failure_error(error.failure))
        if error.response_id is not None:  # the row is there, failed, and GET shows it
            answer.headers["x-response-id"] = ids.response_id_text(error.response_id)
        return answer

    @app.errorhandler(DwctlError)
    async def answer_known(error: DwctlError) -> HttpResponse:
        return answer_error(http_error(error))

    @app.errorhandler(HTTPException)
    async def answer_http(error: HTTPException) -> HttpResponse:
        answer = answer_error(_http_exception(error, api.services.limits.request_body_bytes))
        if isinstance(error, MethodNotAllowed) and answer.status_code == error.code:
            answer.headers["allow"] = _allowed_methods(error)
        return answer

    @app.errorhandler(Exception)
    async def answer_unknown(error: Exception) -> HttpResponse:
        _log.error("request_failed", exc_info=error)
        return answer_error(http_error(error))


def _http_exception(error: HTTPException, body_bytes_max: int) -> HttpError:
    """What Quart itself refuses: no such URL, wrong method, body too large or too slow."""
    reason = why_absent(request.method, request.path) if error.code in {404, 405} else None
    if reason is not None:
        message = f"Unsupported request URL: {request.method} {request.path[:256]}. {reason}"
        return HttpError(status=404, body=error_body(message, "invalid_request_error", code="unsupported_endpoint"))
    match error.code:
        case 404:
            return http_error(NotFound(f"Unknown request URL: {request.method} {request.path[:256]}."))
        case 405:
            assert isinstance(error, MethodNotAllowed), "nothing else has this status"
            message = f"{request.method} is not allowed on {request.path[:256]}; allowed: {_allowed_methods(error)}."
            code = "method_not_allowed"
        case 408:
            message, code = "The request's body did not arrive in time.", "request_timeout"
        case 413:
            message = f"The request's body is too large: at most {body_bytes_max} bytes are allowed."
            code = "request_too_large"
        case None | 500 | 501 | 502 | 503 | 504:
            return http_error(error)
        case _:
            message, code = "The request could not be understood.", "invalid_request"
    return HttpError(status=error.code, body=error_body(message, "invalid_request_error", code=code))


def _allowed_methods(error: MethodNotAllowed) -> str:
    """As the ``Allow`` header lists them (RFC 9110, section 15.5.6)."""
    return ", ".join(sorted(error.valid_methods or ()))


def answer_error(error: HttpError) -> HttpResponse:
    """*error* over HTTP."""
    return HttpResponse(error.body, status=error.status, headers=Headers(error.headers()))

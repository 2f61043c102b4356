"""Everything outside ``/v1/responses``: the models, whether the server lives and is ready, and what it counts."""

import attrs
import trio
from quart import Response as HttpResponse
from quart import g, request
from quart_trio import QuartTrio

from dwctl_trio.domain.errors import NotFound, StoreError
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.http.api import Api
from dwctl_trio.http.connection import at_request_end
from dwctl_trio.observability.metrics import Metrics
from dwctl_trio.observability.metrics_page import CONTENT_TYPE, MetricsPage
from dwctl_trio.ports import LeaseStore
from dwctl_trio.protocol import json

_ANY_MODEL = "*"


def add_system_routes(app: QuartTrio, api: Api, leases: LeaseStore) -> None:
    """Put the views on *app*, and count the requests of all."""
    metrics = api.services.metrics
    page = MetricsPage(metrics)
    _count_requests(app, metrics)

    @app.get("/v1/models")
    async def list_models() -> HttpResponse:
        await api.find_caller()
        routes = [route for route in api.config.models if route.model != _ANY_MODEL]
        return _json(200, {"object": "list", "data": [_render_model(route) for route in routes]})

    @app.get("/v1/models/<path:name>")
    async def read_model(name: str) -> HttpResponse:
        await api.find_caller()
        route = api.config.find_route(name)
        if route is None:
            raise NotFound(f"The model '{name[:256]}' does not exist or you do not have access to it.")
        return _json(200, _render_model(route))

    @app.get("/healthz")
    async def tell_health() -> HttpResponse:
        """The process lives; nothing is said of the database, or a fault there would restart every server."""
        return _json(200, {"status": "ok"})

    @app.get("/readyz")
    async def tell_readiness() -> HttpResponse:
        if api.stopping:
            return _json(503, {"status": "stopping"})
        try:
            with trio.fail_after(api.services.limits.ready_check_s):
                await leases.ping()
        except (StoreError, trio.TooSlowError):
            return _json(503, {"status": "database unavailable"})
        return _json(200, {"status": "ok"})

    @app.get("/metrics")
    async def tell_metrics() -> HttpResponse:
        """No key is needed, as for the other two: there is nothing of a client in it."""
        text = page.read() if api.all_workers is None else await api.all_workers.read()
        return HttpResponse(text, headers={"content-type": CONTENT_TYPE})


@attrs.define(eq=False)
class _Exchange:
    """A request, and whether it was answered."""

    method: str
    route: str | None
    """The template of its URL; None where no view serves it."""
    is_answered: bool = False


def _count_requests(app: QuartTrio, metrics: Metrics) -> None:
    """Count each request when its answer begins, or when it has ended without one."""

    @app.before_request
    async def expect_answer() -> None:
        rule = request.url_rule
        exchange = g.exchange = _Exchange(request.method, None if rule is None else str(rule.rule))

        def count_unanswered() -> None:
            if not exchange.is_answered:
                metrics.note_request(exchange.method, exchange.route, None)

        at_request_end(count_unanswered)

    @app.after_request
    async def count_answer(answer: HttpResponse) -> HttpResponse:
        exchange = g.exchange
        exchange.is_answered = True
        metrics.note_request(exchange.method, exchange.route, answer.status_code)
        return answer


def _render_model(route: ModelRoute) -> dict[str, object]:
    return {"id": route.model, "object": "model", "created": 0, "owned_by": route.upstream}


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(json.encode(value), status=status, headers={"content-type": "application/json"})

"""Everything outside ``/v1/responses``: the models, and whether the server lives and is ready."""

import trio
from quart import Response as HttpResponse
from quart_trio import QuartTrio

from dwctl_trio.domain.errors import NotFound, StoreError
from dwctl_trio.domain.models import ModelRoute
from dwctl_trio.http.api import Api
from dwctl_trio.ports import LeaseStore
from dwctl_trio.protocol import json

_ANY_MODEL = "*"


def add_system_routes(app: QuartTrio, api: Api, leases: LeaseStore) -> None:
    """Put the views on *app*."""

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


def _render_model(route: ModelRoute) -> dict[str, object]:
    return {"id": route.model, "object": "model", "created": 0, "owned_by": route.upstream}


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(json.encode(value), status=status, headers={"content-type": "application/json"})

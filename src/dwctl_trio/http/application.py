"""The Quart application: routes, bounds and answers to errors."""

from functools import partial

from quart_trio import QuartTrio
from quart_trio.wrappers.request import TrioRequest

from dwctl_trio.http.api import Api, add_error_handlers, add_rate_limits, add_request_ids
from dwctl_trio.http.body_budget import BodyBudget, BudgetedBody
from dwctl_trio.http.chat import add_chat_routes
from dwctl_trio.http.connection import RequestConnection
from dwctl_trio.http.input_tokens import add_input_tokens_routes
from dwctl_trio.http.lists import add_list_routes
from dwctl_trio.http.openapi import add_openapi_route
from dwctl_trio.http.proxied import add_proxied_routes
from dwctl_trio.http.responses import add_responses_routes
from dwctl_trio.http.system import add_system_routes
from dwctl_trio.http.tracing import add_tracing
from dwctl_trio.ports import LeaseStore


def build_application(api: Api, leases: LeaseStore) -> QuartTrio:
    """The application over *api*; *leases* answers whether the database does."""
    app = QuartTrio("dwctl_trio", static_folder=None, template_folder=None)
    app.asgi_http_class = RequestConnection  # type: ignore[assignment]  # quart-trio calls an application a Quart
    app.url_map.merge_slashes = False  # a redirect would be HTML, and turns a POST into a puzzle
    limits = api.services.limits
    app.request_class = _request_class(BodyBudget(limits.request_bodies_bytes))
    app.config["MAX_CONTENT_LENGTH"] = limits.request_body_bytes
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    add_request_ids(app)
    add_tracing(app, api.services.tracing)
    add_rate_limits(app, api)
    add_error_handlers(app, api)
    add_responses_routes(app, api)
    add_list_routes(app, api)
    add_input_tokens_routes(app, api)
    add_chat_routes(app, api)
    add_proxied_routes(app, api)
    add_system_routes(app, api, leases)
    add_openapi_route(app)
    return app


def _request_class(budget: BodyBudget) -> type[TrioRequest]:
    """Requests whose bodies are on *budget*."""
    return type("Request", (TrioRequest,), {"body_class": partial(BudgetedBody, budget)})

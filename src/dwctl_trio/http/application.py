"""The Quart application: routes, bounds and answers to errors."""

from quart_trio import QuartTrio

from dwctl_trio.http.api import Api, add_error_handlers, add_rate_limits, add_request_ids
from dwctl_trio.http.connection import RequestConnection
from dwctl_trio.http.responses import add_responses_routes
from dwctl_trio.http.system import add_system_routes
from dwctl_trio.http.tracing import add_tracing
from dwctl_trio.ports import LeaseStore


def build_application(api: Api, leases: LeaseStore) -> QuartTrio:
    """The application over *api*; *leases* answers whether the database does."""
    app = QuartTrio("dwctl_trio", static_folder=None, template_folder=None)
    app.asgi_http_class = RequestConnection
    app.url_map.merge_slashes = False  # a redirect would be HTML, and turns a POST into a puzzle
    limits = api.services.limits
    app.config["MAX_CONTENT_LENGTH"] = limits.request_body_bytes
    app.config["BODY_TIMEOUT"] = limits.request_body_s
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    add_request_ids(app)
    add_tracing(app, api.services.tracing)
    add_rate_limits(app, api)
    add_error_handlers(app, api)
    add_responses_routes(app, api)
    add_system_routes(app, api, leases)
    return app

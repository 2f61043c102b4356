"""``/openapi.json``: the document of all routes, the same bytes for everybody."""

import hashlib
from importlib.metadata import version

from quart import Response as HttpResponse
from quart import request
from quart_trio import QuartTrio

from dwctl_trio.protocol import json
from dwctl_trio.protocol.openapi.document import render_document


def add_openapi_route(app: QuartTrio) -> None:
    """Put the view on *app*; the document is built now, and once."""
    document = json.encode(render_document(version("dwctl-trio")))
    tag = hashlib.sha256(document).hexdigest()[:32]
    caching = {"etag": f'"{tag}"', "cache-control": "no-cache"}  # kept by whoever likes, and asked about each time

    @app.get("/openapi.json")
    async def read_openapi() -> HttpResponse:
        """No key is needed: it says nothing of a client, nor of the configuration."""
        if request.if_none_match.contains_weak(tag):
            return HttpResponse(b"", status=304, headers=caching)
        return HttpResponse(document, headers={"content-type": "application/json", **caching})

"""dwctl-trio: the ``/v1/responses`` server that never loses a response."""

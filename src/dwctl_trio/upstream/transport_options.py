"""The bounds of a transport, whichever it is."""

import attrs


@attrs.frozen(kw_only=True)
class TransportOptions:
    """The bounds of a transport."""

    connect_s: float
    """To resolve a name, connect and agree on keys."""
    idle_connections: int
    """Connections kept open at rest."""
    idle_s: float
    """For one of them; then it is closed, when the next request comes or goes."""

"""Which upstream serves a model name, and at what price."""

from decimal import Decimal

import attrs

MODEL_CHARACTERS_MAX = 256
"""Of a model's name: it stands in every row, log line and metric of its calls."""


@attrs.frozen(kw_only=True)
class Price:
    """What a million tokens cost the owner."""

    input_per_million: Decimal
    output_per_million: Decimal
    currency: str
    """As in ISO 4217: ``USD``."""


@attrs.frozen(kw_only=True)
class ModelRoute:
    """Where the calls for one model name go."""

    model: str
    """The alias that the client named."""
    upstream: str
    """The upstream's name in the configuration."""
    upstream_model: str
    """What the upstream calls the model."""
    price: Price | None = None
    """None when the operator gave none: the cost is then unknown, not zero."""
    queue_concurrency: int | None = None
    """Queued responses for it under way at once, in all processes together; 0 or none: ``queue_model_concurrency``."""

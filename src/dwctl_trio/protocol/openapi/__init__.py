"""The OpenAPI document: what every route takes and gives, in JSON Schema, put together from the code that does it."""

"""The client of the model's server."""

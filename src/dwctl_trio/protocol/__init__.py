"""Sans-IO: bytes and JSON to values and back."""

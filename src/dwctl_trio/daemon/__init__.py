"""Who works on queued rows: the producer that claims them, and a worker for each."""

"""Trio: nurseries, channels and deadlines around the domain's decisions."""

"""Metrics and logs. Knows nothing of requests or models."""

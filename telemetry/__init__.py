"""Log setup and metrics. Imports nothing of the service."""

"""Text in, vectors out. Knows neither HTTP nor the service's settings."""

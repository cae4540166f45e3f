"""Keeps results of texts, so that equal texts are not computed again. Knows neither HTTP nor the service's settings."""

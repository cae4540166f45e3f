"""Measures the speed of the service, and of FastEmbed called directly. See README.md."""

"""The API as callers see it: request and answer types, how answers are built and written, OpenAPI, Prometheus."""

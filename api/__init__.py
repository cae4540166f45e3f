"""Wire formats: request and answer types, how answers are built and written, OpenAPI, Prometheus."""

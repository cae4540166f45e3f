"""HTTP plumbing without routes: middleware, problem details, JSON bodies, response headers. Knows Litestar."""

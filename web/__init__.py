"""HTTP without routes: middleware, problem details, JSON request bodies, response headers. Built on Litestar."""

"""Who may call, and how much: principals, keys, tokens, permissions, quotas. Knows neither Litestar nor Settings."""

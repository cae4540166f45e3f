"""Checks the service under overload, beside abusive clients, and over a long time. See docs/RELIABILITY.md."""

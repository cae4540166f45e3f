"""Callers, their permissions and their quotas. Imports neither Litestar nor `Settings`."""

"""Builds the app and its running parts from the settings. Everything below takes plain values, not `Settings`."""

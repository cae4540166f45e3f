"""Runs the service: listening socket, HTTP/1.1 connections and their limits, signals, exit code."""

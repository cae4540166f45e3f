"""The process around the app: its socket, its connections, its signals, its exit code."""

"""What this machine gives the process: usable cores, memory, folders, ports."""

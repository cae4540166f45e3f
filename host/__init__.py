"""What the machine offers this process: usable cores, memory, folders and ports."""

"""From settings to running parts. Nothing else constructs collaborators, and Settings goes no further."""

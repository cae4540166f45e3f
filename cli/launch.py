"""The command `fast-embedding` of the installed package. It imports little, because `main.py` handles signals first."""

import runpy


def main() -> None:
    """Run `fast-embedding`; it does what `python main.py` does."""
    runpy.run_module("main", run_name="__main__", alter_sys=True)

"""Progress bars of the commands. tqdm draws them: the hub's client reports its progress to a class like tqdm's."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

from engine.catalog import Model
from engine.fingerprint import ModelFiles
from engine.hub import use_files
from engine.hub_space import HubSpace

FILE_INTERVAL_S = 10.0
"""Seconds between two updates where standard error is a file: each update is a further line there."""


class ProgressBar(tqdm):  # type: ignore[misc]  # it has no types
    """A progress bar on standard error, which disappears when it is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        interval_s = 0.1 if sys.stderr.isatty() else FILE_INTERVAL_S
        super().__init__(*args, **{"file": sys.stderr, "leave": False, "mininterval": interval_s, **options})


def fetch_with_progress(model: Model, cache_dir: Path, *, space: HubSpace | None = None) -> ModelFiles:
    """Return the files of *model*, each compared with its hash. A progress bar shows a download.

    Raises:
        ModelUnavailableError: the files are missing and cannot be downloaded, or one is corrupt; or *space* (None: no
            limit) does not suffice for the download.
    """
    with ExitStack() as bars:

        class DownloadBar(ProgressBar):
            """One of three bars of the hub's client, of which only the bytes written to the disk are shown."""

            def __init__(self, *args: Any, **options: Any) -> None:
                # The other two count files, and bytes received; the latter has no total.
                is_shown = options.get("unit") == "B" and not str(options.get("desc")).startswith("Downloading")
                options |= {"desc": "  downloaded", "bar_format": None, "disable": not is_shown}
                super().__init__(*args, **options)
                bars.callback(self.close)  # before the next line is printed; the client leaves it to the collector

            def _keep(self, *_: Any, **__: Any) -> None:
                """Ignore the client's words, which are about its own storage, and its rate, which the bar shows."""

            set_description = set_description_str = set_postfix_str = _keep

        return use_files(model, cache_dir, _verify, progress=DownloadBar, space=space)


def _verify(files: ModelFiles) -> ModelFiles:
    _ = files.fingerprint  # reads all files and compares their hashes
    return files

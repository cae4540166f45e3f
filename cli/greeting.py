"""`python -m cli.greeting`, which run.sh runs first: checks settings and port, and prints how to call the service."""

import os
import sys

from config import BUNDLED_MODEL, Settings, SettingsError, load_settings
from host.listening_socket import ListenError, open_listening_socket, without_brackets
from host.standard_streams import is_writable

ANY_ADDRESS = {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not listened on


def main() -> int:
    """Print the greeting, or the reason why the service cannot start with these settings.

    Returns:
        The exit code: 0 if the service can listen, else 1.
    """
    try:
        settings = load_settings()
        _check_models(settings)
        open_listening_socket(settings.host, settings.port).close()
    except SettingsError as error:
        return _fail(f"Bad settings: {error}")
    except ListenError as error:
        return _fail(str(error))
    _print(greeting(settings.host, settings.port, needs_key=bool(settings.key_sources), has_docs=settings.enable_docs))
    return 0


def _print(text: str) -> None:
    """Print *text*, unless the output is full or closed: that must not stop the start of the service."""
    if sys.stdout is None or not is_writable(1):
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more when it exits


def _check_models(settings: Settings) -> None:
    if settings.required_models == (BUNDLED_MODEL,) and not settings.allowed_models:
        return
    # The catalogue imports FastEmbed, a second that a start with default models need not spend here.
    from assembly.catalog import open_catalog  # noqa: PLC0415
    from assembly.model_aliases import check_model_names  # noqa: PLC0415

    check_model_names(settings, open_catalog(settings))


def greeting(host: str, port: int, *, needs_key: bool, has_docs: bool) -> str:
    """Return what a person at this machine can do with a service that listens on *host* and *port*."""
    host = without_brackets(host)
    name = "localhost" if host in ANY_ADDRESS else f"[{host.replace('%', '%25')}]" if ":" in host else host
    url = f"http://{name}:{port}"
    key = " -H 'X-API-Key: YOUR KEY'" if needs_key else ""
    call = f"curl {url}/embed{key} -H 'Content-Type: application/json' -d '{{\"text\": \"Hello, world!\"}}'"
    docs = f"\n  API       {url}/docs" if has_docs else ""
    return f"""\
Starting Fast Embedding API on {url} (Ctrl-C stops it).

  try it    {call}
  status    {url}/health{docs}

"""


def _fail(reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())

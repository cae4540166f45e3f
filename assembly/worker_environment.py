"""The environment of workers: a copy of all settings, so that each worker has the same until the next reload."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

import config
from config import SETTING_NAMES, SettingsError
from env_file import EnvFileError, read_env_file

MAX_BYTES: Final = 128 << 10
"""Of `NAME=value` and the zero after it: Linux starts no process with a longer variable."""


def settings_environment(environment: Mapping[str, str], env_file: Path | None = None) -> dict[str, str]:
    """Return *environment* with what `.env` sets now: a process started with it needs, and reads, no `.env`.

    Raises:
        SettingsError: `.env` cannot be read, or a value in it is too long for a variable.
    """
    env_file = env_file or config.ENV_FILE
    try:
        read_env_file(env_file)
    except EnvFileError as error:
        raise SettingsError(str(error)) from None
    in_file = {name.upper(): value for name, value in dotenv_values(env_file, encoding="utf-8").items() if value}
    for name, value in in_file.items():
        if name in SETTING_NAMES and len(f"{name}={value}".encode()) >= MAX_BYTES:
            other = f"{name}_FILE or " if f"{name}_FILE" in SETTING_NAMES else ""
            message = f"{name} in .env is longer than 128 KB, which no process can inherit; use {other}WORKERS=1"
            raise SettingsError(message)
    others = {name: value for name, value in environment.items() if name.upper() not in SETTING_NAMES}
    given = {name.upper(): value for name, value in environment.items() if name.upper() in SETTING_NAMES and value}
    return others | {name: value for name, value in in_file.items() if name in SETTING_NAMES} | given

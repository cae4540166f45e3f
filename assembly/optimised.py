"""Finds the folder of optimised copies: in one place, so that the service and the commands use the same one."""

from config import HERE, Settings
from engine.hub_space import COPIES_FOLDER
from engine.optimised_models import CopyFolder

BAKED_COPIES_DIR = HERE / "optimised"
"""Optimised copies that are part of an image. Nothing writes there but its build."""


def copy_folder(settings: Settings) -> CopyFolder:
    """Return where optimised copies are: in OPTIMISED_MODELS_DIR, and perhaps in the image."""
    folder = settings.optimised_models_dir or settings.hub_cache_dir / COPIES_FOLDER
    return CopyFolder(folder, settings.optimised_models_max_size, BAKED_COPIES_DIR)

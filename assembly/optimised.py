"""Opens the folder of optimised copies: in one place, so that the service and the commands use the same one."""

from config import HERE, Settings
from engine.hub_space import COPIES_FOLDER
from engine.optimised_models import OptimisedModels

BAKED_COPIES_DIR = HERE / "optimised"
"""Optimised copies that are part of an image. Nothing writes there but its build."""


def open_copies(settings: Settings) -> OptimisedModels:
    """Return the optimised copies of OPTIMISED_MODELS_DIR, and those that are part of the image."""
    folder = settings.optimised_models_dir or settings.hub_cache_dir / COPIES_FOLDER
    return OptimisedModels(folder, max_bytes=settings.optimised_models_max_size, baked=BAKED_COPIES_DIR)

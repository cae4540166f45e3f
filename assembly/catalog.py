"""Opens the model catalogue: in one place, so that the service, the commands and the bulk job see the same models."""

from config import BUNDLED_MODEL, BUNDLED_MODELS_DIR, PRELOADED_DIR, Settings
from engine.catalog import Catalog, read_catalog


def open_catalog(settings: Settings) -> Catalog:
    """Read FastEmbed's registry, the bundled model, MODELS_DIR and the models preloaded in an image."""
    folders = [BUNDLED_MODELS_DIR, settings.models_dir]
    return read_catalog(folders, bundled=BUNDLED_MODEL, preloaded=PRELOADED_DIR)

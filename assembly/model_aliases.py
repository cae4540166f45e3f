"""Checks the settings that name models against those that exist: at start, in `check`, aliases also after a reload."""

from collections.abc import Iterator

from api.model_names import fold_name
from config import Settings, SettingsError
from engine.catalog import Catalog
from engine.errors import UnknownModelError


def why_unusable_aliases(settings: Settings, catalog: Catalog) -> Iterator[str]:
    """Yield a sentence for each alias that cannot be used: what is wrong, and what to change."""
    first_spelling: dict[str, str] = {}
    for alias, name in settings.model_aliases:
        key = fold_name(alias)
        if (other := first_spelling.setdefault(key, alias)) is not alias:
            yield f"{other!r} and {alias!r} are the same alias: case and ':latest' do not count. Keep one of them."
        if (hidden := catalog.find(alias) or catalog.find(key)) is not None:
            yield f"the alias {alias!r} would hide the model {hidden.name!r}. Choose another alias."
        try:
            catalog.get(name)
        except UnknownModelError as error:
            yield f"the alias {alias!r} needs the real name of a model. {error.summary}"


def check_model_names(settings: Settings, catalog: Catalog) -> None:
    """Check that REQUIRED_MODELS, ALLOWED_MODELS and MODEL_ALIASES name models of *catalog*.

    Raises:
        SettingsError: a name is not in the catalogue, or an alias cannot be used.
    """
    for setting in ("required_models", "allowed_models"):
        for name in getattr(settings, setting):
            try:
                catalog.get(name)
            except UnknownModelError as error:
                raise SettingsError(f"{setting.upper()}: {error.summary}") from None
    for reason in why_unusable_aliases(settings, catalog):
        message = f"MODEL_ALIASES: {reason}"
        raise SettingsError(message)

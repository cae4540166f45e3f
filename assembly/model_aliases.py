"""Checks MODEL_ALIASES against the models that exist: at start, in `check`, and after a reload."""

from collections.abc import Iterator

from api.model_names import fold_name
from config import Settings
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

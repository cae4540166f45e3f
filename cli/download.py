"""`python main.py download MODEL…`: fill the cache, for images and for machines without network."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from assembly.catalog import open_catalog
from cli.console import (
    DONE,
    FAILED,
    WRONG_USE,
    CommandError,
    fetch_visibly,
    find_models,
    megabytes,
    open_settings,
    paragraphs,
    say,
    tell,
)
from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.hub import is_cached

REVISION_CHARACTERS = 12


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Download models into HUB_CACHE_DIR, and check each file by its hash. What is there already is checked, too, "
        "and downloaded again only if it is spoilt. The exit code is 0 if all models are there, else 1."
    )
    parser.epilog = paragraphs(
        "HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as in every program that uses the Hugging Face hub."
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", help="models of the catalogue, by name")
    parser.add_argument("--all-required", action="store_true", help="the models that REQUIRED_MODELS names")


def run(arguments: Namespace) -> int:
    """Get one model after the other; one that fails does not keep the others from being tried.

    Raises:
        CommandError: no model is named, or one that does not exist; nothing was downloaded then.
    """
    settings = open_settings()
    names = [*arguments.models, *(settings.required_models if arguments.all_required else ())]
    if not names:
        raise CommandError("Name at least 1 model, or give --all-required.", exit_code=WRONG_USE)
    models = find_models(open_catalog(settings), names)
    got = [_get(model, settings.hub_cache_dir) for model in models]
    return DONE if all(got) else FAILED


def _get(model: Model, cache_dir: Path) -> bool:
    """Get one model and tell how it went; whether it is there now."""
    try:
        was_cached = is_cached(model, cache_dir)
        if not was_cached:
            tell(f"Downloading {model.name} (about {megabytes(model.size_bytes)}) ...")
        files = fetch_visibly(model, cache_dir)
    except ModelUnavailableError as error:
        tell(f"{model.name}: failed: {error.cause}")
        return False
    how = "needs no download" if model.folder else "already here" if was_cached else "downloaded"
    size_bytes = sum((files.folder / name).stat().st_size for name in files.names)
    revision = f", revision {files.revision.removeprefix('sha256:')[:REVISION_CHARACTERS]}" if files.revision else ""
    say(f"{model.name}: {how}, {megabytes(size_bytes)}{revision}, fingerprint {files.fingerprint.digest}")
    return True

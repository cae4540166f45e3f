"""`python main.py download MODEL…`: download models into the cache, for images and machines without network."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from assembly.library_variables import describe as describe_variable
from assembly.library_variables import unusable_variables
from cli.chosen_models import chosen_models, describe_models
from cli.console import (
    DONE,
    FAILED,
    megabytes,
    open_settings,
    paragraphs,
    print_line,
    print_message,
)
from cli.progress import fetch_with_progress
from engine.catalog import Model
from engine.errors import ModelUnavailableError
from engine.hub import is_cached
from engine.hub_space import HubSpace

REVISION_CHARACTERS = 12


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Download models into HUB_CACHE_DIR and compare each file with its hash. Models that are in the cache already "
        "are compared too; corrupt files are downloaded again. The exit code is 0 if all models are there, else 1."
    )
    parser.epilog = paragraphs(
        "HUB_CACHE_MAX_SIZE limits the cache. "
        "HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as in every program that uses the Hugging Face hub."
    )
    describe_models(parser)


def run(arguments: Namespace) -> int:
    """Download the models one after the other. If one fails, the others are still downloaded.

    Raises:
        CommandError: no model is named, or one does not exist; nothing was downloaded.
    """
    settings = open_settings()
    models = chosen_models(arguments, settings)
    space = HubSpace(settings.hub_cache_dir, max_bytes=settings.hub_cache_max_size)
    succeeded = [_download(model, settings.hub_cache_dir, space) for model in models]
    if not all(done or model.folder for model, done in zip(models, succeeded, strict=True)):
        for name, reason in unusable_variables(resolve=True):
            print_message(describe_variable(name, reason))
    return DONE if all(succeeded) else FAILED


def _download(model: Model, cache_dir: Path, space: HubSpace) -> bool:
    """Download one model, print the outcome, and return whether the model is there now."""
    try:
        was_cached = is_cached(model, cache_dir)
        if not was_cached:
            print_message(f"Downloading {model.name} (about {megabytes(model.size_bytes)}) ...")
        files = fetch_with_progress(model, cache_dir, space=space)
    except ModelUnavailableError as error:
        print_message(f"{model.name}: failed: {error.cause}")
        return False
    outcome = "needs no download" if model.folder else "already in the cache" if was_cached else "downloaded"
    size_bytes = sum((files.folder / name).stat().st_size for name in files.names)
    revision = f", revision {files.revision.removeprefix('sha256:')[:REVISION_CHARACTERS]}" if files.revision else ""
    print_line(f"{model.name}: {outcome}, {megabytes(size_bytes)}{revision}, fingerprint {files.fingerprint.digest}")
    return True

"""The models that a command works on: those that its command line names, and REQUIRED_MODELS if asked for."""

from argparse import ArgumentParser, Namespace

from assembly.catalog import open_catalog
from cli.console import WRONG_USE, CommandError, find_models
from config import Settings
from engine.catalog import Model


def describe_models(parser: ArgumentParser) -> None:
    """Add the arguments that choose models."""
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names of models in the catalogue")
    parser.add_argument("--all-required", action="store_true", help="also the models of REQUIRED_MODELS")


def chosen_models(arguments: Namespace, settings: Settings) -> list[Model]:
    """Return the chosen models, each once.

    Raises:
        CommandError: no model is named, or one does not exist.
    """
    names = [*arguments.models, *(settings.required_models if arguments.all_required else ())]
    if not names:
        raise CommandError("Name at least one model, or use --all-required.", exit_code=WRONG_USE)
    return find_models(open_catalog(settings), names)

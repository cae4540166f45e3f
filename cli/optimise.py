"""`python main.py optimise MODEL…`: write the optimised copies of models, for images and before a start."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from assembly.optimised import copy_folder
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
from engine.catalog import Model
from engine.copy_upkeep import CopyUpkeep
from engine.encoder import load_encoder
from engine.errors import ModelUnavailableError
from engine.optimised_copy import NOT_NEEDED
from engine.optimised_models import OptimisedModels


def describe(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = paragraphs(
        "Load each model and write its optimised copy into OPTIMISED_MODELS_DIR, unless it is there. A copy is used "
        "only on machines whose CPU has the same instruction sets. The exit code is 0 if all models that can have a "
        "copy have one, else 1."
    )
    describe_models(parser)


def run(arguments: Namespace) -> int:
    """Write the copies one after the other. If one fails, the others are still written.

    Raises:
        CommandError: no model is named, or one does not exist; nothing was written.
    """
    settings = open_settings()
    models = chosen_models(arguments, settings)
    copies = copy_folder(settings).open()
    succeeded = [_optimise(model, settings.hub_cache_dir, copies) for model in models]
    return DONE if all(succeeded) else FAILED


def _optimise(model: Model, cache_dir: Path, copies: OptimisedModels) -> bool:
    """Write the copy of one model, print the outcome, and return whether the model can have no better one."""
    upkeep = CopyUpkeep(copies, reload=lambda _: None)
    try:
        encoder = load_encoder(model, hub_cache_dir=cache_dir, copies=copies)
    except ModelUnavailableError as error:
        print_message(f"{model.name}: failed: {error.cause}")
        return False
    had_one = encoder.copy_state.is_used
    upkeep.tend(encoder)
    upkeep.wait()
    state = encoder.copy_state
    if not state.is_used:
        print_message(f"{model.name}: no copy: {state.reason}")
        return state.reason in NOT_NEEDED
    print_line(f"{model.name}: {'has a copy' if had_one else 'copy written'}, {megabytes(state.size_bytes)}")
    return True

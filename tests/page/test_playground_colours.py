"""The colours of canvases: readable with any colour vision, in both themes."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.page_modules import PAGE, PageModules

TABLES = """
import { diverging, inkOn, sequential } from "./colours.js";
const table = sequential(given);
return { sequential: table, diverging: diverging(given), inks: table.map(inkOn) };
"""
THEMES = ["light", "dark"]


def luminance(colours: Any) -> NDArray[np.float64]:
    """Return the relative luminance of WCAG of colours [red, green, blue]."""
    shares = np.asarray(colours) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", THEMES)
def test_larger_values_stand_out_more_by_lightness_alone(modules: PageModules, theme: str) -> None:
    tables = modules.run(TABLES, theme)
    direction = -1 if theme == "light" else 1
    assert (direction * np.diff(luminance(tables["sequential"])) >= 0).all()
    lightness = direction * luminance(tables["diverging"])
    assert (np.diff(lightness[:128]) <= 0).all()
    assert (np.diff(lightness[128:]) >= 0).all()


@pytest.mark.parametrize("theme", THEMES)
def test_both_directions_differ_in_hue_for_the_colour_blind(modules: PageModules, theme: str) -> None:
    """Orange and blue differ in blue and yellow, which the frequent kinds of colour blindness leave."""
    table = np.array(modules.run(TABLES, theme)["diverging"])
    blueness = table[:, 2] - table[:, :2].mean(axis=1)
    assert blueness[:100].max() < 0 < blueness[156:].min()


@pytest.mark.parametrize("theme", THEMES)
def test_scores_on_the_heat_map_have_enough_contrast(modules: PageModules, theme: str) -> None:
    tables = modules.run(TABLES, theme)
    grounds = luminance(tables["sequential"])
    inks = luminance([[int(ink[start : start + 2], 16) for start in (1, 3, 5)] for ink in tables["inks"]])
    contrasts = (np.maximum(grounds, inks) + 0.05) / (np.minimum(grounds, inks) + 0.05)
    assert contrasts.min() >= 4.5


def test_the_legend_has_the_colours_of_the_heat_map() -> None:
    stops = re.findall("#[0-9a-f]{6}", (PAGE / "colours.js").read_text().partition("DIVERGING")[0])
    ramp = re.search(r"\.pg-ramp \{.*\}", (PAGE / "playground.css").read_text())
    assert ramp
    pairs = re.findall(r"light-dark\((#\w+), (#\w+)\)", ramp[0])
    assert [light for light, _ in pairs] + [dark for _, dark in pairs] == stops

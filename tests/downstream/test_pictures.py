"""Logos with heights computed by hand, heat maps, maps, and pages that load nothing from elsewhere."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from megadna.downstream.pictures import BASE_COLOURS, draw_heat_map, draw_logo, entropy_bits, information_heights


def boxes(axes) -> dict[str, list[list[float]]]:
    """[left, bottom, right, top] of each letter by base, in the order of positions."""
    bases = {to_rgba(colour): base for base, colour in BASE_COLOURS.items()}
    found = {}
    for patch in axes.findobj(PathPatch):
        base, letters = bases[patch.get_facecolor()], patch.get_path()
        first = np.flatnonzero(letters.codes == Outline.MOVETO)[:: 2 if base == "A" else 1]  # A has a hole
        ends = [*first[1:], len(letters.codes)]
        pieces = [Outline(letters.vertices[a:b], letters.codes[a:b]) for a, b in zip(first, ends, strict=True)]
        found[base] = [piece.get_extents().extents.tolist() for piece in pieces]
    return found


def test_heights_by_hand():
    p_L4 = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.5, 0.25, 0.125, 0.125], [np.nan] * 4])
    np.testing.assert_allclose(entropy_bits(p_L4), [0, 2, 1, 1.75, np.nan])
    heights = [[2, 0, 0, 0], [0] * 4, [0.5, 0.5, 0, 0], [0.125, 0.0625, 0.03125, 0.03125], [np.nan] * 4]
    np.testing.assert_allclose(information_heights(p_L4), heights)


def test_letters_are_stacked_by_height_and_downwards_below_zero():
    axes = Figure().subplots()
    draw_logo(axes, np.array([[1, 0.5, 0, 0], [-2, 0.25, 0, -1], [np.nan] * 4]), first_position=10)
    found = boxes(axes)
    left, right = 10 - 0.47, 10 + 0.47
    np.testing.assert_allclose(found["C"], [(left, 0, right, 0.5), (left + 1, 0, right + 1, 0.25)], atol=1e-6)
    np.testing.assert_allclose(found["A"], [(left, 0.5, right, 1.5), (left + 1, -3, right + 1, -1)], atol=1e-6)
    np.testing.assert_allclose(found["T"], [(left + 1, -1, right + 1, 0)], atol=1e-6)
    assert "G" not in found and axes.get_xlim() == (9.5, 12.5)
    assert axes.get_ylim()[0] < -3 and axes.get_ylim()[1] > 1.5


@pytest.mark.parametrize("heights_L4", [np.zeros((3, 4)), np.full((2, 4), np.nan)])
def test_a_logo_without_letters(heights_L4):
    axes = Figure().subplots()
    draw_logo(axes, heights_L4)
    assert not axes.findobj(PathPatch) and axes.get_xlim() == (-0.5, len(heights_L4) - 0.5)


def test_a_heat_map_is_symmetric_about_zero_and_marks_the_reference():
    axes = Figure().subplots()
    image = draw_heat_map(axes, np.array([[0, -3, 1, np.nan], [1, 0, 0, 0]]), "AN", first_position=5)
    assert image.get_clim() == (-3, 3) and image.get_array().shape == (4, 2)
    assert image.get_array().mask.sum() == 1 and image.get_extent() == [4.5, 6.5, 3.5, -0.5]
    assert axes.collections[0].get_offsets().tolist() == [[5, 0]]

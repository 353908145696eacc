"""Parameterisations: how the tensors that are learned become the images that networks see. One file each."""

from typing import Any

from ddfast.data.parameterisation.base import Pixels, Seen
from ddfast.data.parameterisation.bases import Bases
from ddfast.data.parameterisation.frequencies import Frequencies
from ddfast.data.parameterisation.texture import Texture, crop, draw_rolls
from ddfast.data.parameterisation.tiles import Tiles
from ddfast.runtime.arguments import expect_one_of, expect_whole

PIXELS = Pixels()
PARAMETERISATIONS: dict[str, type[Pixels]] = {kind.name: kind for kind in (Pixels, Texture, Tiles, Bases, Frequencies)}

__all__ = [
    "PARAMETERISATIONS",
    "PIXELS",
    "Bases",
    "Frequencies",
    "Pixels",
    "Seen",
    "Texture",
    "Tiles",
    "crop",
    "described",
    "draw_rolls",
    "with_canvas",
]


def described(about: dict[str, Any]) -> Pixels:
    """The parameterisation that `describe` wrote; ValueError for an unknown one."""
    about = dict(about)
    name = about.pop("name", None)
    expect_one_of("parameterisation", name, PARAMETERISATIONS)
    return PARAMETERISATIONS[name](**about)


def with_canvas(canvas: int) -> Pixels:
    """Pixels, or for a canvas of more than 1 textures."""
    expect_whole(canvas=canvas)
    return Texture(canvas) if canvas > 1 else PIXELS

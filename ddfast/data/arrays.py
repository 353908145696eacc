"""Images given as arrays: which axis holds the channels, and which values are black and white."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from ddfast.data.images import resized
from ddfast.data.pixels import BYTE, FLOAT, FULL_SCALES, INTEGER

LAYOUTS = ("NCHW", "NHWC")
USUAL_CHANNELS = (1, 3, 4)  # grey, colour, colour with transparency
ROUNDING = 1e-3  # by which values that were computed may leave their range
ROWS = 1024  # images that are converted at a time
SAID_BY_TYPE = ((0.0, 1.0), (0.0, 255.0))  # ranges that floats and uint8 have anyway


@dataclass(frozen=True)
class Images:
    """Images whose values are still as they came."""

    tensor: Tensor  # [N, C, H, W], uint8 or float32
    kind: str  # what they were: BYTE, INTEGER or FLOAT
    low: float
    high: float
    are_whole: bool  # numbers


def as_layout(layout: Any) -> str | None:
    """None, or one of LAYOUTS, however it is spelt. Errors: ValueError for another."""
    if layout is None:
        return None
    name = str(getattr(layout, "value", layout)).upper().replace("_", "").replace("-", "")
    name = {"CHANNELSFIRST": "NCHW", "CHANNELSLAST": "NHWC", "CHW": "NCHW", "HWC": "NHWC"}.get(name, name)
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    return name


def layout_of(shapes: Sequence[tuple[int, ...]], what: str, given: str | None = None) -> str | None:
    """Where images of these shapes, three sides each, have their channels; None for grey [H, W].

    In the one place that is 1, 3 or 4; else where that leaves a square of the other two. Errors: ValueError that names
    both readings where neither decides.
    """
    sides = {len(shape) for shape in shapes}
    if sides == {2}:
        return None
    if sides != {3}:
        got = next(shape for shape in shapes if len(shape) != 3)
        raise ValueError(
            f"dataset: expected {what} images [N, C, H, W], [N, H, W, C] or [N, H, W], got [N, "
            f"{', '.join(map(str, got))}]{_flattened(got)}"
        )
    if given is not None:
        return given
    found = {_layout_of_one(shape) for shape in shapes}
    if len(found) == 1 and None not in found:
        return found.pop()
    a, b, c = next((shape for shape in shapes if _layout_of_one(shape) is None), shapes[0])
    raise ValueError(
        f"dataset: {what} images [N, {a}, {b}, {c}] may be {a} channels of {b} × {c} px or {c} channels of {a} × {b} "
        f'px; give layout="NCHW" for the first, layout="NHWC" for the second'
    )


def _layout_of_one(shape: tuple[int, ...]) -> str | None:
    first, middle, last = shape
    if set(shape) == {1}:  # both readings are the same
        return "NCHW"
    usual = first in USUAL_CHANNELS, last in USUAL_CHANNELS
    if usual[0] != usual[1]:
        return "NCHW" if usual[0] else "NHWC"
    square = middle == last, first == middle
    if square[0] != square[1]:
        return "NCHW" if square[0] else "NHWC"
    return None


def _flattened(shape: tuple[int, ...]) -> str:
    """Advice for images whose pixels lie in one row."""
    if len(shape) != 1:
        return ""
    for channels in USUAL_CHANNELS[:2]:
        side = round((shape[0] / channels) ** 0.5)
        if channels * side * side == shape[0]:
            target = f"(-1, {side}, {side})" if channels == 1 else f"(-1, {channels}, {side}, {side})"
            return f": flattened pixels? reshape them first, perhaps to {target}"
    return ": flattened pixels? reshape them first"


def from_array(
    array: Any,  # [N, C, H, W], [N, H, W, C] or [N, H, W]
    what: str,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    resize: str = "stretch",
) -> Images:
    """Images from a tensor or an array of any type of numbers. Errors: ValueError for what is none."""
    array = array.detach().cpu() if isinstance(array, Tensor) else numpy.asarray(array)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"dataset: expected {what} images [N, C, H, W], got {list(array.shape)}")
    found = layout_of([tuple(array.shape[1:])], what, layout)
    kind = _kind(array, what)
    order = {None: None, "NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}[found]
    shape = (len(array), 1, *array.shape[1:]) if order is None else tuple(array.shape[axis] for axis in order)
    shape = (*shape[:2], *(size or shape[2:]))
    dtype = torch.uint8 if kind == BYTE else torch.float32
    if kind == BYTE and found != "NHWC" and shape[2:] == tuple(array.shape[-2:]):
        return Images(_tensor(array).reshape(shape), kind, 0, 255, True)  # as it lies in memory
    tensor, range_of = torch.empty(shape, dtype=dtype), Range()
    for begin in range(0, len(array), ROWS):
        part = _tensor(array[begin : begin + ROWS])
        part = part.unsqueeze(1) if order is None else part.permute(order)
        if kind != BYTE:
            part = part.float()
            range_of.add(part, what)
        tensor[begin : begin + ROWS] = resized(part, size, resize)
    return range_of.of(tensor, kind)


class Range:
    """The least and the largest of some values, and whether all are whole numbers."""

    def __init__(self) -> None:
        self.low, self.high, self.are_whole = float("inf"), -float("inf"), True

    def add(self, values: Tensor, what: str) -> None:
        """See some more, of the images that `what` names. Errors: ValueError for values that are not finite."""
        low, high = (float(end) for end in values.aminmax())
        if not (-float("inf") < low and high < float("inf")):
            raise ValueError(f"dataset: the {what} images hold values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.are_whole = self.are_whole and bool((values == values.round()).all())

    def of(self, tensor: Tensor, kind: str) -> Images:
        """Images that have it."""
        return Images(tensor, kind, *((0, 255, True) if kind == BYTE else (self.low, self.high, self.are_whole)))


def _kind(array: Any, what: str) -> str:
    """BYTE, INTEGER or FLOAT."""
    if isinstance(array, Tensor):
        if array.dtype == torch.uint8:
            return BYTE
        if array.is_floating_point():
            return FLOAT
        if not array.is_complex():
            return INTEGER
    elif array.dtype == numpy.uint8:
        return BYTE
    elif array.dtype.kind in "fbiu":
        return FLOAT if array.dtype.kind == "f" else INTEGER
    raise ValueError(f"dataset: expected {what} images as numbers, got {array.dtype}")


def _tensor(array: Any) -> Tensor:
    """The same numbers as a tensor, of a type that can be converted."""
    if isinstance(array, Tensor):
        return array.to(torch.int64) if array.dtype in (torch.uint16, torch.uint32) else array
    array = array.astype(array.dtype.newbyteorder("=")) if not array.dtype.isnative else array
    if array.dtype.kind == "u" and array.itemsize > 1:
        array = array.astype("float64")
    if array.dtype == numpy.longdouble:
        array = array.astype("float64")
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def scaled(
    parts: Sequence[Images], given: tuple[float, float] | None = None
) -> tuple[list[Tensor], tuple[float, float] | None, list[str]]:
    """The parts of a data set as uint8, or floats in [0, 1]; the range that became it, if it is another than 0–255 of
    uint8 and 0–1 of floats; and what there is to tell.

    Integers: uint8 is 0–255; of others the least of 8, 10, 12, 14 and 16 bits that holds all. Floats: 0–1; whole
    numbers up to 255 are 0–255. `given` overrules all of it. Errors: ValueError that names the readings of others.
    """
    if given is not None:
        return _to_range(parts, given)
    ranges = {}
    for kind in {part.kind for part in parts} - {BYTE}:
        of_kind = [part for part in parts if part.kind == kind]
        low, high = min(part.low for part in of_kind), max(part.high for part in of_kind)
        whole = all(part.are_whole for part in of_kind)
        ranges[kind] = _range_of_integers(low, high) if kind == INTEGER else _range_of_floats(low, high, whole, of_kind)
    tensors = [_unit(part, ranges[part.kind]) if part.kind in ranges else part.tensor for part in parts]
    told = [found for found in ranges.values() if found not in SAID_BY_TYPE]
    if len(set(told)) > 1:
        raise ValueError(
            f"value_range: expected training and test images of one kind, got ranges {told}; give the range"
        )
    return tensors, told[0] if told else None, []


def _range_of_integers(low: float, high: float) -> tuple[float, float]:
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low < 0 or high > FULL_SCALES[-1]:
        raise ValueError(
            f"dataset: expected integer images of 0 to {FULL_SCALES[-1]}, got values {low:g} to {high:g}; give "
            f"value_range=({low:g}, {high:g}), or what else is black and white"
        )
    return 0.0, float(next(scale for scale in FULL_SCALES if high <= scale))


def _range_of_floats(low: float, high: float, are_whole: bool, parts: Sequence[Images]) -> tuple[float, float]:
    if -ROUNDING <= low and high <= 1 + ROUNDING:
        return 0.0, 1.0
    if low >= 0 and high <= 255 and are_whole:
        return 0.0, 255.0
    readings = f"value_range=({low:g}, {high:g}) takes these as black and white"
    if low < 0:
        reading = f"normalised already? give them as they are before Normalize, or {readings}"
    elif len({part.high <= 1 + ROUNDING for part in parts}) > 1:
        reading = "one part is 0 to 1, the other is not; give both alike"
    elif high <= 255:
        reading = f"value_range=(0, 255) reads them as grey levels, {readings}"
    else:
        reading = readings
    raise ValueError(f"dataset: expected float images of 0 to 1, got values {low:g} to {high:g}; {reading}")


def _to_range(
    parts: Sequence[Images], given: tuple[float, float]
) -> tuple[list[Tensor], tuple[float, float] | None, list[str]]:
    low, high = given
    beyond = [part for part in parts if _least(part) < low or _most(part) > high]
    notes = []
    if beyond:
        least, most = min(map(_least, parts)), max(map(_most, parts))
        notes.append(f"values reach from {least:g} to {most:g}: those beyond value_range are cut off")
    tensors = [_unit(part, (low, high)) for part in parts]
    return tensors, None if (low, high) in SAID_BY_TYPE else (float(low), float(high)), notes


def _least(part: Images) -> float:
    return float(part.tensor.min()) if part.kind == BYTE else part.low


def _most(part: Images) -> float:
    return float(part.tensor.max()) if part.kind == BYTE else part.high


def _unit(part: Images, value_range: tuple[float, float]) -> Tensor:  # [N, C, H, W] in [0, 1]
    low, high = value_range
    if value_range == (0.0, 255.0) and part.are_whole and (part.kind == BYTE or part.tensor.equal(part.tensor.round())):
        return part.tensor.clamp(0, 255).to(torch.uint8)  # a quarter of the memory, and the same values
    tensor = part.tensor.float()
    if value_range != (0.0, 1.0):
        tensor = (tensor - low).div_(high - low)
    return tensor.clamp(0, 1)

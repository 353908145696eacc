"""Images of a page, as data URIs."""

import logging
from typing import Any

import torch

from ddfast.data import Batches, SyntheticSet
from ddfast.data.sheet import data_uri, sheet, viewable, webp_uri
from ddfast.pages.record import Record
from ddfast.run.pictures import THUMBNAIL
from ddfast.run.transfer import set_and_data
from ddfast.studies.privacy_look import nearest_members

log = logging.getLogger("ddfast")

MOST_LOOKED_AT = 100  # images shown beside their nearest training image
SIDE = 96  # pixels to which smaller ones are enlarged


def steps(run: Record) -> list[dict[str, Any]]:
    """The images over the iterations: "iteration" and "picture"."""
    found = [] if run.initial is None else [{"iteration": 0, "picture": _sheet(run.initial)}]
    last = run.saved_iteration
    for iteration, file in run.thumbnails:
        if 0 < iteration < last:
            found.append({"iteration": iteration, "picture": webp_uri(file.read_bytes())})
    if run.synthetic is not None and last:
        found.append({"iteration": last, "picture": _sheet(run.synthetic)})
    return found


def looks(run: Record, neighbours: bool, dataset: Any = None, data_root: Any = None) -> tuple[list[dict], str | None]:
    """Each image before and after, with its nearest training image ("name", "before", "after", "nearest"), and the
    reason if nearest images are missing."""
    if run.synthetic is None:
        return [], None
    after = run.synthetic.decoded()
    chosen = _first_of_each(after)
    before = None if run.initial is None else run.initial.decoded()
    same = before is not None and before.images.shape == after.images.shape
    nearest, why_not = None, None
    if neighbours:
        try:
            nearest = _nearest(run, after, chosen, dataset, data_root)
        except (ValueError, OSError, TypeError) as error:  # the data is missing or moved; write the page without it
            why_not = str(error)
            log.warning("nearest training images: left out (%s)", error)
    pictures: list[list[Any]] = [_each(after, after.images[chosen])]
    pictures.append(_each(before, before.images[chosen]) if same else [None] * len(chosen))
    pictures.append(nearest or [None] * len(chosen))
    names = [after.class_names[k] for k in after.classes[chosen].tolist()]
    keys = ("name", "after", "before", "nearest")
    return [dict(zip(keys, row, strict=True)) for row in zip(names, *pictures, strict=True)], why_not


def _first_of_each(synthetic: SyntheticSet) -> torch.Tensor:  # int64 [N]
    """Indices of the images shown: equally many per class."""
    classes = synthetic.classes
    present = classes.unique().tolist()
    of_each = max(1, MOST_LOOKED_AT // len(present))
    return torch.cat([(classes == k).nonzero()[:of_each, 0] for k in present])[:MOST_LOOKED_AT]


def _nearest(run: Record, after: SyntheticSet, chosen: torch.Tensor, dataset: Any, data_root: Any) -> list[str]:
    _, data = set_and_data(run.path, dataset, data_root)
    if after.parameterisation.is_random:
        raise ValueError("networks see other parts of these images every time")
    train = Batches(data.train_images, data.train_labels, data.preprocessing, torch.device("cpu"))
    _, places = nearest_members(after.images[chosen].flatten(1), train, lambda x: x.flatten(1))
    return _each(after, train.take(places)[0])


def _each(synthetic: SyntheticSet, images: torch.Tensor) -> list[str]:  # [N, C, H, W] preprocessed
    from torchvision.transforms.v2.functional import to_pil_image

    return [data_uri(_enlarged(to_pil_image(pixels))) for pixels in viewable(synthetic, images.detach())]


def _enlarged(picture: Any) -> Any:
    scale = max(1, -(-SIDE // max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), resample=0)  # nearest


def _sheet(synthetic: SyntheticSet) -> str:
    return data_uri(sheet(synthetic, **THUMBNAIL))

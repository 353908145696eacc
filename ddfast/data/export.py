"""Export of a set as a torch data set, numpy arrays or a Hugging Face data set, and import of the latter."""

import json
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddfast.data.sheet import viewable
from ddfast.data.synthetic import SyntheticSet, about_of, set_of

VALUES, SOFT = "values", "label_logits"  # columns of a Hugging Face data set, beside image and label


class TrainingSet(Dataset[tuple[Tensor, Tensor]]):
    """Preprocessed images and targets for cross_entropy: classes, or shares of soft labels.

    Each access to a texture takes another random part, drawn by torch's default generator (torch.manual_seed).
    """

    def __init__(self, synthetic: SyntheticSet) -> None:
        decoded = synthetic.decoded()
        self.images, self.targets = decoded.images.detach().cpu(), synthetic.targets.detach().cpu()
        self.classes = list(synthetic.class_names)
        self._parameterisation = decoded.parameterisation

    def __len__(self) -> int:
        """J."""
        return len(self.targets)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Image [C, H, W] and target, int64 [] or [K]."""
        image = self.images[n]
        if self._parameterisation.is_random:
            image = self._parameterisation.see(image[None], torch.default_generator)[0]
        return image, self.targets[n]


def to_numpy(synthetic: SyntheticSet) -> dict[str, numpy.ndarray]:
    """Arrays: "images" float32 [J, C, H, W] as networks see them, "pixels" uint8 [J, H, W, C], "labels" int64 [J] or
    logits [J, K], "lr" if the set has one."""
    decoded = synthetic.decoded()
    arrays = {"images": decoded.images, "labels": synthetic.labels}
    arrays |= {"pixels": synthetic.preprocessing.pixels(decoded.images.detach()).movedim(1, 3)}
    arrays |= {} if synthetic.lr is None else {"lr": synthetic.lr}
    return {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}


def to_hf(synthetic: SyntheticSet) -> Any:
    """Convert to a `datasets.Dataset`: "image" and "label" for viewers and other code; "values", the preprocessed
    images, which `from_hf` reads back bit for bit; and "label_logits" for soft labels.

    Parameterised sets are decoded; textures are stored as whole canvases. Errors: ImportError if `datasets` is not
    installed.
    """
    import datasets
    from torchvision.transforms.v2.functional import to_pil_image

    decoded = synthetic.decoded()
    images = decoded.images.detach().cpu().float()
    columns: dict[str, Any] = {
        "image": [to_pil_image(pixels) for pixels in viewable(decoded, images)],
        "label": decoded.classes.tolist(),
        VALUES: images.numpy(),
    }
    features: dict[str, Any] = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(decoded.class_names)),
        VALUES: datasets.Array3D(tuple(images.shape[1:]), "float32"),
    }
    if decoded.is_soft:
        columns[SOFT] = decoded.labels.detach().cpu().float().numpy()
        features[SOFT] = datasets.List(datasets.Value("float32"), length=len(decoded.class_names))
    about = about_of(decoded) | ({} if decoded.lr is None else {"lr": float(decoded.lr)})
    info = datasets.DatasetInfo(description=json.dumps(about), features=datasets.Features(features))
    return datasets.Dataset.from_dict(columns, features=info.features, info=info)


def from_hf(dataset: Any) -> SyntheticSet:
    """Read a set from the `datasets.Dataset` that `to_hf` made; ValueError for any other data set."""
    try:
        about = json.loads(dataset.info.description)
        columns = dataset.with_format("numpy")
        tensors = {"images": torch.from_numpy(numpy.stack(columns[VALUES][:]).astype(numpy.float32))}
        labels = numpy.stack(columns[SOFT][:]) if SOFT in dataset.column_names else numpy.asarray(columns["label"][:])
        tensors["labels"] = torch.from_numpy(labels)
        if "lr" in about:
            tensors["lr"] = torch.tensor(about["lr"])
        return replace(set_of(tensors, about), others={})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"dataset: expected one that SyntheticSet.to_hf made ({type(error).__name__}: {error}); "
            f"real data is read by ddfast.load_dataset"
        ) from None

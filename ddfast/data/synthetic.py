"""SyntheticSet: the distilled images, how to train on them, and how real data must be preprocessed beside them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.data.augment import NO_STRATEGY
from ddfast.data.dc_augment import augmentation
from ddfast.data.ipc import images_per_class
from ddfast.data.parameterisation import PIXELS, Pixels, described, with_canvas
from ddfast.data.preprocessing import Preprocessing
from ddfast.data.recipe import Recipe
from ddfast.runtime.arguments import takes_old_names
from ddfast.runtime.files import digest_of_tensors, read_json, read_tensors, write_json, write_tensors

log = logging.getLogger("ddfast")

FORMAT = "ddfast-synthetic-set-1"
DEFAULT_LR = 0.01  # to train on sets that have no learning rate of their own
LARGEST = 1e9  # of pixels: beyond it the squares that a norm or a distance sums soon overflow float32


@takes_old_names(canvas="parameterisation")
@dataclass
class SyntheticSet:
    """A tiny training set: J images, their labels, and the learning rate and augmentation that they were distilled for.

    `save` writes `<path>.safetensors` (images, labels, lr, how to use them, and a checksum of it all), which is what
    counts, and `<path>.json` (how to use them), for people. `decoded` is the set as networks see it.
    """

    images: Tensor  # [J, C, H, W], preprocessed, or what the parameterisation decodes; or an array
    labels: Tensor  # of the images that networks see: int64 [J] or other whole numbers; or label logits, float [J, K]
    lr: Tensor | None  # []; or a number; None where the method learns none
    class_names: tuple[str, ...]  # [K]
    preprocessing: Preprocessing
    dsa_strategy: str = NO_STRATEGY  # augmentation when training on it
    parameterisation: Pixels = PIXELS  # how networks see the images; a number is a Texture's canvas
    network: str | None = None  # what it was distilled for, as ddfast.networks.create takes it; None where not known
    others: dict[str, Tensor] = field(default_factory=dict)  # that the parameterisation decodes with the images
    recipe: Recipe | None = None  # the very steps that it was learned for, where it was for such

    def __post_init__(self) -> None:
        labels = torch.as_tensor(self.labels)
        given = {"images": torch.as_tensor(self.images), "class_names": tuple(map(str, self.class_names))}
        given["labels"] = labels if labels.is_floating_point() else labels.long()
        if not isinstance(self.lr, Tensor | None):
            given["lr"] = torch.tensor(self.lr, dtype=torch.float32)
        if isinstance(self.parameterisation, int):
            given["parameterisation"] = with_canvas(self.parameterisation)
        for name, value in given.items():
            object.__setattr__(self, name, value)
        count, K = self.labels.shape[0] if self.labels.dim() else 0, len(self.class_names)
        if self.images.dim() != self.parameterisation.axes or len(self.images) == 0:
            axes = "[I, C, H, W]" if self.parameterisation.axes == 4 else f"{self.parameterisation.axes} axes"
            raise ValueError(f"images: expected {axes}, got {list(self.images.shape)}")
        if self.parameterisation.by_rows:
            count = len(self.images)
        for name, values in (("images", self.images), ("lr", self.lr)):
            if values is not None and not values.is_floating_point():
                raise ValueError(f"{name}: expected floating-point numbers, got {values.dtype}")
        if self.images.shape[1] != len(self.preprocessing.mean):
            raise ValueError(
                f"images: expected {len(self.preprocessing.mean)} channels as in the preprocessing, "
                f"got {self.images.shape[1]}"
            )
        if not ((self.is_hard and self.labels.shape == (count,)) or (self.is_soft and self.labels.shape == (count, K))):
            raise ValueError(
                f"labels: expected int64 [{count}] or label logits [{count}, {K}], got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )
        if sorted(self.others) != sorted(self.parameterisation.others):
            expected = ", ".join(self.parameterisation.others) or "none"
            raise ValueError(f"others: expected {expected} for {self.parameterisation.name}, got {list(self.others)}")
        self.parameterisation.check(self.images, self.other_tensors, count)
        if self.is_hard and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < K:
            raise ValueError(f"labels: expected classes 0 to {K - 1}, got {self.labels.unique()[:10].tolist()}")
        if self.lr is not None and self.lr.shape != ():
            raise ValueError(f"lr: expected [], got {list(self.lr.shape)}")
        if self.recipe is not None:
            self.recipe.check(len(self))
        self.check_values()
        _ = self.image_size  # refuses what cannot be decoded

    def check_values(self) -> None:
        """ValueError for images, label logits or a learning rate that are not finite, or pixels that are too large:
        the tensors may have changed."""
        for name, values in (("images", self.images), ("labels", self.labels), ("lr", self.lr), *self.others.items()):
            if values is not None and not values.isfinite().all():
                raise ValueError(f"{name}: expected finite values, got some that are not")
        if self.images.abs().max() > LARGEST:
            raise ValueError(f"images: expected values up to {LARGEST:g}, got {float(self.images.abs().max()):g}")

    def __len__(self) -> int:
        """J, the images that networks see."""
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Of its images and labels, by which results say whose they are."""
        return digest_of_tensors({"images": self.images.cpu(), "labels": self.labels.cpu()}, {})

    @property
    def other_tensors(self) -> list[Tensor]:
        """`others`, as the parameterisation takes them."""
        return [self.others[name] for name in self.parameterisation.others]

    @property
    def bytes(self) -> int:
        """What the images take, without labels."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.images, *self.others.values()))

    def decoded(self) -> "SyntheticSet":
        """The set as networks see it, of pixels; textures, of which every use sees another part, as they are."""
        if self.parameterisation.is_random or self.parameterisation == PIXELS:
            return self
        images = self.parameterisation.decode(self.images, None, self.other_tensors)
        return replace(self, images=images, parameterisation=PIXELS, others={})

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels of what networks see."""
        return self.parameterisation.image_size(tuple(self.images.shape[2:]))

    @property
    def canvas(self) -> int:
        """The side of an image over the side of what networks see of it: more than 1 for textures."""
        return self.parameterisation.canvas

    @property
    def is_hard(self) -> bool:
        """Whether the labels are classes."""
        return self.labels.dtype == torch.int64

    @property
    def is_soft(self) -> bool:
        """Whether the labels are logits, whose softmax the cross-entropy aims at."""
        return self.labels.is_floating_point()

    @property
    def targets(self) -> Tensor:
        """What cross_entropy takes: classes, int64 [I], or the softmax of the label logits, [I, K]."""
        return self.labels if self.is_hard else self.labels.softmax(1)

    @property
    def classes(self) -> Tensor:  # int64 [I]
        """The class of each image; of soft labels the largest."""
        return self.labels if self.is_hard else self.labels.argmax(1)

    @property
    def ipc(self) -> int | list[int]:  # of every class; or [K]
        """Images per class; of soft labels whose images go evenly into the classes so many, for the largest of learned
        labels may be another class than an image began with."""
        K = len(self.class_names)
        if self.is_soft and len(self) % K == 0:
            return len(self) // K
        return images_per_class(self.classes.bincount(minlength=K), self.class_names, least=0)

    @property
    def stored_ipc(self) -> int | list[int]:
        """Images per class that take its storage as pixels."""
        more, ipc = self.parameterisation.images_per_stored, self.ipc
        return ipc // more if isinstance(ipc, int) else [count // more for count in ipc]

    def with_values(
        self, images: Tensor, labels: Tensor, lr: Tensor | None, others: dict[str, Tensor] | None = None
    ) -> "SyntheticSet":
        """This set with copies of other tensors, on the CPU; `others`: those that differ."""
        tensors = {"images": images, "labels": labels} | ({} if lr is None else {"lr": lr})
        copies, more = (
            {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in given.items()}
            for given in (tensors, self.others | (others or {}))
        )
        return replace(self, **({"lr": None} | copies), others=more)

    def of_classes(self, classes: Sequence[int]) -> "SyntheticSet":
        """The images of some classes: ddfast.data.subsets.of_classes."""
        from ddfast.data.subsets import of_classes

        return of_classes(self, classes)

    @staticmethod
    def join(sets: Iterable["SyntheticSet"]) -> "SyntheticSet":
        """Several sets in one: ddfast.data.subsets.join."""
        from ddfast.data.subsets import join

        return join(sets)

    def detached(self) -> "SyntheticSet":
        """A copy on the CPU that shares nothing with this one."""
        return self.with_values(self.images, self.labels, self.lr)

    def as_dataset(self) -> Any:
        """A torch data set of the images as networks see them and their targets: ddfast.data.export.TrainingSet."""
        from ddfast.data.export import TrainingSet

        return TrainingSet(self)

    def to_numpy(self) -> dict[str, Any]:
        """Images, pixels, labels and rate as arrays: ddfast.data.export.to_numpy."""
        from ddfast.data.export import to_numpy

        return to_numpy(self)

    def to_hf(self) -> Any:
        """A Hugging Face `datasets.Dataset`: ddfast.data.export.to_hf."""
        from ddfast.data.export import to_hf

        return to_hf(self)

    @staticmethod
    def from_hf(dataset: Any) -> "SyntheticSet":
        """The set that `to_hf` made a data set of: ddfast.data.export.from_hf."""
        from ddfast.data.export import from_hf

        return from_hf(dataset)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the set with a card to the Hugging Face Hub; its address: ddfast.data.hub.push."""
        from ddfast.data.hub import push

        return push(self, repo_id, **options)

    @staticmethod
    def from_hub(repo_id: str, **options: Any) -> "SyntheticSet":
        """The set of a repository on the Hugging Face Hub: ddfast.data.hub.pull."""
        from ddfast.data.hub import pull

        return pull(repo_id, **options)

    def _repr_html_(self) -> str:
        """For notebooks: a picture, and what the set is."""
        from ddfast.data.sheet import html_of

        return html_of(self)

    def save(self, path: str | Path) -> None:
        """Write both files, each whole or not at all; ValueError for values that are not finite."""
        self.check_values()
        tensors_path, about_path = _paths(path)
        about = about_of(self)
        rate = {} if self.lr is None else {"lr": self.lr}
        recipe = {} if self.recipe is None else self.recipe.tensors()
        write_tensors(
            tensors_path, {"images": self.images, "labels": self.labels, **rate, **self.others, **recipe}, about
        )
        write_json(about_path, about)

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is a set's file; `path` with or without an ending."""
        return _paths(path)[0].is_file()

    @classmethod
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Read a set; `path` with or without an ending. Of sets of ddfast 0.1.0 both files are needed.

        Errors: OSError or ValueError that names the file.
        """
        tensors_path, about_path = _paths(path)
        if not tensors_path.is_file():
            raise FileNotFoundError(f"{tensors_path}: no such file; a synthetic set is a .safetensors and a .json file")
        tensors, about = read_tensors(tensors_path)
        where = str(tensors_path) if about is not None else f"{tensors_path} and {about_path.name}"
        if about is not None:
            _warn_of_another(about_path, about, tensors_path)
            about_path = tensors_path
        elif not about_path.is_file():
            raise FileNotFoundError(f"{about_path}: no such file; {tensors_path.name} does not say how to use it")
        else:
            about = read_json(about_path)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"{about_path}: not a ddfast synthetic set")
        try:
            return set_of(tensors, about)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: not a ddfast synthetic set ({error})") from None


def about_of(synthetic: SyntheticSet) -> dict[str, Any]:
    """How to use a set, as its files say it."""
    about = {
        "format": FORMAT,
        "labels": "classes" if synthetic.is_hard else "logits",
        "class_names": list(synthetic.class_names),
        "preprocessing": synthetic.preprocessing.describe(),
        "dsa_strategy": synthetic.dsa_strategy,
        "parameterisation": synthetic.parameterisation.describe(),
    }
    return about if synthetic.network is None else about | {"network": synthetic.network}


def set_of(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> SyntheticSet:
    """The set of its tensors and what `about_of` said; KeyError, TypeError or ValueError for other ones."""
    parameterisation = _parameterisation(about)
    return SyntheticSet(
        tensors["images"],
        tensors["labels"],
        tensors.get("lr"),
        _names(about["class_names"]),
        Preprocessing.described(about["preprocessing"]),
        _strategy(about.get("dsa_strategy")),
        parameterisation,
        _network(about.get("network")),  # as have those whose network is not known
        {name: tensors[name] for name in parameterisation.others},
        Recipe.of(tensors),
    )


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names: expected a list of names")
    return tuple(names)


def _strategy(strategy: Any) -> str:
    augmentation(strategy)  # refuses an unknown one
    return strategy or NO_STRATEGY


def _parameterisation(about: Mapping[str, Any]) -> Pixels:
    """Of what a set's file says; those of ddfast 0.1 have a canvas or nothing."""
    named = about.get("parameterisation")
    return with_canvas(about.get("canvas", 1)) if named is None else described(named)


def _network(name: Any) -> str | None:
    if name is not None and not isinstance(name, str):
        raise ValueError("network: expected a name")
    return name


def _warn_of_another(about_path: Path, about: dict[str, Any], tensors_path: Path) -> None:
    """Tell that a file for people does not say what counts: edited, damaged, or of a save that was killed."""
    try:
        same = not about_path.is_file() or read_json(about_path) == about
    except ValueError:
        same = False
    if not same:
        log.warning("%s: differs from what %s records; the latter is used", about_path, tensors_path.name)


def _paths(path: str | Path) -> tuple[Path, Path]:
    """The two files of a set that is called `path`, with or without an ending."""
    name = str(path).removesuffix(".safetensors").removesuffix(".json")
    return Path(f"{name}.safetensors"), Path(f"{name}.json")

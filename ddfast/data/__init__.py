"""Real data sets and synthetic ones, preprocessing and augmentation."""

from ddfast.data.archives import set_of_release
from ddfast.data.augment import DSA
from ddfast.data.batches import Batches
from ddfast.data.dataset import Dataset
from ddfast.data.datasets import READING, is_folder, known_name, load_dataset
from ddfast.data.dc_augment import DCAugmentation, augmentation
from ddfast.data.ipc import counts_of, images_per_class
from ddfast.data.named import DATASETS
from ddfast.data.parameterisation import PARAMETERISATIONS, Bases, Frequencies, Pixels, Texture, Tiles
from ddfast.data.preprocessing import Preprocessing
from ddfast.data.recorded import recorded_preprocessing
from ddfast.data.registry import register_dataset
from ddfast.data.seeded_augment import SeededAugment
from ddfast.data.statistics import take_statistics
from ddfast.data.synthetic import SyntheticSet
from ddfast.data.zca import ZCA

__all__ = [
    "DATASETS",
    "DSA",
    "PARAMETERISATIONS",
    "READING",
    "ZCA",
    "Bases",
    "Batches",
    "DCAugmentation",
    "Dataset",
    "Frequencies",
    "Pixels",
    "Preprocessing",
    "SeededAugment",
    "SyntheticSet",
    "Texture",
    "Tiles",
    "augmentation",
    "counts_of",
    "images_per_class",
    "is_folder",
    "known_name",
    "load_dataset",
    "recorded_preprocessing",
    "register_dataset",
    "set_of_release",
    "take_statistics",
]

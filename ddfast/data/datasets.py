"""Real data sets: by name, from a folder of images, or given as objects or files of arrays."""

import difflib
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddfast.data.archives import set_of_release
from ddfast.data.arrays import as_layout
from ddfast.data.dataset import Dataset, check_values
from ddfast.data.folders import folder_files
from ddfast.data.named import DATASETS, read_named, read_split
from ddfast.data.objects import is_data_file, read_object
from ddfast.data.pixels import as_value_range
from ddfast.data.preprocessing import RESIZES, Preprocessing
from ddfast.data.recorded import recorded_preprocessing
from ddfast.data.registry import REGISTERED, is_registered, read_registered
from ddfast.data.summary import summary
from ddfast.runtime.arguments import expect_one_of, expect_whole, takes_old_names, takes_plain_numbers

log = logging.getLogger("ddfast")

READING = ("test_folder", "value_range", "skip_unreadable", "layout")  # options of what is not known by name
SPELLINGS = {name.replace("-", ""): name for name in DATASETS}


@takes_plain_numbers
@takes_old_names(root="data_root")
def load_dataset(
    dataset: Any,
    *,
    data_root: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    resize: str | None = None,
    zca: bool = False,
    download: bool = False,
    test_folder: str | None = None,
    value_range: tuple[float, float] | str | None = None,
    skip_unreadable: bool = False,
    layout: str | None = None,
    preprocessing: Any = None,
    hold_out: float = 0.0,
) -> Dataset:
    """A Dataset from a name, a folder, a file of arrays, data given as objects, or a Dataset as it is.

    Args:
        dataset: a name of DATASETS or of register_dataset; the path of a folder of pictures (docs/data.md:
            train/<class>/… and test/ or val/, or <class>/…), which a Path and a string with a slash always are; an
            .npz, .npy or .pt file; a pair (train, test), each of them a torch data set or DataLoader that yields
            (image, label), (images, labels) tensors or arrays, or a Hugging Face data set; one of these alone, of which
            a test part is drawn; a mapping with train and test. docs/data.md says which values and labels are read how.
        data_root: where the files of named data sets are; None for DDFAST_DATA, else a folder in the user's cache.
        image_size: side or (H, W) in pixels; None for their own, 128 for the ImageNet subsets.
        resize: how images get there: stretch, or crop (short side resized, middle kept); None for stretch.
        zca: whiten instead of normalising.
        download: fetch a named data set that is not there.
        test_folder: of a folder of pictures, the folder in it to test on; None for test/, else val/, else a part of
            the training pictures that is drawn.
        value_range: which values of pictures or arrays are black and white, such as (0, 4095); None or "auto" for what
            fits all pictures of more than 8 bits, and 0–255 or 0–1 for arrays that can only be read as that.
        skip_unreadable: leave out pictures that cannot be read, instead of refusing them all.
        layout: NCHW or NHWC: where arrays have their channels; None where sizes leave no doubt.
        preprocessing: the run, experts, synthetic set, .json file, or Preprocessing whose mean and std, or whitening,
            resize and value_range these images get; None for statistics of their own.
        hold_out: a share of every class's training images that is held out (`held_images`), and not trained on.

    Named sets are normalised with the field's statistics, others with those of their training images. A line in the log
    tells what was read.
    Errors: ValueError, TypeError or FileNotFoundError saying what was expected and what came.
    """
    if is_registered(dataset):
        read = read_registered(dataset, data_root=data_root, download=download, image_size=image_size)
        how = {"test_folder": test_folder, "value_range": value_range, "layout": layout, "preprocessing": preprocessing}
        how |= {"image_size": image_size, "resize": resize, "zca": zca, "skip_unreadable": skip_unreadable}
        how |= {"hold_out": hold_out}
        return replace(load_dataset(read, **how), name=dataset)
    recorded = None if preprocessing is None else recorded_preprocessing(preprocessing)
    if recorded is not None:
        if zca and recorded.zca is None:
            raise ValueError("zca: the preprocessing that is given does not whiten; expected one of both")
        if resize not in (None, recorded.resize):
            raise ValueError(f"resize: the preprocessing that is given has {recorded.resize}, got {resize}")
        resize, zca = recorded.resize, False
    resize = RESIZES[0] if resize is None else resize
    expect_one_of("resize", resize, RESIZES)
    size = _image_size(image_size)
    if isinstance(dataset, Dataset):
        if size is not None and size != dataset.image_size:
            raise ValueError(f"image_size: expected that of the data set, {dataset.image_size}, got {size}")
        own = {"test_folder": None, "value_range": dataset.preprocessing.value_range}
        for option, value in {"test_folder": test_folder, "value_range": as_value_range(value_range)}.items():
            if value not in (None, own[option]):
                raise ValueError(f"{option}: expected with what is read now, got {value!r} for {dataset.name}")
        dataset = dataset.holding_out(hold_out) if hold_out and dataset.held_images is None else dataset
        if recorded is not None:
            return dataset.preprocessed_like(recorded)
        return dataset.whitened() if zca and dataset.preprocessing.zca is None else dataset
    name, pictures = known_name(dataset), {"value_range": as_value_range(value_range)}
    if recorded is not None and pictures["value_range"] is None and not name:
        pictures["value_range"] = recorded.value_range  # as the pictures were read that it was fitted on
    layout, of_arrays = as_layout(layout), not is_folder(dataset) or is_data_file(dataset)
    if test_folder is not None and of_arrays:
        raise ValueError(f"test_folder: expected with a folder of pictures only, got {test_folder!r}")
    if layout is not None and not of_arrays:
        raise ValueError(f"layout: expected with arrays only, got {layout!r}")
    for option, value in {"layout": layout, **pictures}.items():
        if value is not None and name:
            raise ValueError(f"{option}: expected with a folder or data of your own only, got {value!r}")
    if name:
        raw = read_named(name, data_root, size, resize, download, skip_unreadable)
        name = raw.name
        if Path(str(dataset)).is_dir():
            raw.notes.append(f"the folder {dataset}/ here is another: ./{dataset} reads it")
    elif is_data_file(dataset):
        raw, name = read_object(dataset, size, resize, layout=layout, **pictures), Path(dataset).resolve().stem
        name = f"{name}{Path(dataset).suffix}" if _is_taken(name) else name
    elif is_folder(dataset):
        folder = _expect_folder(dataset)
        raw = read_split(folder_files(folder, test_folder), size, resize, skip_unreadable=skip_unreadable, **pictures)
        name = folder.resolve().name or "folder"
        name = f"{name}/" if _is_taken(name) else name  # no set that is known by name, whose settings would be taken
    else:
        raw, name = read_object(dataset, size, resize, layout=layout, **pictures), "custom"
    check_values(raw.train_images, f"{name}: the training images")  # before their statistics are taken
    if raw.statistics is not None or recorded is not None:
        C = raw.train_images.shape[1]
        statistics = raw.statistics or ((0.0,) * C, (1.0,) * C)
        preprocessing = Preprocessing(*statistics, resize=resize, value_range=raw.value_range)
    else:
        preprocessing = replace(Preprocessing.fitted(raw.train_images, resize), value_range=raw.value_range)
    about = {"sources": list(raw.sources), "notes": raw.notes, "skipped": raw.skipped}
    parts = raw.train_images, raw.train_labels, raw.test_images, raw.test_labels
    data = Dataset(name, *parts, raw.class_names, preprocessing, about)
    data = replace(data, about={"line": summary(data), **about})
    log.info("%s", data.about["line"])
    data = data.holding_out(hold_out) if hold_out else data
    data = data if recorded is None else data.preprocessed_like(recorded)
    return data.whitened() if zca else data


def known_name(dataset: Any) -> str | None:
    """The name in DATASETS that is meant, in any case and with any of - _ and space in it; None where it is none.

    A path is none: a Path, or a string with a slash. Errors: ValueError where another spelling of a name is that of a
    folder, too.
    """
    if not isinstance(dataset, str) or os.sep in dataset:
        return None
    if is_registered(dataset):
        return dataset
    name = _spelled(dataset)
    if name and dataset != name and Path(dataset).is_dir():
        raise ValueError(f"dataset: {dataset!r} may be the data set {name} or the folder; write {name} or ./{dataset}")
    return name


def _spelled(name: str) -> str | None:
    """The name in DATASETS that has these letters and digits; None where none has."""
    return SPELLINGS.get(re.sub(r"[-_ ]", "", name.lower()))


def _is_taken(name: str) -> bool:
    """Whether data of a user's own need another name, for a set or a release of one has this."""
    return bool(_spelled(name) or set_of_release(name))


def is_folder(dataset: Any) -> bool:
    """Whether it names a folder, rather than a data set that is known by name."""
    return isinstance(dataset, str | Path) and known_name(dataset) is None


def _expect_folder(dataset: str | Path) -> Path:
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"dataset: expected a folder of pictures, got the file {dataset}; unpack an archive first")
    if isinstance(dataset, Path) or os.sep in dataset:
        raise FileNotFoundError(f"dataset: expected a folder of pictures, there is no {dataset}")
    near = difflib.get_close_matches(dataset.lower(), [*DATASETS, *REGISTERED], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    files = "an image folder, or an .npz, .npy or .pt file"
    names = ", ".join([*DATASETS, *REGISTERED])
    raise ValueError(f"dataset: expected one of {names}, a name of register_dataset, {files}, got {dataset!r}{hint}")


def _image_size(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        raise ValueError(f"image_size: expected a side or (H, W) in pixels, got {image_size!r}")
    for side in sides:
        expect_whole(image_size=side)
    return tuple(sides)

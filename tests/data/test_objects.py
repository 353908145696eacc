"""Data given as arrays, DataLoaders, Hugging Face data sets and files of arrays."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from ddfast.data import load_dataset
from ddfast.runtime import seeds

N = 24
LABELS = numpy.arange(N) % 3


def bytes_of(*shape: int, seed: int = 0) -> numpy.ndarray:
    """uint8 images that reach from 0 to 255."""
    images = torch.randint(256, shape, generator=seeds.generator(seed, *shape), dtype=torch.uint8).numpy()
    images.flat[0], images.flat[1] = 0, 255
    return images


GREY = bytes_of(N, 16, 16)
COLOUR = bytes_of(N, 16, 12, 3)


def both(images, labels=LABELS):
    return (images, labels), (images, labels)


def notes(data) -> str:
    return data.about["line"]


@pytest.mark.parametrize("convert", [numpy.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_channels_first_last_and_none_are_the_same_images(convert):
    last = load_dataset(both(convert(COLOUR)))
    first = load_dataset(both(convert(numpy.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)))))
    assert last.fingerprint == first.fingerprint and last.train_images.shape == (N, 3, 16, 12)
    grey = [load_dataset(both(convert(x))) for x in (GREY, GREY[:, None], GREY[..., None])]
    assert len({data.fingerprint for data in grey}) == 1 and grey[0].channels == 1


@pytest.mark.parametrize(
    "shape, channels",
    [((64, 64, 13), 13), ((13, 64, 64), 13), ((4, 4, 1), 1), ((3, 4, 4), 3), ((2, 16, 16), 2), ((16, 16, 2), 2)],
)
def test_the_square_tells_where_unusual_channels_are(shape, channels):
    assert load_dataset(both(bytes_of(N, *shape))).channels == channels


@pytest.mark.parametrize("shape", [(48, 64, 13), (2, 8, 6), (3, 16, 4), (16, 16, 16), (1, 20, 3)])
def test_images_of_two_readings_are_refused_with_both_and_read_with_a_layout(shape):
    a, b, c = shape
    images = bytes_of(N, *shape)
    with pytest.raises(ValueError, match=rf"may be {a} channels of {b} × {c} px or {c} channels of {a} × {b} px; give"):
        load_dataset(both(images))
    assert load_dataset(both(images), layout="NCHW").train_images.shape[1:] == (a, b, c)
    assert load_dataset(both(images), layout="channels_last").train_images.shape[1:] == (c, a, b)


@pytest.mark.parametrize(
    "images, sentence",
    [
        (bytes_of(N, 784), r"got \[N, 784\]: flattened pixels\? reshape them first, perhaps to \(-1, 28, 28\)"),
        (bytes_of(N, 3072), r"perhaps to \(-1, 3, 32, 32\)"),
        (bytes_of(N, 1, 2, 3, 4), r"expected training images \[N, C, H, W\], .* got \[N, 1, 2, 3, 4\]"),
        (numpy.zeros((N, 8, 8), "complex64"), "training images as numbers, got complex64"),
        (numpy.full((N, 8, 8), "a"), "training images as numbers, got <U1"),
        (
            numpy.linspace(-2.1, 2.6, N * 64).reshape(N, 8, 8),
            r"-2.1 to 2.6; normalised already\? .* value_range=\(-2.1",
        ),
        (numpy.linspace(0, 254.5, N * 64).reshape(N, 8, 8), r"value_range=\(0, 255\) .*, value_range=\(0, 254.5\)"),
        (numpy.linspace(0, 4000.5, N * 64).reshape(N, 8, 8), r"0 to 4000.5; value_range=\(0, 4000.5\)"),
        (numpy.arange(N * 64).reshape(N, 8, 8) - 5, "integer images of 0 to 65535, got values -5 to 1530"),
        (numpy.arange(N * 64).reshape(N, 8, 8) * 100, "integer images of 0 to 65535, got values 0 to 153500"),
        (numpy.full((N, 8, 8), numpy.inf), "the training images hold values that are not finite"),
    ],
)
def test_images_that_cannot_be_read_are_refused_in_one_sentence(images, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_dataset(both(images))


@pytest.mark.parametrize(
    "dtype",
    ["int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", ">i4", ">f8"],
)
def test_whole_numbers_up_to_255_of_any_type_are_the_bytes(dtype):
    images = GREY // 2 if dtype == "int8" else GREY
    data = load_dataset(both(images.astype(dtype)))
    assert data.train_images.dtype == torch.uint8 and data.preprocessing.value_range is None
    assert data.fingerprint == load_dataset(both(images)).fingerprint


def test_torch_types_are_read_like_those_of_numpy():
    for dtype in (torch.int64, torch.int16, torch.float64, torch.bfloat16, torch.uint16):
        images = torch.as_tensor(GREY).to(dtype)
        expected = images.float().numpy().astype("uint8")
        assert load_dataset(both(images)).fingerprint == load_dataset(both(expected)).fingerprint


def test_deep_integers_keep_their_precision_and_say_their_range():
    deep = GREY.astype("uint16") * 16 + 7
    data = load_dataset(both(deep))
    assert data.preprocessing.value_range == (0, 4095) and "values 0–4095 (12 bits)" in notes(data)
    assert len(data.train_images.unique()) == 256
    torch.testing.assert_close(
        data.train_images[:, 0].double() * 4095, torch.as_tensor(deep.astype("float64")), atol=1e-3, rtol=0
    )


def test_a_range_that_is_given_counts_and_is_recorded():
    normalised = (GREY / 255 - 0.5) / 0.25
    data = load_dataset(both(normalised), value_range=(-2, 2))
    assert data.preprocessing.value_range == (-2, 2) and data.preprocessing.describe()["value_range"] == [-2, 2]
    torch.testing.assert_close(data.train_images[:, 0], torch.as_tensor(GREY / 255).float())
    cut = load_dataset(both(GREY), value_range=(0, 100))
    assert cut.train_images.max() == 1 and "reach from 0 to 255: those beyond value_range are cut off" in notes(cut)
    assert load_dataset(both(GREY / 255 * 254), value_range=(0, 255)).preprocessing.value_range is None


def test_training_and_test_images_of_different_ranges_are_refused():
    with pytest.raises(ValueError, match="one part is 0 to 1, the other is not; give both alike"):
        load_dataset(((GREY.astype("float32"), LABELS), (GREY / 255, LABELS)))
    with pytest.raises(ValueError, match=r"one size, got \[1, 16, 16\] and \[1, 16, 12\]; image_size resizes both"):
        load_dataset(((GREY, LABELS), (GREY[:, :, :12], LABELS)))


@pytest.mark.parametrize(
    "labels, names",
    [
        (LABELS + 1, ("1", "2", "3")),
        (LABELS * 4 - 1, ("-1", "3", "7")),
        (numpy.array(["dog", "cat", "eel"])[LABELS], ("cat", "dog", "eel")),
        (numpy.array([b"dog", b"cat", b"eel"])[LABELS], ("cat", "dog", "eel")),
        ([["dog", "cat", "eel"][k] for k in LABELS], ("cat", "dog", "eel")),
        (numpy.array(["dog", "cat", "eel"], dtype=object)[LABELS], ("cat", "dog", "eel")),
        (LABELS.astype("float32"), ("0", "1", "2")),
        (LABELS[:, None], ("0", "1", "2")),
        (numpy.eye(3)[LABELS], ("0", "1", "2")),
        (numpy.eye(3, dtype=bool)[LABELS], ("0", "1", "2")),
        (torch.as_tensor(LABELS).to(torch.uint8), ("0", "1", "2")),
        (torch.as_tensor(LABELS).to(torch.bfloat16), ("0", "1", "2")),
        ([torch.tensor(k) for k in LABELS], ("0", "1", "2")),
        (LABELS > 0, ("False", "True")),
    ],
)
def test_labels_of_any_kind_become_classes_with_names(labels, names):
    data = load_dataset(both(GREY, labels))
    assert data.class_names == names
    plain = load_dataset(both(GREY, LABELS > 0 if len(names) == 2 else LABELS))
    if names != ("cat", "dog", "eel"):
        assert torch.equal(data.train_labels, plain.train_labels)
    else:
        assert data.train_labels[:3].tolist() == [1, 0, 2]


def test_labels_that_are_renamed_are_told():
    assert "labels 3, 7 are 2 classes of these names" in notes(
        load_dataset(both(GREY, numpy.array([3, 7])[LABELS % 2]))
    )
    assert "of these names" not in notes(load_dataset(both(GREY)))


@pytest.mark.parametrize(
    "labels, sentence",
    [
        (LABELS + 0.5, "expected whole numbers as training labels, got 0.5"),
        (numpy.full(N, numpy.nan), "expected whole numbers as training labels, got nan"),
        (numpy.eye(3)[LABELS] * 0.5, r"one-hot rows with a single 1, got rows \[24, 3\]"),
        (numpy.ones((N, 3), int), "several labels an image, or shares of classes, are no classes"),
        (["a", None] * (N // 2), "training labels of one kind, numbers or strings, got NoneType, str"),
        (LABELS[:-1], r"as many labels, got \[24, 1, 16, 16\] and 23"),
        (LABELS * 1j, "numbers or strings as training labels, got complex128"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_dataset(
            ((GREY, labels), (GREY, LABELS)) if len(labels) == N and labels is not None else both(GREY, labels)
        )


def test_a_test_set_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="test images of class 9 and no training images of it"):
        load_dataset(((GREY, LABELS), (GREY, LABELS.clip(0, 1) * 9)))
    with pytest.raises(ValueError, match="training and test labels of one kind, got strings and numbers"):
        load_dataset(((GREY, LABELS.astype(str)), (GREY, LABELS)))
    with pytest.raises(ValueError, match="labels of one form, got one label each and rows of 3"):
        load_dataset(((GREY, LABELS), (GREY, numpy.eye(3)[LABELS])))


def test_listed_classes_without_images_are_left_out_and_told():
    class Named(TensorDataset):
        classes = ("ant", "bee", "cat", "dog")

    some = Named(torch.as_tensor(GREY)[:, None], torch.tensor([1, 3])[torch.as_tensor(LABELS % 2)])
    data = load_dataset((Subset(some, range(N)), some))
    assert data.class_names == (
        "bee",
        "dog",
    ) and "2 of 4 listed classes have no images and are left out: ant, cat" in notes(data)
    with pytest.raises(ValueError, match="training labels 0 to 3, as many as classes are listed, got 6, 7, 8"):
        load_dataset((Named(torch.as_tensor(GREY)[:, None], torch.as_tensor(LABELS) + 6), some))


def test_one_set_is_split_by_class_the_same_every_time_and_told():
    images, labels = bytes_of(50, 16, 16), numpy.arange(50) % 5
    forms = [
        (images, labels),
        {"images": images, "labels": labels},
        (images, labels.tolist()),
        ((images, labels), None),
    ]
    forms.append(TensorDataset(torch.as_tensor(images)[:, None], torch.as_tensor(labels)))
    forms.append([(torch.as_tensor(image), int(label)) for image, label in zip(images, labels, strict=True)])
    forms.append([(image, int(label)) for image, label in zip(images, labels, strict=True)])
    data = [load_dataset(form) for form in forms]
    assert len({(d.fingerprint, d.test_fingerprint) for d in data}) == 1
    assert data[0].test_labels.bincount().tolist() == [2] * 5 and len(data[0].train_labels) == 40
    assert "no test set: 10 of 50 images were drawn as test images (20% of every class, seed 0)" in notes(data[0])


def test_two_items_are_one_set_and_not_a_pair():
    items = [(torch.rand(1, 8, 8, generator=seeds.generator(k)), k % 2) for k in range(2)]
    with pytest.raises(ValueError, match="class 0, 1 has one image"):
        load_dataset(items)


def test_four_arrays_are_read_in_either_order():
    test_images, test_labels = GREY[:6], LABELS[:6]
    data = [
        load_dataset((GREY, LABELS, test_images, test_labels)),
        load_dataset((GREY, test_images, LABELS, test_labels)),
        load_dataset({"train": (GREY, LABELS), "test": (test_images, test_labels)}),
        load_dataset({"x_train": GREY, "y_train": LABELS, "x_test": test_images, "y_test": test_labels}),
    ]
    assert len({(d.fingerprint, d.test_fingerprint) for d in data}) == 1 and len(data[0].test_labels) == 6


def test_pictures_of_different_sizes_and_modes_become_one_size():
    pictures = []
    for n in range(8):
        mode = ("L", "RGB", "RGBA", "P")[n % 4]
        pictures.append((Image.fromarray(bytes_of(40 + n, 70, 3, seed=n)).convert(mode), n % 2))
    data = load_dataset((pictures, pictures))
    assert data.train_images.shape == (8, 3, 32, 32)
    assert "training images of 8 sizes became 32 × 32 px (image_size says otherwise)" in notes(data)
    assert load_dataset((pictures, pictures), image_size=(20, 24)).image_size == (20, 24)
    grey = [(picture.convert("L"), label) for picture, label in pictures]
    assert load_dataset((grey, grey)).channels == 1


def test_deep_pictures_of_a_torch_data_set_keep_their_depth():
    deep = [(Image.fromarray(bytes_of(16, 16, seed=n).astype("uint16") * 16), n % 2) for n in range(8)]
    data = load_dataset((deep, deep))
    assert data.preprocessing.value_range == (0, 4095) and len(data.train_images.unique()) > 200


@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_of_different_sizes_become_one_size(channels_last):
    items = [(torch.rand(3, 30 + n, 40, generator=seeds.generator(n)), n % 2) for n in range(6)]
    if channels_last:
        items = [(image.permute(1, 2, 0).numpy(), label) for image, label in items]
    assert load_dataset((items, items)).train_images.shape == (6, 3, 32, 32)


class _Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.as_tensor(image)[None], int(label)) for image, label in zip(GREY, LABELS, strict=True))


def test_loaders_are_read_once_and_as_they_are():
    plain = TensorDataset(torch.as_tensor(GREY)[:, None], torch.as_tensor(LABELS))
    expected = load_dataset((plain, plain))
    for loader in (DataLoader(plain, 7), DataLoader(plain, None), DataLoader(_Stream(), 5), _Stream()):
        data = load_dataset((loader, DataLoader(plain, 5)))
        assert (data.fingerprint, data.test_fingerprint) == (expected.fingerprint, expected.test_fingerprint)


def test_a_shuffling_loader_gives_the_same_data_set_every_time_and_leaves_the_random_state():
    plain = TensorDataset(torch.as_tensor(GREY)[:, None], torch.as_tensor(LABELS))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    data = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        data.append(load_dataset((DataLoader(plain, 5, shuffle=True, generator=generator), plain)))
    load_dataset((DataLoader(plain, 5, shuffle=True), plain))
    assert torch.equal(state, torch.random.get_rng_state())
    assert data[0].fingerprint == data[1].fingerprint
    assert sorted(data[0].train_images.flatten(1).sum(1).tolist()) == sorted(GREY.reshape(N, -1).sum(1).tolist())
    dropped = load_dataset((DataLoader(plain, 10, drop_last=True), plain))
    assert len(dropped.train_images) == 20 and "the training loader drops its last batch" in notes(dropped)


def test_batches_may_be_mappings():
    rows = [{"img": torch.as_tensor(image)[None], "label": int(k)} for image, k in zip(GREY, LABELS, strict=True)]
    data = load_dataset((DataLoader(rows, 5), rows))
    assert data.fingerprint == load_dataset(both(GREY)).fingerprint
    with pytest.raises(ValueError, match=r"expected training batches columns for images .* got picture_of, label"):
        load_dataset((DataLoader([{"picture_of": torch.zeros(1, 8, 8), "label": 0}], 1), rows))


class _Rows:
    """What of a Hugging Face data set is used: rows, columns and features."""

    def __init__(self, image: str, label: str, labels, names=("ant", "bee", "cat")):
        self.features = {image: SimpleNamespace(), label: SimpleNamespace(names=list(names)), "coarse_label": object()}
        self.column_names, self._labels = list(self.features), labels
        self._image, self._label = image, label

    def __len__(self):
        return len(self._labels)

    def with_format(self, kind):
        return self

    def __getitem__(self, n):
        if isinstance(n, str):
            return list(self._labels)
        picture = Image.fromarray(GREY[n])
        return {self._image: picture, self._label: int(self._labels[n]), "coarse_label": 0}


@pytest.mark.parametrize("image, label", [("image", "label"), ("img", "fine_label"), ("pixel_values", "labels")])
def test_columns_of_rows_with_class_names_are_found(image, label):
    data = load_dataset({"train": _Rows(image, label, LABELS), "test": _Rows(image, label, LABELS)})
    assert data.class_names == ("ant", "bee", "cat") and data.fingerprint == load_dataset(both(GREY)).fingerprint


def test_a_test_split_without_labels_is_passed_over():
    splits = {"train": _Rows("image", "label", LABELS), "validation": _Rows("image", "label", LABELS[:6])}
    splits["test"] = _Rows("image", "label", numpy.full(N, -1))
    data = load_dataset(splits)
    assert len(data.test_labels) == 6 and "test on validation; left out: test" in notes(data)
    with pytest.raises(ValueError, match="expected a part called train, got validation, test"):
        load_dataset({name: splits[name] for name in ("validation", "test")})
    assert "drawn as test images" in notes(load_dataset({"train": splits["train"]}))


def test_hugging_face_data_sets_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat", "dog"])}
    columns = {"image": [Image.fromarray(image) for image in GREY], "label": LABELS.tolist()}
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    splits = datasets.DatasetDict(train=whole, test=whole.select(range(6)))
    data = load_dataset(splits)
    assert data.fingerprint == load_dataset(both(GREY)).fingerprint and data.class_names == ("ant", "bee", "cat")
    assert load_dataset((whole, whole)).fingerprint == data.fingerprint
    assert load_dataset((whole.with_format("torch"), whole)).fingerprint == data.fingerprint
    assert load_dataset((whole.to_iterable_dataset(), whole)).fingerprint == data.fingerprint
    splits.save_to_disk(tmp_path / "saved")
    assert load_dataset(tmp_path / "saved").fingerprint == data.fingerprint
    assert "drawn as test images" in notes(load_dataset(whole))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("Xtrain", "Ytrain", "Xtest", "Ytest"),
        ("trainImages", "trainTargets", "valImages", "valTargets"),
        ("arr_0", "arr_1", "arr_2", "arr_3"),
    ],
)
def test_npz_files_are_read_by_the_names_of_their_arrays(tmp_path, names):
    arrays = dict(zip(names, (GREY, LABELS, GREY[:6], LABELS[:6]), strict=True))
    numpy.savez(tmp_path / "cells.npz", **arrays, **({} if names[0] == "arr_0" else {"class_names": ["a", "b", "c"]}))
    data = load_dataset(str(tmp_path / "cells.npz"))
    assert data.name == "cells" and len(data.test_labels) == 6
    assert data.fingerprint == load_dataset(both(GREY)).fingerprint
    assert data.class_names == (("0", "1", "2") if names[0] == "arr_0" else ("a", "b", "c"))


def test_the_layout_of_medmnist_is_read(tmp_path):
    parts = {
        f"{part}_{kind}": array
        for part in ("train", "val", "test")
        for kind, array in (("images", COLOUR), ("labels", LABELS[:, None]))
    }
    numpy.savez_compressed(tmp_path / "pathmnist.npz", **parts)
    data = load_dataset(tmp_path / "pathmnist.npz")
    assert data.train_images.shape == (N, 3, 16, 12) and "its validation part is left out" in notes(data)


def test_one_set_and_other_arrays_in_a_file(tmp_path):
    numpy.savez(tmp_path / "mnist.npz", X=GREY, y=LABELS, weights=numpy.ones(3))
    data = load_dataset(tmp_path / "mnist.npz")
    assert data.name == "mnist.npz"  # not the data set that is known by this name
    assert "left out: weights" in notes(data) and "drawn as test images" in notes(data)


def test_npy_and_pt_files_are_read(tmp_path):
    for name, array in {"x_train": GREY, "y_train": LABELS, "x_test": GREY, "y_test": LABELS}.items():
        numpy.save(tmp_path / f"{name}.npy", array)
    tensors = {"images": torch.as_tensor(GREY), "labels": torch.as_tensor(LABELS)}
    torch.save(tensors, tmp_path / "one.pt")
    torch.save(tuple(tensors.values()), tmp_path / "pair.pt")
    expected = load_dataset(both(GREY)).fingerprint
    assert load_dataset(tmp_path).fingerprint == load_dataset(tmp_path / "x_train.npy").fingerprint == expected
    assert load_dataset(tmp_path / "one.pt").fingerprint == load_dataset(tmp_path / "pair.pt").fingerprint


@pytest.mark.parametrize(
    "write, sentence",
    [
        (lambda path: path.write_bytes(b"no zip"), r"broken\.npz: expected arrays or tensors, cannot be read"),
        (lambda path: numpy.savez(path, a=GREY, b=LABELS), "expected arrays called x_train, .* got a, b"),
        (lambda path: numpy.savez(path, x_train=GREY), "expected arrays called x_train, .* got x_train"),
        (lambda path: numpy.savez(path, x=GREY, images=GREY, y=LABELS), "two arrays are images: x, images, y"),
        (lambda path: numpy.savez(path, x_train=GREY, y_train=LABELS, x_test=GREY), "labels of the test images, too"),
        (
            lambda path: numpy.savez(path, x=numpy.array([None]), y=LABELS),
            "cannot be read .Object arrays cannot be loaded",
        ),
    ],
)
def test_files_that_hold_no_data_set_are_refused_in_one_sentence(tmp_path, write, sentence):
    write(tmp_path / "broken.npz")
    with pytest.raises(ValueError, match=sentence):
        load_dataset(tmp_path / "broken.npz")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset: there is no file .*cells\.npz"):
        load_dataset(tmp_path / "cells.npz")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"layout": "NWHC"}, "layout: expected one of NCHW, NHWC, got 'NWHC'"),
        ({"test_folder": "test"}, "test_folder: expected with a folder of pictures only, got 'test'"),
    ],
)
def test_options_of_other_data_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_dataset(both(GREY), **options)
    with pytest.raises(ValueError, match=r"layout: expected with .* only, got 'NHWC'"):
        load_dataset("digits", layout="NHWC")

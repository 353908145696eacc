"""Classes that are chosen, and sets that are joined."""

from dataclasses import replace

import pytest
import torch

from ddfast import SyntheticSet
from ddfast.data import load_dataset
from ddfast.runtime import seeds


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def synthetic(data):
    images, labels = data.random_real(2, seeds.generator(0))
    return SyntheticSet(images, labels, torch.tensor(0.02), data.class_names, data.preprocessing, network="mlp")


def test_classes_of_a_data_set_become_those_of_a_smaller_one(data, pair):
    part = data.of_classes([2, 0])
    assert part.class_names == ("2", "0") and part.preprocessing == data.preprocessing
    for name, images, labels in (
        ("train", data.train_images, data.train_labels), ("test", data.test_images, data.test_labels),
    ):  # fmt: skip
        kept = labels != 1
        assert torch.equal(getattr(part, f"{name}_images"), images[kept])
        assert torch.equal(getattr(part, f"{name}_labels"), torch.tensor([1, -1, 0])[labels[kept]])
    some = torch.arange(0, len(data.train_labels), 2)
    assert torch.equal(data.of_classes([0, 1, 2], some).train_images, data.train_images[some])
    assert data.of_classes([0, 1, 2]).name == data.name != part.name
    held = load_dataset(pair, hold_out=0.3)
    kept = held.held_labels != 1
    assert torch.equal(held.of_classes([0, 2]).held_images, held.held_images[kept])
    assert torch.equal(data.of_classes(torch.tensor([2, 0])).train_images, data.of_classes([2, 0]).train_images)
    for classes in ([0], [0, 0], [0, 3], [-1, 0], 1, ["1", "2"], [0.5, 1]):
        with pytest.raises(ValueError, match="classes: expected at least two of 0 to 2, each once, got"):
            data.of_classes(classes)


def test_what_is_taken_apart_is_joined_again(synthetic):
    one, two = synthetic.of_classes([0, 1]), synthetic.of_classes([2, 0])
    assert two.class_names == ("2", "0") and two.labels.tolist() == [1, 1, 0, 0]
    joined = SyntheticSet.join([one, two])
    assert joined.class_names == ("0", "1", "2") and joined.labels.tolist() == [0, 0, 1, 1, 0, 0, 2, 2]
    assert torch.equal(joined.images[:4], synthetic.images[:4]) and float(joined.lr) == pytest.approx(0.02)
    assert SyntheticSet.join([synthetic]).labels.tolist() == synthetic.labels.tolist()


def test_sets_for_different_networks_have_none_and_no_rate_in_common(synthetic):
    sets = [replace(synthetic, network=name) for name in ("mlp", "lenet")]
    joined = SyntheticSet.join(one for one in sets)
    assert (joined.network, joined.lr) == (None, None)
    assert SyntheticSet.join([sets[0], sets[0]]).network == "mlp"
    assert SyntheticSet.join([replace(sets[0], network=None), sets[1]]).lr is None


def test_label_logits_are_joined_by_the_classes_names(synthetic):
    logits = torch.randn(6, 3, generator=seeds.generator(1))
    logits[torch.arange(6), synthetic.labels] += 9
    soft = replace(synthetic, labels=logits)
    two = soft.of_classes([2, 0])
    assert torch.equal(two.labels, logits[[0, 1, 4, 5]][:, [2, 0]])
    joined = SyntheticSet.join([two, soft.of_classes([1, 2])])
    assert joined.class_names == ("2", "0", "1")
    torch.testing.assert_close(joined.labels[:4, :2], two.labels)
    torch.testing.assert_close(joined.labels[4:, [2, 0]], logits[[2, 3, 4, 5]][:, [1, 2]])
    assert joined.targets[:4, 2].max() < 1e-9 and joined.targets[4:, 1].max() < 1e-9


def test_sets_that_differ_are_refused(synthetic):
    other = replace(synthetic, preprocessing=replace(synthetic.preprocessing, mean=(0.1,)))
    small = replace(synthetic, images=synthetic.images[:, :, :8])
    soft = replace(synthetic, labels=torch.zeros(6, 3))
    with pytest.raises(ValueError, match="sets: expected one preprocessing, got different ones"):
        SyntheticSet.join([synthetic, other])
    for differing in (small, soft):
        with pytest.raises(ValueError, match="sets: expected images of one size and labels of one kind"):
            SyntheticSet.join([synthetic, differing])
    with pytest.raises(ValueError, match="sets: expected at least one"):
        SyntheticSet.join([])
    for given, kind in (("ab", "str"), ([synthetic, "run"], "str"), (3, "int")):
        with pytest.raises(TypeError, match=f"sets: expected synthetic sets, got {kind}"):
            SyntheticSet.join(given)
    with pytest.raises(ValueError, match="expected images, got texture"):
        SyntheticSet.join([replace(synthetic, parameterisation=2)])

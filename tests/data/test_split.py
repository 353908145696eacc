"""The test part that is drawn for data without one."""

import pytest
import torch

from ddfast.data.split import stratified_split


def test_every_class_gives_a_fifth_of_its_images_and_at_least_one():
    labels = torch.tensor([0] * 50 + [1] * 7 + [2] * 2)[torch.randperm(59, generator=torch.Generator().manual_seed(3))]
    train, test = stratified_split(labels, "abc")
    assert labels[test].bincount().tolist() == [10, 1, 1]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(59))
    assert test.tolist() == sorted(test.tolist()) and train.tolist() == sorted(train.tolist())


def test_a_split_is_the_same_every_time_and_another_one_for_another_seed():
    labels = torch.arange(100) % 4
    first, again, other = (stratified_split(labels, "abcd", seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_of_one_class_do_not_change_the_draw_of_another():
    labels = torch.tensor([0, 1] * 20)
    more = torch.cat([labels, torch.ones(11, dtype=torch.int64)])
    tests = [stratified_split(few, "ab")[1] for few in (labels, more)]
    assert torch.equal(tests[0][labels[tests[0]] == 0], tests[1][more[tests[1]] == 0])


def test_a_class_with_one_image_is_named():
    with pytest.raises(ValueError, match="class cat, dog has one image: expected at least 2"):
        stratified_split(torch.tensor([0, 1, 1, 2]), ("cat", "fox", "dog"))

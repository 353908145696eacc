"""The job that `ddfast distill` does with no options reaches what it promises."""

import ddfast


def test_digits_distilled_to_one_image_per_class_reach_90_percent(tmp_path):
    accuracy = ddfast.distill(output=tmp_path / "run", num_eval=3).accuracy
    assert accuracy["distilled"]["mean"] >= 90
    assert accuracy["distilled"]["mean"] >= accuracy["random_real"]["mean"] + 10
    assert accuracy["full_data"]["mean"] >= 97

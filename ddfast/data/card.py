"""The card of a set on the Hub: contents, how to train on it, accuracies, settings and licence."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ddfast.data.augment import NO_STRATEGY
from ddfast.data.ipc import in_words
from ddfast.data.synthetic import DEFAULT_LR, SyntheticSet

UNKNOWN = "unknown"
NOT_PLAIN = r"[^\w.+-]"  # a YAML string with such characters needs quotes
LICENCES = {  # of the original data, by the Hub's names
    "digits": "cc-by-4.0",  # UCI, optical recognition of handwritten digits
    "mnist": "cc-by-sa-3.0",
    "fashion-mnist": "mit",
}
SETTINGS = (
    "method", "ipc", "network", "iterations", "init", "syn_steps", "expert_epochs", "max_start_epoch", "num_experts",
    "lr_img", "lr_teacher", "batch_syn", "batch_real", "dsa_strategy", "zca", "seed",
)  # fmt: skip


def card(
    synthetic: SyntheticSet,
    repo_id: str,
    *,
    licence: str | None = None,
    has_table: bool = True,
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    transfer: Mapping[str, Any] | None = None,
) -> str:
    """Write the card in Markdown, with the Hub's metadata at the top.

    Args:
        licence: of the data that the set was distilled from; None to look it up by the data's name.
        has_table: whether the repository has data/train.parquet.
        config, summary, transfer: contents of the run folder's files.
    """
    config, summary, transfer = config or {}, summary or {}, transfer or {}
    source = config.get("dataset", UNKNOWN).rsplit("/", 1)[-1]
    licence = licence or LICENCES.get(source.lower().replace("_", "-"), UNKNOWN)
    method = config.get("method", UNKNOWN)
    unfinished = bool(config) and not summary
    parts = [
        _metadata(licence, len(synthetic), has_table),
        f"# {source}, distilled by {method}: {in_words(synthetic.ipc)}",
        f"{len(synthetic)} synthetic images of {len(synthetic.class_names)} classes in {synthetic.bytes:,} bytes, made "
        "by [dataset distillation](https://arxiv.org/abs/1811.10959) with `ddfast`: a small training set, learned from "
        "a large one."
        + (f"\n\n**Warning**: {summary['useless']}" if summary.get("useless") else "")
        + ("\n\n**The run has not finished**: the images are an intermediate result." if unfinished else ""),
        "![The synthetic images](images.png)",
        "## Train on it",
        _training(synthetic, repo_id),
        "## Accuracy",
        _accuracies(summary, transfer),
        "## How it was made",
        _settings(config),
        "## Licence",
        f"Licence of the source images ({source}): {licence}. "
        + ("Ask its owner before you share the set." if licence == UNKNOWN else "The set has the same licence."),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(licence: str, count: int, has_table: bool) -> str:
    size = next(words for most, words in ((1000, "n<1K"), (10000, "1K<n<10K"), (10**9, "10K<n<100K")) if count < most)
    lines = [
        "---",
        f"license: {json.dumps(licence) if re.search(NOT_PLAIN, licence) else licence}",
        "task_categories:",
        "- image-classification",
        "tags:",
    ]
    lines += ["- dataset-distillation", "- ddfast", "size_categories:", f"- {size}"]
    if has_table:
        lines += ["configs:", "- config_name: default", "  data_files: data/train.parquet"]
    return "\n".join([*lines, "---"])


def _training(synthetic: SyntheticSet, repo_id: str) -> str:
    (H, W), C = synthetic.image_size, len(synthetic.preprocessing.mean)
    lr = DEFAULT_LR if synthetic.lr is None else float(synthetic.lr)
    network = synthetic.network or "convnet"
    sizes = f"channels={C}, num_classes={len(synthetic.class_names)}, image_size=({H}, {W})"
    code = f"""```python
import ddfast, torch

synthetic = ddfast.SyntheticSet.from_hub({json.dumps(repo_id)})
net = ddfast.networks.create({json.dumps(network)}, {sizes})
optimizer = torch.optim.SGD(net.parameters(), lr={lr:.4g}, momentum=0.9, weight_decay=5e-4)
for epoch in range(1000):
    for images, targets in torch.utils.data.DataLoader(synthetic.as_dataset(), batch_size=256, shuffle=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), targets).backward()
        optimizer.step()
```"""
    strategy = synthetic.dsa_strategy
    augmented = "" if strategy == NO_STRATEGY else f" Augment training images by `{strategy}`."
    test = f"Preprocess test images like the set: `synthetic.preprocessing.apply(images)`.{augmented}"
    return f"{code}\n\n{test} `ddfast.evaluate` does all of this; `ddfast evaluate` prints a table."


def _accuracies(summary: Mapping[str, Any], transfer: Mapping[str, Any]) -> str:
    rows = []
    protocol = (summary.get("evaluation") or {}).get("protocol", UNKNOWN)
    for trained_on, row in summary.get("accuracy", {}).items():
        for network, found in row["networks"].items():
            rows.append((protocol, network, trained_on.replace("_", " "), found["mean"], found["std"]))
    for row in transfer.get("rows", []):
        rows.append((transfer.get("protocol", UNKNOWN), row["network"], row["trained_on"], row["mean"], row["std"]))
    if not rows:
        return "Not measured."
    lines = ["| protocol | network | trained on | test accuracy |", "|---|---|---|---|"]
    for *cells, mean, std in rows:
        lines.append(f"| {' | '.join(cells)} | {mean:.1f} ± {std:.1f} |")
    return "\n".join(lines)


def _settings(config: Mapping[str, Any]) -> str:
    known = [(name, config[name]) for name in SETTINGS if config.get(name) is not None]
    if not known:
        return "Not recorded."
    lines = ["| setting | value |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in known)]
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    return "\n".join(lines) + (f"\n\n{versions}" if versions else "")

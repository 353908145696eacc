"""How far TESLA's approximate meta-gradient is from the exact one: the table of docs/methods.md.

python -m benchmarks.detached

The usual ConvNet, an expert of the subset of CIFAR-10 that benchmarks.methods uses, random real images, one per class,
DSA, α = 0.01; medians over the draws.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import ddfast
from benchmarks.measure import described
from benchmarks.methods import subset
from ddfast.data.augment import FULL_STRATEGY
from ddfast.studies import gradient_error


def main() -> None:
    """Print the table."""
    data = subset()
    store = ddfast.train_experts(data, num_experts=1, train_epochs=3, batch_train=64, train_lr=0.01)
    with TemporaryDirectory() as folder:
        table = gradient_error(data, store, Path(folder), dsa_strategy=FULL_STRATEGY)
    print(described("python -m benchmarks.detached"), "\n")
    print("| steps | cosine of the image gradients | ratio of their norms | ratio of the gradients in α |")
    print("|---|---|---|---|")
    for row in table["rows"]:
        cells = [
            f"{row[name]:.3f} ({row[f'least_{name}']:.3f} to {row[f'largest_{name}']:.3f})"
            for name in ("cosine", "norms", "rates")
        ]
        print(f"| {row['steps']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""Own data, no option but --dataset and --ipc: random real, distilled and full data, on folders made of real images.

    python -m benchmarks.own_data benchmarks/results/own-data [--imagenette FOLDER] [--only NAME,…]

DDFAST_DATA names the folder of CIFAR-10 and MNIST. What was done is not done again; what was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps

from benchmarks.lines import append_line, read_lines
from ddfast.data import load_dataset

Pictures = Iterator[tuple[str, str, Image.Image]]  # split, class, picture
TESTED = 200  # test images per class


def of_named(name: str, per_class: int | dict[int, int], classes: range | tuple[int, ...] = range(10)) -> Pictures:
    """The first images of each class of a named set."""
    data = load_dataset(name)
    counts = per_class if isinstance(per_class, dict) else {}
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        for k in classes:
            most = (counts.get(k, 200) if counts else per_class) if split == "train" else TESTED
            for image in images[labels == k][:most]:
                pixels = image if image.dtype == torch.uint8 else (255 * image).round().byte()
                yield split, data.class_names[k], Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def turned(name: str, per_class: int) -> Pictures:
    """Many classes: those of a named set, each turned by quarters, as they are and as negatives."""
    for split, label, picture in of_named(name, per_class):
        for quarter in range(4):
            image = picture.rotate(90 * quarter)
            yield split, f"{label}-{quarter}", image
            yield split, f"{label}-{quarter}-negative", ImageOps.invert(image)


def of_folder(folder: Path, side: int) -> Pictures:
    """The pictures of a folder, smaller."""
    for path in sorted(folder.glob("*/*/*.*")):
        split, name, _ = path.relative_to(folder).parts
        yield split, name, Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)


def sets(imagenette: Path | None) -> dict[str, Callable[[], Pictures]]:
    """The data sets, by name."""
    made: dict[str, Callable[[], Pictures]] = {
        "mnist-50": lambda: of_named("mnist", 50),
        "mnist-200": lambda: of_named("mnist", 200),
        "cifar10-50": lambda: of_named("cifar10", 50),
        "cifar10-500": lambda: of_named("cifar10", 500),
        "cifar10-5000": lambda: of_named("cifar10", 5000),
        "two-classes": lambda: of_named("cifar10", 200, (3, 5)),
        "one-small-class": lambda: of_named("cifar10", {0: 20}),
        "digits": lambda: of_named("digits", 100),
        "80-classes": lambda: turned("mnist", 20),
    }
    if imagenette is not None:
        made["imagenette-64"] = lambda: of_folder(imagenette, 64)
        made["imagenette-128"] = lambda: of_folder(imagenette, 128)
    return made


def write(pictures: Pictures, folder: Path) -> None:
    """Pictures as an image folder."""
    for number, (split, name, picture) in enumerate(pictures):
        path = folder / split / name / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (folder / "written").touch()


def run(name: str, folder: Path, output: Path, ipc: int) -> dict:
    """One run of the command line, with no other option."""
    began = time.time()
    command = ["distill", "--dataset", str(folder), "--ipc", str(ipc)]
    where = output / f"{name}-ipc{ipc}"
    done = subprocess.run(
        [sys.executable, "-m", "ddfast", *command, "--output", str(where), "--resume"],
        stdout=subprocess.PIPE,
        stderr=(output / f"{name}-ipc{ipc}.log").open("a"),
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{name}: exit status {done.returncode}\n{done.stdout}")
    summary = json.loads((where / "summary.json").read_text())
    config = json.loads((where / "config.json").read_text())
    rows = summary["accuracy"]
    named = ("network", "num_experts", "batch_train", "expert_epochs", "max_start_epoch", "iterations", "eval_epochs")
    return {
        "set": name,
        "ipc": ipc,
        "status": done.returncode,
        "minutes": (time.time() - began) / 60,
        **{key: [rows[key]["mean"], rows[key]["std"], rows[key]["n"]] for key in rows},
        **{key: config[key] for key in (*named, "num_eval", "lr_teacher", "lr_img", "threads", "versions")},
    }


def table(rows: list[dict]) -> str:
    """As Markdown."""

    def accuracy(row: dict, key: str) -> str:
        mean, std, n = row[key]
        return f"{mean:.1f} ± {std:.1f}" if n > 1 else f"{mean:.1f}"

    lines = [
        "| set | ipc | random real | distilled | full data | minutes | network, experts, iterations | exit status |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["set"], row["ipc"], *(accuracy(row, key) for key in ("random_real", "distilled", "full_data"))]
        how = f"{row['network']}, {row['num_experts']}, {row['iterations']}"
        lines.append(f"| {' | '.join(map(str, [*cells, round(row['minutes'], 1), how, row['status']]))} |")
    return "\n".join(lines)


def main() -> None:
    """Make the sets, run what was not run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--imagenette", type=Path, help="A folder with train/ and val/, a folder per class.")
    parser.add_argument("--only", help="Names, separated by commas.")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/own-data"), help="Pictures and runs.")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DDFAST_CACHE", str((asked.work / "cache").resolve()))
    results = asked.output / "results.jsonl"
    rows = read_lines(results)
    for name, pictures in sets(asked.imagenette).items():
        if (asked.only and name not in asked.only.split(",")) or (name, asked.ipc) in [
            (r["set"], r["ipc"]) for r in rows
        ]:
            continue
        folder = asked.work / name
        if not (folder / "written").exists():
            write(pictures(), folder)
        rows.append(run(name, folder, asked.work, asked.ipc))
        append_line(results, rows[-1])
        print(table(rows[-1:]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

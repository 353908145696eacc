"""Methods at equal minutes: accuracy over the time of their iterations, and a picture.

python -m benchmarks.equal_minutes benchmarks/results/equal_minutes --data mnist --ipc 1 --minutes 5
python -m benchmarks.equal_minutes FOLDER --data cifar10 --methods mtt,plain_mtt

By default trajectory matching and BPTT; `plain_mtt` is MTT in plain PyTorch, with the same experts and draws.

Each method's iterations take so many minutes of a processor, by three that are timed first; with OMP_NUM_THREADS=1
they are minutes of one core, whatever else the machine does. Experts are trained once, and their time stands beside.
A line of results.jsonl per evaluation; what is there already is not run again.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from statistics import fmean

import ddfast
from benchmarks.lines import read_lines
from benchmarks.measure import described
from benchmarks.plain_mtt import PlainMTT
from benchmarks.processor_time import time_iterations_by_processor
from ddfast.methods import MTT

EXPERTS = ("--num-experts", "2", "--train-epochs", "5", "--no-zca", "--preset", "mtt/cifar10/ipc1")
FAST = {"init": "real", "lr_img": 0.01}  # ten times the published rate: iterations are few
SEGMENTS = {"syn_steps": 20, "expert_epochs": 1, "protocol": "ddfast"}
METHODS = {
    "mtt": SEGMENTS,
    "plain_mtt": SEGMENTS,
    "rat_bptt": {**FAST, "total_steps": 100, "window": 30, "batch_real": 512, "protocol": "bptt"},
}


def run(
    method: str, data: str, ipc: int, minutes: float, seed: int, points: int, evaluation: dict, folder: Path
) -> list[dict]:
    """So many accuracies on the way, by minutes of iterations, and the last one."""
    options = {
        "method": method.removeprefix("plain_"),
        "ipc": ipc,
        "seed": seed,
        "zca": False,
        **METHODS[method],
        **evaluation,
    }
    if METHODS[method] is SEGMENTS:
        options |= {"max_start_epoch": 1 if data == "mnist" else 4, "batch_syn": min(50, 10 * ipc)}
        began = time.perf_counter()
        store = folder / "experts" / data
        command = [sys.executable, "-m", "ddfast", "experts", "--dataset", data, *EXPERTS, "--output", str(store)]
        subprocess.run(command, check=True)
        print(f"experts: {(time.perf_counter() - began) / 60:.1f} min, or there already", flush=True)
        options["experts"] = store
    name = folder / "runs" / f"{data}-ipc{ipc}-{method}-{seed}"
    trial = ddfast.distill(data, output=f"{name}-trial", resume=True, iterations=4, **options)
    each = fmean(record["seconds"] for record in trial.history[1:])
    count = max(points, int(60 * minutes / each))
    result = ddfast.distill(
        data, output=name, resume=True, iterations=count, eval_every=max(1, count // points), **options
    )
    passed, seconds = {0: 0.0}, 0.0
    for record in result.history:
        seconds += record["seconds"]
        passed[record["iteration"]] = seconds / 60
    lines = [json.loads(line) for line in (name / "evaluations.jsonl").read_text().splitlines()]
    lines.append({"iteration": count, **{k: result.accuracy["distilled"][k] for k in ("mean", "std")}})
    peak = max(record["peak_bytes"] for record in result.history) / 2**20
    common = {"data": data, "ipc": ipc, "method": method, "seed": seed, "minutes_asked": minutes, "peak_mib": peak}
    random_real = result.accuracy["random_real"]["mean"]
    return [
        common
        | {"iteration": line["iteration"], "minutes": passed[line["iteration"]]}
        | {"accuracy": line["mean"], "random_real": random_real}
        for line in lines
    ]


def picture(lines: list[dict], file: Path) -> None:
    """Accuracy over minutes, of every data set and number of images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = sorted({(line["data"], line["ipc"]) for line in lines})
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5 * len(cases), 3.6), squeeze=False)
    for (data, ipc), axis in zip(cases, axes[0], strict=True):
        for method, marker in zip(METHODS, "o^s", strict=True):
            of = [line for line in lines if (line["data"], line["ipc"], line["method"]) == (data, ipc, method)]
            for seed in sorted({line["seed"] for line in of}):
                points = sorted((line["minutes"], line["accuracy"]) for line in of if line["seed"] == seed)
                axis.plot(*zip(*points, strict=True), marker=marker, label=f"{method}, seed {seed}")
        case = next(line for line in lines if (line["data"], line["ipc"]) == (data, ipc))
        axis.axhline(case["random_real"], color="grey", linestyle=":", label="random real images")
        axis.set(title=f"{data}, {ipc} per class", xlabel="minutes of one core", ylabel="test accuracy in %")
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run what is missing, and draw."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--points", type=int, default=6, help="evaluations on the way")
    parser.add_argument("--num-eval", type=int, default=2, help="networks of an evaluation, of 300 epochs each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default="mtt,rat_bptt")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    time_iterations_by_processor()
    file = options.folder / "results.jsonl"
    lines = read_lines(file)
    for method in options.methods.split(","):
        if method == "plain_mtt":  # a run of MTT, with another unroll
            MTT.unrolled = PlainMTT.unrolled
        key = {"data": options.data, "ipc": options.ipc, "method": method, "seed": options.seed}
        if not any(line.items() >= key.items() for line in lines):
            evaluation = {"num_eval": options.num_eval, "eval_epochs": 300}
            what = (method, options.data, options.ipc, options.minutes, options.seed)
            lines += run(*what, options.points, evaluation, options.folder)
            file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    picture(lines, options.folder / "accuracy.png")
    text = [described(" ".join(["python -m benchmarks.equal_minutes", *sys.argv[1:]])), ""]
    text += [
        "| data | ipc | method | seed | minutes | accuracy | random real | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [line[k] for k in ("data", "ipc", "method", "seed")]
        cells += [f"{line[k]:.1f}" for k in ("minutes", "accuracy", "random_real")] + [f"{line['peak_mib']:.0f}"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    (options.folder / "table.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    sys.exit(main())

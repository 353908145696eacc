"""Tables of what the parts wrote: table.md, results.json, and a short one to print last."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import FAILED, INTERRUPTED, PARTS
from benchmarks.lines import read_lines

CHECKS = ("suite", "correctness")  # parts that must have checked something
Lines = list[dict[str, Any]]


def collected(output: Path, ended: dict[str, dict]) -> dict[str, dict]:
    """Of every part that has results in the folder, of this call or an earlier one: how it ended, and its lines."""
    parts = {}
    for part in PARTS:
        file = output / f"{part.name}.jsonl"
        if part.name in ended or file.exists():
            before = {"status": "of an earlier call", "seconds": None, "limit": None}
            parts[part.name] = {**ended.get(part.name, before), "lines": read_lines(file)}
    return parts


def problems(parts: dict[str, dict]) -> list[str]:
    """What failed, in words."""
    found = []
    for name, part in parts.items():
        if part["status"].startswith((FAILED, INTERRUPTED)):
            found.append(f"{name}: {part['status']}, see {name}.log")
        for line in part["lines"]:
            if line.get("ok") is False:
                words = " ".join(str(line[key]) for key in ("name", "size", "row", "precision") if key in line)
                found.append(f"{name}: {words}: {line.get('why', 'failed')}")
        if name in CHECKS and not checked(name, part["lines"]):
            found.append(f"{name}: nothing was checked ({part['status']}), see {name}.log")
    return found


def checked(name: str, lines: Lines) -> int:
    """How many checks passed or failed."""
    return sum("ok" in line or line.get("outcome") == "passed" for line in lines)


def number(value: float | None, form: str = ".3g") -> str:
    """For a cell; empty where there is none."""
    return "" if value is None or value != value else format(value, form)


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    """Markdown; empty without rows."""
    texts = [f"| {' | '.join(map(str, row))} |" for row in rows]
    names = head.split(" | ")
    return "\n".join([f"| {head} |", "|---" * len(names) + "|", *texts, ""]) if texts else ""


def correctness(lines: Lines) -> str:
    """A row per op, size and precision."""
    rows = []
    for line in lines:
        if "ok" in line:
            errors = (number(line.get(key), ".1e") for key in ("error", "rest", "of_reference"))
            size = line.get("size", ""), line.get("precision", "")
            rows.append((line["name"], *size, *errors, "yes" if line["ok"] else line["why"]))
    return table("op | size | precision | error against float64 | without outliers | of the reference | passed", rows)


def kernels(lines: Lines) -> str:
    """A row per op, size and precision, and a sentence on the device."""
    text = ""
    for line in lines:
        if line["name"] == "device":
            rates = ", ".join(f"{rate / 1e12:.3g} ({name})" for name, rate in line["flops_per_second"].items())
            text = f"A copy moves {line['bytes_per_second'] / 1e9:.4g} GB/s; products of matrices: {rates} TFLOP/s."
            text += (
                f" The maker's figure of the {line['maker'][0]}: {line['maker'][1] / 1e9:.4g} GB/s."
                if line["maker"]
                else ""
            )
    rows = []
    for line in lines:
        if "us" in line:
            shares = (number(line.get(key), ".0%") for key in ("of_peak", "of_copy", "of_matrices"))
            times = number(line["us"], ".4g"), number(line.get("predicted_us"), ".4g")
            speed = number(line["bytes_per_second"] / 1e9, ".4g")
            rows.append((line["name"], line["size"], line["precision"], *times, speed, *shares))
    head = "op | size | precision | µs | predicted µs | GB/s | of the peak | of a copy | of matrices"
    return f"{text}\n\n{table(head, rows)}"


def meta_gradient(lines: Lines) -> str:
    """A row per setting, precision and way."""
    rows = []
    for line in lines:
        if "row" in line:
            times = (number(line.get(key), ".4g") for key in ("ms", "baseline_ms"))
            ratio = number(line.get("speed_up"), ".2f") + ("×" if line.get("speed_up") else "")
            memory = number(line.get("mib"), ".4g"), number(line.get("of_memory"), ".3f")
            errors = (number(line.get(key), ".1e") for key in ("error", "error_of_eager", "apart"))
            words = line.get("why") or (f"no ratio: eager {line['baseline_why']}" if "baseline_why" in line else "")
            rows.append((line["name"], line["precision"], line["row"], *times, ratio, *memory, *errors, words))
    head = "setting | precision | ddfast, or eager | ms | eager ms | speed-up | MiB | of eager | error against float64"
    return table(f"{head} | of eager | apart | ", rows)


def side_by_side(lines: Lines) -> str:
    """Of experts and evaluation."""
    rows = []
    for line in lines:
        if "speed_up" in line:
            words = (
                f"{line['networks']} × batch of {line['batch']}" if "networks" in line else f"{line['epochs']} epochs"
            )
            name, against = line.get("row", line["name"]), line.get("against", "eager, one by one")
            hours = number(line.get("hours"), ".3g")
            values = number(line["ms"], ".4g"), number(line["baseline_ms"], ".4g"), f"{line['speed_up']:.2f}×"
            rows.append((name, words, against, *values, number(line["error"], ".1e"), hours))
    return table(
        "row | size | against | ms | its ms | speed-up | error against float64 | hours for 100 × 50 epochs", rows
    )


def cifar(lines: Lines) -> str:
    """Accuracy over time."""
    rows = []
    for line in lines:
        if line["name"] == "evaluation":
            rows.append(
                (line["iteration"], number(line["seconds"], ".0f"), f"{line['accuracy']:.1f} ± {line['std']:.1f}")
            )
        elif line["name"] == "result":
            for name, (mean, std) in line["accuracy"].items():
                rows.append(
                    (f"{line['iterations']}, {name}", number(line["seconds"], ".0f"), f"{mean:.1f} ± {std:.1f}")
                )
        elif "skipped" in line:
            rows.append(("not run", "", line["skipped"]))
    counts = [f"{line['count']} experts" for line in lines if line["name"] == "experts"][-1:]
    counts += [f"{line['train']} training images" for line in lines if "train" in line]
    return ", ".join(counts) + "\n\n" + table("iterations | seconds | test accuracy", rows)


TABLES = {
    "correctness": correctness,
    "kernels": kernels,
    "meta_gradient": meta_gradient,
    "experts": side_by_side,
    "evaluation": side_by_side,
    "cifar": cifar,
}


def gist(name: str, lines: Lines) -> str:
    """What matters most of a part, in a cell."""
    if name == "suite":
        outcomes = [line.get("outcome") for line in lines]
        return ", ".join(f"{outcomes.count(word)} {word}" for word in ("passed", "failed", "skipped"))
    if name == "correctness":
        checks = [line["ok"] for line in lines if "ok" in line]
        return f"{sum(checks)} of {len(checks)} right"
    if name == "kernels":
        shares = [line.get("of_peak", line["of_copy"]) for line in lines if line["name"].startswith("norm_relu_pool")]
        return f"norm_relu_pool: {min(shares):.0%} to {max(shares):.0%} of the bandwidth" if shares else ""
    if name == "cifar":
        means = [(line["accuracy"], line["seconds"]) for line in lines if line["name"] == "evaluation"]
        means += [(line["accuracy"]["distilled"][0], line["seconds"]) for line in lines if line["name"] == "result"]
        skipped = [line["skipped"] for line in lines if "skipped" in line]
        return f"{means[-1][0]:.1f}% after {means[-1][1]:.0f} s" if means else "".join(skipped)[:100]
    ratios = [
        line["speed_up"] for line in lines if "speed_up" in line and not line.get("row", "").startswith("eager, g")
    ]
    return f"speed-up {min(ratios):.2f}× to {max(ratios):.2f}×" if ratios else ""


def write(output: Path, ended: dict[str, dict], words: dict[str, Any]) -> tuple[str, list[str]]:
    """Write the files; the short table, and what failed."""
    parts = collected(output, ended)
    failed = problems(parts)
    machine = next((line["described"] for part in parts.values() for line in part["lines"] if "described" in line), "")
    results = {**words, "machine": machine, "problems": failed, "parts": parts}
    (output / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    rows = [
        (part, of["status"], number(of["seconds"], ".0f"), number(of["limit"], ".0f"), gist(part, of["lines"]))
        for part, of in parts.items()
    ]
    short = table("part | ended | seconds | limit | ", rows)
    text = [machine, "", short, *(f"- {problem}" for problem in failed), ""]
    for part in PARTS:
        if part.name in parts and part.name in TABLES:
            text += [f"**{part.words}**", "", TABLES[part.name](parts[part.name]["lines"]), ""]
    (output / "table.md").write_text("\n".join(text), encoding="utf-8")
    return short, failed

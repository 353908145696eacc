"""Put the tables under benchmarks/results into benchmarks/README.md, below its line "## CPU".

python -m benchmarks.tables
"""

from pathlib import Path

HERE = Path(__file__).parent
MARK = "## CPU\n"
WORDS = """
The machine is shared, and its speed changes within these runs: times of rows differ, the speed-ups are those of pairs.
No environment variable helps either side.
"""
AVX2 = "\n### Held to AVX2\n\n`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`, on the same machine.\n"
OF_STEPS = ("meta_10x20", "meta_100x10", "meta_128", "experts", "evaluate")
PARTS = (
    ("cpu-2-threads", "", (*OF_STEPS, "compiled")),
    ("cpu-2-threads-avx2", AVX2, OF_STEPS),
    ("cpu-2-threads", "\n### Networks of other code\n", ("networks",)),
    ("cpu-2-threads", "\n### Steps on real images\n", ("real_images", "bptt")),
    ("cpu-2-threads", "\n### Ops\n", ("conv3x3", "norm_relu_pool", "gradient_distance", "param_distance")),
)


def main() -> None:
    """Rewrite the README."""
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8").partition(MARK)[0] + MARK + WORDS
    for folder, title, names in PARTS:
        text += title
        for name in names:
            table = HERE / "results" / folder / f"{name}.md"
            if table.exists():
                text += f"\n{table.read_text(encoding='utf-8').strip()}\n"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

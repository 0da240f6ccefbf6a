"""Everything that needs a GPU, in one script: correctness, memory checks, tile choice, training numerics, benchmark.

    PYTHONPATH=kernels python kernels/run_on_gpu.py [--steps correctness,numerics,benchmark] [--lengths 16384,32768]

What it prints is also written to kernels/results/DATE-DEVICE.json (or --output FOLDER) and, as a table, into
kernels/README.md between its markers. Exit code 1 if any step fails; the steps after it still run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from videoseek_kernels.benchmark import correctness, suite, tiles
from videoseek_kernels.benchmark.numerics import SliceShape, loss_gap

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Rows = list[dict[str, Any]]


def environment() -> dict[str, str]:
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver.stdout.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def sanitize() -> Rows:
    """The smoke cases again, under compute-sanitizer's memory checker."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [{"tool": "compute-sanitizer", "not run": "not found on PATH"}]
    command = [tool, "--tool", "memcheck", "--error-exitcode", "3", sys.executable, __file__, "--steps", "smoke"]
    done = subprocess.run([*command, "--dry"], capture_output=True, text=True, timeout=540)
    summary = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    if done.returncode:
        raise AssertionError(f"compute-sanitizer: exit code {done.returncode}\n{done.stdout[-2000:]}")
    return [{"tool": "compute-sanitizer memcheck", "result": " ".join(summary).strip("= ")}]


def numerics() -> Rows:
    """Twenty steps of a random 7B-wide slice: our kernel and the composition against SDPA with a dense mask."""
    rows = []
    for impl in ("triton", "composition"):
        gaps = loss_gap(SliceShape(), impl, "cuda", torch.bfloat16)
        rows.append({"impl": impl, **{f"relative gap of {name}": f"{gap:.1e}" for name, gap in gaps.items()}})
    return rows


def benchmark(lengths: list[int], chosen: list[str]) -> Rows:
    rows: Rows = []
    for num_tokens in lengths:
        shape = suite.Shape((28, 4), 128, num_tokens)
        for name, mask in suite.masks(num_tokens).items():
            if not chosen or name in chosen:
                for row in suite.compare(shape, name, mask):
                    print(row, flush=True)
                    rows.append(row)
    return rows


def write_results(results: dict[str, Any], folder: Path) -> None:
    about = results["environment"]
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{about['date']}-{about['device'].replace(' ', '-')}"
    path = folder / f"{stem}.json"
    number = 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    path.write_text(json.dumps(results, indent=1) + "\n")
    readme = HERE / "README.md"
    text = readme.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    told = [", ".join(f"{name} {value}" for name, value in about.items()) + f"; from `results/{path.name}`."]
    for step, rows in results["steps"].items():
        told += [f"### {step}", suite.markdown(rows)]
    body = "\n\n".join(told)
    readme.write_text(f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    (folder / "README-table.md").write_text(body + "\n")
    print(f"wrote {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", default="correctness,sanitizer,builders,tiles,decode,numerics,benchmark")
    parser.add_argument("--lengths", default="16384,32768", help="tokens per row of the benchmark")
    parser.add_argument("--masks", default="", help="masks of the benchmark, all if empty")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--dry", action="store_true", help="write no files")
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    steps: dict[str, Callable[[], Rows]] = {
        "smoke": correctness.smoke,
        "correctness": correctness.two_times_rule,
        "sanitizer": sanitize,
        "builders": lambda: list(suite.time_builders([8192, 32768, 65536], "cuda")),
        "tiles": tiles.sweep,
        "decode": correctness.decode_bandwidth,
        "numerics": numerics,
        "benchmark": lambda: benchmark(lengths, [name for name in arguments.masks.split(",") if name]),
    }
    results: dict[str, Any] = {"environment": environment(), "steps": {}, "failures": {}}
    for step in arguments.steps.split(","):
        try:
            rows = steps[step]()
        except Exception:  # whatever a step dies of is a result, and the other steps still have theirs to give
            results["failures"][step] = traceback.format_exc()
            print(results["failures"][step], flush=True)
            continue
        results["steps"][step] = rows
        print(f"\n{step}\n{suite.markdown(rows)}", flush=True)
    if not arguments.dry:
        write_results(results, arguments.output)
    return int(bool(results["failures"]))


if __name__ == "__main__":
    sys.exit(main())

"""Everything that needs a GPU, in one script: correctness, tiles, decode, benchmark, training numerics, sanitizer.

    python kernels/run_on_gpu.py [--steps correctness,decode] [--lengths 16384] [--masks turns,spans]
    python kernels/run_on_gpu.py --report kernels/results/*.json

The first form writes each row, as soon as it is found, to a file of its own in kernels/results (or --output FOLDER).
Exit code 1 if any step fails; the steps after it still run. The second form needs no GPU: it puts what the given files
hold into kernels/README.md, between its markers, and every row into kernels/results/measured.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from kernel_bench import correctness, report, suite, tiles
from kernel_bench.numerics import SliceShape, compare_training
from kernel_bench.recording import Row, Step, run_steps

HERE = Path(__file__).resolve().parent
SANITIZER_SECONDS, HOPPER_SECONDS = 240, 90


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
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def sanitize() -> Iterator[Row]:
    """The smoke cases again, under compute-sanitizer's memory checker."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield {"tool": "compute-sanitizer", "not run": "not found on PATH"}
        return
    # Torch's allocator would hide a read past the end of one tensor in the next; API errors are torch's own probing.
    command = [tool, "--tool", "memcheck", "--error-exitcode", "3", "--report-api-errors", "no"]
    command += [sys.executable, __file__, "--steps", "smoke", "--dry"]
    variables = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    yield {"tool": "compute-sanitizer memcheck", **run_in_time(command, variables, SANITIZER_SECONDS)}


def try_hopper() -> Iterator[Row]:
    """The Hopper forward in a process of its own: warps that wait for each other for ever would stop this one too."""
    if torch.cuda.get_device_capability()[0] != 9:
        yield {"case": "Hopper forward", "not run": "not a Hopper GPU"}
        return
    command = [sys.executable, __file__, "--steps", "hopper-cases", "--dry"]
    yield {"case": "Hopper forward", **run_in_time(command, dict(os.environ), HOPPER_SECONDS)}


def run_in_time(command: list[str], variables: dict[str, str], seconds: float) -> Row:
    """What a command says in its ERROR SUMMARY, or at its end; it is killed, with its children, when time is over."""
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"not run": f"not done after {seconds:g} s"}
    lines = said.splitlines() or [""]
    summary = " ".join(line.strip("= ") for line in lines if "ERROR SUMMARY" in line) or lines[-1]
    if process.returncode:
        return {"result": summary, "failed": f"exit code {process.returncode}: {said[-2000:]}"}
    return {"result": summary}


def benchmark(lengths: list[int], masks_named: str, hopper: bool) -> Iterator[Row]:
    """Every mask, or those named, at every length; one that cannot be built or run does not stop the next."""
    chosen = [name for name in masks_named.split(",") if name]
    for num_tokens in lengths:
        shape = suite.Shape((28, 4), 128, num_tokens)
        masks = {name: mask for name, mask in suite.masks(num_tokens).items() if not chosen or name in chosen}
        for name, mask in masks.items():
            about = {"shape": str(shape), "mask": name}
            # Searching FlexAttention's tiles takes a minute: one mask tells what it is worth.
            tuned = num_tokens == 16384 and name == "packed turns"
            yield from suite.guarded(suite.compare(shape, name, mask, tuned=tuned, hopper=hopper), about)
            if name == "group of 8":
                yield from suite.guarded(suite.shared_prefix(shape), about)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_steps = "smoke,correctness,builders,tiles,decode,benchmark,numerics,hopper,sanitizer"
    parser.add_argument("--steps", default=default_steps, help=f"in this order; default {default_steps}")
    parser.add_argument("--lengths", default="16384,32768", help="tokens per row of the benchmark")
    parser.add_argument("--masks", default="", help="masks of the benchmark, all if empty")
    parser.add_argument("--hopper", action="store_true", help="tiles and benchmark with the Hopper forward too")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--dry", action="store_true", help="write no files")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="put results into the README; no GPU")
    arguments = parser.parse_args()
    if arguments.report:
        report.write(arguments.report, HERE / "README.md", HERE / "results" / "measured.md")
        return 0

    lengths = [int(length) for length in arguments.lengths.split(",")]
    known: dict[str, Step] = {
        "smoke": correctness.smoke,
        "correctness": correctness.correctness,
        "hopper": try_hopper,
        "hopper-cases": correctness.hopper_correctness,
        "builders": lambda: suite.time_builders([8192, 32768, 65536], "cuda"),
        "tiles": lambda: tiles.sweep(arguments.hopper),
        "decode": correctness.decode_bandwidth,
        "benchmark": lambda: benchmark(lengths, arguments.masks, arguments.hopper),
        "numerics": lambda: compare_training(SliceShape(), "cuda", torch.bfloat16),
        "sanitizer": sanitize,
    }
    chosen = arguments.steps.split(",")
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"--steps: {', '.join(unknown)} not among {', '.join(known)}")
    about = environment()
    stamp = about["date"][:19].replace(":", "")
    path = arguments.output / f"{stamp}-{about['device'].replace(' ', '-')}.json"
    return int(not run_steps({name: known[name] for name in chosen}, about, None if arguments.dry else path))


if __name__ == "__main__":
    sys.exit(main())

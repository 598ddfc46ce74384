"""Run the benchmark: ours and the peers side by side in one process.

    python -m benchmarks                      # everything, about 20 minutes on 2 cores
    python -m benchmarks --workload mlp 3c3d --pairs 3
    python -m benchmarks --table benchmarks/results/FILE.json

A ratio is the peer's time over ours: above 1 we are faster. The peers are installed with
`pip install -e ".[benchmark]"` and `pip install --no-deps vivit-for-pytorch==1.0.0`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import compare, peak_memory
from benchmarks.tasks import OURS, PEERS
from benchmarks.workloads import SHORT, build, training_step

PACKAGES = (
    "torch",
    "backpack-for-pytorch",
    "vivit-for-pytorch",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "nngeometry",
    "scipy",
)
TOLERANCE = 1e-4  # results that differ by more are marked in the table


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    machine = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        machine = models[0].partition(": ")[2] if models else machine
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return {
        "machine": machine,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }


def measure(short: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    rows: list[dict[str, Any]] = []
    name = SHORT[short]
    kind = "kernel" if short in ("cnn", "wide") else "eigenpairs"
    work = build(short).to(device)
    memory = memory_in_new_process(short, "ours", options)
    step = memory_in_new_process(short, "step", options)
    found = compare(OURS[kind](work), training_step(work), device, options.pairs, options.limit)
    rows.append(
        {
            "workload": name,
            "what": kind,
            "peer": "training step",
            "ours_s": found.ours,
            "peer_s": found.other,
            "ratio": found.ratio,
            "pairs": found.pairs,
            "steps": 1 / found.ratio,
            "memory_mib": memory,
            "step_memory_mib": step,
        }
    )
    report(rows[-1])
    for peer, (what, make, workloads) in PEERS.items():
        if short not in workloads or (options.peer and peer not in options.peer):
            continue
        work = build(short).to(device)
        ours = OURS[what](build(short).to(device))
        row: dict[str, Any] = {"workload": name, "what": what, "peer": peer}
        try:
            found = compare(ours, make(work), device, options.pairs, options.limit)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        else:
            row |= {
                "ours_s": found.ours,
                "peer_s": found.other,
                "ratio": found.ratio,
                "pairs": found.pairs,
                "deviation": found.deviation,
            }
        rows.append(row)
        report(row)
    return rows


def memory_in_new_process(short: str, what: str, options: argparse.Namespace) -> float | None:
    """Peak MiB over the model's own, in a process that has done nothing else; None if it died."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--memory", what]
    command += ["--workload", short, "--device", options.device]
    command += ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{SHORT[short]}: no memory of {what}: {done.stderr.strip()[-200:]}", flush=True)
        return None
    return float(done.stdout.split()[-1])


def mib(amount: float | None) -> str:
    return "unknown" if amount is None else f"{amount:.0f} MiB"


def print_memory(short: str, what: str, device: torch.device) -> None:
    kind = "kernel" if short in ("cnn", "wide") else "eigenpairs"
    warm = build("mlp").to(device)  # loads the libraries
    OURS["eigenpairs"](warm)()
    training_step(warm)()
    work = build(short).to(device)
    task = OURS[kind](work) if what == "ours" else training_step(work)
    print(peak_memory(task, device))


def report(row: dict[str, Any]) -> None:
    start = f"{row['workload']:<30} {row['what']:<12} {row['peer']:<22}"
    if "failed" in row:
        print(start, row["failed"], flush=True)
        return
    text = f"{start} ours {row['ours_s']:8.3f} s  peer {row['peer_s']:8.3f} s"
    if "steps" in row:
        text += f"  = {row['steps']:6.1f} training steps, {mib(row['memory_mib'])}"
    else:
        text += f"  ratio {row['ratio']:7.2f}  deviation {row['deviation']:.1e}"
    print(text, flush=True)


def apart(deviation: float | None) -> str:
    """How far the results differ; in bold where that is more than the tolerance."""
    if deviation is None:
        return "not compared"
    return f"{deviation:.0e}" if deviation <= TOLERANCE else f"**{deviation:.0e}**"


def table(path: Path) -> str:
    found = json.loads(path.read_text())
    where = found["environment"]
    lines = [
        f"{where['machine']}, {where['threads']} threads, torch {where['versions']['torch']}, "
        f"{where['date']}; medians; a ratio is the peer's time over ours.",
        "",
        "| workload | task | against | ours | peer | ratio | apart by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        start = f"| {row['workload']} | {row['what']} | {row['peer']} |"
        if "failed" in row:
            lines.append(f"{start} | | {row['failed'].partition(':')[0]} | |")
        elif "steps" in row:
            lines.append(
                f"{start} {row['ours_s']:.3f} s | {row['peer_s']:.3f} s | "
                f"{row['steps']:.1f} steps, {mib(row['memory_mib'])} | |"
            )
        else:
            lines.append(
                f"{start} {row['ours_s']:.3f} s | {row['peer_s']:.3f} s | {row['ratio']:.1f} | "
                f"{apart(row['deviation'])} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), help="only these peers")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs of each comparison")
    parser.add_argument("--limit", type=float, default=60, help="seconds for each comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="where to keep the results")
    parser.add_argument("--memory", choices=["ours", "step"], help="print the peak memory and stop")
    parser.add_argument("--table", type=Path, help="print the table of a kept run and stop")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    torch.set_num_threads(options.threads)
    torch.backends.mha.set_fastpath_enabled(False)  # the peers cannot differentiate it
    if options.memory:
        print_memory(options.workload[0], options.memory, torch.device(options.device))
        return
    where = environment(torch.device(options.device), options.threads)
    kept = f"{where['date']}-{torch.device(options.device).type}.json"
    out = options.out or Path(__file__).parent / "results" / kept
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for short in options.workload:  # kept after each, so that a long run is not lost
        rows += measure(short, options)
        out.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")
    print(f"\n{table(out)}\n\nKept in {out}")


if __name__ == "__main__":
    main()

"""Throughput and memory of `stampy embed` on a cohort of generated sections, killed half-way and resumed.

python benchmarks/cohort.py --sections 200 --spots 1000 --workers 2
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

import stampy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", type=int, default=200)
    parser.add_argument("--spots", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="stampy-mini")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = generate(Path(folder), asked.sections, asked.spots), Path(folder) / "out"
        command = [sys.executable, "-m", "stampy", "embed", str(manifest), "--out", str(out), "--modality", "gene",
                   "--workers", str(asked.workers), "--model", asked.model, "--quiet"]  # fmt: skip
        killed = run(command, until=lambda: done(out) >= asked.sections // 2)
        first = done(out)
        print(f"killed (SIGKILL) with {first} of {asked.sections} sections done after {killed['s']:.0f} s")
        time.sleep(1)
        print(f"worker processes left: {sum(alive(pid) for pid in killed['children'])}")
        resumed = run(command)
        table = pd.read_csv(out / "sections.tsv", sep="\t")
        counts = table["status"].value_counts().to_dict()
        print(f"resumed: {counts}, {table.loc[table['status'] == 'embedded', 'worker'].nunique()} workers")
        if counts.get("kept", 0) < first or counts.get("kept", 0) + counts.get("embedded", 0) != asked.sections:
            raise SystemExit("the run did not go on from what was there")
        again = run(command)
        check(manifest, out, asked.model)
        for name, what in (("killed", killed), ("resumed", resumed), ("again", again)):
            print(f"{name:8} {what['s']:6.1f} s  {what['cpu']:6.1f} s of CPU  peak of a process {what['mb']:.0f} MB")
        n = counts["embedded"]
        print(f"{n * asked.spots / resumed['s']:,.0f} spots a second, {n / resumed['s'] * 60:.0f} sections a minute")
        print(f"median seconds of a section: {table['seconds'].median():.3f}, load {os.getloadavg()[0]:.1f}")


def generate(folder: Path, n: int, spots: int) -> Path:
    """Write the sections and their manifest."""
    rows = ["path\tname"]
    for i in range(n):
        stampy.datasets.toy(n_spots=spots, rng=i, image=False).write_h5ad(folder / f"{i}.h5ad")
        rows.append(f"{i}.h5ad\tsection-{i:03d}")
    manifest = folder / "sections.tsv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def done(out: Path) -> int:
    return sum('"state": "done"' in p.read_text() for p in (out / ".stampy").glob("*.json"))


def run(command: list[str], until=None) -> dict:
    """Run to the end, or kill when `until` holds; returns time, CPU time and memory of the largest process."""
    began, peak, cpu, children = time.monotonic(), 0.0, {}, set()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        for pid in [process.pid, *descendants(process.pid)]:
            children |= {pid} - {process.pid}
            found = usage(pid)
            peak, cpu[pid] = max(peak, found[0]), max(cpu.get(pid, 0.0), found[1])
        if until is not None and until():
            process.send_signal(signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.3)
    else:
        if process.returncode:
            raise SystemExit(f"exit status {process.returncode}")
    return {"s": time.monotonic() - began, "mb": peak, "cpu": sum(cpu.values()), "children": children}


def descendants(pid: int) -> list[int]:
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(c) for c in own] + [d for c in own for d in descendants(int(c))]


def usage(pid: int) -> tuple[float, float]:
    """Resident memory in MB, and CPU seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6, (int(fields[11]) + int(fields[12])) / ticks


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def check(manifest: Path, out: Path, model: str) -> None:
    """Compare some sections with `tl.embed` on each alone."""
    rows = pd.read_csv(manifest, sep="\t")
    for _, row in rows.iloc[:: max(len(rows) // 3, 1)].iterrows():
        alone = anndata.read_h5ad(manifest.parent / row["path"])
        stampy.tl.embed(alone, model, modality="gene", show_progress_bar=False)
        found = anndata.read_h5ad(out / f"{row['name']}.h5ad")
        np.testing.assert_array_equal(found.obsm["X_stamp"], alone.obsm["X_stamp"])
    print("equal to the same sections embedded alone")


if __name__ == "__main__":
    main()

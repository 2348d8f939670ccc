"""Training steps and corpus reading compared with another version of stampy: ``python benchmarks/steps.py OTHER/src``.

Each version runs in its own process, and the two alternate step by step, so that other load affects both equally.
Reports median CPU times over the turns (all threads, including prepared batches), and the median of the differences.
Uses small models on toy sections; `benchmarks/train.py` and `align.py` measure those of the paper.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from reading import HERE, line

TURNS = 15
GENE = {"width": 128, "depth": 3, "heads": 4, "feedforward": 256, "max_tokens": 256, "groups_per_batch": 4}
TOWER = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"depth": 2}}
STAGES = ("stage 1, IGR", "stage 1, IGR + CGR", "stage 2", "corpus")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", help="src folder of the other version")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--only", default="", help="part of the name of what is measured")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    sources = [HERE] + ([Path(options.other).resolve()] if options.other else [])
    for stage in (name for name in STAGES if options.only in name):
        workers = [started(source, stage) for source in sources]
        times = [[] for _ in workers]
        for turn in range(-3, options.turns):  # three warm-up turns
            for k in range(len(workers)) if turn % 2 else reversed(range(len(workers))):
                seconds = asked(workers[k])
                if turn >= 0:
                    times[k].append(seconds)
        print(line(stage, times), flush=True)
        for worker in workers:
            worker.kill()
            worker.wait()


def started(source, stage):
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--worker", stage]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(worker):
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(stage):
    """Worker: run a step for each line of standard input, and print its CPU time."""
    import torch

    import stampy
    from stampy import train

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    toy = stampy.datasets.toy(n_spots=1500, image=stage == "stage 2")
    quiet = {"device": "cpu", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        if stage == "corpus":
            in_turn(reading(toy, folder))
            return
        if stage == "stage 2":
            first = {"epochs_igr": 1, "epochs_cgr": 0, "groups_per_batch": 200, "max_tokens": 8}
            start = train.pretrain(toy[:200].copy(), f"{folder}/1", config=GENE | first | {"width": 64}, **quiet)
            gated(torch.optim.AdamW)
            config = TOWER | {"epochs": 50, "pairs_per_batch": 24}
            train.align(toy, f"{folder}/2", model=start, config=config, **quiet)
        gated(torch.optim.AdamW)
        epochs = {"epochs_igr": 50, "epochs_cgr": 0} if stage == "stage 1, IGR" else {"epochs_igr": 0, "epochs_cgr": 50}
        train.pretrain(toy, folder, config=GENE | epochs, **quiet)


def gated(optimizer):
    """Make each step of the optimizer print the CPU time since the last one and wait for a line."""
    step, last = optimizer.step, []

    def waiting(self, *arguments, **options):
        result = step(self, *arguments, **options)
        now = time.process_time()
        if last:
            print(now - last.pop(), flush=True)
        last.append(now)
        if not sys.stdin.readline():
            sys.exit()
        return result

    optimizer.step = waiting


def in_turn(job):
    """Run a job for each line of standard input."""
    while sys.stdin.readline():
        began = time.process_time()
        job()
        print(time.process_time() - began, flush=True)


def reading(toy, folder):
    """Read an epoch of batches of stage 1 from a corpus."""
    from stampy.pp._vocabulary import packaged_vocabulary
    from stampy.train import Corpus, PretrainConfig

    options = {"vocabulary": packaged_vocabulary(), "n_workers": 1, "progress": False, "images": False}
    corpus = Corpus.build(toy, f"{folder}/corpus", **options)
    config = PretrainConfig()
    try:
        from stampy.train._corpus.training_data import groups_on_disk
        from stampy.train._samplers import GroupSampler

        sampler = GroupSampler(groups_on_disk(corpus, None, config), config)
    except ImportError:  # versions before 0.3
        from stampy.train._corpus_samplers import CorpusGroupSampler

        sampler = CorpusGroupSampler(corpus, config)
    return lambda: [sampler.batch(i) for _ in range(10) for i in range(sampler.steps_per_epoch)]


if __name__ == "__main__":
    main()

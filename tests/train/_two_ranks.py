"""Program of test_distributed.py for two processes: ``python -m torch.distributed.run ... _two_ranks.py OUT``."""

import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path


def main(out: Path) -> None:
    from test_distributed import SINGLE, STAGE1, STAGE2, halved, pairs, section

    from stampy import train

    quiet = {"device": "cpu", "progress": False}
    train.pretrain(section(), out / "ddp1", config=halved(STAGE1), **quiet)
    train.align(pairs(), out / "ddp2", model=out / "ddp1" / "model", config=halved(STAGE2), **quiet)
    train.pretrain(section(), out / "fsdp1", config=halved(SINGLE), strategy="fsdp", **quiet)
    if os.environ["RANK"] == "0":
        (out / "fsdp1" / "checkpoint-00000004.ckpt").unlink()
    train.pretrain(section(), out / "fsdp1", config=halved(SINGLE), strategy="fsdp", **quiet)  # resumes from step 2

    stopped(out, halved(STAGE1))


def stopped(out: Path, config: dict) -> None:
    """A run in which only the second process receives SIGTERM, in its third step, and that is then resumed."""
    from test_distributed import section

    from stampy import train
    from stampy.train._loop import loop

    rank, rate, code = os.environ["RANK"], loop._learning_rate, None

    def signalling(config, step, steps):
        if step == 2 and rank == "1":
            signal.raise_signal(signal.SIGTERM)
        return rate(config, step, steps)

    run = partial(train.pretrain, section(), out / "stopped", config=config, device="cpu", progress=False)
    loop._learning_rate = signalling
    try:
        run()
    except SystemExit as error:
        code = error.code
    loop._learning_rate = rate
    there = sorted(path.name for path in (out / "stopped").glob("checkpoint-*"))
    (out / f"stopped-{rank}.json").write_text(json.dumps({"code": code, "checkpoints": there}))
    run()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))

"""What test_distributed.py runs in each of two processes: ``python -m torch.distributed.run ... _two_ranks.py OUT``."""

import os
import sys
import warnings
from pathlib import Path


def main(out: Path) -> None:
    from test_distributed import SINGLE, STAGE1, STAGE2, halved, section

    from stampy import train

    quiet = {"device": "cpu", "progress": False}
    train.pretrain(section(), out / "ddp1", config=halved(STAGE1), **quiet)
    sections = [section(), section()[:, :0].copy()]
    train.align(sections, out / "ddp2", model=out / "ddp1" / "model", config=halved(STAGE2), **quiet)
    train.pretrain(section(), out / "fsdp1", config=halved(SINGLE), strategy="fsdp", **quiet)
    if os.environ["RANK"] == "0":
        (out / "fsdp1" / "checkpoint-00000004.ckpt").unlink()
    train.pretrain(section(), out / "fsdp1", config=halved(SINGLE), strategy="fsdp", **quiet)  # goes on from step 2


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))

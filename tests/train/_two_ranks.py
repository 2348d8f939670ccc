"""What test_distributed.py runs in each of two processes: ``python _two_ranks.py OUT`` becomes two, as torchrun's are.

It sets what torchrun sets, but forks: packages, whose import takes longer than the training, are imported once.
"""

import json
import os
import signal
import socket
import sys
import traceback
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


def launch(out: Path) -> int:
    """Run `main` in two processes; 0 if both ended well."""
    import test_distributed  # with it torch and stampy
    import timm  # noqa: F401

    from stampy.train import _align_run, _pretrain_run  # noqa: F401

    test_distributed.section()  # with it anndata

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    ranks = set()
    for rank in range(2):
        if pid := os.fork():
            ranks.add(pid)
            continue
        os.environ.update({name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()})
        try:
            main(out)
        except BaseException:  # noqa: BLE001  # whatever it was: this process must not go on as the first one
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    worst = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        worst = max(worst, abs(os.waitstatus_to_exitcode(status)))
        if worst:  # as torchrun does: the other would wait for ever
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return worst


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(launch(Path(sys.argv[1])))

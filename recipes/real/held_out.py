"""Stage 1 on real sections: masked genes of left-out sections along runs, with what should help.

    python recipes/real/pack.py FOLDER --out DATA                            # FOLDER: corpora of `stage1.py build`
    python recipes/real/held_out.py fit DATA --split sections --device cuda --out sections.jsonl
    python recipes/real/held_out.py fit DATA --split patients --device cuda --out patients.jsonl
    python recipes/real/held_out.py fit DATA --split sections --tiny --out tiny.jsonl     # a few minutes on a CPU

``sections``: of the HER2+ patients B, C, D, F and G one section each is reported (the others of the patient are in
training), and of the training cortex, of which there is one section, the right third; further sections and a strip of
the cortex choose the step. ``patients``: all sections of F and G are left out; F chooses the step for G, G for F.

Runs "without order" have no position embeddings: they predict from the set of visible genes, not from their ranks.

Every run appends a line of JSON: its settings, and losses along the run at hidden positions (15 % of a spot's 512, the
same in every run) of left-out sections, for the model and beside it for guesses by frequency: in all training sections,
in the patient's other sections, and in the section itself. ``evaluate_only``: sections that no setting was chosen on.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))
from bare import encoder_of, learning_rate, optimizer_of, outputs, set_rate

from stampy import _keys
from stampy.models._gene import MASK_ID, PAD_ID
from stampy.models._kernels.cross_entropy import cross_entropy_by_kind
from stampy.train._baselines import frequencies
from stampy.train._data import MemorySection
from stampy.train._spectral_start import start_spectral

CORTEX = "DLPFC_Br8325_ant"
SECTIONS = {
    "reported": ("HER2ST_B2", "HER2ST_C3", "HER2ST_D3", "HER2ST_F2", "HER2ST_G2"),
    "choosing": ("HER2ST_B5", "HER2ST_C5", "HER2ST_D5"),
}
PATIENTS = {"reported": ("HER2ST_G1", "HER2ST_G2", "HER2ST_G3"), "choosing": ("HER2ST_F1", "HER2ST_F2", "HER2ST_F3")}
MEASURED, FRACTION, EVERY, PATIENCE = 120, 0.15, 25, 8
SMALL = {"width": 128, "depth": 2, "heads": 4, "feedforward": 256, "dropout": 0.1}
RUN = {"breast": False, "start": "random", "frozen": False, "order": True, "thin": False, "cgr": False,
       "hide": "varied", "positions": 256, "lr": 1e-3, "weight_decay": 0.05, "batch": 198, "steps": 600,
       "seed": 0}  # fmt: skip
WITHOUT_ORDER = {"order": False, "steps": 5000}


def jobs_of() -> list[dict]:
    """Runs, the most telling first."""
    base = {"width": 256, "depth": 4, "heads": 8, "feedforward": 512}
    return [
        {"name": "linear, 64 components", "components": 64, "steps": 2500, "seed": 0},
        {"name": "width 128, depth 2", **SMALL, **RUN},
        {"name": "frozen svd", **SMALL, **RUN, "start": "svd", "frozen": True},
        {"name": "thinned", **SMALL, **RUN, "thin": True},
        {"name": "as before", **SMALL, **RUN, **base, "hide": "fixed", "steps": 400},
        {"name": "svd, thinned", **SMALL, **RUN, "start": "svd", "thin": True},
        {"name": "cgr of all genes", **SMALL, **RUN, "cgr": True},
        {"name": "frozen spectral", **SMALL, **RUN, "start": "spectral", "frozen": True},
        {"name": "svd, thinned, regularised", **SMALL, **RUN, "start": "svd", "thin": True, "dropout": 0.3,
         "weight_decay": 0.5},
        {"name": "frozen svd, wide, thinned", **SMALL, **RUN, "width": 256, "heads": 8, "feedforward": 512,
         "start": "svd", "frozen": True, "thin": True},
        {"name": "breast alone, thinned", **SMALL, **RUN, "breast": True, "thin": True},
        {"name": "linear, breast alone", "components": 64, "steps": 2500, "seed": 0, "breast": True},
        {"name": "linear, 256 components", "components": 256, "steps": 2500, "seed": 0},
        {"name": "depth 1", **SMALL, **RUN, "depth": 1},
        *({"name": f"without order, {name}", **SMALL, **RUN, **WITHOUT_ORDER, **own} for name, own in {
            "frozen svd": {"start": "svd", "frozen": True}, "random": {},
            "svd, thinned": {"start": "svd", "thin": True},
            "frozen svd, thinned, cgr": {"start": "svd", "frozen": True, "thin": True, "cgr": True},
            "wide": {**base, "start": "svd", "frozen": True, "thin": True},
        }.items()),
    ]  # fmt: skip


class Data:
    """Tokens of all sections, counts of the HER2+ ones, and which spots are for what."""

    def __init__(self, folder: Path, split: str, device: torch.device, tiny: bool):
        read = unpacked(folder / "tokens.npz.xz")
        self.device, self.divisors = device, read["divisors"]
        self.n_tokens = len(self.divisors) + _keys.N_SPECIAL
        ends = np.cumsum(read["n"])
        rows = {str(n): np.arange(end - k, end) for n, k, end in zip(read["names"], read["n"], ends, strict=True)}
        self.xy = read["xy"].astype(float)
        kept = {str(n) for n, part in zip(read["names"], read["where"], strict=True) if part == "kept"}
        self.parts = {"evaluate_only": {n: rows.pop(n) for n in list(rows) if n in kept}}
        if split == "sections":
            self._part_cortex(rows)
        for part, names in (SECTIONS if split == "sections" else PATIENTS).items():
            self.parts.setdefault(part, {}).update({n: rows.pop(n) for n in names})
        self.parts["training"] = rows
        if tiny:
            self.parts = {p: {n: r[:24] for n, r in own.items()} for p, own in self.parts.items()}
        check_apart(self.parts)
        self.host = read["tokens"].astype(np.int64)[:, : 64 if tiny else None]
        self.tokens = torch.from_numpy(self.host).to(device)
        self.trained = np.concatenate([*rows.values()] if not tiny else [*self.parts["training"].values()])
        self.counts = sum(frequencies(self.host[r], self.n_tokens) for r in self.parts["training"].values())
        sizes = dict(zip(map(str, read["names"]), read["n"].tolist(), strict=True))
        first = dict(zip(sizes, (ends - read["n"]).tolist(), strict=True))
        self._open_counts(folder, rows_of=first, sizes=sizes, kept=kept)
        rng = np.random.default_rng(7)
        self.measured = {p: {n: self._hidden(r, rng) for n, r in self.parts[p].items()}
                         for p in ("reported", "choosing", "evaluate_only")}  # fmt: skip

    def _part_cortex(self, rows: dict[str, np.ndarray]) -> None:
        """The left half of the cortex is trained on, a strip chooses, the right third is reported."""
        own = rows.pop(CORTEX)
        x = self.xy[own, 0]
        left, right = np.quantile(x, [0.5, 0.67])
        rows[f"{CORTEX}, left"] = own[x < left]
        self.parts["choosing"] = {f"{CORTEX}, strip": own[(x >= left) & (x < right)]}
        self.parts["reported"] = {f"{CORTEX}, right": own[x >= right]}

    def _open_counts(self, folder: Path, rows_of, sizes, kept) -> None:
        read = unpacked(folder / "counts.npz.xz")
        lengths = read["lengths"].astype(np.int64)
        steps = read["lo"].astype(np.int32) + 256 * read["hi"].astype(np.int32)
        starts = np.concatenate([[0], lengths.cumsum()])
        genes = np.cumsum(steps, dtype=np.int64)
        base = np.where(starts[:-1] > 0, genes[starts[:-1] - 1], 0)
        genes = (genes - np.repeat(base, lengths)).astype(np.int32)
        at = np.full(len(self.host), -1)
        n = 0
        for name, first in rows_of.items():
            if name.startswith("HER2ST_") and name not in kept:
                at[first : first + sizes[name]] = np.arange(n, n + sizes[name])
                n += sizes[name]
        if n != len(lengths):
            raise ValueError(f"Expected counts of {n} spots, found {len(lengths)}.")
        put = lambda x: torch.from_numpy(x).to(self.device)  # noqa: E731
        self.csr = put(genes), put(read["val"]), put(starts), put(at)
        self.level = put(self.divisors.astype(np.float32))

    def _hidden(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Some spots of a section, and what is hidden of them."""
        some = rows[rng.permutation(len(rows))[:MEASURED]]
        tokens = self.host[some]
        gone = (tokens != _keys.PAD) & (rng.random(tokens.shape) < FRACTION)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(gone).to(self.device)

    def thinned(self, rows: Tensor, low: float = 0.3) -> Tensor:
        """Tokens of spots, of those with counts after a binomial draw of a share of their molecules."""
        genes, values, starts, at = self.csr
        tokens, own = self.tokens[rows].clone(), at[rows]
        has = (own >= 0).nonzero()[:, 0]
        if not len(has):
            return tokens
        first, n = starts[own[has]], starts[own[has] + 1] - starts[own[has]]
        spot = torch.repeat_interleave(torch.arange(len(has), device=rows.device), n)
        place = torch.arange(len(spot), device=rows.device) - (n.cumsum(0) - n)[spot] + first[spot]
        share = low + (1 - low) * torch.rand(len(has), device=rows.device)
        left = torch.binomial(values[place].float(), share[spot])
        gene = genes[place].long()
        anomaly = torch.zeros(len(has), len(self.level), device=rows.device)
        anomaly[spot, gene] = left / self.level[gene]
        best, which = anomaly.topk(tokens.shape[1], dim=1)
        tokens[has] = torch.where(best > 0, which + _keys.N_SPECIAL, _keys.PAD)
        return tokens

    def guesses(self) -> dict[str, dict[str, float]]:
        """Losses of guesses by frequency at the hidden positions, by section."""
        everywhere = self.counts + 1
        found = {}
        for part, own in self.measured.items():
            for name, (tokens, gone) in own.items():
                targets = tokens[gone].cpu().numpy()
                known = {"all training sections": everywhere}
                same = [
                    r
                    for p in (part, "training")
                    for n, r in self.parts[p].items()
                    if patient(n) == patient(name) and n != name
                ]
                if same:
                    own_counts = sum(frequencies(self.host[r], self.n_tokens) for r in same)
                    known["other sections of the patient"] = own_counts + 2000 * everywhere / everywhere.sum()
                known["the section itself"] = frequencies(self.host[self.parts[part][name]], self.n_tokens)
                found[name] = {"part": part, "n": len(targets)} | {
                    k: float(-np.log(v[targets] / v.sum()).mean()) for k, v in known.items()
                }
        return found


def check_apart(parts: dict[str, dict[str, np.ndarray]]) -> None:
    """Raise ValueError if a spot is in two parts."""
    every = np.concatenate([rows for own in parts.values() for rows in own.values()])
    if len(np.unique(every)) != len(every):
        raise ValueError("A spot is in two parts of the data.")


def patient(name: str) -> str:
    return name[: len("HER2ST_A")]


def unpacked(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(lzma.decompress(path.read_bytes()))))


class Linear(nn.Module):
    """A softmax regression: log frequency, and a line for each gene in principal components of the visible genes."""

    def __init__(self, data: Data, components: int):
        super().__init__()
        often = present(data, data.trained).mean(dim=0)
        self.register_buffer("weights", -often.clamp(min=1e-4).log())
        with torch.no_grad():
            whole = self.bag(data.tokens[torch.from_numpy(data.trained).to(data.device)])
            torch.manual_seed(0)
            self.register_buffer("axes", torch.svd_lowrank(whole, q=components + 20, niter=4)[2][:, :components])
            scores = whole @ self.axes
        self.register_buffer("mean", scores.mean(dim=0))
        self.register_buffer("deviation", scores.std(dim=0).clamp(min=1e-6))
        self.bias = nn.Parameter(log_frequency(data).clone(), requires_grad=False)
        self.slopes = nn.Parameter(torch.zeros(data.n_tokens, components, device=data.device))

    def bag(self, tokens: Tensor) -> Tensor:
        found = torch.zeros(len(tokens), len(self.weights), device=tokens.device)
        found.scatter_(1, tokens, 1.0)
        found[:, 0] = 0
        found *= self.weights
        return found / found.norm(dim=1, keepdim=True).clamp(min=1e-9)

    def hidden(self, tokens: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = (self.bag(tokens.masked_fill(gone, 0)) @ self.axes - self.mean) / self.deviation
        return scores[gone.nonzero()[:, 0]], self.slopes, self.bias


def present(data: Data, rows: np.ndarray) -> Tensor:
    found = torch.zeros(len(rows), data.n_tokens, device=data.device)
    found.scatter_(1, data.tokens[torch.from_numpy(rows).to(data.device)], 1.0)
    found[:, 0] = 0
    return found


def log_frequency(data: Data) -> Tensor:
    often = np.maximum(data.counts, 0.5)
    often[0] = 1e-9
    return torch.from_numpy(np.log(often / often.sum())).float().to(data.device)


class Network(nn.Module):
    """stampy's gene encoder and its heads."""

    def __init__(self, data: Data, job: dict):
        super().__init__()
        sizes = {k: job[k] for k in SMALL}
        spectral = {"rank_gate": True, "pooling": "bag"} if job["start"] == "spectral" else {}
        encoder = encoder_of(
            len(data.divisors), job["seed"], data.counts, max_tokens=data.host.shape[1], **sizes, **spectral
        )
        if job["start"] == "spectral":
            sections = [MemorySection(n, data.xy[r], data.host[r], None) for n, r in data.parts["training"].items()]
            start_spectral(encoder, sections, data.divisors, job["seed"])
        self.encoder = encoder.to(data.device)
        if not job["order"]:  # without position embeddings, the encoder sees a set of genes
            nn.init.zeros_(encoder.positional_embedding.weight).requires_grad_(False)
        if job["start"] == "svd":
            start_svd(self.encoder, data)
        if job["frozen"]:
            self.encoder.embeddings.requires_grad_(False)
            if job["start"] == "spectral":
                self.encoder.rank_gate.requires_grad_(False)

    def hidden(self, tokens: Tensor, gone: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BLD = outputs(self.encoder, ids_of(tokens, gone))
        return self.encoder._head(x_BLD[gone], "igr")


def ids_of(tokens: Tensor, gone: Tensor) -> Tensor:
    return tokens.masked_fill(tokens == _keys.PAD, PAD_ID).masked_fill(gone, MASK_ID)


@torch.no_grad()
def start_svd(encoder, data: Data) -> None:
    """Gene embeddings along the principal components of which genes spots show, of length as at a random start."""
    whole = present(data, data.trained)
    whole -= whole.mean(dim=0)
    whole /= whole.norm(dim=0).clamp(min=3)  # a gene of few spots is mostly chance
    torch.manual_seed(0)
    _, values, axes = torch.svd_lowrank(whole, q=encoder.config.width, niter=4)
    table = axes * values.sqrt()
    lengths = table.norm(dim=1, keepdim=True)
    table = 2 * table / lengths[_keys.N_SPECIAL :].pow(2).mean().sqrt()
    encoder.embeddings.weight[_keys.N_SPECIAL : data.n_tokens] = table[_keys.N_SPECIAL :]
    for last in encoder.residual_outputs():  # all genes share directions now: layers start without effect
        last.weight.zero_()
        last.bias.zero_()


def step_of(model, data: Data, job: dict, trained: Tensor, near: Tensor | None) -> Tensor:
    """The loss of a batch."""
    low = torch.autocast("cuda", torch.bfloat16, enabled=data.tokens.is_cuda)
    n = job["batch"] // 9 if job["cgr"] else job["batch"]
    rows = trained[torch.randint(len(trained), (n,), device=data.device)]
    if job["cgr"]:
        rows = torch.cat([rows[:, None], near[rows]], dim=1).flatten()
    tokens = data.thinned(rows) if job["thin"] else data.tokens[rows]
    positions = torch.randperm(tokens.shape[1], device=data.device)[: job["positions"]].sort().values
    tokens = tokens[:, positions]
    share = FRACTION if job["hide"] == "fixed" else 0.1 + 0.5 * torch.rand(len(rows), 1, device=data.device)
    gone = (torch.rand(tokens.shape, device=data.device) < share) & (tokens != _keys.PAD)
    encoder = model.encoder
    with low:
        x_BLD = outputs(encoder, ids_of(tokens, gone), positions)
        scored = (
            gone & (torch.rand(tokens.shape, device=data.device) < min(FRACTION / 0.35, 1))
            if job["hide"] == "varied"
            else gone
        )
        loss = encoder.reconstruction(x_BLD[scored], tokens[scored])
        if job["cgr"]:
            around = x_BLD.unflatten(0, (n, 9))[:, 1:].mean(dim=1)
            own = tokens.unflatten(0, (n, 9))[:, 0]
            loss = loss + encoder.reconstruction(around[own != _keys.PAD], own[own != _keys.PAD], head="cgr")
    return loss


@torch.inference_mode()
def losses_at(model, data: Data, part: str) -> dict[str, float]:
    """Mean loss at the hidden positions of each section."""
    found = {}
    low = data.tokens.is_cuda and not isinstance(model, Linear)
    with torch.autocast("cuda", torch.bfloat16, enabled=low):
        for name, (tokens, gone) in data.measured[part].items():
            kinds = torch.zeros(int(gone.sum()), dtype=torch.long, device=data.device)
            head = model.hidden(tokens, gone)
            found[name] = float(cross_entropy_by_kind(*head, tokens[gone], kinds, 1)[0])
    return found


def run(job: dict, data: Data, split: str, ends: float) -> tuple[dict, dict]:
    began = time.time()
    linear = "components" in job
    torch.manual_seed(job["seed"])
    model = Linear(data, job["components"]) if linear else Network(data, job)
    trained = data.trained
    if job.get("breast"):
        trained = np.concatenate(
            [r for n, r in data.parts["training"].items() if n.startswith(("HER2ST", "BC_ST", "HBC"))]
        )
    trained = torch.from_numpy(trained).to(data.device)
    near = neighbours(data) if job.get("cgr") else None
    if linear:
        optimizer = torch.optim.AdamW([model.slopes], lr=5e-3, weight_decay=0.05)
        lr, warmup = 5e-3, 20
    else:
        optimizer, _ = optimizer_of(model.encoder, job["weight_decay"])
        lr, warmup = job["lr"], 50
    prepared, total, last, curve, best = time.time() - began, 0.0, 0, [], {}
    torch.manual_seed(job["seed"] + 1)
    every = max(EVERY, job["steps"] // 25)
    for step in range(job["steps"] + 1):
        if step % every == 0 or step == job["steps"]:
            model.eval()
            line = {"step": step, "s": time.time() - began, "training": float(total) / max(step - last, 1)}
            line |= {part: losses_at(model, data, part) for part in ("reported", "choosing")}
            curve.append(line)
            total, last = 0.0, step
            for rule in ("choosing", "reported") if split == "patients" else ("choosing",):
                now = float(np.mean([*line[rule].values()]))
                if rule not in best or now < best[rule][0]:
                    best[rule] = now, step, {k: v.clone() for k, v in model.state_dict().items()}
            waited = step - max(b[1] for b in best.values())
            if step == job["steps"] or waited > PATIENCE * every or time.time() > ends:
                break
            model.train()
        set_rate(optimizer, learning_rate(step, job["steps"], lr, warmup))
        if linear:
            some = data.tokens[trained[torch.randint(len(trained), (96,), device=data.device)]]
            gone = (some != _keys.PAD) & (torch.rand(some.shape, device=data.device) < FRACTION)
            loss = cross_entropy_by_kind(*model.hidden(some, gone), some[gone], some[gone] * 0, 1)[0]
        else:
            loss = step_of(model, data, job, trained, near)
        loss.backward()
        if not linear:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total = total + loss.detach()
    found = {**job, "split": split, "prepared_s": prepared, "curve": curve, "best": {k: b[:2] for k, b in best.items()}}
    found["evaluate_only"] = {}
    for rule, (_, _, state) in best.items():
        model.load_state_dict(state)
        model.eval()
        found["evaluate_only"][rule] = losses_at(model, data, "evaluate_only")
    return found, {k: v.half().cpu() for k, v in best["choosing"][2].items()}


def neighbours(data: Data) -> Tensor:
    """(spots, 8) the nearest spots of the same section."""
    found = np.zeros((len(data.host), 8), np.int64)
    for rows in data.parts["training"].values():
        found[rows] = rows[cKDTree(data.xy[rows]).query(data.xy[rows], k=9)[1][:, 1:]]
    return torch.from_numpy(found).to(data.device)


def append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def score(found: dict) -> float:
    return found["best"]["choosing"][0]


def fit(options) -> None:
    ends = time.time() + options.seconds
    torch.set_float32_matmul_precision("high")
    data = Data(options.data, options.split, torch.device(options.device), options.tiny)
    spots = {part: {name: len(rows) for name, rows in own.items()} for part, own in data.parts.items()}
    append(options.out, {"split": options.split, "guesses": data.guesses(), "spots": spots})
    print(f"{options.split}: {len(data.trained)} spots to train on; {ends - time.time():.0f} s left", flush=True)
    done, jobs = [], jobs_of()
    if options.only:
        jobs = [job for job in jobs if job["name"] in options.only]
    while time.time() < ends - 10:
        if not jobs:
            networks = [f for f in done if "components" not in f]
            if not networks or options.tiny:
                break
            again = {k: v for k, v in min(networks, key=score).items() if k in RUN or k in SMALL or k == "name"}
            seeds = {f["seed"] for f in done if f["name"] == again["name"]}
            jobs = [again | {"seed": max(seeds) + 1}]
            if len(seeds) > 4:
                break
        job = jobs.pop(0)
        if options.tiny:
            job |= {"steps": 3, "batch": 18, "positions": 32}
        found, state = run(job, data, options.split, ends)
        append(options.out, found)
        done.append(found)
        last = found["curve"][-1]
        print(options.split, job["name"], job["seed"], found["best"], {"steps": last["step"], "s": round(last["s"], 1),
              "prepared": round(found["prepared_s"], 1)}, flush=True)  # fmt: skip
        if options.models and found is min(done, key=score):
            torch.save({"job": job, "state": state}, options.models.with_suffix(".part"))
            os.replace(options.models.with_suffix(".part"), options.models)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    fitting = parts.add_parser("fit")
    fitting.add_argument("data", type=Path)
    fitting.add_argument("--split", choices=("sections", "patients"), required=True)
    fitting.add_argument("--device", default="cpu")
    fitting.add_argument("--seconds", type=float, default=1e9)
    fitting.add_argument("--only", nargs="+")
    fitting.add_argument("--tiny", action="store_true")
    fitting.add_argument("--out", type=Path, required=True)
    fitting.add_argument("--models", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    fit(parsed())

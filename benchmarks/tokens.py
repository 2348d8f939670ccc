"""Gene tokens: stampy compared with loops over dense and sparse rows, and the cost from 10^3 to 10^6 spots.

Run as ``python benchmarks/tokens.py``. With real sections (``STAMPY_DATA_DIR``, or ``shared/data`` next to the
repository), the section is CRC16_human with its own vocabulary; otherwise both are synthetic.
"""

import os
import resource
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from stampy import _utils, models
from stampy.pp import Vocabulary, tokenize
from stampy.pp._counts import CHUNK
from stampy.pp._tokens import iter_tokens

DATA = Path(os.environ.get("STAMPY_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
SIZES = (10**3, 10**4, 10**5, 10**6)
PAIRS = 5


def synthetic(n: int, genes: int = 20_000, per_spot: int = 500, rng: int = 0) -> AnnData:
    """A section of `n` spots with about `per_spot` genes each; gene frequencies differ widely."""
    rng = np.random.default_rng(rng)
    level = rng.lognormal(0, 2, genes)
    columns = rng.choice(genes, (n, per_spot), p=level / level.sum())
    counts = sparse.coo_matrix((np.ones(columns.size), (np.repeat(np.arange(n), per_spot), columns.ravel())))
    counts.resize(n, genes)
    return AnnData(counts.tocsr(), var=pd.DataFrame(index=[f"GENE{i}" for i in range(genes)]))


def section() -> AnnData:
    """CRC16_human if available, else a synthetic section of the same size."""
    path = DATA / "sections" / "CRC16_human.h5ad"
    return anndata.read_h5ad(path) if path.is_file() else synthetic(3106)


def plain_loop(adata: AnnData, vocabulary: Vocabulary, max_tokens: int = 1500) -> np.ndarray:
    """The same tokens with a dense row and an argsort per spot, by the published arithmetic; excludes gene matching."""
    rows = vocabulary.match(adata).rows
    known = rows >= 0
    tokens = np.zeros((adata.n_obs, max_tokens), dtype=np.int32)
    for i in range(adata.n_obs):
        value = np.zeros(len(vocabulary))
        value[rows[known]] = adata.X[[i]].toarray().ravel()[known]
        value /= max(np.gcd.reduce(value.astype(np.int64)), 1)  # makes tokens independent of depth
        value = (value.astype(np.float32) * np.float32(10_000 / max(value.sum(), 1))).astype(np.float64)
        value *= 1 / vocabulary.divisors
        best = np.argsort(-value, kind="stable")[:max_tokens]
        tokens[i, : len(best)] = np.where(value[best] > 0, best + 30, 0)
    return tokens


def sparse_loop(adata: AnnData, vocabulary: Vocabulary, max_tokens: int = 1500) -> np.ndarray:
    """The same tokens from the stored values of each sparse row, as in good tokenizers in plain numpy."""
    rows, divisors = vocabulary.match(adata).rows, vocabulary.divisors
    counts = sparse.csr_matrix(adata.X)
    tokens = np.zeros((adata.n_obs, max_tokens), dtype=np.int32)
    for i in range(adata.n_obs):
        mine = slice(counts.indptr[i], counts.indptr[i + 1])
        gene, value = rows[counts.indices[mine]], counts.data[mine].astype(np.float64)
        gene, value = gene[(gene >= 0) & (value > 0)], value[(gene >= 0) & (value > 0)]
        value /= max(np.gcd.reduce(value.astype(np.int64)), 1) if len(value) else 1
        value = (value.astype(np.float32) * np.float32(10_000 / max(value.sum(), 1))).astype(np.float64)
        best = np.lexsort((gene, -value * (1 / divisors[gene])))[:max_tokens]
        tokens[i, : len(best)] = gene[best] + 30
    return tokens


def beside_sparse() -> None:
    """CPU seconds of one thread with the vocabulary of the packaged model, compared with the loop over sparse rows."""
    torch.set_num_threads(1)
    adata, vocabulary = section(), Vocabulary(models.load("stampy-mini", device="cpu").genes)
    tokenize(adata, vocabulary)
    same = float((sparse_loop(adata, vocabulary) == adata.obsm["stamp_tokens"]).mean())
    turns = [(measured(sparse_loop, adata, vocabulary)[1], measured(tokenize, adata, vocabulary)[1]) for _ in range(5)]
    plain, ours = np.median(turns, axis=0)
    print(
        f"packaged vocabulary, one thread: sparse loop {plain:.3f} s of CPU, tokenize {ours:.3f} s, {plain / ours:.1f}x"
    )
    print(f"{same:.2%} of the tokens are the same")


def stream(n: int, blocks: list, match, divisors: np.ndarray) -> int:
    """Compute tokens of `n` spots block by block without keeping them."""
    done = 0
    while done < n:
        for _, tokens in iter_tokens(blocks[done // CHUNK % len(blocks)][: n - done], match, divisors):
            done += len(tokens)
    return done


class Section:
    """One section: stampy, the plain loop, and the ratio of their times."""

    def setup(self):
        self.adata = section()
        self.vocabulary = Vocabulary.from_sections([self.adata])
        tokenize(self.adata, self.vocabulary)  # compiles
        self.ours = self.adata.obsm["stamp_tokens"]

    def time_tokenize(self):
        tokenize(self.adata, self.vocabulary)

    def time_plain_loop(self):
        plain_loop(self.adata, self.vocabulary)

    def pairs(self, times: int = PAIRS) -> np.ndarray:
        """Seconds and CPU seconds (times, 2, 2) of the plain loop and of stampy, alternating.

        Other load thus affects both equally. The much shorter time of stampy is the median of several calls.
        """
        found = []
        for _ in range(times):
            plain = measured(self.time_plain_loop)
            found.append((plain, np.median([measured(self.time_tokenize) for _ in range(5)], axis=0)))
        return np.array(found)

    def track_times_faster(self):
        return float(np.median(ratios(self.pairs())[:, 0]))

    track_times_faster.unit = "x"


class Scaling:
    """Time as a function of the number of spots; memory is bounded by a block."""

    params = SIZES
    param_names = ("n_spots",)

    def setup(self, n):
        whole = synthetic(8 * CHUNK)
        self.vocabulary = Vocabulary.from_sections([whole])
        self.match = self.vocabulary.match(whole)
        self.blocks = [whole.X[start : start + CHUNK] for start in range(0, whole.n_obs, CHUNK)]
        stream(10, self.blocks, self.match, self.vocabulary.divisors)

    def time_stream(self, n):
        stream(n, self.blocks, self.match, self.vocabulary.divisors)


def measured(function, *args) -> tuple[float, float]:
    """Wall seconds of a call, and its CPU seconds, which exclude other load."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - start, time.process_time() - cpu


def ratios(pairs: np.ndarray) -> np.ndarray:
    """Ratio of the times of the plain loop and of stampy (times, 2), by wall clock and by CPU time."""
    return pairs[:, 0] / pairs[:, 1]


def main() -> None:
    beside_sparse()
    one = Section()
    one.setup()
    same = np.array_equal(plain_loop(one.adata, one.vocabulary), one.ours)
    print(
        f"section of {one.adata.n_obs} spots x {one.adata.n_vars} genes, {one.adata.X.nnz / one.adata.n_obs:.0f} a spot"
    )
    print(f"same tokens: {same}; medians of {PAIRS} pairs, one side after the other")
    most = _utils.n_threads()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        pairs = one.pairs()
        (plain, plain_cpu), (ours, ours_cpu) = np.median(pairs, axis=0)
        by_clock, (typical, by_cpu) = ratios(pairs)[:, 0], np.median(ratios(pairs), axis=0)
        print(f"\nthreads {threads}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'':<12}{'seconds':>10}{'of CPU':>10}")
        print(f"{'plain loop':<12}{plain:>10.3f}{plain_cpu:>10.3f}")
        print(f"{'tokenize':<12}{ours:>10.3f}{ours_cpu:>10.3f}")
        spread = f"{by_clock.min():.1f} to {by_clock.max():.1f} by the clock"
        print(f"{'ratio':<12}{typical:>9.1f}x{by_cpu:>9.1f}x   {spread}")

    scaling = Scaling()
    scaling.setup(0)
    print(f"\n{'spots':>9}{'seconds':>10}{'µs a spot':>11}{'peak MB':>9}")
    for n in SIZES:
        seconds = min(measured(scaling.time_stream, n)[0] for _ in range(3 if n < 10**6 else 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{n:>9}{seconds:>10.3f}{seconds / n * 1e6:>11.1f}{peak:>9.0f}")


if __name__ == "__main__":
    main()

"""The compiled bag of genes: equal to torch, whatever the threads and the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import models
from stampy.pp import _rank_tokens
from stampy.pp._rank_tokens import weighted_bag


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), length=st.integers(1, 7), gated=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_encoder(n, length, gated, seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = models.GeneConfig(
        n_genes=20, width=8, depth=1, heads=2, feedforward=8, max_tokens=8, pooling="bag", rank_gate=gated
    )
    encoder = models.GeneEncoder(config).eval()
    if gated:
        torch.nn.init.normal_(encoder.rank_gate)
    tokens = np.zeros((n, length), dtype=np.int32)
    for row in tokens:
        k = rng.integers(0, length + 1)
        row[:k] = 30 + rng.permutation(20)[:k]
    gate = encoder.rank_gate.detach().numpy() if gated else None
    found = weighted_bag(tokens, encoder.embeddings.weight.detach().numpy(), gate, 8.0)
    with torch.inference_mode():
        expected = encoder.features(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[(tokens == 0).all(axis=1)].any()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_process_each_spot_once(monkeypatch, n_threads):
    monkeypatch.setattr(_rank_tokens._utils, "n_threads", lambda: n_threads)
    seen = np.zeros(1000, dtype=int)

    def count(first, end):
        seen[first:end] += 1

    _rank_tokens.share_spots(count, len(seen))
    assert (seen == 1).all()


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(_rank_tokens._utils, "n_threads", lambda: 2)

    def fail(first, end):
        raise MemoryError

    with pytest.raises(MemoryError):
        _rank_tokens.share_spots(fail, 1000)

"""Networks that are trained to predict expression: ST-Net and EGN."""

import numpy as np
import pytest
import torch

from stampy import models


def test_sizes_of_the_predictors():
    with torch.device("meta"):
        stnet, egn = models.STNet(5000), models.EGN(5000)
    counted = [sum(p.numel() for p in network.parameters()) for network in (stnet, egn)]
    assert counted == [models.card("stnet").parameters, models.card("egn").parameters]
    assert round(counted[0] / 1e6, 2) == 12.08
    unused = 4 * (8 * 32 * 1024 + 1024)  # an output layer of each bridge that the published code does not use
    assert round((counted[1] + unused) / 1e6, 2) == 146.02


def planted(n=48, size=32, seed=0):
    """Tiles whose colour is the expression of the first gene."""
    rng = np.random.default_rng(seed)
    level = rng.random(n)
    pixels = (rng.random((n, size, size, 3)) * 60 + 150 * level[:, None, None, None]).astype(np.uint8)
    return pixels, np.stack([level, np.full(n, 0.3)], axis=1), rng.random((n, 4))


SMALL_EGN = {
    "size_px": 32,
    "patch_px": 16,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "feedforward": 32,
    "bridge_channels": 4,
}


def test_egn_learns_what_is_planted():
    pixels, targets, features = planted()
    features[:, 0] = targets[:, 0] * 5  # similar spots have like expression
    runs = []
    for _ in range(2):
        egn = models.Predictor("egn", n_exemplars=4, device="cpu", rng=1, **SMALL_EGN)
        egn.fit(pixels[:36], targets[:36], features=features[:36], epochs=12, batch_size=12, learning_rate=3e-3)
        runs.append(egn.predict(pixels[36:], features=features[36:]))
    np.testing.assert_array_equal(*runs)
    assert egn.losses[-1] < egn.losses[0]
    assert np.corrcoef(runs[0][:, 0], targets[36:, 0])[0, 1] > 0.5


def test_exemplars_are_other_spots_of_other_groups():
    _, _, features = planted(12)
    groups = np.repeat(["a", "b"], 6)
    egn = models.Predictor("egn", n_exemplars=3, device="cpu", **SMALL_EGN)
    known = torch.from_numpy(features).float()
    near = egn._nearest(known, known, groups=None, training=True)
    assert not (near == torch.arange(12)[:, None]).any()
    near = egn._nearest(known, known, groups=groups, training=True)
    assert (groups[near.numpy()] != groups[:, None]).all()


@pytest.mark.slow
def test_stnet_learns_what_is_planted():
    pixels, targets, _ = planted(24, size=224)
    stnet = models.Predictor("stnet", device="cpu")
    stnet.fit(pixels, targets, epochs=6, batch_size=12, learning_rate=1e-3)
    assert stnet.losses[-1] < stnet.losses[0]
    assert stnet.predict(pixels[:3]).shape == (3, 2)


def test_stnet_starts_from_the_mean():
    stnet = models.STNet(2)
    stnet.start_from(torch.tensor([1.0, -2.0]))
    with torch.inference_mode():
        found = stnet.eval()(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(found, torch.tensor([[1.0, -2.0]]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("egn", {}, "needs `features`"),
        ("egn", {"features": np.zeros((5, 4))}, r"`features` must have shape \(12"),
        ("egn", {"features": np.zeros((12, 4)), "targets": np.full((12, 2), np.nan)}, "NaN"),
        ("egn", {"features": np.zeros((12, 4)), "groups": np.zeros(12)}, "fewer than 9 other spots in other groups"),
        ("stnet", {"features": np.zeros((12, 4))}, "takes no `features`"),
        ("stnet", {}, "must be 224 px wide"),
        ("stnet", {"targets": np.zeros(12)}, "`targets` must have shape"),
        ("stnet", {"epochs": 0}, "`epochs` must be at least 1"),
    ],
)
def test_predictors_refuse_bad_input(name, arguments, message):
    pixels, targets, _ = planted(12)
    predictor = models.Predictor(name, device="cpu", **(SMALL_EGN if name == "egn" else {}))
    with pytest.raises(ValueError, match=message):
        predictor.fit(pixels, **({"targets": targets} | arguments))


def test_predictors_reject_unsupported_arguments():
    with pytest.raises(TypeError, match="takes no"):
        models.Predictor("stnet", depth=3, device="cpu")
    with pytest.raises(ValueError, match="no pretrained"):
        models.Predictor("egn", pretrained=True, device="cpu")
    with pytest.raises(ValueError, match="not fitted"):
        models.Predictor("stnet", device="cpu").predict(np.zeros((1, 224, 224, 3), np.uint8))

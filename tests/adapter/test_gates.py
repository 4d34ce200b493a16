from __future__ import annotations

import torch

from lcf_lightning.adapter.gates import LayerGates
from lcf_lightning.adapter.layers import LayerLinear


def test_hard_gates_open_above_zero_only() -> None:
    gates = LayerGates(3, 0.0)
    assert gates().tolist() == [[0, 0]] * 3  # a logit of 0 is off
    with torch.no_grad():
        gates.logits.copy_(torch.tensor([[0.1, -0.1], [1.0, 0.0], [-2.0, 3.0]]))
    assert gates().tolist() == [[1, 0], [1, 0], [0, 1]]
    assert not gates().requires_grad


def test_training_gates_are_unbiased_at_zero_and_open_with_their_logit() -> None:
    """Logistic noise: the chance of being open is sigmoid(logit), whatever the temperature (C2C's: 0.632 at 0)."""
    for logit, expected in ((0.0, 0.5), (1.0, 0.7311)):
        torch.manual_seed(0)
        values = LayerGates(20_000, logit)(temperature=0.5)
        assert abs((values > 0.5).float().mean().item() - expected) < 0.01
        assert values.min() >= 0
        assert values.max() <= 1


def test_one_gumbel_sample_is_biased_open_and_without_noise_nothing_is_drawn() -> None:
    for logit, expected in ((0.0, 0.6321), (1.0, 0.9340)):  # 1 - exp(-exp(logit))
        torch.manual_seed(0)
        values = LayerGates(20_000, logit, "gumbel")(temperature=0.5)
        assert abs((values > 0.5).float().mean().item() - expected) < 0.01
    before = torch.get_rng_state()
    quiet = LayerGates(3, 1.0, "none")(temperature=0.5)
    torch.testing.assert_close(quiet, torch.full((3, 2), 2.0).sigmoid())
    assert torch.equal(before, torch.get_rng_state())


def test_a_lower_temperature_hardens_the_gates() -> None:
    gates = LayerGates(5_000, 0.5)
    undecided = []
    for temperature in (1.0, 0.5, 0.1):
        torch.manual_seed(0)
        values = gates(temperature)
        undecided.append(((values > 0.1) & (values < 0.9)).float().mean().item())
    assert undecided[0] > undecided[1] > undecided[2]
    assert undecided[2] < 0.15


def test_gates_learn_through_the_noise() -> None:
    gates = LayerGates(4, 1.0)
    torch.manual_seed(0)
    gates(temperature=1.0).sum().backward()
    assert gates.logits.grad is not None
    assert (gates.logits.grad > 0).all()


def test_a_layer_linear_is_as_many_linears() -> None:
    linear = LayerLinear(3, 4, 5)
    x = torch.randn(3, 7, 4)
    for layer, (rows, out) in enumerate(zip(x, linear(x), strict=True)):
        expected = torch.nn.functional.linear(rows, linear.weight[layer].T, linear.bias[layer, 0])
        torch.testing.assert_close(out, expected)
    assert LayerLinear(3, 4, 5, bias=False).bias is None

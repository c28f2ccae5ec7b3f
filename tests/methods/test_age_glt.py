"""GLT: published sizes, windows and their trap, attention, learning, planes, resuming."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.api import Context
from harness.brain_age import AgeInputs
from harness.data.arrays import load_state, save_state
from methods.brain_age.glt.method import Glt
from methods.brain_age.glt.network import Block, CrossAttention, GlobalLocal, starts, tokens
from methods.brain_age.learning import restored, samples
from methods.brain_age.slices import cut_all
from tests.support.ageing import age_training, growing_heads


def tiny(**changes: Any) -> Glt:
    training = {"epochs": None, "iterations": 80, "validate_every": 20, "batch_size": 8, "learning_rate": 5e-3}
    return Glt.model_validate(
        {
            "planes": ("axial", "coronal"),
            "slices": 3,
            "size": (24, 28),
            "pixel_mm": 3.0,
            "widths": (8, 16),
            "patch": 12,
            "step": 6,
            "blocks": 1,
            "heads": 2,
            "training": {**training, "step_every": 40},
            **changes,
        }
    )


def small_network(seed: int = 0) -> GlobalLocal:
    torch.manual_seed(seed)
    return GlobalLocal(2, (4, 8), patch=8, step=4, last_window=False, blocks=2, heads=2, dropout=0.5, mean=0.0).eval()


@dataclass(frozen=True)
class Trained:
    model: Glt
    state: dict[str, Any]


@pytest.fixture(scope="module")
def trained(ctx: Context) -> Trained:
    model = tiny()
    before = torch.get_rng_state()
    state = model.fit(age_training(), ctx)
    assert torch.equal(before, torch.get_rng_state())
    return Trained(model, state)


# -------------------------------------------------------------------------------------- published sizes


def test_published_network_has_13_outputs_and_20_41_million_parameters() -> None:
    sizes: dict[str, torch.Size] = {}
    with torch.device("meta"):
        network = Glt()._network(38.0)
        for name in ("whole", "local"):
            getattr(network, name).register_forward_hook(
                lambda module, given, out, name=name: sizes.update({name: out.shape})
            )
        assert network(torch.empty(2, 5, 130, 170)).shape == (2, 13)
    assert sizes == {"whole": (2, 512, 8, 10), "local": (2, 512, 4, 4)}
    channels = (5, 64, 128, 256, 512)
    vgg = sum(9 * a * b + 2 * b + 9 * b * b + 2 * b for a, b in pairwise(channels))
    block = 4 * (512 * 512 + 512) + (1024 * 512 + 2 * 512) + (512 * 512 + 2 * 512)
    assert sum(p.numel() for p in network.parameters()) == 2 * vgg + 6 * block + 2 * 513 == 20_412_546


def test_published_settings_survive_a_partial_override_and_bad_ones_are_told() -> None:
    model = Glt.model_validate({"training": {"epochs": 10}})
    training = model.training
    assert (training.epochs, training.learning_rate, training.step_every, training.step_factor) == (10, 1e-4, 20, 0.5)
    assert (model.patch, model.step, model.heads, model.blocks, model.dropout) == (64, 32, 8, 6, 0.5)
    with pytest.raises(ValidationError, match="size 64 has no window of 64"):
        Glt(size=(64, 170))
    assert Glt(size=(64, 170), last_window=True).last_window
    with pytest.raises(ValidationError, match="heads must divide the last of widths, 512, and 7 do not"):
        Glt(heads=7)
    with pytest.raises(ValidationError, match="patch must be 16 at least, since 4 widths"):
        Glt(patch=8)


# --------------------------------------------------------------------------------------------- windows


def test_windows_leave_out_the_last_where_the_step_divides_the_rest() -> None:
    assert list(starts(130, 64, 32, False)) == [0, 32, 64]
    assert list(starts(170, 64, 32, False)) == [0, 32, 64, 96]
    assert list(starts(128, 64, 32, False)) == [0, 32]  # the trap
    assert list(starts(128, 64, 32, True)) == [0, 32, 64]
    assert list(starts(130, 64, 32, True)) == [0, 32, 64]
    network = small_network()
    assert network.windows(16, 20) == [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]
    network.last_window = True
    assert len(network.windows(16, 20)) == 12


def test_windows_that_look_alike_have_the_same_age_and_others_do_not() -> None:
    network = small_network()
    cell = torch.rand((1, 2, 4, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network(cell.repeat(1, 1, 4, 5))[0]
        assert torch.allclose(found[1:], found[1].expand(6), rtol=0, atol=1e-6)
        x = torch.rand((1, 2, 16, 20), generator=torch.Generator().manual_seed(2))
        assert network(x)[0, 1:].std() > 1e-4


def test_a_window_depends_on_the_whole_through_attention_alone() -> None:
    network = small_network()
    x = torch.rand((1, 2, 16, 20), generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[..., 12:, 16:] = 0  # outside all windows
    with torch.no_grad():
        assert (network(x) - network(other))[:, 1:].abs().min() > 1e-6
        for block in network.blocks:
            nn.init.zeros_(block.attention.out.weight)
        assert torch.equal(network(x)[:, 1:], network(other)[:, 1:])
        assert not torch.equal(network(x)[:, 0], network(other)[:, 0])


# ------------------------------------------------------------------------------------------- attention


def test_attention_of_each_token_sums_to_one() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 4, 0.5)
    local, context = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    weights = attention.weights(local, context)
    assert weights.shape == (3, 4, 5, 7)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 4, 5), atol=1e-6)
    assert weights.std(-1).min() > 0
    # Against each head on its own, in plain terms.
    query, key = attention.query(local)[0, 2], attention.key(context)[0]
    scores = torch.stack([(query[2:4] * token[2:4]).sum() / 2**0.5 for token in key])
    assert torch.allclose(weights[0, 1, 2], scores.exp() / scores.exp().sum(), atol=1e-6)


def test_without_keys_every_token_takes_the_mean_of_the_values() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 4, 0.5).eval()
    nn.init.zeros_(attention.key.weight)
    nn.init.zeros_(attention.key.bias)
    local, context = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    expected = attention.out(attention.value(context).mean(1, keepdim=True)).expand(3, 5, 8)
    assert torch.allclose(attention(local, context), expected, atol=1e-6)


def test_a_block_adds_to_its_window_and_tokens_keep_their_places() -> None:
    torch.manual_seed(0)
    block, local = Block(8, 2, 0.0).eval(), torch.randn(2, 8, 3, 4)
    context = torch.randn(2, 6, 8)
    assert torch.equal(tokens(local)[:, 1 * 4 + 2], local[:, :, 1, 2])
    found = block(local, context)
    # A token's own place is all that reaches its own place: attention is to the context.
    changed = local.clone()
    changed[:, :, 1, 2] += 1
    differs = (block(changed, context) - found).abs().amax((0, 1)) > 1e-6
    assert differs.nonzero().tolist() == [[1, 2]]
    nn.init.zeros_(block.mix[-2].weight)
    assert torch.equal(block(local, context), local)


def test_dropout_is_of_attention_in_training_alone() -> None:
    torch.manual_seed(0)
    attention, local, context = CrossAttention(8, 2, 0.5), torch.randn(1, 5, 8), torch.randn(1, 7, 8)
    assert not torch.equal(attention(local, context), attention(local, context))
    attention.eval()
    assert torch.equal(attention(local, context), attention(local, context))


# --------------------------------------------------------------------------------- learning, predicting


def test_learns_the_ages_of_others(trained: Trained, ctx: Context) -> None:
    volumes, ages = growing_heads(12, 7, "C")
    found = trained.model.predict(trained.state, AgeInputs(volumes), ctx)
    chance = np.abs(ages - age_training().ages.mean()).mean()
    assert np.abs(found.ages - ages).mean() < 0.4 * chance
    assert found.sds is not None
    assert found.ages.shape == found.sds.shape == (12,)
    assert found.ages.dtype == found.sds.dtype == np.float64


def outputs(trained: Trained, data: AgeInputs, plane: str) -> np.ndarray:
    """[scans, 1 + windows]"""
    network = restored(trained.model._network(0.0), trained.state, plane, "cpu")
    with torch.no_grad():
        return network(samples(cut_all(data.volumes, trained.model._cut(plane)))).double().numpy()


def test_an_age_is_the_mean_of_all_outputs_of_all_planes_and_its_deviation_theirs(
    trained: Trained, ctx: Context
) -> None:
    data = AgeInputs(growing_heads(10, 7, "C")[0])  # more than a batch
    found = trained.model.predict(trained.state, data, ctx)
    both = np.concatenate([outputs(trained, data, plane) for plane in ("axial", "coronal")], axis=1)
    assert both.shape == (10, 2 * (1 + 2 * 3))
    assert found.ages == pytest.approx(both.mean(1), rel=1e-4)
    assert found.sds == pytest.approx(both.std(1), rel=1e-3)
    alone = trained.model.predict(trained.state, AgeInputs(data.volumes.take([9])), ctx)
    assert alone.ages == pytest.approx(found.ages[[9]], rel=1e-5)


def test_scores_are_minus_the_errors_of_each_plane(trained: Trained) -> None:
    data = age_training()
    for plane, score in zip(("axial", "coronal"), trained.state["score"], strict=True):
        ages = outputs(trained, data.validation, plane).mean(1)
        assert score == pytest.approx(-np.abs(ages - data.validation_ages).mean(), rel=1e-3)


def test_a_planes_network_does_not_depend_on_the_planes_behind_it(ctx: Context, tmp_path: Path) -> None:
    quick = {"training": {"epochs": None, "iterations": 2, "validate_every": 2, "batch_size": 2}}
    data = age_training(4, 2)
    both = tiny(**quick).fit(data, Context(3, "cpu", tmp_path / "both", ctx.log))
    one = tiny(**quick, planes=("axial",)).fit(data, Context(3, "cpu", tmp_path / "one", ctx.log))
    key = "axial.whole.0.weight"
    assert torch.equal(both[key], one[key])
    assert not torch.equal(both[key], both["coronal.whole.0.weight"])


def test_state_survives_saving(trained: Trained, ctx: Context, tmp_path: Path) -> None:
    save_state(tmp_path, trained.state)
    inputs = AgeInputs(growing_heads(2, 7)[0])
    expected = trained.model.predict(trained.state, inputs, ctx).ages
    assert np.array_equal(trained.model.predict(load_state(tmp_path), inputs, ctx).ages, expected)


def test_example_learns_and_predicts(tmp_path: Path) -> None:
    model, ctx = Glt.example(), Context(1, "cpu", tmp_path, lambda *_: None)
    found = model.predict(model.fit(age_training(4, 2), ctx), AgeInputs(growing_heads(2, 5)[0]), ctx)
    assert np.isfinite(found.ages).all()

"""Harmonizing Flows: what is learnt, how it adapts, and which epoch each rule shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import SOURCE, TARGET, VALIDATION, site
from pydantic import ValidationError
from torch import Tensor, nn

from harness import registry
from harness.api import (
    AccessDenied,
    Adaptive,
    ApplyData,
    Context,
    FitData,
    ImageSet,
    MethodError,
    State,
    TaskHandle,
    TaskModel,
)
from harness.conformance import check_method
from harness.contract import fit_inputs, grant_adapt, learn
from harness.training import seeded, weights_of
from methods.harmonization.harmonizing_flows import adaptation
from methods.harmonization.harmonizing_flows.harmonizer_net import reconstruction_loss, ssim
from methods.harmonization.harmonizing_flows.learning import build_flow, build_harmonizer, mean_bpd
from methods.harmonization.harmonizing_flows.method import HarmonizingFlows
from methods.harmonization.harmonizing_flows.settings import Adaptation
from methods.harmonization.harmonizing_flows.slices import Crops, grey_levels, whole
from methods.harmonization.harmonizing_flows.stopping import first_reaching, lowest_entropy


def context(folder: Path, seed: int = 0, log: Callable[[str, int, float], None] = lambda *_: None) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(seed, "cpu", folder, log)


def small(**changes: Any) -> HarmonizingFlows:
    """Settings that train in a second."""
    fields: dict[str, Any] = {
        "flow": {
            "couplings": 3,
            "widths": (4, 6),
            "dequantizer_couplings": 1,
            "training": {"iterations": 30, "batch_size": 4, "learning_rate": 1e-2, "validate_every": 30},
        },
        "harmonizer": {
            "widths": (4, 8, 8),
            "training": {"iterations": 120, "batch_size": 6, "learning_rate": 1e-2, "validate_every": 60},
        },
        "adaptation": {"learning_rate": 1e-3, "batch_size": 4, "max_epochs": 4},
    }
    return HarmonizingFlows.model_validate({**fields, **changes})


@lru_cache(maxsize=1)
def fitted(folder: str) -> State:
    contexts = {part: context(Path(folder) / part) for part in small().fit_parts()}
    return learn(small(), FitData({"source": SOURCE, "validation": VALIDATION}), contexts)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return fitted(str(tmp_path_factory.getbasetemp() / "harmonizing_flows"))


@pytest.fixture(scope="module")
def adapted(state: State, tmp_path_factory: pytest.TempPathFactory) -> State:
    return small().adapt(state, ApplyData({"target": TARGET}), context(tmp_path_factory.mktemp("adapted")))


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])) for key, value in first.items()
    )


def brain_error(pixels: np.ndarray, images: ImageSet) -> float:
    """Mean absolute difference from `images` over the brain, grey levels."""
    return float(np.abs(255 * pixels - grey_levels(images, slice(None)))[images.mask].mean())


# --------------------------------------------------------------------------------------------- learning


def test_the_flow_learns_and_keeps_the_likelihood_of_clean_validation_slices(state: State, tmp_path: Path) -> None:
    method, ctx = small(), context(tmp_path)
    crops = Crops(method.crop, method.crop_shift, 8)
    flow = method._flow(state)
    found = mean_bpd(flow, VALIDATION, crops, 4, ctx)
    assert found == pytest.approx(state["flow.source_bpd"], abs=1e-6)
    with seeded(0):
        untrained = build_flow(method.flow)
    assert found < 0.8 * mean_bpd(untrained, VALIDATION, crops, 4, ctx)
    swapped = site((190, 90), 6, seed=1)
    assert found < mean_bpd(flow, swapped, crops, 4, ctx)


def test_guidance_is_part_of_the_loss(tmp_path: Path) -> None:
    """More negatives, other weights; and without guidance the margin does not matter."""

    def weights(folder: str, **guidance: Any) -> Tensor:
        short = {"iterations": 2, "batch_size": 8}
        method = small(flow={"couplings": 3, "widths": (4, 6), "training": short}, guidance=guidance)
        data = FitData({"source": SOURCE, "validation": VALIDATION})
        learnt = method.fit_part("flow", data, context(tmp_path / folder))
        return torch.cat([v.flatten() for k, v in learnt.items() if k.startswith("weights.")])

    wide = {"margin": 50.0, "augmented_fraction": 0.5}
    assert not torch.equal(weights("a", **wide), weights("b", **wide, enabled=False))
    assert torch.equal(weights("c", enabled=False), weights("d", enabled=False, margin=50.0))
    assert torch.equal(weights("e", **wide, threshold=1e6), weights("f", **wide, enabled=False))


def test_the_harmoniser_undoes_a_change_of_contrast(state: State, tmp_path: Path) -> None:
    dim, truth = site((60, 110), 10, seed=2), site((90, 190), 10, seed=2)
    shown = small(stopping="none").harmonize(state, ApplyData({"target": dim}), context(tmp_path))
    assert brain_error(shown, truth) < 0.6 * brain_error(dim.floats(), truth)
    assert not shown[~dim.mask].any()


def test_no_start_ends_in_the_negative_image() -> None:
    """SSIM does not tell an image from its negative: outputs below 0 would stay there."""
    pixels, mask = whole(SOURCE, slice(0, 8))
    assert ssim(-pixels / 255, pixels / 255).item() > 0.8, "the trap"
    assert reconstruction_loss(-pixels, pixels, "l1_ssim")["ssim"].item() < 0.1
    for seed in range(5):
        with seeded(seed):
            network = build_harmonizer(small().harmonizer)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            reconstruction_loss(network(0.7 * pixels) * mask, pixels, "l1_ssim")["loss"].backward()
            optimizer.step()
        assert network(0.7 * pixels)[mask > 0].mean().item() > 50, seed


def test_a_part_depends_on_the_fields_it_names_and_on_no_others(tmp_path: Path) -> None:
    data = FitData({"source": SOURCE, "validation": VALIDATION})
    short = {"iterations": 3, "batch_size": 2}
    method = small(
        flow={"couplings": 3, "widths": (4, 6), "training": short},
        harmonizer={"widths": (4, 8), "training": short},
        guidance={"margin": 3.0, "augmented_fraction": 0.5},
        crop=16,
        crop_shift=2,
        stopping="fixed",
        fixed_epochs=2,
    )
    for part, fields in method.fit_parts().items():
        alone = HarmonizingFlows.model_validate({name: method.model_dump()[name] for name in fields})
        states = [m.fit_part(part, data, context(tmp_path / part / str(i))) for i, m in enumerate((method, alone))]
        assert same(*states)


def test_parts_and_what_they_are_handed() -> None:
    assert set(small().fit_parts()) == {"harmonizer", "flow"}
    assert set(small(stopping="none").fit_parts()) == {"harmonizer"}
    assert fit_inputs(small()) == {"source", "validation"}
    assert HarmonizingFlows.late_fields == ("stopping", "fixed_epochs", "patience")
    with pytest.raises(AccessDenied):
        _ = grant_adapt(small(), {"target": TARGET, "source": SOURCE}).source


def test_geometry_can_be_switched_off(tmp_path: Path) -> None:
    data = FitData({"source": SOURCE, "validation": VALIDATION})
    short = {"widths": (4, 8), "training": {"iterations": 2, "batch_size": 4}}
    learnt = [
        small(harmonizer={**short, "geometry": {"enabled": on}}).fit_part("harmonizer", data, context(tmp_path / name))
        for on, name in ((True, "on"), (False, "off"))
    ]
    assert not same(*learnt)


def test_bad_material_is_one_clear_line(tmp_path: Path) -> None:
    empty = ImageSet(SOURCE.pixels[:0], SOURCE.mask[:0], ())
    for part in ("flow", "harmonizer"):
        with pytest.raises(MethodError, match="no validation slices"):
            small().fit_part(part, FitData({"source": SOURCE, "validation": empty}), context(tmp_path))
    data = FitData({"source": SOURCE, "validation": VALIDATION})
    with pytest.raises(MethodError, match=r"10 pixels are smaller than the 11 of SSIM"):
        small(crop=10).fit_part("harmonizer", data, context(tmp_path))


# ------------------------------------------------------------------------------------------- adaptation


def test_adaptation_makes_the_target_likelier_and_starts_before_any_update(
    state: State, adapted: State, tmp_path: Path
) -> None:
    method = small()
    assert method.steps(adapted) == (0, 1, 2, 3, 4)
    assert adapted["bpd"][-1] < adapted["bpd"][0]
    first = method.at(adapted, 0)
    weights = {key: value for key, value in state.items() if key.startswith("harmonizer.weights.")}
    assert all(torch.equal(first[key], value) for key, value in weights.items())
    crops = Crops(method.crop, method.crop_shift, 8)
    measured = mean_bpd(method._flow(state), TARGET, crops, 4, context(tmp_path), method._network(state))
    assert measured == pytest.approx(adapted["bpd"][0], abs=1e-9)
    last = mean_bpd(method._flow(state), TARGET, crops, 4, context(tmp_path), method._network(method.at(adapted, 4)))
    assert last == pytest.approx(adapted["bpd"][4], abs=1e-6)


def test_the_flow_stays_frozen(state: State, tmp_path: Path) -> None:
    method = small()
    flow, network = method._flow(state), method._network(state)
    before, start = weights_of(flow), weights_of(network)
    crops = Crops(None, 8, flow.multiple)
    adaptation.adapt_harmonizer(network, flow, TARGET, crops, method.adaptation, 1.0, context(tmp_path))
    assert same(weights_of(flow), before)
    assert not same(weights_of(network), start)
    assert all(p.grad is None for p in flow.parameters())


def test_curves_have_a_point_for_each_epoch(state: State, tmp_path: Path) -> None:
    points: dict[str, list[tuple[int, float]]] = {}
    ctx = context(tmp_path, log=lambda name, step, value: points.setdefault(name, []).append((step, value)))
    found = small().adapt(state, ApplyData({"target": TARGET}), ctx)
    assert points["bpd"] == list(enumerate(found["bpd"].tolist()))
    assert points["source_bpd"] == [(epoch, state["flow.source_bpd"]) for epoch in range(5)]


def test_an_adaptation_that_was_killed_ends_with_the_same_bits(state: State, adapted: State, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(name: str, step: int, value: float) -> None:
        if step == 2:
            raise Killed

    data = ApplyData({"target": TARGET})
    with pytest.raises(Killed):
        small().adapt(state, data, context(tmp_path, log=kill))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("epoch-*")}
    assert len(written) == 3
    assert same(small().adapt(state, data, context(tmp_path)), adapted)
    assert {path: path.stat().st_mtime_ns for path in written} == written  # what was done was not done again


def test_epochs_of_other_settings_are_not_taken_over(state: State, tmp_path: Path) -> None:
    data, other = ApplyData({"target": TARGET}), Adaptation(learning_rate=1e-2, batch_size=4, max_epochs=1)
    small().adapt(state, data, context(tmp_path / "one"))
    found = [
        small(adaptation=other.model_dump()).adapt(state, data, context(tmp_path / name)) for name in ("one", "two")
    ]
    assert same(*found)


def test_rules_share_one_adaptation(state: State, adapted: State, tmp_path: Path) -> None:
    """The trajectory does not know the rule: stages are handed all fields but the late ones."""
    for stopping in ("entropy", "fixed", "oracle"):
        method = small(stopping=stopping, fixed_epochs=1, patience=1)
        found = method.adapt(state, ApplyData({"target": TARGET}), context(tmp_path / stopping))
        assert same(found, adapted)


def test_adapting_to_training_slices_is_a_field() -> None:
    assert small().adaptation_split() == "test"
    assert small(adaptation={"images": "train"}).adaptation_split() == "train"


def test_a_rate_of_zero_adapts_nothing(state: State, tmp_path: Path) -> None:
    method = small(adaptation={"learning_rate": 0, "batch_size": 4, "max_epochs": 2})
    found = method.adapt(state, ApplyData({"target": TARGET}), context(tmp_path))
    assert len(set(found["bpd"].tolist())) == 1  # the same noise in each measurement


def test_a_likelihood_that_is_not_finite_is_an_error(state: State, tmp_path: Path) -> None:
    broken = dict(state)
    key = next(key for key in state if key.startswith("flow.weights.") and key.endswith("head.bias"))
    broken[key] = torch.full_like(torch.as_tensor(state[key]), float("nan"))
    with pytest.raises(MethodError, match="became nan in epoch 0"):
        small().adapt(broken, ApplyData({"target": TARGET}), context(tmp_path))


# ------------------------------------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("bpd", "source", "expected"),
    [
        ([3.0, 2.5, 2.0, 1.5], 2.2, 2),
        ([3.0, 2.5, 2.0, 1.5], 2.0, 2),  # equal is enough
        ([1.9, 1.5], 2.0, 0),  # below from the start: no adaptation
        ([3.0, 2.0, 2.5, 1.0], 2.2, 1),  # the first, though it rises again
        ([3.0, 2.9, 2.8], 1.0, 2),  # never: the last
    ],
)
def test_source_bpd_takes_the_first_epoch_that_is_not_above(bpd: list[float], source: float, expected: int) -> None:
    assert first_reaching(bpd, source) == expected


@pytest.mark.parametrize(
    ("entropies", "patience", "expected", "seen"),
    [
        ([5, 4, 3, 4, 4, 4, 1], 3, 2, 6),  # three in a row without a lower one: the 1 is never seen
        ([5, 4, 3, 4, 4, 1, 2], 3, 5, 7),
        ([5, 4, 3, 4, 1], 1, 2, 4),
        ([1, 1, 1, 1, 1], 3, 0, 4),  # ties go to the earlier
        ([5, 4, 3], 3, 2, 3),
        ([7], 3, 0, 1),
    ],
)
def test_entropy_takes_the_lowest_with_patience(
    entropies: list[float], patience: int, expected: int, seen: int
) -> None:
    consumed = []
    assert lowest_entropy((consumed.append(e) or e for e in entropies), patience) == expected  # type: ignore[func-returns-value]
    assert len(consumed) == seen


def curve(adapted: State, **changes: Any) -> State:
    """An adapted state with hand-made numbers."""
    return {**adapted, **changes}


def choose(method: HarmonizingFlows, state: State, folder: Path, **granted: Any) -> tuple[int, np.ndarray]:
    """The step that is logged as chosen, and what is shown."""
    points: list[tuple[str, int, float]] = []
    ctx = context(folder, log=lambda *point: points.append(point))
    shown = method.harmonize(state, ApplyData({"target": TARGET, **granted}), ctx)
    (chosen,) = [value for name, _, value in points if name == "chosen_step"]
    return int(chosen), shown


def test_harmonising_shows_the_epoch_that_the_rule_chooses(adapted: State, tmp_path: Path) -> None:
    state = curve(adapted, bpd=np.array([5.0, 4.0, 3.0, 2.0, 1.0]), source_bpd=3.5)
    pinned = [
        small().harmonize(small().at(state, k), ApplyData({"target": TARGET}), context(tmp_path)) for k in range(5)
    ]
    assert not np.array_equal(pinned[0], pinned[2])
    chosen, shown = choose(small(), state, tmp_path)
    assert chosen == 2
    assert np.array_equal(shown, pinned[2])
    chosen, shown = choose(small(stopping="fixed", fixed_epochs=4), state, tmp_path)
    assert chosen == 4
    assert np.array_equal(shown, pinned[4])


def test_a_pinned_step_is_shown_whatever_the_rule(adapted: State, tmp_path: Path) -> None:
    for method in (
        small(),
        small(stopping="oracle"),
        small(stopping="entropy"),
        small(stopping="fixed", fixed_epochs=0),
    ):
        pinned = method.at(adapted, 3)
        shown = method.harmonize(pinned, ApplyData({"target": TARGET}), context(tmp_path))
        expected = small().harmonize(small().at(adapted, 3), ApplyData({"target": TARGET}), context(tmp_path))
        assert np.array_equal(shown, expected)
    with pytest.raises(MethodError, match="no epoch 5"):
        small().at(adapted, 5)


def test_without_adaptation_the_source_harmoniser_is_shown(state: State, adapted: State, tmp_path: Path) -> None:
    none = small(stopping="none")
    assert not none.adapts()
    assert small().adapts()
    source_only = {key: value for key, value in state.items() if key.startswith("harmonizer.")}  # no flow needed
    shown = none.harmonize(source_only, ApplyData({"target": TARGET}), context(tmp_path))
    first = small().harmonize(small().at(adapted, 0), ApplyData({"target": TARGET}), context(tmp_path))
    assert np.array_equal(shown, first)


def test_the_oracle_is_chosen_outside(adapted: State, tmp_path: Path) -> None:
    oracle = small(stopping="oracle")
    assert oracle.is_oracle()
    assert not any(small(stopping=s, fixed_epochs=1).is_oracle() for s in ("source_bpd", "entropy", "fixed", "none"))
    with pytest.raises(MethodError, match="labels choose the step"):
        oracle.harmonize(adapted, ApplyData({"target": TARGET}), context(tmp_path))


def test_a_state_that_was_not_adapted_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="call adapt first"):
        small().harmonize(state, ApplyData({"target": TARGET}), context(tmp_path))


def test_an_epoch_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"fixed_epochs is 9, but adaptation\.max_epochs is 4"):
        small(stopping="fixed", fixed_epochs=9)
    assert small(fixed_epochs=9).stopping == "source_bpd"  # elsewhere the field does not count


class Level(TaskModel):
    """Logits whose certainty grows with the mean level of a slice; or an age."""

    id = "level"
    reference = "ours"

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            certainty = 10 * x.mean((2, 3), keepdim=True).expand_as(x)
            return torch.cat([certainty, torch.zeros_like(certainty)], 1)

    def network(self, state: State) -> nn.Module:
        return Level.Network()

    def train(self, *_: Any) -> State:
        raise NotImplementedError

    def predict(self, *_: Any) -> np.ndarray:
        raise NotImplementedError


def test_the_entropy_rule_uses_the_task_model_and_shows_its_most_certain_epoch(adapted: State, tmp_path: Path) -> None:
    method = small(stopping="entropy", patience=4)
    assert method.uses_task()
    assert not any(small(stopping=s, fixed_epochs=1).uses_task() for s in ("source_bpd", "fixed", "oracle", "none"))
    first = {key: torch.as_tensor(value) for key, value in adapted.items() if key.startswith("epochs.")}
    brightened = {**adapted, **{key: value[:1].repeat(5, *[1] * (value.ndim - 1)) for key, value in first.items()}}
    brightened["epochs.head.bias"] += torch.tensor([0.0, 0.1, -0.2, 0.3, 0.2])[:, None]
    chosen, _ = choose(method, brightened, tmp_path, task=TaskHandle(Level(), {}, "cpu"))
    assert chosen == 3
    chosen, _ = choose(small(stopping="entropy", patience=1), brightened, tmp_path, task=TaskHandle(Level(), {}, "cpu"))
    assert chosen == 1
    with pytest.raises(AccessDenied):
        method.harmonize(adapted, ApplyData({"target": TARGET}), context(tmp_path))


def test_the_entropy_rule_needs_labels_to_be_predicted(adapted: State, tmp_path: Path) -> None:
    class Age(Level):
        outcome = "age"

    data = ApplyData({"target": TARGET, "task": TaskHandle(Age(), {}, "cpu")})
    with pytest.raises(MethodError, match="needs a task that predicts labels, not age"):
        small(stopping="entropy").harmonize(adapted, data, context(tmp_path))


# ------------------------------------------------------------------------------------------ harmonising


def test_whole_slices_are_harmonised_whatever_the_crop(state: State, tmp_path: Path) -> None:
    images = site((150, 110), 5, size=(26, 35))
    outputs = []
    for crop in (16, None):
        method = small(stopping="none", crop=crop)
        outputs.append(method.harmonize(state, ApplyData({"target": images}), context(tmp_path)))
    assert outputs[0].shape == images.pixels.shape
    assert outputs[0].dtype == np.float32
    assert np.array_equal(*outputs)
    assert outputs[0][images.mask].min() > 0


def test_batches_do_not_matter(state: State, tmp_path: Path) -> None:
    shown = [
        small(stopping="none", adaptation={"batch_size": size}).harmonize(
            state, ApplyData({"target": TARGET}), context(tmp_path)
        )
        for size in (3, 64)
    ]
    assert np.allclose(*shown, atol=1e-5)


def test_it_is_registered() -> None:
    assert registry.load("harmonizing_flows") is HarmonizingFlows
    assert Path(inspect.getfile(registry.load("harmonizing_flows"))).name == "method.py"
    assert issubclass(HarmonizingFlows, Adaptive)
    assert HarmonizingFlows.source_free
    assert HarmonizingFlows.task_agnostic
    assert HarmonizingFlows.unknown_domains


def test_conformance() -> None:
    assert not [result for result in check_method(HarmonizingFlows) if not result.passed]

"""The checks of tasks, in the order in which they are tried."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import torch

from adaptkit.contracts import contract_faults
from adaptkit.data.packing import collate_packed, pack
from adaptkit.errors import DataError
from adaptkit.recipe import DataSpec
from adaptkit.task import Features, Splits
from adaptkit.testing.check import Check, NotApplicable, check, needs
from adaptkit.testing.options import assert_imports_no_torch, assert_strict_options
from adaptkit.testing.task_subject import TaskSubject
from adaptkit.testing.trial import ALL_TOKENS, Trial
from adaptkit.training.evaluation import Evaluation, inference, ordered_batches

SUM, CLOSE = 2e-6, 1e-5  # shares of a loss and of a figure, in fp32
STEPS_TO_LEARN, LEARNED = 40, 0.9  # of the loss before, at most
FEW_TOKENS = 45  # of a micro-batch
ANYTHING: tuple[Any, ...] = (None, 3, 2.5, True, "", "   ", [], {}, [None], {"a": 1})


@check(once=True)
def check_task_contract(subject: TaskSubject) -> None:
    """Name, docstring, roles and capabilities are as the contract wants them."""
    faults = contract_faults("task", subject.task.name, subject.task)
    assert not faults, "; ".join(faults)
    assert (subject.task.__doc__ or "").strip(), "the class has no docstring; its first line is what is listed"
    assert subject.task.roles, "it reads no column: roles is empty"
    assert subject.capabilities.families, "it serves no family"


@check(once=True)
def check_task_options(subject: TaskSubject) -> None:
    """Options refuse unknown keys, survive JSON, and are described."""
    assert_strict_options(subject.make().options)


@check(once=True)
def check_task_import(subject: TaskSubject) -> None:
    """The module of the task imports no torch."""
    assert_imports_no_torch(subject.task.__module__)


@check(once=True)
def check_bad_rows(subject: TaskSubject) -> None:
    """A row that cannot be used is refused, with its place, before a model is loaded."""
    if not subject.bad_rows:
        raise NotApplicable("no bad rows are given")
    for bad in subject.bad_rows:
        _assert_refused(subject, bad)


@check(once=True)
def check_hostile_rows(subject: TaskSubject) -> None:
    """Whatever stands in a column, the answer is a DataError or none."""
    for role in (*subject.task.roles, *subject.task.label_roles):
        for value in ANYTHING:
            try:
                _prepare(subject, {**subject.rows[0], role: value})
            except DataError:
                continue
            except Exception as error:
                found = f"{role}: {value!r} ends in {type(error).__name__}: {error}"
                raise AssertionError(f"{found}; raise a DataError that says what was found") from error


def _assert_refused(subject: TaskSubject, bad: Mapping[str, Any]) -> None:
    try:
        _prepare(subject, bad)
    except DataError as error:
        places = " ".join(f"{problem.where} {problem.found}" for problem in error.problems)
    else:
        raise AssertionError(f"this row is accepted: {dict(bad)}")
    last = f"row {len(subject.rows) + 1}"
    assert last in places, f"the error does not say that {last} is the bad one: {places}"


def _prepare(subject: TaskSubject, *more: Mapping[str, Any]) -> None:
    data = DataSpec.model_validate({"train": "rows.jsonl"})
    subject.make().prepare(Splits(subject.read(*subject.rows, *more)), data)


@check()
def check_state(subject: TaskSubject) -> None:
    """What was learned from the rows survives JSON, and is all that features need."""
    trial = subject.trial()
    state = trial.task.state()
    again = json.loads(json.dumps(state))
    assert again == state, f"state() comes back from JSON as {again}, not {state}"
    loaded = subject.make()
    loaded.load_state(again)
    tokenizer, length = trial.adapted.base.tokenizer, trial.adapted.max_length
    features = loaded.features(subject.read(*subject.rows), trial.recipe.data, tokenizer, length)
    assert features == trial.prepared.train, "with the loaded state the same rows give other features"
    assert loaded.best == trial.task.best, "with the loaded state another figure chooses the best step"


@check()
def check_features(subject: TaskSubject) -> None:
    """Features are token ids of at most the length asked for; a row that asks for a prediction gives one."""
    trial = subject.trial()
    for feature in trial.prepared.train:
        ids = feature["input_ids"]
        assert isinstance(ids, list), f"input_ids is a {type(ids).__name__}, not a list"
        assert ids, "a feature has no token"
        assert all(isinstance(token, int) for token in ids), "input_ids are not integers"
        assert len(ids) <= trial.adapted.max_length, f"a feature has {len(ids)} tokens, of {trial.adapted.max_length}"
    asked = subject.unlabelled_features(trial)
    wanted = len(subject.unlabelled())
    assert len(asked) == wanted, f"{wanted} rows to predict give {len(asked)} features"


@check()
def check_collate(subject: TaskSubject) -> None:
    """A batch has ids and mask of (batch, seq), padded on the right."""
    trial = subject.trial()
    features = _varied(trial)
    batch = trial.task.collate(features, trial.adapted.base.tokenizer)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape, f"input_ids is {tuple(ids.shape)}, attention_mask {tuple(mask.shape)}"
    assert len(ids) == len(features), f"{len(features)} features give a batch of {len(ids)}"
    for row, feature in enumerate(features):
        own = feature["input_ids"]
        assert ids[row, : len(own)].tolist() == own, "the tokens of a row do not stand at its beginning"
        assert mask[row].sum() == len(own), "attention_mask is not 1 for each token of a row and 0 behind them"


@check()
def check_loss_is_a_sum(subject: TaskSubject) -> None:
    """Loss and count of a batch are the sums of those of its rows, however they are padded."""
    trial = subject.trial()
    features, tokenizer = _varied(trial), trial.adapted.base.tokenizer
    whole = trial.task.collate(features, tokenizer)
    rows = [trial.task.collate([feature], tokenizer) for feature in features]
    count, counts = trial.task.count(whole), sum(trial.task.count(row) for row in rows)
    assert count == counts, f"the batch counts {count}, its rows {counts}"
    assert count > 0, "nothing counts in a batch of labelled rows"
    with inference(trial.model, trial.adapted.numerics):
        total = float(trial.task.loss(trial.model, whole).total)
        totals = sum(float(trial.task.loss(trial.model, row).total) for row in rows)
    assert abs(total - totals) <= SUM * abs(totals), f"the batch's loss is {total:.7g}, that of its rows {totals:.7g}"


@check()
def check_loss_has_a_gradient(subject: TaskSubject) -> None:
    """The loss is a scalar with a gradient."""
    trial = subject.trial()
    total = trial.task.loss(trial.model, trial.batches(ALL_TOKENS)[0]).total
    assert total.ndim == 0, f"the loss has the shape {tuple(total.shape)}, not ()"
    total.backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trial.model.parameters()), (
        "no gradient comes back"
    )


@check()
def check_variation(subject: TaskSubject) -> None:
    """What an epoch makes of a row is a function of the row and the generator."""
    trial = subject.trial()
    before = json.dumps(trial.prepared.train)
    drawn = [_varied(trial) for _ in range(2)]
    assert drawn[0] == drawn[1], "the same generator gives another variation of a row"
    assert json.dumps(trial.prepared.train) == before, "vary() has changed the feature that it was given"


@check()
def check_metrics(subject: TaskSubject) -> None:
    """Figures do not depend on how the rows are cut into batches; the loss is one of them, and the mean of the sums."""
    trial = subject.trial()
    whole, cut = _figures(trial, ALL_TOKENS), _figures(trial, FEW_TOKENS)
    assert "loss" in whole, f"the figures have no loss: {', '.join(whole)}"
    assert trial.task.best.metric in whole, f"{trial.task.best.metric!r} chooses the best step and is no figure"
    off = {name: (value, cut.get(name)) for name, value in whole.items() if not _close(value, cut.get(name))}
    assert not off, f"cut into other batches, the figures are others: {off}"
    batches = ordered_batches(
        trial.task, trial.prepared.evaluation, trial.adapted.base.tokenizer, trial.adapted.numerics, ALL_TOKENS
    )
    with inference(trial.model, trial.adapted.numerics):
        sums = [(float(trial.task.loss(trial.model, b).total), trial.task.count(b)) for _, b in batches]
    mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
    assert _close(whole["loss"], mean), f"the figure loss is {whole['loss']:.7g}, that of the batches {mean:.7g}"


@check()
def check_predictions(subject: TaskSubject) -> None:
    """Every row gets one prediction, in JSON, without its label."""
    trial = subject.trial()
    trial.task.check(subject.unlabelled(), labelled=False)
    features, predictions = subject.unlabelled_features(trial), []
    batches = ordered_batches(trial.task, features, trial.adapted.base.tokenizer, trial.adapted.numerics, ALL_TOKENS)
    with inference(trial.model, trial.adapted.numerics):
        for _, batch in batches:
            predictions += trial.task.predict(trial.model, batch)
    assert len(predictions) == len(features), f"{len(features)} rows give {len(predictions)} predictions"
    assert all(predictions), "a prediction is empty"
    assert json.loads(json.dumps(predictions)) == predictions, "predictions come back from JSON as something else"


@check()
def check_head(subject: TaskSubject) -> None:
    """Whatever is new in the model is a function of the run's seed."""
    trial = subject.trial()
    made = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            base = trial.task.load_base(trial.prepared.source, trial.adapted.numerics, trial.recipe.training.seed)
        made.append({name: parameter.detach() for name, parameter in base.module.named_parameters()})
    other = [name for name, tensor in made[0].items() if not torch.equal(tensor, made[1][name])]
    assert not other, f"drawn anew each time: {', '.join(other[:4])}; seed torch within torch.random.fork_rng()"


@check(needs("packing"))
def check_packed_rows(subject: TaskSubject) -> None:
    """Rows that share a sequence have the loss that they have apart."""
    if subject.base_name != "llama":
        raise NotApplicable("tried on Llama, which tells packed rows apart by their positions")
    trial = subject.trial()
    features = _varied(trial)
    other = {key for feature in features for key in feature} - {"input_ids", "labels"}
    assert not other, f"features that are packed have input_ids and labels, not {', '.join(sorted(other))}"
    packed = collate_packed(pack(features, trial.adapted.max_length))
    padded = trial.task.collate(features, trial.adapted.base.tokenizer)
    assert trial.task.count(packed) == trial.task.count(padded), "packed, another number of labels counts"
    with inference(trial.model, trial.adapted.numerics):
        found, wanted = (float(trial.task.loss(trial.model, batch).total) for batch in (packed, padded))
    assert abs(found - wanted) <= CLOSE * abs(wanted), f"packed, the loss is {found:.7g}, apart {wanted:.7g}"


@check()
def check_learning(subject: TaskSubject) -> None:
    """The rows can be learned: the loss falls."""
    trial = subject.trial(max_steps=STEPS_TO_LEARN)
    before = trial.evaluate()["loss"]
    trial.step(STEPS_TO_LEARN)
    after = trial.evaluate()["loss"]
    assert after <= LEARNED * before, f"the loss was {before:.4f} and is {after:.4f} after {STEPS_TO_LEARN} steps"


def _varied(trial: Trial) -> list[Features]:
    return [trial.task.vary(row, random.Random(index)) for index, row in enumerate(trial.prepared.train)]


def _figures(trial: Trial, tokens: int) -> dict[str, float]:
    tokenizer = trial.adapted.base.tokenizer
    return Evaluation(
        trial.model, trial.task, trial.prepared.evaluation, tokenizer, trial.adapted.numerics, tokens
    ).figures()


def _close(one: float, other: float | None) -> bool:
    return other is not None and abs(one - other) <= CLOSE * max(1.0, abs(one))


TASK_CHECKS: tuple[Check, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Check))

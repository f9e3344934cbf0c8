"""Which tokens a step trains on, and which ones validation measures."""

import numpy as np
import pytest

from smollm.device.group import Group
from smollm.device.hardware import Hardware
from smollm.errors import CorpusError
from smollm.training.batches import Batches, BatchReader, Ids, Replay, validation_windows

STREAM = np.arange(1100, dtype=np.uint16)
"""Each token is its own position."""


def make(seed: int = 1, stage: str = "pretrain", tokens: int = 1000, sequences: int = 4, length: int = 10) -> Batches:
    return Batches(STREAM[:tokens], sequences, length, seed, stage)


def starts(batches: Batches, steps: range) -> list[int]:
    return [int(row[0]) for step in steps for row in batches(step)[0]]


def same(one: tuple[Ids, Ids], other: tuple[Ids, Ids]) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_a_batch_has_the_shape_and_type_asked_for() -> None:
    inputs, targets = make(sequences=4, length=10)(1)
    assert inputs.shape == targets.shape == (4, 10)
    assert inputs.dtype == targets.dtype == np.int64


def test_inputs_are_a_stretch_of_the_stream_and_targets_the_same_one_later() -> None:
    for step in (1, 7, 30, 123):
        inputs, targets = make()(step)
        assert np.array_equal(inputs, inputs[:, :1] + np.arange(10))
        assert np.array_equal(targets, (inputs + 1) % 1000)


def test_the_places_of_a_step_are_where_its_sequences_begin() -> None:
    batches = make()
    for step in (1, 24, 25, 50):
        assert [start for _, start in batches.places(step)] == [int(row[0]) for row in batches(step)[0]]


def test_a_batch_is_a_function_of_the_step_whatever_was_asked_before() -> None:
    in_order = make()
    batches = {step: in_order(step) for step in range(1, 80)}  # over three epochs
    out_of_order = make()
    for step in (79, 1, 50, 24, 25, 2):
        assert same(make()(step), batches[step])
        assert same(out_of_order(step), batches[step])


def test_another_seed_or_stage_or_step_gives_another_batch() -> None:
    first = make()(1)
    assert not same(make(seed=2)(1), first)
    assert not same(make(stage="finetune")(1), first)
    assert not same(make()(2), first)


def test_the_seeds_of_dropout_change_with_seed_stage_and_step_and_are_shared_out(cpu: Hardware) -> None:
    def seeds(batches: Batches, step: int = 1, rank: int = 0, size: int = 1) -> list[int]:
        return BatchReader(batches, Group(rank, size), cpu).dropout_seeds(step).tolist()

    expected = seeds(make())
    assert len(expected) == len(set(expected)) == 4
    assert all(0 <= seed < 2**31 for seed in expected)
    assert seeds(make()) == expected == [*seeds(make(), rank=0, size=2), *seeds(make(), rank=1, size=2)]
    others = [seeds(make(seed=2)), seeds(make(stage="finetune")), seeds(make(), step=2)]
    assert not set(expected) & {seed for other in others for seed in other}


@pytest.mark.parametrize("tokens", [1000, 1003, 997, 50, 51, 59])
def test_every_token_is_an_input_once_an_epoch(tokens: int) -> None:
    """Counted over whole epochs: less than a window is early or late by one epoch, and nothing is lost."""
    batches = make(tokens=tokens, sequences=1, length=10)
    counts = np.zeros(tokens, int)
    targets = np.zeros(tokens, int)
    step = 0
    for epoch in range(1, 25):
        while step * 10 < epoch * tokens:  # the windows that begin in this repetition
            step += 1
            given, wanted = batches(step)
            counts += np.bincount(given.ravel(), minlength=tokens)
            targets += np.bincount(wanted.ravel(), minlength=tokens)
        for seen in (counts, targets):
            ahead = seen - epoch
            assert set(ahead.tolist()) <= {0, 1}
            assert ahead.sum() == step * 10 - epoch * tokens < 10


def test_ten_epochs_of_a_stream_that_windows_do_not_divide_are_exactly_ten() -> None:
    batches = make(tokens=1003, sequences=1, length=10)
    inputs = np.concatenate([batches(step)[0].ravel() for step in range(1, 1004)])
    assert np.array_equal(np.bincount(inputs), np.full(1003, 10))


def test_each_epoch_has_another_order_and_other_cuts() -> None:
    batches = make(tokens=1003, sequences=1, length=10)
    epochs = [starts(batches, range(1 + -(-1003 * e // 10), 1 + -(-1003 * (e + 1) // 10))) for e in range(6)]
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 6
    assert [min(epoch) for epoch in epochs] == [0, 7, 4, 1, 8, 5]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)


def test_a_step_may_take_the_end_of_one_epoch_and_the_start_of_the_next() -> None:
    batches = make(tokens=70, sequences=3, length=10)
    visited = starts(batches, range(1, 8))  # 21 windows are three epochs
    for epoch in (visited[:7], visited[7:14], visited[14:]):
        assert sorted(epoch) == list(range(0, 70, 10))


def test_the_window_over_the_end_goes_on_at_the_beginning() -> None:
    batches = make(tokens=45, sequences=4, length=10)
    assert batches.texts["pretrain"].at(40).tolist() == [40, 41, 42, 43, 44, 0, 1, 2, 3, 4, 5]


def test_a_stream_that_is_exactly_large_enough_works() -> None:
    batches = make(tokens=40, sequences=4, length=10)
    for step in range(1, 60):
        inputs, targets = batches(step)
        assert np.array_equal(targets, (inputs + 1) % 40)
        assert sorted(inputs.ravel().tolist()) == list(range(40))


@pytest.mark.parametrize("tokens", [0, 1, 10, 39])
def test_too_small_a_stream_is_refused_with_the_rule_and_the_numbers(tokens: int) -> None:
    with pytest.raises(CorpusError) as caught:
        make(tokens=tokens, sequences=4, length=10)
    assert str(caught.value) == (
        f"data/tokens/pretrain/train.bin: a step needs 4 sequences of 10 tokens (40 tokens in all), got {tokens} "
        "tokens; add text, or lower pretrain.sequences_per_step or pretrain.sequence_length"
    )


OLD_STREAM = np.arange(10_000, 10_500, dtype=np.uint16)
"""Another stage's text, of other tokens."""


def replaying(fraction: float, sequences: int = 4, old: Ids | None = None) -> Batches:
    """A stage that also reads the text of the one before it."""
    replay = Replay("pretrain", OLD_STREAM if old is None else old, fraction)
    return Batches(STREAM[:1000], sequences, 10, 1, "finetune", replay)


def old_and_own(batches: Batches, steps: int) -> tuple[list[int], list[int]]:
    """Where the replayed sequences of the first steps begin, and the stage's own, in their order."""
    begins = starts(batches, range(1, steps + 1))
    return [start for start in begins if start >= 10_000], [start for start in begins if start < 10_000]


@pytest.mark.parametrize(("fraction", "sequences", "replayed"), [(0.25, 4, 1), (0.1, 30, 3), (0.9, 10, 9), (0.5, 2, 1)])
def test_each_step_replays_that_fraction_where_it_is_a_whole_number(
    fraction: float, sequences: int, replayed: int
) -> None:
    batches = replaying(fraction, sequences)
    for step in range(1, 200):
        inputs, targets = batches(step)
        assert int((inputs[:, 0] >= 10_000).sum()) == replayed
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.1, 1 / 3, 0.3, 0.77, 0.99])
def test_elsewhere_it_is_that_fraction_after_any_number_of_steps_to_half_a_sequence(fraction: float) -> None:
    batches, replayed = replaying(fraction), 0
    for step in range(1, 600):
        texts = [text.stage for text, _ in batches.places(step)]
        assert len(texts) == 4
        assert texts == sorted(texts), "replayed ones are last: finetune, then pretrain"
        replayed += texts.count("pretrain")
        assert abs(replayed - 4 * step * fraction) <= 0.5 + 1e-9


def test_both_texts_are_read_in_the_order_in_which_their_stages_alone_read_them() -> None:
    replayed, own = old_and_own(replaying(0.25), steps=300)
    alone = make(stage="finetune")
    assert own == starts(alone, range(1, 226)), "nine epochs"
    of_pretrain = Batches(OLD_STREAM, 3, 10, 1, "pretrain")
    assert replayed == starts(of_pretrain, range(1, 101)), "six epochs"


def test_a_fraction_of_zero_is_no_replay() -> None:
    for step in range(1, 60):
        assert same(replaying(0.0)(step), make(stage="finetune")(step))


def test_a_batch_with_replay_is_a_function_of_the_step_and_shared_out_by_rows(cpu: Hardware) -> None:
    in_order = replaying(0.3)
    batches = {step: in_order(step) for step in range(1, 80)}
    for step in (79, 1, 50, 24, 25, 2):
        assert same(replaying(0.3)(step), batches[step])
        halves = [BatchReader(replaying(0.3), Group(rank, 2), cpu).read(step) for rank in (0, 1)]
        assert np.array_equal(np.concatenate(halves, axis=1), np.stack(batches[step]))


def test_too_small_a_text_to_replay_is_refused_by_its_name() -> None:
    with pytest.raises(CorpusError) as caught:
        replaying(0.25, old=OLD_STREAM[:39])
    assert str(caught.value) == (
        "data/tokens/pretrain/train.bin: a step needs 4 sequences of 10 tokens (40 tokens in all), got 39 "
        "tokens; add text, or lower finetune.sequences_per_step or finetune.sequence_length"
    )


def test_ids_above_65535_stay_what_they_are() -> None:
    stream = np.arange(70_000, 70_100, dtype=np.uint32)
    inputs, _ = Batches(stream, 4, 10, 1, "pretrain")(1)
    assert inputs.min() >= 70_000


def test_validation_windows_are_consecutive_and_overlap_by_one() -> None:
    windows = validation_windows(STREAM[:31], 10, 1000, "pretrain")
    assert windows.dtype == np.int64
    assert np.array_equal(windows, [range(0, 11), range(10, 21), range(20, 31)])


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        (11, 1000, 1),  # exactly one window
        (20, 1000, 1),
        (21, 1000, 2),
        (1000, 30, 3),  # exactly `most`
        (1000, 39, 3),
        (1000, 40, 4),
        (1000, 9, 1),  # one at least
        (1000, 1, 1),
    ],
)
def test_validation_takes_as_many_windows_as_fit_and_are_allowed(tokens: int, most: int, expected: int) -> None:
    assert validation_windows(STREAM[:tokens], 10, most, "pretrain").shape == (expected, 11)


@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_held_out_text_shorter_than_a_window_is_refused(tokens: int) -> None:
    with pytest.raises(CorpusError) as caught:
        validation_windows(STREAM[:tokens], 10, 1000, "finetune")
    assert str(caught.value) == (
        f"data/tokens/finetune/validation.bin: must hold a sequence of 11 tokens, got {tokens}; "
        "add text, raise corpus.validation_fraction or lower finetune.sequence_length"
    )

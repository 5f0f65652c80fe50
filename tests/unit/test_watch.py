from bonemet_auto.training.watch import doubts


def rows(*losses, dice=None, waits=None, steps=100):
    values = [0.5] * len(losses) if dice is None else dice
    waits = [0.0] * len(losses) if waits is None else waits
    return [
        {"epoch": i, "step": (i + 1) * steps, "dense_dice": d, "dense_entropy": loss - d}
        | {"step_s": 1.0, "loader_wait_s": wait}
        for i, (loss, d, wait) in enumerate(zip(losses, values, waits, strict=True))
    ]


def spoken(table, total=1000):
    """Doubts epoch by epoch."""
    return [doubts(table[: i + 1], total) for i in range(len(table))]


def test_a_run_that_learns_raises_no_doubt():
    assert not any(spoken(rows(1.2, 1.0, 1.1, 0.9, 0.7, 0.8, 0.6)))


def test_one_bad_epoch_is_no_divergence_and_two_are_and_are_said_once():
    said = spoken(rows(1.2, 0.8, 1.3, 0.8, 1.3, 1.4, 1.5))
    assert [len(item) for item in said] == [0, 0, 0, 0, 0, 1, 0]
    assert "diverges" in said[5][0] and "learning_rate" in said[5][0]


def test_a_blind_network_is_named_after_a_quarter_of_the_run_and_once():
    said = spoken(rows(*[1.2] * 6, dice=[0.97] * 6))
    assert [len(item) for item in said] == [0, 0, 1, 0, 0, 0]
    assert "300 of 1000" in said[2][0] and "label maps" in said[2][0]


def test_a_short_run_gets_200_steps_to_begin_with():
    assert not any(spoken(rows(*[1.2] * 10, dice=[0.97] * 10, steps=10), 100))


def test_epochs_without_a_window_with_lesions_say_nothing():
    assert not any(spoken(rows(*[1.2] * 6, dice=[0.0] * 6)))


def test_a_loader_that_is_too_slow_is_named_once_and_not_while_it_starts():
    said = spoken(rows(*[1.0] * 6, waits=[0.9, 0.0, 0.3, 0.25, 0.3, 0.3]))
    assert [len(item) for item in said] == [0, 0, 0, 1, 0, 0]
    assert "25%" in said[3][0] and "--workers" in said[3][0]

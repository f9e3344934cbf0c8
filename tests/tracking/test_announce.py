"""Lines with numbers in them, which may be 1."""

from smollm.tracking import announce


def test_one_is_singular() -> None:
    assert announce.pace(1, 60.0) == "1 more step takes about 01:00, at 6e+04 ms a step"
    assert announce.pace(1200, 0.05) == "1,200 more steps take about 01:00, at 50 ms a step"
    assert announce.epochs("pretrain", 1, 1.0) == "1 step is 1 epoch of pretrain's text"
    assert announce.epochs("pretrain", 2, 0.5) == "2 steps are 0.5 epochs of pretrain's text"
    assert announce.training_plan(1, 1, 768, 6e6, 10**6, 1).startswith("1 step (to step 1) of 768 tokens")
    assert announce.text_resumed("finetune", 1, 2_000_000) == "finetune: resumed after 1 document, 2.0 MB"
    assert announce.near_duplicates("finetune", {"removed": 1, "removed_bytes": 2e5}).endswith(
        "left out 1 near-duplicate, 0.2 MB"
    )
    assert "in the last validation:" in announce.validation_stalled(1, 50, 1.5, 1.6)

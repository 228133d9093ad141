"""What is recommended, and what never is."""

import pytest

from ts_parity.training.recommend import recommend


def made(code, k, loss, cost, **more):
    family = "parity" if code in ("sum", "concat") else "backup"
    told = {"code": code, "k": k, "r": 1, "family": family, "loss": loss, "cost": cost, "metric": "accuracy"}
    return {**told, "loss_of": "accuracy", **more}


def say(*candidates, **more):
    return recommend(
        {"candidates": candidates, "bodies": 60_000, "hyperparameters": {"steps": 2000}, "budget": 1.0, **more}
    )


EXACT = made("exact", 2, 0.0, 2.0)


def test_the_cheapest_of_those_that_lose_little():
    said = say(made("student", 2, 0.002, 1.0), made("student", 4, 0.008, 1.0), made("student", 4, 0.03, 0.5), EXACT)
    assert said.startswith(
        "Take student with k=4: loses 0.80 points of accuracy on rebuilt answers and adds 25% of work"
    )
    assert "student with k=2 loses 0.20 points" in said
    assert "Second copies" in said, "second copies lose nothing: they are always compared with"


def test_what_loses_more_than_a_tenth_is_never_recommended():
    said = say(made("student", 4, 0.9915, 1.0), bodies=120)
    assert said.startswith("Take none of these: the best, student with k=4, loses 99.15 points of accuracy")
    assert "what loses more than 10% is never recommended" in said
    assert "to try: --budget 2, --k 2, --steps 8000, more bodies (these were 120)." in said
    assert say(made("student", 4, 0.9915, 1.0), EXACT).startswith("Take exact with k=2: loses nothing")
    assert say(made("sum", 2, 0.5, 1.0), beside=[EXACT]).startswith("Take exact with k=2: loses nothing")


def test_exact_is_compared_with_what_was_trained():
    said = say(made("student", 2, 0.003, 2.4), beside=[EXACT, made("exact", 4, 0.0, 4.0)])
    assert said.startswith(
        "Take exact with k=2: loses nothing on rebuilt answers and adds 100% of work; student with k=2 "
    )


def test_a_loss_that_few_bodies_told_is_said_to_be_so():
    student = made("student", 2, 0.0, 1.0, intervals={"loss": [-0.08, 0.08]})
    assert "That loss is known to ± 8.0 points only; more bodies would tell." in say(student)
    assert "more bodies" not in say({**student, "intervals": {"loss": [-0.004, 0.004]}})


@pytest.mark.parametrize("where", ["candidates", "beside"])
def test_a_sum_is_not_taken_where_exact_does_as_well(where):
    """Where a batch takes hardly longer than one query, what loses nothing costs as much."""
    cheap = made("exact", 2, 0.0, 1.1)
    mine = [made("sum", 2, 0.005, 1.0)]
    said = say(*mine, cheap) if where == "candidates" else say(*mine, beside=[cheap])
    assert said.startswith("Take exact with k=2: loses nothing on rebuilt answers and adds 55% of work")


def test_a_sum_is_taken_only_where_second_copies_are_not_enough():
    said = say(made("sum", 2, 0.005, 1.0), beside=[EXACT])
    assert said.startswith("Where second copies are not enough, take sum with k=2: loses 0.50 points")
    assert "exact with k=2 loses nothing on rebuilt answers and adds 100% of work" in said


def test_without_labels_what_is_lost_is_agreement():
    said = say(made("student", 2, 0.05, 1.0, loss_of="agreement"))
    assert "loses 5.00 points of agreement" in said
    assert "--labels (where your model is unsure, another answer is no worse)" in said


def test_a_regressor_is_off_by_so_much_and_loses_no_agreement():
    numbers = {"metric": "mae", "loss_of": "the outputs' variance", "score": 9.87, "spread": 76.2}
    said = say(made("student", 2, 0.017, 1.0, **numbers))
    assert (
        "is off by 9.87 on rebuilt answers (mean absolute error; the outputs' spread is 76.2, so that loses 1.70% of "
        "the outputs' variance) and adds 50% of work" in said
    )
    assert "agreement" not in said
    numbers = {"metric": "rmse", "loss_of": "the labels' variance", "E_a": 53.2, "E_d": 54.1}
    said = say(made("student", 2, 0.017, 1.0, **numbers))
    assert (
        "loses 1.70% of the labels' variance on rebuilt answers (their root mean square error is 54.1, that of " in said
    )
    assert "loses nothing on rebuilt answers (their root" in say(made("student", 2, -0.017, 1.0, **numbers))


def test_what_was_not_measured():
    assert "what it costs was not measured" in recommend({"candidates": [{"code": "exact", "k": 2, "loss": 0.0}]})

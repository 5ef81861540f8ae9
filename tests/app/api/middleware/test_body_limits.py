import pytest

from app.api.middleware.body_limits import Budget
from app.errors import Overloaded


def test_a_budget_refuses_what_does_not_fit() -> None:
    budget = Budget(10)
    budget.take(6)
    with pytest.raises(Overloaded):
        budget.take(5)
    assert budget.used == 6
    budget.take(4)
    budget.give_back(10)
    assert budget.used == 0

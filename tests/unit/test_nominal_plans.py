from pathlib import Path

from tests.nominal import nominal_table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "plans.md"


def test_the_page_of_nominal_plans_shows_what_the_planners_do():
    assert nominal_table() in PAGE.read_text(encoding="utf-8")

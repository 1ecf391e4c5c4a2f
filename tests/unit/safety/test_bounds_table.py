"""docs/bounds.md holds every bound as the code declares it."""

from pathlib import Path

from safety.bounds import Bounds, table
from safety.limits import limits_of

PAGE = Path(__file__).parents[3] / "docs" / "bounds.md"


def test_the_table_in_the_documentation_is_the_one_of_the_code() -> None:
    assert table() in PAGE.read_text(), "put into docs/bounds.md what safety.bounds.table() gives"
    for name, _, _ in limits_of(Bounds()):
        assert f"| `{name}` |" in table()

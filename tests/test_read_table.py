"""Tables as people save them: with a byte order mark, spaces, empty cells; or refused in one sentence."""

from __future__ import annotations

import pytest

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_table


def test_rows_come_with_their_line_and_without_outer_spaces(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeff x , name\r\n 1.5, upper left \r\n\r\n2\r\n".encode())
    assert read_table(path, ["x"]) == [(2, {"x": "1.5", "name": "upper left"}), (4, {"x": "2", "name": ""})]


def test_a_quoted_cell_may_hold_commas(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('x,y\n"a,b",c,more\n')
    assert read_table(path, "xy") == [(2, {"x": "a,b", "y": "c"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'x'; its first line must name x, y"),
        (b"x,z\n1,2\n", "has no column 'y'"),
        (b"x,y\n", "has no rows"),
        (b"x,y\n\xff\xfe,1\n", "is not a table in UTF-8"),
    ],
)
def test_what_is_no_such_table_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_table(path, "xy")
    assert str(path) in str(error.value)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="none.csv' cannot be read"):
        read_table(tmp_path / "none.csv", "x")

"""CSV files of spreadsheets: separators, and what a comma within a number means."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vit_jax.errors import ConfigError, DataError
from vit_jax.scaling.table import numeric_column, read_runs


def table(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text, newline="")
    return read_runs(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators(tmp_path, separator, end):
    lines = ["model;images;error %", "a;1000;49.5", "b;3000;", "c;;7"]
    columns = table(tmp_path, end.join(lines).replace(";", separator) + end)
    assert columns["model"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(columns["images"], [1000, 3000, np.nan])
    np.testing.assert_array_equal(columns["error %"], [49.5, np.nan, 7])


def test_the_separator_is_looked_for_outside_quotes(tmp_path):
    columns = table(tmp_path, '\ufeff"a;b;c",d\n1,2\n')
    assert list(columns) == ["a;b;c", "d"]
    assert list(table(tmp_path, "only\n1\n")) == ["only"]
    for separator in ",;\t":
        text = 'a;"error, in %,\nof all, top-1";c\n1;2;3\n'.replace(";", separator)
        columns = table(tmp_path, text)
        assert list(columns) == ["a", "error, in %,\nof all, top-1", "c"]


@pytest.mark.parametrize("start", ["sep=;\n", "\ufeffsep=;\r\n"])
def test_excels_line_names_the_separator(tmp_path, start):
    columns = table(tmp_path, f"{start}a;b, c, d, e\n1;2,5\n")
    assert list(columns) == ["a", "b, c, d, e"] and columns["b, c, d, e"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (("49,55", "7", "NA"), [49.55, 7, np.nan]),
        (("1,5e3", "-2,25", "1,125"), [1500, -2.25, 1.125]),
        (("1000,5", "1,000", "2,000"), [1000.5, 1, 2]),
        (("1.000,5", "10.000", "1.000.000"), [1000.5, 1e4, 1e6]),
        (("49,55 %", "7\u00a0%", "NA"), [0.4955, 0.07, np.nan]),
    ],
)
def test_decimal_commas_between_semicolons(tmp_path, cells, values):
    lines = [f"{name};{cell};1e15" for name, cell in zip("abc", cells, strict=True)]
    columns = table(tmp_path, "\n".join(["model;error;flops", *lines]) + "\n")
    np.testing.assert_array_equal(columns["error"], values)
    np.testing.assert_array_equal(columns["flops"], [1e15] * 3)


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        ("1,000;3,000", "'1,000' in row 1.* Write decimal points and no marks of thousands"),
        ("1.000;300", r"'1\.000' in row 1"),  # Read as 1, the law would be off by 1,000.
        ("1,5;2.5", "'1,5' in row 1"),  # Two marks in one file.
        ("12.5%;2", r"'12\.5%' in row 1.*write all with it, or none"),
    ],
)
def test_ambiguous_commas_stay_text(tmp_path, cells, shown):
    first, second = cells.split(";")
    columns = table(tmp_path, f"x;y\n{first};1\n{second};2\n")
    with pytest.raises(ConfigError, match=shown):
        numeric_column(columns, "x")


def test_a_decimal_point_anywhere_makes_commas_text(tmp_path):
    columns = table(tmp_path, "x;y\n1,5;0.25\n2,5;0.5\n")
    assert columns["x"].tolist() == ["1,5", "2,5"] and columns["y"].tolist() == [0.25, 0.5]


def test_numbers_in_quotes_between_commas(tmp_path):
    columns = table(tmp_path, 'x,y\n"1,000",0.25\n"1,200,000",0.5\n')
    assert columns["x"].tolist() == [1000, 1_200_000] and columns["y"].tolist() == [0.25, 0.5]
    columns = table(tmp_path, 'x,y\n"0,5",12%\n"1,25",7 %\n')
    assert columns["x"].tolist() == [0.5, 1.25] and columns["y"].tolist() == [0.12, 0.07]


def test_an_ambiguous_separator_is_an_error_that_says_what_to_write(tmp_path):
    text = "params,n;error\n1,2;3\n4,5;6\n"
    with pytest.raises(DataError, match=r"commas or semicolons.* first line sep=, or sep=;"):
        table(tmp_path, text)
    assert list(table(tmp_path, f"sep=;\n{text}")) == ["params,n", "error"]


def test_lines_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read as a table"):
        table(tmp_path, "a;b\n1;2;3\n")


def test_a_folder_stands_for_its_table_of_runs(tmp_path):
    table(tmp_path, "x\n1\n")
    np.testing.assert_array_equal(read_runs(tmp_path)["x"], [1])
    (tmp_path / "runs.csv").rename(tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"without runs\.parquet or runs\.csv.*in it: other\.csv"):
        read_runs(tmp_path)
    pq.write_table(pa.table({"x": [2]}), tmp_path / "runs.parquet")
    np.testing.assert_array_equal(read_runs(tmp_path)["x"], [2])

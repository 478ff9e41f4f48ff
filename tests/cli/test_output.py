# SPDX-License-Identifier: BSD-3-Clause
import csv
import io

import pytest

from blip_hf.cli.caption_formats import name_in_file, write_records
from blip_hf.cli.output import escape_controls, escape_formula
from blip_hf.cli.skipped import say
from blip_hf.cli.tables import write_table


NAMES = ["a\tb", "a\nb", "a\rb", "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "a\u2028b", "gpj.\u202eexe", "\x00"]
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", " =1+1", "\t=1+1", '=HYPERLINK("http://a","b")']


def text_of(records, output_format):
    stream = io.StringIO()
    write_records(records, stream, columns=list(records[0]), output_format=output_format)
    return stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_no_control_character_reaches_text_or_terminals(name, capsys):
    table = io.StringIO()
    write_table([{"image": name, "score": 0.5}], table, "table")
    say("blip-hf caption", f"skipped: {name}")
    text = text_of([{"image": name, "caption": "a dog"}], "text")
    for output in (table.getvalue(), capsys.readouterr().err, text):
        assert output.count("\n") == len(output.splitlines())
        assert all(character.isprintable() for character in output.replace("\n", "").replace("\t", ""))
    assert text.split("\t")[0] == escape_controls(name) == name_in_file(name, "text")
    assert escape_controls(escape_controls(name)) == escape_controls(name)


@pytest.mark.parametrize("formula", FORMULAS)
def test_csv_has_no_formulas(formula):
    table = io.StringIO()
    write_table([{"image": formula, "score": -0.5}], table, "csv")
    captions = text_of([{"image": "a.png", "caption": formula, "score": -0.5}], "csv")
    for output in (table.getvalue(), captions):
        (row,) = csv.DictReader(io.StringIO(output))
        assert all(cell[0] not in "=+@\t " for cell in row.values())
        assert row["score"] == "-0.5"
    assert escape_formula(escape_formula(formula)) == escape_formula(formula)


@pytest.mark.parametrize("text", ["a dog", "a dog - and a cat", "-1", "-0.5", "+3e-05", "日本語", "é"])
def test_other_texts_and_numbers_do_not_change(text):
    assert escape_formula(text) == escape_controls(text) == text

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path

import pytest

from adaptkit.data.sources import fingerprint, read_rows
from adaptkit.errors import DataError, Problem

ROWS = [{"text": "good", "label": "yes"}, {"text": 'bad\u2028line, "quoted"', "label": "no"}]
CSV = 'text,label\ngood,yes\n"bad\u2028line, ""quoted""",no\n'


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def problems_of(source: str) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.exit_code == 3
    return caught.value.problems


def write_as(suffix: str, folder: Path) -> str:
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
        return str(folder / "a.parquet")
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    content = {
        ".jsonl": lines + "\n\n",
        ".json": json.dumps(ROWS),
        ".csv": CSV,
        ".tsv": CSV.replace(",label", "\tlabel").replace(",yes", "\tyes").replace('",no', '"\tno'),
    }
    return write(folder / f"a{suffix}", content[suffix])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(suffix, tmp_path):
    assert [row.values for row in read_rows(write_as(suffix, tmp_path))] == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("change", [lambda text: codecs.BOM_UTF8 + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(suffix, change, tmp_path):
    path = Path(write_as(suffix, tmp_path))
    path.write_bytes(change(path.read_bytes()))
    assert [row.values for row in read_rows(str(path))] == ROWS


def test_a_row_says_the_line_on_which_it_begins(tmp_path):
    source = write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\n\nlast,2\n')
    assert [row.where for row in read_rows(source)] == [f"{source}:2", f"{source}:5"]
    source = write(tmp_path / "a.jsonl", '\n{"text": 1}\n')
    assert [row.where for row in read_rows(source)] == [f"{source}:2"]


def test_a_row_of_a_format_without_lines_says_its_number(tmp_path):
    source = write(tmp_path / "a.json", '{"data": [{"text": "a"}, {"text": "b"}]}')
    assert [row.where for row in read_rows(source)] == [f"{source}, row 1", f"{source}, row 2"]


# -- texts and tagged sentences ------------------------------------------------------------------------


def test_a_text_file_is_one_row_with_its_name(tmp_path):
    source = write(tmp_path / "Othello.txt", "Tush!\n\nNever tell me.\n")
    [row] = read_rows(source)
    assert row.values == {"text": "Tush!\n\nNever tell me.\n", "document": "Othello.txt"}
    assert row.where == source


def test_a_folder_of_texts_is_a_row_a_file_in_the_order_of_their_names(tmp_path):
    for name in ("b.txt", "a.txt", "c.TXT"):
        write(tmp_path / name, f"text of {name}")
    write(tmp_path / "LICENSE", "is no data")
    rows = read_rows(str(tmp_path))
    assert [row.values["document"] for row in rows] == ["a.txt", "b.txt", "c.TXT"]
    assert rows[1].values["text"] == "text of b.txt"
    assert rows[1].where == str(tmp_path / "b.txt")


def test_a_folder_with_other_data_beside_its_texts_is_not_guessed_at(tmp_path):
    write(tmp_path / "notes.txt", "a")
    write(tmp_path / "train.csv", CSV)
    [problem] = problems_of(str(tmp_path))
    assert problem.fix == "name one of its files: 'notes.txt', 'train.csv'"


def test_every_text_of_a_folder_that_cannot_be_read_is_named(tmp_path):
    for name, content in {"a.txt": b"\xff", "b.txt": b"good", "c.txt": b""}.items():
        write(tmp_path / name, content)
    assert [Path(problem.where.partition(":")[0]).name for problem in problems_of(str(tmp_path))] == ["a.txt", "c.txt"]


def test_a_folder_of_texts_has_no_splits(tmp_path):
    write(tmp_path / "a.txt", "a")
    [problem] = problems_of(f"{tmp_path}:train")
    assert problem.found == "a folder of texts has no split 'train'"


CONLL = "-DOCSTART- -X- O\n\n# a comment\nThe DT O\ncat NN B-X\n\n\n# 3\nNo. UH O\n# NN O\n"


@pytest.mark.parametrize("change", [str, lambda text: text.replace(" ", "  "), lambda text: text.replace("\n", "\r\n")])
def test_a_conll_file_is_a_row_a_sentence_of_first_and_last_column(change, tmp_path):
    source = write(tmp_path / "a.conll", change(CONLL))
    rows = read_rows(source)
    assert [(row.values["tokens"], row.values["tags"]) for row in rows] == [
        (["The", "cat"], ["O", "B-X"]),
        (["No.", "#"], ["O", "O"]),
    ]
    assert [row.where for row in rows] == [f"{source}:4", f"{source}:9"]


SHARP = "# id 7\n# 3 CD\n# sent_id = NN\n# NN\n3 CD\n# NN\nis VBZ\n\n# VBZ\n\n# NNP\nThe NN\n"


def test_a_sentence_may_begin_with_the_word_sharp(tmp_path):
    """Or else whole words vanish without a word: in old Wall Street Journals it is the pound."""
    rows = read_rows(write(tmp_path / "a.conll", SHARP))
    assert [(row.values["tokens"], row.values["tags"]) for row in rows] == [
        (["#", "3", "#", "is"], ["NN", "CD", "NN", "VBZ"]),
        (["#"], ["VBZ"]),
        (["The"], ["NN"]),
    ]


def test_columns_may_be_cut_by_tabs_so_that_a_token_has_spaces(tmp_path):
    [row] = read_rows(write(tmp_path / "a.conll", "New York\tB-LOC\n# \tO\n"))
    assert row.values["tokens"] == ["New York", "# "]


def test_a_file_of_tokens_alone_has_rows_without_tags(tmp_path):
    [row] = read_rows(write(tmp_path / "a.conll", "The\ncat\n"))
    assert row.values == {"tokens": ["The", "cat"], "document": "a.conll"}


def test_sentences_between_document_lines_belong_together(tmp_path):
    lines = "-DOCSTART- O\n\na O\n\nb O\n\n-DOCSTART- O\n\nc O\n"
    documents = [row.values["document"] for row in read_rows(write(tmp_path / "a.conll", lines))]
    assert documents[0] == documents[1] != documents[2]


def test_every_line_with_another_number_of_fields_is_reported(tmp_path):
    source = write(tmp_path / "a.conll", "The\ncat NN\n\nsat VB\ndown in RP\nthere RB\n")
    problems = problems_of(source)
    assert [problem.where for problem in problems] == [f"{source}:1", f"{source}:5"]
    assert problems[0].allowed == "2 fields, as the others have"


CONLLU = """\
# newdoc id = one
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
3.1\tgone\tgo\tVERB\tVB\t_\t_\t_\t_\t_

#text = no space
1\tStop\tstop\tVERB\tVB\t_\t0\troot\t_\t_
"""


def test_a_conllu_file_gives_words_with_both_kinds_of_tags(tmp_path):
    rows = read_rows(write(tmp_path / "a.conllu", CONLLU))
    assert [row.values["tokens"] for row in rows] == [["Do", "n't", "go"], ["Stop"]]
    assert rows[0].values["tags"] == ["AUX", "PART", "VERB"]
    assert rows[0].values["xpos"] == ["VB", "RB", "VB"]


def test_a_conllu_file_needs_ten_fields(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.conllu", CONLLU + "2\tnow\tADV\n"))
    assert problem.allowed == "10 fields, as the others have"


# -- what is not there ---------------------------------------------------------------------------------


def test_a_missing_file_is_answered_with_the_nearest_name_of_its_folder(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    [problem] = problems_of(str(tmp_path / "trian.jsonl"))
    assert "there is no file or folder" in problem.found
    assert problem.where == str(tmp_path / "trian.jsonl")
    assert problem.fix == "did you mean 'train.jsonl'?"


def test_a_missing_folder_is_named(tmp_path):
    [problem] = problems_of(str(tmp_path / "nowhere" / "train.jsonl"))
    assert str(tmp_path / "nowhere") in problem.fix


@pytest.mark.parametrize(
    "name", ["json", "train", "../x/y", "sql:train", "owner/train.jsonl", "/dev/null", "~nobody-here/x", "long " * 99]
)
def test_only_owner_and_name_are_looked_up_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("the hub was asked"))
    problems_of(name)


def test_what_neither_the_disk_nor_the_hub_has_is_one_data_error(monkeypatch):
    def not_there(name: str) -> None:
        raise ConnectionError(f"no route to {name}\nat all")

    monkeypatch.setattr("datasets.load_dataset", not_there)
    [problem] = problems_of("owner/name:train")
    assert problem.found == "neither this disk nor the hub has it: no route to owner/name"
    assert "hub id" in problem.allowed


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_an_empty_file_is_called_empty(suffix, tmp_path):
    [problem] = problems_of(write(tmp_path / f"a{suffix}", ""))
    assert problem.found == "the file is empty"
    assert problem.allowed == "at least one row"


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.json", "[]"), ("a.jsonl", "\n \n")])
def test_a_file_without_rows_is_an_error(name, content, tmp_path):
    [problem] = problems_of(write(tmp_path / name, content))
    assert problem.found == "there are no rows in it"


def test_an_unknown_suffix_is_answered_with_the_known_ones(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.jsnl", "{}"))
    assert "'.jsnl'" in problem.found
    assert problem.allowed == ".jsonl, .json, .csv, .tsv, .parquet, .txt, .conll, .conllu"
    assert problem.fix == "did you mean '.jsonl'?"


def test_a_folder_that_is_no_data_set_is_answered_with_its_files(tmp_path):
    write(tmp_path / "train.csv", CSV)
    [problem] = problems_of(str(tmp_path))
    assert "no data set saved by `datasets`" in problem.found
    assert "'train.csv'" in problem.fix


# -- what is broken ------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_is_found_with_offset_and_line(tmp_path):
    content = codecs.BOM_UTF8 + b'{"text": "fine"}\n{"text": "caf\xe9"}\n{"text": "\xfcber"}\n'
    source = write(tmp_path / "a.jsonl", content)
    [problem] = problems_of(source)
    assert f"byte 0xe9 at offset {content.index(0xE9)} is not UTF-8" in problem.found
    assert "2 line(s)" in problem.found
    assert problem.where == f"{source}:2"
    assert "save the file as UTF-8" in problem.fix


def test_utf16_is_recognised(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.csv", CSV.encode("utf-16")))
    assert "iconv -f UTF-16" in problem.fix


def test_all_broken_lines_of_a_file_are_reported_at_once(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": }\n[1]\n"x"\n{"text": "b"}\n')
    problems = problems_of(source)
    assert [problem.where for problem in problems] == [f"{source}:2:10", f"{source}:3", f"{source}:4"]
    assert problems[0].found == "the JSON is broken: Expecting value"
    assert problems[1].found == "the row is a list, not an object"
    assert all(problem.allowed and problem.fix for problem in problems)


def test_after_ten_places_of_a_problem_only_their_number_is_told(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.jsonl", "oops\n" * 1234))
    assert len(problem.where.splitlines()) == 11
    assert problem.where.endswith("\nand 1,224 more")


def test_broken_json_is_found_at_line_and_column(tmp_path):
    source = write(tmp_path / "a.json", '[\n  {"text": "a"},\n  {"text" "b"}\n]')
    [problem] = problems_of(source)
    assert problem.where == f"{source}:3:11"


def test_json_lines_in_a_json_file_are_recognised(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n'))
    assert ".jsonl" in problem.fix


@pytest.mark.parametrize("content", ["5", '{"rows": []}', "null", '"text"'])
def test_json_that_is_no_list_of_rows_is_an_error(content, tmp_path):
    [problem] = problems_of(write(tmp_path / "a.json", content))
    assert "not a list of rows" in problem.found


@pytest.mark.parametrize("content", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_that_python_refuses_is_a_data_error(content, suffix, tmp_path):
    [problem] = problems_of(write(tmp_path / f"a{suffix}", content))
    assert "the JSON is broken" in problem.found


def test_rows_with_another_number_of_fields_than_the_header_are_all_found(tmp_path):
    source = write(tmp_path / "a.csv", "text,label\nno comma\ngood,yes\na, comma,no\n")
    problems = problems_of(source)
    assert [problem.where for problem in problems] == [f"{source}:2", f"{source}:4"]
    assert problems[1].found == "the row has 3 fields, the header 2"
    assert "double quotes" in problems[1].fix


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(tmp_path):
    source = write(tmp_path / "a.csv", 'text,label\ngood,yes\n"bad,no\nfine,yes\n')
    [problem] = problems_of(source)
    assert problem.where == f"{source}:3"
    assert "close every quote" in problem.fix


def test_a_column_name_that_occurs_twice_is_an_error(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.csv", "text,label,text\na,b,c\n"))
    assert problem.found == "2 columns are named 'text'"


def test_a_file_that_only_says_it_is_parquet_is_an_error(tmp_path):
    [problem] = problems_of(write(tmp_path / "a.parquet", "text,label\n"))
    assert "not readable as Parquet" in problem.found


def test_a_quote_that_swallows_rows_of_a_tsv_file_is_named(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('text\tlabel\n"Great film\t1\nawful\t0\nok, he said"\t1\n', encoding="utf-8")
    [problem] = problems_of(str(file))
    assert (problem.where, "closes rows later" in problem.found) == (f"{file}:2", True)


def test_a_field_may_be_a_long_document(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(f"text,label\n{'a ' * 100_000},yes\n", encoding="utf-8")
    [row] = read_rows(str(file))
    assert len(row.values["text"]) == 200_000


# -- saved data sets -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    split = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(tmp_path / "both")
    split.save_to_disk(tmp_path / "one")
    return tmp_path


def test_a_saved_data_set_gives_label_names_and_row_numbers(saved):
    rows = read_rows(str(saved / "one"))
    assert [row.values["label"] for row in rows] == ["pos", "neg", None]
    assert rows[1].where == f"{saved / 'one'}, row 2"
    assert len(read_rows(f"{saved / 'both'}:test")) == 1


def test_the_names_of_labels_in_a_list_are_given_too(tmp_path):
    import datasets

    tags = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(tags)})
    rows = {"tokens": [["Ada", "met"], ["she"]], "tags": [[1, 0], [-1]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "tagged")
    assert [row.values["tags"] for row in read_rows(str(tmp_path / "tagged"))] == [["B-PER", "O"], [None]]


def test_of_several_splits_none_is_guessed(saved):
    [problem] = problems_of(str(saved / "both"))
    assert f"{saved / 'both'}:test" in problem.allowed
    [problem] = problems_of(f"{saved / 'both'}:tset")
    assert problem.fix == "did you mean 'test'?"


# -- fingerprints --------------------------------------------------------------------------------------


def test_the_fingerprint_of_a_file_is_the_sha256_of_its_bytes(tmp_path):
    source = write(tmp_path / "a.csv", CSV)
    assert fingerprint(source) == hashlib.sha256(CSV.encode()).hexdigest()


def test_the_fingerprint_of_a_folder_changes_with_any_file_in_it(tmp_path):
    write(tmp_path / "a", "1")
    write(tmp_path / "b", "2")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "b").rename(tmp_path / "c")
    renamed = fingerprint(str(tmp_path))
    write(tmp_path / "c", "3")
    assert len({before, renamed, fingerprint(str(tmp_path))}) == 3


def test_the_fingerprint_of_what_is_missing_is_a_data_error(tmp_path):
    with pytest.raises(DataError):
        fingerprint(str(tmp_path / "none.csv"))

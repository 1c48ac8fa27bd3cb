import json

import pytest

from itm_lib import files
from itm_lib.files import InputError


def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replace_atomically(path) as part:
        part.write_text("half")
        raise RuntimeError("the power fails")
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_written_file_can_be_read_by_others(tmp_path):
    files.write_text(tmp_path / "text", "ä\n")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "ä\n"
    assert (tmp_path / "text").stat().st_mode & 0o400


def test_nan_is_refused_because_it_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [files.read_json, files.read_jsonl])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(InputError) as error:
        read(tmp_path / "gone.json")
    assert str(error.value) == f"no file {tmp_path / 'gone.json'}: check the path, or make the file first"


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(InputError, match="cut.json is not valid JSON .*: the file is damaged or cut short, make it again"):
        files.read_json(path)


def test_the_broken_line_of_a_jsonl_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match=r"rows.jsonl line 3 is not valid JSON \(.*\): mend or remove that line"):
        files.read_jsonl(path)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "gr\xfc\xdf"}\n')
    with pytest.raises(InputError, match="latin.jsonl is not UTF-8 text .*: save it as UTF-8"):
        files.read_jsonl(path)


def test_jsonl_round_trip_skips_empty_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [{"a": 1}, [2, "ß"]])
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert files.read_jsonl(path) == [{"a": 1}, [2, "ß"]]


def test_data_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ITM_DATA", str(tmp_path))
    assert files.data_dir() == tmp_path
    monkeypatch.delenv("ITM_DATA")
    assert files.data_dir() == files.project_root() / "data"


def test_the_checkout_is_found_from_a_folder_below(tmp_path):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "itm_lib").mkdir()
    below = tmp_path / "notebooks" / "deep"
    below.mkdir(parents=True)
    assert files.project_root(below) == tmp_path


def test_json_is_readable_by_people(tmp_path):
    files.write_json(tmp_path / "x.json", {"wörd": 1})
    assert "wörd" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"wörd": 1}


@pytest.mark.parametrize("value", [[], {}, 3, "a\n\"b\" [1,\n2]", {"a": list(range(60)), "b": {"c": {"d": ["x"] * 50, "e": None}}, "wörd": 1.5}, [[1, 2]] * 50])
def test_json_lines_is_the_same_json_in_short_lines(value):
    text = files.json_lines(value, width=60)
    assert json.loads(text) == value
    assert text.isascii() or "wörd" in text
    assert all(len(line) <= 70 for line in text.splitlines()) or isinstance(value, str)


def test_json_lines_refuses_what_is_no_json():
    with pytest.raises(ValueError):
        files.json_lines([float("nan")])


def test_what_comes_with_the_checkout_is_found_from_another_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ITM_DATA", str(tmp_path))
    assert files.committed("claims.yaml") == files.project_root() / "data" / "claims.yaml"
    (tmp_path / "claims.yaml").write_text("[]")
    assert files.committed("claims.yaml") == tmp_path / "claims.yaml"

"""Files are replaced in one step and reach the disk; rows survive bad lines among them."""

import json
import os

import pytest

from ccsrp_jax.utils import io
from ccsrp_jax.utils.errors import InputError


def test_a_file_reaches_the_disk_before_its_name_and_the_name_before_the_return(
    monkeypatch, tmp_path
):
    seen = []
    sync = os.fsync

    def spy(opened):
        target = os.readlink(f"/proc/self/fd/{opened}")
        seen.append((os.path.basename(target), (tmp_path / "a").exists()))
        sync(opened)

    monkeypatch.setattr(os, "fsync", spy)
    io.write_atomic(tmp_path / "a", b"new")
    assert seen == [("a.partial", False), (tmp_path.name, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(call, monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space"):
        io.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


BAD = {
    "cut": b'{"stage": "tr',
    "glued": b'{"stage": {"stage": "train"}',
    "not a row": b"[1, 2]",
    "number": b"7",
    "not UTF-8": b'{"stage": "\xff"}',
    "zeros": b"\0" * 64,
    "deep": b"[" * 100_000,
    "digits": b'{"a": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_line_costs_no_other_row(bad, place, tmp_path):
    rows = [{"a": 1}, {"a": 2.5}]
    lines = [json.dumps(row).encode() for row in rows]
    lines.insert(place, bad)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert io.read_rows(path) == (rows, [bad])


@pytest.mark.parametrize("end", [b"", b"\n", b'{"a": 3', b"\n\n"])
def test_an_interrupted_last_row_is_left_out_without_a_word(end, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + end)
    assert io.read_rows(path) == ([{"a": 1}, {"a": 2}], [])
    path.write_bytes(b'{"a": 1}\n{"a": 2}')  # complete but for the line's end
    assert io.read_rows(path) == ([{"a": 1}, {"a": 2}], [])
    assert io.read_rows(tmp_path / "none") == ([], [])


def test_bad_lines_are_kept_aside_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    for lines in ([b"x"], [b"x", b"\xff"], [b"z"]):
        aside = io.keep_aside(path, lines)
    assert aside.read_bytes() == b"x\n\xff\nz\n"


def test_a_mark_holds_while_rows_are_only_added(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert io.has_mark(path, io.mark(path))
    io.append_row(path, {"a": 1})
    mark = io.mark(path)
    io.append_row(path, {"a": 2})
    assert io.has_mark(path, mark)
    path.write_bytes(path.read_bytes().replace(b"1", b"3"))
    assert not io.has_mark(path, mark)
    path.unlink()
    assert not io.has_mark(path, mark)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", "[" * 100_000, '{"a": "\x00'])
def test_a_damaged_json_file_is_one_sentence(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        io.read_json(tmp_path / "a.json")

# SPDX-License-Identifier: BSD-3-Clause
"""Broken, wrong and too large bodies are refused before an image is opened."""

import pytest

from tests.support.serving import as_base64, as_files, photos


IMAGE = photos(1)[0]
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "reason"),
    [
        (b"{", JSON, 400, "The body is not valid JSON"),
        (b"[" * 100_000, JSON, 400, "The body is not valid JSON"),
        (b'{"images": NaN}', JSON, 400, "The body is not valid JSON"),
        (b"[]", JSON, 422, "The body is a JSON list, expected an object."),
        (b'{"images": "R0lG"}', JSON, 422, "images is not a list of strings."),
        (b'{"images": [5]}', JSON, 422, "images is not a list of strings."),
        (b'{"images": []}', JSON, 422, "images is missing."),
        (b"", FORM, 422, "images is missing."),
        (b"", {"Content-Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "accepted is application/json or"),
        (b"GIF", {}, 415, "The content type is 'missing'"),
    ],
)
def test_broken_bodies_are_refused(client, content, headers, status, reason):
    response = client.post("/caption", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert reason in response.json()["detail"]


def in_chunks():
    for _ in range(3):
        yield b"x" * 2**19


def test_a_body_that_is_too_large_is_refused(start):
    client = start(max_body_mb=1)
    by_header = client.post("/caption", content=b"x" * (2**20 + 1), headers=JSON)
    by_count = client.post("/caption", content=b"".join(in_chunks()), headers={**JSON, "Content-Length": "9"})
    for response in (by_header, by_count):
        assert response.status_code == 413
        assert response.json()["detail"] == "The request is larger than 1 MiB. Send fewer or smaller images."


@pytest.mark.parametrize("is_form", [True, False], ids=["form", "json"])
def test_too_many_images_are_refused(start, is_form):
    images = [IMAGE] * 3
    body = {"files": as_files(*images)} if is_form else {"json": {"images": as_base64(*images)}}
    response = start(max_images=2).post("/caption", **body)
    assert response.status_code == 413
    assert response.json()["detail"] == "images has 3 entries, at most 2 are accepted."


@pytest.mark.parametrize("entries", [b"0," * 100_000 + b"0", b'"a",' * 100_000 + b'"a"'], ids=["numbers", "texts"])
def test_long_lists_are_refused_before_each_entry_is_looked_at(client, entries):
    content = b'{"images": ["R0lG"], "texts": [' + entries + b"]}"
    response = client.post("/match", content=content, headers=JSON)
    assert response.status_code == 413
    assert response.json()["detail"] == "texts has 100001 entries, at most 256 are accepted."


def test_many_unknown_fields_are_refused(client):
    fields = {f"field{number}": 0 for number in range(101)}
    response = client.post("/caption", json={"images": as_base64(IMAGE), **fields})
    assert response.status_code == 413
    assert response.json()["detail"] == "The body has 101 fields, at most 100 are accepted."


def test_too_many_texts_of_a_form_are_refused(start):
    response = start(max_texts=2).post("/match", files=as_files(IMAGE), data={"texts": ["a"] * 3})
    assert response.status_code == 413
    assert response.json()["detail"] == "texts has 3 entries, at most 2 are accepted."


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"files": as_files(IMAGE), "data": {"num_beams": ["1", "2"]}}, "num_beams occurs 2 times, expected once."),
        ({"files": [*as_files(IMAGE), ("image", b"x")]}, "image is a file. Send the files of images as images."),
        ({"files": {"images": (None, "R0lG")}}, "images holds text. Send files in a form, or base64 in JSON."),
    ],
)
def test_wrong_parts_of_a_form_are_named(client, parts, reason):
    response = client.post("/caption", **parts)
    assert response.status_code == 422
    assert response.json()["detail"] == reason


def test_an_answer_list_may_have_one_entry_in_a_form(client):
    response = client.post("/ask", files=as_files(IMAGE), data={"question": "a?", "answer_list": "b"})
    assert response.status_code == 200
    assert response.json()["answers"][0]["text"] == "b"

# SPDX-License-Identifier: BSD-3-Clause
"""`blip-hf search`: tables, JSON and pages, duplicates, labels, filters, and what is refused."""

import json
import re
import shutil

import pytest

from blip_hf.cli import main
from blip_hf.search.index import BlipIndex
from tests.support.files import write_json
from tests.support.images import noise_images


@pytest.fixture(scope="module")
def index_folder(matcher_folder, tmp_path_factory):
    """An index of six images, with a copy, and with names and captions that attack terminals and pages."""
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("search")
    names = ["a.png", "b.png", "<script>alert(1)<", "tab\t\x1b[2J.png", "trip/e.png", "trip/f.png"]
    for name, image in zip(names, noise_images(6), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    shutil.copy(folder / "a.png", folder / "copy.png")
    records = [{"image": name, "caption": f"<img src=x onerror=alert({number})>"} for number, name in enumerate(names)]
    listed = write_json(folder / "list.json", [*records, {"image": "copy.png", "caption": "a copy"}])
    BlipIndex.build(folder / "my.index", listed, model=matcher_folder, device="cpu", keep_states=True)
    return folder / "my.index"


def search(*arguments):
    return main(["search", *map(str, arguments), "--device", "cpu"])


def test_a_table_has_ranks_scores_and_paths_without_control_characters(index_folder, capsys, monkeypatch):
    monkeypatch.chdir(index_folder.parent)
    assert search("my.index", "a dog", "--k", "20") == 0
    output = capsys.readouterr().out
    head, *rows = output.splitlines()
    assert head.split() == ["rank", "similarity", "image"]
    assert [row.split()[0] for row in rows] == [str(number) for number in range(1, 8)]
    similarities = [float(row.split()[1]) for row in rows]
    assert similarities == sorted(similarities, reverse=True)
    assert {row.split(maxsplit=2)[2] for row in rows} >= {"a.png", "tab\\t\\x1b[2J.png", "trip/e.png"}
    assert "\x1b" not in output


def test_json_has_all_fields_in_full(index_folder, capsys):
    argv = [index_folder, "a dog", "--k", "3", "--format", "json"]
    assert search(*argv, "--rerank", "5") == 0
    results = json.loads(capsys.readouterr().out)
    index = BlipIndex.open(index_folder, device="cpu")
    hits = index.search("a dog", k=3, rerank=5)
    names = ("image", "similarity", "itm_probability", "pair_score", "caption", "image_id", "width", "height")
    assert results == [
        {"rank": rank} | {name: getattr(hit, name) for name in names} for rank, hit in enumerate(hits, 1)
    ]
    assert search(*argv) == 0
    assert all("itm_probability" not in result for result in json.loads(capsys.readouterr().out))


def test_a_page_has_the_images_and_escapes_everything(index_folder, tmp_path):
    page = tmp_path / "found.html"
    assert search(index_folder, "<b>a dog</b>", "--k", "7", "--output", page) == 0
    html = page.read_text()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "<b>a dog" not in html
    assert "&lt;b&gt;a dog&lt;/b&gt;" in html
    assert "&lt;img src=x onerror=alert(0)&gt;" in html
    assert len(re.findall('<img alt="[^"]*" loading="lazy" src="data:image/jpeg;base64,', html)) == 7


def test_an_image_is_searched_alone_and_with_a_text(index_folder, capsys):
    image = index_folder.parent / "b.png"
    assert search(index_folder, "--image", image, "--k", "1", "--format", "json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["image"] == str(image)
    assert search(index_folder, "a dog", "--image", image, "--image_weight", "0", "--format", "json") == 0
    both = json.loads(capsys.readouterr().out)
    assert search(index_folder, "a dog", "--format", "json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert [result["image"] for result in both] == [result["image"] for result in alone]


def test_filters_are_repeated(index_folder, capsys):
    trip = index_folder.parent / "trip"
    argv = [index_folder, "a dog", "--format", "json", "--filter", trip]
    assert search(*argv) == 0
    assert {result["image"] for result in json.loads(capsys.readouterr().out)} == {
        str(trip / "e.png"),
        str(trip / "f.png"),
    }
    assert search(*argv, "--filter", "caption=*alert(4)*") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert search(*argv, "--filter", "width>1000") == 1
    assert "nothing found among 7 images" in capsys.readouterr().err


def test_duplicates_are_listed_by_group(index_folder, capsys):
    assert search(index_folder, "--duplicates", "0.9999", "--format", "json") == 0
    results = json.loads(capsys.readouterr().out)
    assert {(result["group"], result["image"]) for result in results} >= {
        (1, str(index_folder.parent / name)) for name in ("a.png", "copy.png")
    }
    assert search(index_folder, "--duplicates") == 0
    assert capsys.readouterr().out.split()[:3] == ["group", "similarity", "image"]


def test_each_image_gets_a_label(index_folder, capsys):
    assert search(index_folder, "--labels", "dog, boat", "--format", "json") == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 7
    assert {result["label"] for result in results} <= {"dog", "boat"}
    assert search(index_folder, "--labels", "dog, boat", "--k", "1") == 0
    assert 2 <= len(capsys.readouterr().out.splitlines()) <= 3


def test_the_model_may_have_moved_but_not_changed(index_folder, matcher_folder, captioner_folder, tmp_path, capsys):
    shutil.copytree(matcher_folder, tmp_path / "moved")
    assert search(index_folder, "a dog", "--model", tmp_path / "moved") == 0
    capsys.readouterr()
    assert search(index_folder, "a dog", "--model", captioner_folder) == 2
    assert str(captioner_folder) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to search for"),
        (["a dog", "--duplicates", "0.9"], "--duplicates does not go with a text"),
        (["--labels", "a,b", "--image", "a.png"], "--labels does not go with --image"),
        (["--image", "a.png", "--rerank", "3"], "--rerank compares images with a text"),
        (["a dog", "--k", "0"], "--k is 0, expected 1 or more."),
        (["--duplicates", "95"], "--duplicates is 95.0, expected a cosine from -1 to 1."),
        (["a dog", "--filter", "size>3"], "The filter 'size>3' is unknown. Pass a folder"),
        (["..."], "The text is '...', expected a text with words."),
        (["--image", "nowhere.png"], "nowhere.png: there is no such file"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(words, message, index_folder, capsys):
    assert search(index_folder, *words) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_an_index_is_refused(tmp_path, capsys):
    assert search(tmp_path, "a dog") == 2
    assert f"{tmp_path} is not an index. Pass the folder that `blip-hf index` wrote." in capsys.readouterr().err

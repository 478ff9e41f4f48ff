# SPDX-License-Identifier: BSD-3-Clause
"""`BlipIndex`: vectors and rankings of the model's own functions, from every source."""

import os
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from blip_hf import match_texts
from blip_hf.evaluation.features import image_features, text_features
from blip_hf.search.building import update_index
from blip_hf.search.engines import LocalEngine
from blip_hf.search.index import BlipIndex
from blip_hf.search.store import Store
from tests.support.files import write_json, write_tar
from tests.support.images import encode_image, noise_images, write_image
from tests.support.tiny_models import tiny_model_for
from tests.support.vocabularies import make_processor


def build(folder, encoder, *sources, **options):
    update_index(folder, LocalEngine(encoder), [os.fspath(source) for source in sources], **options)
    return BlipIndex(Store(folder), encoder)


def names(hits):
    return [os.path.basename(hit.image) for hit in hits]


def all_photos(folder):
    return sorted(folder.rglob("*.png"))


def test_similarities_are_the_cosines_of_the_models_features(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    images = image_features(encoder.model, encoder.processor, all_photos(photos))
    cosines = (images @ text_features(encoder.model, encoder.processor, ["a dog"]).T)[:, 0]
    hits = index.search("A dog!", k=20)
    torch.testing.assert_close(torch.tensor([hit.similarity for hit in hits]), cosines.sort(descending=True).values)
    assert names(hits) == [all_photos(photos)[number].name for number in cosines.argsort(descending=True)]


def test_an_image_finds_itself(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    (hit,) = index.search(image=photos / "05.png", k=1)
    assert (hit.image, hit.width, hit.height) == (str(photos / "05.png"), 40, 30)
    assert hit.similarity == pytest.approx(1, abs=1e-5)


def test_text_and_image_together_are_the_weighted_mean_of_their_cosines(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    by_text, by_image, by_both = (
        {hit.image: hit.similarity for hit in index.search(text, image=image, k=11, image_weight=0.25)}
        for text, image in [("a dog", None), (None, photos / "05.png"), ("a dog", photos / "05.png")]
    )
    wanted = {name: 0.75 * by_text[name] + 0.25 * by_image[name] for name in by_text}
    assert by_both == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("keep_states", [False, True])
def test_candidates_are_sorted_by_their_itm_probability(keep_states, encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos, keep_states=keep_states)
    if keep_states:
        for path in all_photos(photos):
            path.unlink()
        images = noise_images(11)
    else:
        images = all_photos(photos)
    matches = match_texts(encoder.model, encoder.processor, images, "a dog")
    wanted = {f"{match.image_index:02d}.png": match.itm_probability for match in matches}
    nearest = names(index.search("a dog", k=6))
    hits = index.search("a dog", k=4, rerank=6, score="itm")
    assert names(hits) == sorted(nearest, key=wanted.get, reverse=True)[:4]
    found = dict(zip(names(hits), (hit.itm_probability for hit in hits), strict=True))
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=5e-3 if keep_states else 1e-5)


@pytest.mark.parametrize("score", ["itm", "paper", "posterior"])
@pytest.mark.parametrize("with_image", [False, True])
def test_candidates_are_sorted_by_the_score_with_the_text(score, with_image, encoder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.model.config, "itm_temperature", 0.01)
    index = build(tmp_path / "index", encoder, photos)
    matches = match_texts(encoder.model, encoder.processor, all_photos(photos), "a dog", score=score)
    wanted = {f"{match.image_index:02d}.png": match.pair_score for match in matches}
    query = {"image": photos / "05.png"} if with_image else {}
    nearest = names(index.search("a dog", **query, k=6))
    hits = index.search("a dog", **query, k=6, rerank=6, score=score)
    assert names(hits) == sorted(nearest, key=wanted.get, reverse=True)
    assert [hit.pair_score for hit in hits] == pytest.approx([wanted[name] for name in names(hits)], abs=1e-4)


def test_unknown_score_raises(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    with pytest.raises(ValueError, match="score='cosine' is unknown"):
        index.search("a dog", rerank=3, score="cosine")


def test_images_that_are_gone_follow_the_re_ranked_ones(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    first = index.search("a dog", k=1)[0].image
    os.remove(first)
    hits = index.search("a dog", k=11, rerank=3)
    assert [hit.itm_probability is None for hit in hits] == [False, False, *[True] * 9]
    assert hits[2].image == first


def write_sources(folder):
    """The same three images with captions in every format."""
    images = [encode_image(image) for image in noise_images(3)]
    captions = ["a cat", "a dog", "a boat"]
    (folder / "images").mkdir()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        (folder / "images" / f"{number}.png").write_bytes(image)
        (folder / "images" / f"{number}.txt").write_text(caption)
    records = [{"image": f"images/{number}.png", "caption": caption} for number, caption in enumerate(captions)]
    members = [(f"{number}.png", image) for number, image in enumerate(images)]
    members += [(f"{number}.txt", caption.encode()) for number, caption in enumerate(captions)]
    table = Dataset.from_dict({"image": [{"bytes": image} for image in images], "caption": captions})
    table = table.cast_column("image", Image())
    table.to_parquet(folder / "web.parquet")
    table.save_to_disk(folder / "saved")
    return {
        "folder": folder / "images",
        "list": write_json(folder / "list.json", records),
        "tar": write_tar(folder / "web.tar", sorted(members)),
        "parquet": folder / "web.parquet",
        "saved": folder / "saved",
    }


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "parquet", "saved"])
def test_every_source_is_indexed_with_its_captions_and_re_ranked(kind, encoder, tmp_path):
    source = write_sources(tmp_path)[kind]
    index = build(tmp_path / "index", encoder, source)
    assert len(index) == 3
    hits = index.search("a dog", k=3, rerank=3)
    assert {hit.caption for hit in hits} == {"a cat", "a dog", "a boat"}
    assert all(hit.itm_probability is not None for hit in hits)
    assert len(index.search("a dog", filters=["caption=*boat*"])) == 1


def test_equal_images_share_a_vector_and_both_are_found(encoder, photos, tmp_path):
    (photos / "copy.png").write_bytes((photos / "05.png").read_bytes())
    index = build(tmp_path / "index", encoder, photos)
    assert (len(index), len(index.store.vectors())) == (12, 11)
    assert names(index.search(image=photos / "05.png", k=2)) == ["05.png", "copy.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_unicode_are_found_again(encoder, tmp_path):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    name = os.fsdecode(folder + b"/caf\xe9.png")
    noise_images(1)[0].save(name)
    index = build(tmp_path / "index", encoder, tmp_path / "photos")
    assert [hit.image for hit in index.search("a dog", filters=[str(tmp_path / "photos")], rerank=1)] == [name]
    assert index.add(tmp_path / "photos").unchanged == 1


def test_filters_choose_images_by_folder_and_size(encoder, photos, tmp_path):
    write_image(photos / "large.png", size=(90, 70))
    index = build(tmp_path / "index", encoder, photos)
    assert sorted(names(index.search("a dog", filters=[str(photos / "trip")]))) == ["09.png", "10.png"]
    assert names(index.search("a dog", filters=["width>=80", "height<80"])) == ["large.png"]
    assert index.search("a dog", filters=["width>=80", str(photos / "trip")]) == []


def test_duplicates_are_grouped_by_their_cosine_with_the_first(encoder, photos, tmp_path):
    (photos / "z.png").write_bytes((photos / "05.png").read_bytes())
    noise_images(11)[7].resize((41, 31)).save(photos / "larger.png")
    index = build(tmp_path / "index", encoder, photos)
    groups = index.duplicates(0.99)
    assert {frozenset(names(group)) for group in groups} >= {frozenset({"05.png", "z.png"})}
    assert any({"07.png", "larger.png"} <= set(names(group)) for group in groups)
    vectors = index.store.vectors()
    for group in groups:
        first = vectors[index.store.find(group[0].image).row]
        for hit in group:
            cosine = float(first @ vectors[index.store.find(hit.image).row])
            assert hit.similarity == pytest.approx(cosine, abs=1e-5)
            assert cosine >= 0.99 - 1e-5
    assert index.duplicates(0.99, filters=[str(photos / "trip")]) == []


def test_labels_are_those_of_the_zero_shot_classifier(encoder, photos, tmp_path):
    from blip_hf import ZeroShotClassifier

    index = build(tmp_path / "index", encoder, photos)
    labels = ["dog", "boat", "red car"]
    classifier = ZeroShotClassifier(encoder.model, encoder.processor, labels)
    wanted = {
        str(path): best
        for path, (best,) in zip(all_photos(photos), classifier(all_photos(photos), top_k=1), strict=True)
    }
    found = index.label(labels)
    assert {image.image: image.label for image in found} == {name: best.label for name, best in wanted.items()}
    assert all(image.probability == pytest.approx(wanted[image.image].probability, abs=1e-4) for image in found)
    keys = [(labels.index(image.label), -image.probability) for image in found]
    assert keys == sorted(keys)


def test_five_lines_of_python_build_and_search(matcher_folder, photos, tmp_path):
    index = BlipIndex.build(tmp_path / "index", photos, model=matcher_folder, device="cpu", num_workers=1)
    again = BlipIndex.open(tmp_path / "index", device="cpu")
    assert again.search("a dog", k=3) == index.search("a dog", k=3)
    write_image(photos / "new.png")
    assert again.add(photos).new == 1
    assert len(again.search("a dog", k=20)) == 12


def test_another_model_is_refused_by_name(encoder, photos, tmp_path):
    folder = tmp_path / "index"
    build(folder, encoder, photos)
    processor = make_processor()
    other = type(encoder)(tiny_model_for(type(encoder.model), processor, seed=4), processor, "another")
    with pytest.raises(
        ValueError, match=r"an index of the model tiny \(weights \w{16}\), and another has the weights"
    ):
        BlipIndex(Store(folder), other)
    with pytest.raises(ValueError, match="an index of the model tiny"):
        update_index(folder, LocalEngine(other), [str(photos)])
    update_index(folder, LocalEngine(other), [str(photos)], overwrite=True)
    assert len(BlipIndex(Store(folder), other)) == 11


def test_what_cannot_be_searched_is_refused(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    for arguments, message in [
        ({}, "nothing to search for"),
        ({"text": "..."}, "expected a text with words"),
        ({"image": photos / "05.png", "rerank": 3}, "Re-ranking compares images with a text"),
        ({"text": "a dog", "k": 0}, "k=0"),
        ({"text": "a dog", "filters": ["size>3"]}, "The filter 'size>3' is unknown"),
        ({"text": "a dog", "filters": ["width>wide"]}, "has the value 'wide'"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(**arguments)
    with pytest.raises(ValueError, match="is not an index"):
        Store(photos)
    with pytest.raises(ValueError, match="has files and is not an index"):
        build(photos, encoder, photos)


def test_a_damaged_index_is_named(encoder, photos, tmp_path):
    index = build(tmp_path / "index", encoder, photos)
    (tmp_path / "index" / "vectors.f32").write_bytes(np.zeros(8, dtype=np.float32).tobytes())
    with pytest.raises(ValueError, match=r"vectors\.f32 is damaged"):
        index.search("a dog")
    (tmp_path / "index" / "images.sqlite").write_bytes(b"zeros" * 1000)
    with pytest.raises(ValueError, match=r"images\.sqlite is damaged"):
        Store(tmp_path / "index")

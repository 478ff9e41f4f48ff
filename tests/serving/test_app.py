# SPDX-License-Identifier: BSD-3-Clause
"""Every endpoint gives what the Python functions give, and every mistake of a client its status and reason."""

import pytest
import torch

from benchmarks.bad_records import png_header
from blip_hf import BlipCaptioner, answer_questions, match_texts
from blip_hf.evaluation.features import image_features, text_features
from blip_hf.serving import ServedModels
from tests.support.serving import as_base64, as_files, photos


# The batch changes a score by rounding.
TOLERANCE = {"abs": 1e-5, "rel": 1e-4}
IMAGES = photos(3)
BROKEN = b"not an image"


def captioner_like(models, **settings):
    matcher = models.matcher
    return BlipCaptioner(
        models.captioner.model,
        models.captioner.processor,
        matcher=matcher.model,
        matcher_processor=matcher.processor,
        **settings,
    )


def without_none(values):
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2, "prompt": "a b "}, {"num_beams": 1, "max_new_tokens": 4}], ids=str
)
def test_captions_equal_those_of_the_captioner(client, models, settings):
    response = client.post("/caption", json={"images": as_base64(*IMAGES), "return_scores": True, **settings})
    expected = captioner_like(models, batch_size=1, **settings).caption(IMAGES, return_scores=True)
    assert response.status_code == 200, response.text
    for found, caption in zip(response.json()["captions"], expected, strict=True):
        assert (found["image_index"], found["text"]) == (caption.image_index, caption.text)
        assert found["num_tokens"] == caption.num_tokens
        assert found["log_probability"] == pytest.approx(caption.log_probability, **TOLERANCE)
        assert found["itm_probability"] == pytest.approx(caption.itm_probability, **TOLERANCE)


def test_captions_without_scores_have_only_texts(client):
    (caption,) = client.post("/caption", json={"images": as_base64(IMAGES[0])}).json()["captions"]
    assert set(caption) == {"image_index", "text"}


def test_several_captions_of_an_image_follow_each_other(client, models):
    response = client.post("/caption", json={"images": as_base64(*IMAGES), "num_return_sequences": 2, "num_beams": 3})
    expected = captioner_like(models, num_beams=3).caption(IMAGES, num_return_sequences=2)
    found = [(caption["image_index"], caption["text"]) for caption in response.json()["captions"]]
    assert found == [(caption.image_index, caption.text) for caption in expected]


def test_samples_with_a_seed_equal_those_of_the_captioner(start, models):
    client = start(max_batch_size=2)
    request = {"images": as_base64(*IMAGES), "do_sample": True, "seed": 7, "top_p": 0.95}
    found = [client.post("/caption", json=request).json() for _ in range(2)]
    expected = captioner_like(models, do_sample=True, seed=7, top_p=0.95, batch_size=2)(IMAGES)
    assert found[0] == found[1]
    assert [caption["text"] for caption in found[0]["captions"]] == expected


def test_forms_and_base64_give_the_same(client):
    settings = {"num_beams": 2, "return_scores": True}
    as_json = client.post("/caption", json={"images": as_base64(*IMAGES), **settings})
    as_form = client.post("/caption", files=as_files(*IMAGES), data=settings)
    as_data_url = client.post(
        "/caption",
        json={"images": [f"data:image/png;base64,{text}" for text in as_base64(*IMAGES)], **settings},
    )
    assert as_json.status_code == 200
    assert as_json.json() == as_form.json() == as_data_url.json()


def test_matches_equal_those_of_match_texts(client, models):
    texts = ["a b", "c d e f"]
    response = client.post("/match", files=as_files(*IMAGES), data={"texts": texts})
    expected = match_texts(models.matcher.model, models.matcher.processor, IMAGES, texts, batch_size=1)
    assert response.status_code == 200, response.text
    for found, match in zip(response.json()["matches"], expected, strict=True):
        assert (found["image_index"], found["text"]) == (match.image_index, match.text)
        assert found["itm_probability"] == pytest.approx(match.itm_probability, **TOLERANCE)
        assert found["itc_similarity"] == pytest.approx(match.itc_similarity, **TOLERANCE)


def test_matches_have_the_score_that_is_asked_for(client, models):
    matcher = models.matcher
    matches = match_texts(matcher.model, matcher.processor, IMAGES, "a b", batch_size=1, score="posterior")
    expected = [match.pair_score for match in matches]
    response = client.post("/match", files=as_files(*IMAGES), data={"texts": ["a b"], "score": "posterior"})
    found = [match["pair_score"] for match in response.json()["matches"]]
    assert found == pytest.approx(expected, **TOLERANCE)
    without = client.post("/match", files=as_files(*IMAGES), data={"texts": ["a b"]})
    assert "pair_score" not in without.json()["matches"][0]
    assert (
        client.post("/match", files=as_files(*IMAGES), data={"texts": ["a b"], "score": "cosine"}).status_code == 422
    )


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 4, "top_k": 2}, {"answer_list": ["a", "b c", "d"], "top_k": 3}], ids=str
)
def test_answers_equal_those_of_answer_questions(client, models, settings):
    response = client.post("/ask", json={"images": as_base64(*IMAGES), "question": "a b c?", **settings})
    expected = answer_questions(models.vqa.model, models.vqa.processor, IMAGES, "a b c?", batch_size=1, **settings)
    assert response.status_code == 200, response.text
    for found, answer in zip(response.json()["answers"], expected, strict=True):
        assert (found["image_index"], found["text"]) == (answer.image_index, answer.text)
        assert found["confidence"] == pytest.approx(answer.confidence, **TOLERANCE)


def test_features_equal_those_of_the_functions(client, models):
    matcher = models.matcher
    response = client.post("/features", json={"images": as_base64(*IMAGES), "texts": ["a b", "c d e f"]}).json()
    images = image_features(matcher.model, matcher.processor, IMAGES)
    texts = text_features(matcher.model, matcher.processor, ["a b", "c d e f"])
    torch.testing.assert_close(torch.tensor(response["image_features"]), images)
    torch.testing.assert_close(torch.tensor(response["text_features"]), texts)


def test_features_of_texts_alone_need_no_image(client):
    response = client.post("/features", json={"texts": ["a b"]})
    assert response.status_code == 200
    assert response.json()["image_features"] == []


@pytest.mark.parametrize(
    ("path", "request_", "status", "reason"),
    [
        ("/caption", {"beams": 3}, 422, "beams is unknown. Accepted are images, prompt,"),
        (
            "/caption",
            {"num_beams": 0},
            422,
            "num_beams=0 is not accepted: input should be greater than or equal to 1.",
        ),
        ("/caption", {"num_beams": "many"}, 422, "num_beams=many is not accepted: input should be a valid integer"),
        ("/caption", {"top_p": 0.5}, 422, "top_p given without sampling. Add do_sample=true, or leave it out."),
        ("/caption", {"num_return_sequences": 3, "num_beams": 2}, 422, "needs as many beams, got num_beams=2"),
        ("/caption", {"max_length": 9, "max_new_tokens": 9}, 422, "Leave one of them out."),
        ("/caption", {"max_length": 500}, 422, "the model takes at most 32"),
        ("/caption", {"prompt": "a " * 600}, 422, "prompt=a a a"),
        ("/match", {}, 422, "texts is missing."),
        ("/match", {"texts": []}, 422, "texts=[] is not accepted: list should have at least 1 item"),
        ("/match", {"texts": ["a", " . "]}, 422, "texts[1] is ' . ', expected a text with words."),
        ("/match", {"texts": ["a", 5]}, 422, "texts[1]=5 is not accepted: input should be a valid string."),
        ("/match", {"texts": ["a"] * 6}, 413, "texts has 6 entries, at most 5 are accepted."),
        ("/ask", {"question": " "}, 422, "question is ' ', expected a question with words."),
        ("/ask", {"question": "a?", "top_k": 4}, 422, "top_k=4 needs as many beams, got num_beams=3."),
        ("/ask", {"question": "a?", "answer_list": ["a"] * 6}, 413, "answer_list has 6 entries, at most 5"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(start, path, request_, status, reason):
    response = start(max_texts=5).post(path, json={"images": as_base64(IMAGES[0]), **request_})
    assert response.status_code == status, response.text
    assert reason in response.json()["detail"]


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [
        (BROKEN, 422, "Cannot read the image 1 of the request: it is empty or not an image."),
        (b"", 422, "it is empty or not an image"),
        (png_header(8193, 8193), 413, "it has 8193 x 8193 pixels"),
    ],
    ids=["text", "empty", "too_many_pixels"],
)
@pytest.mark.parametrize("is_form", [True, False], ids=["form", "json"])
def test_a_bad_image_is_refused_with_its_index(client, image, status, reason, is_form):
    images = [IMAGES[0], image]
    body = {"files": as_files(*images)} if is_form else {"json": {"images": as_base64(*images)}}
    response = client.post("/caption", **body)
    assert response.status_code == status
    assert response.json()["image_index"] == 1
    assert reason in response.json()["detail"]


def test_paths_are_not_opened(client, tmp_path):
    path = tmp_path / "image.png"
    IMAGES[0].save(path)
    for text in (str(path), f"file://{path}"):
        response = client.post("/caption", json={"images": [text]})
        assert response.status_code == 422
        assert "neither base64 nor a data: URL" in response.json()["detail"]


def test_urls_are_not_fetched_by_default(client):
    response = client.post("/caption", json={"images": ["https://example.org/dog.jpg"]})
    assert response.status_code == 422
    assert "this server fetches no URLs" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "head", "remedy"),
    [
        ("/caption", "captioner", "as CHECKPOINT"),
        ("/match", "matcher", "--matcher CHECKPOINT"),
        ("/features", "matcher", "--matcher CHECKPOINT"),
        ("/ask", "vqa", "--vqa CHECKPOINT"),
    ],
)
def test_endpoints_without_their_model_name_the_option(start, path, head, remedy):
    client = start(ServedModels())
    response = client.post(path, json={"images": as_base64(IMAGES[0])})
    assert response.status_code == 501
    assert f"This server has no {head}. Start it with" in response.json()["detail"]
    assert remedy in response.json()["detail"]
    assert client.get("/healthz").json() == {"ready": True, "endpoints": []}


def test_itm_probability_is_that_of_a_matcher_with_another_image_size(start, models):
    """The image is then not resized for the captioner first."""
    from blip_hf import BlipForImageTextRetrieval
    from blip_hf.serving.models import LoadedModel
    from tests.support.tiny_models import tiny_model_for
    from tests.support.vocabularies import make_processor

    processor = make_processor(image_size=48)
    matcher = tiny_model_for(BlipForImageTextRetrieval, processor, initializer_range=0.5)
    served = ServedModels(captioner=models.captioner, matcher=LoadedModel(matcher, processor))
    response = start(served).post("/caption", json={"images": as_base64(IMAGES[0]), "return_scores": True})
    (expected,) = captioner_like(served).caption(IMAGES[:1])
    assert response.json()["captions"][0]["itm_probability"] == pytest.approx(expected.itm_probability, **TOLERANCE)


def test_health_and_documentation(client):
    health = client.get("/healthz")
    assert (health.status_code, health.json()["ready"]) == (200, True)
    assert health.json()["endpoints"] == ["/caption", "/match", "/ask", "/features"]
    assert client.get("/healthz/live").json() == {"live": True}
    assert "swagger" in client.get("/docs").text
    caption = client.get("/openapi.json").json()["paths"]["/caption"]["post"]
    content = caption["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert {"images", "prompt", "num_beams"} <= set(content["application/json"]["schema"]["properties"])
    assert {"413", "422", "429", "501", "503", "504"} <= set(caption["responses"])

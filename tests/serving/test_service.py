# SPDX-License-Identifier: BSD-3-Clause
"""Batching, limits, time-outs and errors of requests that are in the server at the same time."""

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip_hf.serving import ServedModels, ServerSettings, create_app
from tests.support.serving import as_base64, held, photos, tiny_served_models, wait_until


IMAGES = photos(6)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def holder(models):
    with held(models.captioner.model) as holder:
        yield holder


def caption(client, *images, path="/caption", **settings):
    return client.post(path, json={"images": as_base64(*images), **settings})


def occupy(client, threads, holder, **settings):
    """Sends a request whose batch the model holds, and waits until it runs."""
    before = len(holder.batch_sizes)
    running = threads.submit(caption, client, IMAGES[0], num_beams=1, **settings)
    wait_until(lambda: len(holder.batch_sizes) > before)
    return running


def metric(client, name):
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(value)


def waiting(client):
    return metric(client, "blip_hf_queue_length")


def test_requests_that_wait_together_are_one_forward_pass(start, threads, holder):
    client = start(max_wait_ms=0)
    first = occupy(client, threads, holder)
    others = [threads.submit(caption, client, image, num_beams=1) for image in IMAGES[1:5]]
    wait_until(lambda: waiting(client) == 4)
    holder.release()
    responses = [future.result() for future in (first, *others)]
    assert {response.status_code for response in responses} == {200}
    assert holder.batch_sizes == [1, 4]
    alone = [caption(client, image, num_beams=1).json() for image in IMAGES[:5]]
    assert [response.json() for response in responses] == alone
    assert holder.batch_sizes == [1, 4, 1, 1, 1, 1, 1]


def test_requests_with_other_settings_run_apart(start, threads, holder):
    client = start(max_wait_ms=0)
    first = occupy(client, threads, holder)
    others = [threads.submit(caption, client, IMAGES[1], num_beams=number) for number in (1, 2)]
    wait_until(lambda: waiting(client) == 2)
    holder.release()
    assert {future.result().status_code for future in (first, *others)} == {200}
    assert holder.batch_sizes == [1, 1, 1]


def test_different_questions_and_texts_share_a_batch_and_get_their_own_results(start, threads, models):
    client = start(max_wait_ms=0)
    for path, model, name, values in (
        ("/ask", models.vqa.model, "question", ["a b?", "c d e f g h?", "b?"]),
        ("/match", models.matcher.model, "texts", [["a b"], ["c", "d e f"], ["a", "b", "c"]]),
    ):
        with held(model) as holder:
            first = threads.submit(caption, client, IMAGES[0], path=path, **{name: values[0]})
            wait_until(lambda holder=holder: len(holder.batch_sizes) > 0)
            others = [
                threads.submit(caption, client, image, path=path, **{name: value})
                for image, value in zip(IMAGES[1:4], values, strict=True)
            ]
            wait_until(lambda: waiting(client) == 3)
            holder.release()
            found = [future.result().json() for future in others]
            assert first.result().status_code == 200
            assert list(dict.fromkeys(holder.batch_sizes)) == [1, 3]  # VQA encodes its images twice
        for image, value, together in zip(IMAGES[1:4], values, found, strict=True):
            alone = caption(client, image, path=path, **{name: value}).json()
            (rows,), (own_rows,) = together.values(), alone.values()
            for row, own in zip(rows, own_rows, strict=True):
                assert row.pop("text") == own.pop("text")
                assert row == pytest.approx(own, abs=1e-5, rel=1e-4)


def test_a_full_queue_answers_429_and_says_when_to_retry(start, threads, holder):
    client = start(max_queue=2, max_images=2, max_wait_ms=0)
    futures = [occupy(client, threads, holder), threads.submit(caption, client, IMAGES[1])]
    wait_until(lambda: waiting(client) == 1)
    refused = caption(client, IMAGES[2])
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    holder.release()
    assert {future.result().status_code for future in futures} == {200}
    assert caption(client, IMAGES[2]).status_code == 200


def test_each_image_of_a_request_takes_a_place(start, threads, holder):
    client = start(max_queue=2, max_images=2, max_wait_ms=0)
    running = occupy(client, threads, holder)
    assert caption(client, *IMAGES[:2]).status_code == 429
    assert metric(client, "blip_hf_images_in_server") == 1
    holder.release()
    assert running.result().status_code == 200
    assert caption(client, *IMAGES[:2]).status_code == 200
    assert metric(client, "blip_hf_images_in_server") == 0


def test_a_request_that_takes_too_long_answers_504_and_frees_its_place(start, holder):
    client = start(request_timeout=0.3, max_wait_ms=0)
    response = caption(client, IMAGES[0])
    assert response.status_code == 504
    assert response.json() == {"detail": "The request took more than 0.3 seconds."}
    waiting_too_long = caption(client, IMAGES[1])  # behind the one that runs
    assert waiting_too_long.status_code == 504
    assert metric(client, "blip_hf_images_in_server") == 0
    assert waiting(client) == 0


def test_a_bad_image_does_not_affect_others_that_wait(start, threads, holder):
    client = start(max_wait_ms=0)
    first = occupy(client, threads, holder)
    good = [threads.submit(caption, client, image) for image in IMAGES[1:3]]
    wait_until(lambda: waiting(client) == 2)
    assert caption(client, b"not an image").status_code == 422  # before its turn
    assert caption(client, IMAGES[3], b"not an image").json()["image_index"] == 1
    holder.release()
    assert {future.result().status_code for future in (first, *good)} == {200}
    assert holder.batch_sizes == [1, 2]


def test_a_batch_that_fails_is_run_image_by_image(start, models):
    """As for an image whose pixels overflow in half precision, or for lack of memory."""
    client = start()

    def fail(module, inputs):
        if len(inputs[0]) > 1:
            raise RuntimeError("out of memory")

    handle = models.captioner.model.vision_model.register_forward_pre_hook(fail)
    try:
        response = caption(client, *IMAGES[:3])
    finally:
        handle.remove()
    assert response.status_code == 200
    assert response.json() == caption(client, *IMAGES[:3]).json()


def test_an_error_of_the_model_answers_500_and_the_server_lives(start, models):
    client = start()

    def fail(module, inputs):
        raise RuntimeError("secret details")

    handle = models.captioner.model.vision_model.register_forward_pre_hook(fail)
    try:
        response = caption(client, IMAGES[0])
    finally:
        handle.remove()
    assert response.status_code == 500
    assert "secret" not in response.text
    assert caption(client, IMAGES[0]).status_code == 200


@pytest.mark.parametrize("path", ["/caption", "/match", "/features", "/ask"])
def test_nan_is_an_error_of_the_server(start, path):
    models = tiny_served_models()
    for model in (models.captioner.model, models.matcher.model, models.vqa.model):
        model.vision_model.post_layernorm.bias.data.fill_(float("nan"))
    settings = {"/match": {"texts": ["a"]}, "/ask": {"question": "a?"}}.get(path, {})
    response = caption(start(models), IMAGES[0], path=path, **settings)
    assert response.status_code == 500, response.text
    assert "NaN or infinity" in response.json()["detail"]


def test_the_server_responds_while_the_model_runs(start, threads, holder):
    client = start()
    running = occupy(client, threads, holder)
    assert client.get("/healthz").status_code == 200
    holder.release()
    assert running.result().status_code == 200


def test_a_stopping_server_answers_what_it_accepted_and_refuses_the_rest(start, threads, holder):
    client = start(max_wait_ms=0)
    service = client.app.state.service
    accepted = [occupy(client, threads, holder), threads.submit(caption, client, IMAGES[1])]
    wait_until(lambda: waiting(client) == 1)
    service.stop()
    assert caption(client, IMAGES[2]).status_code == 503
    health = client.get("/healthz")
    assert (health.status_code, health.json()["ready"]) == (503, False)
    assert client.get("/healthz/live").status_code == 200
    assert not service.is_idle
    holder.release()
    assert {future.result().status_code for future in accepted} == {200}
    wait_until(lambda: service.is_idle)


def test_metrics_count_requests_batches_and_time(start):
    client = start(max_wait_ms=0)
    for _ in range(2):
        caption(client, IMAGES[0])
    caption(client, b"not an image")
    client.get("/wp-login.php")
    assert metric(client, 'blip_hf_requests_total{endpoint="/caption",status="200"}') == 2
    assert metric(client, 'blip_hf_requests_total{endpoint="/caption",status="422"}') == 1
    assert metric(client, 'blip_hf_requests_total{endpoint="other",status="404"}') == 1
    assert metric(client, 'blip_hf_request_seconds_count{endpoint="/caption"}') == 3
    assert metric(client, 'blip_hf_batch_size_count{job="caption"}') == 2
    assert metric(client, 'blip_hf_batch_size_sum{job="caption"}') == 2
    assert metric(client, 'blip_hf_batch_size_bucket{job="caption",le="1.0"}') == 2
    assert waiting(client) == 0


async def call(app, receive):
    """Sends a request to an application; returns its status, and the inputs and places that are left."""
    service, statuses = app.state.service, []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/caption", "headers": headers, "query_string": b""}
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app(scope, receive, send), 30)
        await asyncio.sleep(0)
        return statuses, service.batcher.num_waiting, service.places.taken


def test_a_client_that_disconnects_frees_its_place(models: ServedModels):
    app = create_app(models, ServerSettings(max_wait_ms=60_000))
    messages = [{"type": "http.request", "body": json.dumps({"images": as_base64(IMAGES[0])}).encode()}]

    async def receive():
        if messages:
            return messages.pop()
        while not app.state.service.batcher.num_waiting:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    assert asyncio.run(call(app, receive)) == ([499], 0, 0)


def test_a_client_that_disconnects_during_its_upload_frees_its_place(models: ServedModels):
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        return messages.pop()

    assert asyncio.run(call(create_app(models), receive)) == ([499], 0, 0)


def test_an_upload_that_does_not_end_answers_504(models: ServedModels):
    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    app = create_app(models, ServerSettings(request_timeout=0.3))
    assert asyncio.run(call(app, receive)) == ([504], 0, 0)

# SPDX-License-Identifier: BSD-3-Clause
"""Ray encodes what this process does."""

from functools import partial

import pytest

from blip_hf.ray_pool import RayCluster, RayPool
from blip_hf.search.building import update_index
from blip_hf.search.encoder import RetrievalEncoder
from blip_hf.search.engines import LocalEngine, RayEngine
from blip_hf.search.store import Store
from tests.support.files import write_tar
from tests.support.images import encode_image, noise_images


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_actors_write_the_files_of_the_local_engine(cluster, matcher_folder, photos, tmp_path):
    pytest.importorskip("faiss")
    (photos / "broken.png").write_bytes(b"broken")
    members = [(f"{number}.png", encode_image(image)) for number, image in enumerate(noise_images(7, seed=1))]
    sources = [str(photos), str(write_tar(tmp_path / "web.tar", members))]
    load = partial(RetrievalEncoder.from_pretrained, str(matcher_folder), device="cpu", batch_size=2)
    local = update_index(tmp_path / "local", LocalEngine(load()), sources, keep_states=True)
    with RayPool.open(load, RayCluster(address=cluster.address, num_actors=2), device="cpu") as pool:
        engine = RayEngine(pool, batch_size=2, batches_per_shard=2)
        assert update_index(tmp_path / "ray", engine, sources, keep_states=True) == local
        assert update_index(tmp_path / "ray", engine, sources).unchanged == 18
    for name in ("vectors.f32", "states.f16"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    on_ray, here = (Store(tmp_path / name) for name in ("ray", "local"))
    listing = "SELECT * FROM images ORDER BY name"
    assert list(on_ray.query(listing)) == list(here.query(listing))
    assert on_ray.settings == here.settings

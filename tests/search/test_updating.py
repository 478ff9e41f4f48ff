# SPDX-License-Identifier: BSD-3-Clause
"""What an update encodes, keeps and removes, and what a killed one loses."""

import os
import signal

import numpy as np
import pytest

from blip_hf.search.building import update_index
from blip_hf.search.engines import LocalEngine
from blip_hf.search.sources import SourceOptions
from blip_hf.search.store import Store
from blip_hf.search.updating import UpdateCounts
from tests.support.files import write_json, write_tar
from tests.support.forks import kill_at_write, run_forked
from tests.support.images import encode_image, noise_images, write_image


def update(folder, encoder, *sources, **options):
    encoder.encoded.clear()
    return update_index(folder, LocalEngine(encoder), [os.fspath(source) for source in sources], **options)


def contents(folder):
    """The images by name with their vectors."""
    store = Store(folder)
    vectors = store.vectors()
    found = {
        name: (vectors[row].tobytes(), size) for name, row, size in store.query("SELECT name, row, bytes FROM images")
    }
    store.close()
    return found


def test_the_same_images_are_not_encoded_again(encoder, photos, tmp_path):
    assert update(tmp_path / "index", encoder, photos) == UpdateCounts(new=11)
    assert encoder.encoded == [4, 4, 3]
    before = contents(tmp_path / "index")
    assert update(tmp_path / "index", encoder, photos) == UpdateCounts(unchanged=11)
    assert update(tmp_path / "index", encoder, photos, checksum=True) == UpdateCounts(unchanged=11)
    os.utime(photos / "05.png", (1, 1))
    assert update(tmp_path / "index", encoder, photos) == UpdateCounts(unchanged=11)
    assert encoder.encoded == []
    assert contents(tmp_path / "index") == before


def test_changed_moved_copied_and_deleted_files_are_noticed(encoder, photos, tmp_path):
    update(tmp_path / "index", encoder, photos)
    write_image(photos / "new.png", "blue")
    write_image(photos / "01.png", "green")
    (photos / "02.png").rename(photos / "trip" / "moved.png")
    (photos / "copy.png").write_bytes((photos / "03.png").read_bytes())
    (photos / "04.png").unlink()
    counts = update(tmp_path / "index", encoder, photos)
    assert counts == UpdateCounts(new=1, changed=1, moved=1, copied=1, removed=1, unchanged=8)
    assert sum(encoder.encoded) == 2
    update(tmp_path / "whole", encoder, photos)
    # Another batch changes a vector by rounding.
    index, whole = (Store(tmp_path / name) for name in ("index", "whole"))
    rows, whole_rows = (dict(store.query("SELECT name, row FROM images")) for store in (index, whole))
    assert rows.keys() == whole_rows.keys()
    for name, row in rows.items():
        np.testing.assert_allclose(index.vectors()[row], whole.vectors()[whole_rows[name]], atol=1e-5)


def test_a_change_that_keeps_size_and_time_is_found_by_checksum(encoder, tmp_path):
    path = tmp_path / "photos" / "a.bmp"  # without compression
    write_image(path, "red")
    time = path.stat().st_mtime_ns
    update(tmp_path / "index", encoder, path.parent)
    write_image(path, "blue")
    os.utime(path, ns=(time, time))
    assert update(tmp_path / "index", encoder, path.parent) == UpdateCounts(unchanged=1)
    assert update(tmp_path / "index", encoder, path.parent, checksum=True) == UpdateCounts(changed=1)


def test_images_of_other_sources_are_kept(encoder, photos, tmp_path):
    update(tmp_path / "index", encoder, photos / "trip")
    other = write_image(tmp_path / "other" / "a.png")
    assert update(tmp_path / "index", encoder, other.parent) == UpdateCounts(new=1)
    assert len(contents(tmp_path / "index")) == 3
    (photos / "trip" / "09.png").unlink()
    assert update(tmp_path / "index", encoder, photos).removed == 1


def test_a_record_that_leaves_a_tar_or_a_list_is_removed(encoder, photos, tmp_path):
    members = [(f"{number}.png", encode_image(image)) for number, image in enumerate(noise_images(3))]
    tar = write_tar(tmp_path / "web.tar", members)
    listed = write_json(tmp_path / "list.json", [{"image": f"photos/0{number}.png"} for number in range(3, 6)])
    assert update(tmp_path / "index", encoder, tar, listed).num_images == 6
    write_tar(tar, members[1:])
    write_json(listed, [{"image": "photos/03.png"}])
    assert update(tmp_path / "index", encoder, tar, listed) == UpdateCounts(unchanged=3, removed=3)
    assert encoder.encoded == []


def test_broken_files_are_skipped_counted_and_listed(encoder, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"broken")
    (photos / "empty.jpg").write_bytes(b"")
    os.mkfifo(photos / "pipe.png")
    listed = write_json(tmp_path / "list.json", [{"image": "photos/00.png"}, {"image": "nowhere.png"}, {"image": 3}])
    messages = []
    counts = update(tmp_path / "index", encoder, photos, listed, report=messages.append)
    assert counts.new == 11
    assert counts.skipped == {"not_an_image": 2, "broken": 1, "missing": 1, "bad_record": 1}
    assert len(messages) == 5
    assert any("broken.png" in message for message in messages)
    skipped = Store(tmp_path / "index").skipped()
    assert [os.path.basename(image.name) for image in skipped] == [
        "nowhere.png",
        "broken.png",
        "empty.jpg",
        "pipe.png",
    ]
    write_image(photos / "broken.png", "blue")
    assert update(tmp_path / "index", encoder, photos).new == 1


def test_paths_outside_the_folder_of_a_list_are_skipped(encoder, photos, tmp_path):
    listed = write_json(tmp_path / "lists" / "list.json", [{"image": "../photos/00.png"}])
    assert update(tmp_path / "index", encoder, listed).skipped == {"outside_folder": 1}
    assert update(tmp_path / "index", encoder, listed, options=SourceOptions(allow_outside=True)).new == 1


@pytest.mark.parametrize("moment", ["before the vectors", "before the images", "in the middle of the vectors"])
@pytest.mark.parametrize("num_batches", [0, 1, 2])
def test_a_killed_update_loses_at_most_a_batch(moment, num_batches, encoder, photos, tmp_path, monkeypatch):
    update(tmp_path / "whole", encoder, photos, keep_states=True)

    def update_and_die():
        append, commit = Store.append, Store.commit
        done = 0

        def killing_append(self, digests, sizes, vectors, states):
            if done == num_batches and moment == "before the vectors":
                os.kill(os.getpid(), signal.SIGKILL)
            if done == num_batches and moment == "in the middle of the vectors":
                with self.vectors_file.path.open("ab") as file:
                    file.write(vectors.tobytes()[:-3])
                os.kill(os.getpid(), signal.SIGKILL)
            append(self, digests, sizes, vectors, states)

        def killing_commit(self):
            nonlocal done
            has_started = any(self.query("SELECT 1 FROM temp.seen"))
            if has_started and moment == "before the images" and done == num_batches:
                os.kill(os.getpid(), signal.SIGKILL)
            commit(self)
            done = self.num_rows() // 4

        monkeypatch.setattr(Store, "append", killing_append)
        monkeypatch.setattr(Store, "commit", killing_commit)
        update(tmp_path / "index", encoder, photos, keep_states=True)

    assert run_forked(update_and_die) == -signal.SIGKILL
    assert len(contents(tmp_path / "index")) == 4 * num_batches
    counts = update(tmp_path / "index", encoder, photos)
    assert counts == UpdateCounts(new=11 - 4 * num_batches, unchanged=4 * num_batches)
    for name in ("vectors.f32", "states.f16"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert contents(tmp_path / "index") == contents(tmp_path / "whole")


def test_two_processes_do_not_write_one_index(encoder, photos, tmp_path, monkeypatch):
    messages = []

    def update_within(self):
        try:
            update_index(tmp_path / "index", LocalEngine(encoder), [str(photos)])
        except ValueError as error:
            messages.append(str(error))

    monkeypatch.setattr(Store, "start_writing", update_within)
    with pytest.raises(Exception, match="no such table"):
        update(tmp_path / "index", encoder, photos)
    assert messages[0].startswith(f"Another process is writing to {tmp_path / 'index'}")


@pytest.mark.parametrize("number", range(8))
def test_an_index_that_was_killed_while_it_was_created_or_replaced_is_built(number, encoder, photos, tmp_path):
    folder = tmp_path / "index"
    if number > 3:
        update(folder, encoder, photos, keep_states=True)

    def build_and_die():
        kill_at_write(folder, number)
        update(folder, encoder, photos, overwrite=True)

    assert run_forked(build_and_die) == -signal.SIGKILL
    update(folder, encoder, photos, overwrite=True)
    assert len(contents(folder)) == 11


def test_an_index_is_read_while_another_process_writes(encoder, photos, tmp_path, monkeypatch):
    update(tmp_path / "index", encoder, photos)
    write_image(photos / "new.png", "blue")
    found = []
    put = Store.put

    def put_and_read(self, image):
        put(self, image)  # a transaction is open
        found.append(len(contents(tmp_path / "index")))

    monkeypatch.setattr(Store, "put", put_and_read)
    assert update(tmp_path / "index", encoder, photos).new == 1
    assert found == [11]
    assert len(contents(tmp_path / "index")) == 12

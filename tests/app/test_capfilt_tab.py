# SPDX-License-Identifier: BSD-3-Clause
"""The CapFilt tab: counts and examples of a threshold, and the pairs that its button writes."""

import pytest

from blip_hf import refilter
from blip_hf.app.capfilt_tab import CapFiltRun, browse, make_rule, threshold_slider, write_pairs
from blip_hf.capfilt.filters import Rule
from tests.support.capfilt_runs import write_scene_run


ITM, ITC, POSTERIOR = "ITM: probability of a match", "ITC: cosine", "Posterior: both together"


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def run(run_folder):
    return CapFiltRun.open(run_folder)


@pytest.mark.parametrize(
    ("threshold", "score", "best", "expected"),
    [
        # Web 0.9, 0.1, 0.4, 0.7; synthetic 0.95, 0.5, 0.3, 0.8, each with a cosine lower by 0.5.
        (0.5, ITM, False, {"web": (4, 2), "synthetic": (4, 3)}),
        (0.35, ITM, False, {"web": (4, 3), "synthetic": (4, 3)}),
        (0.0, ITM, True, {"web": (4, 1), "synthetic": (4, 3)}),
        (0.2, ITC, False, {"web": (4, 2), "synthetic": (4, 2)}),
    ],
)
def test_counts_of_a_threshold(run, threshold, score, best, expected):
    counts, examples = run.filter(make_rule(run, threshold, score, best))
    assert counts == expected
    assert sum(example.is_kept for example in examples) <= sum(kept for _, kept in expected.values())


def test_the_page_shows_counts_and_examples_and_writes_nothing(run, run_folder):
    before = files_of(run_folder.parent)
    table, sheet = browse(run, 0.5, ITM, False)
    assert "<td>web</td>" in table
    assert "<td>62.5%</td>" in table  # 5 of 8
    assert sheet.count("<img") == 8
    assert "Web texts near the threshold, dropped" in sheet
    assert "web &lt;1&gt;<small>ITM 0.100 · ITC -0.400</small>" in sheet
    assert files_of(run_folder.parent) == before


def test_a_run_whose_source_is_gone_shows_no_images(tmp_path):
    run = CapFiltRun.open(write_scene_run(tmp_path / "run", source=str(tmp_path / "gone.json")))
    table, sheet = browse(run, 0.5, ITM, False)
    assert "<td>62.5%</td>" in table
    assert "No images to show" in sheet


def test_the_button_writes_what_refilter_writes(tmp_path):
    run = CapFiltRun.open(write_scene_run(tmp_path / "run"))
    message = write_pairs(run, "kept", 0.35, ITM, False)
    assert message == f"Wrote 3 web, 3 synthetic pairs to {tmp_path / 'kept'}"
    refilter(tmp_path / "run", Rule(threshold=0.35), tmp_path / "expected")
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "expected")
    with pytest.raises(ValueError, match="exists"):
        write_pairs(run, "kept", 0.35, ITM, False)


@pytest.mark.parametrize("name", ["", " ", "..", ".", "../kept", "a/b", "/tmp/kept", "a\\b"])
def test_only_a_folder_beside_the_run_is_written(tmp_path, name):
    run = CapFiltRun.open(write_scene_run(tmp_path / "run"))
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="is not the name of a folder"):
        write_pairs(run, name, 0.5, ITM, False)
    assert files_of(tmp_path) == before


def test_a_folder_without_scores_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is not a CapFilt run with scores"):
        CapFiltRun.open(tmp_path)


def test_the_slider_of_a_score_has_its_range_and_moves_the_threshold_into_it():
    sliders = [threshold_slider(name, threshold) for name, threshold in ((POSTERIOR, 12), (ITC, 12))]
    assert [(own.minimum, own.maximum, own.value) for own in sliders] == [(-50, 50, 12), (-1, 1, 1)]


def test_a_run_can_be_browsed_by_the_posterior(tmp_path):
    run = CapFiltRun.open(write_scene_run(tmp_path / "run"))
    rule = make_rule(run, 0.0, POSTERIOR, False)
    counts, _ = run.filter(rule)
    # The log-odds of 0.5 are 0, and its cosine is 0.
    assert counts == {"web": (4, 2), "synthetic": (4, 3)}

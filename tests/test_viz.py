"""The figures show what they were given: the tests read the drawn values back from the Figure."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from itm_lib import viz
from itm_lib.files import InputError

PICTURE = np.full((20, 40, 3), 200, dtype=np.uint8)
RECALLS = {"i2t_r1": 50.0, "i2t_r5": 70.0, "i2t_r10": 80.0, "t2i_r1": 40.0, "t2i_r5": 60.0, "t2i_r10": 75.0}


def texts(axes):
    return [text.get_text() for text in axes.texts]


def drawn(figure):
    """The figure renders, layout and all; its axes."""
    figure.canvas.draw()
    return figure.axes


def test_importing_changes_no_setting():
    code = ("import matplotlib; before = dict(matplotlib.rcParams); import itm_lib.viz; "
            "assert dict(matplotlib.rcParams) == before")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_style_sets_the_colours():
    import matplotlib

    with matplotlib.rc_context():
        viz.style()
        assert [entry["color"] for entry in matplotlib.rcParams["axes.prop_cycle"]] == list(viz.COLOURS)


def test_captioned_pictures_puts_each_caption_below_its_picture():
    axes = drawn(viz.captioned_pictures([PICTURE] * 3, ["a dog", "a cat", "two red boats"], columns=2))
    assert [ax.get_xlabel() for ax in axes] == ["a dog", "a cat", "two red boats", ""]
    assert not axes[3].axison


def test_captioned_pictures_refuses_a_missing_caption():
    with pytest.raises(InputError, match="3 pictures but 2 captions"):
        viz.captioned_pictures([PICTURE] * 3, ["a dog", "a cat"])


def test_caption_list_signs_every_caption():
    figure = viz.caption_list([PICTURE], [["a dog", "an animal", "a boat"]], own=[[True, False, False]],
                              true=[[True, True, False]], scores=[[0.5, 0.25, -0.1]])
    assert texts(drawn(figure)[1]) == [viz.OWN[0], "+0.50  a dog", viz.ALSO_TRUE[0], "+0.25  an animal", viz.WRONG[0], "-0.10  a boat"]


def test_caption_list_without_truth_has_no_sign():
    assert texts(drawn(viz.caption_list([PICTURE], [["a dog"]]))[1]) == ["•", "a dog"]


def test_retrieved_pictures_frames_differ_by_sign_colour_and_line():
    figure = viz.retrieved_pictures(["a dog"], [[PICTURE] * 3], own=[[False, True, False]], true=[[True, True, False]])
    axes = drawn(figure)
    assert [ax.get_xlabel() for ax in axes] == [viz.ALSO_TRUE[0], viz.OWN[0], viz.WRONG[0]]
    looks = [(ax.spines["top"].get_edgecolor(), str(ax.spines["top"].get_linestyle())) for ax in axes]
    assert len(set(looks)) == 3 and looks[0][0] == looks[1][0] != looks[2][0]


def test_retrieved_pictures_with_the_regions_that_are_attended_to():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 1]])
    (ax,) = drawn(viz.retrieved_pictures(["a dog"], [[PICTURE]], [[True]], [[True]], regions=[[(boxes, [0.2, 0.8])]]))
    filled = {patch.get_xy(): patch.get_alpha() for patch in ax.patches if patch.get_fill()}
    assert filled == {(0, 0): pytest.approx(0.35 / 4), (20, 0): pytest.approx(0.35)}
    assert [patch.get_xy() for patch in ax.patches if not patch.get_fill()] == [(20, 0)]


def test_retrieved_pictures_of_a_query_that_was_written_for_none():
    one, two = drawn(viz.retrieved_pictures(["a dog"], [[PICTURE] * 2], None, [[True, False]]))
    assert (one.get_xlabel(), two.get_xlabel()) == (viz.TRUE[0], viz.WRONG[0])


def test_retrieved_pictures_leaves_room_for_shorter_rows():
    figure = viz.retrieved_pictures(["a dog", "a cat"], [[PICTURE] * 2, [PICTURE]], [[True, False], [True]], [[True, False], [True]])
    assert [ax.axison for ax in drawn(figure)] == [True, True, True, False]


def test_score_matrix_writes_scores_and_frames_true_pairs():
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.4]])
    figure = viz.score_matrix(scores, [PICTURE] * 2, ["a dog", "a cat", "a boat"], truth=scores > 0.5, title="by hand")
    axes = drawn(figure)
    assert texts(axes[0]) == ["0.90", "0.10", "0.20", "0.30", "0.80", "0.40"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a dog", "a cat", "a boat"]
    corners = [patch.get_xy() for patch in axes[0].patches if isinstance(patch, Rectangle)]
    assert np.allclose(corners, [(-0.46, -0.46), (0.54, 0.54)])
    assert len(axes[0].child_axes) == 2 and axes[1].get_ylabel() == "score"


def test_large_score_matrix_has_no_numbers():
    axes = drawn(viz.score_matrix(np.zeros((20, 100))))
    assert texts(axes[0]) == [] and (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("caption", "picture")


def test_score_matrix_refuses_a_vector():
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        viz.score_matrix([1.0, 2.0, 3.0])


HISTORY = [
    {"kind": "steps", "epoch": 0, "step": 10, "loss": 0.4, "collapsed_loss": 0.4},
    {"kind": "steps", "epoch": 0, "step": 20, "loss": 0.3, "collapsed_loss": 0.4},
    {"kind": "epoch", "epoch": 1, "step": 20, "loss": 0.35, "rsum": 200.0, "best": True},
    {"kind": "warning", "epoch": 1, "step": 20, "message": "collapse"},
    {"kind": "epoch", "epoch": 2, "step": 40, "loss": 0.3, "rsum": 190.0, "best": False},
]


def test_training_curve_draws_loss_collapse_metric_and_the_epoch_kept():
    left, right = drawn(viz.training_curve({"VSE++": HISTORY}, perfect=560.0))
    loss, collapsed = left.lines
    assert list(loss.get_xdata()) == [10, 20] and list(loss.get_ydata()) == [0.4, 0.3]
    assert list(collapsed.get_ydata()) == [0.4, 0.4] and collapsed.get_label() == "collapsed model"
    values, kept, perfect = right.lines
    assert list(values.get_xdata()) == [1, 2] and list(values.get_ydata()) == [200.0, 190.0]
    assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([1], [200.0]) and list(perfect.get_ydata()) == [560.0, 560.0]
    assert (left.get_xlabel(), right.get_xlabel(), right.get_ylabel()) == ("step", "epoch", "rsum on val")


def test_relative_training_curve_draws_each_loss_as_a_share_of_the_collapsed_one():
    left, _ = drawn(viz.training_curve({"one": HISTORY, "four terms": [{**HISTORY[0], "loss": 0.8, "collapsed_loss": 1.6}]}, relative=True))
    one, four, collapsed = left.lines
    assert np.allclose(one.get_ydata(), [1.0, 0.75]) and list(four.get_ydata()) == [0.5]
    assert list(collapsed.get_xdata()) == [10, 20] and set(collapsed.get_ydata()) == {1.0}
    assert left.get_ylabel() == "training loss / that of a collapsed model"


def test_training_curve_of_a_model_without_a_collapsed_loss():
    rows = [{"kind": "steps", "epoch": 0, "step": 10, "loss": 0.4}, {"kind": "epoch", "epoch": 1, "step": 10, "loss": 0.4}]
    left, right = drawn(viz.training_curve({"one": rows}))
    assert len(left.lines) == 1 and list(right.lines[0].get_xdata()) == []


def test_live_curve_updates_one_figure(monkeypatch):
    shown, updated = [], []

    class Handle:
        update = staticmethod(updated.append)

    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append(figure) or Handle())
    curve = viz.LiveCurve()
    curve.follow("mean")(HISTORY[:3])
    curve.follow("mean")(HISTORY)
    curve.follow("max")(HISTORY)
    assert len(shown) == 1 and len(updated) == 2
    assert [line.get_label() for line in updated[1].axes[0].lines] == ["mean", "max", "collapsed model"]


def test_live_curve_follows_the_stages_of_a_recipe(monkeypatch):
    shown, updated = [], []

    class Handle:
        update = staticmethod(updated.append)

    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append(figure) or Handle())
    curve = viz.LiveCurve()
    curve.follow_stages(STAGES["first"])
    curve.follow_stages(STAGES["second"])
    assert len(shown) == len(updated) == 1
    assert [text.get_text() for text in updated[0].legends[0].get_texts()] == ["first", "second", "collapsed model (left)"]


def test_recall_bars_show_each_number_under_its_ceiling():
    figure = viz.recall_bars({"one": RECALLS, "two": RECALLS}, ceiling={"t2i_r1": 90.0})
    i2t, t2i = drawn(figure)
    assert sorted(patch.get_height() for patch in i2t.patches) == [50, 50, 70, 70, 80, 80]
    assert not i2t.lines and list(t2i.lines[0].get_ydata()) == [90.0, 90.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "perfect matcher"]


def test_foil_bars_show_each_kind_beside_a_coin():
    figure = viz.foil_bars({"VSE++": {"foil_object": 90.0, "foil_attribute": 80.0, "foil_relation": 52.0, "rsum": 400.0}})
    (ax,) = drawn(figure)
    assert [patch.get_height() for patch in ax.patches] == [90, 80, 52] and list(ax.lines[0].get_ydata()) == [50, 50]


def test_word_attention_fills_boxes_by_weight_and_frames_the_largest():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    weights = np.array([[0.8, 0.2], [0.4, 0.6]])
    axes = drawn(viz.word_attention(PICTURE, ["dog", "boat"], boxes, weights, gold=[None, boxes[1]]))
    assert [ax.get_title() for ax in axes[:2]] == ["dog", "boat"]
    framed = [patch.get_xy() for patch in axes[0].patches if not patch.get_fill()]
    assert framed == [(0, 0)]                                    # the largest weight; no gold box for "dog"
    filled = sorted(patch.get_alpha() for patch in axes[0].patches if patch.get_fill())
    assert np.allclose(filled, [0.65 / 4, 0.65])
    assert len([patch for patch in axes[1].patches if not patch.get_fill()]) == 2


def test_word_attention_refuses_transposed_weights():
    with pytest.raises(InputError, match=r"2 words over 3 regions has shape \(3, 2\)"):
        viz.word_attention(PICTURE, ["a", "dog"], np.zeros((3, 4)), np.zeros((3, 2)))


def test_result_dots_mean_and_standard_deviation():
    figure = viz.result_dots({"rsum": {"VSE++": [400.0, 410.0, 420.0], "SCAN": [500.0]}}, levels={"rsum": 560.0}, unit="")
    (ax,) = drawn(figure)
    (bar, _, (line,)) = ax.containers[0].lines
    assert list(bar.get_xdata()) == [410.0]
    assert np.allclose([point[0] for point in line.get_segments()[0]], [400.0, 420.0])     # mean ± sd, n − 1 in the sd
    assert [label.get_text() for label in ax.get_yticklabels()] == ["VSE++", "SCAN"]
    assert any(list(line.get_xdata()) == [560.0, 560.0] for line in ax.lines)


# ---- 01 From pixels to regions -------------------------------------------------------------------------------------------

def test_region_boxes_stand_in_pixels_and_differ_by_line():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1], [0.5, 0, 1, 0.5]])
    figure = viz.region_boxes([PICTURE], [boxes], [["object", "part", "object"]], [["dog", "cat", "bee"]])
    ax = drawn(figure)[0]
    assert [(patch.get_xy(), patch.get_width(), patch.get_height()) for patch in ax.patches] == [
        ((0, 0), 20, 10), ((10, 10), 30, 10), ((20, 0), 20, 10)]
    assert texts(ax) == ["dog", "cat", "bee"]
    assert ax.patches[0].get_linestyle() == ax.patches[2].get_linestyle() != ax.patches[1].get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["object", "part"]


def test_crop_grid_signs_right_and_wrong_and_leaves_the_rest():
    axes = drawn(viz.crop_grid([PICTURE] * 3, ["query", "dog", "cat"], [None, True, False], columns=2))
    assert [ax.get_xlabel() for ax in axes] == ["query", "✓ dog", "✗ cat", ""]
    lines = [ax.spines["left"].get_linestyle() for ax in axes[1:3]]
    assert not axes[0].spines["left"].get_visible() and lines[0] != lines[1] and not axes[3].axison


def test_encoder_curve_draws_loss_and_accuracies_by_epoch():
    history = [{"epoch": 1, "loss": 3.0, "object": 50.0, "background": 70.0, "colour": 60.0},
               {"epoch": 2, "loss": 1.0, "object": 90.0, "background": 99.0, "colour": 95.0}]
    left, right = drawn(viz.encoder_curve(history, blind=5.5))
    assert list(left.lines[0].get_ydata()) == [3, 1] and list(left.lines[1].get_ydata()) == [5.5, 5.5]
    assert {line.get_label(): list(line.get_ydata()) for line in right.lines} == {
        "object": [50, 90], "background": [70, 99], "colour": [60, 95]}


def test_feature_map_gives_each_group_its_points():
    points = np.array([[0, 0], [1, 1], [2, 2], [3, 3]])
    (ax,) = drawn(viz.feature_map(points, ["other", "fruit", "animal", "fruit"], palette={"fruit": "#FF0000", "animal": "#00FF00"}))
    found = {line.get_label(): (list(line.get_xdata()), line.get_color()) for line in ax.lines}
    assert found == {"other": ([0], viz.GREY), "animal": ([2], "#00FF00"), "fruit": ([1, 3], "#FF0000")}


def test_feature_maps_of_two_extractors_have_the_same_groups():
    points = np.arange(6.0).reshape(3, 2)
    figure = viz.feature_maps({"ours": points, "theirs": points + 1}, ["fruit", "other", "fruit"])
    left, right = drawn(figure)
    assert [ax.get_title() for ax in (left, right)] == ["ours", "theirs"]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[3, 4]], [[1, 2], [5, 6]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["other", "fruit"]


def test_pooled_box_draws_places_and_the_product():
    rows, columns = np.array([[0.5, 0.5, 0], [0, 0, 1]]), np.array([[0.25, 0.75]])
    axes = drawn(viz.pooled_box([[1, 2], [3, 4], [5, 6]], [0, 0, 0.5, 1], rows, columns))
    assert axes[0].lines[0].get_xydata().tolist() == [[0.75, 0.5], [0.75, 2]]
    assert (axes[0].patches[0].get_xy(), axes[0].patches[0].get_width(), axes[0].patches[0].get_height()) == ((-0.5, -0.5), 1, 3)
    assert texts(axes[4]) == ["2.75", "5.75"]


def test_probe_bars_show_each_probe_beside_its_baseline():
    (ax,) = drawn(viz.probe_bars({"object": 92.0, "size": 40.0}, {"size": 45.0, "object": 5.0}))
    assert [patch.get_width() for patch in ax.patches] == [92, 40]
    assert list(ax.lines[0].get_xdata()) == [5, 45] and list(ax.lines[0].get_ydata()) == [0, 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["object", "size"]


# ---- 03 CAMP -------------------------------------------------------------------------------------------------------------

STAGES = {
    "first": [{"kind": "steps", "stage": "first", "epoch": 1, "step": 10, "loss": 0.2, "collapsed_loss": 0.4},
              {"kind": "epoch", "stage": "first", "epoch": 1, "step": 10, "loss": 0.2, "rsum": 300.0, "best": True}],
    "second": [{"kind": "start", "stage": "second", "epoch": 0, "step": 0},
               {"kind": "steps", "stage": "second", "epoch": 1, "step": 8, "loss": 2.1, "collapsed_loss": 2.8},
               {"kind": "epoch", "stage": "second", "epoch": 1, "step": 8, "loss": 2.1, "rsum": 350.0, "best": True}],
}


def test_staged_curve_puts_stages_in_a_row_on_a_relative_loss():
    left, right = drawn(viz.staged_curve(STAGES, perfect=560.0))
    curves = {line.get_label(): line for line in (*left.lines, *right.lines) if not line.get_label().startswith("_")}
    assert np.allclose(left.lines[0].get_xydata(), [[10, 0.5]])
    assert np.allclose(next(line for line in left.lines if line.get_label() == "second").get_xydata(), [[18, 0.75]])
    assert np.allclose(curves["second"].get_xydata(), [[2, 350]])                  # after one epoch of the first stage
    assert set(curves["collapsed model (left)"].get_ydata()) == {1} and set(curves["perfect matcher (right)"].get_ydata()) == {560}


def test_open_gates_shows_every_gate():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    figure = viz.open_gates([PICTURE] * 2, [boxes] * 2, [[0.25, 0.75], [0.5, 0.125]], [["a", "dog"], ["dog"]],
                            [[0.5, 1.0], [0.1]], ["true", "false"])
    above, other, below = drawn(figure)[:3]
    assert [above.get_title(), other.get_title()] == ["true", "false"]
    assert texts(above) == ["0.25", "0.75"] and texts(other) == ["0.12", "0.50"]   # the widest last, so that it is on top
    thin, thick = (patch.get_linewidth() for patch in above.patches)
    assert thin < thick
    assert [patch.get_width() for patch in below.patches] == [0.5, 1.0]
    assert [label.get_text() for label in below.get_yticklabels()] == ["a", "dog"]


def test_open_gates_refuses_gates_of_another_pair():
    with pytest.raises(InputError, match=r"pair 0: gates of shapes \(3,\) and \(1,\) for 2 regions and 1 words"):
        viz.open_gates([PICTURE], [np.zeros((2, 4))], [[0.1, 0.2, 0.3]], [["dog"]], [[0.5]], ["true"])


def test_gate_histograms_are_shares_on_the_logits_axis():
    gates = {"regions": {"true pairs": [0.9, 0.9, 0.5], "false pairs": [1e-12, 0.5]}, "words": {"true pairs": [0.5], "false pairs": [1.0]}}
    figure = viz.gate_histograms(gates, marks={"paper": (0.971, viz.BLUE)})
    left, right = drawn(figure)
    true, false = (patch.get_data() for patch in left.patches)
    assert np.isclose(true.values.sum(), 100) and np.isclose(false.values.sum(), 100)      # nothing falls off the ends
    place = np.searchsorted(true.edges, np.log(0.9 / 0.1)) - 1
    assert np.isclose(true.values[place], 200 / 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true pairs", "false pairs", "paper"]
    assert left.get_title() == "regions: mean 0.767 of true pairs, 0.250 of false pairs"
    assert left.get_ylim()[1] > 100 > 0 == left.get_ylim()[0]                               # the panel with the tallest bin fits
    assert [text.get_text() for text in left.get_xticklabels()] == ["1e-09", "1e-06", "0.001", "0.1", "0.5", "0.9", "0.999"]


# ---- 04 HREM -------------------------------------------------------------------------------------------------------------

def test_attention_blocks_fills_what_a_step_uses():
    axes = drawn(viz.attention_blocks({"all": np.ones((2, 2)), "cross": [[0, 1], [1, 0]]}))
    assert [ax.get_title() for ax in axes] == ["all", "cross"]
    assert texts(axes[0]) == ["I-I", "I-T", "T-I", "T-T"] and texts(axes[1]) == ["not used", "I-T", "T-I", "not used"]
    assert [patch.get_hatch() for patch in axes[1].patches] == ["///", None, None, "///"]


RELATIONS = np.array([[1.0, np.nan, 0.5], [0.25, 1.0, np.nan], [2.0, np.nan, 1.0]])


def test_relation_map_has_pictures_on_both_axes_and_borders():
    ax, bar = drawn(viz.relation_map(RELATIONS, [PICTURE] * 2, ["a dog on the road"], title="before"))
    assert ax.get_title() == "before" and len(ax.child_axes) == 4                        # two pictures, on both axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["", "", "a  a dog on the road"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["", "", "a"]
    shown = ax.images[0].get_array()
    assert shown.mask.tolist() == np.isnan(RELATIONS).tolist() and shown[2, 0] == 2
    assert sorted({line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}) == [-0.5, 1.5, 2.5]
    assert bar.get_ylabel() == "relevance S (white: not connected)"


def test_relation_map_of_groups():
    ax, _ = drawn(viz.relation_map(np.zeros((4, 4)), ["a", "b"], ["c", "d"], group=1))
    dotted = sorted(line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":" and len(set(line.get_ydata())) == 1)
    assert dotted == [0.5, 1.5, 2.5]


def test_relation_map_by_name_and_with_numbers():
    ax, _ = drawn(viz.relation_map(RELATIONS, ["dog", "cat"], ["boat"], numbers=True, limits=(0, 3)))
    assert texts(ax) == ["1.00", "0.50", "0.25", "1.00", "2.00", "1.00"] and not ax.child_axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dog", "cat", "a  boat"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "a"]
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (0, 3)


def test_relation_map_refuses_relations_of_another_batch():
    with pytest.raises(InputError, match=r"relations of 2 images and 2 captions have shape \(3, 3\)"):
        viz.relation_map(RELATIONS, [PICTURE] * 2, ["a", "b"])


def test_negative_weights_against_distance():
    panels = {"random": ([1.5, 1.0], {16: [0.25, 0.75], 512: [0.0, 1.0]}), "trained": ([1.2], {16: [1.0], 512: [1.0]})}
    figure = viz.negative_weights(panels, marks={"cut": 1.7})
    left, right = drawn(figure)
    points = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert points["16 dimensions"] == [[1.0, 0.75], [1.5, 0.25]] and points["512 dimensions"] == [[1.0, 1.0], [1.5, 1e-6]]
    assert set(left.lines[2].get_ydata()) == {0.5} and set(right.lines[2].get_ydata()) == {1.0}       # an even draw of 2, of 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["16 dimensions", "512 dimensions", "even draw", "cut"]


def test_distance_histograms_are_shares_with_their_mean():
    figure = viz.distance_histograms({"before": {"true pairs": [0.5, 1.5], "false pairs": [1.0]}}, marks={"cut": 1.7})
    (ax,) = drawn(figure)
    true, false = (patch.get_data() for patch in ax.patches)
    assert np.isclose(true.values.sum(), 100) and true.values.max() == 50 and false.values.max() == 100
    assert [line.get_xdata()[0] for line in ax.lines] == [1.0, 1.0, 1.7]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true pairs", "false pairs", "cut"]


def test_node_rows_shows_pictures_and_captions_with_their_values():
    figure = viz.node_rows([PICTURE] * 2, [[PICTURE] * 2, [PICTURE]], [[0.5, 0.25], [0.125]], [["a dog", "a cat"], ["a boat"]],
                           [[0.5, 0.125], [1.0]], own=[[True, False], [False]], head="picture")
    axes = np.array(drawn(figure)).reshape(2, 4)
    assert [ax.get_xlabel() for ax in axes[0]] == ["picture", "0.500", "0.250", ""]
    assert [ax.get_xlabel() for ax in axes[1]] == ["picture", "0.125", "", ""] and not axes[1, 2].axison
    assert texts(axes[0, 3]) == ["0.500  a dog (its own)", "0.125  a cat"] and texts(axes[1, 3]) == ["1.000  a boat"]
    assert [text.get_color() for text in axes[0, 3].texts] == [viz.GREEN, viz.BLACK]


def test_picture_rows_are_named_on_the_left():
    axes = drawn(viz.picture_rows({"cluster 0": [PICTURE] * 2, "cluster 1": [PICTURE]}))
    assert [ax.get_ylabel() for ax in axes] == ["cluster 0", "", "cluster 1", ""]
    assert [ax.axison for ax in axes] == [True, True, True, False]


def test_efficiency_puts_rsum_against_the_whole_time_of_a_query():
    models = {"VSE++": {"rsum": [500.0, 510.0, 520.0], "encode": 1.0, "score": 0.01}, "SCAN": {"rsum": [560.0], "encode": 1.0, "score": 9.0}}
    left, right = drawn(viz.efficiency(models, "1000 pictures", perfect=580.0))
    (point, _, (bar,)) = left.containers[0].lines
    assert np.allclose(point.get_xydata(), [[1.01, 510.0]])
    assert np.allclose([end[1] for end in bar.get_segments()[0]], [500.0, 520.0])
    assert texts(left) == ["VSE++", "SCAN"] and left.get_xscale() == right.get_xscale() == "log"
    marks = [(line.get_xdata()[0], line.get_fillstyle()) for line in right.lines if len(line.get_xdata()) == 1]
    assert marks == [(1.0, "none"), (0.01, "full"), (1.0, "none"), (9.0, "full")]
    assert [label.get_text() for label in right.get_yticklabels()] == ["VSE++", "SCAN"]


# ---- 05 DivE -------------------------------------------------------------------------------------------------------------

def test_true_picture_bars_are_shares_of_captions():
    (ax,) = drawn(viz.true_picture_bars({"a": [1, 1, 2, 25], "b": [1, 7]}))
    first, second = ([bar.get_height() for bar in bars] for bars in ax.containers)
    assert first == [50, 25, 0, 0, 0, 0, 25] and second == [50, 0, 0, 0, 50, 0, 0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a: 7.2 on average", "b: 4.0 on average"]


def test_points_on_circle_have_a_look_a_name_and_links_their_cosine():
    figure = viz.points_on_circle({"one": {"A": [1.0, 0.0], "set": [[0.0, 1.0]]}, "two": {"set": [[0.6, 0.8], [0.8, 0.6]]}},
                                  links={"one": [([1.0, 0.0], [0.6, 0.8])]})
    one, two = drawn(figure)
    points = {line.get_label(): line for line in one.lines if line.get_linestyle() == "None"}
    assert points["A"].get_xydata().tolist() == [[1, 0]] and points["set"].get_xydata().tolist() == [[0, 1]]
    assert points["set"].get_color() == [line for line in two.lines if line.get_label() == "set"][0].get_color()
    assert texts(one) == ["0.60"] and one.get_ylim()[0] > -1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "set"]


def test_points_on_circles_apart():
    (ax,) = drawn(viz.points_on_circle({"": {"a": [1.0, 0.0], "b": [0.0, -1.0]}}, apart=0.1))
    assert [line.get_xydata().tolist() for line in ax.lines if line.get_label() == "b"] == [[[0.0, -0.9]]]
    assert ax.get_ylim()[0] < -1                                                                          # there is a lower half


def test_element_gradients_shows_weights_and_lengths():
    figure = viz.element_gradients([[0.5, -0.5], [0.25, 1.0]], {"MIL": [[0, 0], [0, 1]], "MP": [[0.1, 0.1], [0.2, 0.1]]}, {"MIL": [0, 1], "MP": [0.2, 0.3]})
    axes = drawn(figure)
    assert [ax.get_title() for ax in axes[:3]] == ["cosines c", "dS/dc, MIL", "dS/dc, MP"]
    assert texts(axes[0]) == ["0.50", "-0.50", "0.25", "1.00"] and texts(axes[1]) == ["0.00", "0.00", "0.00", "1.00"]
    assert axes[1].images[0].norm.vmax == axes[2].images[0].norm.vmax == 1                                # one scale for all
    assert [[bar.get_height() for bar in ax.patches] for ax in axes[4:]] == [[0, 1], [0.2, 0.3]]
    assert [label.get_text() for label in axes[5].get_xticklabels()] == ["x₁", "x₂"]


def test_alpha_curves_draw_weights_scores_and_the_limit():
    left, right = drawn(viz.alpha_curves([1, 16], [[0.75, 0.25], [1.0, 0.0]], [1.2, 1.0], 0.98, element="x₃"))
    assert [line.get_ydata().tolist() for line in left.lines] == [[0.75, 1.0], [0.25, 0.0]] and left.get_ylabel() == "weight for x₃"
    assert [list(line.get_ydata()) for line in right.lines] == [[1.2, 1.0], [0.98, 0.98]]
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "16"]


def test_element_paths_of_every_similarity_with_the_targets():
    first, second = drawn(viz.element_paths({"MIL": [[30, 50], [20, 50]], "smooth-Chamfer, α = 2": [[30, 50], [33, 48]]}, targets=(20, 160)))
    assert [list(line.get_ydata()) for line in first.lines] == [[20, 20], [160, 160], [30, 20], [50, 50]]
    assert second.lines[-1].get_color() == viz.SIMILARITIES["smooth-Chamfer"] and second.get_title() == "smooth-Chamfer, α = 2"


def test_slot_maps_have_one_scale():
    axes = drawn(viz.slot_maps({"a": [[0.25, 0.75]], "b": [[0.5, 0.5], [0.1, 0.2]]}, ["dog", "ball"]))
    assert texts(axes[0]) == ["0.25", "0.75"] and axes[0].images[0].norm.vmax == axes[1].images[0].norm.vmax == 0.75
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["dog", "ball"]
    with pytest.raises(InputError, match=r"weights of 3 fragments have shape \(1, 2\)"):
        viz.slot_maps({"a": [[0.25, 0.75]]}, ["dog", "ball", "tree"])


def test_slots_on_picture_shades_regions_and_lists_captions():
    figure = viz.slots_on_picture(PICTURE, [[0, 0, 0.5, 1], [0.5, 0, 1, 1]], [[0.2, 0.8], [0.5, 0.5]], [["a dog", "a cat"], ["a boat", "a tree"]],
                                  own=[[True, False], [False, False]], true=[[True, True], [False, False]], scores=[[0.9, 0.8], [0.7, 0.6]], title="a picture")
    first, second, below, other = drawn(figure)
    assert first.get_title() == "slot 1: at most 0.80"
    filled = sorted((patch.get_x(), round(patch.get_alpha(), 4)) for patch in first.patches if patch.get_fill())
    assert filled == [(0, 0.1625), (20, 0.65)]
    assert [patch.get_x() for patch in first.patches if not patch.get_fill()] == [20]                     # the frame is around the larger weight
    assert texts(below) == ["✓ own 0.90  a dog", "✓ also true 0.80  a cat"] and texts(other) == ["✗ false 0.70  a boat", "✗ false 0.60  a tree"]
    assert other.texts[0].get_color() == viz.RED
    with pytest.raises(InputError, match=r"2 slots over 1 regions have shape \(2, 2\)"):
        viz.slots_on_picture(PICTURE, [[0, 0, 1, 1]], [[0.2, 0.8], [0.5, 0.5]], [], [], [], [])


def test_gradient_shares_in_percent():
    (ax,) = drawn(viz.gradient_shares({"MIL": [1.0, 0.0], "MP": [0.5, 0.5]}))
    assert [[bar.get_height() for bar in bars] for bars in ax.containers] == [[100, 0], [50, 50]]
    assert ax.containers[0][0].get_facecolor()[:3] == pytest.approx((0xE6 / 255, 0x9F / 255, 0))
    assert set(ax.lines[0].get_ydata()) == {50} and [label.get_text() for label in ax.get_xticklabels()] == ["largest", "no. 2"]


def test_variance_histograms_on_a_log_axis():
    left, right = drawn(viz.variance_histograms({"pictures": {"K = 4": [0.1, 0.3], "MIL": [0.0, 0.0]}, "captions": {"K = 4": [0.5], "MIL": [0.001]}}))
    four, mil = (patch.get_data() for patch in left.patches)
    assert four.values.sum() == 100 == mil.values.max() and four.values.max() == 50                       # 0 is drawn at the floor
    assert [line.get_xdata()[0] for line in left.lines] == pytest.approx([0.2, 1e-7])
    assert left.get_xscale() == "log" and right.get_title() == "captions"


def test_paired_seeds_joins_the_runs_of_a_seed():
    figure = viz.paired_seeds({"default": {"1": [500.0, 490.0], "4": [505.0, 480.0]}, "many": {"1": [400.0], "4": [410.0]}}, "K", "rsum")
    left, right = drawn(figure)
    assert [line.get_ydata().tolist() for line in left.lines] == [[500, 505], [490, 480], [495, 492.5]] and len(right.lines) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1", "mean"]
    with pytest.raises(InputError, match="default: settings have 2, 1 seeds; pairs need the same"):
        viz.paired_seeds({"default": {"1": [500.0, 490.0], "4": [505.0]}}, "K", "rsum")


def test_group_bars():
    (ax,) = drawn(viz.group_bars({"K = 1": {"1": 40.0, "2 or 3": 30.0}, "K = 4": {"1": 41.0, "2 or 3": 35.0}}, "true pictures", "mAP@R"))
    assert [[bar.get_height() for bar in bars] for bars in ax.containers] == [[40, 30], [41, 35]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2 or 3"]


def test_setting_curves_ring_the_chosen_setting():
    first, second = drawn(viz.setting_curves({"rsum": {1: 400.0, 2: 420.0}, "variance": {1: 0.1, 2: 0.2}}, "T", chosen=2))
    assert first.lines[0].get_xydata().tolist() == [[1, 400], [2, 420]] and first.get_ylabel() == "rsum"
    assert list(second.lines[1].get_xdata()) == [2] and second.lines[1].get_fillstyle() == "none"


# ---- 06 Reproduction -----------------------------------------------------------------------------------------------------

def test_result_dots_of_another_origin_are_diamonds():
    (ax,) = drawn(viz.result_dots({"rsum": {"VSE++": [500.0, 510.0]}}, singles={"rsum": {"VSE++": 507.0, "SCAN": 560.0}}))
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [list(line.get_xdata()) for line in diamonds] == [[507.0], [560.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["VSE++", "SCAN"]


def test_recall_curves_with_the_ceiling():
    figure = viz.recall_curves({"VSE++": RECALLS, "SCAN": {name: value + 5 for name, value in RECALLS.items()}}, {name: 100.0 for name in RECALLS})
    left, right = drawn(figure)
    assert [list(line.get_ydata()) for line in left.lines] == [[50, 70, 80], [55, 75, 85], [100, 100, 100]]
    assert list(right.lines[0].get_ydata()) == [40, 60, 75] and left.lines[-1].get_linestyle() == "--"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["VSE++", "SCAN", "perfect matcher"]


def test_chosen_epochs_say_what_test_adds():
    first, second, *_ = drawn(viz.chosen_epochs({"seed 0": {"val": [1.0, 3.0, 2.0], "test": [2.0, 4.0, 5.5]}, "seed 1": {"val": [1.0, 2.0], "test": [1.0, 3.0]}}))
    assert first.get_title() == "seed 0: test flatters by 1.5" and second.get_title() == "seed 1: test flatters by 0.0"
    ring, star = first.lines[2], first.lines[3]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [4.0]) and (list(star.get_xdata()), list(star.get_ydata())) == ([3], [5.5])
    with pytest.raises(InputError, match="seed 0: 2 epochs on val and 1 on test"):
        viz.chosen_epochs({"seed 0": {"val": [1.0, 2.0], "test": [1.0]}})


def test_spreads_colour_the_rows_by_group():
    figure = viz.spreads({"pictures": (8.0, "queries"), "VSE++": (6.0, "seed"), "SCAN": (2.0, "seed")}, "sd", {"queries": viz.SKY, "seed": viz.BLUE, "other": viz.RED})
    (ax,) = drawn(figure)
    assert [bar.get_width() for bar in ax.patches] == [8, 6, 2] and texts(ax) == ["8.0", "6.0", "2.0"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["queries", "seed"]


def test_draws_mark_the_measured_value_and_the_interval():
    left, right = drawn(viz.draws({"rsum": (np.linspace(490, 510, 100), 500.0, (491.0, 509.0)), "difference": ([1.0, 2.0], 1.5, (1.0, 2.0))}, mark=0.0))
    assert left.get_title() == "500.0; 95 % from 491.0 to 509.0" and left.lines[0].get_xdata()[0] == 500
    assert [ax.lines[1].get_xdata()[0] for ax in (left, right)] == [0, 0]


def test_search_cost_numbers_the_models():
    models = {"VSE++": {"rsum": [500.0, 510.0], "encode": 0.02, "score": 0.03}, "SCAN": {"rsum": [560.0], "encode": 0.02, "score": 2.0}}
    left, right = drawn(viz.search_cost(models, "1000 pictures"))
    assert texts(left) == ["1", "2"] and [label.get_text() for label in right.get_yticklabels()] == ["1  VSE++", "2  SCAN"]
    assert [round(bar.get_width(), 3) for bar in right.patches] == [0.02, 0.03, 0.02, 2.0] and texts(right) == ["0.05", "2.02"]
    assert left.get_xscale() == right.get_xscale() == "log"


def test_published_values_with_and_without_a_spread():
    (ax,) = drawn(viz.published({"paper": (452.2, None), "ten seeds": (447.5, 2.1)}, "rsum"))
    assert texts(ax) == ["452.2", "447.5 ± 2.1"] and [label.get_text() for label in ax.get_yticklabels()] == ["paper", "ten seeds"]


# ---- 07 Training on GPUs -------------------------------------------------------------------------------------------------

def test_lines_on_log_axes_with_marks():
    left, right = drawn(viz.lines({"a": {"one": {8: 1.0, 16: 2.0}}, "b": {"one": {8: 3.0}, "two": {8: 4.0, 32: 5.0}}}, "batch", ["loss", "rsum"], log="xy", marks={"collapsed": 2.5}))
    assert left.lines[0].get_xydata().tolist() == [[8, 1], [16, 2]] and [label.get_text() for label in right.get_xticklabels()] == ["8", "32"]
    assert left.get_xscale() == left.get_yscale() == "log" and (left.get_ylabel(), right.get_ylabel()) == ("loss", "rsum")
    assert left.lines[-1].get_label() == "collapsed" and set(left.lines[-1].get_ydata()) == {2.5}


def test_gradient_range_says_what_is_lost():
    first, second = drawn(viz.gradient_range({"as they are": [2.0**-30, 2.0**-20, 0.0, -1.0, 1e-3], "scaled": [1e6, 1.0]}))
    assert first.get_title() == "as they are: 25.0 % become 0, 0.0 % infinite" and second.get_title() == "scaled: 0.0 % become 0, 50.0 % infinite"


def test_fp16_zones_are_those_of_the_format():
    zero, few, largest = viz.FP16
    assert np.float16(zero) == 0 and np.float16(zero * 1.01) > 0
    assert few == np.finfo(np.float16).smallest_normal and largest == np.finfo(np.float16).max


def test_seen_pairs_count_the_negatives():
    figure = viz.seen_pairs({"whole": [[2, 1], [1, 2]], "parts": [[2, 0], [0, 2]]})
    left, right = drawn(figure)
    assert left.get_xlabel() == "captions\n2 negatives" and right.get_xlabel() == "captions\n0 negatives"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["match", "negative", "not scored"]


def test_time_parts_are_shares_of_a_step():
    figure = viz.time_parts({"VSE++": {"loading": 1.0, "backward": 3.0}, "SCAN": {"loading": 1.0, "backward": 99.0}}, {"VSE++": 1000.0, "SCAN": 12.0})
    (ax,) = drawn(figure)
    assert [bar.get_width() for bar in ax.patches] == [25, 75, 1, 99] and texts(ax) == ["25", "75", "4 ms, 1000 pairs/s", "99", "100 ms, 12 pairs/s"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["loading", "backward"]


def test_resumed_run_shows_the_three_pieces_and_the_checkpoint():
    (ax,) = drawn(viz.resumed_run({1: 0.4, 2: 0.3, 3: 0.2}, {1: 0.4, 2: 0.3}, {2: 0.3, 3: 0.2}, checkpoint=1))
    assert [line.get_label() for line in ax.lines] == ["never stopped", "killed", "started again", "its last checkpoint"]
    assert ax.lines[2].get_xydata().tolist() == [[2, 0.3], [3, 0.2]] and ax.lines[3].get_xdata()[0] == 1


# ---- 08 Search -----------------------------------------------------------------------------------------------------------

def test_inverted_lists_mark_the_found_and_the_exact():
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]])
    (ax,) = drawn(viz.inverted_lists(points, [[0, 0], [1, 1]], [0.4, 0.1], [0], [0, 1], [0], title="one cell"))
    found = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert found["found"] == [[0, 0], [1, 0]] and found["truly nearest"] == [[0, 0]] and found["query"] == [[0.4, 0.1]]
    shaded = np.asarray(ax.images[0].get_array(), dtype=float)
    assert np.nanmax(shaded) == 1 and ax.get_title() == "one cell"


def test_code_words_join_each_piece_to_its_word():
    (ax,) = drawn(viz.code_words({"part 1": ([[0, 0], [2, 2]], [[0, 1], [2, 3]], [0, 1])}, names=["a", "b"]))
    assert [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata()) == 2] == [[[0, 0], [0, 1]], [[2, 2], [2, 3]]]
    assert texts(ax) == ["a", "b", "0", "1"]


def test_graph_walk_has_a_panel_a_layer():
    points = [[0, 0], [1, 0], [1, 1], [2, 1]]
    top, bottom = drawn(viz.graph_walk(points, [[(0, 3)], [(0, 1), (1, 2), (2, 3)]], [[0, 3], [3, 2]], [1.1, 1.2]))
    assert (top.get_title(), bottom.get_title()) == ("layer 1: 2 points", "layer 0: 4 points")
    assert [tuple(text.xyann) for text in bottom.texts] == [(2, 1)] and [tuple(text.xy) for text in bottom.texts] == [(1, 1)]


def test_recall_against_time_names_the_settings():
    (ax,) = drawn(viz.recall_against_time({"20 000": {"HNSW": {16: (0.1, 70.0), 64: (0.3, 95.0)}}}, {"20 000": 2.0}, limit=50))
    assert ax.lines[0].get_xydata().tolist() == [[0.1, 70], [0.3, 95]] and texts(ax) == ["16", "64"]
    assert set(ax.lines[-1].get_xdata()) == {2} and ax.get_ylim()[0] == 50


# ---- 09 Real photographs -------------------------------------------------------------------------------------------------

def test_retrieved_pictures_without_a_truth_call_none_false():
    axes = drawn(viz.retrieved_pictures(["a dog"], [[PICTURE] * 2], own=[[False, True]], true=None))
    assert [ax.get_xlabel() for ax in axes] == [viz.OTHER[0], viz.OWN[0]]


def test_differences_draw_the_interval_and_the_verdict():
    figure = viz.differences([("gates", 12.0, 5.0, 19.0, "holds", 3.5), ("residual", -1.0, -4.0, 2.0, "open", None),
                              ("one seed", 2.0, -np.inf, np.inf, "open", None)], "rsum")
    (ax,) = drawn(figure)
    drawn_lines = [line.get_xydata().tolist() for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xydata()) == 2]
    assert [[5, 0], [19, 0]] in drawn_lines and [[-4, 1], [2, 1]] in drawn_lines and not any(line[0][1] == 2 for line in drawn_lines)
    markers = {(line.get_marker(), line.get_color(), *line.get_xydata()[0].tolist()) for line in ax.lines}
    assert {("o", viz.GREEN, 12, 0), ("s", viz.GREY, -1, 1), ("D", viz.BLACK, 3.5, 0)} <= markers
    assert [text.get_text() for text in figure.legends[0].texts] == ["holds", "open", "the paper, Flickr30K"]


def test_mistake_bars_stack_the_kinds():
    kinds = {"subject": 30.0, "action": 20.0, "number": 5.0, "colour": 6.0, "setting": 10.0, "none": 2.0}
    left, right = drawn(viz.mistake_bars({"i2t": {"SCAN": kinds, "VSE++": kinds}, "t2i": {"SCAN": kinds}}))
    assert [bar.get_width() for bar in left.patches[:6]] == list(kinds.values()) and left.patches[2].get_x() == 50
    assert texts(right) == ["30", "20", "5", "6", "10"]  # 2 % has no room for its number

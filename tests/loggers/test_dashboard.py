"""The custom scalars page and the pictures of a run, as its event files hold them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from digits_run import fit, monitors, ours, read
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from lightning_vivit import DirectionalDerivativesMonitor, GGNSpectrumMonitor, NTKMonitor
from lightning_vivit.callbacks import Monitor
from lightning_vivit.demo import DigitsClassifier, DigitsDataModule
from lightning_vivit.errors import OptionError
from lightning_vivit.loggers import Chart, charts
from lightning_vivit.loggers.dashboard import layout
from lightning_vivit.statistics import Key, Section


def written_layouts(folder: Path) -> list[layout_pb2.Layout]:
    found = []
    for event in read(folder / "limits").Tensors("custom_scalars__config__"):
        parsed = layout_pb2.Layout()
        parsed.ParseFromString(event.tensor_proto.string_val[0])
        found.append(parsed)
    return found


def patterns(written: layout_pb2.Layout) -> dict[tuple[str, str], list[str]]:
    return {
        (category.title, chart.title): list(chart.multiline.tag)
        for category in written.category
        for chart in category.chart
    }


@pytest.mark.parametrize(
    ("options", "prefix", "grouped"),
    [
        ({}, "", False),
        ({"prefix": "wide+/"}, "mine", False),
        ({"param_groups": "layer"}, "", True),
        ({"param_groups": {"a": ["net.10"], "b/c": ["net.0", "net.4"]}, "prefix": "x/"}, "", True),
        ({"param_groups": [["net.0.*", "net.4.*"]]}, "", False),
    ],
)
def test_every_chart_has_data_and_every_key_has_a_chart(tmp_path, options, prefix, grouped):
    folder = fit(tmp_path, *monitors(every_n_steps=1, **options), prefix=prefix)
    (written,) = written_layouts(folder)  # one layout, for all monitors
    tags = ours(read(folder).Tags()["scalars"])
    unseen = set(tags)
    for (_, title), expressions in patterns(written).items():
        found = {tag for tag in tags if any(re.match(e, tag) for e in expressions)}
        assert found, title
        unseen -= found
    if grouped:  # of each group the leading index only
        unseen = {tag for tag in unseen if not re.search(r"_([2-9]|1\d)$", tag)}
    assert not unseen


def test_the_hessian_has_charts_of_its_own(tmp_path):
    options = {"k": 2, "every_n_steps": 1, "data": "train", "max_samples": 8, "on_error": "raise"}
    both = (
        GGNSpectrumMonitor(method="matrix_free", **options),
        GGNSpectrumMonitor(matrix="hessian", **options),
    )
    folder = fit(tmp_path, *both)
    (written,) = written_layouts(folder)
    tags = ours(read(folder).Tags()["scalars"])
    assert any(tag.startswith("hessian/") for tag in tags)
    unseen = set(tags)
    for (_, title), expressions in patterns(written).items():
        found = {tag for tag in tags if any(re.match(e, tag) for e in expressions)}
        assert found, title
        unseen -= found
        if title.startswith(("Leading", "Trace")):
            assert len({tag.split("/")[0] for tag in found}) == 1, title
    assert not unseen
    drawn = read(folder / "limits").Tags()["scalars"]
    assert {"ggn/sharpness_lr", "hessian/sharpness_lr"} <= set(drawn)


def test_charts_follow_what_auto_takes(tmp_path, monkeypatch):
    module = sys.modules["lightning_vivit.evaluation.evaluate"]
    monkeypatch.setattr(module, "choose_method", lambda *_: "matrix_free")
    options = {"k": 2, "every_n_steps": 1, "data": "train", "max_samples": 8}
    folder = fit(tmp_path, GGNSpectrumMonitor(**options, on_error="raise"))
    (written,) = written_layouts(folder)
    tags = ours(read(folder).Tags()["scalars"])
    titles = {title for _, title in patterns(written)}
    assert "Effective rank of the GGN" not in titles
    assert "Matrix-vector products of a search" in titles
    for (_, title), expressions in patterns(written).items():
        assert any(re.match(e, tag) for e in expressions for tag in tags), title


def test_categories_and_order(tmp_path):
    folder = fit(tmp_path, *monitors(steps=[0]), *monitors(steps=[0], prefix="again/"))
    (written,) = written_layouts(folder)
    names = ["Curvature", "Directions", "Kernel", "Gradients", "Cost"]
    expected = [*names, *(f"{name} (again)" for name in names[:-1])]
    assert [category.title for category in written.category] == expected
    (costs,) = [c for c in written.category if c.title == "Cost"]
    assert [list(chart.multiline.tag) for chart in costs.chart] == [
        ["^cost/seconds$"],
        ["^cost/overhead$"],
    ]


def test_layout_of_the_user_is_kept(tmp_path):
    class Own(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            own = {"Mine": {"loss": ["Multiline", ["train/loss"]]}}
            trainer.logger.experiment.add_custom_scalars(own)

    folder = fit(tmp_path, *monitors(steps=[0]), Own())
    assert len(read(folder).Tensors("custom_scalars__config__")) == 1
    assert len(written_layouts(folder)) == 1


def test_charts_that_cannot_be_written_do_not_end_the_run(tmp_path):
    folder = tmp_path / "run" / "0"
    folder.mkdir(parents=True)
    (folder / "limits").write_text("a file in the way")
    with pytest.warns(RuntimeWarning, match="TensorBoardLogger has no charts"):
        fit(tmp_path, NTKMonitor(k=2, steps=[0], max_samples=8, on_error="raise"))
    assert "ntk/trace" in read(folder).Tags()["scalars"]


def test_limit_is_a_line_in_the_chart_of_the_sharpness(tmp_path):
    folder = fit(tmp_path, *monitors(every_n_steps=2), steps=5, prefix="mine")
    limit = read(folder / "limits").Scalars("mine-ggn/sharpness_lr")
    assert [(point.step, point.value) for point in limit] == [(0, 1.0), (2, 1.0), (4, 1.0)]
    values = read(folder).Scalars("mine-ggn/sharpness_lr")
    assert [point.step for point in values] == [0, 2, 4]


def test_pictures_come_at_each_nth_monitored_step(tmp_path):
    folder = fit(tmp_path, *monitors(every_n_steps=2, figures_every=2), steps=9)
    found = read(folder)
    names = {"ggn/spectrum", "directions/samples", "ntk/kernel", "ntk/spectrum"}
    assert set(found.Tags()["images"]) == names
    for name in names:
        assert [image.step for image in found.Images(name)] == [0, 4, 8]
        assert all(image.encoded_image_string[:4] == b"\x89PNG" for image in found.Images(name))
    assert len(found.Scalars("ggn/trace")) == 5


def test_pictures_of_layers_and_of_a_few_groups(tmp_path):
    groups = {"first": ["net.0.*"], "last": ["net.10.*"]}
    layers = GGNSpectrumMonitor(k=2, param_groups="layer", steps=[0], max_samples=8)
    few = GGNSpectrumMonitor(k=2, param_groups=groups, steps=[0], prefix="few/", max_samples=8)
    found = set(read(fit(tmp_path, layers, few)).Tags()["images"])
    assert found == {
        "ggn/layers",
        "few/ggn/layers",
        "few/ggn/first/spectrum",
        "few/ggn/last/spectrum",
    }


def test_without_pictures(tmp_path):
    folder = fit(tmp_path, *monitors(steps=[0], figures=False))
    assert read(folder).Tags()["images"] == []
    with pytest.raises(OptionError, match="figures_every has to be an integer >= 1, got 0"):
        NTKMonitor(figures_every=0)


def test_run_without_monitors_has_no_sub_run(tmp_path):
    assert not (fit(tmp_path) / "limits").exists()


def test_equal_titles_become_one_chart():
    found = [Chart("Cost", "Seconds", ("a$",)), Chart("Cost", "Seconds", ("a$", "b$"))]
    assert layout(found, "p-") == {"Cost": {"Seconds": ["Multiline", [r"^p\-a$", r"^p\-b$"]]}}


def test_patterns_match_their_keys_alone():
    words = {"category": "Curvature", "definition": "a number"}
    top = Key("eigenvalue_i", chart="Top of {matrix}", **words)(len)
    below = Key("norm/<layer>", chart="Below", unit="samples", detail="high", **words)(len)
    section = Section("ggn", "", (below, top), {"matrix": "G"})
    first, second = charts(section, section.statistics, "a.b/")
    assert (first.title, second.title) == ("Top of G", "Below, in samples")
    assert first.category == "Curvature (a.b)"
    assert re.match(first.patterns[0], "a.b/ggn/eigenvalue_12")
    for other in ("axb/ggn/eigenvalue_1", "a.b/ggn/eigenvalue_1x", "a.b/ggn/net/eigenvalue_1"):
        assert not re.match(first.patterns[0], other)
    assert re.match(second.patterns[0], "a.b/ggn/norm/net.0")
    (first, _) = charts(section, section.statistics, grouped=True)
    assert first.title == "Top of G, by parameter group"
    assert re.match(first.patterns[0], "ggn/net/0/eigenvalue_1")
    assert not re.match(first.patterns[0], "ggn/net/0/eigenvalue_10")


def test_a_monitor_that_has_not_looked_yet_gets_all_charts_of_its_switches():
    def titles(monitor: Monitor) -> set[str]:
        return {chart.title for chart in monitor.charts()}

    assert "Gradient norm" not in titles(DirectionalDerivativesMonitor())
    assert "Gradient norm" in titles(DirectionalDerivativesMonitor(gradients=True))
    overlap = "Overlap with the previous top subspace"
    assert overlap in titles(GGNSpectrumMonitor())
    assert overlap not in titles(GGNSpectrumMonitor(overlap=False))


def test_layer_norms_make_up_the_norm_of_the_gradient(tmp_path):
    model = DigitsClassifier(width=2)
    data = DigitsDataModule(batch_size=16)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    from lightning_vivit import Problem, evaluate

    for options in ({}, {"columns": "mc", "mc_samples": 2}, {"kernel": False}):
        found = evaluate(Problem.from_training_step(model, batch), **options)
        gradient = found.gradient()
        model.eval()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        expected = torch.autograd.grad(loss, list(model.parameters()))
        model.train()
        for (name, _), one in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradient[name], one, rtol=1e-4, atol=1e-6)
    folder = fit(tmp_path, *monitors(steps=[0]))
    events = read(folder)
    tags = [tag for tag in events.Tags()["scalars"] if "layer_gradient_norm" in tag]
    assert len(tags) == 5
    squared = sum(events.Scalars(tag)[0].value ** 2 for tag in tags)
    norm = events.Scalars("directions/gradient_norm")[0].value
    assert squared**0.5 == pytest.approx(norm, rel=1e-4)

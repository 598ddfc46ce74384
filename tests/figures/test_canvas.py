"""Drawing leaves nothing behind: figures go at once, canvases come again, the heap stays whole."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

from lightning_vivit.figures import canvas, draw_pixels, to_pixels
from lightning_vivit.metrics.diagnostic import state_names


def sketch(level: float = 2.0) -> Figure:
    figure = Figure(figsize=(2, 1.5), dpi=50)
    figure.add_subplot().plot([1.0, level, 1.5])
    return figure


def as_matplotlib_draws_it(figure: Figure) -> np.ndarray:
    own = FigureCanvasAgg(figure)
    own.draw()
    return np.array(np.asarray(own.buffer_rgba())[..., :3])


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> canvas.Canvases:
    monkeypatch.setattr(canvas, "_CANVASES", canvas.Canvases())
    return canvas._CANVASES


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, fresh: canvas.Canvases) -> list[tuple]:
    """The renderers that were made, by their arguments."""
    calls: list[tuple] = []
    start = RendererAgg.__init__
    monkeypatch.setattr(
        RendererAgg, "__init__", lambda self, *size: (calls.append(size), start(self, *size))[0]
    )
    return calls


def test_pixels_on_a_used_canvas_are_those_of_a_new_one(fresh):
    for level in (2.0, 5.0, -3.0):
        np.testing.assert_array_equal(
            draw_pixels(lambda level=level: sketch(level)), as_matplotlib_draws_it(sketch(level))
        )


def test_pixels_stay_when_the_canvas_is_used_again(fresh):
    first = draw_pixels(sketch)
    kept = first.copy()
    assert (draw_pixels(lambda: sketch(9.0)) != kept).any()
    np.testing.assert_array_equal(first, kept)


def test_canvases_are_reused_renewed_and_few(made, monkeypatch):
    monkeypatch.setattr(canvas, "USES", 3)
    for _ in range(6):
        to_pixels(sketch())
    assert made == [(100, 75, 50.0)] * 2
    for width in range(20):
        to_pixels(Figure(figsize=(1 + width / 10, 1), dpi=10))
    assert len(canvas._CANVASES._idle) == canvas.SIZES


def test_the_figure_is_gone_when_its_pixels_are_there():
    found = []

    def draw() -> Figure:
        figure = sketch()
        found.append(weakref.ref(figure))
        return figure

    assert gc.isenabled()
    draw_pixels(draw)
    assert found[0]() is None
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        draw_pixels(sketch)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_after_a_failure_the_collector_is_on_and_drawing_goes_on(fresh):
    class Broken(Figure):
        def draw(self, renderer) -> None:
            super().draw(renderer)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        draw_pixels(lambda: Broken(figsize=(2, 1.5), dpi=50))
    assert gc.isenabled()
    assert not fresh._idle
    np.testing.assert_array_equal(draw_pixels(sketch), as_matplotlib_draws_it(sketch()))


def test_threads_do_not_share_a_canvas(fresh):
    with fresh.borrow((10, 10, 50.0)) as mine, fresh.borrow((10, 10, 50.0)) as other:
        assert other is not mine
    found: dict[float, np.ndarray] = {}
    levels = [2.0, 3.0, 4.0, 5.0]
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: to_pixels(sketch(n))})) for n in levels
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for level in levels:
        np.testing.assert_array_equal(found[level], as_matplotlib_draws_it(sketch(level)))


def test_names_that_python_interns_are_kept():
    parts = canvas._keep_names()
    assert parts[-1] == "cmr10.ttf"
    assert all(sys.intern(part) is part for part in map(str, parts[1:]))
    for name in state_names("trace"):
        again = "".join(list(name))  # equal, and another object
        assert again is not name
        assert sys.intern(again) is name
    assert state_names("trace")[0] is state_names("trace")[0]


PROGRAM = """
import gc, os, torch
from lightning_vivit.figures import History, draw_kernel, draw_spectra, draw_directions
from lightning_vivit.figures import draw_pixels

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

torch.manual_seed(0)
history = History()
for step in range(61):
    history.add(step, torch.rand(80) * 10 ** torch.linspace(0, -6, 80))
    features = torch.randn(16, 30)
    draw_pixels(lambda: draw_spectra(history.entries()))
    draw_pixels(lambda: draw_kernel(features @ features.T, torch.arange(16) % 5, f"{step}"))
    draw_pixels(lambda: draw_directions(features, features.square(), f"{step}"))
    if step == 5:
        before = resident()
print(resident() - before)
"""


@pytest.mark.long
def test_the_process_does_not_grow_while_it_draws():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 6.0

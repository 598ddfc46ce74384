"""Functions at the same time, and the spectra that are solved so."""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lightning_vivit.errors import OptionError, ProblemError
from lightning_vivit.evaluation import exact as results
from lightning_vivit.evaluation import solved as grams
from lightning_vivit.evaluation.evaluate import Evaluation, evaluate
from lightning_vivit.evaluation.spectra import Solver, Spectra, SpectrumKind
from lightning_vivit.machine import threads as module
from lightning_vivit.machine.threads import _Region, _region, side_by_side
from lightning_vivit.problem.problem import Problem

regions = pytest.mark.skipif(_region() is None, reason="this OpenMP runs them in turn")


@pytest.fixture(params=[2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@regions
def test_functions_run_at_the_same_time(threads: int) -> None:
    meeting = threading.Barrier(2, timeout=60)
    assert {future.result() for future in side_by_side([meeting.wait] * 2)} == {0, 1}


def test_more_functions_than_threads_wait_for_their_turn(threads: int) -> None:
    running, most = [], []
    lock = threading.Lock()

    def work(name: int) -> int:
        with lock:
            running.append(name)
            most.append(len(running))
        time.sleep(0.01)
        with lock:
            running.remove(name)
        return name

    works = [lambda name=name: work(name) for name in range(9)]
    assert [future.result() for future in side_by_side(works)] == list(range(9))
    assert max(most) <= threads


def in_turn() -> bool:
    found = side_by_side([threading.get_ident] * 2)
    return [future.result() for future in found] == [threading.get_ident()] * 2


def test_one_thread_runs_them_in_turn() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert in_turn()
    finally:
        torch.set_num_threads(before)


def test_another_openmp_runs_them_in_turn(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_region", lambda: None)
    assert in_turn()


def test_what_an_interruption_left_is_run(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_region", lambda: lambda *args: None)
    assert in_turn()


@regions
def test_each_has_one_thread_and_nobody_else_loses_any(threads: int) -> None:
    def team() -> int:
        """Of a region that is started here."""
        found = set()
        body = _Region(lambda _: found.add(threading.get_ident()) or time.sleep(0.01))
        _region()(body, None, threads, 0)
        return len(found)

    before = torch.get_num_threads()
    meeting = threading.Barrier(2, timeout=60)

    def work() -> int:
        meeting.wait()  # both threads take part
        return team()

    assert team() == threads
    for _ in range(2):
        assert [future.result() for future in side_by_side([work] * 2)] == [1, 1]
        assert team() == threads
        assert torch.get_num_threads() == before


@regions
def test_it_is_torch_s_openmp_that_runs_them(threads: int) -> None:
    """Within another library's region torch would take all its threads once more."""
    known = ctypes.CDLL(torch._C.__file__).omp_in_parallel
    meeting = threading.Barrier(2, timeout=60)
    found = side_by_side([lambda: (meeting.wait(), known())[1]] * 2)
    assert [future.result() for future in found] == [1, 1]
    assert known() == 0


def test_large_sums_within(threads: int) -> None:
    """Work that torch divides among its threads outside."""
    some = torch.rand(1 << 20, dtype=torch.float64)
    matrix = some[: 1 << 16].reshape(256, 256)
    expected = (some.sum(), torch.linalg.eigvalsh(matrix), matrix @ matrix)
    works = [lambda: some.sum(), lambda: torch.linalg.eigvalsh(matrix), lambda: matrix @ matrix]
    for _ in range(20):
        for future, value in zip(side_by_side(works), expected, strict=True):
            torch.testing.assert_close(future.result(), value, rtol=1e-9, atol=1e-9)


def test_a_failure_stays_with_its_function(threads: int) -> None:
    bad, good = side_by_side([lambda: 1 / 0, lambda: 2.0])
    assert good.result() == 2.0
    with pytest.raises(ZeroDivisionError):
        bad.result()


def test_an_interruption_reaches_the_caller(threads: int) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([int, stop])


def _in_child(sent: multiprocessing.Queue[bool]) -> None:
    sent.put(in_turn())


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork"
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_has_no_threads_of_its_parent(threads: int) -> None:
    side_by_side([int, int])
    context = multiprocessing.get_context("fork")
    sent = context.Queue()
    child = context.Process(target=_in_child, args=(sent,))
    child.start()
    try:
        assert sent.get(timeout=60)
    finally:
        child.kill()
        child.join()


def solvers(calls: list[str]) -> dict[SpectrumKind, Solver]:
    def solve(kind: str) -> tuple[torch.Tensor]:
        calls.append(kind)
        return (torch.tensor([1.0 if kind == "ggn" else 2.0]),)

    return {"ggn": lambda: solve("ggn"), "ntk": lambda: solve("ntk")}


def test_what_is_expected_is_solved_with_the_first_that_is_asked_for() -> None:
    spectra, calls = Spectra(), []
    assert spectra.get("a", "ggn", solvers(calls)) == (1.0,)
    assert calls == ["ggn"]
    spectra.expected = frozenset(["ggn", "ntk"])
    assert spectra.get("b", "ntk", solvers(calls)) == (2.0,)
    assert sorted(calls[1:]) == ["ggn", "ntk"]
    assert spectra.get("b", "ggn", solvers(calls)) == (1.0,)
    assert spectra.get("a", "ggn", solvers(calls)) == (1.0,)
    assert len(calls) == 3


def test_a_failure_is_not_kept() -> None:
    spectra, calls = Spectra(), []
    broken: dict[SpectrumKind, Solver] = {"ggn": lambda: (torch.tensor([1 / 0]),)}
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            spectra.get("a", "ggn", broken)
    assert spectra.get("a", "ggn", solvers(calls)) == (1.0,)


def problem(dtype: torch.dtype = torch.float64) -> Problem:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4))
    inputs, targets = torch.randn(6, 5, dtype=dtype), torch.arange(6) % 4
    return Problem(model.to(dtype), torch.nn.CrossEntropyLoss(), inputs, targets)


def jacobian(some: Problem) -> torch.Tensor:
    """[N*C, P]"""
    outputs = some.model(some.inputs)
    parameters = list(some.model.parameters())
    rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in outputs.flatten()]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("expected", [(), ("ggn", "ntk")])
def test_eigenvalues_of_the_ntk(expected: tuple[str, ...], threads: int) -> None:
    some = problem()
    rows = jacobian(some)
    result = evaluate(some)
    assert isinstance(result, Evaluation)
    result.expect_spectra(expected)
    alone = evaluate(some, kernel=False).eigenvalues()
    torch.testing.assert_close(result.eigenvalues(), alone, rtol=1e-9, atol=1e-14)
    singular = torch.linalg.svdvals(rows).square().flip(0)
    found = result.ntk_eigenvalues()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, singular, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("first", ["eigenvalues", "ntk_eigenvalues", "directions"])
def test_eigenpairs_that_are_expected_are_those_that_are_asked_for(
    first: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = problem()
    alone, solved = evaluate(some), []
    solve = grams.gram_eigenpairs
    monkeypatch.setattr(
        grams, "gram_eigenpairs", lambda gram, k, dtype: solved.append(k) or solve(gram, k, dtype)
    )
    result = evaluate(some)
    result.expect_spectra(["ggn", "ntk", "ggn_pairs"], 3)
    getattr(result, first)(*(["all", 2] if first == "directions" else []))
    assert solved == [3]
    for k in (1, 3):
        found, expected = result.directions(k=k), alone.directions(k=k)
        torch.testing.assert_close(found.eigenvalues, expected.eigenvalues)
        torch.testing.assert_close(found.gammas.abs(), expected.gammas.abs())
        torch.testing.assert_close(found.lambdas, expected.lambdas)
    assert solved == [3, 1, 3]  # two of them by `alone`
    more = result.directions(k=5)  # than were expected
    torch.testing.assert_close(more.eigenvalues, alone.directions(k=5).eigenvalues)
    vectors = result.eigenvectors(k=3)
    torch.testing.assert_close(
        vectors["0.weight"].abs(), alone.eigenvectors(k=3)["0.weight"].abs(), rtol=1e-6, atol=1e-9
    )


def test_large_matrices_are_solved_in_turn(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(problem())
    limit = "_SIDE_ROWS" if threads == 2 else "_MANY_ROWS"
    monkeypatch.setattr(results, limit, 23)  # 6 samples of 4 outputs
    result.expect_spectra(["ggn", "ntk", "ggn_pairs"], 3)
    assert not result._grams._spectra.expected
    monkeypatch.setattr(results, limit, 24)
    result.expect_spectra(["ggn", "ntk", "ggn_pairs"], 3)
    assert result._grams._spectra.expected == {"ggn", "ntk", "ggn_pairs"}


def test_a_kernel_that_is_not_finite_spares_the_ggn(threads: int) -> None:
    result = evaluate(problem())
    result.expect_spectra(["ggn", "ntk"])
    result._grams.block("all").kernel[0, 0, 0, 0] = torch.inf
    assert result.eigenvalues().isfinite().all()
    with pytest.raises(ProblemError, match="NTK has entries that are not finite"):
        result.ntk_eigenvalues()


def test_without_a_kernel_the_ntk_is_refused() -> None:
    with pytest.raises(OptionError, match="kernel=True"):
        evaluate(problem(), kernel=False).ntk_eigenvalues()

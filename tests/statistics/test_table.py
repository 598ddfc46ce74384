"""Declarations of keys, and how a logged key is found among them."""

from __future__ import annotations

import pytest

from lightning_vivit.statistics import SECTIONS, Key, Verdict, find_key
from lightning_vivit.statistics.key import CATEGORIES, DETAILS

ALL = [
    pytest.param(section, statistic, id=f"{section.name}/{statistic.name}-{statistic.kind}")
    for section in SECTIONS.values()
    for statistic in section.statistics
]
SCALARS = [param for param in ALL if param.values[1].kind == "scalar"]


@pytest.mark.parametrize(("section", "statistic"), ALL)
def test_a_declaration_is_complete(section, statistic):
    assert statistic.category in CATEGORIES and statistic.detail in DETAILS
    for field in ("definition", "reading", "range", "source", "cost"):
        getattr(statistic, field).format_map(section.words)  # every word is there
    assert statistic.definition
    assert statistic.reading or statistic.kind == "array"
    assert statistic.name == statistic.stem + statistic.ending


@pytest.mark.parametrize(("section", "statistic"), SCALARS)
def test_a_scalar_is_complete(section, statistic):
    assert statistic.chart and statistic.range and statistic.cost
    title = statistic.title(section.words)
    mates = [
        each
        for each in section.statistics
        if each.kind == "scalar" and each.title(section.words) == title
    ]
    assert {(each.category, each.ending) for each in mates} == {
        (statistic.category, statistic.ending)
    }
    assert title.count("{") == 0


def test_titles_of_different_sections_differ():
    titles = [
        {s.title(section.words) for s in section.statistics if s.kind == "scalar"}
        for section in SECTIONS.values()
    ]
    assert len(set().union(*titles)) == sum(map(len, titles))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("ggn/trace", ("", "ggn", "", "trace", "")),
        ("mine-again/hessian/trace_error", ("mine-again/", "hessian", "", "trace_error", "")),
        ("ggn/net.0/eigenvalue_12", ("", "ggn", "net.0", "eigenvalue_i", "12")),
        ("ggn/a/b/eigenvalue_1", ("", "ggn", "a/b", "eigenvalue_i", "1")),
        (
            "directions/a/layer_gradient_norm/net.0",
            ("", "directions", "a", "layer_gradient_norm/<layer>", "net.0"),
        ),
        ("cost/seconds", ("", "cost", "", "seconds", "")),
        ("train/cost/total", None),
        ("ggn/eigenvalue", None),
        ("ggn/eigenvalue_x", None),
        ("myggn/trace", None),
        ("gradients/gradient_norm", None),
        ("ntk/kernel", None),  # a figure
    ],
)
def test_a_logged_key_is_taken_apart(key, expected):
    found = find_key(key, "scalar")
    if expected is None:
        assert found is None
    else:
        name = found.section.name
        assert (found.start, name, found.group, found.statistic.name, found.each) == expected


def test_what_a_function_returns_becomes_keys():
    def key(name: str) -> Key:
        return Key(name, category="Cost", definition="a number")

    assert key("a").expand(3.0) == {"a": 3.0}
    assert key("a_i").expand([5.0, 4.0]) == {"a_1": 5.0, "a_2": 4.0}
    assert key("a/<layer>").expand({"net.0": 1.0}) == {"a/net.0": 1.0}
    assert key("a_i").expand(None) == {}


def test_a_verdict_says_what_is_wrong_above_its_limit():
    verdict = Verdict(1.0, "too large", "us")
    assert (verdict.of(1.0), verdict.of(1.1)) == ("", "too large")
    assert verdict.of(float("nan")) == ""

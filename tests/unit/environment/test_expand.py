"""Expansion of variables: a pure function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import PioletError
from piolet.environment.expand import DEPTH_LIMIT, LENGTH_LIMIT, ExpandError, escape, expand

VARIABLES = {"USER": "ada", "EMPTY": "", "PATH": "/bin:/usr/bin", "ODD": "${USER}", "BAD": "a\udcff"}


@pytest.mark.parametrize(
    ("text", "result", "names"),
    [
        ("", "", ()),
        ("/home/${USER}/x", "/home/ada/x", ("USER",)),
        ("${USER}${USER}", "adaada", ("USER",)),
        ("${EMPTY}", "", ("EMPTY",)),
        ("${NO:-d}", "d", ("NO",)),
        ("${NO:-}", "", ("NO",)),
        ("${EMPTY:-d}", "d", ("EMPTY",)),
        ("${USER:-d}", "ada", ("USER",)),
        ("${NO:-/x/${USER}}/y", "/x/ada/y", ("NO", "USER")),
        ("${NO:-$${USER}}", "${USER}", ("NO",)),
        ("${NO:-a:b{c}", "a:b{c", ("NO",)),
        ("$${USER}", "${USER}", ()),
        ("$$${USER}", "$${USER}", ()),
        ("$${${USER}}", "${ada}", ("USER",)),
        ("$USER $ $$ $(id) `id` $((1))", "$USER $ $$ $(id) `id` $((1))", ()),
        ("${ODD}", "${USER}", ("ODD",)),
        ("}{", "}{", ()),
        ("\n${USER}\n", "\nada\n", ("USER",)),
    ],
)
def test_forms(text: str, result: str, names: tuple[str, ...]) -> None:
    expanded = expand(text, VARIABLES)
    assert (expanded.text, expanded.names) == (result, names)


@pytest.mark.parametrize(
    ("text", "message", "hint", "fragment"),
    [
        ("a ${USR} b", "the variable 'USR' is not defined", "did you mean ${USER}? ${USR:-} is empty", "${USR}"),
        ("${ZZZ}", "the variable 'ZZZ' is not defined", "${ZZZ:-} is empty when it is not defined", "${ZZZ}"),
        ("${USER", "'${' has no '}'", "write '$${'", "${"),
        ("${NO:-${USER}", "'${' has no '}'", "write '$${'", "${"),
        ("${}", "'${}' cannot be expanded", "the forms are", "${}"),
        ("${1}", "'${1}' cannot be expanded", "the forms are", "${1}"),
        ("${USER:+x}", "'${USER:+x}' cannot be expanded", "the forms are", "${USER:+x}"),
        ("${USER-x}", "'${USER-x}' cannot be expanded", "the forms are", "${USER-x}"),
        ("${US ER}", "'${US ER}' cannot be expanded", "the forms are", "${US ER}"),
        ("${USER\n}", "'${USER\n}' cannot be expanded", "the forms are", "${USER\n}"),
    ],
)
def test_refusals(text: str, message: str, hint: str, fragment: str) -> None:
    with pytest.raises(ExpandError) as caught:
        expand(text, VARIABLES)
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")
    assert caught.value.fragment == fragment


def test_a_variable_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ExpandError, match="the variable 'BAD' is not UTF-8"):
        expand("${BAD}", VARIABLES)


def test_the_result_is_bounded() -> None:
    with pytest.raises(ExpandError, match=f"the value is longer than {LENGTH_LIMIT} characters"):
        expand("${A}" * 200_000, {"A": "x" * 1000})
    assert len(expand("${A}", {"A": "x" * LENGTH_LIMIT}).text) == LENGTH_LIMIT


def test_nested_defaults_are_bounded() -> None:
    deep = DEPTH_LIMIT + 1
    with pytest.raises(ExpandError, match=f"defaults are nested more than {DEPTH_LIMIT} deep"):
        expand("${N:-" * deep + "}" * deep, {})
    assert expand("${N:-" * DEPTH_LIMIT + "x" + "}" * DEPTH_LIMIT, {}).text == "x"


def test_values_are_quoted_and_defaults_are_not() -> None:
    assert expand("${PATH}:${NO:-a:b}", VARIABLES, lambda v: v.replace(":", "\\:")).text == "/bin\\:/usr/bin:a:b"


TEXTS = st.text(st.sampled_from("ab${}:-A/\\"), max_size=40)
TABLES = st.dictionaries(st.sampled_from("AB"), TEXTS)


@given(TEXTS, TABLES)
def test_it_raises_nothing_else(text: str, variables: dict[str, str]) -> None:
    try:
        expanded = expand(text, variables)
    except PioletError:
        return
    assert all(f"${{{name}" in text for name in expanded.names)
    if "${" not in text:
        assert expanded.text == text
        assert expanded.names == ()


@given(st.text().filter(lambda text: "${" not in text), TABLES)
def test_nothing_happens_without_a_reference(text: str, variables: dict[str, str]) -> None:
    assert expand(text, variables).text == text


@given(TEXTS, TABLES)
def test_escape_gives_the_text_back(text: str, variables: dict[str, str]) -> None:
    expanded = expand(escape(text), variables)
    assert (expanded.text, expanded.names) == (text, ())


def test_a_variable_of_the_job_is_not_taken_for_a_misspelt_one() -> None:
    with pytest.raises(ExpandError) as caught:
        expand("${SLURM_JOB_ID}", {"SLURM_JOB_IDS": "1", "SLURM_CONF": "x"})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("it is known when the job runs: use it in the job's script; ")

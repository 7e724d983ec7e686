"""The language of defence names: canonical forms, round trips, errors that point at the place."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.defences import Term, applied, canonical, parse, spell
from lib.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", "none"),
        ("none()", "none"),
        ("re(0.1,0.4)", "re(0.1,0.4)"),
        ("  RE ( .10 ,\t0.40 ) ", "re(0.1,0.4)"),
        ("re(1e-1,4E-1)", "re(0.1,0.4)"),
        ("re(0.5,0.5,location=toroidal)", "re(0.5,0.5,location=toroidal)"),
        ("re(.5,.5, shape = disc, location=random, p=0.50)", "re(0.5,0.5,p=0.5,shape=disc)"),
        ("re(.5,.5,p=1.0,value=grey)", "re(0.5,0.5)"),
        ("fe(0.5,frame=source)", "fe(0.5)"),
        ("fe(0.5,frame=output)", "fe(0.5,frame=output)"),
        ("re(0.1,0.4)+negls(-0.05)", "re(0.1,0.4)+negls(-0.05)"),
        ("negls(-0.050) + re(0.1,+0.4)", "negls(-0.05)+re(0.1,0.4)"),
        ("x(1.0,-0,2.50,b=true,a=word)", "x(1,0,2.5,a=word,b=true)"),
        ("early(0.5)", "early(0.5)"),
        ("fewer(.5)", "fewer(0.5)"),
        ("small(5e-1)", "small(0.5)"),
    ],
)
def test_canonical_forms(text, expected):
    assert canonical(text) == expected


def test_terms():
    assert parse("re(0.1,0.4,location=toroidal)+x(3,flag=false)") == [
        Term("re", (0.1, 0.4), {"location": "toroidal"}),
        Term("x", (3,), {"flag": False}),
    ]


def test_a_setups_constants_decide_what_may_be_left_out():
    overrides = {"re": {"value": "black"}}
    assert canonical("re(.1,.4,value=black)", overrides) == "re(0.1,0.4)"
    assert canonical("re(.1,.4,value=grey)", overrides) == "re(0.1,0.4,value=grey)"


def test_overrides_apply_to_the_terms_they_name():
    overrides = {"re": {"value": "black"}, "fe": {"value": "mean"}, "early": {}}
    assert applied("re(.1,.4)+fewer(.5)", overrides) == {"re": {"value": "black"}}
    assert applied("fewer(0.5)", overrides) == {}, "fe is no term of it"
    assert applied("early(0.5)", overrides) == {}, "nothing is changed"


def test_a_truth_value_is_not_the_number_one():
    assert canonical("re(.1,.4,p=true)") == "re(0.1,0.4,p=true)"


words = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6).filter(
    lambda word: word not in ("true", "false")
)
values = st.one_of(
    st.booleans(), words, st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**14), 10**14)
)
terms = st.lists(
    st.builds(
        Term,
        st.one_of(words, st.sampled_from(["re", "fe", "none"])),
        st.lists(values, max_size=3).map(tuple),
        st.dictionaries(st.one_of(words, st.sampled_from(["p", "value"])), values, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(terms)
def test_reading_what_was_printed_gives_the_same_terms(composition):
    assert parse(spell(composition)) == composition


@settings(max_examples=60, deadline=None)
@given(terms)
def test_the_canonical_form_is_its_own(composition):
    once = canonical(spell(composition))
    assert canonical(once) == once and spell(parse(once)) == once


@settings(max_examples=40, deadline=None)
@given(terms, st.randoms())
def test_blanks_and_keyword_order_do_not_matter(composition, random):
    shuffled = []
    for term in composition:
        keys = list(term.kwargs)
        random.shuffle(keys)
        shuffled.append(Term(term.name, term.args, {key: term.kwargs[key] for key in keys}))
    text = spell(shuffled)
    spaced = "".join(f" {letter} " if letter in "(),=" else letter for letter in text)
    assert canonical(spaced) == canonical(spell(composition))


@settings(max_examples=40, deadline=None)
@given(st.text("re(0.1,p=+ )\né", max_size=12) | st.text(max_size=12))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        assert canonical(canonical(text)) == canonical(text)
    except UserError as error:
        assert "\n" not in str(error) and "expected" in str(error)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 1),
        ("  ", 3),
        ("0.5", 1),
        ("re(", 4),
        ("re(0.1", 7),
        ("re(0.1,)", 8),
        ("re(0.1 0.4)", 8),
        ("re(0.1,0.4))", 12),
        ("re(0.1)+", 9),
        ("re(0.1)fe(0.5)", 8),
        ("re(location=)", 13),
        ("re(location=fixed,0.1)", 19),
        ("re(p=1,p=1)", 8),
        ("re(1e999)", 4),
        ("re(0.1;0.4)", 7),
        ("re[0.1]", 3),
        ("re(0.1)++fe(0.5)", 9),
    ],
)
def test_errors_name_the_place(text, place):
    with pytest.raises(UserError, match=rf"^defence .*expected .* at position {place}, got [^\n]*$"):
        parse(text)


def test_what_is_no_text_is_refused():
    with pytest.raises(UserError, match="expected text"):
        parse(None)

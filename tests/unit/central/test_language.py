"""Files of rules: each fault is a sentence with its place and what to do."""

from __future__ import annotations

import pytest
from piolet.base.errors import RuleError
from piolet.central.rules.language import LIFETIME, parse

from tests.unit.central.making import RULE, rules


def test_a_rule_is_read() -> None:
    (rule,) = rules(window='"7d"', burst='"3min"', recovery='["repair", "quiet 2d"]', date="2026-01-02")
    assert (rule.name, rule.window, rule.burst, rule.quiet, rule.date) == ("few", 604800, 180, 172800, "2026-01-02")
    assert rule.recovery == {"repair", "quiet"}
    assert (rule.when.names, rule.keep, rule.alone, rule.settle) == (("count",), 8, 0, 0)
    assert rules(window='"lifetime"')[0].window == LIFETIME


def test_a_rule_that_changes_has_another_digest() -> None:
    assert rules()[0].digest == rules()[0].digest != rules(window='"2h"')[0].digest


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"windw": '"1h"'}, "rules.toml:11:1: rule 'few': unknown key 'windw'", "did you mean 'window'?"),
        ({"window": '"soon"'}, "rules.toml:7:10: rule 'few': window is 'soon'",
         "a time like '24h', '7d' or '3min', or 'lifetime'"),
        ({"window": "3"}, "rules.toml:7:10: rule 'few': window must be a string, not '3'", None),
        ({"burst": '"-3min"'}, "rules.toml:11:9: rule 'few': burst is '-3min'", "a time like '24h', '7d' or '3min'"),
        ({"events": '["link.flop"]'}, "rules.toml:6:10: rule 'few': there are no events 'link.flop'",
         "did you mean 'link.flap'?"),
        ({"events": "[1]"}, "rules.toml:6:10: rule 'few': events must be an array of strings, not '[1]'", None),
        ({"then": '"shoot"'}, "rules.toml:9:8: rule 'few': then is 'shoot'",
         "one of note, weight, revet, ticket, reboot, drain"),
        ({"recovery": '["prayer"]'}, "rules.toml:10:12: rule 'few': recovery is 'prayer'",
         "of repair, revet, boot, resume, heard, ack, and 'quiet 7d'"),
        ({"recovery": '["quiet"]'}, "rules.toml:10:12: rule 'few': recovery is 'quiet'",
         "of repair, revet, boot, resume, heard, ack, and 'quiet 7d'"),
        ({"recovery": "[]"}, "rules.toml:2:2: rule 'few': it has no 'recovery'",
         "what ends it: repair, revet, boot, resume, heard, ack, or 'quiet 7d'"),
        ({"source": '""'}, "rules.toml:2:2: rule 'few': it has no 'source'",
         "who says that this is right: a paper, a vendor's page, your own experience"),
        ({"date": '"today"'}, "rules.toml:5:8: rule 'few': date must be a day, not 'today'", None),
        ({"when": '"count >="'}, "rules.toml:8:17: rule 'few': when: it is no condition in CEL: mismatched input",
         "an example: count >= 5 && users >= 3"),
        ({"when": '"cuont >= 5"'}, "rules.toml:8:9: rule 'few': when: there is no 'cuont' here",
         "did you mean 'count'?"),
        ({"when": '"1 < 2"'}, "rules.toml:8:8: rule 'few': when asks nothing of the events",
         "speak of count, episodes, users, jobs, subjects, lifetime, since_repair, age, worked, last"),
        ({"when": '"count >= 900"'}, "rules.toml:8:8: rule 'few': when counts up to 900",
         "at most 256 are kept of a node"),
        ({"when": "\"'\" + \"'\""}, "this is not valid TOML", "one table for each rule: [its-name]"),
        ({"where": "'[1].exists(flaps, flaps > 0)'"},
         "rules.toml:11:10: rule 'few': where: a condition may not loop", "write each case out, with && and ||"),
        ({"where": "'duration(\\'3s\\') > flaps'".replace("\\'", '"')},
         "rules.toml:11:10: rule 'few': where: a condition may not use 'duration'",
         "comparisons, &&, ||, !, +, -, *, /, %, in, ?:, size, startsWith, endsWith, contains, matches"),
        ({"where": "'state.map(x, x)'"}, "rules.toml:11:20: rule 'few': where: there is no 'x' here",
         "known here: flaps, job, kind, rate, run, severity, source, state, step, subject, uid"),
        ({"where": "'xid == 31'"}, "rules.toml:11:10: rule 'few': where: there is no 'xid' here",
         "did you mean 'uid'?"),
        ({"where": f"'{'1' * 1001}'"}, "where: it is 1001 characters long, more than the limit of 1000", None),
        ({"per": '["gpu"]'}, "rules.toml:11:7: rule 'few': there is nothing 'gpu' to count apart",
         "known: subject, flaps, rate, state"),
        ({"alone": "99"}, "rules.toml:11:9: rule 'few': alone is 99", "from 0, no bound, to 60 nodes"),
        ({"together": "20"}, "rules.toml:11:12: rule 'few': together must be a string, not '20'", None),
        ({"alone": "true"}, "rules.toml:11:9: rule 'few': alone must be a whole number, not 'True'", None),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_place(changes: dict[str, str], message: str, hint: str | None) -> None:
    with pytest.raises(RuleError) as raised:
        rules(**changes)
    assert message in raised.value.render()
    assert raised.value.hint == hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("few = 1", "rules.toml:1:1: rule 'few': it is no rule"),
        ("[Few]\n", "rules.toml:1:2: rule 'Few': it is no rule"),
        (RULE + RULE, "this is not valid TOML: Cannot declare ('few',) twice"),
        ("[a]\nb = " + "[" * 100, "nested too deep"),
        ("#" * (1 << 20) + "\n", "more than the limit of 1048576"),
        ("".join(f"[r{i}]\n" for i in range(201)), "has 201 rules, more than the limit of 200"),
        ("[few", "rules.toml:1:5: this is not valid TOML"),
    ],
)
def test_a_text_that_is_none(text: str, message: str) -> None:
    with pytest.raises(RuleError) as raised:
        parse("rules.toml", text)
    assert message in raised.value.render()


def test_an_empty_file_has_no_rules() -> None:
    assert parse("rules.toml", "# nothing\r\n") == ()

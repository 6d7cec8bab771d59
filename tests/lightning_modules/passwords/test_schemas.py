"""The schemas: by hand, in two spellings, on bad input."""

import math

import numpy as np
import pytest

from lightning_modules.errors import InputError
from lightning_modules.passwords.catalog import NAMES, make_schema
from lightning_modules.passwords.challenges import SITES, RandomSource, SiteSource, letter_codes, normalise
from lightning_modules.passwords.direct import MentalHash, RunningSum, permutation
from lightning_modules.passwords.hidden import TwoPass, expansion
from lightning_modules.passwords.own import OwnSchema, load_schema
from lightning_modules.passwords.pointer import PointerSum
from lightning_modules.passwords.quality import counting_bound
from lightning_modules.passwords.schemas import Schema, check_deterministic

PLAIN = (
    "word-sum",
    "running-sum",
    "mental-hash",
    "skip-sum",
    "two-pass-running-sum",
    "two-pass-mental-hash",
    "two-pass-word-sum",
)


def by_hand(name, key, word):
    """A response, in plain Python."""
    f, g = key["f"].tolist(), key.get("g", np.arange(10)).tolist()
    codes = [ord(letter) - 97 for letter in word]
    if name.startswith("two-pass-"):
        base = name.removeprefix("two-pass-")
        first = by_hand(base, key, word)
        moved = [(c + int(first[i % len(first)])) % 26 for i, c in enumerate(codes)]
        return by_hand(base, key, "".join(chr(97 + c) for c in moved))
    if name == "word-sum":
        return str(sum(f[c] for c in codes) % 10)
    if name == "mental-hash":
        digits = [g[(f[codes[0]] + f[codes[-1]]) % 10]]
        for c in codes[1:]:
            digits.append(g[(digits[-1] + f[c]) % 10])
    else:
        digits = [sum(f[c] for c in codes[: i + 1]) % 10 for i in range(len(codes))]
    return "".join(str(d) for d in digits if name != "skip-sum" or d < 5)


def test_the_worked_example_in_both_spellings():
    f = np.zeros(26, int)
    f[:3] = 8, 3, 7
    cycle = permutation("0298736514", cycle=True)
    assert (cycle[0], cycle[2], cycle[9], cycle[4]) == (2, 9, 8, 0)
    assert MentalHash().respond({"f": f, "g": cycle}, ["abc"]) == ["103"]
    table = permutation("".join(map(str, cycle)))
    assert MentalHash().respond({"f": f, "g": table}, ["abc"]) == ["103"]


@pytest.mark.parametrize("name", PLAIN)
def test_many_challenges_at_once_are_what_one_at_a_time_is_by_hand(name):
    schema = make_schema(name)
    key = schema.keygen(np.random.default_rng(1))
    words = [*SITES, "a", "zz", *RandomSource(8).draw(schema, *map(np.random.default_rng, (2, 3)), 20)[0]]
    assert schema.respond(key, words) == [by_hand(name, key, word) for word in words]


def test_pointer_sums_point_and_add():
    schema = PointerSum(2, 1, 20)
    sigma = np.random.default_rng(0).integers(0, 10, 20)
    challenges = schema.random_challenges(np.random.default_rng(1), 50)
    assert all(len(set(c)) == 13 and max(c) < 20 for c in challenges)
    for challenge, response in zip(challenges, schema.respond({"sigma": sigma}, challenges), strict=True):
        j = (sigma[challenge[10]] + sigma[challenge[11]]) % 10
        assert response == str((sigma[challenge[j]] + sigma[challenge[12]]) % 10)
    text = " ".join(map(str, challenges[0]))
    assert schema.respond({"sigma": sigma}, [text]) == schema.respond({"sigma": sigma}, challenges[:1])
    assert (schema.human_cost(challenges[0]), schema.exponent, schema.multiplicity(challenges[0], "3")) == (7, 1.0, 10)
    assert PointerSum(1, 3, 26).exponent == 2.0


def test_contents_costs_and_alternatives():
    schema = MentalHash()
    assert schema.key_digits == pytest.approx(26 + math.log10(math.factorial(10)))
    assert round(schema.key_digits, 2) == 32.56
    assert round(counting_bound(schema, "a" * 8), 2) == 4.07
    assert RunningSum().human_cost("abcd") == 7
    assert schema.human_cost("abc") == 10
    assert make_schema("skip-sum").multiplicity("abcdefgh", "012") == 56
    assert (expansion(schema, "abcd"), expansion(make_schema("word-sum"), "abcd")) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [("", "is empty"), ("Abc", "has 'A', outside a-z; use normalise"), ("a b", "outside a-z"), ((1, 2), "is no text")],
)
def test_wrong_challenges_are_refused(challenge, reason):
    for name in PLAIN:
        schema = make_schema(name)
        with pytest.raises(InputError, match=reason):
            schema.respond(schema.keygen(np.random.default_rng(0)), [challenge])


def test_names_are_normalised_or_refused():
    assert normalise("Crédit-Agricole.FR 24") == "creditagricolefr"
    assert letter_codes("az") == (0, 25)
    with pytest.raises(InputError, match="has no letter"):
        normalise("123")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda key: key.pop("f"), "the map 'f' is missing"),
        (lambda key: key.update(f=key["f"][:25]), "must be total, give 26"),
        (lambda key: key.update(f=np.full(26, 10)), "no digit"),
        (lambda key: key.update(f=np.full(26, 0.5)), "no digit"),
        (lambda key: key.update(g=np.zeros(10, int)), "g is no permutation"),
        (lambda key: key.update(z=key["g"]), "has no map 'z'"),
    ],
)
def test_wrong_keys_are_refused(change, reason):
    key = MentalHash().keygen(np.random.default_rng(0))
    change(key)
    with pytest.raises(InputError, match=reason):
        MentalHash().respond(key, ["abc"])


@pytest.mark.parametrize("text", ["029873651", "0298736510", "029873651x", ""])
def test_permutations_that_are_none_are_refused(text):
    for cycle in (False, True):
        with pytest.raises(InputError, match="no permutation"):
            permutation(text, cycle)


@pytest.mark.parametrize(
    ("challenge", "reason"),
    [
        (tuple(range(11)), "has 11 numbers; pointer-sum-1-1-26 takes 12"),
        ((0, *range(11)), "0 is repeated"),
        ((*range(11), 26), "26 is out of range"),
        ((-1, *range(11)), "-1 is out of range"),
        ("a b", "no list of numbers"),
        ("", "no list of numbers"),
    ],
)
def test_wrong_pointers_are_refused(challenge, reason):
    with pytest.raises(InputError, match=reason):
        PointerSum().codes(challenge)


def test_schemas_out_of_range_are_refused():
    for arguments, reason in (((0, 1), "k1, k2"), ((1, 1, 11), "fewer than the 12")):
        with pytest.raises(InputError, match=reason):
            PointerSum(*arguments)
    with pytest.raises(InputError, match="is not direct"):
        TwoPass(make_schema("skip-sum"))
    with pytest.raises(InputError, match="did you mean 'mental-hash'"):
        make_schema("mental-hsh")
    with pytest.raises(InputError, match="give 1 or more"):
        RandomSource(0)
    for sites, reason in ((["a"], "at least two"), (["a", "b", "a"], "'a' stands there twice")):
        with pytest.raises(InputError, match=reason):
            SiteSource(sites)
    assert all(make_schema(name.replace("K1-K2-N", "1-2-20")).name for name in NAMES)


class Moody(Schema):
    """Answers as it likes."""

    name, maps = "moody", RunningSum.maps

    def __init__(self):
        self.asked = 0

    def trace(self, algebra, key, challenge):
        self.asked += 1
        yield self.asked % 10, True

    def human_cost(self, challenge):
        return 1


def test_a_schema_that_answers_twice_differently_is_refused():
    with pytest.raises(InputError, match="moody answers .* with 1 and then with 2; it must be deterministic"):
        check_deterministic(Moody())
    for name in PLAIN:
        check_deterministic(make_schema(name))


HASH = {
    "maps": {"f": "letters", "g": "permutation"},
    "digit": "g(previous + f(letter))",
    "start": "g(f(letter) + f(last))",
}
SAME = {
    "word-sum": {"maps": {"f": "letters"}, "digit": "previous + f(letter)", "spoken": "position == length"},
    "running-sum": {"maps": {"f": "letters"}, "digit": "previous + f(letter)"},
    "mental-hash": HASH,
    "skip-sum": {"maps": {"f": "letters"}, "digit": "previous - (0 - f(letter))", "spoken": "digit < 5"},
}


@pytest.mark.parametrize("name", SAME)
def test_schemas_written_as_expressions_are_the_built_in_ones(name):
    own, schema = OwnSchema("own", **SAME[name]), make_schema(name)
    key = schema.keygen(np.random.default_rng(4))
    assert own.key_digits == schema.key_digits
    assert own.respond(key, [*SITES, "a"]) == schema.respond(key, [*SITES, "a"])


def test_every_part_of_the_language_is_what_python_makes_of_it():
    text = "(f(letter + 3) * 2 - position // 2) % 7 if vowel and not previous > 4 or letter == first else -g(length - f(last)) + 1"
    own = OwnSchema("own", {"f": "letters", "g": "digits"}, text)
    key = own.keygen(np.random.default_rng(0))
    f, g = (lambda x: key["f"].tolist()[x % 26]), (lambda x: key["g"].tolist()[x % 10])
    for word in SITES[:30]:
        codes, previous, spoken = letter_codes(word), 0, ""
        for place, letter in enumerate(codes):
            names = {
                "f": f,
                "g": g,
                "letter": letter,
                "position": place + 1,
                "previous": previous,
                "length": len(codes),
            }
            names |= {"vowel": int(word[place] in "aeiou"), "first": codes[0], "last": codes[-1]}
            previous = eval(text, names) % 10  # the test's own expression
            spoken += str(previous)
        assert own.respond(key, [word]) == [spoken]


@pytest.mark.parametrize(
    ("digit", "reason"),
    [
        ("__import__('os').system('x')", "a call of something else than its maps"),
        ("f.__class__", "no arithmetic \\(Attribute\\)"),
        ("[f(letter)][0]", "no arithmetic"),
        ("(lambda: 1)()", "a call of something else"),
        ("9 ** 999", "operator Pow"),
        ("f(letter) / 2", "operator Div"),
        ("f(letter) % previous", "a whole number above 0"),
        ("f(letter) // 0", "a whole number above 0"),
        ("x + 1", "the name 'x'; the names are first, last"),
        ("digit + 1", "the name 'digit'"),
        ("f", "the name 'f'"),
        ("f(letter, last)", "without one argument"),
        ("f(*first)", "without one argument"),
        ("f(x=1)", "without one argument"),
        ("1001", "whole numbers up to 1000"),
        ("1.5", "whole numbers"),
        ("True", "whole numbers"),
        ("'a'", "whole numbers"),
        ("0 < previous < 5", "one at a time"),
        ("previous in first", "one at a time"),
        ("previous +", "cannot be read"),
        ("f(letter) + " * 40 + "1", "up to 300 characters"),
        ("(" * 120 + "1", "cannot be read"),
        (None, "is no expression"),
        (True, "is no expression"),
    ],
)
def test_expressions_with_anything_else_are_refused_and_never_run(digit, reason):
    with pytest.raises(InputError, match=f"^digit: .*{reason}"):
        OwnSchema("own", {"f": "letters"}, digit)


def test_schema_files_are_read_or_refused_in_one_line(tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text("maps: {f: letters}\ndigit: previous + f(letter)\n")
    schema = make_schema(str(good))
    assert (schema.name, schema.key_digits, schema.human_cost("abc")) == ("good", 26, 6)
    for text, reason in (
        ("- 1", "lacks maps or digit"),
        ("maps: {f: letters}", "lacks maps or digit"),
        ("maps: {f: letters}\ndigit: 1\nspeak: 1", "has a field 'speak'"),
        ("maps: {f: words}\ndigit: 1", "f is 'words'"),
        ("maps: {letter: letters}\ndigit: 1", "cannot be a map's name"),
        ("maps: 3\ndigit: 1", "maps: none given"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system ['x']", "is no YAML"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(text)
        with pytest.raises(InputError, match=reason) as error:
            load_schema(bad)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        load_schema(tmp_path / "none.yaml")

"""The attacks: against brute force, against each other, on pairs that contradict each other."""

import itertools
import pickle
import sys

import numpy as np
import pytest

from lightning_modules.errors import InputError
from lightning_modules.passwords.catalog import make_schema
from lightning_modules.passwords.challenges import RandomSource
from lightning_modules.passwords.direct import MentalHash, RunningSum, WordSum
from lightning_modules.passwords.echelon import EchelonForm, join
from lightning_modules.passwords.exact import AllInformationAdversary
from lightning_modules.passwords.linear import LinearAttack
from lightning_modules.passwords.own import OwnSchema
from lightning_modules.passwords.pairs import InconsistentPairs, MemorisingAttack, read_pairs
from lightning_modules.passwords.security import pairs_until_determined
from lightning_modules.passwords.solving import SOLVERS, ConstraintAttack


def leak(schema, key, pairs, tests=20, length=8):
    """A secret key, leaked pairs, fresh challenges and their responses."""
    rngs = [np.random.default_rng([0, key, stream]) for stream in range(3)]
    secret = schema.keygen(rngs[0])
    leaked, asked = RandomSource(length, tests).draw(schema, rngs[1], rngs[2], pairs)
    return secret, list(zip(leaked, schema.respond(secret, leaked), strict=True)), asked, schema.respond(secret, asked)


@pytest.mark.parametrize("prime", [2, 5])
def test_echelon_forms_know_exactly_what_all_solutions_agree_on(prime):
    rng = np.random.default_rng(prime)
    for _ in range(20):
        unknowns, form = 4, EchelonForm(4, prime)
        true = rng.integers(0, prime, unknowns)
        rows = rng.integers(0, prime, (rng.integers(1, 5), unknowns))
        assert all(form.insert(np.append(row, row @ true)) for row in rows)
        points = np.array(list(itertools.product(range(prime), repeat=unknowns)))
        left = points[((points @ rows.T - rows @ true) % prime == 0).all(1)]
        assert len(left) == prime ** (unknowns - form.rank)
        values = left @ points.T % prime  # every linear form at every solution
        known, constants = form.known(points)
        assert (known == (values == values[0]).all(0)).all()
        assert (constants[known] == values[0][known]).all()
        wrong = np.append(rows[0], rows[0] @ true + 1)
        assert not form.insert(wrong)


def test_remainders_join():
    numbers = np.arange(10)
    assert (join(numbers % 2, numbers % 5) == numbers).all()


def test_sums_are_determined_exactly_where_all_keys_agree():
    schema = WordSum()
    attack, letters = LinearAttack(schema), "abc"
    for challenge, response in (("aab", "4"), ("bbc", "7"), ("abab", "6")):
        attack.observe(challenge, response)
    keys = np.array(list(itertools.product(range(10), repeat=3)))

    def sums(word):
        return keys @ [word.count(letter) for letter in letters] % 10

    keys = keys[(sums("aab") == 4) & (sums("bbc") == 7) & (sums("abab") == 6)]
    for length in (1, 2, 3, 4):
        for word in map("".join, itertools.product(letters, repeat=length)):
            found = set(sums(word).tolist())
            assert attack.predict(word) == (str(*found) if len(found) == 1 else None)


@pytest.mark.parametrize(("length", "ranks"), [(8, (25, 26)), (5, (26, 25)), (7, (26, 26)), (10, (25, 25))])
def test_ranks_end_where_the_length_lets_them_and_everything_is_determined(length, ranks):
    schema = WordSum()
    _, pairs, asked, truth = leak(schema, 0, 60, length=length)
    attack = LinearAttack(schema)
    for pair in pairs:
        attack.observe(*pair)
    assert attack.rank() == ranks
    assert attack.predict_many(asked) == truth


@pytest.mark.parametrize("schema", [WordSum(), RunningSum(), MentalHash()], ids=lambda s: s.name)
def test_the_linear_attack_abstains_and_is_never_wrong(schema):
    for key in range(2):
        _, pairs, asked, truth = leak(schema, key, 30)
        attack, known = LinearAttack(schema), 0
        assert attack.predict_many(asked) == [None] * 20
        for pair in pairs:
            attack.observe(*pair)
            answers = attack.predict_many(asked)
            assert all(answer in (None, true) for answer, true in zip(answers, truth, strict=True))
            assert answers == [attack.predict(challenge) for challenge in asked]
            now = sum(answer is not None for answer in answers)
            assert now >= known
            known = now
        assert known >= 10
        assert attack.predict_many([c for c, _ in pairs]) == [r for _, r in pairs]


def test_a_letter_that_only_stands_first_still_gives_an_equation():
    schema = MentalHash()
    secret, pairs, _, _ = leak(schema, 3, 40)
    attack = LinearAttack(schema)
    for challenge, response in pairs:
        if "q" not in challenge:
            attack.observe(challenge, response)
    assert attack.predict("banquet") is None
    attack.observe("quit", schema.respond(secret, ["quit"])[0])
    assert attack.predict("banquet") == schema.respond(secret, ["banquet"])[0]


def test_nine_values_of_the_permutation_give_the_tenth():
    schema = MentalHash()
    key = {"f": np.arange(26) % 10, "g": np.arange(10)}
    attack = LinearAttack(schema)
    # g is the identity and f(a) = 0, so that "xa" says h(f(x)) = f(x). The digit 9 is never spoken.
    for word in ("aa", "ba", "ca", "da", "ea", "fa", "ga", "ha"):
        attack.observe(word, schema.respond(key, [word])[0])
    assert attack.predict("bia") is None
    attack.observe("ia", "88")
    assert attack.predict("bia") == schema.respond(key, ["bia"])[0] == "199"


def _chain(gs, ab, word, response=None):
    """Responses [n, L] of permutations gs [n, 10], f(a) and f(b) given; with a response the gs that give it."""
    codes = [ab[ord(letter) - 97] for letter in word]
    before, digits = np.full(len(gs), codes[-1]), []
    for place, code in enumerate(codes):
        before = gs[np.arange(len(gs)), (before + code) % 10]
        if response is not None:
            keep = before == int(response[place])
            gs, before = gs[keep], before[keep]
        digits.append(before)
    return gs if response is not None else np.stack(digits, 1)


def _brute_force(pairs, asked):
    """Responses that all keys agree on, over all 10! permutations and the values of a and b."""
    every = np.fromiter(itertools.chain.from_iterable(itertools.permutations(range(10))), np.int8).reshape(-1, 10)
    found, left = [set() for _ in asked], 0
    for ab in itertools.product(range(10), repeat=2):
        gs = every
        for challenge, response in pairs:
            gs = _chain(gs, ab, challenge, response)
        left += len(gs)
        for seen, word in zip(found, asked, strict=True):
            seen |= {"".join(map(str, row)) for row in np.unique(_chain(gs, ab, word), axis=0).tolist()}
    assert left > 1
    return [seen.pop() if len(seen) == 1 else None for seen in found]


@pytest.mark.slow
def test_all_information_is_what_brute_force_over_all_permutations_leaves():
    schema = MentalHash()
    key = schema.keygen(np.random.default_rng(8))
    leaked = ["aabab", "abb"]
    pairs = list(zip(leaked, schema.respond(key, leaked), strict=True))
    asked = ["ab", "ba", "aab", "bba", "abab", "b", "a", "bbbb"]
    adversary = AllInformationAdversary()
    for pair in pairs:
        adversary.observe(*pair)
    found = adversary.predict_many(asked)
    assert found == _brute_force(pairs, asked)
    assert None in found
    assert any(answer is not None for answer in found)


def test_permutations_left_are_those_that_fit_by_brute_force():
    schema = MentalHash()
    secret, pairs, asked, truth = leak(schema, 1, 4, tests=5)
    adversary, linear = AllInformationAdversary(schema), LinearAttack(schema)
    for pair in pairs:
        adversary.observe(*pair)
        linear.observe(*pair)
    left = np.concatenate(list(adversary.permutations()))
    assert len(np.unique(left, axis=0)) == len(left) == adversary.count()
    assert (left == np.argsort(secret["g"])).all(1).any()
    # A permutation fits exactly if the equations together with h(d) = its values have a solution.
    fits = {tuple(h) for h in left.tolist()}
    rng = np.random.default_rng(0)
    others = [rng.permutation(10) for _ in range(200)] + [np.array(h) for h in list(fits)[:5]]
    for h in others:
        again = LinearAttack(schema)
        for pair in pairs:
            again.observe(*pair)
        ok = again._insert(np.eye(36, dtype=int)[26:], h)
        assert ok == (tuple(h.tolist()) in fits)
    for ours, its, true in zip(linear.predict_many(asked), adversary.predict_many(asked), truth, strict=True):
        assert ours in (None, its)
        assert its in (None, true)


def test_too_many_permutations_are_told_and_not_guessed():
    adversary = AllInformationAdversary(limit=1000)
    assert adversary.predict_many(["abc"]) == [None]  # f is free
    adversary.observe("a", MentalHash().respond({"f": np.zeros(26, int), "g": np.arange(10)}, ["a"])[0])
    with pytest.raises(InputError, match="limit: 1000 permutations agree and more are left"):
        adversary.predict_many(["a"])
    with pytest.raises(InputError, match="limit: 0 is too small"):
        AllInformationAdversary(limit=0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("word-sum", 5),
        ("running-sum", 6),
        ("mental-hash", 6),
        ("skip-sum", 8),
        ("two-pass-running-sum", 14),
        ("pointer-sum-1-1-14", 20),
    ],
)
def test_every_key_a_solver_returns_reproduces_all_pairs_and_the_true_key_fits(name, pairs, solver):
    schema = make_schema(name)
    for key in range(2):
        secret, leaked, asked, _ = leak(schema, key, pairs)
        attack = ConstraintAttack(schema, solver=solver)
        for pair in leaked:
            attack.observe(*pair)
        result = attack.result
        assert result.status == "solved"
        challenges, responses = zip(*leaked, strict=True)
        assert schema.respond(result.key, challenges) == list(responses)
        assert attack.predict_many(asked) == schema.respond(result.key, asked)
        assert attack.consistent(leaked, secret) is True
        wrong = {n: v.copy() for n, v in secret.items()}
        wrong[schema.maps[0].name] = (wrong[schema.maps[0].name] + 1) % 10
        if schema.respond(wrong, challenges) != list(responses):
            assert attack.consistent(leaked, wrong) is False


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_proves_determined_exactly_what_the_linear_attack_determines(solver):
    for schema, count in ((RunningSum(), 6), (MentalHash(), 7)):
        _, pairs, asked, truth = leak(schema, 0, count, tests=8)
        linear = AllInformationAdversary(schema) if isinstance(schema, MentalHash) else LinearAttack(schema)
        for pair in pairs:
            linear.observe(*pair)
        known = [answer is not None for answer in linear.predict_many(asked)]
        proven = [
            ConstraintAttack(schema, solver=solver).determined(pairs, c, r) for c, r in zip(asked, truth, strict=True)
        ]
        assert proven == known


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_person_s_own_schema_is_solved_like_the_built_in_one(solver):
    own = OwnSchema(
        "own", {"f": "letters"}, "previous + f(letter) * 3 % 10 - vowel", spoken="digit < 5 or position == length"
    )
    _, pairs, asked, truth = leak(own, 0, 24, tests=10)
    attack = ConstraintAttack(own, solver=solver)
    for pair in pairs:
        attack.observe(*pair)
    assert own.respond(attack.result.key, [c for c, _ in pairs]) == [r for _, r in pairs]
    right = np.mean([a == b for a, b in zip(attack.predict_many(asked), truth, strict=True)])
    assert right >= 0.6


def test_leaks_until_determined_are_found_by_bisection():
    schema = make_schema("running-sum")
    _, pairs, asked, truth = leak(schema, 2, 20, tests=6)
    linear, first = LinearAttack(schema), {}
    for number, pair in enumerate(pairs, 1):
        linear.observe(*pair)
        for challenge, answer in zip(asked, linear.predict_many(asked), strict=True):
            if answer is not None:
                first.setdefault(challenge, float(number))
    for challenge, response in zip(asked, truth, strict=True):
        found = pairs_until_determined(ConstraintAttack(schema), pairs, challenge, response)
        assert found.pairs == first.get(challenge, float("inf"))
        assert found.exact


def test_a_response_that_no_secret_enters_is_determined_by_no_pair():
    schema = OwnSchema("own", {"f": "letters"}, "0 * f(letter) + position")
    _, pairs, asked, truth = leak(schema, 0, 3, tests=1)
    found = pairs_until_determined(ConstraintAttack(schema), pairs, asked[0], truth[0])
    assert (found.pairs, found.possible_before) == (0.0, -1)
    assert found.exact


def test_what_the_limit_leaves_open_is_unsolved_and_carries_its_limit():
    schema = make_schema("two-pass-mental-hash")
    _, pairs, asked, truth = leak(schema, 0, 12, tests=3)
    for solver, limit, unit in (("cp-sat", 0.05, "deterministic seconds"), ("glucose", 50, "conflicts")):
        attack = ConstraintAttack(schema, limit, solver)
        for pair in pairs:
            attack.observe(*pair)
        result = attack.result
        assert (result.status, result.key, result.limit, result.unit) == ("unsolved", None, limit, unit)
        assert attack.predict_many(asked) == [None] * 3
        assert attack.determined(pairs, asked[0], truth[0]) is None


def test_searches_repeat_exactly():
    schema = make_schema("pointer-sum-1-1-26")
    _, pairs, _, _ = leak(schema, 0, 39)
    for solver in SOLVERS:
        first, second = (ConstraintAttack(schema, solver=solver).solve(pairs) for _ in range(2))
        assert first.conflicts == second.conflicts > 50
        assert (first.key["sigma"] == second.key["sigma"]).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["running-sum", "mental-hash", "skip-sum", "pointer-sum-1-1-14"])
def test_the_first_pair_that_contradicts_those_before_it_is_named(name, solver):
    schema = make_schema(name)
    _, pairs, _, _ = leak(schema, 1, 12)
    challenge, response = pairs[4]
    wrong = [*pairs[:6], (challenge, "0" if response != "0" else "1"), *pairs[6:]]
    with pytest.raises(InconsistentPairs, match="pair 7 ") as error:
        ConstraintAttack(schema, solver=solver).solve(wrong)
    assert error.value.number == 7
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.number, str(again)) == (7, str(error.value))


def test_the_linear_attack_stays_as_it_was_after_a_contradiction():
    schema = MentalHash()
    _, pairs, asked, truth = leak(schema, 0, 20)
    attack, other = LinearAttack(schema), MemorisingAttack()
    for number, (challenge, response) in enumerate(pairs):
        attack.observe(challenge, response)
        other.observe(challenge, response)
        if number == 12:
            for wrong, why in ((response[:-1] + str((int(response[-1]) + 1) % 10), "contradicts"), ("12", "2 digits")):
                with pytest.raises(InconsistentPairs, match=f"pair 14 .*{why}"):
                    attack.observe(challenge, wrong)
            with pytest.raises(InconsistentPairs):
                other.observe(challenge, "12")
    assert all(a in (None, b) for a, b in zip(attack.predict_many(asked), truth, strict=True))
    assert attack.predict_many([c for c, _ in pairs]) == [r for _, r in pairs]
    assert other.predict_many([pairs[0][0], "new"]) == [pairs[0][1], None]


def test_what_cannot_be_asked_of_an_attack_is_refused():
    for make, reason in (
        (lambda: LinearAttack(make_schema("skip-sum")), "has no linear equations"),
        (lambda: LinearAttack(MentalHash(), guess=True), "guess: keys of mental-hash"),
        (lambda: AllInformationAdversary(RunningSum()), "for mental-hash only"),
        (lambda: ConstraintAttack(RunningSum(), 0), "limit: 0 is not above 0"),
        (lambda: ConstraintAttack(RunningSum(), -1, "glucose"), "limit: -1 is not above 0"),
        (lambda: ConstraintAttack(RunningSum(), float("nan")), "is not above 0"),
        (lambda: ConstraintAttack(RunningSum(), solver="z3"), "choose from cp-sat, glucose"),
        (lambda: LinearAttack(RunningSum()).observe("abc", "1x3"), "no text of digits"),
        (lambda: ConstraintAttack(RunningSum()).observe("abc", 103), "no text of digits"),
        (lambda: ConstraintAttack(RunningSum()).observe("", "1"), "is empty"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("solver", "module"), [("cp-sat", "ortools.sat.python"), ("glucose", "pysat.solvers")])
def test_a_missing_solver_is_told_with_what_to_install(monkeypatch, solver, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install 'shiftlab\\[passwords\\]'"):
        ConstraintAttack(RunningSum(), solver=solver)


def test_pairs_are_read_from_csv_or_refused(tmp_path):
    path = tmp_path / "leaked.csv"
    path.write_text("challenge,response\ngithub, 407133\nhulu,\n")
    assert read_pairs(path) == [("github", "407133"), ("hulu", "")]
    for text, reason in (
        ("site,password\na,1\n", "lacks a column"),
        ("challenge,response\n", "has none"),
        ("challenge,response\na,1b\n", "line 2 .* is no challenge and digits"),
        ("challenge,response\na,1\n,1\n", "line 3"),
        ("", "lacks a column"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_pairs(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(path)

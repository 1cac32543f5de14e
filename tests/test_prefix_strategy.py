"""The prefix strategies against golden vectors, an obvious model, the published package; and as objects."""

from __future__ import annotations

import abc
import copy
import doctest
import inspect
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing
from s3torchconnector.dcp import s3_prefix_strategy as peer

import s3dcp
from s3dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
    description,
    s3_prefix_strategy,
)

GOLDEN = json.loads((Path(__file__).parent / "data" / "prefix_vectors.json").read_text(encoding="utf-8"))
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
NAMES = [
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3PrefixStrategyBase",
]
HUGE = pytest.param(10**5000, id="huge")  # more digits than Python prints


def digits_of(number: int, base: int, length: int) -> str:
    """`number` in `base`, most significant digit first: the slow, obvious way."""
    digits = ""
    while number:
        digits = DIGITS[number % base] + digits
        number //= base
    return digits.rjust(length, "0")


class PeerNumeric(peer.NumericPrefixStrategy):
    """The published class is abstract: this gives it digits."""

    def _format_number(self, number, length):
        return digits_of(number, self.base, length)


class EveryBase62(NumericPrefixStrategy):
    """A subclass with digits of its own."""

    ALPHABET = DIGITS + DIGITS[10:].upper()

    def __init__(self, epoch_num=None, min_prefix_length=10, prefix_count=None):
        super().__init__(62, epoch_num, min_prefix_length, prefix_count)

    def _format_number(self, number, length):
        text = ""
        while number:
            text = self.ALPHABET[number % 62] + text
            number //= 62
        return text.rjust(length, "0")


class TeamPrefix(S3PrefixStrategyBase):
    """A subclass of the base whose ``__init__`` calls nothing."""

    def __init__(self, team):
        self.team = team

    def generate_prefix(self, rank):
        return f"{self.team}/{rank % 2}/__{rank}_"

    def __repr__(self):
        return f"TeamPrefix({self.team!r})"  # a test id: the same in every process


class NumericAllItsOwn(NumericPrefixStrategy):
    """A numeric subclass that neither calls ``__init__`` nor uses patterns."""

    def __init__(self, word):
        self.word = word

    def generate_prefix(self, rank):
        return f"{self.word}{rank}/__{rank}_"


@pytest.fixture
def world(monkeypatch):
    """Sets the world size that torch.distributed tells; None means that it is not up."""

    def set_world(size):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: size is not None)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)

    return set_world


# --- What they give --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", GOLDEN["vectors"], ids=lambda v: f"{v['strategy']}-{v['arguments']}")
def test_every_golden_prefix_comes_out(vector, world):
    world(vector["world_size"])
    strategy = getattr(s3dcp, vector["strategy"])(**vector["arguments"])
    for rank, prefix in vector["prefixes"]:
        assert strategy(rank) == strategy.generate_prefix(rank) == prefix
    assert strategy.prefixes([rank for rank, _ in vector["prefixes"]]) == [p for _, p in vector["prefixes"]]
    if "prefix_map" in vector:
        assert strategy.prefix_map == vector["prefix_map"]
        for rank, prefix in vector["prefixes"]:  # and the same once the map is there
            assert strategy(rank) == prefix


@pytest.mark.parametrize("refused", GOLDEN["refused"], ids=lambda r: f"{r['strategy']}-{r['names']}")
def test_every_golden_refusal_names_its_argument(refused):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is checked below
        getattr(s3dcp, refused["strategy"])(**refused["arguments"])
    assert refused["names"] in str(caught.value)


def random_rank(rng, count):
    return rng.choice(
        [
            rng.randrange(count),
            rng.randrange(-3 * count, 3 * count),
            rng.randrange(-(2**70), 2**70),
            np.int64(rng.randrange(-(2**40), 2**40)),
            np.int32(rng.randrange(count)),
            rng.random() < 0.5,
        ]
    )


def random_epoch(rng):
    return rng.choice([None, None, 0, -1, True, False, rng.randrange(10**4), rng.randrange(-(10**30), 10**30)])


def random_user_prefix(rng):
    alphabet = "abcXYZ019-_.%+ é日/"
    while True:
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 12)))
        if not text.startswith("/") and not {".", ".."} & set(text.split("/")):
            return text + rng.choice(["", "", "/"])


def random_call(rng):
    """A strategy's name, keyword arguments and world size."""
    name = rng.choice(NAMES[:5])
    world_size = rng.choice([None, 1, 2, rng.randrange(1, 40), rng.randrange(1, 1200)])
    if name == "DefaultPrefixStrategy":
        return name, {}, world_size
    given = {}
    if name == "RoundRobinPrefixStrategy":
        prefixes = [random_user_prefix(rng) for _ in range(rng.randrange(1, 9))]
        given["user_prefixes"] = prefixes if rng.random() < 0.8 else tuple(prefixes)
    elif rng.random() < 0.7:
        given["min_prefix_length"] = rng.choice([1, 2, 3, 10, rng.randrange(1, 40), rng.randrange(1, 900)])
    if name == "NumericPrefixStrategy":
        given["base"] = rng.randrange(2, 37)
    if name != "RoundRobinPrefixStrategy" and rng.random() < 0.5:
        given["prefix_count"] = rng.choice([1, 2, rng.randrange(1, 300), rng.randrange(1, 1200)])
    if rng.random() < 0.6:
        given["epoch_num"] = random_epoch(rng)
    return name, given, world_size


@pytest.mark.parametrize("seed", range(8))
def test_what_the_published_package_gives_comes_out_here(seed, world):
    """1,600 random strategies per seed, 12,800 in all, each with three ranks, all attributes and the map."""
    rng = random.Random(seed)
    for _ in range(1600):
        name, given, world_size = random_call(rng)
        world(world_size)
        theirs_class = PeerNumeric if name == "NumericPrefixStrategy" else getattr(peer, name)
        ours, theirs = getattr(s3dcp, name)(**given), theirs_class(**given)
        context = f"seed {seed}: {name}(**{given}), world size {world_size}"
        for _ in range(3):
            rank = random_rank(rng, world_size or 1)
            assert ours(rank) == theirs(rank), f"{context}, rank {rank!r}"
        for attribute, value in vars(theirs).items():
            assert getattr(ours, attribute) == value, f"{context}, attribute {attribute}"


@pytest.mark.parametrize("seed", range(4))
def test_bound_strategies_match_an_obvious_model(seed):
    rng = random.Random(seed)
    for _ in range(500):
        name, given, _ = random_call(rng)
        if name in ("DefaultPrefixStrategy", "RoundRobinPrefixStrategy"):
            continue
        # Counts far beyond what a list could hold.
        ranks = rng.choice([rng.randrange(1, 2000), rng.randrange(1, 2**64)])
        strategy = getattr(s3dcp, name)(**given).bind(ranks)
        count = given.get("prefix_count", ranks)
        base = {"BinaryPrefixStrategy": 2, "HexPrefixStrategy": 16}.get(name) or given["base"]
        length = 1
        while base**length < count:
            length += 1
        length = max(length, given.get("min_prefix_length", 10))
        epoch = given.get("epoch_num")
        for _ in range(3):
            rank = random_rank(rng, 10**6)
            pattern = "".join(reversed(digits_of(int(rank) % count, base, length)))
            expected = f"{pattern}/__{rank}_" if epoch is None else f"{pattern}/epoch_{epoch}/__{rank}_"
            assert strategy(rank) == expected, f"seed {seed}: {strategy!r} for {ranks} ranks, rank {rank!r}"


@pytest.mark.parametrize(
    "strategy",
    [
        DefaultPrefixStrategy(),
        BinaryPrefixStrategy(epoch_num=-3, prefix_count=1000),
        HexPrefixStrategy(prefix_count=2**64 - 1),
        HexPrefixStrategy(epoch_num=True, prefix_count=3),
        HexPrefixStrategy(epoch_num=2**70, prefix_count=3),
        NumericPrefixStrategy(7, prefix_count=50, min_prefix_length=1),
        RoundRobinPrefixStrategy(["p1", "日/"], epoch_num=2**63 - 1),
        RoundRobinPrefixStrategy(("p1",), epoch_num=-(2**63) - 1),
        EveryBase62(prefix_count=100),
        TeamPrefix("red"),
        NumericAllItsOwn("w"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "ranks",
    [
        range(100),
        range(0),
        range(50, -50, -7),
        range(5, 6, 2**80),
        range(2**63 - 3, 2**63),
        range(2**63 - 3, 2**63 + 3),
        range(-(2**63), 2**63, 2**62),
        range(-(2**70), -(2**70) + 3),
        [5, 3, 3, np.int64(-1)],
        (1, 2),
    ],
    ids=repr,
)
def test_many_ranks_at_once_read_like_each_rank_alone(strategy, ranks):
    expected = [strategy(rank) for rank in ranks]
    assert strategy.prefixes(ranks) == strategy.prefixes(iter(ranks)) == expected


def test_a_million_prefixes_come_in_one_call():
    prefixes = HexPrefixStrategy(epoch_num=5, prefix_count=10**6).prefixes(range(1_100_000))
    assert len(prefixes) == 1_100_000
    for rank in (0, 999_999, 1_000_000, 1_048_576, 1_099_999):
        pattern = f"{rank % 10**6:010x}"[::-1]
        assert prefixes[rank] == f"{pattern}/epoch_5/__{rank}_"


def test_a_quintillion_prefixes_cost_what_one_costs():
    strategy = HexPrefixStrategy(prefix_count=2**64 - 1)
    assert strategy(-1) == "efffffffffffffff/__-1_"
    assert strategy.bind(3) is strategy
    assert strategy == pickle.loads(pickle.dumps(strategy))


# --- World size and binding ------------------------------------------------------------------------------


def test_a_strategy_built_before_the_process_group_spreads_once_bound(world):
    world(None)
    strategy = HexPrefixStrategy(epoch_num=2)
    assert strategy.prefix_count == 1
    assert len({prefix.split("/")[0] for prefix in strategy.prefixes(range(16))}) == 1
    bound = strategy.bind(16)
    assert type(bound) is HexPrefixStrategy
    assert bound.prefix_count == 16
    assert bound(10) == "a000000000/epoch_2/__10_"
    assert strategy.prefix_count == 1  # the original stays
    assert bound.bind(8).prefix_count == 8  # the next job may have another size


@pytest.mark.parametrize(
    "strategy",
    [
        HexPrefixStrategy(prefix_count=4),
        RoundRobinPrefixStrategy(["a"]),
        DefaultPrefixStrategy(),
        TeamPrefix("red"),
    ],
)
def test_what_was_given_is_not_bound_away(strategy):
    assert strategy.bind(16) is strategy


def test_setting_the_count_gives_it_and_none_takes_it_back(world):
    world(6)
    strategy = BinaryPrefixStrategy()
    strategy.prefix_count = 4
    assert strategy.bind(16) is strategy
    strategy.prefix_count = None
    assert strategy.prefix_count == 6
    assert strategy.bind(16).prefix_count == 16


def test_subclasses_are_bound_too():
    bound = EveryBase62(epoch_num=1).bind(62 * 62)
    assert type(bound) is EveryBase62
    assert bound(61) == "Z000000000/epoch_1/__61_"
    unbound = NumericAllItsOwn("w")
    assert unbound.bind(4)(3) == "w3/__3_"
    assert unbound.bind(4).word == "w"


@pytest.mark.parametrize("ranks", [0, -1, True, 2.0, None])
def test_binding_to_no_ranks_is_refused(ranks):
    with pytest.raises(ValueError, match="ranks must be an integer from 1 to"):
        HexPrefixStrategy().bind(ranks)


def test_torch_is_not_imported_and_not_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"  # any import of torch now fails
        "from s3dcp.s3_prefix_strategy import HexPrefixStrategy\n"
        "assert HexPrefixStrategy().prefix_count == 1\n"
        "assert not any(name.startswith('torch.') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_without_distributed_counts_as_not_up(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert HexPrefixStrategy().prefix_count == 1


# --- As objects ------------------------------------------------------------------------------------------


def test_signatures_and_inheritance_are_those_of_the_published_package():
    for name in NAMES:
        ours, theirs = getattr(s3dcp, name), getattr(peer, name)
        assert getattr(s3_prefix_strategy, name) is ours
        assert [base.__name__ for base in ours.__mro__] == [base.__name__ for base in theirs.__mro__]
        parameters = [
            [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()] for cls in (ours, theirs)
        ]
        assert parameters[0] == parameters[1]
    assert isinstance(S3PrefixStrategyBase, abc.ABCMeta)
    assert sorted(s3_prefix_strategy.__all__) == NAMES


def test_the_base_cannot_be_made_without_generate_prefix():
    with pytest.raises(TypeError, match="abstract"):
        S3PrefixStrategyBase()

    class Unfinished(S3PrefixStrategyBase):
        pass

    with pytest.raises(TypeError, match="generate_prefix"):
        Unfinished()


def test_subclasses_of_the_base_work_without_its_init():
    strategy = TeamPrefix("red")
    assert strategy(3) == "red/1/__3_"
    assert strategy.prefixes(range(2)) == ["red/0/__0_", "red/1/__1_"]


def test_a_subclass_brings_digits_of_its_own():
    strategy = EveryBase62(min_prefix_length=1, prefix_count=63)
    assert strategy(62) == "01/__62_"
    assert strategy.prefix_map[:2] == ["00", "10"]
    assert strategy.prefix_map[61] == "Z0"
    assert strategy.base == 62


def test_a_subclass_written_for_the_published_package_gives_the_same_prefixes():
    def dashed(base):
        class Dashed(base):
            def __init__(self):
                super().__init__(base=4, prefix_count=30, min_prefix_length=2)

            def _calculate_prefix_length(self):
                return 1 + super()._calculate_prefix_length()

            def _generate_prefix_map(self):
                return [f"x-{pattern}" for pattern in super()._generate_prefix_map()]

            def _format_number(self, number, length):
                return digits_of(number, self.base, length)

        return Dashed()

    ours, theirs = dashed(NumericPrefixStrategy), dashed(peer.NumericPrefixStrategy)
    assert ours.prefix_map == theirs.prefix_map
    assert ours.prefixes(range(70)) == [theirs(rank) for rank in range(70)]


def test_attributes_set_between_saves_take_effect():
    strategy = HexPrefixStrategy(epoch_num=1, prefix_count=16)
    strategy.epoch_num = 7
    assert strategy(10) == "a000000000/epoch_7/__10_"
    strategy.epoch_num = None
    assert strategy(10) == "a000000000/__10_"
    assert strategy.prefix_map[10] == "a000000000"
    strategy.prefix_count = 257
    strategy.min_prefix_len = 2
    assert strategy(256) == "001/__256_"
    assert len(strategy.prefix_map) == 257

    round_robin = RoundRobinPrefixStrategy(["a", "b"])
    round_robin.epoch_num = 2
    round_robin.user_prefixes = ["c"]
    assert round_robin(1) == "c/epoch_2/__1_"
    round_robin.user_prefixes.append("d")
    assert round_robin(1) == "d/epoch_2/__1_"


def test_attributes_are_checked_when_they_are_set():
    strategy = NumericPrefixStrategy(8, prefix_count=2)
    before = copy.copy(strategy)
    for attribute, value in [
        ("base", 37),
        ("epoch_num", "7"),
        ("prefix_count", 0),
        ("min_prefix_len", True),
        ("prefix_map", []),
        ("prefix_map", ["../up"]),
    ]:
        with pytest.raises(ValueError, match=attribute):
            setattr(strategy, attribute, value)
    assert strategy == before
    with pytest.raises(ValueError, match="base of HexPrefixStrategy is 16, got 2"):
        HexPrefixStrategy().base = 2

    round_robin = RoundRobinPrefixStrategy(["a", "b"])
    with pytest.raises(ValueError, match="user_prefixes must have at least 1"):
        round_robin.user_prefixes = ()
    round_robin.user_prefixes[1] = "../up"
    with pytest.raises(ValueError, match=r"user_prefixes\[1\] has a segment"):
        round_robin(1)
    with pytest.raises(ValueError, match=r"user_prefixes\[1\] has a segment"):
        round_robin.prefixes(range(1))
    round_robin.user_prefixes.clear()
    with pytest.raises(ValueError, match="user_prefixes must have at least 1"):
        round_robin(0)


def test_the_callers_list_of_prefixes_is_not_shared():
    prefixes = ["a", "b"]
    strategy = RoundRobinPrefixStrategy(prefixes)
    prefixes.clear()
    assert strategy(1) == "b/__1_"


def test_prefix_map_can_be_changed_and_replaced():
    strategy = HexPrefixStrategy(prefix_count=2)
    assert strategy.prefix_map is strategy.prefix_map
    strategy.prefix_map[1] = "second"
    assert strategy(3) == "second/__3_"
    assert strategy.prefixes(range(2)) == ["0000000000/__0_", "second/__1_"]
    assert strategy != HexPrefixStrategy(prefix_count=2)
    assert pickle.loads(pickle.dumps(strategy)) == strategy

    strategy.prefix_map = ["x", "y", "z"]
    assert strategy.prefix_count == 3
    assert strategy(5) == "z/__5_"
    assert strategy.bind(8) is strategy


STRATEGIES = [
    DefaultPrefixStrategy(),
    NumericPrefixStrategy(2),
    NumericPrefixStrategy(3),
    NumericPrefixStrategy(3, prefix_count=1),
    BinaryPrefixStrategy(),
    HexPrefixStrategy(),
    HexPrefixStrategy(epoch_num=0),
    HexPrefixStrategy(epoch_num=5, prefix_count=16),
    HexPrefixStrategy(min_prefix_length=4),
    HexPrefixStrategy().bind(16),
    RoundRobinPrefixStrategy(["a", "b"]),
    RoundRobinPrefixStrategy(["b", "a"]),
    RoundRobinPrefixStrategy(["a", "b"], epoch_num=1),
    EveryBase62(prefix_count=5),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_copies_and_pickles_are_equal_and_the_others_are_not(strategy):
    expected = [strategy(rank) for rank in range(-3, 20)]
    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    pickles = [pickle.loads(pickle.dumps(strategy, protocol)) for protocol in protocols]
    for twin in [copy.copy(strategy), copy.deepcopy(strategy), *pickles]:
        assert twin is not strategy
        assert twin == strategy
        assert hash(twin) == hash(strategy)
        assert repr(twin) == repr(strategy)
        assert [twin(rank) for rank in range(-3, 20)] == expected
    assert [other for other in STRATEGIES if other == strategy] == [strategy]
    assert strategy != 5


def test_asking_for_the_map_changes_neither_equality_nor_hash():
    asked, not_asked = HexPrefixStrategy(prefix_count=16), HexPrefixStrategy(prefix_count=16)
    assert len(asked.prefix_map) == 16
    assert asked == not_asked
    assert not_asked == asked
    assert hash(asked) == hash(not_asked)


def test_a_strategy_stays_in_its_set_when_the_epoch_moves_on():
    for strategy in (HexPrefixStrategy(epoch_num=1), RoundRobinPrefixStrategy(["a"], epoch_num=1)):
        kept = {strategy}
        strategy.epoch_num = 2
        assert strategy in kept


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (DefaultPrefixStrategy(), "DefaultPrefixStrategy()"),
        (HexPrefixStrategy(epoch_num=5, prefix_count=16), "HexPrefixStrategy(epoch_num=5, prefix_count=16)"),
        (BinaryPrefixStrategy(epoch_num=0), "BinaryPrefixStrategy(epoch_num=0)"),
        (
            NumericPrefixStrategy(36, min_prefix_length=4),
            "NumericPrefixStrategy(base=36, min_prefix_length=4)",
        ),
        (RoundRobinPrefixStrategy(["a"]), "RoundRobinPrefixStrategy(user_prefixes=['a'])"),
    ],
)
def test_repr_is_the_call_that_makes_it(strategy, text):
    assert repr(strategy) == text
    assert eval(text) == strategy


def in_a_spawned_rank(rank, strategies, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        made_here = HexPrefixStrategy(epoch_num=1)
        prefixes = [strategy.bind(2)(rank) for strategy in [*strategies, made_here]]
        report = {"made_here": made_here.prefix_count, "prefixes": prefixes}
        (Path(folder) / f"{rank}.json").write_text(json.dumps(report))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_strategies_travel_to_spawned_ranks(tmp_path):
    strategies = [HexPrefixStrategy(epoch_num=1), *STRATEGIES, TeamPrefix("red"), NumericAllItsOwn("w")]
    torch.multiprocessing.spawn(in_a_spawned_rank, (strategies, str(tmp_path)), nprocs=2)
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["made_here"] == 2
        assert report["prefixes"][:-1] == [strategy.bind(2)(rank) for strategy in strategies]
        assert report["prefixes"][0] == report["prefixes"][-1] == f"{rank}000000000/epoch_1/__{rank}_"


# --- What they refuse ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "3", None, [], HUGE, 1025, np.bool_(True)])
def test_bad_lengths_are_refused(value):
    with pytest.raises(ValueError, match="min_prefix_length must be an integer from 1 to 1024, got "):
        HexPrefixStrategy(min_prefix_length=value)


@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, "3", [], HUGE, 2**64, float("nan")])
def test_bad_counts_are_refused(value):
    with pytest.raises(ValueError, match="prefix_count must be an integer from 1 to 18446744073709551615, got "):
        BinaryPrefixStrategy(prefix_count=value)


@pytest.mark.parametrize("value", [0, 1, 37, -2, True, 10.0, "16", None])
def test_bad_bases_are_refused(value):
    with pytest.raises(ValueError, match="base must be an integer from 2 to 36, got "):
        NumericPrefixStrategy(value)


@pytest.mark.parametrize("value", ["5", 5.0, [], b"5", np.float32(5)])
def test_bad_epochs_are_refused(value):
    with pytest.raises(ValueError, match="epoch_num must be an integer or None, got "):
        HexPrefixStrategy(epoch_num=value)
    with pytest.raises(ValueError, match="epoch_num must be an integer or None, got "):
        RoundRobinPrefixStrategy(["a"], epoch_num=value)


@pytest.mark.parametrize("value", [None, "p1", b"p1", 5, {"p1"}, {"p1": 1}, iter(["p1"])])
def test_what_is_no_list_of_prefixes_is_refused(value):
    with pytest.raises(ValueError, match="user_prefixes must be a list or tuple of strings, got "):
        RoundRobinPrefixStrategy(value)


@pytest.mark.parametrize("value", [None, 5, b"p", ["p"], "\ud800"])
def test_a_user_prefix_that_is_no_text_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=r"user_prefixes\[1\]"):
        RoundRobinPrefixStrategy(["p", value])


@pytest.mark.parametrize("value", [10**1024, -(10**1024), HUGE])
@pytest.mark.parametrize("make", [HexPrefixStrategy, lambda **given: RoundRobinPrefixStrategy(["a"], **given)])
def test_an_epoch_that_no_key_can_hold_is_refused(make, value):
    with pytest.raises(ValueError, match=r"epoch_num .*1024 bytes"):
        make(epoch_num=value)


@pytest.mark.parametrize("rank", [10**1024, HUGE])
@pytest.mark.parametrize("strategy", [DefaultPrefixStrategy(), HexPrefixStrategy(), RoundRobinPrefixStrategy(["a"])])
def test_a_rank_that_no_key_can_hold_is_refused(strategy, rank):
    with pytest.raises(ValueError, match=r"rank .*1024 bytes"):
        strategy(rank)


def test_the_longest_prefix_is_exactly_as_long_as_a_key():
    strategy = HexPrefixStrategy(min_prefix_length=1019)
    assert len(strategy(9)) == 1024
    for make in (lambda: strategy(10), lambda: strategy.prefixes(range(11))):
        with pytest.raises(ValueError, match=r"rank.* makes a prefix of 1025 bytes; .* at most 1024 bytes"):
            make()
    with pytest.raises(ValueError, match=r"min_prefix_length makes a prefix of 1025 bytes.*got 1020"):
        HexPrefixStrategy(min_prefix_length=1020)
    strategy = RoundRobinPrefixStrategy(["é" * 509])
    assert len(strategy(10).encode()) == 1024
    with pytest.raises(ValueError, match="rank makes a prefix of 1025 bytes"):
        strategy(100)


@pytest.mark.parametrize("rank", [1.0, "1", None, [1]])
@pytest.mark.parametrize("strategy", [DefaultPrefixStrategy(), HexPrefixStrategy(), RoundRobinPrefixStrategy(["a"])])
def test_a_rank_that_is_no_integer_is_a_type_error(strategy, rank):
    with pytest.raises(TypeError, match="integer"):
        strategy(rank)


def test_other_integer_types_are_taken():
    strategy = HexPrefixStrategy(np.int64(5), np.int32(4), np.uint8(16))
    assert strategy == HexPrefixStrategy(5, 4, 16)
    assert all(type(value) is int for value in (strategy.epoch_num, strategy.min_prefix_len, strategy.prefix_count))
    assert strategy(np.uint16(300)) == "c000/epoch_5/__300_"


def test_the_examples_in_the_docstrings_hold():
    results = [doctest.testmod(module) for module in (s3_prefix_strategy, description)]
    assert sum(result.attempted for result in results) >= 12
    assert all(result.attempted and not result.failed for result in results)

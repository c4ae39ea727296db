"""Policies of other packages: by module and class, by entry point, and what is wrong with them."""

import subprocess
import sys
import textwrap

import pytest

from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.registry import POLICIES, RECOMMENDED, list_policies, make_policy, playable, split_policies

MODULE = '''
from collections.abc import Sequence
from typing import Literal, Optional

import numpy as np
import river.bandit

from eex.policies.core.base import Context, Policy, Thresholds


class Half(Policy):
    """Leave at a threshold of one half.

    More.
    """

    def __init__(self, at: float = 0.5, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(exits, runs, seed)
        self.at = at

    def choose(self, context: Context) -> Thresholds:
        shape = (self.runs, context.frames)
        return self.same_at_every_exit(np.full(shape, self.at), np.zeros(shape, dtype=int))


class Louder(Half):
    """A wrapper."""

    def __init__(self, inner: Policy, by: float = 0.1) -> None:
        super().__init__(0.5, inner.exits, inner.runs)
        self.inner, self.by = inner, by


class Lists(Half):
    """Its options hold several values."""

    def __init__(
        self,
        names: list[str] = ["a", "b"],
        stages: Sequence[int] = (),
        pair: tuple[int, str] = (1, "a"),
        flags: tuple[bool, ...] = (True,),
        mixed: "Optional[list[int | str]]" = None,
        kind: Literal["slow", 2] = "slow",
        exits: int = 1,
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(0.5, exits, runs, seed)
        self.given = dict(names=names, stages=stages, pair=pair, flags=flags, mixed=mixed, kind=kind)


class Bare(Policy):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()


class Odd(Policy):
    """Its options have types that do not exist."""

    def __init__(self, at: "Nothing" = 1, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(exits, runs, seed)


class Stranger:
    """No policy."""


class Last(river.bandit.base.Policy):
    """In river's manner: the last arm, always."""

    def __init__(self, reward_obj=None, burn_in=0):
        super().__init__(reward_obj, burn_in)

    def _pull(self, arm_ids):
        return arm_ids[-1]
'''


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A folder with a user's module, and an installed package with entry points beside it."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "rude.py").write_text("raise RuntimeError('no\\nno')\n")
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = {"half": "mine:Half", "lists": "mine:Lists", "louder": "mine:Louder", "lost": "broken:Policy"}
    points |= {"ucb": "mine:Half", "last": "mine:Last"}
    lines = ["[eex.policies]", *(f"{name} = {where}" for name, where in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine", "broken", "rude"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("plugins")
def test_by_module_and_class():
    policy = make_policy("mine:Half:at=0.7", exits=2, runs=3)
    assert (type(policy).__name__, policy.at, policy.exits, policy.runs) == ("Half", 0.7, 2, 3)
    assert make_policy("mine:Half", {"at": "0.2"}).at == 0.2
    assert make_policy("drift@mine:Half:at=0.9").inner.at == 0.9
    assert make_policy("mine:Louder:by=0.3@ucb", exits=2).inner.exits == 2


@pytest.mark.usefixtures("plugins")
def test_by_entry_point():
    assert make_policy("half:at=0.7", runs=2).at == 0.7
    assert type(make_policy("louder@half").inner).__name__ == "Half"
    assert type(make_policy("ucb")).__name__ == "UCB"  # names of eex's own stay its own


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("names=x,y", ["x", "y"]),
        ("names=x;y", ["x", "y"]),
        ("names=1 0.5", ["1", "0.5"]),
        ("stages=1,2", [1, 2]),
        ("stages=7", [7]),
        ("pair=3,4", (3, "4")),
        ("flags=true,0", (True, False)),
        ("mixed=1,b", [1, "b"]),
        ("kind=2", 2),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_options_keep_the_types_of_their_values(option, value):
    found = make_policy(f"mine:Lists:{option}").given[option.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list | tuple):
        assert list(map(type, found)) == list(map(type, value))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("stages=1,2.5", "option stages must be whole numbers such as 1,2, got '1,2.5'"),
        ("pair=1", "option pair must be 2 comma-separated values: a whole number, text, got '1'"),
        ("flags=yes", "option flags must be comma-separated values, each true or false, got 'yes'"),
        ("kind=quick", "option kind must be one of slow, 2, got 'quick'"),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_values_of_another_type_are_refused(option, message):
    with pytest.raises(EexError, match=message):
        make_policy(f"mine:Lists:{option}")


@pytest.mark.usefixtures("plugins")
def test_all_policies_are_those_of_plugins_too():
    assert playable() == [
        *POLICIES,
        "half",
        "last",
        "lists",
        "lost",
        "louder",
        "mine:Half",
    ]  # the last has a name of eex's own
    listed = {name: summary for name, summary, _ in list_policies()}
    assert listed["mine:Half"] == "A plug-in by the name of eex's own ucb; write mine:Half."


@pytest.mark.usefixtures("plugins")
def test_a_policy_in_rivers_manner():
    for name in ("last", "mine:Last:grid=0.2,0.9"):
        policy = make_policy(name, exits=2)
        assert policy.choose(Context()).arm[0, 0] == len(policy.grid) - 1


def test_list_is_plain_text():
    shown = " ".join(summary for _, summary, _ in list_policies())
    assert "`" not in shown
    assert "\\" not in shown


@pytest.mark.usefixtures("plugins")
def test_list_shows_plugins_and_wrappers_and_what_is_recommended():
    listed = {name: (summary, options) for name, summary, options in list_policies()}
    assert listed["half"] == ("Leave at a threshold of one half.", "at=0.5")
    assert listed["lists"][1].startswith("names=a b, stages=, pair=1 a")
    assert listed["louder@…"] == ("A wrapper.", "by=0.1")
    assert "cannot be imported" in listed["lost"][0]
    assert "bound=0.02" in listed["safe@…"][1]
    assert listed["aim@…"][1].startswith("wish=…, ")  # has to be given
    assert "river.bandit.…" in listed
    assert [name for name, (summary, _) in listed.items() if "recommended" in summary] == [RECOMMENDED]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken:Policy", "plug-in broken:Policy cannot be imported: ModuleNotFoundError: No module named 'nothing_of"),
        ("rude:Policy", "plug-in rude:Policy cannot be imported: RuntimeError: no"),
        ("nowhere:Policy", "plug-in nowhere:Policy cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("mine:Third", "plug-in mine:Third cannot be imported: AttributeError: module 'mine' has no attribute 'Third'"),
        ("mine:Stranger", "plug-in mine:Stranger is not a subclass of eex.policies.core.base.Policy"),
        ("mine:np", "plug-in mine:np is not a subclass of eex.policies.core.base.Policy"),
        ("mine:Odd", "plug-in mine:Odd: the types of its options cannot be read: name 'Nothing' is not defined"),
        ("mine:Bare", "policy mine:Bare cannot be made with exits, runs and seed: "),
        ("lost", "plug-in broken:Policy cannot be imported: ModuleNotFoundError"),
        ("mine:Half:att=1", "policy mine:Half has no option 'att' (did you mean 'at'?); its options: at"),
        ("hlaf", "unknown policy 'hlaf' (did you mean 'half'?); eex-stream --list-policies shows all"),
        ("mine:Louder", "mine:Louder wraps another policy: write mine:Louder@stop-curve, say"),
        ("half@ucb", "policy half is not a wrapper; remove what follows the @"),
    ],
)
@pytest.mark.usefixtures("plugins")
def test_plugins_that_cannot_be_used(name, message):
    with pytest.raises(EexError) as caught:
        make_policy(name, exits=1)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("aim@stop-curve", {}, "policy aim needs the option 'wish': aim:wish=…"),
        ("ucb", {"cc": 0.5}, "a policy is given exits, runs and seed, not 'cc'"),
    ],
)
def test_what_a_policy_is_not_given(name, given, message):
    with pytest.raises(EexError, match=message):
        make_policy(name, **given)


def test_options_may_be_numbers_and_lists():
    assert make_policy("ucb", {"grid": [0.5, 0.7], "c": 0.25}).grid.tolist() == [0.5, 0.7]


def test_a_users_module_is_found_where_the_command_is_started(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    code = """
        import sys
        sys.path = [p for p in sys.path if p]
        from eex.policies.registry import make_policy
        print(make_policy("mine:Half:at=0.25").at)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0.25\n", "")


def test_lists_of_numbers_with_commas():
    assert split_policies("ucb:grid=0.5,0.9, fixed:p_tar=0.8,safe:bound=0.05@ucb") == [
        "ucb:grid=0.5,0.9",
        "fixed:p_tar=0.8",
        "safe:bound=0.05@ucb",
    ]
    assert make_policy("ucb:grid=0.5,0.9").grid.tolist() == [0.5, 0.9]
    last = make_policy("fixed:p_tar=1,1,0.8", exits=3).choose(Context())
    assert last.exit_at[0, 0].tolist() == [1.0, 1.0, 0.8, 0.8]
    with pytest.raises(EexError, match="one for each of 3 edge exits, got 2"):
        make_policy("fixed:p_tar=1,0.8", exits=3)

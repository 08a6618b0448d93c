"""Digests of a step's code: what its result depends on gives another one, and nothing else does."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core import code_source
from airflow_ml_provider.core.code_digest import code_parts
from airflow_ml_provider.core.code_source import SourceFile
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import CacheKey, changes


@contextlib.contextmanager
def loaded(folder: Path, files: dict[str, str], dag: str = "dag.py", name: str | None = None):
    """The DAG file of a folder, imported as Airflow does it, and forgotten with all that it has imported."""
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_bytes() != text.encode():
            file.write_bytes(text.encode())
    path = folder / dag
    name = name or f"unusual_prefix_{hashlib.sha1(str(path).encode(), usedforsecurity=False).hexdigest()}_{path.stem}"
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    was, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.dont_write_bytecode = was
        sys.path.remove(str(folder))
        for each in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[each], "__file__", None) or getattr(sys.modules[each], "__path__", "")):
                del sys.modules[each]


def key_of(folder: Path, files: dict[str, str] | str, step: str = "step", **how) -> CacheKey:
    files = {"dag.py": files} if isinstance(files, str) else files
    with loaded(folder, {path: textwrap.dedent(text) for path, text in files.items()}, **how) as module:
        found = module
        for name in step.split("."):
            found = getattr(found, name)
        return CacheKey(parts=code_parts(found() if step == "make" else found, folder))


def replaced(files: dict[str, str], old: str, new: str) -> dict[str, str]:
    assert any(old in text for text in files.values()), old
    return {path: text.replace(old, new) for path, text in files.items()}


DAG = """
    import dataclasses, enum, functools, logging, re
    from pathlib import Path

    import lib
    import lib.deep as deep
    import lib.two.leaf
    from lib.parts import scale, Base
    from lib import settings
    from shared import *

    LIMIT = 300
    ROWS = {"a": 1, "b": [2, 3]}
    SHAPES = {1, 2, 3}
    PATTERN = re.compile("[a-z]+")
    LOG = logging.getLogger(__name__)
    HERE = Path(__file__).parent / "sql"
    TEXT = __file__ + ".txt"
    PICK = lambda row: row[0]  # noqa
    TWO = (lambda x: x + 1), (lambda x: x + 2)
    PART = functools.partial(max, 7)
    UNUSED = 5

    @dataclasses.dataclass
    class Window:
        days: int = 7
        def end(self):
            return self.days + OFFSET

    OFFSET = 11
    WINDOW = Window(days=3)

    class Mode(enum.Enum):
        FAST = "fast"

    MODE = Mode.FAST

    class Model(Base):
        rounds = 10

        @property
        def twice(self):
            return self.rounds * FACTOR

        def fit(self, rate=0.5, *, depth=6):
            return self.twice

    FACTOR = 2

    def timed(times):
        def around(function):
            @functools.wraps(function)
            def inner(*args):
                return function(*args) * times
            return inner
        return around

    @timed(3)
    def first(x, y=4, *, z=8):
        return second(x)

    def second(x):
        return first(x) if x else DEPTH

    DEPTH = 9

    @functools.lru_cache(maxsize=16)
    def kept(x):
        return x - 21

    class Hint:
        low = 31

    def annotated(x: Hint) -> "Other":
        return x

    class Other:
        high = 41

    def unused():
        return 51

    @functools.wraps
    def step(raw, days: int = 5, *, more=6):
        '''What it does.'''
        from lib.late import late
        import lib.later
        LOCAL = 61  # a comment
        UNUSED = 62

        if raw:
            text = '''
    # not a comment

      71'''
        LOG.info("%s %s", HERE, TEXT)
        annotated(1)
        return [
            LIMIT, ROWS, SHAPES, PATTERN, PICK, TWO, PART, WINDOW, MODE, Model().fit(), first(1), kept(2), scale(3),
            lib.top(), deep.low(), settings.VALUE, lib.two.leaf.f(), late(), starred(), lambda: LIMIT, UNUSED,
        ]
    step = step.keywords["wrapped"] if hasattr(step, "keywords") else step
"""
FILES = {
    "dag.py": DAG.replace("    @functools.wraps\n    def step", "    def step").replace(
        '    step = step.keywords["wrapped"] if hasattr(step, "keywords") else step\n', ""
    ),
    "lib/__init__.py": "from .inner import top\n",
    "lib/inner.py": "from . import innermost\ndef top():\n    return innermost.bottom()\n",
    "lib/innermost.py": "def bottom():\n    return 101\n",
    "lib/deep.py": "import shared_deep\ndef low():\n    return 111\n",
    "lib/two/__init__.py": "",
    "lib/two/leaf.py": "from ..inner import top\nfrom ...lib2 import x\ndef f():\n    return 121\n".replace(
        "from ...lib2 import x\n", ""
    ),
    "lib/late.py": "import os.path\nfrom .latest import *\ndef late():\n    return 131\n",
    "lib/latest.py": "LATEST = 141\n",
    "lib/later.py": "import lib.last\nX = 151\n",
    "lib/last.py": "Y = 161\n",
    "lib/settings.py": "import os\nVALUE = int(os.environ.get('AIRFLOW_ML_TEST_VALUE', '171'))\n",
    "lib/parts.py": "UNIT = 181\nSPARE = 182\ndef scale(x, y=183):\n    return x * UNIT\ndef other():\n    return 184\nclass Base:\n    kind = 185\n",
    "shared.py": "def starred():\n    return 191\ndef unstarred():\n    return 192\n",
    "shared_deep.py": "Z = 201\n",
    "nobody.py": "NOTHING = 211\n",
}

SEEN = {
    "a constant": ("LIMIT = 300", "LIMIT = 301"),
    "its type": ("LIMIT = 300", "LIMIT = 300.0"),
    "a value deep in a constant": ("[2, 3]", "[2, 4]"),
    "the order of a dictionary, which may be that of columns": ('{"a": 1, "b": [2, 3]}', '{"b": [2, 3], "a": 1}'),
    "a set": ("SHAPES = {1, 2, 3}", "SHAPES = {1, 2, 4}"),
    "a pattern": ("[a-z]+", "[a-z]*"),
    "flags of a pattern": ('re.compile("[a-z]+")', 're.compile("[a-z]+", re.I)'),
    "a path below the folder": ('/ "sql"', '/ "sql2"'),
    "a text of a path": ('".txt"', '".csv"'),
    "a lambda": ("row[0]", "row[1]"),
    "one of two lambdas in a line": ("x + 2", "x + 3"),
    "the order of two lambdas in a line": ("(lambda x: x + 1), (lambda x: x + 2)", "(lambda x: x + 2), (lambda x: x + 1)"),
    "a partial": ("partial(max, 7)", "partial(max, 8)"),
    "the function of a partial": ("partial(max, 7)", "partial(min, 7)"),
    "a field of a dataclass instance": ("Window(days=3)", "Window(days=4)"),
    "a default of a dataclass": ("days: int = 7", "days: int = 8"),
    "a constant of a method": ("OFFSET = 11", "OFFSET = 12"),
    "a member of an enum": ('FAST = "fast"', 'FAST = "quick"'),
    "a class attribute": ("rounds = 10", "rounds = 20"),
    "a constant of a property": ("FACTOR = 2", "FACTOR = 3"),
    "a default of a method": ("rate=0.5", "rate=0.6"),
    "a keyword default of a method": ("depth=6", "depth=7"),
    "a base class": ("kind = 185", "kind = 186"),
    "another base class": ("class Model(Base)", "class Model(Window)"),
    "an argument of a helper's decorator": ("@timed(3)", "@timed(4)"),
    "a helper's decorator": ("* times", "+ times"),
    "a helper that has lost its decorator": ("@timed(3)\n", "\n"),
    "a default of a helper": ("y=4", "y=5"),
    "a keyword default of a helper": ("z=8", "z=9"),
    "a helper of a helper": ("return first(x) if x", "return first(x) if not x"),
    "a constant of a helper of a helper": ("DEPTH = 9", "DEPTH = 10"),
    "what functools.cache has wrapped": ("x - 21", "x - 22"),
    "a class in an annotation": ("low = 31", "low = 32"),
    "a class in an annotation that is a text": ("high = 41", "high = 42"),
    "a default of the step": ("days: int = 5", "days: int = 6"),
    "a keyword default of the step": ("more=6", "more=7"),
    "its docstring": ("What it does", "What it did"),
    "its text": ("LOCAL = 61", "LOCAL = 63"),
    "a line like a comment in a string": ("# not a comment", "# not a command"),
    "a blank line in a string": ("# not a comment\n\n", "# not a comment\n"),
    "blanks in a string": ("  71'''", "   71'''"),
    "blanks at an end of a line in a string": ("# not a comment\n", "# not a comment \n"),
    "a module by its name": ("return innermost.bottom()", "return innermost.bottom() + 1"),
    "a module that this one imports": ("return 101", "return 102"),
    "a module under another name": ("return 111", "return 112"),
    "what that imports": ("Z = 201", "Z = 202"),
    "a module in a module": ("return 121", "return 122"),
    "a module imported in the function": ("return 131", "return 132"),
    "what it takes all of": ("LATEST = 141", "LATEST = 142"),
    "another one imported in the function": ("X = 151", "X = 152"),
    "what that imports with its package": ("Y = 161", "Y = 162"),
    "a function imported from a file": ("x * UNIT", "x + UNIT"),
    "its default": ("y=183", "y=187"),
    "a constant in its file": ("UNIT = 181", "UNIT = 188"),
    "a function imported with a star": ("return 191", "return 193"),
}

UNSEEN = {
    "a comment": ("# a comment", "# another comment"),
    "a comment on a line of its own": ("        if raw:", "    # here\n        # there\n        if raw:"),
    "blank lines": ("        if raw:", "\n\n        if raw:"),
    "blanks at the end of a line": ("        if raw:\n", "        if raw:   \n"),
    "line numbers": ("    import dataclasses", "    # one\n\n\n    import dataclasses"),
    "another function of the file": ("return 51", "return 52"),
    "a constant that a local one hides": ("    UNUSED = 5\n", "    UNUSED = 6\n"),
    "another function of a file": ("return 184", "return 189"),
    "another constant of a file": ("SPARE = 182", "SPARE = 189"),
    "another file": ("NOTHING = 211", "NOTHING = 212"),
    "a function that a star brought and nobody uses": ("return 192", "return 193"),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return key_of(tmp_path_factory.mktemp("first"), FILES)


@pytest.mark.parametrize("change", SEEN)
def test_a_change_of_what_the_step_uses_gives_another_key(tmp_path, first, change):
    assert key_of(tmp_path, replaced(FILES, *SEEN[change])).digest != first.digest


@pytest.mark.parametrize("change", UNSEEN)
def test_a_change_of_what_it_does_not_use_gives_the_same_key(tmp_path, first, change):
    now = key_of(tmp_path, replaced(FILES, *UNSEEN[change]))
    assert changes(now, first) == []
    assert now.digest == first.digest


def test_it_is_the_same_in_another_folder_under_another_name_and_with_other_line_ends(tmp_path, first):
    windows = {path: textwrap.dedent(text).replace("\n", "\r\n") for path, text in FILES.items()}
    assert key_of(tmp_path / "a/b.c/dags", FILES).digest == first.digest
    assert key_of(tmp_path / "named", FILES, name="dags.retrain").digest == first.digest
    assert changes(key_of(tmp_path / "windows", windows), first) == []


def test_a_dag_file_that_was_moved_is_the_same(tmp_path):
    """But for paths that it makes of its own."""
    text = "import logging\nimport lib\nLOG = logging.getLogger(__name__)\nclass A:\n    low = 1\ndef step():\n    return LOG, lib, A(), B\nB = A()\n"
    files = {"lib.py": "x = 1", "dag.py": text, "nightly/retrain.py": text}
    assert key_of(tmp_path, files) == key_of(tmp_path, files, dag="nightly/retrain.py")


def test_a_folder_that_is_reached_by_a_link_is_the_same(tmp_path, first):
    (tmp_path / "revision-1").mkdir()
    (tmp_path / "current").symlink_to("revision-1")
    assert key_of(tmp_path / "current", FILES).digest == first.digest


def test_a_value_that_the_text_of_a_module_does_not_show_counts(tmp_path, first, monkeypatch):
    monkeypatch.setenv("AIRFLOW_ML_TEST_VALUE", "172")
    now = key_of(tmp_path, FILES)
    assert changes(now, first) == ["code of lib/settings.py:VALUE: 171 -> 172"]


@pytest.mark.parametrize("taken", ["conf.limit()", "conf.CONF.low", "conf.Limits().get()"])
def test_what_a_module_has_read_from_a_file_counts_as_far_as_it_is_taken(tmp_path, taken):
    conf = """
        import json, pathlib, threading, types
        READ = json.loads((pathlib.Path(__file__).parent / "conf.json").read_text())
        CONF, LOCK, TIME = types.SimpleNamespace(**READ), threading.Lock(), object()
        def limit():
            with LOCK:  # which cannot be written, and is no reason to refuse what was accepted by its text
                return READ["low"]
        class Limits:
            def get(self): return READ["low"]
    """
    files = {"conf.py": conf, "conf.json": '{"low": 1}', "dag.py": f"import conf\ndef step():\n    return {taken}\n"}
    one = key_of(tmp_path / "1", files)
    assert changes(key_of(tmp_path / "2", files), one) == []
    assert key_of(tmp_path / "3", {**files, "conf.json": '{"low": 2}'}).digest != one.digest


UNPICKLED = """
    import json, pathlib, threading, types
    READ = json.loads(pathlib.Path(__file__).with_name("conf.json").read_text())
    class Frozen:
        def __init__(self, low): self.low = low
        def __reduce_ex__(self, protocol): raise TypeError("never")
    class Settings:
        def __init__(self, low, more):
            self.lock, self.me, self.low = threading.Lock(), [self], low
            self.deep = {"a": [types.SimpleNamespace(lock=self.lock, low=more)]}
    SETTINGS, DEEP, SPACE = Settings(READ["low"], 0), Settings(0, READ["low"]), types.SimpleNamespace(lock=threading.Lock(), low=READ["low"])
    FROZEN, PAIRS = Frozen(READ["low"]), [(threading.Lock(), READ["low"])]
    def limit(lock=threading.Lock()):
        return READ["low"]
"""


@pytest.mark.parametrize("taken", ["SETTINGS.low", "DEEP.deep['a'][0].low", "SPACE.low", "FROZEN.low", "PAIRS[0][1]", "limit()"])
def test_of_an_object_that_cannot_be_written_counts_what_can_be(tmp_path, taken):
    files = {"conf.py": UNPICKLED, "conf.json": '{"low": 1}', "dag.py": f"import conf\ndef step():\n    return conf.{taken}\n"}
    one = key_of(tmp_path / "1", files)
    assert changes(key_of(tmp_path / "2", files), one) == []
    assert key_of(tmp_path / "3", {**files, "conf.json": '{"low": 2}'}).digest != one.digest


def test_objects_that_know_each_other_take_no_time(tmp_path):
    text = """
        import threading
        class Node:
            known, lock = [], threading.Lock()
            def __init__(self): self.lock, self.others, self.low = Node.lock, Node.known, 3
        Node.known += [Node() for _ in range(40)]
        for each in Node.known:
            each.others = [*Node.known]
        NODES = Node.known
        NODES[7].low = int("4")
    """
    files = {"conf.py": text, "dag.py": "import conf\ndef step():\n    return conf.NODES\n"}
    one = key_of(tmp_path / "1", files)
    assert changes(key_of(tmp_path / "2", files), one) == []
    assert key_of(tmp_path / "3", replaced(files, '"4"', '"5"')).digest != one.digest


@pytest.mark.parametrize(("made", "times"), [("sqlite3.connect(':memory:')", 1), ("threading.Lock()", 0), ("[{'a': 1}]", 0)])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_of_it_cannot_be_written_is_warned_of_but_for_locks(tmp_path, caplog, made, times):
    conf = f"import sqlite3, threading\nclass Settings:\n    def __init__(self): self.held = {made}\nsettings = Settings()\n"
    key_of(tmp_path, {"conf.py": conf, "dag.py": "import conf\ndef step():\n    return conf.settings.held\n"})
    assert caplog.text.count("conf.py:settings['held'] cannot be part of its key, so a change in it is not seen") == times


HELD = {
    "a function in a registry of a class": """
        class Models:
            registry = {}
            @classmethod
            def register(cls, f):
                cls.registry[f.__name__] = f
                return f
        @Models.register
        def linear(x):
            return 1
        def step(kind):
            return Models.registry[kind](1)
    """,
    "a subclass in a registry of its base": """
        class Base:
            known = {}
            def __init_subclass__(cls, **how):
                Base.known[cls.__name__] = cls
        class Linear(Base):
            def go(self):
                return 1
        def step(kind):
            return Base.known[kind]().go()
    """,
    "a class in a list of pairs": """
        import abc
        class Base(abc.ABC):
            known = []
        class Linear:
            def go(self):
                return 1
        Base.known.append(("linear", Linear))
        def step():
            return Base.known[0][1]().go()
    """,
    "a function in a list": """
        class Pipe:
            steps = []
        def one(x):
            return 1
        Pipe.steps.append(one)
        def step():
            return Pipe.steps[0](1)
    """,
    "a function in a defaultdict with a lock": """
        import collections, threading
        class Pipe:
            steps = collections.defaultdict(list)
        def one(x):
            return 1
        Pipe.steps["a"] += [threading.Lock(), one]
        def step():
            return Pipe.steps["a"][1](1)
    """,
    "a function that is set on a function": """
        def one(x):
            return 1
        def two(x):
            return 3
        two.impl = one
        def step():
            return two.impl(1)
    """,
    "a function in a partial that is set on a function": """
        import functools
        def one(x):
            return 1
        def two(x):
            return 3
        two.impl = functools.partial(one, 4)
        def step():
            return two.impl()
    """,
    "an object that was changed": """
        class Scaler:
            def __init__(self, k): self.k = k
        class Conf:
            scaler = Scaler(0)
        def found():
            return 1
        Conf.scaler.k = found()
        def step():
            return Conf.scaler.k
    """,
    "an object that was changed, with a lock": """
        import threading
        class Scaler:
            def __init__(self, k): self.k, self.lock = k, threading.Lock()
        class Conf:
            scalers = {"a": [Scaler(0)]}
        def found():
            return 1
        Conf.scalers["a"][0].k = found()
        def step():
            return Conf.scalers["a"][0].k
    """,
    "the only object of a class": """
        class Conf:
            only = None
            def __init__(self, k): self.k = k
        def found():
            return 1
        Conf.only = Conf(found())
        Conf.only.same = Conf.only
        def step():
            return Conf.only.k
    """,
}


@pytest.mark.parametrize("what", HELD)
def test_what_is_held_by_an_attribute_of_a_class_or_a_function_counts(tmp_path, what):
    one = key_of(tmp_path / "1", HELD[what])
    assert changes(key_of(tmp_path / "2", HELD[what]), one) == []
    assert key_of(tmp_path / "3", HELD[what].replace("return 1\n", "return 2\n")).digest != one.digest


def test_an_attribute_of_somebody_elses_kind_is_no_reason_to_refuse_a_class(tmp_path, caplog):
    text = """
        import abc, collections, ctypes, functools, http.cookies, logging, sqlite3, threading, time, typing
        from pydantic import BaseModel, PrivateAttr
        class Odd(collections.UserDict):
            def values(self): raise OSError("never")
        class Conf(abc.ABC, typing.Generic[typing.TypeVar("T")]):
            __slots__ = ("a",)
            lock, library, odd, log = threading.Lock(), ctypes.CDLL(None), Odd(a=1), logging.getLogger(__name__)
            local, every = threading.local(), [threading.Lock(), sqlite3.connect(":memory:"), object()]
            def go(self): return 1
            memory = http.cookies.SimpleCookie()  # as what SQLAlchemy keeps in a class: another in each process
            dict.__setitem__(memory, "at", time.perf_counter_ns())
            one = functools.partialmethod(go)
            two = functools.cached_property(go)
        class Fields(BaseModel):
            low: int = 1
            _high: list[int] = PrivateAttr(default_factory=list)
        def step():
            return Conf, Fields
        step.lock = [threading.Lock()]
    """
    one = key_of(tmp_path / "1", text)
    assert changes(key_of(tmp_path / "2", text), one) == []


def test_the_names_of_parts_say_where_to_look(first):
    names = set(first.parts)
    assert {"code", "code of LIMIT", "code of second", "code of lib/innermost.py", "code of lib/parts.py:scale"} <= names
    assert not [name for name in names if "prefix" in name or "dag" in name]
    assert first.parts["code of LIMIT"].shown == "300"


def test_secrets_are_not_shown(tmp_path):
    with loaded(tmp_path, {"dag.py": "TOKEN = 'abc'\ndef step():\n    return TOKEN\n"}) as module:
        parts = code_parts(module.step, tmp_path, lambda value, name: "***" if name == "TOKEN" else value)
    assert parts["code of TOKEN"].shown == "***"


CLOSURES = {
    "a value": ("limit = 1", "limit = 2"),
    "a function": ("return 5", "return 6"),
    "a default": ("more=7", "more=8"),
    "a default made of another name": ("kept = 13", "kept = 14"),
    "a keyword default made of another name": ("other = 15", "other = 16"),
    "a local class": ("low = 9", "low = 10"),
    "what a method of it closes over": ("high = 11", "high = 12"),
}
CLOSURE = """
    def make():
        limit = 1
        high = 11
        kept = 13
        other = 15
        def helper(x, more=7, k=kept, *, o=other):
            return 5
        class Local:
            low = 9
            def get(self):
                return super().__init__() or high
        def step():
            return limit, helper(1), Local().get()
        return step
"""


@pytest.mark.parametrize("change", CLOSURES)
def test_what_a_function_closes_over_counts(tmp_path, change):
    other = CLOSURE.replace(*CLOSURES[change])
    assert other != CLOSURE
    assert key_of(tmp_path / "1", CLOSURE, "make").digest != key_of(tmp_path / "2", other, "make").digest
    assert key_of(tmp_path / "1", CLOSURE, "make").digest == key_of(tmp_path / "3", CLOSURE, "make").digest


KINDS = {
    "a class decorator": ("def deco(c):\n    c.x = 1\n    return c\n@deco\nclass X: pass", "c.x = 1", "c.x = 2"),
    "a metaclass": ("class M(type):\n    def go(cls): return 1\nclass X(metaclass=M): pass", "return 1", "return 2"),
    "a method set from outside": ("class X: pass\ndef f(self): return 1\nX.f = f", "return 1", "return 2"),
    "a class attribute set from outside": ("class X: pass\nX.limit = 1", "limit = 1", "limit = 2"),
    "a class attribute made of another name": ("limit = 1\nclass X:\n    limit = limit + 1", "limit = 1", "limit = 2"),
    "a class in a class": ("class X:\n    class Y:\n        def f(self): return K\nK = 1", "K = 1", "K = 2"),
    "a descriptor": ("class D:\n    def __get__(self, o, t): return 1\nclass X:\n    y = D()", "return 1", "return 2"),
    "a static method": ("class X:\n    @staticmethod\n    def f(): return K()\ndef K(): return 1", "return 1", "return 2"),
    "an attribute of a function": ("def X(): return X.n\nX.n = 1", "X.n = 1", "X.n = 2"),
    "a bound method": ("class A:\n    def __init__(self, n): self.n = n\n    def f(self): pass\nX = A(1).f", "A(1)", "A(2)"),
    "an object with slots": ("class A:\n    __slots__ = ('a',)\nX = A()\nX.a = 1", "X.a = 1", "X.a = 2"),
    "a field of a pydantic model": ("import pydantic\nclass A(pydantic.BaseModel):\n    a: int = 0\nX = A(a=1)", "a=1", "a=2"),
    "a model in a model": (
        "import pydantic\nclass A(pydantic.BaseModel):\n    a: int = 1\nclass X(pydantic.BaseModel):\n    a: A",
        "int = 1",
        "int = 2",
    ),
    "a named tuple class": ("from typing import NamedTuple\nclass X(NamedTuple):\n    a: int = 1", "int = 1", "int = 2"),
    "defaults of a named tuple": ("import collections\nX = collections.namedtuple('X', 'a', defaults=[1])", "[1]", "[2]"),
    "a named tuple": ("import collections\nR = collections.namedtuple('R', 'a')\nX = R(1)", "R(1)", "R(2)"),
    "an enum made by a call": ("import enum\nX = enum.Enum('X', {'A': 1})", "'A': 1", "'A': 2"),
    "a number of a class of its own": ("class A(int): pass\nX = A(1)", "A(1)", "A(2)"),
    "a factory of defaults": ("import collections\nX = collections.defaultdict(lambda: 1)", "lambda: 1", "lambda: 2"),
    "a getter": ("import operator\nX = operator.itemgetter(1)", "(1)", "(2)"),
    "an array": ("import numpy\nX = numpy.array([1])", "[1]", "[2]"),
    "a number of numpy": ("import numpy\nX = numpy.float64(1.5)", "1.5", "2.5"),
    "a read-only mapping": ("import types\nX = types.MappingProxyType({'a': 1})", "'a': 1", "'a': 2"),
    "a function in a dictionary": ("def f(): return 1\nX = {'f': f}", "return 1", "return 2"),
    "a name of Python's that was replaced": ("X = 0\ndef len(x): return 1", "return 1", "return 2"),
    "the branch that was taken": ("if True:\n    def X(): return 1\nelse:\n    def X(): return 3", "return 1", "return 2"),
    "a class in the branch that was taken": (
        "if True:\n    class X:\n        def f(self): return 1\nelse:\n    class X:\n        def f(self): return 3",
        "return 1",
        "return 2",
    ),
    "a default that is a function": ("def f(): return 1\ndef X(g=f): return g", "return 1", "return 2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_name_stands_for_counts(tmp_path, kind):
    text, old, new = KINDS[kind]
    text += "\ndef step():\n    return X, len\n"
    assert old in text
    one = key_of(tmp_path / "1", {"dag.py": text})
    assert changes(key_of(tmp_path / "2", {"dag.py": text}), one) == []
    assert key_of(tmp_path / "3", {"dag.py": text.replace(old, new)}).digest != one.digest


def test_the_branch_that_was_not_taken_is_no_part_of_it(tmp_path):
    text = KINDS["a class in the branch that was taken"][0] + "\ndef step():\n    return X\n"
    assert key_of(tmp_path / "1", {"dag.py": text}) == key_of(tmp_path / "2", {"dag.py": text.replace("return 3", "return 4")})


def test_what_says_where_a_process_runs_is_no_part_of_it(tmp_path, monkeypatch):
    text = "import logging, os\nfrom os import environ\nX = logging.getLogger(__name__), __file__, __name__\ndef step():\n    return X, environ\n"
    one = key_of(tmp_path / "1", {"dag.py": text})
    monkeypatch.setenv("AIRFLOW_ML_TEST_VALUE", "1")
    two = key_of(tmp_path / "2", {"dag.py": text})
    assert two.digest == one.digest


LINES = [
    "x = 1", "# one", "", "   # two", "x = 2  # three", "if x:", "    y = 3", "    # four", "def f(a=1):", "    return '#'", '"""',
    "x = '''#", "'''", "f'''{x!r:>{y}} # five", "x = (1,  # six", "     2)", "y = 3 \\", "  + 4", "  ", "class A:", "x = '\\", "#'",
]  # fmt: skip
some_lines = st.lists(st.sampled_from(LINES), max_size=8)


@settings(max_examples=200, deadline=None)
@given(some_lines, some_lines)
def test_what_is_left_of_a_text_means_the_same_and_two_that_differ_stay_apart(one, two):
    found = []
    for each in (one, two):
        text = "\n".join(each)
        with contextlib.suppress(SyntaxError):
            meaning = ast.dump(ast.parse(text))
            bare = SourceFile(text).whole.text
            assert ast.dump(ast.parse(bare)) == meaning
            found.append((meaning, bare))
    assert len(found) < 2 or found[0][0] == found[1][0] or found[0][1] != found[1][1]


def test_pieces_of_real_files_mean_what_they_meant():
    for path in sorted(Path(code_source.__file__).parent.glob("code_s*.py")):
        file = SourceFile.read(str(path))
        for node in ast.walk(file.tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
                piece = file._piece(node, decorators=True)
                assert ast.dump(ast.parse(piece.text).body[0]) == ast.dump(node)


def test_a_decorator_of_the_step_counts_and_the_arguments_of_airflows_do_not(tmp_path):
    text = """
        import functools
        from airflow.sdk import task
        def doubled(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return 2 * function(*args, **kwargs)
            return inner
        @task(retries=3)
        @doubled
        def step():
            return 1
    """
    one = key_of(tmp_path / "1", text, "step.function")
    assert key_of(tmp_path / "2", text.replace("2 * f", "3 * f"), "step.function").digest != one.digest
    assert key_of(tmp_path / "3", text.replace("retries=3", "retries=4"), "step.function").digest == one.digest
    assert key_of(tmp_path / "4", text.replace("        @doubled\n", ""), "step.function").digest != one.digest


def test_another_task_of_the_file_counts_by_its_function(tmp_path):
    text = """
        from airflow.sdk import DAG, task
        dag = DAG("one")
        @task
        def other():
            return 1
        def step():
            return dag.dag_id, other.function()
    """
    one = key_of(tmp_path / "1", text)
    assert key_of(tmp_path / "2", text.replace("return 1", "return 2")).digest != one.digest
    assert key_of(tmp_path / "3", text.replace('DAG("one")', 'DAG("two")')).digest == one.digest


def test_what_a_foreign_decorator_without_wraps_has_wrapped_counts(tmp_path):
    text = """
        import contextlib, functools, reprlib, tenacity
        @functools.singledispatch
        def one(x):
            return 1
        @one.register
        def _(x: int):
            return 2
        @tenacity.retry(stop=tenacity.stop_after_attempt(3))
        def two():
            return 3
        @contextlib.contextmanager
        def three():
            yield 4
        class Memory:
            def __init__(self, function):
                functools.update_wrapper(self, function)
                self.calls = 0
            def __call__(self):
                return 5
        @Memory
        def four():
            return 6
        five = reprlib.recursive_repr(str(7))(lambda self: "8")
        def step():
            return one(1), two(), three(), four(), five
    """
    first = key_of(tmp_path / "0", text)
    assert key_of(tmp_path / "same", text).digest == first.digest
    for number in range(1, 9):
        other = text
        for before in ("return ", "yield ", "str(", '"'):
            other = other.replace(f"{before}{number}", f"{before}{number}0")
        assert other != text
        assert key_of(tmp_path / str(number), other).digest != first.digest, number


def test_what_is_installed_counts_by_its_name_only(tmp_path):
    files = {
        "dag.py": "import alien, json\nfrom alien import f, lock, VERSION\ndef step():\n    return json.dumps(f()), alien.f, lock, VERSION\n",
        "venv/lib/site-packages/alien.py": "import threading\ndef f():\n    return 1\nlock = threading.Lock()\nVERSION = 1\n",
    }
    site = str(tmp_path / "venv/lib/site-packages")
    keys = []
    for old, new in [("", ""), ("return 1", "return 2"), ("VERSION = 1", "VERSION = 2")]:
        sys.path.insert(0, site)
        keys.append(key_of(tmp_path, {path: text.replace(old, new) for path, text in files.items()}))
        sys.path.remove(site)
    assert keys[1] == keys[0]
    assert changes(keys[2], keys[0]) == ["code of VERSION: 1 -> 2"]


def test_a_folder_beside_that_of_the_dags_is_the_authors_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for number in (1, 1, 2):
        (tmp_path / "include_of_tests.py").write_text(f"def f():\n    return {number}\n")
        keys.append(
            key_of(
                tmp_path / "dags",
                "from include_of_tests import f\nimport include_of_tests as i\ndef step():\n    return f(), i\n",
            )
        )
        sys.modules.pop("include_of_tests")
    assert keys[0] == keys[1]
    assert {each.partition(":")[0] for each in changes(keys[2], keys[0])} == {"code of include_of_tests.py"}


REFUSED = {
    "a lock": ("import threading\nX = threading.Lock()", "cannot pickle '_thread.lock' object"),
    "an open file": ("import sys\nX = sys.__stdout__", "cannot pickle"),
    "a generator": ("X = (each for each in [1])", "cannot pickle 'generator' object"),
    "a connection": ("import sqlite3\nX = sqlite3.connect(':memory:')", "cannot pickle 'sqlite3.Connection' object"),
    "a list that contains itself": ("X = []\nX.append(X)", "contains itself"),
    "an object that contains itself": ("class A: pass\nX = A()\nX.me = {'x': X}", "contains itself"),
    "a function without source": ("exec('def X(): return 1')", "cannot be read"),
    "a lambda without source": ("X = eval('lambda: 1')", "cannot be read"),
    "a dataclass made by a call": ("import dataclasses\nX = dataclasses.make_dataclass('Made', ['a'])", "Write it with class"),
    "an instance of it": ("import dataclasses\nX = dataclasses.make_dataclass('Made', ['a'])(1)", "Write it with class"),
    "a class made by a call": ("X = type('Made', (), {})", "Write it with class"),
    "a lock deep inside": ("import threading\nX = {'a': [threading.Lock()]}", r"\['a'\]\[0\]"),
    "a proxy of nothing": ("class A:\n    @property\n    def __class__(self): raise RuntimeError('nobody')\nX = A()", "nobody"),
    "a class that does not let itself be written": (
        "class A:\n    def __reduce_ex__(self, protocol):\n        raise OSError('never')\nX = A()",
        "never",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_written_down_is_refused_with_the_reason(tmp_path, what):
    text, reason = REFUSED[what]
    with pytest.raises(ConfigError, match=reason) as told:
        key_of(tmp_path, {"dag.py": text + "\ndef step():\n    return X\n"})
    assert "'X'" in str(told.value) or "Made" in str(told.value) or "lambda" in str(told.value)
    assert "Cache(code=False)" in str(told.value)


@pytest.mark.parametrize(
    "inside",
    [
        "def step(n):\n        return step(n - 1)",
        "def one():\n        return step()\n    def step():\n        return one()",
        "import functools\n    @functools.cache\n    def one(n):\n        return one(n - 1)\n    def step():\n        return one",
        "table = {}\n    def step():\n        return table\n    table['me'] = [step]",
    ],
)
def test_a_closure_that_contains_itself_is_refused(tmp_path, inside):
    with pytest.raises(ConfigError, match=r"contains itself .*no end.*Define it at the top of the file"):
        key_of(tmp_path, {"dag.py": f"def make():\n    {inside}\n    return step\n"}, "make")


def test_a_high_stack_of_decorators_takes_no_time(tmp_path):
    """Each keeps what it wraps twice, in its closure and as ``__wrapped__``."""
    deco = "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def inner():\n        return f()\n    return inner\n"
    key_of(tmp_path, deco + "@deco\n" * 40 + "def helper(): pass\ndef step():\n    return helper()\n")


def test_an_annotation_may_be_anything_and_is_not_taken_lightly_where_it_is_used(tmp_path):
    made = "import dataclasses\nX = dataclasses.make_dataclass('X', ['a'])\ndef f():\n    return "
    text = "\ndef step(x: X):\n    return f()\n"
    key_of(tmp_path / "1", {"dag.py": f"{made}1{text}"})
    with pytest.raises(ConfigError, match="Write it with class"):
        key_of(tmp_path / "2", {"dag.py": f"{made}X(1){text}"})


def test_a_step_without_source_is_refused(tmp_path):
    space = {"__name__": "x"}
    exec("def step(): return 1", space)  # noqa: S102
    with pytest.raises(ConfigError, match="cannot be read"):
        code_parts(space["step"], tmp_path)
    with pytest.raises(ConfigError, match="not a function"):
        code_parts(len, tmp_path)


def test_a_file_that_changed_after_it_was_loaded_gives_a_key_of_its_own(tmp_path):
    """Else the result of the old code would stand under the key of the new one."""
    old, new = (f"LIMIT = 1\ndef step():\n    return {each}\n" for each in (1, 2))
    with loaded(tmp_path, {"dag.py": old}) as module:
        right = CacheKey(parts=code_parts(module.step, tmp_path)).digest
        (tmp_path / "dag.py").write_text(new)
        stale = CacheKey(parts=code_parts(module.step, tmp_path)).digest
    assert len({right, stale, key_of(tmp_path / "other", {"dag.py": new}).digest}) == 3


def test_nothing_is_imported(tmp_path):
    files = {
        "dag.py": "def step():\n    import heavy.part\n    from light import x\n    import importlib\n    importlib.import_module('named')\n",
        "heavy/__init__.py": "raise RuntimeError('imported')",
        "heavy/part.py": "from . import other\nraise RuntimeError('imported')",
        "heavy/other.py": "",
        "light.py": "raise RuntimeError('imported')",
        "named.py": "raise RuntimeError('imported')",
    }
    first = key_of(tmp_path, files)
    assert set(first.parts) == {"code", *(f"code of {path}" for path in files if path != "dag.py")}


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.core.test_code_digest import FILES, key_of
print(key_of(Path(sys.argv[1]), FILES).model_dump_json())
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_gives_the_same_key(tmp_path, first, seed):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), root], env=environment, capture_output=True, text=True, check=True
    )
    assert changes(CacheKey.model_validate_json(told.stdout), first) == []

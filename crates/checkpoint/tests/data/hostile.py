"""Makes `hostile.json` beside it: pickles that attack whoever reads an index carelessly, and a few that only look odd.

Run it as `python hostile.py` in this folder; it needs no torch. Most cases are a sound index whose planner data is the
attack, so that nothing else about them is a reason to refuse them. What would run leaves a file named `RAN` behind.

- `accepted`: sound indexes, some of them unusual.
- `refused`: the walk refuses them, and so does Python's unpickler with the allow-list alone.
- `refused by the walk`: what an unpickler cannot see or comes to see too late.
"""

import io
import json
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess

HERE = pathlib.Path(__file__).parent
RAN = "RAN"
METADATA = "torch.distributed.checkpoint.metadata"
FILE_SYSTEM = "torch.distributed.checkpoint.filesystem"
PLANNER = "torch.distributed.checkpoint.planner"


# -- opcodes


def text(value):
    value = value.encode()
    return b"\x8c" + bytes([len(value)]) + value if len(value) < 256 else b"X" + struct.pack("<I", len(value)) + value


def named(module, name):
    """A global, as protocol 4 names it."""
    return text(module) + text(name) + b"\x93"


def called(function, *arguments):
    """A call by REDUCE."""
    return function + b"(" + b"".join(arguments) + b"tR"


def state(**values):
    """A dict of attributes."""
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def made(module, name, **values):
    """An object with a state."""
    return named(module, name) + b")\x81" + (state(**values) + b"b" if values else b"")


def index(planner_data, *, storage_data=b"}", front=b""):
    """An index, sound as far as its parts are."""
    metadata = made(
        METADATA, "Metadata", state_dict_metadata=b"}", planner_data=planner_data, storage_data=storage_data
    )
    return b"\x80\x04" + front + metadata + b"."


def pickled(value):
    """The opcodes of a value, without the frame around them."""
    return pickle.dumps(value, 4)[11:-1]


class Reduces:
    def __init__(self, function, *arguments, **keywords):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


SIZE = b"ctorch\nSize\n"
INFO = named(FILE_SYSTEM, "_StorageInfo")
KEY = named(METADATA, "MetadataIndex")
ENUM = named(METADATA, "_MEM_FORMAT_ENCODING")
RUN = f"open({RAN!r}, 'w').close()"
TOUCH = f"touch {RAN}"
ENTRY = made(METADATA, "MetadataIndex", fqn=text("x")) + made(
    FILE_SYSTEM, "_StorageInfo", relative_path=text("f"), offset=b"K\x00", length=b"K\x01"
)


KIND = named(PLANNER, "WriteItemType")
LONE = b"\x8c\x03\xed\xa0\x80"  # the text of one surrogate
PLAN = made(
    PLANNER,
    "SavePlan",
    items=b"]("
    + made(PLANNER, "WriteItem", index=KEY + b")\x81", type=KIND + b"K\x03\x85R", bytes_io_data=b"N", tensor_data=b"N")
    + made(PLANNER, "WriteItem", index=KEY + b")\x81", type=KIND + b"K\x02\x85R", bytes_io_data=b"N", tensor_data=b"N")
    + b"e",
    storage_data=made("s3dcp.storage_writer", "_PlanData", ranks=b"K\x02"),
    planner_data=b"N",
    usable=b"\x88",
)


def twice(place):
    """A tuple of twice what is at a place of the memo."""
    return b"h" + bytes([place]) + b"h" + bytes([place]) + b"\x86"


def doubled(times):
    """A tuple of twice a tuple of twice …; the memo has all of them, from its first place on."""
    return b")\x94" + b"".join(b"0" + twice(level) + b"\x94" for level in range(times))


# -- cases


def accepted():
    return {
        "nothing odd": index(b"N", storage_data=b"}" + ENTRY + b"s"),
        "code after the end": index(b"N") + pickle.dumps(Reduces(os.system, TOUCH)),
        "a tuple doubled sixty times": index(doubled(60)),
        "lists nested deep": index(b"]" * 2000 + b"a" * 1999),
        "save plans": index(b"](" + PLAN + PLAN + b"e"),
        "a plan as key": index(
            b"}"
            + made(PLANNER, "WriteItem", index=b"N", type=KIND + b"K\x01\x85R", bytes_io_data=b"N", tensor_data=b"N")
            + b"Ns"
        ),
        "text that UTF-8 cannot say": index(b"}" + LONE + LONE + b"s"),
        "a name that UTF-8 cannot say": index(
            b"N", storage_data=b"}" + ENTRY.replace(text("x"), b"\x8c\x04\xed\xbf\xbfx") + b"s"
        ),
        "a long integer": index(b"\x8a\xff" + b"\x7f" * 255),
        "the same object as key twice": index(b"}" + ENTRY[: ENTRY.index(INFO)] + b"\x94Ns0}h\x00K\x01s"),
    }


def code():
    """Code to run, by every way to name it and every way to call it."""
    system = called(named("os", "system"), text(TOUCH))
    lines = b"os\nsystem\n"
    return {
        "os.system": index(pickled(Reduces(os.system, TOUCH))),
        "os.system by name": index(system),
        "posix.system": index(called(named("posix", "system"), text(TOUCH))),
        "nt.system": index(called(named("nt", "system"), text(TOUCH))),
        "posix.system by GLOBAL": index(called(b"cposix\nsystem\n", text(TOUCH))),
        "subprocess.Popen": index(pickled(Reduces(subprocess.Popen, ["touch", RAN]))),
        "subprocess.Popen by NEWOBJ": index(named("subprocess", "Popen") + b"]" + text(RAN) + b"a\x85\x81"),
        "subprocess.run by NEWOBJ_EX": index(
            named("subprocess", "run") + b")}" + text("args") + text(TOUCH) + b"s" + text("shell") + b"\x88s\x92"
        ),
        "builtins.eval": index(pickled(Reduces(eval, RUN))),
        "builtins.exec": index(pickled(Reduces(exec, RUN))),
        "builtins.eval by GLOBAL": index(called(b"cbuiltins\neval\n", text(RUN))),
        "builtins.eval of Python 2": index(called(b"c__builtin__\neval\n", text(RUN))),
        "builtins.__import__": index(called(named("builtins", "__import__"), text("os"))),
        "builtins.getattr": index(pickled(Reduces(getattr, dict, "get"))),
        "builtins.open": index(called(named("builtins", "open"), text(RAN), text("w"))),
        "builtins.compile": index(called(named("builtins", "compile"), text(RUN), text("x"), text("exec"))),
        "importlib.import_module": index(called(named("importlib", "import_module"), text("antigravity"))),
        "runpy.run_module": index(called(named("runpy", "run_module"), text("this"))),
        "pickle.loads": index(called(named("pickle", "loads"), b"B" + struct.pack("<I", 2) + b"N.")),
        "operator.attrgetter": index(called(named("operator", "attrgetter"), text("__class__"))),
        "functools.partial": index(called(named("functools", "partial"), named("os", "system"), text(TOUCH))),
        "types.FunctionType": index(called(named("types", "FunctionType"), b"N", b"}")),
        "shutil.rmtree": index(called(named("shutil", "rmtree"), text("."))),
        "torch.load": index(called(named("torch", "load"), text("x"))),
        "torch.load by memo": index(text("torch") + b"\x94" + text("load") + b"\x9400h\x00h\x01\x93"),
        "torch.hub.load": index(called(named("torch.hub", "load"), text("x"), text("y"))),
        "a nested name": index(named("torch", "serialization.load")),
        "a name in a submodule": index(named("torch.serialization", "load")),
        "a module that an allowed one imports": index(called(named("torch.serialization", "os.system"), text(TOUCH))),
        "a module that an allowed one imports, by GLOBAL": index(
            called(b"ctorch.serialization\nos.system\n", text(TOUCH))
        ),
        "a module that torch imports": index(called(named("torch", "os.system"), text(TOUCH))),
        "a module that pathlib imports": index(called(named("pathlib", "os.system"), text(TOUCH))),
        "the globals of an allowed class": index(named(METADATA, "Metadata.__init__.__globals__")),
        "a method of an allowed class": index(called(named("pathlib", "PosixPath.touch"), text(RAN))),
        "the class of an allowed class": index(named("torch", "Size.__class__")),
        "the module of a plan": index(called(named(PLANNER, "abc.abstractmethod"), SIZE)),
        "a module that torch's planners import": index(called(named(PLANNER, "torch.load"), text("x"))),
        "operator, by torch's planners": index(called(named(PLANNER, "operator.attrgetter"), text("__class__"))),
        "a function that torch's planners import": index(called(named(PLANNER, "reduce"), SIZE, b")")),
        "a planner": index(named(PLANNER, "SavePlanner") + b")\x81"),
        "the globals of a plan": index(named(PLANNER, "SavePlan.__init__.__globals__")),
        "our storage writer": index(
            called(named("s3dcp.storage_writer", "S3StorageWriter"), text("x"), text("s3://x/y"))
        ),
        "what our storage writer imports": index(called(named("s3dcp.storage_writer", "warnings.warn"), text("x"))),
        "INST": index(b"(" + text(TOUCH) + b"i" + lines),
        "OBJ": index(b"(c" + lines + text(TOUCH) + b"o"),
        "STACK_GLOBAL over the memo": index(
            text("torch")
            + b"\x94"
            + text("posix")
            + b"\x94"
            + text("system")
            + b"\x94000h\x01h\x02\x93"
            + text(TOUCH)
            + b"\x85R"
        ),
        "a memo place set anew": index(
            text("torch")
            + b"q\x000"
            + text("posix")
            + b"q\x000h\x00"
            + text("system")
            + b"\x93"
            + text(TOUCH)
            + b"\x85R"
        ),
        "a state that is called": index(
            INFO + b")\x81" + state(__setstate__=named("os", "system")) + b"b" + text(TOUCH) + b"b"
        ),
        "a reduce in a state": index(INFO + b")\x81" + state(__reduce__=named("os", "system")) + b"b"),
        "in front of the index": index(b"N", front=system + b"0"),
        "as a key": index(b"}" + system + b"Ns"),
        "in the storage data": index(b"N", storage_data=b"}" + ENTRY + b"s" + system + b"0"),
        "instead of an index": b"\x80\x04" + system + b".",
        "in protocol 0": pickle.dumps(Reduces(os.system, TOUCH), 0),
        "in protocol 1": pickle.dumps(Reduces(os.system, TOUCH), 1),
        "in protocol 2": pickle.dumps(Reduces(os.system, TOUCH), 2),
        "in protocol 5": pickle.dumps(Reduces(os.system, TOUCH), 5),
    }


def malformed():
    """What no pickler writes, or not here."""
    start = b"\x80\x04"
    return {
        "STACK_GLOBAL of a number": index(b"K\x01" + text("load") + b"\x93"),
        "STACK_GLOBAL of bytes": index(b"C\x05torch" + text("Size") + b"\x93"),
        "STACK_GLOBAL of an object": index(INFO + b")\x81" + text("load") + b"\x93"),
        "STACK_GLOBAL on an empty stack": start + b"\x93.",
        "EXT1": index(b"\x82\x01"),
        "EXT2": index(b"\x83\x01\x00"),
        "EXT4": index(b"\x84\x01\x00\x00\x00"),
        "EXT4 below zero": index(b"\x84\xff\xff\xff\xff"),
        "a persistent id": index(text("x") + b"Q"),
        "a textual persistent id": index(b"Pabc\n"),
        "an out-of-band buffer": index(b"\x97"),
        "a read-only buffer": index(b"N\x98"),
        "protocol 9": b"\x80\x09N.",
        "a call of text": index(text("torch") + b")R"),
        "a call of a call": index(SIZE + b")R)R"),
        "a list as arguments": index(SIZE + b"]R"),
        "the state of a class": index(INFO + state(relative_path=text("x")) + b"b"),
        "the state of a dtype": index(b"ctorch\nfloat32\n" + state(a=b"K\x01") + b"b"),
        "appending to a class": index(INFO + b"K\x01a"),
        "items of a class": index(INFO + b"K\x01K\x02s"),
        "a text longer than the rest": start + b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytes longer than the rest": start + b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
        "a bytearray longer than the rest": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
        "a frame longer than the rest": start + b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        "a frame longer than memory": start + b"\x95" + struct.pack("<Q", (1 << 64) - 1) + b"N.",
        "a long integer longer than the rest": start + b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x.",
        "a long integer of a negative length": start + b"\x8b" + struct.pack("<i", -1) + b".",
        "a text of protocol 1 longer than the rest": start + b"X" + struct.pack("<I", (1 << 32) - 1) + b"x.",
        "a decimal integer of many digits": index(b"I" + b"9" * 10_000 + b"\n"),
        "a memo place never set": index(b"h\x05"),
        "a textual memo place never set": index(b"g5\n"),
        "a memo place that is no number": index(b"Np-1\n"),
        "half a surrogate": index(b"\x8c\x02\xed\xa0"),
        "an overlong surrogate": index(b"\x8c\x04\xf0\x8d\xa0\x80"),
        "a module that UTF-8 cannot say": index(LONE + text("load") + b"\x93"),
        "a text that is not UTF-8": index(b"\x8c\x01\xff"),
        "a name that is not UTF-8": index(b"c\xff\nx\n"),
        "a name without an end": start + b"ctorch" + b"x" * 1100,
        "no STOP": index(b"N")[:-1],
        "cut in an opcode": index(b"N")[:40],
        "nothing at all": b"",
        "no item": start + b".",
        "an open mark": start + b"(N.",
        "marks without an end": start + b"(" * 5000,
        "POP below a mark": start + b"N(00.",
        "APPENDS without a list": start + b"(Ne.",
        "odd items": index(b"}(Nu"),
        "an unknown opcode": index(b"\xff"),
        "another object than an index": start + b"N.",
        "a dict": pickle.dumps({"a": 1}, 4),
        "a dict of protocol 0": pickle.dumps({"a": 1}, 0),
        "an index without a state": start + made(METADATA, "Metadata") + b".",
        "an index in a list": start + b"]" + index(b"N")[2:-1] + b"a.",
        "state_dict_metadata that is a list": start + made(METADATA, "Metadata", state_dict_metadata=b"]") + b".",
        "an object turned into an index": start
        + INFO
        + b")\x81N}"
        + text("__class__")
        + named(METADATA, "Metadata")
        + b"s\x86b.",
    }


def beyond_names():
    """Allowed names only, or none at all."""
    key = KEY + b")\x81"
    return {
        "OBJ of an allowed class": index(b"(" + SIZE + b"o"),
        "INST of an allowed class": index(b"(itorch\nSize\n"),
        "keyword arguments": index(INFO + b")}" + text("x") + b"Ns\x92"),
        "slots of a class": index(INFO + b"N}" + text("__getstate__") + SIZE + b"s\x86b"),
        "the state of an enum member": index(ENUM + b"K\x00\x85R" + state(_value_=b"K\x07") + b"b"),
        "the state of a kind of item": index(KIND + b"K\x01\x85R" + state(_value_=b"K\x07") + b"b"),
        "the state of the class of kinds": index(KIND + state(TENSOR=b"N") + b"b"),
        "the state of the class of plans": index(named(PLANNER, "SavePlan") + state(usable=b"N") + b"b"),
        "slots of the class of plans": index(
            named(PLANNER, "WriteItem") + b"N}" + text("__reduce__") + SIZE + b"s\x86b"
        ),
        "plans in plans that take for ever to hash": index(
            b")\x94"
            + b"".join(
                b"0" + named(PLANNER, "WriteItem") + b")\x81}" + text("index") + twice(level) + b"sb\x94"
                for level in range(60)
            )
            + b"0}h\x3cNs"
        ),
        "a shard file that UTF-8 cannot say": index(b"N", storage_data=b"}" + ENTRY.replace(text("f"), LONE) + b"s"),
        "an attribute that UTF-8 cannot say instead of a name": index(
            b"N", storage_data=b"}" + ENTRY.replace(text("relative_path"), LONE) + b"s"
        ),
        "a __setstate__ of its own": index(key + state(__setstate__=SIZE) + b"b" + state(a=b"N") + b"b"),
        "a state after the object was used": index(key + b"\x94\x85h\x00" + state(fqn=text("x")) + b"b0"),
        "a mutable argument grown later": index(b"]\x94" + SIZE + b"h\x00\x85R"),
        "a memo place far away": index(b"Nr\xff\xff\xff\x07"),
        "a textual memo place far away": index(b"Np134217727\n"),
        "tuples nested deep": index(b")" + b"\x85" * 300),
        "tuples nested deep by memo": index(b")" + b"\x940h\x00\x85" + b"q\x000h\x00\x85" * 300),
        "tuples nested deep by marks": index(b"(" * 1100 + b"t" * 1100),
        "one large tuple copied often": index(
            b"(" + b"K\x01" * 500 + b"t\x94" + SIZE + b"\x94(" + b"h\x01h\x00\x85R" * 400 + b"t"
        ),
        "one large state copied often": index(
            b"}\x94("
            + b"".join(b"M" + struct.pack("<H", number) + b"N" for number in range(500))
            + b"u"
            + INFO
            + b"\x94("
            + b"h\x01)\x81h\x00b" * 400
            + b"t"
        ),
        "a key that takes for ever to hash": index(doubled(60) + b"0}h\x3cNs"),
        "an element of a set that takes for ever to hash": index(doubled(60) + b"0\x8f(h\x3c\x90"),
        "an element of a frozen set that takes for ever to hash": index(doubled(60) + b"0(h\x3c\x91"),
        "a key of an OrderedDict that takes for ever to hash": index(
            doubled(60) + b"0ccollections\nOrderedDict\n)Rh\x3cNs"
        ),
        "an object as key that takes for ever to hash": index(
            doubled(60) + b"0}" + key + b"}" + text("fqn") + b"h\x3csbNs"
        ),
        "objects in objects that take for ever to hash": index(
            b")\x94"
            + b"".join(b"0" + key + b"}" + text("fqn") + twice(level) + b"sb\x94" for level in range(60))
            + b"0}h\x3cNs"
        ),
        "objects that get heavy after they were seen light": index(
            b")\x940"
            + b"".join(key + b"\x940" for _ in range(60))
            + b"".join(
                b"h" + bytes([level + 1]) + b"}" + text("fqn") + twice(level) + b"sb0" for level in reversed(range(60))
            )
            + b"}h\x3cNs"
        ),
        "a large key set often": index(b"(" + b"K\x01" * 2000 + b"t\x94}(" + b"h\x00N" * 4000 + b"u"),
        "two indexes": index(index(b"N")[2:-1]),
        "two items": b"\x80\x04N" + index(b"N")[2:],
        "an entry that is no storage information": index(b"N", storage_data=b"}" + KEY + b")\x81Ns"),
        "an offset below zero": index(b"N", storage_data=b"}" + ENTRY.replace(b"K\x00", b"J\xff\xff\xff\xff") + b"s"),
    }


def main():
    groups = {
        "accepted": accepted(),
        "refused": {**code(), **malformed()},
        "refused by the walk": beyond_names(),
    }
    # pickletools agrees that these are what they say
    for name in ("os.system", "torch.load by memo", "in protocol 0"):
        pickletools.dis(groups["refused"][name], io.StringIO())
    in_hex = {group: {name: case.hex() for name, case in cases.items()} for group, cases in groups.items()}
    (HERE / "hostile.json").write_text(json.dumps(in_hex, indent=0) + "\n")


if __name__ == "__main__":
    main()

"""Keys, types, and what definition files inherit from each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import EnvironmentFileError
from piolet.environment import edf
from piolet.environment.layer import Entry, Layer, combine, combine_all
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.source import parse
from piolet.submission.dependencies import Host, Kind


def layer(text: str) -> Layer:
    return edf.read_document(parse("/d/f.toml", text), strict=True).layer


def refusal(text: str) -> EnvironmentFileError:
    with pytest.raises(EnvironmentFileError) as caught:
        edf.read_document(parse("/d/f.toml", text), strict=True)
    return caught.value


def test_every_key() -> None:
    found = layer(
        'image = "i"\nworkdir = "/w"\nentrypoint = true\nwritable = false\nremap_root = true\n'
        'mounts = ["/a"]\ndevices = ["/dev/x"]\n'
        '[env]\nA = "1"\n[annotations]\na.b = "x"\n"c.d" = true\ne = 3\n'
    )
    assert {key: entry.value for key, entry in found.scalars.items()} == {
        "image": "i",
        "workdir": "/w",
        "entrypoint": True,
        "writable": False,
        "remap_root": True,
    }
    assert [entry.text for entry in found.mounts + found.devices] == ["/a", "/dev/x"]
    assert {name: entry.text for name, entry in found.env.items()} == {"A": "1"}
    assert {name: entry.text for name, entry in found.annotations.items()} == {"a.b": "x", "c.d": "true", "e": "3"}


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("image = 1\n", (1, 9), "image must be a string, not a number", 'in quotes: "1"'),
        ("workdir = []\n", (1, 11), "workdir must be a string, not an array", None),
        ('writable = "false"\n', (1, 12), "writable must be true or false, not a string", "without quotes: false"),
        ("entrypoint = 1\n", (1, 14), "entrypoint must be true or false, not a number", None),
        ("image = 1979-05-27\n", (1, 9), "image must be a string, not a date or time", None),
        ('mounts = "/a"\n', (1, 10), "mounts must be an array of strings, not a string", 'in brackets: mounts = ["…"]'),
        ('mounts = ["/a", 2]\n', (1, 17), "mounts[2] must be a string, not a number", 'in quotes: "2"'),
        ("devices = [{}]\n", (1, 12), "devices[1] must be a string, not a table", None),
        ("[devices]\n", (1, 1), "devices must be an array of strings, not a table", None),
        ('env = "A=1"\n', (1, 7), "env must be a table, not a string", "begins with the line [env]"),
        ("[[env]]\n", (1, 2 + 1), "env must be a table, not an array", "begins with the line [env]"),
        ("[env]\nA = true\n", (2, 5), "env.A must be a string, not true or false", 'in quotes: "true"'),
        ("[env]\nA.B = 'x'\n", (2, 1), "env.A must be a string, not a table", None),
        ("[annotations]\na.b = ['x']\n", (2, 7), "annotations.a.b must be a string, not an array", None),
        (
            "base_environment = 3\n",
            (1, 20),
            "base_environment must be a string or an array of strings, not a number",
            None,
        ),
        ("imgae = 'x'\n", (1, 1), "unknown key 'imgae'", "did you mean 'image'?"),
        ("IMAGE = 'x'\n", (1, 1), "unknown key 'IMAGE'", "did you mean 'image'?"),
        ("[enviroment]\nA = '1'\n", (1, 2), "unknown key 'enviroment'", "the tables are [env], [annotations]"),
        ("[envs]\nA = '1'\n", (1, 2), "unknown key 'envs'", "did you mean 'env'?"),
        ("zzz = 1\n", (1, 1), "unknown key 'zzz'", "the keys are base_environment, env_file, image"),
        ('image = "a\\u0000b"\n', (1, 9), "image holds a NUL byte", None),
        ('[env]\n"A=B" = "x"\n', (2, 1), "a variable's name must not be empty", None),
        ('[env]\n"" = "x"\n', (2, 1), "a variable's name must not be empty", None),
        ('[env]\n"a\\u0000" = "x"\n', (2, 1), "a variable's name must not be empty", None),
        ('[env]\nSLURM_JOB_ID = "x"\n', (2, 1), "SLURM_JOB_ID belongs to the step", None),
        ('[env]\nPMI_RANK = ""\n', (2, 1), "PMI_RANK belongs to the step", None),
        ('[env]\nPMIX_RANK = "x"\n', (2, 1), "PMIX_RANK belongs to the step", None),
        ('[annotations]\n"a.b" = "1"\na.b = "2"\n', (3, 3), "the annotation 'a.b' is there twice", "leave one"),
        ('[annotations]\n"a\\u0000" = "1"\n', (2, 1), "the name of an annotation holds a NUL byte", None),
    ],
)
def test_a_wrong_value_has_its_place(text: str, place: tuple[int, int], message: str, hint: str | None) -> None:
    error = refusal(text)
    assert error.location is not None
    assert message in error.message
    assert (error.location.line, error.location.column) == place
    assert hint is None or hint in (error.hint or "")


def test_what_users_tune_in_pmix_is_theirs() -> None:
    assert layer('[env]\nPMIX_MCA_psec = "native"\n').env["PMIX_MCA_psec"].text == "native"


def test_an_unknown_key_can_be_a_warning() -> None:
    document = edf.read_document(parse("/d/f.toml", "\nimgae = 'x'\n"), strict=False)
    assert document.layer.warnings == ("/d/f.toml:2: the unknown key 'imgae' is ignored (did you mean 'image'?)",)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host({"HOME": str(tmp_path), "NAME": "base"}, str(tmp_path))


def write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        (directory / f"{name}.toml").write_text(text)


def load(request: str, host: Host) -> Layer:
    return edf.load(request, host, EnvironmentConfig(edf_path=()))


def failure(request: str, host: Host) -> EnvironmentFileError:
    with pytest.raises(EnvironmentFileError) as caught:
        load(request, host)
    return caught.value


def names(found: Layer) -> list[str]:
    return [Path(source.path).stem for source in found.sources]


def test_bases_come_first_and_later_files_win(tmp_path: Path, host: Host) -> None:
    write(
        tmp_path,
        a='image = "a"\nworkdir = "/a"\nmounts = ["/1"]\nenv = { X = "a", Y = "a" }\nannotations.p = {q="a", r="a"}\n',
        b='image = "b"\nmounts = ["/2"]\n[env]\nX = "b"\n[annotations.p]\nq = "b"\n',
        top='base_environment = ["./a.toml", "./b.toml"]\nmounts = ["/3"]\n[env]\nZ = "top"\n',
    )
    found = load("./top.toml", host)
    assert names(found) == ["a", "b", "top"]
    assert {key: entry.value for key, entry in found.scalars.items()} == {"image": "b", "workdir": "/a"}
    assert [entry.value for entry in found.mounts] == ["/1", "/2", "/3"]
    assert {key: entry.value for key, entry in found.env.items()} == {"X": "b", "Y": "a", "Z": "top"}
    assert {key: entry.value for key, entry in found.annotations.items()} == {"p.q": "b", "p.r": "a"}
    place = found.env["X"].locate()
    assert (place.path, place.line) == (f"{tmp_path}/b.toml", 4)


def test_a_base_that_is_inherited_twice_is_read_once(tmp_path: Path, host: Host) -> None:
    write(
        tmp_path,
        c='mounts = ["/c"]\n',
        a='base_environment = "./c.toml"\n',
        b='base_environment = "./c.toml"\n',
        top='base_environment = ["./a.toml", "./b.toml"]\n',
    )
    found = load("./top.toml", host)
    assert names(found) == ["c", "a", "b", "top"]
    assert [entry.value for entry in found.mounts] == ["/c", "/c"]
    files = [d.name for d in host.dependencies if d.kind is Kind.FILE]
    assert files == [f"{tmp_path}/{name}.toml" for name in ("top", "a", "c", "b")]


def test_a_relative_base_is_relative_to_the_working_directory(tmp_path: Path, host: Host) -> None:
    (tmp_path / "sub").mkdir()
    write(
        tmp_path / "sub",
        top='base_environment = "./base.toml"\n',
        base="",
        ok='base_environment = "${EDF_DIR}/base.toml"',
    )
    error = failure("./sub/top.toml", host)
    assert error.message == f"the environment file {tmp_path}/base.toml does not exist"
    assert error.hint == 'the file is beside this one: write "${EDF_DIR}/./base.toml"'
    assert error.location is not None
    assert (error.location.path, error.location.line, error.location.column) == (f"{tmp_path}/sub/top.toml", 1, 20)
    assert names(load("./sub/ok.toml", host)) == ["base", "ok"]


def test_a_base_may_be_a_bare_name_and_hold_variables(tmp_path: Path, host: Host) -> None:
    (tmp_path / ".edf").mkdir()
    write(tmp_path / ".edf", base='image = "x"\n')
    write(tmp_path, top='base_environment = ["${NAME}"]\n', empty='base_environment = ""\n')
    assert load("./top.toml", host).scalars["image"].value == "x"
    assert ("NAME", Kind.VARIABLE) in [(d.name, d.kind) for d in host.dependencies]
    assert names(load("./empty.toml", host)) == ["empty"]


def test_a_file_that_includes_itself(tmp_path: Path, host: Host) -> None:
    write(tmp_path, x='image = "a"\nbase_environment = "./x.toml"\n')
    error = failure("./x.toml", host)
    assert error.message == f"base_environment goes in a circle: {tmp_path}/x.toml -> {tmp_path}/x.toml"
    assert error.location is not None
    assert error.location.line == 2


def test_a_circle_names_its_chain_even_through_a_link(tmp_path: Path, host: Host) -> None:
    write(
        tmp_path,
        a='base_environment = "./b.toml"',
        b='base_environment = ["./c.toml"]',
        c='base_environment = "./l.toml"',
    )
    (tmp_path / "l.toml").symlink_to("b.toml")
    error = failure("./a.toml", host)
    assert error.message == (
        f"base_environment goes in a circle: {tmp_path}/b.toml -> {tmp_path}/c.toml -> {tmp_path}/l.toml"
    )


def chain(tmp_path: Path, levels: int) -> None:
    for level in range(levels):
        write(tmp_path, **{f"l{level}": f'base_environment = "./l{level + 1}.toml"\n'})
    write(tmp_path, **{f"l{levels}": 'image = "deep"\n'})


def test_ten_levels(tmp_path: Path, host: Host) -> None:
    chain(tmp_path, 10)
    assert load("./l0.toml", host).scalars["image"].value == "deep"
    chain(tmp_path, 11)
    error = failure("./l0.toml", host)
    assert error.message.startswith(f"base_environment goes more than 10 levels deep: {tmp_path}/l0.toml -> ")
    assert error.message.endswith(f"-> {tmp_path}/l11.toml")
    assert error.location is not None
    assert error.location.path == f"{tmp_path}/l10.toml"


def test_bases_that_multiply_are_bounded(tmp_path: Path, host: Host) -> None:
    for level in range(9):
        write(tmp_path, **{f"l{level}": f"base_environment = {[f'./l{level + 1}.toml'] * 10}\n"})
    write(tmp_path, l9="")
    assert failure("./l0.toml", host).message == "base_environment leads to more than 100 files"


def test_an_error_in_a_base_has_its_own_place(tmp_path: Path, host: Host) -> None:
    write(tmp_path, a='base_environment = "./b.toml"', b="\nimage = 1\n", c='base_environment = "./d"')
    location = failure("./a.toml", host).location
    assert location is not None
    assert (location.path, location.line) == (f"{tmp_path}/b.toml", 2)
    (tmp_path / "d").mkdir()
    error = failure("./c.toml", host)
    assert error.message == f"{tmp_path}/d is not a regular file"
    assert error.location is not None


def test_an_undefined_variable_names_file_line_and_key(host: Host) -> None:
    entry = layer('mounts = [\n "/a",\n "/b/${NOPE}" ]\n').mounts[1]
    with pytest.raises(EnvironmentFileError) as caught:
        edf.expand_entry(entry, host)
    assert caught.value.message == "the variable 'NOPE' is not defined, in mounts[2]"
    assert caught.value.location is not None
    assert caught.value.render().splitlines()[:3] == [
        "/d/f.toml:3:6: the variable 'NOPE' is not defined, in mounts[2]",
        '   "/b/${NOPE}" ]',
        "       ^^^^^^^",
    ]


def test_edf_dir_is_the_directory_of_the_file_that_uses_it() -> None:
    host = Host({"EDF_DIR": "/host"}, "/")
    entry = layer('image = "${EDF_DIR}/x.sqsh"\n').scalars["image"]
    assert edf.expand_entry(entry, host) == "/d/x.sqsh"
    assert host.dependencies == ()


SOURCE = parse("/f", "")
ENTRIES = st.builds(lambda value: Entry(value, SOURCE, ()), st.sampled_from(["1", "2", "3"]))
TABLES = st.dictionaries(st.sampled_from("abc"), ENTRIES)
LAYERS = st.builds(
    Layer,
    scalars=st.dictionaries(st.sampled_from(["image", "workdir"]), ENTRIES),
    mounts=st.lists(ENTRIES, max_size=3).map(tuple),
    env=TABLES,
    annotations=TABLES,
    warnings=st.lists(st.sampled_from("xy"), max_size=2, unique=True).map(tuple),
)


@given(LAYERS, LAYERS, LAYERS)
def test_combining_is_associative_in_values_and_order(a: Layer, b: Layer, c: Layer) -> None:
    left, right = combine(combine(a, b), c), combine(a, combine(b, c))
    assert left == right
    assert list(left.env) == list(right.env)


@given(LAYERS, LAYERS)
def test_the_layer_above_wins_and_nothing_is_lost(a: Layer, b: Layer) -> None:
    both = combine(a, b)
    assert all(both.env[name] is entry for name, entry in b.env.items())
    assert both.env.keys() == a.env.keys() | b.env.keys()
    assert both.mounts == a.mounts + b.mounts
    assert combine(a, Layer()) == a == combine(Layer(), a) == combine_all([a])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("volumes", "here it is 'mounts', an array of strings"),
        ("working_dir", "here it is 'workdir'"),
        ("command", "the command stands behind srun's options"),
        ("read_only", "writable = false"),
        ("container_image", "here it is 'image'"),
        ("environment", "here it is the table [env]"),
        ("Volumes", "here it is 'mounts'"),
        ("mount", "here it is 'mounts'"),
        ("wrkdir", "did you mean 'workdir'?"),
    ],
)
def test_words_of_other_tools(key: str, hint: str) -> None:
    assert hint in (refusal(f'{key} = "x"\n').hint or "")


@pytest.mark.parametrize("table", ["env", "annotations"])
@pytest.mark.parametrize("key", ["image", "workdir", "mounts", "base_environment", "writable"])
def test_a_key_of_the_file_below_a_table(table: str, key: str) -> None:
    """What stands below [env] would be a variable, and the step would run on the host."""
    error = refusal(f'[{table}]\n{key} = "x"\n')
    assert error.message.startswith(f"'{key}' stands in the table [{table}], where it would be a")
    assert error.hint == f"move it above the line [{table}]: what stands below belongs to the table"
    assert error.location is not None
    assert (error.location.line, error.location.column) == (2, 1)


def test_a_table_of_another_tool() -> None:
    assert refusal("[labels]\na = 'b'\n").hint == "here they are the table [annotations]"

"""The grammar of mounts, and their order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import EnvironmentFileError
from piolet.environment.definition import Mount
from piolet.environment.mounts import FLAGS, arrange, parse, parse_flags, quote, unparse, unquote


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/a", Mount("/a", "")),
        ("/a:/b", Mount("/a", "/b")),
        ("/a://b/./c/", Mount("/a", "/b/c")),
        ("/a:/b:ro", Mount("/a", "/b", "bind", ("ro",))),
        ("/a:/b:ro+private,nosuid+ro", Mount("/a", "/b", "bind", ("ro", "private", "nosuid"))),
        ("/a.sqsh:/b:sqsh", Mount("/a.sqsh", "/b", "sqsh")),
        ("/a.sqsh:/b:nodev+sqsh", Mount("/a.sqsh", "/b", "sqsh", ("nodev",))),
        ("/a:/b:x-create", Mount("/a", "/b", "bind", ("x-create",))),
        ("/a:/b:x-create=dir,ro+x-create", Mount("/a", "/b", "bind", ("x-create", "ro"))),
        ("/a:/b:x-create=auto", Mount("/a", "/b", "bind", ("x-create",))),
        ("tmpfs:/t", Mount("", "/t", "tmpfs")),
        ("tmpfs:/t:noexec", Mount("", "/t", "tmpfs", ("noexec",))),
        ("tmpfs", Mount("tmpfs", "")),
        ("./tmpfs:/t", Mount("./tmpfs", "/t")),
        (r"/a\:b:/c\:d", Mount("/a:b", "/c:d")),
        (r"/a\\:/b", Mount("/a\\", "/b")),
        (r"/a\b:/c", Mount(r"/a\b", "/c")),
        ("/with space/x=y:/z z", Mount("/with space/x=y", "/z z")),
    ],
)
def test_grammar(text: str, mount: Mount) -> None:
    assert parse(text) == mount


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "the source of the mount is empty", None),
        (":/a", "the source of the mount is empty", None),
        ("/a:", "the destination '' of the mount is not an absolute path", None),
        ("/a:b", "the destination 'b' of the mount is not an absolute path", None),
        ("/a:./b", "the destination './b' of the mount is not an absolute path", "only the source"),
        ("/a:ro", "the destination 'ro' of the mount is not an absolute path", "flags are the third part: SRC:DST:ro"),
        ("/a:/b:ro:x", "at most three parts, SRC:DST:FLAGS, and this one has 4", "a colon in a path"),
        ("tmpfs:/b:ro:x", "a tmpfs has at most three parts", None),
        ("tmpfs:b", "the destination 'b' of the mount is not an absolute path", None),
        ("tmpfs:/b:bind", "the flag 'bind' means nothing for a tmpfs", None),
        ("/a:/", "the destination of a mount must not be '/'", "the root file system is the image"),
        ("/a://./", "the destination of a mount must not be '/'", None),
        ("/a:/b/../c", "the destination '/b/../c' of the mount holds '..'", None),
        ("/a:/b:", "unknown mount flag ''", "the flags are ro, rw"),
        ("/a:/b:rox", "unknown mount flag 'rox'", "did you mean"),
        ("/a:/b:privat", "unknown mount flag 'privat'", "did you mean 'private'?"),
        ("/a:/b:RO", "unknown mount flag 'RO'", None),
        ("/a:/b:ro+rw", "the mount flags 'ro' and 'rw' exclude each other", None),
        ("/a:/b:private+shared", "the mount flags 'private' and 'shared' exclude each other", None),
        ("/a:/b:bind+rbind", "the mount flags 'bind' and 'rbind' exclude each other", None),
        ("/a.sqsh::sqsh", "the destination '' of the mount is not an absolute path", None),
    ],
)
def test_refusals(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(EnvironmentFileError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_alone(flag: str) -> None:
    assert parse_flags(flag) == (flag,)


PATHS = st.lists(st.text(st.sampled_from("ab:\\= +,$"), min_size=1, max_size=4), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
FLAG_SETS = st.tuples(
    st.sampled_from(["", "ro", "rw"]), st.sampled_from(["", "private", "rslave"]), st.sampled_from(["", "nosuid"])
).map(lambda flags: tuple(flag for flag in flags if flag))
MOUNTS = st.one_of(
    st.builds(Mount, PATHS, PATHS, st.sampled_from(["bind", "sqsh"]), FLAG_SETS),
    st.builds(Mount, st.just(""), PATHS, st.just("tmpfs"), FLAG_SETS),
)


@given(MOUNTS)
def test_round_trip(mount: Mount) -> None:
    assert parse(unparse(mount)) == mount


@given(st.text(st.sampled_from("a:\\")))
def test_quote_round_trip(path: str) -> None:
    assert unquote(quote(path)) == path


@given(st.text(st.sampled_from("/ab.:\\ ro+,")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        mount = parse(text)
    except EnvironmentFileError:
        return
    assert mount.destination == "" or mount.destination.startswith("/")


def mounts(*texts: str) -> list[Mount]:
    return [parse(text) for text in texts]


@pytest.mark.parametrize(
    ("given_", "made"),
    [
        (["/1:/a", "/2:/b"], ["/1:/a", "/2:/b"]),
        (["/1:/a", "/2:/b", "/1:/a"], ["/1:/a", "/2:/b"]),
        (["/1:/a", "/2:/b", "/3:/a"], ["/2:/b", "/3:/a"]),
        (["/1:/a", "/2:/a", "/1:/a"], ["/1:/a"]),
        (["/1:/a/x", "/2:/b", "/3:/a"], ["/3:/a", "/1:/a/x", "/2:/b"]),
        (["/1:/a", "/2:/a/x", "tmpfs:/a"], ["tmpfs:/a", "/2:/a/x"]),
        (["/1:/ab", "/2:/a"], ["/1:/ab", "/2:/a"]),
    ],
)
def test_order(given_: list[str], made: list[str]) -> None:
    assert arrange(mounts(*given_)) == mounts(*made)


DESTINATIONS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(st.builds(Mount, st.sampled_from(["/1", "/2"]), DESTINATIONS)))
def test_no_mount_hides_another(given_: list[Mount]) -> None:
    made = arrange(given_)
    assert {m.destination: m for m in given_} == {m.destination: m for m in made}
    assert len({m.destination for m in made}) == len(made)
    for index, mount in enumerate(made):
        assert not any(earlier.destination.startswith(mount.destination + "/") for earlier in made[:index])

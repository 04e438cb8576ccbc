"""`piolet env`: check, render, explain and submit environment definition files.

Standard output has the result only; warnings and the progress of a pull go to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

from piolet import __file__ as package_file
from piolet.base import texts
from piolet.base.errors import ImageError, PioletError, UsageError
from piolet.cli import attached, caller, convert, devices, thismachine
from piolet.cli.main import printable
from piolet.cli.progress import progress
from piolet.environment import attach, pinned, secrets
from piolet.environment.definition import from_json
from piolet.environment.render import Rendered, Resolver, render, unresolved
from piolet.images.info import ImageInfo
from piolet.images.reference import is_path
from piolet.site import config
from piolet.submission.dependencies import Host, Kind

# What the image client looks at besides the variables that the definition names.
_CLIENT_VARIABLES = ("HOME", "EDF_IMAGESTORE", "EDF_IMAGESTORE_GROUP")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `env` and its actions."""
    parser = subparsers.add_parser(
        "env",
        help="check, render and explain environment definition files",
        description="Check, render and explain environment definition files (EDF).",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("check", "say whether a definition file is valid"),
        ("render", "print the definition as canonical JSON: merged, expanded, image resolved"),
        ("explain", "print the merged file, each value with the file and line it came from"),
    ):
        action = actions.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
        action.add_argument("file", metavar="FILE", help="a file, or a name in EDF_PATH, as for --environment")
        action.add_argument("--offline", action="store_true", help="never ask a registry")
        if name == "check":
            text = "also say what a file that was written for this engine does otherwise here"
            action.add_argument("--from", dest="origin", metavar="ENGINE", choices=("cscs",), help=f"{text}: cscs")
    text = "print the definition that a job's steps had, the image by its digest"
    action = actions.add_parser("show", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    action.add_argument("job", metavar="JOB[.STEP]", help="a job, or one of its steps, that srun started here for you")
    devices.add_parser(actions)
    convert.add_parser(actions)
    _add_keep(actions)
    submit = actions.add_parser(
        "submit",
        help="what the plugin in srun calls",
        description="Render a definition, pull its image, and write the record that the plugin in srun takes.",
        allow_abbrev=False,
    )
    submit.add_argument("--record-fd", metavar="N", type=int, required=True, help="the descriptor to write to")
    submit.add_argument("request", metavar="REQUEST", help="what stands after --environment=")


def _add_keep(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "save what a step changed in its container, as an image on top of the one that it had"
    parser = actions.add_parser("save", help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    parser.add_argument("step", metavar="JOB[.STEP]", help="a step of yours that runs")
    parser.add_argument("target", metavar="NAME[:TAG]|FILE.sqsh", help="a name in the store, or a SquashFS file")
    parser.add_argument("--force", action="store_true", help="replace the file, if it is there and yours")
    parser.add_argument("-w", "--node", metavar="NODE", help="the node; without it the step's first")
    parser.add_argument("-Q", "--quiet", action="store_true", help="show no progress")
    text = "what `save`, and a container at its end, calls on the node"
    actions.add_parser("keep", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Do what `args` say and return the exit status."""
    if args.action == "submit":
        return _submit(args, settings)
    if args.action == "show":
        from piolet.cli import envjobs

        return envjobs.show(args.job)
    if args.action in ("save", "keep"):
        from piolet.cli import keep

        return keep.run(args, settings) if args.action == "save" else keep.keep(settings)
    if args.action == "devices":
        return devices.run(args, settings)
    if getattr(args, "file", "").startswith(pinned.MARK):
        job = args.file.removeprefix(pinned.MARK)
        raise UsageError(f"{args.file} is a job's environment, and no file", f"piolet env show {job} prints it as one")
    if attach.is_asked(getattr(args, "file", "")):
        return attached.look(args)
    host = this_host()
    if args.action in convert.ACTIONS:
        return convert.run(args, lambda name: _render(name, host, settings, _asking(settings, offline=args.offline)))
    rendered = _render(args.file, host, settings, _asking(settings, offline=args.offline))
    if args.action == "check":
        left = _rehearse(rendered, host, settings)
        print("; ".join((_verdict(args.file, rendered), *left)))
        for sentence in _otherwise(rendered, settings) if args.origin else ():
            print(printable(f"  otherwise: {sentence}"))
    elif args.action == "render":
        sys.stdout.flush()
        shown = replace(rendered.definition, set_env=secrets.shown(rendered.definition.set_env))
        sys.stdout.buffer.write(shown.to_json() + b"\n")
        sys.stdout.buffer.flush()
    else:
        from piolet.environment.explain import explain

        sys.stdout.write(explain(rendered))
    return 0


def this_host() -> Host:
    """Return what the caller's environment and directory say. Raises PioletError: the directory is gone."""
    try:
        return Host(os.environ, os.getcwd())
    except OSError as error:
        raise PioletError(f"cannot tell the working directory: {error.strerror}", "change to another one") from None


def _render(request: str, host: Host, settings: config.Config, resolve: Resolver) -> Rendered:
    rendered = render(request, host, settings.environment, resolve)
    definition = rendered.definition
    if definition.annotations:
        from piolet.hooks.wanted import check

        host.watch(settings.hooks.directory)
        more = check(definition.annotations, definition.set_env, settings.hooks)
        rendered = replace(rendered, warnings=(*rendered.warnings, *more))
    for text in (*rendered.warnings, *rendered.once):
        _warn(text)
    return rendered


def _rehearse(rendered: Rendered, host: Host, settings: config.Config) -> tuple[str, ...]:
    """Say what the nodes would: "valid" is to mean that it starts. Return what only they can tell."""
    import pwd

    from piolet.container.rehearsal import rehearse

    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = None
    return rehearse(rendered, host, home, settings.environment)


def _otherwise(rendered: Rendered, settings: config.Config) -> list[str]:
    from piolet.environment import cscs

    hooks, home = settings.hooks, settings.environment.mount_home
    found = cscs.differences(rendered, always=hooks.always, home=home, port=hooks.of("ssh").get("port") == "allowed")
    sources = [source.path for source in rendered.layer.sources]
    return found or [f"nothing, of {' + '.join(sources)}"]


def _warn(text: str) -> None:
    print(_warning(text), file=sys.stderr)


def _warning(text: str) -> str:
    return f"piolet: warning: {printable(text)}"


def _asking(settings: config.Config, *, offline: bool) -> Resolver:
    """Return a resolver that pulls nothing and makes do without a registry."""

    def resolve(reference: str) -> ImageInfo:
        if offline and not is_path(reference):
            _warn(f"the image {reference} was not looked at (--offline), so its digest and variables are not known")
            return unresolved(reference)
        from piolet.images import client, failures

        refusal = thismachine.refusal(reference, settings)
        if refusal is not None:
            _warn(refusal.message)
        try:
            with progress() as show:
                return client.resolve(reference, settings.images, pull=False, progress=show)
        except failures.RegistryUnreachable as error:
            _warn(f"{error.message}; the digest and variables of the image are not known")
            return unresolved(reference)

    return resolve


def _verdict(name: str, rendered: Rendered) -> str:
    definition = rendered.definition
    image = f"image {definition.image.reference}" if definition.image else "no image, runs on the host"
    return f"{name} is valid: {image}, {texts.counted(len(definition.mounts), 'mount')}"


def _has_secrets(rendered: Rendered, host: Host) -> bool:
    """Return whether a secret's value would be kept in the cache."""
    names = [one.name for one in host.dependencies if one.kind == Kind.VARIABLE]
    return secrets.any_secret((*(name for name in rendered.layer.env if name in rendered.definition.set_env), *names))


def _is_quiet() -> bool:
    """Return whether the srun, sbatch or salloc that started us was told to be quiet."""
    from piolet.slurm import srunwords

    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            words = os.fsdecode(file.read(1 << 20)).split("\0")
    except OSError:
        return False
    return srunwords.is_quiet(words[:-1])


def _submit_again(args: argparse.Namespace, host: Host, resolve: Resolver, chdir: str | None) -> int:
    """Write the record for `--environment=@JOB`; it is for this call only."""
    from piolet.cli import envjobs
    from piolet.submission import record

    definition, warnings = envjobs.again(args.request, host, resolve)
    for text in warnings:
        _warn(text)
    definition = replace(definition, chdir=chdir)
    record.write(args.record_fd, record.packed(definition.to_json(), args.request, host.cwd))
    pinned.keep(host.variables, b"", definition)
    return 0


def _submit(args: argparse.Namespace, settings: config.Config) -> int:
    from piolet.submission import cache, record
    from piolet.submission.dependencies import Dependency, until

    host = this_host()
    host.watch(args.config or str(config.DEFAULT_PATH))
    host.watch(package_file)

    def resolve(reference: str) -> ImageInfo:
        from piolet.images import client

        for name in _CLIENT_VARIABLES:
            host.variable(name)
        refusal = thismachine.refusal(reference, settings)
        if refusal is not None and not client.is_there(reference, settings.images):
            raise refusal  # before gigabytes come in vain
        with progress(quiet=_is_quiet()) as show:
            info = client.resolve(reference, settings.images, pull=True, progress=show)
        if info.image.digest is None and info.image.path is None:
            raise ImageError(f"the image {reference} was pulled, but is in no store")
        return info

    from piolet.cli import batch

    called = batch.script()
    batch.check_parts(called, batch.ENVIRONMENT)
    started = time.time_ns()
    words = caller.words_of(os.getppid())
    chdir = caller.chdir(words, host)
    inherited = caller.inherited(args.request, words, host.variables)
    if inherited is not None:
        record.write(args.record_fd, record.packed(replace(inherited, chdir=chdir).to_json(), args.request, host.cwd))
        pinned.keep(host.variables, b"", replace(inherited, chdir=chdir))
        return 0
    if args.request.startswith(pinned.MARK):
        return _submit_again(args, host, resolve, chdir)
    if attach.is_asked(args.request):
        return attached.submit(args, host, words, chdir)
    rendered = _render(args.request, host, settings, resolve)
    _rehearse(rendered, host, settings)
    definition = replace(rendered.definition, chdir=chdir).to_json()
    from_json(definition)  # what a node would refuse (an image can bring it in) is refused here
    # Whoever takes the record from the cache is to be warned as well.
    notes = [Dependency(Kind.NOTE, _warning(text)) for text in rendered.warnings]
    notes.append(until("what is kept of jobs", started / 1e9, started / 1e9 + pinned.LOOKED_AFTER_S))
    place = record.Script.INSIDE if rendered.script_inside else record.Script.OUTSIDE
    whole = record.pack(definition, args.request, host.cwd, [*host.dependencies, *notes], place)
    if rendered.script_inside:
        batch.warn_of_steps(called, rendered.definition)
    elif batch.is_bare(called, batch.ENVIRONMENT):
        place = record.Script.BARE
    record.write(args.record_fd, record.packed(definition, args.request, host.cwd, place))
    used = [one for one in host.dependencies if one.kind == Kind.VARIABLE and secrets.is_secret(one.name)]
    own = replace(rendered.definition, chdir=chdir)
    pinned.keep(host.variables, place.value, own, [one.value for one in used])
    path = cache.path_of(host.variables, host.cwd, args.request, args.config or "", os.getuid())
    for_all = chdir is None and not rendered.passing and not _has_secrets(rendered, host)
    if whole and path and for_all and cache.is_settled(host.dependencies, started):
        cache.store(path, whole)
    return 0

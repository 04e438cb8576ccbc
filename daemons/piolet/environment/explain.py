"""The merged result of definition files, as text: each value with the file and line it came from.

The text is a definition file itself, with everything expanded, so that it can be kept and used.
Pure: it makes text from what was rendered.
"""

from __future__ import annotations

import json
import re

from piolet.environment import around, later, mounts, secrets
from piolet.environment.expand import escape
from piolet.environment.layer import Entry
from piolet.environment.render import Rendered
from piolet.environment.variables import image_environment
from piolet.images.reference import is_path

_CONTROLS = dict.fromkeys((*range(32), 127), "?")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def explain(rendered: Rendered) -> str:
    """Return the text, line end included."""
    definition, layer = rendered.definition, rendered.layer
    lines = [f"# {_comment(path)}" for path in definition.files]
    if definition.image is None:
        lines.append("# no image: the step runs on the host")
    else:
        image = definition.image
        entry = layer.scalars["image"]
        reference = image.path if is_path(entry.text) and image.path else image.reference
        lines.append(_line(f"image = {_string(reference)}", _origin(entry, reference)))
        lines.append(f"# digest {image.digest or 'not known'}")
        lines += [f"# {_comment(note)}" for note in (rendered.info.notes if rendered.info else ())]
        workdir = layer.scalars.get("workdir")
        if definition.workdir is not None:
            own = _origin(workdir, definition.workdir) if workdir and workdir.value else "from the image"
            lines.append(_line(f"workdir = {_string(definition.workdir)}", own))
        for name, default in (
            ("entrypoint", False),
            ("writable", True),
            ("remap_root", False),
            ("env_policy", "inherit"),
        ):
            entry_or_none = layer.scalars.get(name)
            value = entry_or_none.value if entry_or_none else default
            text = _string(value) if isinstance(value, str) else str(value).lower()
            lines.append(_line(f"{name} = {text}", _place(entry_or_none) if entry_or_none else "default"))
        if "home" in layer.scalars:
            lines.append(_line(f"home = {str(definition.home).lower()}", _place(layer.scalars["home"])))
        script = layer.scalars.get("script")
        value = "inside" if rendered.script_inside else "outside"
        lines.append(_line(f'script = "{value}"', _place(script) if script else "default"))
        drops = [(f"!{mounts.quote(path)}", rendered.drops[path]) for path in definition.dropped]
        lines += _array("mounts", drops + [(mounts.unparse(mount), entry) for mount, entry in rendered.mounts.items()])
        lines += _array("devices", list(rendered.devices.items()))
    saved, before = around.described(definition)
    if saved:
        lines.append(_line(f"save = {_string(saved[0])}", _origin(layer.scalars["save"], saved[0])))
    lines += _environment(rendered)
    if before:
        lines += ["", f"[{around.TABLE}]"]
        for key, value in before:
            place = _place(layer.startup[key][0]) if key in layer.startup else "default"
            shown = _string(value) if isinstance(value, str) else f"[{', '.join(map(_string, value))}]"
            lines.append(_line(f"{key} = {shown}", place))
    if layer.annotations:
        lines += ["", "[annotations]"]
        for name, entry in layer.annotations.items():
            text = definition.annotations[name]
            lines.append(_line(f"{_key(name)} = {_string(text)}", _origin(entry, text)))
    return "\n".join(lines) + "\n"


def _environment(rendered: Rendered) -> list[str]:
    definition, own = rendered.definition, rendered.layer.env
    lines = []
    for name in image_environment(rendered.info):
        if name not in own:
            lines.append(_variable(name, definition.set_env[name], "from the image"))
    for name, entry in own.items():
        text = definition.set_env.get(name, "")
        if secrets.is_secret(name) and text:
            passed_on = entry.text if _REFERENCE.fullmatch(entry.text) else None
            lines.append(_variable(name, text, _place(entry), passed_on))
        else:
            lines.append(_variable(name, text, _origin(entry, text) + ("" if text else ", unset")))
    return ["", "[env]", *lines] if lines else []


def _variable(name: str, text: str, origin: str, passed_on: str | None = None) -> str:
    """Return a line for a variable; of a secret nothing but its name, and that it is `passed_on` from the host."""
    if not text or not secrets.is_secret(name):
        return _line(f"{_key(name)} = {_string(text)}", origin)
    if passed_on is not None:
        return _line(f'{_key(name)} = "{passed_on}"', f"{origin}, its value is not shown")
    return f"# {_comment(_key(name))} is set ({_comment(origin)}), and its value is not shown"


def _array(name: str, items: list[tuple[str, Entry]]) -> list[str]:
    if not items:
        return []
    return [f"{name} = [", *(_line(f"    {_string(text)},", _origin(entry, text)) for text, entry in items), "]"]


def _line(text: str, comment: str) -> str:
    return f"{text:<48}  # {_comment(comment)}"


def _comment(text: str) -> str:
    """Return `text` without the control characters that would end a comment or are not allowed in one."""
    return text.translate(_CONTROLS)


def _place(entry: Entry) -> str:
    place = entry.locate()
    return f"{place.path}:{place.line}"


def _origin(entry: Entry, text: str) -> str:
    """Return the entry's place, and what is written there if that is not `text`."""
    written = "" if entry.value == text else f", written {json.dumps(entry.value, ensure_ascii=False)}"
    return _place(entry) + written


def _string(text: str) -> str:
    # A JSON string is a TOML basic string, but for the one control character that JSON leaves alone.
    return json.dumps(later.written(escape(text)), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Show what stands after `name :` in a docstring as prose, which is what metastep writes there.

Type annotations already give the types, so docstrings give shapes, ranges and units in their place.
The documentation parser would print them as if they were types.
"""

import re
from typing import Any

import griffe

_ITEM = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (.+)$")
_DASHES = re.compile(r"^-{3,}$")


class ProseSections(griffe.Extension):
    """Rewrites the sections of every docstring just after it was loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = with_prose(obj.docstring.value)


def with_prose(docstring: str) -> str:
    """Move prose from where types stand to where descriptions stand."""
    lines, section = docstring.splitlines(), ""
    written: list[str] = []
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if line and _DASHES.match(following):
            section = line.strip()
        elif _DASHES.match(line):
            # A lone colon opens a return value without name and type; its text follows, indented.
            written += [line, ":"] if section == "Returns" else [line]
            continue
        elif section == "Returns":
            line = f"    {line}" if line else line
        elif section in ("Parameters", "Attributes") and (item := _ITEM.match(line)):
            written.append(item[1])
            line = f"    {item[2]}"
        written.append(line)
    return "\n".join(written)

"""An extension of griffe: the section "Example:" of a docstring, which its parser knows as "Examples:"."""

from __future__ import annotations

import re

from griffe import Extension, Object


class Examples(Extension):
    """Rename the section before docstrings are parsed, so that its code is shown as code."""

    def on_object(self, *, obj: Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^(\s*)Example:$", r"\1Examples:", obj.docstring.value)

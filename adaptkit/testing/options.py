"""What options and imports are checked for, whatever they are the options of."""

from __future__ import annotations

import subprocess
import sys

from pydantic import ValidationError

from adaptkit.recipe import Options
from adaptkit.testing.check import NotApplicable


def assert_strict_options(options: Options) -> None:
    """Raises when options take unknown keys, change on their way through JSON, or are not described."""
    cls = type(options)
    try:
        cls.model_validate({**options.model_dump(), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise AssertionError("an unknown option is accepted; leave extra='forbid' as it is")
    again = cls.model_validate_json(options.model_dump_json())
    assert again == options, f"the options come back from JSON as {again}, not {options}"
    silent = [name for name, field in cls.model_fields.items() if not field.description]
    assert not silent, f"options without a description: {', '.join(silent)}; write Field(…, description=…)"


def assert_imports_no_torch(module: str) -> None:
    """Raises when importing a module in a fresh process imports torch.

    Raises:
        NotApplicable: It is a script, which cannot be imported.
    """
    if module == "__main__":
        raise NotApplicable("it stands in a script")
    program = f"import importlib, sys; sys.path[:] = {sys.path!r}; importlib.import_module({module!r})"
    program += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.stderr, f"importing {module} in a fresh process fails: {done.stderr.strip().splitlines()[-1]}"
    assert done.returncode == 0, f"importing {module} imports torch; import it inside of the methods that need it"

"""The methods, one file each, on one base."""

import importlib
import pkgutil

from selfdistill.methods.base import Outputs, SelfDistillModule

__all__ = ["Outputs", "SelfDistillModule"]

# A method is found by being there: every public subclass in a file of this folder is exported.
for _info in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_info.name}")
    for _name, _value in vars(_module).items():
        if isinstance(_value, type) and issubclass(_value, SelfDistillModule) and not _name.startswith("_"):
            globals()[_name] = _value
            if _name not in __all__:
                __all__ += [_name]

"""What ``evaluate.py`` can do with a run, one file per suite.

A file in this folder that subclasses ``Suite`` is a suite: beside it, conf/suite/ has its settings under its name, and
nothing else needs to know.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

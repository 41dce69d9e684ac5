"""Collects what Keylime's reader of a list loads, so that it runs in a guest: argument 1 is the directory to fill, with
files at the paths that they have here. Modules are compiled: an emulated processor would need minutes. Prints the
interpreter and the directory of packages.
"""

import os
import py_compile
import shutil
import sys
import sysconfig

opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)

from keylime.ima import ima  # noqa: E402, F401

modules = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
data = [path for path in opened if isinstance(path, str) and not path.endswith((".py", ".pyc"))]
for path in {os.path.abspath(path) for path in modules + data}:
    if not os.path.isfile(path) or path.startswith(("/dev/", "/proc/")):
        continue
    copy = sys.argv[1] + path
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    if path.endswith(".py"):
        py_compile.compile(path, cfile=copy + "c", doraise=True)
    else:
        shutil.copyfile(path, copy)
print(sys._base_executable)
print(sysconfig.get_path("purelib"))

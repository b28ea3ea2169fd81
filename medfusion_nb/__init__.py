"""Fuses CT and MRI scans: files, studies and folders of them, from Python or a shell."""
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .engine import load_engine
    from .fuse import fuse
    from .metrics import evaluate
    from .model import CompactNet, FusionNet
    from .phantom import phantom_pair
    from .study import align, fuse_study, write_study
    from .view import view
    from .volume import read_volume

_HOMES = dict(fuse='fuse', load_engine='engine', evaluate='metrics', CompactNet='model', FusionNet='model',
              phantom_pair='phantom', align='study', fuse_study='study', write_study='study', view='view',
              read_volume='volume') # name -> the module that it is loaded from when it is first asked for
__all__ = [*_HOMES, '__version__']


class _Package(ModuleType):
    "Where a module and a function share a name, as `fuse`, the package's attribute is the function."
    def __setattr__(self, name:str, value:Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)): super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name:str) -> Any:
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .core import needs_extra
    with needs_extra(name): value = getattr(import_module(f'.{_HOMES[name]}', __name__), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]: return sorted({*globals(), *_HOMES})

"""Stage 1: hyper-parameters and settings, their checks, their files, older versions"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

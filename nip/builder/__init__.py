"""The widgets: assemble hyper-parameters, inspect what they build, launch, watch, play"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

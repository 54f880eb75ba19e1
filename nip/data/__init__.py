"""Stage 3: data sets, and how they are made and proved"""

import lazy_loader

COMPONENTS = ["dataset", "code"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

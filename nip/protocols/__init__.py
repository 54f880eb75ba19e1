"""Stage 2: messages, who speaks when, what the verdict pays, zero knowledge"""

import lazy_loader

COMPONENTS = ["handler", "named", "zero_knowledge"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

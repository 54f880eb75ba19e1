"""Stage 7: the environment, and episodes as they are played and recorded"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

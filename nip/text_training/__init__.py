"""Stage 9: trainers of language models"""

import lazy_loader

COMPONENTS = ["trainer", "expert_iteration", "malt"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

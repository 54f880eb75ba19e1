"""`run_experiment` and what is made of it: presets, sweeps, reproduction, cost, benchmark, demos"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

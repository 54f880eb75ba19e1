"""Models that answer: clients, local ones, budgets, fine-tuning, a server"""

import lazy_loader

COMPONENTS = ["chat", "openai_client", "local", "fine_tuning", "local_fine_tuning"]  # Modules that register something

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Neural interactive proofs: a weak verifier learns, by talking with strong provers that it cannot trust, to decide"""

__version__ = "2.0.0"

import lazy_loader

# Names of the public interface are imported when they are first asked for, so that `import nip` is light.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

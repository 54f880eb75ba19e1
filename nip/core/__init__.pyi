from .display import html_table as html_table, picture as picture
from .files import cache_dir as cache_dir
from .registry import Registry as Registry
from .seeds import derive_seed as derive_seed, generator as generator, seeded as seeded

from .trackers import Tracker as Tracker, register_tracker as register_tracker, trackers as trackers
from .run import Run as Run
from .store import RunStore as RunStore, find_run as find_run, runs as runs
from .base_run import BaseRunParameters as BaseRunParameters

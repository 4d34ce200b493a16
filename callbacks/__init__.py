"""Lightning callbacks for any Trainer that fits an `LCFModule`. Installed as ``lcf_lightning.callbacks``."""

from lcf_lightning.callbacks.accuracy import CommunicationAccuracy
from lcf_lightning.callbacks.checkpoint import LastCheckpoint
from lcf_lightning.callbacks.export import AdapterExport
from lcf_lightning.callbacks.gates import GateMonitor
from lcf_lightning.callbacks.speedup import Speedup

__all__ = ["AdapterExport", "CommunicationAccuracy", "GateMonitor", "LastCheckpoint", "Speedup"]
